"""Shards as plain USTAR: no PAX headers, mtime 0, fixed owner and mode, so that equal samples are equal bytes."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from vlmix.mixture.errors import VlmixError

BLOCK = 512
_END = bytes(2 * BLOCK)
_PADDING = bytes(BLOCK)
_RECORD = 20 * BLOCK  # tar pads archives to records of 10,240 bytes

# Everything of a header that does not change: mode, uid, gid, mtime, type, magic; the checksum field counts as spaces.
_AFTER_NAME = b"0000644\0" + b"0000000\0" + b"0000000\0"
_AFTER_SIZE = b"00000000000\0"
_AFTER_CHECKSUM = b"0" + bytes(100) + b"ustar\0" + b"00" + bytes(247)
_CONSTANT = sum(_AFTER_NAME) + sum(_AFTER_SIZE) + 8 * ord(" ") + sum(_AFTER_CHECKSUM)


class Member(NamedTuple):
    """A file in a tar: name, offset of its data, bytes of its data."""

    name: str
    offset: int
    size: int


def header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a regular file. `name` is ASCII of at most 100 bytes, `size` below 8 GiB."""
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= 100 or not 0 <= size < 8**11:
        raise ValueError(f"{name!r} with {size} bytes does not fit a USTAR header")
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_CONSTANT + sum(encoded) + sum(digits))
    return encoded.ljust(100, b"\0") + _AFTER_NAME + digits + _AFTER_SIZE + checksum + _AFTER_CHECKSUM


def image_member(key: str, number: int) -> str:
    """The name of a sample's image in the tar: readers of one image find it where it has always been."""
    return f"{key}.{number}.jpg" if number else f"{key}.jpg"


def heads(block: bytes, name: str, size: int) -> bool:
    """Whether a header is that of a member of this name and size."""
    return block[:100].rstrip(b"\0") == name.encode() and block[124:135] == b"%011o" % size


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class TarWriter:
    """Appends members to a binary file and returns where their data is."""

    def __init__(self, file: Sink) -> None:
        self._file = file
        self.position = 0

    def add(self, name: str, data: bytes | memoryview) -> Member:
        size = len(data)
        offset = self.position + BLOCK
        padding = -size % BLOCK
        self._file.write(header(name, size))
        self._file.write(data)
        if padding:
            self._file.write(_PADDING[:padding])
        self.position = offset + size + padding
        return Member(name, offset, size)

    def close(self) -> None:
        """Ends the archive; the file itself stays open."""
        end = self.position + len(_END)
        self._file.write(_END + bytes(-end % _RECORD))
        self.position = end + -end % _RECORD


def scan(path: Path) -> Iterator[Member]:
    """The members of a USTAR file in order. Raises VlmixError where the bytes are not a whole, sound archive."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise VlmixError(f"{path}: the shard is empty") from None
    with data:
        position = 0
        while True:
            block = data[position : position + BLOCK]
            if len(block) < BLOCK:
                raise VlmixError(f"{path}: truncated at byte {len(data)}, the end of the archive is missing")
            if block == _PADDING:
                return
            try:
                size = int(block[124:135], 8)
                checksum = int(block[148:154], 8)
                name = block[:100].rstrip(b"\0").decode("ascii")
            except ValueError:
                raise VlmixError(f"{path}: no tar header at byte {position}") from None
            if sum(block) - sum(block[148:156]) + 8 * ord(" ") != checksum:
                raise VlmixError(f"{path}: the header at byte {position} is damaged")
            offset = position + BLOCK
            position = offset + size + -size % BLOCK
            if position > len(data):
                raise VlmixError(f"{path}: truncated inside {name}")
            yield Member(name, offset, size)
