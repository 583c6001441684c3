"""Official files: found under their names, decoded with errors that name the file and the way out."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import msgspec

from mixture.errors import VlmixError

T = TypeVar("T")


def glob_of(pattern: str) -> str:
    """`pattern` with a star in place of `{split}`."""
    return pattern.replace("{split}", "*")


@dataclass(frozen=True)
class Release:
    """A benchmark's official files: `path` is a folder that holds them, or one of them. `official` are the patterns of
    their names."""

    benchmark: str
    title: str
    homepage: str
    path: Path
    official: tuple[str, ...] = ()

    def find(self, *names: str) -> Path | None:
        """The first of `names` (may hold folders) that is there: in the folder, or in an archive's own folder, which
        lies one or two levels down; beside `path` where that is a file."""
        folder = self.folder
        for name in names:
            if (folder / name).is_file():
                return folder / name
            found = sorted(p for depth in ("*", "*/*") for p in folder.glob(f"{depth}/{name}") if p.is_file())
            if len(found) > 1:
                names_there = " and ".join(str(p.relative_to(folder)) for p in found[:2])
                raise VlmixError(f"{folder}: {name} is there more than once ({names_there}); name the folder of one")
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
        get = f"get {names[0]} from {self.homepage}"
        if not self.folder.is_dir():
            return VlmixError(f"{self.benchmark}: {self.path} does not exist; {get}")
        there = sorted(p.name for p in self.folder.iterdir())[:8]
        found = f"it has {', '.join(there)}" if there else "it is empty"
        return VlmixError(f"{self.benchmark}: {self.folder} has no {' or '.join(names)} ({found}); {get}")

    def main(self, pattern: str, *splits: str) -> Path:
        """The file of a kind, `pattern` being its name with `{split}` in place of the split: the one that was named,
        whatever it is called, unless it is an official file of another kind; else the first of `splits` that is there.
        """
        if self.path.is_file() and (self._named(glob_of(pattern)) or not self._named(*self.official)):
            return self.path
        return self.require(*(pattern.format(split=split) for split in splits or ("",)))

    def _named(self, *patterns: str) -> bool:
        return any(fnmatchcase(self.path.name, Path(pattern).name) for pattern in patterns)

    @property
    def folder(self) -> Path:
        return self.path.parent if self.path.is_file() else self.path

    def read(self, path: Path) -> bytes:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise VlmixError(f"{path}: {error.strerror}") from None
        if not data.strip():
            raise VlmixError(f"{path} is empty; {self._again}")
        return data.removeprefix(b"\xef\xbb\xbf")  # an editor's byte order mark

    def json(self, path: Path, type: type[T]) -> T:
        """The file decoded as `type`; unknown fields are skipped, wrong ones are an error that names the place."""
        return self._decode(str(path), self.read(path), msgspec.json.Decoder(type))

    def lines(self, path: Path, type: type[T]) -> list[T]:
        """The objects of a JSONL file; blank lines are skipped."""
        return list(self._lines(path, msgspec.json.Decoder(type)))

    def _lines(self, path: Path, decoder: msgspec.json.Decoder[T]) -> Iterator[T]:
        for number, line in enumerate(self.read(path).splitlines(), 1):
            if line.strip():
                yield self._decode(f"{path}: line {number}", line, decoder)

    def _decode(self, place: str, data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as error:
            raise VlmixError(f"{place}: {error}; {self._other}") from None
        except msgspec.DecodeError as error:
            raise VlmixError(f"{place}: {error}; {self._again}") from None
        except (RecursionError, UnicodeDecodeError) as error:
            raise VlmixError(f"{place}: no JSON text ({type(error).__name__}); {self._again}") from None

    def wrong(self, path: Path, what: str) -> VlmixError:
        """The error for a file that is not what its name says."""
        return VlmixError(f"{path}: {what}; {self._other}")

    @property
    def _again(self) -> str:
        return f"the file is damaged or was not downloaded whole: get it again from {self.homepage}"

    @property
    def _other(self) -> str:
        return f"this is not the {self.title} file that was expected: get it from {self.homepage}"
