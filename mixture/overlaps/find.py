"""Finding overlaps: the mixture's samples with each other, and its pictures with those of evaluation sets."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from vlmix.mixture.benchmark.benchmark import EvaluationSet, Question, image_files
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.image_index import ImageIndex
from vlmix.mixture.io.images import image_xxh3
from vlmix.mixture.io.pool import Pool, Progress, silent
from vlmix.mixture.keyed import hash_order
from vlmix.mixture.overlaps.fingerprints import BITS, NEAR, Fingerprints, fingerprints, near
from vlmix.mixture.overlaps.table import FORMAT, LEVELS, SCHEMA, About, Checked, Overlaps, identity
from vlmix.mixture.overlaps.text import asked_in, normalised, rounds_of

_CHUNK = 256  # pictures per task
_Row = tuple[str, str, str, str, int, int | None, int | None, str]
"""benchmark, split, other, level, sample, image, distance, other_path"""


def find(
    path: Path,
    sets: Sequence[EvaluationSet] = (),
    *,
    picture_id: Callable[[str], str],
    most: int = NEAR,
    flipped: bool = False,
    workers: int = 1,
    progress: Progress = silent,
) -> Overlaps:
    """The overlaps of the mixture at `path` with itself and with `sets`.

    `picture_id` says from a path in LLaVA's layout which picture of which dataset it is. Pictures are near if their
    fingerprints differ in at most `most` bits, with `flipped` also in a mirror.
    """
    mixture = Reader.open(path)
    with Pool(workers) as pool:
        pictures = _Pictures(path, mixture, picture_id, pool, progress)
        rows: list[_Row] = []
        checked = [_duplicates(pictures, most, rows)]
        for each in sets:
            checked.append(_with_set(pictures, each, most, flipped, rows, pool, progress))
    about = About(format=FORMAT, mixture=mixture.manifest.name, manifest=identity(mixture), near=most, checked=checked)
    return Overlaps(about, pictures.table(rows))


class _Pictures:
    """The pictures of a mixture: N samples with M images in all, of K that differ by their bytes."""

    def __init__(
        self, path: Path, mixture: Reader, picture_id: Callable[[str], str], pool: Pool, progress: Progress
    ) -> None:
        self.mixture = mixture
        counts, (paths, hashes) = mixture.image_fields("path", "xxh3")
        self.owners = np.repeat(np.arange(len(counts)), counts)
        """[M] the sample of each image."""
        self.numbers = np.arange(len(self.owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        """[M] its number in the sample."""
        self.counts = counts
        coded = paths.dictionary_encode()
        names = coded.dictionary.to_pylist()
        self.paths, self.path_of = names, coded.indices.to_numpy()
        self.by_id: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            self.by_id.setdefault(picture_id(name), []).append(number)
        self.picture_id = picture_id
        stored = hashes.dictionary_encode()
        self.hashes: list[str] = stored.dictionary.to_pylist()
        self.picture = stored.indices.to_numpy().astype(np.int64)
        """[M] which of the K pictures each image is."""
        self.has_bytes = "" not in self.hashes
        self.by_hash = {hash: number for number, hash in enumerate(self.hashes)} if self.has_bytes else {}
        self.prints = np.empty((0, BITS // 8), dtype=np.uint8)
        self.printed = np.empty(0, dtype=np.int64)
        """[P, 32] fingerprints, and [P] of which picture each is; flat ones have none."""
        self.unreadable: list[str] = []
        """Paths of pictures that do not decode, as a build with `--check header` may take them."""
        if self.has_bytes and len(self.picture):
            _, firsts = np.unique(self.picture, return_index=True)
            self._fingerprint(path, firsts, pool, progress)
        self.of_picture = _Grouped(self.picture, len(self.hashes))
        self.at_path = _Grouped(self.path_of, len(names))
        """Numbers of the images that are a picture, and of those at a path."""

    def _fingerprint(self, path: Path, firsts: NDArray[np.int64], pool: Pool, progress: Progress) -> None:
        jobs = [
            _StoredJob(path, start, self.owners[part].tolist(), self.numbers[part].tolist())
            for start in range(0, len(firsts), _CHUNK)
            for part in [firsts[start : start + _CHUNK]]
        ]
        found: dict[int, tuple[NDArray[np.int64], Fingerprints]] = {}
        for job, (which, prints, broken) in pool.map(_stored, jobs):
            found[job.first] = which + job.first, prints
            self.unreadable += [self.paths[self.path_of[firsts[job.first + number]]] for number in broken]
            progress("fingerprinting pictures", len(found), len(jobs))
        ordered = [found[job.first] for job in jobs]
        self.printed = np.concatenate([which for which, _ in ordered])
        self.prints = np.concatenate([prints for _, prints in ordered])

    @cached_property
    def rounds(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """See `text.rounds_of`."""
        return rounds_of(self.mixture)

    def table(self, rows: Sequence[_Row]) -> pa.Table:
        """`rows` with what the index says of their samples."""
        columns = list(zip(*rows)) if rows else [()] * 8
        benchmark, split, other, level, sample, image, distance, other_path = columns
        at = pa.array(sample, pa.int64())
        paths = [None if number is None else self.paths[self.path_of[number]] for number in image]
        numbers = [None if number is None else int(self.numbers[number]) for number in image]
        mixture = self.mixture
        made = {
            "benchmark": benchmark,
            "split": split,
            "other": other,
            "level": level,
            "id": mixture.column("id").take(at),
            "source": mixture.column("source").take(at),
            "row": at,
            "image": numbers,
            "distance": distance,
            "path": paths,
            "other_path": other_path,
        }
        return pa.table(made).cast(SCHEMA)


class _Grouped:
    """Items by the group that each is in."""

    def __init__(self, group: NDArray[np.integer], count: int) -> None:
        self._items = np.argsort(group, kind="stable")
        self._ends = np.searchsorted(group[self._items], np.arange(count + 1))

    def __getitem__(self, group: int) -> list[int]:
        return list(map(int, self._items[self._ends[group] : self._ends[group + 1]]))


class _StoredJob(Struct, frozen=True):
    path: Path
    first: int
    positions: list[int]
    numbers: list[int]


@lru_cache(maxsize=1)
def _opened(path: Path) -> Reader:
    return Reader.open(path)


def _stored(job: _StoredJob) -> tuple[NDArray[np.int64], Fingerprints, list[int]]:
    """Which of the job's pictures each fingerprint is of, those, and which pictures do not decode. Runs in a worker."""
    mixture, which, prints, broken = _opened(job.path), list[int](), list[Fingerprints](), list[int]()
    for number, (position, image) in enumerate(zip(job.positions, job.numbers)):
        try:
            found = fingerprints(mixture.raw(position).jpegs[image])
        except VlmixError:
            broken.append(number)
            continue
        which += [number] * len(found)
        prints.append(found)
    return np.array(which, dtype=np.int64), _joined(prints), broken


