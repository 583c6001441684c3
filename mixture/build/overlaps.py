"""What a recipe's `dedup` and `decontaminate` ask for: candidates that are dropped before anything is picked, and the
overlaps of what was picked."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from vlmix.mixture.benchmark.benchmark import Benchmark, EvaluationSet
from vlmix.mixture.build.candidates import Mask, taken
from vlmix.mixture.build.examine import Examined
from vlmix.mixture.build.extract import CandidateReader
from vlmix.mixture.build.images import contents
from vlmix.mixture.build.plan import Prepared
from vlmix.mixture.build.recipe import Decontaminate
from vlmix.mixture.dataset.rejects import RejectRows
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import write_bytes
from vlmix.mixture.io.images import ImageInfo, libraries
from vlmix.mixture.io.pool import Engine, Progress
from vlmix.mixture.keyed import Indices, Ranks
from vlmix.mixture.overlaps.find import compare, table_of
from vlmix.mixture.overlaps.fingerprints import NEAR, versions
from vlmix.mixture.overlaps.questions import Asked, Questions, prepare
from vlmix.mixture.overlaps.samples import (
    CHUNK,
    Pictures,
    Printed,
    PrintJob,
    Samples,
    Texts,
    gather,
    print_pictures,
    priority,
)
from vlmix.mixture.overlaps.table import FORMAT, PICTURES, About, Overlaps, Row
from vlmix.mixture.render import render

_log = logging.getLogger(__name__)
_CLOSER: dict[str, tuple[str, ...]] = {"near": ("bytes",), "near_text": ("bytes", "near", "text")}
"""Levels of duplicates that are those of a wider one as well."""
_TOGETHER = 4_096  # samples whose texts are strings at a time


class Comparing:
    """Compares candidates with each other and with the evaluation sets of a recipe, which are read when it is made.

    `examined` None: pictures are left alone, so ids and texts are compared. Raises VlmixError for an evaluation set
    that is not there, or that cannot be compared by a level that the recipe drops by.
    """

    def __init__(
        self,
        prepared: Prepared,
        examined: Examined | None,
        work: Path,
        benchmark: Callable[[str], Benchmark] | None,
        picture_id: Callable[[str], str],
        pool: Engine,
        progress: Progress,
    ) -> None:
        self._prepared, self._examined, self._work = prepared, examined, work / "prints"
        self._picture_id, self._pool, self._progress = picture_id, pool, progress
        recipe = prepared.recipe
        versions()  # what is not installed is told now
        self._sets: list[tuple[Decontaminate, Questions]] = []
        for entry in recipe.decontaminate:
            if benchmark is None:
                raise VlmixError("`decontaminate` needs benchmarks by name: give `build` its `benchmark`")
            asked = Asked(_evaluation_set(entry, benchmark(entry.benchmark), prepared.raw), entry.near, entry.flipped)
            questions = prepare(asked, pool, progress, pictures=examined is not None)
            if any((each.name, each.split) == (questions.name, questions.split) for _, each in self._sets):
                raise VlmixError(f"decontaminate: {entry.benchmark}: another one is called {questions.name}, too")
            _check_levels(entry, questions, examined is not None, picture_id)
            self._sets.append((entry, questions))
        self._images = np.empty(0, dtype=np.int64)
        """[m] numbers of the images that were fingerprinted, ascending, among all of the candidates'."""
        self._pictures: Pictures | None = None

    def drop(self, usable: Mask, rejects: RejectRows) -> None:
        """Take what the recipe drops out of `usable` [N]. Decided on all that is usable, whatever will be picked."""
        recipe, candidates = self._prepared.recipe, self._prepared.candidates
        offer = np.flatnonzero(usable & candidates.wanted)
        dropping = {(each.name, each.split): frozenset(entry.drop) for entry, each in self._sets if entry.drop}
        if dropping:
            samples = self._samples(offer)
            rows, _ = compare(
                samples, [q for entry, q in self._sets if entry.drop], picture_id=self._picture_id, most=None
            )
            evidence: dict[int, list[Row]] = {}
            for row in rows:
                if row.level in dropping[row.benchmark, row.split]:
                    evidence.setdefault(row.sample, []).append(row)
            for position, found in sorted(evidence.items()):
                usable[offer[position]] = False
                image = next((row.image for row in found if row.image is not None), None)
                number = 0 if image is None else int(samples.numbers[image])
                rejects.add(self._reject(int(offer[position]), number, "in_benchmark", _shown(found)))
            offer = offer[usable[offer]]
        if recipe.dedup is not None and recipe.dedup.drop and len(offer):
            rows, _ = compare(self._samples(offer), [], picture_id=self._picture_id, most=recipe.dedup.near)
            levels = {level for named in recipe.dedup.drop for level in (named, *_CLOSER.get(named, ()))}
            for row in rows:
                if row.level in levels:
                    usable[offer[row.sample]] = False
                    detail = f"says the same as {row.other} ({row.level})"
                    rejects.add(self._reject(int(offer[row.sample]), 0, "duplicate_content", detail))

    def overlaps(self, positions: Indices) -> Overlaps:
        """The overlaps of the candidates at `positions`, which are the samples of a mixture in its order."""
        dedup, samples = self._prepared.recipe.dedup, self._samples(positions)
        rows, checked = compare(
            samples,
            [questions for _, questions in self._sets],
            picture_id=self._picture_id,
            most=None if dedup is None else dedup.near,
        )
        near = NEAR if dedup is None else dedup.near
        about = About(format=FORMAT, mixture=self._prepared.recipe.name, manifest="", near=near, checked=checked)
        return Overlaps(about, table_of(samples, rows))

    def _reject(self, position: int, number: int, reason: str, detail: str) -> Reject:
        candidates = self._prepared.candidates
        if len(candidates.images(position)):
            return candidates.reject(position, number, reason, detail)
        source = candidates.datasets[candidates.sources[position]]
        return Reject(source=source, id=str(candidates.ids[position]), reason=reason, detail=detail)

    def _samples(self, positions: Indices) -> Samples:
        candidates = self._prepared.candidates
        images, counts = candidates.image_numbers(positions)
        paths = _at(candidates.image_paths, images).dictionary_encode()
        places = {name: number for number, name in enumerate(candidates.labels())}
        place = np.array([places.get(name, len(places)) for name in candidates.datasets])
        ids = _at(candidates.ids, positions)
        return Samples(
            ids=pa.chunked_array([ids]),
            sources=pa.chunked_array([_at(candidates.table["source"], positions)]),
            order=priority(place[candidates.sources[positions]], Ranks(ids, candidates.ranks.hashes[positions])),
            counts=counts,
            paths=paths.dictionary.to_pylist(),
            path_of=paths.indices.to_numpy().astype(np.int64),
            pictures=self._look_at(images),
            unseen="" if self._examined is not None else "images are left alone",
            texts=lambda: self._texts(positions),
        )

    def _texts(self, positions: Indices) -> Texts:
        candidates = self._prepared.candidates
        readers = [CandidateReader(path) for path in candidates.parts]
        for start in range(0, len(positions), _TOGETHER):
            parts, rows = candidates.locate(positions[start : start + _TOGETHER])
            texts = [
                render(readers[part][row], self._prepared.recipe.prompts)
                for part, row in zip(parts.tolist(), rows.tolist())
            ]
            yield np.arange(start, start + len(texts)), texts

    def _look_at(self, images: Indices) -> Pictures | None:
        """The pictures that images of candidates are; those of the first call have all others among them."""
        if self._examined is None:
            return None
        if self._pictures is None:
            self._images = np.unique(images)
            self._pictures = self._fingerprint(self._examined, self._images)
        return self._pictures.of(np.searchsorted(self._images, images))

    def _fingerprint(self, examined: Examined, images: Indices) -> Pictures:
        """The pictures of `images` [m], ascending."""
        firsts, which = examined.distinct(images)
        flipped = self._prepared.recipe.dedup is not None and self._prepared.recipe.dedup.flipped
        fixed = repr((libraries(), versions()))

        def jobs() -> Iterator[FileJob]:
            for start in range(0, len(firsts), CHUNK):
                yield FileJob(start, flipped, examined.infos(images[firsts[start : start + CHUNK]]), fixed, self._work)

        self._work.mkdir(exist_ok=True)
        found = gather(self._pool.map(print_files, jobs()), len(firsts), self._progress)
        hashes, first, same = np.unique(np.array(found.hashes), return_index=True, return_inverse=True)
        mine = np.isin(found.which, first)
        kept = set(first.tolist())
        return Pictures(
            picture=same[which].astype(np.int64),
            hashes=hashes.tolist(),
            prints=found.prints[mine],
            printed=same[found.which[mine]].astype(np.int64),
            broken=sorted(int(same[number]) for number in found.broken if number in kept),
            flat=sorted(int(same[number]) for number in found.flat if number in kept),
            flipped=flipped,
        )


