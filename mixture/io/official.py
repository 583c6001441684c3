"""Official files: found under their names, read by mapping, decoded with errors that name the file and the remedy."""

import json
import mmap
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.surrogates import replace_lone_surrogates

T = TypeVar("T")


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

    def keyed(self, path: Path, type: type[T], mark: str) -> tuple[dict[str, T], list[RepeatedKey]]:
        """A file that is one JSON object, decoded as key -> `type`, and the keys that it holds more than once.

        A decoder keeps the last value of such a key and says nothing. `mark` is a field that every value has once:
        where it occurs as often as there are keys, none is repeated, and counting costs little.
        Values that agree are kept; keys whose values differ are left out.
        """
        buffer = self.read(path)
        found = self._decode(path, buffer, dict[str, type])  # type: ignore[valid-type]
        if sum(1 for _ in re.finditer(b'"%s"' % mark.encode(), buffer)) == len(found):
            return found, []
        values: dict[str, list[Any]] = {}
        for key, value in json.loads(bytes(buffer), object_pairs_hook=list):
            values.setdefault(key, []).append(value)
        repeated = [
            RepeatedKey(key, len(several), all(value == several[0] for value in several))
            for key, several in values.items()
            if len(several) > 1
        ]
        for each in repeated:
            if not each.agree:
                del found[each.key]
        return found, repeated

    def elements(self, path: Path, type: type[T]) -> Iterator[T]:
        """The elements of a file that is one long JSON list, decoded one at a time to keep memory flat."""
        decoder = msgspec.json.Decoder(type)
        for number, raw in enumerate(self.json(path, list[msgspec.Raw])):
            try:
                yield decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise VlmixError(f"{path}: record {number}: {error}; {self._other}") from None

    def rows(self, path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """The elements of a JSON list, or the lines of a user's own JSONL file, with the objects that they are. None
        stands for one that no JSON parser but Python's reads, as it has NaN or a number beyond all floats."""
        buffer = self.read(path)
        texts: Iterable[Any]
        if self.own and bytes(buffer[:1000]).lstrip().startswith(b"{"):
            texts = (line for line in bytes(buffer).splitlines() if line.strip())
        else:
            try:
                texts = self._decode(path, buffer, list[msgspec.Raw])
            except VlmixError:
                if (scanned := _scanned(bytes(buffer))) is None:
                    raise
                texts = scanned
        decoder = msgspec.json.Decoder(dict[str, Any])
        for number, raw in enumerate(texts):
            text = bytes(raw)
            try:
                yield text, decoder.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                mended, count = replace_lone_surrogates(text)
                if count:
                    self.mended[path] = self.mended.get(path, 0) + count
                    yield mended, self._decode(path, mended, dict[str, Any], f"record {number}: ")
                elif isinstance(_python(text), dict):
                    yield text, None
                else:
                    raise VlmixError(f"{path}: record {number}: {error}; {self._other}") from None

    def lines(self, path: Path, type: type[T]) -> list[T]:
        """The objects of a JSONL file; blank lines are skipped."""
        lines = enumerate(bytes(self.read(path)).splitlines(), 1)
        return [self._decode(path, line, type, f"line {number}: ") for number, line in lines if line.strip()]

    def _decode(self, path: Path, buffer: Any, type: type[T], place: str = "") -> T:
        try:
            return msgspec.json.decode(buffer, type=type)
        except msgspec.ValidationError as error:
            raise VlmixError(f"{path}: {place}{error}; {self._other}") from None
        except msgspec.DecodeError as error:
            # msgspec reports half of a surrogate pair (chats cut inside an emoji) as truncated input.
            text, count = replace_lone_surrogates(bytes(buffer))
            if count:
                self.mended[path] = self.mended.get(path, 0) + count
                return self._decode(path, text, type, place)
            raise VlmixError(f"{path}: {place}{error}; {self._again}") from None
        except RecursionError:
            raise VlmixError(f"{path}: {place}nested too deeply; {self._again}") from None
        except UnicodeDecodeError as error:
            raise VlmixError(f"{path}: {place}not UTF-8 at byte {error.start}; {self._again}") from None

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
