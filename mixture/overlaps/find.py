"""Finding overlaps: samples with each other, and their pictures and texts with those of evaluation sets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmix.mixture.io.pool import Pool, Progress, silent
from vlmix.mixture.overlaps.duplicates import duplicates
from vlmix.mixture.overlaps.embeddings import Files, pairs
from vlmix.mixture.overlaps.fingerprints import BITS, NEAR, near
from vlmix.mixture.overlaps.questions import Asked, Facts, Questions, prepare
from vlmix.mixture.overlaps.samples import Samples, joined, of_mixture
from vlmix.mixture.overlaps.table import FORMAT, LEVELS, OF_SETS, SCHEMA, About, Checked, Level, Overlaps, Row, identity
from vlmix.mixture.overlaps.text import asked_in, rounds_of


class Alike(NamedTuple):
    """Embeddings, and the cosine from which on they are alike."""

    files: Files
    at_least: float


def find(
    path: str | Path,
    sets: Sequence[Asked] = (),
    *,
    picture_id: Callable[[str], str],
    most: int = NEAR,
    flipped: bool = False,
    embeddings: Alike | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Overlaps:
    """The overlaps of the mixture at `path` with itself and with `sets`.

    `picture_id` says from a path in LLaVA's layout which picture of which dataset it is. Pictures of the mixture are
    near each other if their fingerprints differ in at most `most` bits, with `flipped` also in a mirror.
    """
    with Pool(workers) as pool:
        mixture, samples = of_mixture(path, flipped, pool, progress)
        seen = samples.pictures is not None
        rows, checked = compare(
            samples,
            [prepare(each, pool, progress, pictures=seen) for each in sets],
            picture_id=picture_id,
            most=most,
            embeddings=embeddings,
        )
    about = About(format=FORMAT, mixture=mixture.manifest.name, manifest=identity(mixture), near=most, checked=checked)
    return Overlaps(about, table_of(samples, rows))


def compare(
    samples: Samples,
    sets: Sequence[Questions],
    *,
    picture_id: Callable[[str], str],
    most: int | None,
    embeddings: Alike | None = None,
) -> tuple[list[Row], list[Checked]]:
    """The overlaps of samples with each other (`most` None: not looked for) and with `sets`, and what was compared."""
    rows: list[Row] = []
    checked = [] if most is None else [duplicates(samples, most, rows)]
    if sets:
        known = _Known(samples, picture_id)
        checked += [_with_set(known, each, embeddings, rows) for each in sets]
    return rows, checked


def table_of(samples: Samples, rows: Sequence[Row]) -> pa.Table:
    """`rows` with what is known of their samples."""
    columns = zip(*rows) if rows else [()] * len(Row._fields)
    benchmark, split, other, level, sample, image, distance, other_path, cosine = columns
    at, within = pa.array(sample, pa.int64()), samples.numbers
    made = {
        "benchmark": benchmark,
        "split": split,
        "other": other,
        "level": level,
        "id": samples.ids.take(at),
        "source": samples.sources.take(at),
        "row": at,
        "image": [None if number is None else int(within[number]) for number in image],
        "distance": distance,
        "cosine": cosine,
        "path": [None if number is None else samples.paths[samples.path_of[number]] for number in image],
        "other_path": other_path,
    }
    table = pa.table(made).cast(SCHEMA)
    return table.sort_by([(name, "ascending") for name in ("benchmark", "split", "row", "image", "level", "other")])


class _Known:
    """Samples by what a question may show or ask."""

    def __init__(self, samples: Samples, picture_id: Callable[[str], str]) -> None:
        self.samples, self.picture_id = samples, picture_id
        self.owners = samples.owners
        self.by_id: dict[str, list[int]] = {}
        for number, name in enumerate(samples.paths):
            if id := picture_id(name):
                self.by_id.setdefault(id, []).append(number)
        self.at_path = _Grouped(samples.path_of, len(samples.paths))
        pictures = samples.pictures
        self.by_hash = {} if pictures is None else {hash: number for number, hash in enumerate(pictures.hashes)}
        self.of_picture = None if pictures is None else _Grouped(pictures.picture, len(pictures.hashes))
        self._rounds: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None

    def rounds(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """See `text.rounds_of`."""
        if self._rounds is None:
            self._rounds = rounds_of(self.samples.texts())
        return self._rounds


class _Grouped:
    """Items by the group that each is in."""

    def __init__(self, group: NDArray[np.integer], count: int) -> None:
        self._items = np.argsort(group, kind="stable")
        self._ends = np.searchsorted(group[self._items], np.arange(count + 1))

    def __getitem__(self, group: int) -> list[int]:
        return list(map(int, self._items[self._ends[group] : self._ends[group + 1]]))


_Hits = dict[tuple[int, Level], list[tuple[int, int | None]]]
"""(number of a question's picture, level) -> images of samples, with the distance."""


def _with_set(known: _Known, questions: Questions, embeddings: Alike | None, rows: list[Row]) -> Checked:
    name, split, facts = questions.name, questions.split, questions.facts
    hits: _Hits = {}
    unchecked: dict[str, str] = {}
    ids = [known.picture_id(same[0].image) for same in questions.shown]
    if without := sum(not id for id in ids):
        unchecked["id"] = f"{without:,} of its pictures have no id in a dataset that is known"
    for number, id in enumerate(ids):
        for path in known.by_id.get(id, ()) if id else ():
            hits.setdefault((number, "id"), []).extend((i, None) for i in known.at_path[path])
    if known.samples.pictures is None or facts is None:
        unchecked |= dict.fromkeys(("bytes", "near"), known.samples.unseen)
    else:
        _look_up(known, facts, questions.near, hits)
        if missing := questions.missing:
            unchecked |= dict.fromkeys(("bytes", "near"), f"{missing:,} of its pictures were not found")
    for (number, level), images in sorted(hits.items()):
        for question in questions.shown[number]:
            rows += [
                Row(name, split, question.id, level, int(known.owners[i]), i, distance, question.image)
                for i, distance in images
            ]
    more = 0
    if questions.unlabelled:
        unchecked["text"] = questions.unlabelled
    else:
        pairs, more = asked_in(questions.every, questions.labels, *known.rounds())
        rows += [Row(name, split, id, "text", sample) for id, sample in pairs]
    levels = list(OF_SETS)
    if embeddings is not None:
        levels.append("embedding")
        if why := _add_alike(known.samples, questions, embeddings, rows):
            unchecked["embedding"] = why
    return Checked(
        benchmark=name,
        split=split,
        levels=[level for level in LEVELS if level in levels and level not in unchecked],
        unchecked=unchecked,
        questions=[question.id for question in questions.every],
        pictures=len(questions.shown),
        unreadable=[same[0].image or same[0].id for same in questions.unreadable],
        flat=len(questions.flat),
        left_out=[question.id for same in questions.unreadable + questions.flat for question in same],
        not_listed=more,
    )


def _add_alike(samples: Samples, questions: Questions, embeddings: Alike, rows: list[Row]) -> str:
    """Add the samples and questions of one set whose embeddings are alike to `rows`; why not all were compared."""
    name, split, at_least = questions.name, questions.split, embeddings.at_least
    asked = embeddings.files.questions.get((name, split))
    if asked is None:
        return "no embedding file of it was named"
    ids = [question.id for question in questions.every]
    found = pairs(embeddings.files.samples, asked, samples.ids.to_pylist(), ids, at_least)
    images = {question.id: question.image for question in questions.every}
    for sample, number, cosine in zip(found.samples.tolist(), found.questions.tolist(), found.cosines.tolist()):
        other = ids[number]
        rows.append(Row(name, split, other, "embedding", sample, other_path=images[other], cosine=cosine))
    samples_left = found.samples_left - int((samples.counts == 0).sum())
    questions_left = found.questions_left - (len(ids) - sum(map(len, questions.shown)))
    counts = (("samples with pictures", samples_left), ("questions with a picture", questions_left))
    return " and ".join(f"{what} that have no embedding: {count:,}" for what, count in counts if count > 0)


def _look_up(known: _Known, facts: Sequence[Facts], most: int, hits: _Hits) -> None:
    """Add to `hits` the images of samples that are, or are near, pictures by their bytes."""
    pictures, of_picture = known.samples.pictures, known.of_picture
    assert pictures is not None and of_picture is not None
    for number, (hash, _) in enumerate(facts):
        if hash and (picture := known.by_hash.get(hash)) is not None:
            hits.setdefault((number, "bytes"), []).extend((i, None) for i in of_picture[picture])
    owners = np.repeat(np.arange(len(facts)), [0 if found is None else len(found) for _, found in facts])
    nearest: dict[tuple[int, int], int] = {}
    prints, printed = pictures.prints[pictures.plain], pictures.printed[pictures.plain]
    for query, found in near(joined([found for _, found in facts if found is not None]), prints, most):
        for which, distance in found.tolist():
            pair = int(owners[query]), int(printed[which])
            nearest[pair] = min(distance, nearest.get(pair, BITS))
    for (number, picture), distance in nearest.items():
        hits.setdefault((number, "near"), []).extend((i, distance) for i in of_picture[picture])
