"""Official files: found under their names, read by mapping, decoded with errors that name the file and the remedy."""

import json
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import json_pieces
from vlmix.mixture.io.json_pieces import Pieces, Share, Unsplit
from vlmix.mixture.io.surrogates import replace_lone_surrogates

T = TypeVar("T")
U = TypeVar("U")
_UNREADABLE = msgspec.DecodeError, UnicodeDecodeError, RecursionError
_BYTE = re.compile(r"\(byte (\d+)\)")
_CUT = "Input data was truncated"  # what msgspec says of JSON that ends too early


class RawFile(Struct, frozen=True):
    """An official file: its name (a glob, or `{split}` in it, is allowed) and what it holds."""

    name: str
    holds: str
    optional: bool = False


class RepeatedKey(Struct, frozen=True):
    """A key that a JSON object holds `count` times; `agree` says whether with one value."""

    key: str
    count: int
    agree: bool


class OfficialFiles:
    """The official files of one dataset or benchmark: `path` is the folder that holds them, or one of them. `official`
    are the patterns of their names."""

    def __init__(self, name: str, title: str, homepage: str, path: Path, official: tuple[str, ...] = ()) -> None:
        self.name, self.title, self.homepage, self.path, self.official = name, title, homepage, path, official
        self.own: str | None = None
        """The form that the user's own file should have; None: the official file is read."""
        self.mended: dict[Path, int] = {}
        """File -> halves of surrogate pairs that were replaced by U+FFFD, because no text can hold them."""

    @property
    def first(self) -> bool:
        """Whether what concerns all shares of a large file is to be told here: the first share tells it."""
        return True

    @property
    def folder(self) -> Path:
        return self.path.parent if self.path.is_file() else self.path

    def within(self, path: Path) -> "OfficialFiles":
        """The same files at another place."""
        return OfficialFiles(self.name, self.title, self.homepage, path, self.official)

    def find(self, *names: str) -> Path | None:
        """The first of `names` (may hold folders) that is there: in the folder, or in an archive's own folder, one or
        two levels down; deeper searching would walk folders of images."""
        folder = self.folder
        for name in names:
            if (folder / name).is_file():
                return folder / name
            found = sorted(p for depth in ("*", "*/*") for p in folder.glob(f"{depth}/{name}") if p.is_file())
            if len(found) > 1:
                names_there = " and ".join(str(p.relative_to(folder)) for p in found[:2])
                raise VlmixError(f"{folder}: {name} is there more than once ({names_there}); keep one")
            if found:
                return found[0]
        return None

    def require(self, *names: str) -> Path:
        """As `find`; a file that is not there is an error."""
        if found := self.find(*names):
            return found
        raise self.missing(*names)

    def missing(self, *names: str) -> VlmixError:
        """The error for a folder without any of `names`."""
        if folder := next((self.folder / name for name in names if (self.folder / name).is_dir()), None):
            return VlmixError(f"{self.name}: {folder} is a folder, expected is a file; get it from {self.homepage}")
        if not self.folder.is_dir():
            there = f"; {self.folder} does not exist"
            if near := self._elsewhere():
                return VlmixError(
                    f"{self.name}: {self.folder} does not exist, but {near / self.folder.name} does; did "
                    f"you mean {near}?"
                )
        else:
            files = sorted(p.name for p in self.folder.iterdir())[:8]
            there = f" (the folder has {', '.join(files)})" if files else " (the folder is empty)"
        wanted = " or ".join([str(self.folder / names[0]), *names[1:]])
        return VlmixError(f"{self.name}: {wanted} is missing{there}; get it from {self.homepage} and unzip it there")

    def _elsewhere(self) -> Path | None:
        """The folder that was meant where one above or below it was named."""
        given = self.folder.parent
        below = sorted(given.iterdir()) if given.is_dir() else []
        return next((near for near in (given.absolute().parent, *below) if (near / self.folder.name).is_dir()), None)

    def main(self, pattern: str, *splits: str) -> Path:
        """The file of a kind, `pattern` being its name with `{split}` in place of the split: the one that was named,
        whatever it is called, unless it is an official file of another kind; else the first of `splits` that is there.
        """
        if self.path.is_file() and (self._named(pattern.replace("{split}", "*")) or not self._named(*self.official)):
            return self.path
        return self.require(*(pattern.format(split=split) for split in splits or ("",)))

    def _named(self, *patterns: str) -> bool:
        return any(fnmatchcase(self.path.name, Path(pattern).name) for pattern in patterns)

    def read(self, path: Path) -> memoryview:
        """The bytes of a file, mapped, without a byte order mark."""
        try:
            with path.open("rb") as file:
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise VlmixError(f"{path} is empty; {self._again}") from None
        except OSError as error:
            raise VlmixError(f"{path}: {error.strerror}") from None
        if len(data) < 1000 and not bytes(data).strip():
            raise VlmixError(f"{path} is empty; {self._again}")
        return data[3:] if bytes(data[:3]) == b"\xef\xbb\xbf" else data

    def json(self, path: Path, type: type[T]) -> T:
        """The file decoded as `type`; unknown fields are skipped, wrong ones are an error that names the place."""
        return self._decode(path, self.read(path), type)

    def keyed(self, path: Path, type: type[T], mark: str) -> "Keyed[T]":
        """A file that is one JSON object of key -> `type`. `mark` is a field that every value has once."""
        return Keyed(self, path, type, mark)

    def elements(self, path: Path, type: type[T], share: Share | None = None) -> Iterator[T]:
        """The elements of a file that is one long JSON list, or of a share of it, decoded a piece at a time.
        Raises Unsplit if a share cannot be read by itself."""
        pieces = Pieces(self.read(path))
        if not pieces.there:
            yield from self._decode(path, pieces.data, list[type]) if _first(share) else ()  # type: ignore[valid-type]
            return
        decode = msgspec.json.Decoder(list[type]).decode  # type: ignore[valid-type]
        before = 0

        def faulty(text: bytes) -> None:
            self._check_each(path, text, type, before, "", share)

        for _, _, found in self.decoded(path, pieces, share, decode, faulty):
            yield from found
            before += len(found)

    def listed(
        self, path: Path, whole: type[T], key: str, type: type[U], share: Share | None = None
    ) -> Iterator[tuple[T | None, list[U]]]:
        """A file that is one JSON object with one long list, its field `key`: (None, elements) for each piece of the
        list but the last, which comes with the object as `whole`."""
        pieces = Pieces(self.read(path), key=key)
        if not pieces.there:
            if _first(share):
                found = self._decode(path, pieces.data, whole)
                yield found, getattr(found, key)
            return
        before = 0
        elements, rest = msgspec.json.Decoder(list[type]), msgspec.json.Decoder(whole)  # type: ignore[valid-type]

        def decode(text: bytes) -> Any:
            return elements.decode(text) if text.startswith(b"[") else rest.decode(text)

        def faulty(text: bytes) -> None:
            self._check_each(path, text, type, before, key, share)

        for piece, text, found in self.decoded(path, pieces, share, decode, faulty):
            if not piece.last:
                yield None, found
                before += len(found)
                continue
            if text.count(b'"%s"' % key.encode()) > 1 and [k for k, _ in _pairs(text)].count(key) > 1:
                raise self.wrong(path, f"it has {key!r} more than once")
            yield found, getattr(found, key)

    def rows(self, path: Path, share: Share | None = None) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """The elements of a JSON list, or the lines of a user's own JSONL file, with the objects that they are. None
        stands for one that no JSON parser but Python's reads, as it has NaN or a number beyond all floats."""
        decoder = msgspec.json.Decoder(dict[str, Any])
        for number, text in enumerate(self.texts(path, share)):
            try:
                row = decoder.decode(text)
            except _UNREADABLE as error:
                mended, count = replace_lone_surrogates(text)
                if count:
                    self._note_mended(path, count)
                    yield mended, self._decode(path, mended, dict[str, Any], f"record {number}: ")
                elif isinstance(_python(text), dict):
                    yield text, None
                elif share is not None:
                    raise Unsplit(f"{path}: {error}") from None
                else:
                    raise VlmixError(f"{path}: record {number}: {error}; {self._other}") from None
            else:
                yield text, row

    def rows_before(self, path: Path, share: Share | None) -> int:
        """How many rows of a file come before those of a share."""
        return sum(1 for _ in self.texts(path, share, before=True)) if share is not None else 0

    def texts(self, path: Path, share: Share | None = None, before: bool = False) -> Iterator[bytes]:
        """The rows of a share as JSON, or the rows before it."""
        data = self.read(path)
        if self.own and bytes(data[:1000]).lstrip().startswith(b"{"):
            start, stop = json_pieces.line_range(data, share)
            lines = json_pieces.lines(data, 0, start) if before else json_pieces.lines(data, start, stop)
            yield from (line for line in lines if line.strip())
            return
        pieces = Pieces(data)
        if not pieces.there:
            yield from map(bytes, self._decode(path, data, list[msgspec.Raw]) if _first(share) else ())
            return
        decode: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[msgspec.Raw]).decode
        for _, _, found in self.decoded(path, pieces, share, decode, _scanned, before):
            yield from map(bytes, found)

    def decoded(
        self,
        path: Path,
        pieces: Pieces,
        share: Share | None,
        decode: Callable[[bytes], T],
        otherwise: Callable[[bytes], T | None],
        before: bool = False,
    ) -> Iterator[tuple[json_pieces.Piece, bytes, T]]:
        """The pieces of a share, or of what is before it: each with its JSON and what `decode` makes of it.
        `otherwise` is asked about JSON that `decode` refuses, even with halves of surrogate pairs replaced; it may
        know what it is, or raise an error that names the place."""
        if closing := pieces.unclosed:  # told before hours are spent on what comes before
            what = f"ends at byte {len(pieces.data):,} without the `{closing}` that closes it"
            raise VlmixError(f"{path}: {what}; {self._again}")
        (at, stop), size = pieces.range(share), json_pieces.PIECE
        if before:
            at, stop = pieces.start, at - 1
        while at <= stop:
            piece = pieces.piece(at, stop, size)
            text, count = pieces.text(piece), 0
            found, error = _tried(decode, text)
            if error is not None:
                # msgspec reports half of a surrogate pair (chats cut inside an emoji) as truncated input.
                text, count = replace_lone_surrogates(text)
                found, error = _tried(decode, text) if count else (found, error)
            if error is not None:
                if str(error) == _CUT and piece.end < stop and size < json_pieces.LONGEST:
                    size *= 2  # its last comma is inside a record
                    continue
                found = otherwise(text)
            if found is None:
                if share is not None:
                    raise Unsplit(f"{path}: {error}")
                assert error is not None
                raise self._unreadable(path, error, at=piece.start - len(pieces.head if piece.last else pieces.opening))
            if count and not before and (share is not None or self.first):
                self._note_mended(path, count)
            yield piece, text, found
            at, size = piece.end + 1, json_pieces.PIECE

    def _check_each(self, path: Path, text: bytes, type: type[Any], before: int, key: str, share: Share | None) -> None:
        """Raises VlmixError for the first element of a list, or of the list `key` of an object, that is no `type`."""
        if share is not None:
            return
        with suppress(*_UNREADABLE, KeyError):
            if not text.startswith(b"["):
                text = bytes(msgspec.json.decode(text, type=dict[str, msgspec.Raw])[key])
            for number, raw in enumerate(msgspec.json.decode(text, type=list[msgspec.Raw]), before):
                if error := _tried(msgspec.json.Decoder(type).decode, raw)[1]:
                    raise VlmixError(f"{path}: record {number}: {error}; {self._other}")

    def _note_mended(self, path: Path, count: int) -> None:
        self.mended[path] = self.mended.get(path, 0) + count

    def lines(self, path: Path, type: type[T]) -> list[T]:
        """The objects of a JSONL file; blank lines are skipped."""
        lines = enumerate(json_pieces.lines(self.read(path)), 1)
        return [self._decode(path, line, type, f"line {number}: ") for number, line in lines if line.strip()]

    def _decode(self, path: Path, buffer: Any, type: type[T], place: str = "") -> T:
        decode = msgspec.json.Decoder(type).decode
        found, error = _tried(decode, buffer)
        if error is not None:
            text, count = replace_lone_surrogates(bytes(buffer))
            if count:
                self._note_mended(path, count)
                found, error = _tried(decode, text)
        if error is not None:
            raise self._unreadable(path, error, place)
        return found  # type: ignore[return-value]

    def _unreadable(self, path: Path, error: Exception, place: str = "", at: int = 0) -> VlmixError:
        """The error for JSON that is not what it should be; `at`: the byte of the file at which it starts."""
        match error:
            case msgspec.ValidationError():
                return VlmixError(f"{path}: {place}{error}; {self._other}")
            case UnicodeDecodeError():
                return VlmixError(f"{path}: {place}not UTF-8 at byte {error.start}; {self._again}")
            case RecursionError():
                return VlmixError(f"{path}: {place}nested too deeply; {self._again}")
        what = _BYTE.sub(lambda match: f"(byte {int(match[1]) + at})", str(error))
        return VlmixError(f"{path}: {place}{what}; {self._again}")

    def wrong(self, path: Path, what: str) -> VlmixError:
        """The error for a file that is not what its name says."""
        return VlmixError(f"{path}: {what}; {self._other}")

    @property
    def _again(self) -> str:
        if self.own:
            return f"the file is damaged or in a different format; expected is {self.own}"
        return f"the file is damaged or was not downloaded whole: get it again from {self.homepage}"

    @property
    def _other(self) -> str:
        if self.own:
            return f"expected is {self.own}"
        return f"this is not the {self.title} file that was expected: get it from {self.homepage}"