def _evaluation_set(entry: Decontaminate, benchmark: Benchmark, raw: Path) -> EvaluationSet:
    if benchmark.own is None and entry.data is None:
        raise VlmixError(
            f"decontaminate: {entry.benchmark} is read from its official files; name their folder as its `data`"
        )
    data = None if entry.data is None else raw / entry.data
    if data is not None and not data.exists():
        raise VlmixError(
            f"decontaminate: {entry.benchmark}: data: {data} does not exist; a relative path begins at RAW"
        )
    images = tuple(raw / root for root in entry.images)
    return EvaluationSet(benchmark=benchmark, data=data, images=images, split=entry.split)


def _check_levels(entry: Decontaminate, questions: Questions, pictures: bool, picture_id: Callable[[str], str]) -> None:
    """Nothing is taken for clean by a level that cannot be compared."""
    label = f"decontaminate: {questions.name}"
    if "id" in entry.drop and not any(picture_id(same[0].image) for same in questions.shown):
        raise VlmixError(f"{label}: its pictures have no ids in a dataset that is known; take id out of `drop`")
    if "text" in entry.drop and questions.unlabelled:
        raise VlmixError(f"{label}: text cannot be compared ({questions.unlabelled}); take it out of `drop`")
    unclear = questions.unreadable + questions.flat
    if unclear and "near" in entry.drop:
        first = unclear[0][0]
        _log.warning(
            "%s: %s of its pictures do not decode or are of one colour, so nothing is dropped by near because of them; "
            "the first is %s",
            label,
            f"{len(unclear):,}",
            first.image or first.id,
        )
    looks = [level for level in entry.drop if level in ("bytes", "near")]
    if looks and not pictures:
        _log.warning("%s: nothing is dropped by %s, as images are left alone", label, " and ".join(looks))
    elif looks and questions.missing:
        raise VlmixError(
            f"{label}: {questions.missing:,} of its {len(questions.shown):,} pictures were not found, so "
            f"{' and '.join(looks)} cannot be compared; name their folder in `images`, or drop by other levels"
        )


