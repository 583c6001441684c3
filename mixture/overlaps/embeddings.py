"""Pictures that a vision tower sees alike: samples and questions whose embeddings point the same way.

Of a sample with several pictures `vlmix embed` keeps the mean of their embeddings, and that is compared: a question's
picture that is one of several is hardly ever found.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.selection.embeddings import Embeddings, Made, read_embeddings

ALIKE = 0.97
"""Cosine from which on embeddings are alike: of two different ones of the pictures in docs/overlaps.md, changed ones
among them, DINOv2-small's have at most 0.965. Other towers see otherwise."""
_LEAST = 0.5  # below, unrelated pictures are alike, and the pairs are more than memory holds
_MOST = 20_000_000  # pairs, which take 2 GB
_AT_ONCE = 8_192  # questions
_ROUNDING = 1e-6  # of a sum of products of float32


class Files(NamedTuple):
    """Embedding files of one tower: of a mixture, and of the questions of (benchmark, split)."""

    samples: Embeddings
    questions: Mapping[tuple[str, str], Embeddings]


class Pairs(NamedTuple):
    """What is alike: [P] places of samples and of questions in the ids that were given, and their cosines, by question
    and sample; and how many samples and questions have no embedding, and were not compared."""

    samples: NDArray[np.int64]
    questions: NDArray[np.int64]
    cosines: NDArray[np.float64]
    samples_left: int
    questions_left: int


def read(paths: Sequence[Path]) -> Files:
    """The files that `vlmix embed` wrote of one mixture and of evaluation sets.

    Raises VlmixError for what is none, for two files of the same, and for two towers.
    """
    known: dict[tuple[str, str], Embeddings] = {}
    first: tuple[Path, Made] | None = None
    for path in paths:
        file = read_embeddings(path)
        if (made := file.made) is None:
            raise VlmixError(f"{path} does not say which tower made it; make it with `vlmix embed`")
        first = first or (path, made)
        if (made.weights, made.how) != (first[1].weights, first[1].how):
            raise VlmixError(
                f"{path} was made by {made.tower} ({made.weights[:8]}, {made.how}), {first[0]} by {first[1].tower} "
                f"({first[1].weights[:8]}, {first[1].how}); embed both with the same --vision-tower"
            )
        other = known.setdefault((made.benchmark, made.split), file)
        if other is not file:
            raise VlmixError(f"{other.path} is of {other.made and other.made.of}, {path} of {made.of}; name one")
        if file.width != known[first[1].benchmark, first[1].split].width:
            raise VlmixError(f"{path} has embeddings of {file.width} components, {first[0]} of others; embed it again")
    if ("", "") not in known:
        raise VlmixError("no embedding file is of a mixture; `vlmix embed MIXTURE` writes one")
    return Files(known.pop(("", "")), known)


def pairs(
    samples: Embeddings,
    questions: Embeddings,
    sample_ids: Sequence[str],
    question_ids: Sequence[str],
    at_least: float = ALIKE,
) -> Pairs:
    """The samples and questions whose embeddings have a cosine of `at_least`. All are compared.

    A file may be of more samples than `sample_ids`, as one of the mixture that a view was made of. Raises VlmixError if
    it is of none of them, if a question is not among `question_ids`, and for more than 20 million pairs.
    """
    if not _LEAST <= at_least <= 1:
        raise VlmixError(f"embeddings are alike from a cosine of {_LEAST} to 1 on, not of {at_least}")
    asked, of_question = _places(questions, question_ids), list[NDArray[np.int64]]()
    if -1 in asked:
        unknown = questions.ids[int(np.argmin(asked))].as_py()
        raise VlmixError(f"{questions.path}: {unknown!r} is no question of this set; embed its questions again")
    shown, of_sample = _places(samples, sample_ids), list[NDArray[np.int64]]()
    if not (shown >= 0).any():
        raise VlmixError(f"{samples.path} is of other samples; its first id is {samples.ids[0].as_py()!r}")
    known = []
    for rows, numbers in _different(questions):
        known.append(rows)
        of_question.append(numbers)
    towards = np.concatenate(known).T
    hits = [np.empty((0, 3))]
    first = 0
    for rows, numbers in _different(samples):
        of_sample.append(numbers)
        for start in range(0, towards.shape[1], _AT_ONCE):
            cosines = rows @ towards[:, start : start + _AT_ONCE]  # faster than faiss's range search
            here, there = np.divmod(np.flatnonzero(cosines.ravel() >= at_least - _ROUNDING), cosines.shape[1])
            hits.append(np.stack([first + here, start + there, cosines[here, there]], axis=1))
            _check_many(sum(map(len, hits)), samples, questions, at_least)
        first += len(rows)
    pictures, seen = np.concatenate(of_sample), np.concatenate(of_question)
    found = np.concatenate(hits)
    ends = found[:, :2].astype(np.int64)
    many = (np.bincount(pictures)[ends[:, 0]] * np.bincount(seen)[ends[:, 1]]).sum()
    _check_many(int(many), samples, questions, at_least)
    by_sample = pl.DataFrame({"sample": shown, "picture": pictures}).filter(pl.col("sample") >= 0)
    by_question = pl.DataFrame({"question": asked, "seen": seen})
    alike = pl.DataFrame({"picture": ends[:, 0], "seen": ends[:, 1], "cosine": found[:, 2]})
    all_pairs = alike.join(by_sample, on="picture").join(by_question, on="seen").sort("question", "sample")
    return Pairs(
        all_pairs["sample"].to_numpy(),
        all_pairs["question"].to_numpy(),
        np.minimum(all_pairs["cosine"].to_numpy(), 1.0),
        len(sample_ids) - len(by_sample),
        len(question_ids) - len(by_question),
    )


def _check_many(pairs: int, samples: Embeddings, questions: Embeddings, at_least: float) -> None:
    if pairs > _MOST:
        raise VlmixError(
            f"{questions.path}: more than {_MOST:,} pairs with {samples.path} have a cosine of {at_least} or more, so "
            "the tower sees unlike pictures alike; raise the cosine, or embed with another tower"
        )


def _places(file: Embeddings, ids: Sequence[str]) -> NDArray[np.int64]:
    """[N] where each id of a file stands in `ids`; -1 if it does not."""
    place = {id: number for number, id in enumerate(ids)}
    return np.array([place.get(id, -1) for id in file.ids.to_pylist()], dtype=np.int64)


def _different(file: Embeddings) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """In parts of a file: [k, D] unit vectors that did not come before, and [n] the number of each of the part's
    among the different ones. Most samples and questions share their picture with others."""
    known: dict[bytes, int] = {}
    for part in file.rows():
        rows = (part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float32)
        before = len(known)
        numbers = np.array([known.setdefault(xxh3_128_digest(row), len(known)) for row in rows], dtype=np.int64)
        new, places = np.unique(numbers, return_index=True)
        yield rows[places[new >= before]], numbers