def _joined(prints: Sequence[Fingerprints]) -> Fingerprints:
    return np.concatenate([np.empty((0, BITS // 8), dtype=np.uint8), *prints])


def _duplicates(pictures: _Pictures, most: int, rows: list[_Row]) -> Checked:
    """Samples that say the same of the same pictures; of a group the first in hash order is `other` of the rest."""
    mixture = pictures.mixture
    texts = np.zeros(len(mixture), dtype=np.uint64)
    for positions, turns in mixture.texts():
        for position, values in zip(positions.tolist(), turns):
            texts[position] = xxh3_64_intdigest("\x1f".join(map(normalised, values)).encode("utf-8", "surrogatepass"))
    numbers = (pictures.picture, _alike(pictures, most)) if pictures.has_bytes else 2 * (pictures.path_of,)
    same, alike = (each.astype(np.int64).tobytes() for each in numbers)
    ends = 8 * np.cumsum(pictures.counts)
    exact: list[bytes] = []
    near_keys: list[bytes] = []
    for said, start, end in zip(texts, (ends - 8 * pictures.counts).tolist(), ends.tolist()):
        exact.append(xxh3_128_digest(said.tobytes() + same[start:end]))
        near_keys.append(xxh3_128_digest(said.tobytes() + alike[start:end]))
    ids = mixture.column("id")
    order = np.argsort(hash_order(ids, mixture.manifest.seed), kind="stable").tolist()
    first: dict[bytes, int] = {}
    first_exact: dict[bytes, int] = {}
    for position in order:
        kept = first.setdefault(near_keys[position], position)
        kept_exact = first_exact.setdefault(exact[position], position)
        if kept == position:
            continue
        level = "bytes" if kept_exact == kept else "near"
        if not pictures.counts[position]:
            level = "text"
        elif not pictures.has_bytes:
            level = "id"
        rows.append(("", "", ids[kept].as_py(), level, position, None, None, ""))
    unchecked = {} if pictures.has_bytes else dict.fromkeys(("bytes", "near"), "the mixture has no shards")
    levels = ["bytes", "near", "text"] if pictures.has_bytes else ["id", "text"]
    return Checked(
        benchmark="",
        split="",
        levels=levels,
        unchecked=unchecked,
        pictures=len(pictures.hashes),
        unreadable=sorted(pictures.unreadable),
    )


def _alike(pictures: _Pictures, most: int) -> NDArray[np.int64]:
    """[M] the group of each image's picture: pictures near each other, over others too, are in one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left: list[int] = []
    right: list[int] = []
    for number, found in near(pictures.prints, pictures.prints, most):
        left += [int(pictures.printed[number])] * len(found)
        right += pictures.printed[found[:, 0]].tolist()
    count = len(pictures.hashes)
    graph = coo_array((np.ones(len(left), dtype=np.bool_), (left, right)), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    return np.asarray(groups[pictures.picture], dtype=np.int64)


class _AskedJob(Struct, frozen=True):
    """Pictures of questions: by the files that may be one, or by its bytes."""

    first: int
    files: list[list[str]]
    held: list[bytes | None]
    flipped: bool


def _asked(job: _AskedJob) -> list[tuple[str, Fingerprints | None]]:
    """The content hash ("": not there) and the fingerprints (None: it does not decode) of each. Runs in a worker."""
    results: list[tuple[str, Fingerprints | None]] = []
    for files, held in zip(job.files, job.held):
        result: tuple[str, Fingerprints | None] = ("", None)
        for data in [held] if held is not None else map(_bytes, files):
            if not data:
                continue
            result = image_xxh3(data), None
            try:
                result = result[0], fingerprints(data, crops=True, flipped=job.flipped)
            except VlmixError:
                continue
            break
        results.append(result)
    return results


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _with_set(
    pictures: _Pictures,
    each: EvaluationSet,
    most: int,
    flipped: bool,
    rows: list[_Row],
    pool: Pool,
    progress: Progress,
) -> Checked:
    benchmark, split = each.benchmark, each.split
    questions = benchmark.questions(each.folder, split)
    shown: dict[object, list[Question]] = {}
    for question in questions:
        if question.image or question.image_bytes is not None:
            held = question.image_bytes
            shown.setdefault(question.image or (held if isinstance(held, bytes) else question.id), []).append(question)
    asked = list(shown.values())
    index = ImageIndex(each.image_roots, benchmark.images)
    facts = _facts([same[0] for same in asked], index, flipped, benchmark.name, pool, progress)
    missing = sum(not hash for hash, _ in facts)
    unreadable = [same[0].image or same[0].id for same, (hash, found) in zip(asked, facts) if hash and found is None]
    hits: dict[tuple[int, str], list[tuple[int, int | None]]] = {}
    for number, (same, (hash, _)) in enumerate(zip(asked, facts)):
        if same[0].image:
            for path in pictures.by_id.get(pictures.picture_id(same[0].image), ()):
                hits.setdefault((number, "id"), []).extend((i, None) for i in pictures.at_path[path])
        if (picture := pictures.by_hash.get(hash) if hash else None) is not None:
            hits.setdefault((number, "bytes"), []).extend((i, None) for i in pictures.of_picture[picture])
    owners = np.repeat(np.arange(len(facts)), [0 if found is None else len(found) for _, found in facts])
    nearest: dict[tuple[int, int], int] = {}
    for query, found in near(_joined([f for _, f in facts if f is not None]), pictures.prints, most):
        for which, distance in found.tolist():
            pair = int(owners[query]), int(pictures.printed[which])
            nearest[pair] = min(distance, nearest.get(pair, BITS))
    for (number, picture), distance in nearest.items():
        hits.setdefault((number, "near"), []).extend((i, distance) for i in pictures.of_picture[picture])
    for (number, level), images in sorted(hits.items()):
        for question in asked[number]:
            rows += [
                (benchmark.name, split, question.id, level, int(pictures.owners[i]), i, distance, question.image)
                for i, distance in images
            ]
    unchecked: dict[str, str] = {}
    more = 0
    try:
        labels = benchmark.labels(each.folder, split)
    except VlmixError as error:
        unchecked["text"] = str(error)
    else:
        pairs, more = asked_in(questions, labels, *pictures.rounds)
        rows += [(benchmark.name, split, id, "text", sample, None, None, "") for id, sample in pairs]
    if missing or not pictures.has_bytes:
        why = "the mixture has no shards" if not pictures.has_bytes else f"{missing:,} of its pictures were not found"
        unchecked |= dict.fromkeys(("bytes", "near"), why)
    return Checked(
        benchmark=benchmark.name,
        split=split,
        levels=[level for level in LEVELS if level not in unchecked],
        unchecked=unchecked,
        questions=[question.id for question in questions],
        pictures=len(asked),
        unreadable=unreadable,
        not_listed=more,
    )


def _facts(
    asked: Sequence[Question], index: ImageIndex, flipped: bool, name: str, pool: Pool, progress: Progress
) -> list[tuple[str, Fingerprints | None]]:
    def jobs() -> Iterator[_AskedJob]:
        questions, first = iter(asked), 0
        while batch := list(islice(questions, _CHUNK)):
            held = [q.image_bytes() if callable(q.image_bytes) else q.image_bytes for q in batch]
            files = [[] if q.image_bytes is not None else list(map(str, image_files(q, index))) for q in batch]
            yield _AskedJob(first, files, held, flipped)
            first += len(batch)

    found: dict[int, list[tuple[str, Fingerprints | None]]] = {}
    done = 0
    for job, results in pool.map(_asked, jobs()):
        found[job.first] = results
        done += len(results)
        progress(f"fingerprinting {name}", done, len(asked))
    return [result for first in sorted(found) for result in found[first]]
