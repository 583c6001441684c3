"""Questions and answers, held as columns, by the image that they are about."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

_IMAGES_AT_ONCE = 2000


def by_image(table: pa.Table) -> Iterator[tuple[Any, list[str], list[str]]]:
    """(image, its questions, their answers) of the columns of these names: images in the order of their first question,
    questions in that of the table."""
    encoded = table["image"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    texts = table.select(["question", "answer"]).combine_chunks()
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    for first in range(0, len(names), _IMAGES_AT_ONCE):
        last = min(first + _IMAGES_AT_ONCE, len(names))
        start = int(ends[first - 1]) if first else 0
        part = texts.take(order[start : int(ends[last - 1])])
        questions, answers = part["question"].to_pylist(), part["answer"].to_pylist()
        at = 0
        for code in range(first, last):
            end = int(ends[code]) - start
            yield names[code], questions[at:end], answers[at:end]
            at = end