class Keyed(Generic[T]):
    """A file that is one JSON object, a piece at a time: iterating gives dicts of key -> `type`, in file order.

    A decoder keeps the last value of a key that is repeated and says nothing; `repeated` finds such keys. Those whose
    values agree are then given once, the others not at all.
    """

    def __init__(self, files: OfficialFiles, path: Path, type: type[T], mark: str) -> None:
        self._files, self._path, self._type, self._mark = files, path, type, b'"%s"' % mark.encode()
        self._pieces = Pieces(files.read(path), "{}")
        self._hashes: list[NDArray[np.int64]] = []
        """Of the keys, by piece."""
        self._marks = 0
        self._repeated: dict[str, RepeatedKey] = {}

    def __iter__(self) -> Iterator[dict[str, T]]:
        given: set[str] = set()
        for _, found in self._read(self._type):
            for key in found.keys() & self._repeated.keys():
                if key in given or not self._repeated[key].agree:
                    del found[key]
                given.add(key)
            yield found

    def repeated(self) -> list[RepeatedKey]:
        """The keys that the file holds more than once. After an iteration that costs nothing where there are none."""
        if not self._hashes:
            for _ in self._read(msgspec.Raw):
                pass
        if self._marks == len(np.unique(np.concatenate(self._hashes))):
            return []
        hashes, counts = np.unique([hash(key) for key, _ in self._members()], return_counts=True)
        suspects = set(hashes[counts > 1].tolist())
        values: dict[str, list[Any]] = {}
        for key, value in self._members():
            if hash(key) in suspects:
                values.setdefault(key, []).append(value)
        self._repeated = {
            key: RepeatedKey(key, len(several), all(value == several[0] for value in several))
            for key, several in values.items()
            if len(several) > 1
        }
        return list(self._repeated.values())

    def _members(self) -> Iterator[tuple[str, Any]]:
        """Every key with its value, repeated ones too."""
        for text, _ in self._read(msgspec.Raw):
            yield from _pairs(text)

    def _read(self, type: Any) -> Iterator[tuple[bytes, dict[str, Any]]]:
        self._hashes, self._marks = [], 0
        if not self._pieces.there:
            self._files.json(self._path, dict[str, type])  # which says why not
        decode = msgspec.json.Decoder(dict[str, type]).decode
        for _, text, found in self._files.decoded(self._path, self._pieces, None, decode, lambda text: None):
            self._hashes.append(np.fromiter(map(hash, found), np.int64, len(found)))
            self._marks += text.count(self._mark)
            yield text, found


def _tried(decode: Callable[[Any], T], text: Any) -> tuple[T | None, Exception | None]:
    try:
        return decode(text), None
    except _UNREADABLE as error:
        return None, error


def _first(share: Share | None) -> bool:
    return share is None or not share.number


def _pairs(text: bytes) -> list[tuple[str, Any]]:
    """The members of a JSON object, repeated ones too."""
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    return pairs


def _python(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _scanned(data: bytes) -> list[bytes] | None:
    """The elements of a list as Python's json cuts it, which takes NaN and numbers of any size; None if it cannot."""
    decoder, blank = json.JSONDecoder(), re.compile(r"[ \t\n\r]*")
    try:
        text = data.decode()
        at = blank.match(text).end()  # type: ignore[union-attr]
        if text[at] != "[":
            return None
        found: list[bytes] = []
        separator = ""
        while separator != "]":
            start = blank.match(text, at + 1).end()  # type: ignore[union-attr]
            if not found and text[start] == "]":
                break
            at = decoder.raw_decode(text, start)[1]
            found.append(text[start:at].encode())
            at = blank.match(text, at).end()  # type: ignore[union-attr]
            separator = text[at]
            if separator not in ",]":
                return None
    except (ValueError, IndexError, RecursionError):
        return None
    return found
