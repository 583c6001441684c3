"""What a source is to a mixture: a declaration of its files and licence, and a function that reads conversations.

`builders` fills this contract once per dataset; nothing in `mixture` knows a dataset by name.
"""

import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from mixture.errors import VlmixError
from mixture.files import sha256
from mixture.images import ImageFolder
from mixture.record import Conversation, ResponseFormat
from mixture.samples import Reject
from mixture.surrogates import mend

T = TypeVar("T")


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a builder's own options. Document each field with `Annotated[T, Meta(description=...)]`."""


class RawFile(Struct, frozen=True):
    """An official file: its name (a glob is allowed) and what it holds."""

    name: str
    holds: str
    optional: bool = False


class Rejects:
    """Collects what a builder drops."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.rows: list[Reject] = []

    def __call__(
        self, id: str, reason: str, detail: str, *, exchange: int = -1, image: str = "", record: Any = None
    ) -> None:
        text = "" if record is None else msgspec.json.encode(record).decode()
        self.rows.append(
            Reject(source=self.source, id=id, reason=reason, detail=detail, exchange=exchange, image=image, record=text)
        )


class RepeatedKey(Struct, frozen=True):
    """A key that a JSON object holds `count` times; `agree` says whether with one value."""

    key: str
    count: int
    agree: bool


class RawFolder:
    """The raw files of one source below RAW, found under their official names and opened with clear errors."""

    def __init__(self, raw: Path, source: "Source", where: str | None = None) -> None:
        self.raw = raw
        self.source = source
        self.folder = raw / (where or source.name)
        self.opened: list[Path] = []
        self.hashes: dict[Path, Future[str]] = {}
        """File -> its sha256, made beside the decoding: hashing leaves the interpreter free."""
        self._hasher = ThreadPoolExecutor(1)
        self.mended: dict[Path, int] = {}
        """File -> halves of surrogate pairs that were replaced by U+FFFD, because no text can hold them."""

    def find(self, name: str, *, optional: bool = False) -> Path | None:
        """The file called `name` (may hold folders), in the source's folder or in an archive's own sub-folder there.

        A missing file is an error unless `optional`.
        """
        direct = self.folder / name
        if direct.is_file():
            return direct
        # An archive's own folder lies one or two levels down; deeper searching would walk folders of images.
        found = sorted(p for depth in ("*", "*/*") for p in self.folder.glob(f"{depth}/{name}") if p.is_file())
        if len(found) > 1:
            names = " and ".join(str(p.relative_to(self.folder)) for p in found[:2])
            raise VlmixError(f"{self.folder}: {name} is there more than once ({names}); keep one")
        if found:
            return found[0]
        if optional:
            return None
        there = sorted(p.name for p in self.folder.iterdir())[:8] if self.folder.is_dir() else []
        raise VlmixError(
            f"{self.source.name}: {direct} is missing"
            + (f" (the folder has {', '.join(there)})" if there else "")
            + f"; get it from {self.source.homepage} and unzip it there"
        )

    def require(self, name: str) -> Path:
        path = self.find(name)
        assert path is not None
        return path

    def read(self, path: Path) -> memoryview:
        """The bytes of a file, mapped. The path is noted as an input of the build."""
        self.opened.append(path)
        try:
            with path.open("rb") as file:
                self.hashes[path] = self._hasher.submit(sha256, path)
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                return data[3:] if bytes(data[:3]) == b"\xef\xbb\xbf" else data  # an editor's byte order mark
        except ValueError:
            raise VlmixError(f"{path} is empty; {self._again}") from None
        except OSError as error:
            raise VlmixError(f"{path}: {error.strerror}") from None

    def json(self, path: Path, type: type[T]) -> T:
        """The file decoded as `type`; unknown fields are skipped, wrong ones are an error that names the place."""
        return self.decode(path, self.read(path), type)

    def keyed(self, path: Path, type: type[T], mark: str) -> tuple[dict[str, T], list["RepeatedKey"]]:
        """A file that is one JSON object, decoded as key -> `type`, and the keys that it holds more than once.

        A decoder keeps the last value of such a key and says nothing. `mark` is a field that every value has once:
        where it occurs as often as there are keys, none is repeated, and counting costs little.
        Values that agree are kept; keys whose values differ are left out.
        """
        buffer = self.read(path)
        found = self.decode(path, buffer, dict[str, type])  # type: ignore[valid-type]
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
        buffer = self.read(path)
        decoder = msgspec.json.Decoder(type)
        raws = self.decode(path, buffer, list[msgspec.Raw])
        for number, raw in enumerate(raws):
            try:
                yield decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise VlmixError(f"{path}: record {number}: {error}; {self._other}") from None

    def decode(self, path: Path, buffer: Any, type: type[T]) -> T:
        try:
            return msgspec.json.decode(buffer, type=type)
        except msgspec.ValidationError as error:
            raise VlmixError(f"{path}: {error}; {self._other}") from None
        except msgspec.DecodeError as error:
            # msgspec reports half of a surrogate pair (chats cut inside an emoji) as truncated input.
            if path not in self.mended:
                mended, self.mended[path] = mend(bytes(buffer))
                if self.mended[path]:
                    return self.decode(path, mended, type)
                del self.mended[path]
            raise VlmixError(f"{path}: {error}; {self._again}") from None
        except RecursionError:
            raise VlmixError(f"{path}: nested too deeply; {self._again}") from None
        except UnicodeDecodeError as error:
            raise VlmixError(f"{path}: not UTF-8 at byte {error.start}; {self._again}") from None

    def wrong(self, path: Path, what: str) -> VlmixError:
        """The error for a file that is not what its name says."""
        return VlmixError(f"{path}: {what}; {self._other}")

    @property
    def _again(self) -> str:
        return f"the file is damaged or was not downloaded whole: get it again from {self.source.homepage}"

    @property
    def _other(self) -> str:
        return f"this is not the {self.source.title} file of that name: get it from {self.source.homepage}"


ReadFunction = Callable[[RawFolder, Any, int, Rejects], Iterator[Conversation]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One dataset. `read(raw, options, seed, reject)` yields its conversations in the order of the official files.

    `parts` names the datasets (name -> (licence, home page)) whose conversations a collection holds. `images` maps
    a folder of LLaVA's image layout to the other folders where its files may lie. `verbatim` sources give every
    record back as it came, empty texts included.
    """

    name: str
    title: str
    homepage: str
    licence: str
    formats: tuple[ResponseFormat, ...]
    files: tuple[RawFile, ...]
    read: ReadFunction
    options: type[Options] = Options
    images: Mapping[str, tuple[ImageFolder, ...]] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    verbatim: bool = False
