"""What is compared: samples with their texts and pictures, of a mixture or of what a build is offered."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.images import image_xxh3
from vlmix.mixture.io.pool import Engine, Progress
from vlmix.mixture.keyed import Indices, Ranks, ranked
from vlmix.mixture.overlaps.fingerprints import BITS, Fingerprints, fingerprints

CHUNK = 256  # pictures per task
_TOGETHER = 32  # samples that are read at a time
Texts = Iterator[tuple[NDArray[np.int64], list[list[str]]]]
"""[n] positions, and for each the values of its turns."""


@dataclass(frozen=True)
class Pictures:
    """K pictures that differ by their bytes, and which of them M images are."""

    picture: NDArray[np.int64]
    """[M]"""
    hashes: list[str]
    """[K] of their bytes."""
    prints: Fingerprints
    printed: NDArray[np.int64]
    """[P, 32] fingerprints, and [P] of which picture each is; flat ones, and those that do not decode, have none."""
    broken: list[int]
    """Pictures that do not decode, as a build with `--check header` may take them."""
    flat: list[int]
    flipped: bool = False
    """Every other fingerprint is of the mirror of the one before."""

    @property
    def plain(self) -> NDArray[np.bool_]:
        """[P] which fingerprints are of no mirror."""
        return np.asarray((np.arange(len(self.printed)) % 2 == 0) | (not self.flipped))

    def of(self, images: Indices) -> "Pictures":
        """The pictures of some of the images."""
        used, picture = np.unique(self.picture[images], return_inverse=True)
        place = np.full(len(self.hashes), -1, dtype=np.int64)
        place[used] = np.arange(len(used))
        mine = place[self.printed] >= 0
        return Pictures(
            picture=picture,
            hashes=[self.hashes[number] for number in used.tolist()],
            prints=self.prints[mine],
            printed=place[self.printed[mine]],
            broken=[int(place[number]) for number in self.broken if place[number] >= 0],
            flat=[int(place[number]) for number in self.flat if place[number] >= 0],
            flipped=self.flipped,
        )


@dataclass(frozen=True)
class Samples:
    """N samples with M images in all."""

    ids: pa.ChunkedArray
    sources: pa.ChunkedArray
    order: Indices
    """[N] positions: of samples that say the same, the first here stays."""
    counts: NDArray[np.int64]
    """[N] images of each sample."""
    paths: list[str]
    path_of: NDArray[np.int64]
    """The distinct paths in LLaVA's layout, and [M] the number of each image's."""
    pictures: Pictures | None
    """None: only the paths are known."""
    unseen: str
    """Why `pictures` is None."""
    texts: Callable[[], Texts]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def owners(self) -> Indices:
        """[M] the sample of each image."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def numbers(self) -> Indices:
        """[M] the number of each image in its sample."""
        return np.arange(len(self.path_of)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)

    def names(self, pictures: Sequence[int]) -> list[str]:
        """A path of each of some pictures, in alphabetical order."""
        if self.pictures is None or not pictures:
            return []
        _, firsts = np.unique(self.pictures.picture, return_index=True)
        return sorted(self.paths[self.path_of[firsts[number]]] for number in pictures)


def priority(sources: NDArray[np.integer], ranks: Ranks) -> Indices:
    """[N] positions by source, then in hash order."""
    order = ranks.order()
    return order[np.argsort(sources[order], kind="stable")]


