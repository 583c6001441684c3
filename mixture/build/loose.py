"""The images of candidates that are files of their own: which there are, and where each lies."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmix.mixture.build.candidates import Candidates, Mask, taken
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import Stamp
from vlmix.mixture.io.image_index import ImageIndex, file_path, likeliest, split_name, stem_of
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.storage import is_url
from vlmix.mixture.keyed import Indices

Value = TypeVar("Value")
_BLOCK = 65_536  # names that are Python strings at a time


class LooseImages:
    """Distinct images, numbered in the order of their first occurrence. Looks each up when it is made.

    `index` finds images, those whose path begins with a key of `own` in that key's index first.
    """

    def __init__(
        self, candidates: Candidates, index: ImageIndex, own: Mapping[str, ImageIndex], progress: Progress
    ) -> None:
        self._candidates, self._index, self._own = candidates, index, own
        loose = np.repeat(candidates.containers < 0, candidates.column("num_images"))
        self.numbers, self._firsts = _distinct(candidates.image_hashes(), loose)
        """[M] the number of each of the candidates' images, -1 of one in a container."""
        self._check_hashes()
        count = len(self._firsts)
        self.location = np.full(count, -1, dtype=np.int32)
        """[K] the number, among `locations`, of where each image's likeliest file lies; -1: nowhere."""
        self.extension = np.zeros(count, dtype=np.int16)
        """[K] the number, among `extensions`, of how its name ends."""
        self.several: Mask = np.zeros(count, dtype=np.bool_)
        """[K] whether other files may be it."""
        remote = any(map(is_url, [root for each in (index, *own.values()) for root in each.roots]))
        self._listed = np.zeros((count if remote else 0, 2), dtype=np.uint64)
        """[K, 2] size and sign of change of the likeliest file where it is in a store; empty where none can be."""
        self.locations: list[tuple[str, str]] = []
        self.extensions: list[str] = []
        self._find(progress)

    def __len__(self) -> int:
        return len(self._firsts)

    def missing(self) -> Mask:
        """[N]: candidates one of whose images was not found."""
        absent = np.append(self.location < 0, False)[self.numbers]
        before = np.append(0, np.cumsum(absent))
        return np.asarray(np.diff(before[self._candidates.image_bounds]) > 0)

    def names(self, numbers: Indices) -> Iterator[tuple[Indices, list[str]]]:
        """The paths in LLaVA's layout of the images `numbers` (ascending), some at a time."""
        for start in range(0, len(numbers), _BLOCK):
            block = numbers[start : start + _BLOCK]
            yield block, taken(self._candidates.image_paths, self._firsts[block]).to_pylist()

    def paths(self, numbers: Indices) -> Iterator[tuple[Indices, list[str]]]:
        """The likeliest files of images that were found, `numbers` ascending, some at a time."""
        for block, names in self.names(numbers):
            where, ends = self.location[block].tolist(), self.extension[block].tolist()
            listed = zip(names, where, ends)
            yield block, [file_path(self.locations[at], name, self.extensions[end]) for name, at, end in listed]

    def stamps(self, numbers: Indices, paths: Sequence[str]) -> list[Stamp | None]:
        """What a store says of images whose likeliest files are `paths`; None of local ones."""
        if not len(self._listed):
            return [None] * len(paths)
        listed = self._listed[numbers].tolist()
        return [Stamp(size, 0, 0, sign) if is_url(path) else None for path, (size, sign) in zip(paths, listed)]

    def file(self, number: int) -> str:
        """An image's likeliest file."""
        return next(self.paths(np.array([number])))[1][0]

    def choose(self, number: int, file: str, stamp: Stamp | None) -> None:
        """Take another one of the files that may be an image."""
        directory, _, name = file.rpartition("/")
        ((_, (image,)),) = self.names(np.array([number]))
        beginning, _, extension = name.rpartition(stem_of(split_name(image)[1]))
        self.location[number] = _number(self.locations, (directory, beginning))
        self.extension[number] = _number(self.extensions, extension)
        if stamp is not None:
            self._listed[number] = stamp.size, stamp.inode

    def every(self, number: int) -> dict[str, Stamp | None]:
        """All files that may be an image, the likeliest first, with what their store says of them."""
        name = str(self._candidates.image_paths[int(self._firsts[number])])
        prefix = name[: name.find("/") + 1]
        found = self._own[prefix].files(name.removeprefix(prefix)) if prefix in self._own else {}
        return found or self._index.files(name)

    def _check_hashes(self) -> None:
        """Raises VlmixError if two paths have one hash, of which the chance is 10^-6 for six million images."""
        others = self.numbers >= 0
        others[self._firsts] = False
        again = np.flatnonzero(others)
        for start in range(0, len(again), _BLOCK):
            block = again[start : start + _BLOCK]
            firsts, where = np.unique(self._firsts[self.numbers[block]], return_inverse=True)
            theirs = taken(self._candidates.image_paths, firsts).combine_chunks().take(pa.array(where))
            if not taken(self._candidates.image_paths, block).combine_chunks().equals(theirs):
                raise VlmixError("two image paths have the same hash of 64 bits; rename a folder of images")

    def _find(self, progress: Progress) -> None:
        total = len(self)
        progress("finding images", 0, total)
        folders: dict[str, int] = {}
        mine = np.empty(total, dtype=np.int32)
        for block, names in self.names(np.arange(total)):
            mine[block] = [folders.setdefault(split_name(name)[0], len(folders)) for name in names]
        order = np.argsort(mine, kind="stable")
        edges = np.searchsorted(mine[order], np.arange(len(folders) + 1)).tolist()
        locations: dict[tuple[str, str], int] = {}
        extensions: dict[str, int] = {}
        for folder, start, end in zip(folders, edges, edges[1:]):
            for block, names in self.names(order[start:end]):
                self._look_up(folder, block, names, locations, extensions)
            if start // 10_000 < end // 10_000:
                progress("finding images", end, total)
        self.locations, self.extensions = list(locations), list(extensions)
        progress("finding images", total, total)

    def _look_up(
        self,
        folder: str,
        numbers: Indices,
        names: list[str],
        locations: dict[tuple[str, str], int],
        extensions: dict[str, int],
    ) -> None:
        """Fill in where the images `names` of one folder of LLaVA's layout lie."""
        prefix = f"{folder}/"[: folder.find("/") + 1 or None] if folder else ""
        own = self._own[prefix].found(f"{folder}/".removeprefix(prefix).rstrip("/")) if prefix in self._own else []
        tiers = [own, self._index.found(folder)]
        where, ends, several = (
            np.full(len(names), -1, np.int32),
            np.zeros(len(names), np.int16),
            np.zeros(len(names), bool),
        )
        for at, name in enumerate(names):
            base = split_name(name)[1]
            stem = stem_of(base)
            for tier in tiers:
                count = 0
                for directory, beginning, listing, stamps in tier:
                    files = listing.get(beginning + stem)
                    if files is None:
                        continue
                    if not count:
                        file = files[0] if len(files) == 1 else likeliest(files, base)[0]
                        where[at] = locations.setdefault((directory, beginning), len(locations))
                        end = file[len(beginning) + len(stem) :]
                        ends[at] = extensions.setdefault(end, len(extensions))
                        if (stamp := stamps.get(file)) is not None:
                            self._listed[numbers[at]] = stamp.size, stamp.inode
                    count += len(files)
                if count:
                    several[at] = count > 1
                    break
        self.location[numbers], self.extension[numbers], self.several[numbers] = where, ends, several


def _number(values: list[Value], value: Value) -> int:
    if value not in values:
        values.append(value)
    return values.index(value)


def _distinct(hashes: NDArray[np.uint64], among: Mask) -> tuple[NDArray[np.int32], Indices]:
    """([M] int32 number of each value, by first occurrence, -1 outside `among`; [K] where each occurs first)."""
    members = np.flatnonzero(among)
    order = members[np.argsort(hashes[members], kind="stable")]
    ordered = hashes[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=fresh[1:])
    firsts = order[fresh]
    place = np.empty(len(firsts), dtype=np.int32)
    place[np.argsort(firsts)] = np.arange(len(firsts), dtype=np.int32)
    numbers = np.full(len(hashes), -1, dtype=np.int32)
    numbers[order] = place[np.cumsum(fresh) - 1]
    return numbers, np.sort(firsts)