def _shown(rows: Sequence[Row]) -> str:
    """What a sample overlaps with, in words."""
    benchmark, split, other = rows[0][:3]
    levels = {row.level: row.distance for row in rows if row[:3] == rows[0][:3]}
    words = ", ".join(level if bits is None else f"{level} by {bits} bits" for level, bits in levels.items())
    verb = "shows the picture of" if levels.keys() & set(PICTURES) else "asks"
    more = len({row[:3] for row in rows}) - 1
    rest = f" and {more:,} more" if more else ""
    return f"{verb} question {other} of {f'{benchmark} {split}'.strip()} ({words}){rest}"


def _at(column: pa.ChunkedArray, positions: Indices) -> pa.Array:
    """Some values of a column, in any order."""
    order = np.argsort(positions, kind="stable")
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return taken(column, positions[order]).combine_chunks().take(pa.array(back))


class FileJob(PrintJob, frozen=True):
    """Images of candidates. Their fingerprints are kept in the folder `kept` for a build that is killed; `fixed` are
    the versions of what makes them."""

    infos: list[ImageInfo]
    fixed: str
    kept: Path


def print_files(job: FileJob) -> Printed:
    """The fingerprints of a job's images. Runs in a worker. Raises VlmixError for a file that is no longer there."""
    decides = [info.digest or (info.path, info.stamp) for info in job.infos]
    key = repr((job.fixed, job.flipped, decides)).encode("utf-8", "surrogatepass")
    path = job.kept / f"{xxh3_128_hexdigest(key)}.prints"
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Printed)
    except (OSError, msgspec.MsgspecError):
        pass
    printed = print_pictures(contents(job.infos), job.flipped)
    write_bytes(path, msgspec.msgpack.encode(printed))
    return printed