def of_mixture(path: str | Path, flipped: bool, pool: Engine, progress: Progress) -> tuple[Reader, Samples]:
    """The samples of the mixture at `path`; `flipped`: with fingerprints of the pictures' mirrors."""
    mixture = Reader.open(path)
    counts, (paths, hashes) = mixture.image_fields("path", "xxh3")
    coded, stored = paths.dictionary_encode(), hashes.dictionary_encode()
    names: list[str] = stored.dictionary.to_pylist()
    ids, sources = mixture.column("id"), mixture.column("source")
    places = {name: number for number, name in enumerate(mixture.manifest.sources)}
    which = np.array([places.setdefault(name, len(places)) for name in sources.to_pylist()], dtype=np.int64)
    pictures = None
    owners = np.repeat(np.arange(len(counts)), counts)
    if "" not in names:
        numbers = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        picture = stored.indices.to_numpy().astype(np.int64)
        _, firsts = np.unique(picture, return_index=True)
        jobs = (
            StoredJob(start, flipped, path, owners[part].tolist(), numbers[part].tolist())
            for start in range(0, len(firsts), CHUNK)
            for part in [firsts[start : start + CHUNK]]
        )
        printed = gather(pool.map(print_stored, jobs), len(firsts), progress)
        pictures = Pictures(picture, names, printed.prints, printed.which, printed.broken, printed.flat, flipped)
    return mixture, Samples(
        ids=ids,
        sources=sources,
        order=priority(which, ranked(ids, mixture.manifest.seed)),
        counts=counts,
        paths=coded.dictionary.to_pylist(),
        path_of=coded.indices.to_numpy().astype(np.int64),
        pictures=pictures,
        unseen="" if pictures is not None else "the mixture has no shards",
        texts=mixture.texts,
    )


class Printed(Struct, frozen=True):
    """Fingerprints of the pictures of a task, [P, 32] as bytes, and [P] of which picture each is; which of them do not
    decode, which are flat, and the content hashes of all."""

    prints: bytes
    which: list[int]
    broken: list[int]
    flat: list[int]
    hashes: list[str]


def print_pictures(pictures: Iterable[bytes], flipped: bool) -> Printed:
    """The fingerprints of pictures by their bytes. Runs in a worker."""
    which, prints = list[int](), list[bytes]()
    broken, flat, hashes = list[int](), list[int](), list[str]()
    for number, data in enumerate(pictures):
        hashes.append(image_xxh3(data))
        try:
            found = fingerprints(data, flipped=flipped)
        except VlmixError:
            broken.append(number)
            continue
        which += [number] * len(found)
        prints.append(found.tobytes())
        if not len(found):
            flat.append(number)
    return Printed(b"".join(prints), which, broken, flat, hashes)


class PrintJob(Struct, frozen=True):
    """Pictures to fingerprint, from number `first` on, `flipped` in a mirror too."""

    first: int
    flipped: bool


AnyJob = TypeVar("AnyJob", bound=PrintJob)


class StoredJob(PrintJob, frozen=True):
    """Pictures of a mixture, each by a sample and its number there."""

    path: str | Path
    positions: list[int]
    numbers: list[int]


@lru_cache(maxsize=1)
def _opened(path: str | Path) -> Reader:
    return Reader.open(path)


def print_stored(job: StoredJob) -> Printed:
    """The fingerprints of a job's pictures. Runs in a worker."""
    mixture = _opened(job.path)
    pictures = (
        raw.jpegs[image]
        for start in range(0, len(job.positions), _TOGETHER)
        for some in [slice(start, start + _TOGETHER)]
        for raw, image in zip(mixture.raws(job.positions[some]), job.numbers[some])
    )
    return print_pictures(pictures, job.flipped)


@dataclass(frozen=True)
class Gathered:
    """`Printed` of all tasks."""

    prints: Fingerprints
    which: NDArray[np.int64]
    broken: list[int]
    flat: list[int]
    hashes: list[str]


def gather(done: Iterable[tuple[AnyJob, Printed]], total: int, progress: Progress) -> Gathered:
    """The results of all tasks, whichever came first."""
    found: dict[int, Printed] = {}
    count = 0
    for job, printed in done:
        found[job.first] = printed
        count += len(printed.hashes)
        progress("fingerprinting pictures", count, total)
    ordered = sorted(found.items())
    rows = [np.frombuffer(printed.prints, dtype=np.uint8).reshape(-1, BITS // 8) for _, printed in ordered]
    return Gathered(
        prints=joined(rows),
        which=np.array([first + number for first, each in ordered for number in each.which], dtype=np.int64),
        broken=[first + number for first, each in ordered for number in each.broken],
        flat=[first + number for first, each in ordered for number in each.flat],
        hashes=[hash for _, each in ordered for hash in each.hashes],
    )


def joined(prints: Sequence[Fingerprints]) -> Fingerprints:
    """[P, 32] those of several."""
    return np.concatenate([np.empty((0, BITS // 8), dtype=np.uint8), *prints])
