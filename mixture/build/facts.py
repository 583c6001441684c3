"""What images are, one row of 96 bytes each in a file: the order in which they were examined is that of its rows."""

import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from vlmix.mixture.io.atomic import disk_errors
from vlmix.mixture.io.digests import Stamp
from vlmix.mixture.io.images import FORMATS, ImageInfo
from vlmix.mixture.keyed import Indices

FACTS = np.dtype(
    [
        ("key", "V16"),  # of a file: of its path; of a copy out of a container: the name of the file that holds it
        ("digest", "V16"),  # xxh3-128 of the bytes, zeros where they were not read
        ("bytes", "<u8"),
        ("mtime_ns", "<i8"),
        ("ctime_ns", "<i8"),
        ("inode", "<u8"),
        ("offset", "<u8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("format", "u1"),
        ("orientation", "u1"),
        ("problem", "u1"),  # 1: it cannot be used
        ("unused", "V5"),
        ("check", "<u8"),  # xxh3-64 of the bytes before
    ]
)
DECIDE = ["digest", "bytes", "width", "height", "format", "orientation"]
"""The fields that decide what is stored."""
Facts = NDArray[np.void]
Problems = dict[int, tuple[str, str]]
"""Row -> why its image cannot be used, as (code, detail)."""

_ROW = struct.Struct("<16s16sQqqQQIIBBB5x")
_NONE = bytes(16)
_BLOCK = 65_536  # rows that are read at a time


def path_key(path: str, full: bool) -> bytes:
    """The key of a file that was decoded, or (not `full`) whose header was read."""
    return xxh3_128_digest(path.encode("utf-8", "surrogateescape"), seed=not full)


def copy_path(folder: Path, key: bytes) -> Path:
    """The file of copies that the facts of an image out of a container name."""
    return folder / f"{key.hex()}.images"


def pack(infos: Sequence[ImageInfo], keys: Sequence[bytes]) -> tuple[bytes, Problems]:
    """The rows of images, and what is wrong with some of them, by their number here."""
    rows = []
    for info, key in zip(infos, keys):
        stamp = info.stamp or Stamp(info.bytes, 0, 0, 0)
        digest = bytes.fromhex(info.digest) if info.digest else _NONE
        times = stamp.mtime_ns, stamp.ctime_ns, stamp.inode, info.offset
        shape = info.width, info.height, FORMATS.index(info.format), info.orientation, bool(info.problem)
        row = _ROW.pack(key, digest, info.bytes, *times, *shape)
        rows.append(row + xxh3_64_intdigest(row).to_bytes(8, "little"))
    return b"".join(rows), {i: (info.problem, info.detail) for i, info in enumerate(infos) if info.problem}


def unpack(facts: Facts, paths: Sequence[str], copied: Sequence[str]) -> list[ImageInfo]:
    """The usable images of `facts`, whose files are `paths`, or copies in the files `copied` ("": none)."""
    columns = (facts[name].tolist() for name in (*DECIDE, "mtime_ns", "ctime_ns", "inode", "offset"))
    return [
        ImageInfo(
            path=path,
            bytes=size,
            stamp=None if copy else Stamp(size, mtime, ctime, inode),
            digest="" if digest == _NONE else digest.hex(),
            copied=copy,
            offset=offset,
            format=FORMATS[format],
            width=width,
            height=height,
            orientation=orientation,
        )
        for path, copy, digest, size, width, height, format, orientation, mtime, ctime, inode, offset in zip(
            paths, copied, *columns
        )
    ]


class FactsFile:
    """Rows that are appended to a file, and read where they lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: Problems = {}
        self.count = 0
        self._rows: Facts = np.empty(0, FACTS)

    def append(self, rows: bytes, problems: Problems) -> Indices:
        """The numbers of the new rows."""
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(rows)
        first, self.count = self.count, self.count + len(rows) // FACTS.itemsize
        self.problems.update({first + number: problem for number, problem in problems.items()})
        return np.arange(first, self.count)

    def __getitem__(self, numbers: NDArray[np.integer]) -> Facts:
        if len(self._rows) < self.count:
            self._rows = np.memmap(self.path, FACTS, "r", shape=(self.count,))
        return self._rows[numbers] if len(numbers) else np.empty(0, FACTS)


class Journal(FactsFile):
    """Rows that outlive a killed run. What is wrong with images is in the file `problems` beside it, a line each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._details = path.with_suffix(".problems")
        with disk_errors(path), path.open("ab") as file:
            self.count = file.tell() // FACTS.itemsize
            file.truncate(self.count * FACTS.itemsize)  # a killed run may have left a part of a row
        self._order, self._keys = self._read()

    def append(self, rows: bytes, problems: Problems) -> Indices:
        lines = []
        for number, (code, detail) in problems.items():
            key = rows[number * FACTS.itemsize :][:16].hex()
            lines.append(msgspec.json.encode((key, code, detail)))
        with disk_errors(self._details), self._details.open("ab") as file:
            # Before the rows, and starts on a new line: a killed run may have left half of one.
            file.write(b"".join(b"\n" + line + b"\n" for line in lines))
        return super().append(rows, problems)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The numbers of the latest of the rows that were there at the start and have these keys; -1: there is none."""
        if not len(self._keys):
            return [-1] * len(keys)
        heads = np.frombuffer(b"".join(key[:8] for key in keys), "<u8")
        places = np.searchsorted(self._keys, heads, side="right") - 1
        found = []
        for key, place, head in zip(keys, places.tolist(), heads.tolist()):
            while place >= 0 and int(self._keys[place]) == head and self._key(place) != key:
                place -= 1
            found.append(int(self._order[place]) if place >= 0 and int(self._keys[place]) == head else -1)
        return found

    def _key(self, place: int) -> bytes:
        return bytes(self[self._order[place : place + 1]]["key"][0])

    def _read(self) -> tuple[Indices, NDArray[np.uint64]]:
        """(numbers of the sound rows, [n] first 8 bytes of their keys), ordered by key and age."""
        details = self._known_details()
        sound = np.ones(self.count, dtype=np.bool_)
        for start in range(0, self.count, _BLOCK):
            block = self[np.arange(start, min(start + _BLOCK, self.count))]
            data, size = block.tobytes(), FACTS.itemsize
            made = [xxh3_64_intdigest(data[i : i + size - 8]) for i in range(0, len(data), size)]
            sound[start : start + len(block)] = np.array(made, dtype=np.uint64) == block["check"]
            for at in np.flatnonzero(block["problem"]).tolist():
                detail = details.get(bytes(block["key"][at]))
                sound[start + at] &= detail is not None
                if detail is not None:
                    self.problems[start + at] = detail
        numbers = np.flatnonzero(sound)
        starts = range(0, len(numbers), _BLOCK)
        keys = np.concatenate([np.empty(0, np.uint64), *(self._heads(numbers[i : i + _BLOCK]) for i in starts)])
        order = np.argsort(keys, kind="stable")
        return numbers[order], keys[order]

    def _heads(self, numbers: Indices) -> NDArray[np.uint64]:
        return np.frombuffer(self[numbers]["key"].tobytes(), "<u8")[::2]

    def _known_details(self) -> dict[bytes, tuple[str, str]]:
        found = {}
        for line in self._details.read_bytes().split(b"\n") if self._details.exists() else ():
            try:
                key, code, detail = msgspec.json.decode(line, type=tuple[str, str, str])
                found[bytes.fromhex(key)] = code, detail
            except (msgspec.DecodeError, ValueError):  # between lines, or the last one of a killed run
                continue
        return found
