"""Questions with their answers, as text that can be compared."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from vlmix.mixture.benchmark.benchmark import Question
from vlmix.mixture.overlaps.samples import Texts
from vlmix.mixture.record import IMAGE_TOKEN
from vlmix.mixture.render import OCR_LINE, OPTION_LETTER, SHORT_ANSWER, UNANSWERABLE

_INSTRUCTBLIP = re.compile(r"Question: (.*) Short answer:", re.DOTALL)
_PROMPTS = SHORT_ANSWER, OPTION_LETTER, UNANSWERABLE
_LISTED = 16
"""Samples that are listed for a question. Thousands ask "Is it sunny?" and say yes."""

Hashes = NDArray[np.uint64]


def normalised(text: str) -> str:
    """Text without what editors and exporters change: case, kinds of space, compatibility characters, a last stop."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".")


def bare(question: str) -> str:
    """A question without image tokens, format prompts and OCR tokens."""
    text = question.replace(IMAGE_TOKEN, "")
    if match := _INSTRUCTBLIP.fullmatch(text.strip()):
        text = match[1]
    lines = (line.strip() for line in text.split("\n"))
    kept = " ".join(line for line in lines if line not in _PROMPTS and not line.startswith(OCR_LINE.strip()))
    return normalised(kept)


def pair_hash(question: str, answer: str) -> int:
    """Of a bare question with an answer."""
    return xxh3_64_intdigest(f"{question}\x1f{normalised(answer)}".encode("utf-8", "surrogatepass"))


def rounds_of(samples: Texts) -> tuple[Hashes, NDArray[np.int64]]:
    """[R] hashes of all rounds of samples, ascending, and [R] the samples that they are of."""
    hashes, owners = [], []
    for positions, texts in samples:
        found = [
            (pair_hash(bare(question), answer), position)
            for position, turns in zip(positions.tolist(), texts)
            for question, answer in zip(turns[::2], turns[1::2])
        ]
        hashes.append(np.fromiter((hash for hash, _ in found), np.uint64, len(found)))
        owners.append(np.fromiter((owner for _, owner in found), np.int64, len(found)))
    if not hashes:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    joined, of = np.concatenate(hashes), np.concatenate(owners)
    order = np.argsort(joined, kind="stable")
    return joined[order], of[order]


def asked_in(
    questions: Sequence[Question], labels: Mapping[str, Sequence[str]], hashes: Hashes, owners: NDArray[np.int64]
) -> tuple[list[tuple[str, int]], int]:
    """(question's id, sample) of every question that samples ask with an answer that the labels know, for the first
    `_LISTED` of them; and how many such pairs are not listed."""
    found, more = [], 0
    for question in questions:
        said = bare(question.text)
        wanted = np.array(sorted({pair_hash(said, answer) for answer in labels.get(question.id, ())}), dtype=np.uint64)
        starts, ends = (np.searchsorted(hashes, wanted, side) for side in ("left", "right"))
        samples = {int(owner) for start, end in zip(starts, ends) for owner in owners[start:end]}
        found += [(question.id, sample) for sample in sorted(samples)[:_LISTED]]
        more += max(len(samples) - _LISTED, 0)
    return found, more
