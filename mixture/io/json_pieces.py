"""Long JSON files a piece at a time, so that no file is held decoded, and shares of one file for several processes.

A list is cut at commas that look as if they stood between two of its elements. A piece that parses as a list by itself
proves its borders: JSON reads text in one way only, so lists with commas between them are one list. A file that
is an object is cut the same way.
"""

import json
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

from vlmix.mixture.errors import VlmixError

PIECE = 8 << 20
"""Bytes of a piece, about: a few thousand records."""
SHARE = 192 << 20
"""Bytes of a share, about: a second of work."""
LONGEST = 1 << 30
"""Bytes without an end of a record after which a file counts as damaged."""
_FIRST = 1 << 16
"""Bytes in which the list is looked for, and at first its first record."""

_BLANK = re.compile(rb"\s*")
_NEXT = re.compile(r'(\s*),(\s*)(?:("[^"\\]*")(\s*:\s*))?(\{\s*"[^"\\]*")')
_TAIL = re.compile(r'[\]}"]?\s*\}\Z')


class Unsplit(VlmixError):
    """What was split cannot be read in shares: the file has to be read whole, which also finds out what is wrong."""


class Share(Struct, frozen=True):
    """One of `of` shares of a file, each of about as many bytes; in order they make the file."""

    number: int
    of: int


def shares(size: int) -> tuple[Share | None, ...]:
    """The shares of a file of so many bytes, which nothing else decides; (None,): it is read whole."""
    count = -(-size // SHARE)
    return tuple(Share(number, count) for number in range(count)) if count > 1 else (None,)


class Piece(NamedTuple):
    """The bytes from `start` to `end` in a file; `last`: they hold the end of the list, and what follows it."""

    start: int
    end: int
    last: bool


class Pieces:
    """The pieces of the list or object that a file is, or of the list under `key` of the object that it is."""

    def __init__(self, data: memoryview, brackets: Literal["[]", "{}"] = "[]", key: str = "") -> None:
        self.data = data
        self.opening, self.closing = brackets[0].encode(), brackets[1].encode()
        found = self._under(key) if key else self._at(_end(_BLANK.match(data)))
        self.there = found is not None
        """Whether the list has been found; if not, the file has to be decoded to learn why."""
        self.start = found or 0
        self.head = bytes(data[: self.start])
        """What stands before the first record: the opening bracket, in an object what is before the list, too."""
        self._separator = self._learn() if self.there else None

    @property
    def unclosed(self) -> str:
        """The bracket that should end the file and does not, which is known without reading what is between; or ""."""
        closing = {b"[": "]", b"{": "}"}[self.head.lstrip()[:1]]
        end = bytes(self.data[-_FIRST:]).rstrip()
        return closing if end and not end.endswith(closing.encode()) else ""

    def _at(self, start: int) -> int | None:
        return start + 1 if bytes(self.data[start : start + 1]) == self.opening else None

    def _under(self, key: str) -> int | None:
        match = re.compile(rb'"%s"\s*:\s*\[' % re.escape(key.encode())).search(self.data)
        if match is None or match.end() > _FIRST:
            return None
        try:
            json.loads(bytes(self.data[: match.end()]) + b"]}")
        except (ValueError, RecursionError):
            return None  # the key is one of something inside, or the file is damaged
        return match.end()

    def _learn(self) -> re.Pattern[bytes] | None:
        """What stands between two records, from the end of one to the first key of the next, as between the first two:
        no text in quotes can hold it. None if there is but one, or they are no objects."""
        size, decoder = _FIRST, json.JSONDecoder()
        while True:
            text = bytes(self.data[self.start : self.start + size]).decode("utf-8", "surrogateescape").lstrip()
            try:
                at = 0
                if self.opening == b"{":
                    at = _end(re.compile(r"\s*:\s*").match(text, decoder.raw_decode(text)[1]))
                at = decoder.raw_decode(text, at)[1]
            except (ValueError, RecursionError, AttributeError):
                at = -1
            tail, found = (
                (_TAIL.search(text, max(at - 1000, 0), at), _NEXT.match(text, at)) if at >= 0 else (None, None)
            )
            if tail and found and bool(found[3]) == (self.opening == b"{"):
                before, after = f"{tail[0]}{found[1]}", f"{found[4] or ''}{found[5]}"
                name = r'"[^"\\]*"' if found[3] else ""
                pattern = f"({re.escape(before)}),{re.escape(found[2])}{name}{re.escape(after)}"
                return re.compile(pattern.encode("utf-8", "surrogateescape"))
            if (at >= 0 and at + 1000 < len(text)) or self.start + size >= len(self.data) or size > PIECE:
                return None
            size *= 8

    def border(self, at: int) -> int:
        """The first comma after the byte `at` that may stand between two records; the end of the file without one."""
        found = self._separator.search(self.data, at) if self._separator and at < len(self.data) else None
        return found.end(1) if found else len(self.data)

    def range(self, share: Share | None) -> tuple[int, int]:
        """Where the records of a share start and end; the end is that of the file or a comma."""
        if share is None:
            return self.start, len(self.data)
        size = len(self.data) - self.start
        first, last = (self.start + size * number // share.of for number in (share.number, share.number + 1))
        start = self.border(first) + 1 if share.number else self.start
        return start, self.border(last) if share.number + 1 < share.of else len(self.data)

    def piece(self, start: int, stop: int, size: int) -> Piece:
        """The piece of about `size` bytes that starts at `start`, in a range that stops at `stop`."""
        end = min(self.border(start + size), stop)
        return Piece(start, end, end == len(self.data))

    def text(self, piece: Piece) -> bytes:
        """A piece as JSON: a list by itself, or an object; the last one with what is before and after the list."""
        parts = (self.head, b"") if piece.last else (self.opening, self.closing)
        return self.data[piece.start : piece.end].tobytes().join(parts)


def lines(data: memoryview, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The lines between two bytes of a file, without their ends."""
    stop = len(data) if stop is None else stop
    size = PIECE
    while start < stop:
        text = bytes(data[start : min(start + size, stop)])
        if start + size < stop:
            end = text.rfind(b"\n") + 1
            if not end:
                size *= 2
                continue
            text = text[:end]
        yield from text.splitlines()
        start, size = start + len(text), PIECE


def line_range(data: memoryview, share: Share | None) -> tuple[int, int]:
    """Where the lines of a share start and end."""
    edge = re.compile(rb"\n")

    def border(number: int, of: int) -> int:
        at = len(data) * number // of
        found = edge.search(data, at) if 0 < number < of else None
        return found.end() if found else len(data) if number else 0

    return (0, len(data)) if share is None else (border(share.number, share.of), border(share.number + 1, share.of))


def _end(match: re.Match[bytes] | re.Match[str] | None) -> int:
    if match is None:
        raise ValueError("no match")
    return match.end()
