"""What a source is to a mixture: a declaration of its files and license, and a function that reads conversations.

`builders` fills this contract once per dataset; nothing in `mixture` knows a dataset by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.image_index import ImageFolder
from vlmix.mixture.io.json_pieces import Share, shares
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.io.rows.containers import Container
from vlmix.mixture.io.storage import Remote
from vlmix.mixture.record import FORMATS, Conversation, ResponseFormat


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a builder's own options. Document each field with `Annotated[T, Meta(description=...)]`."""


MANY_REJECTS = 16_384


class Rejects:
    """Collects what a builder drops."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.rows: list[Reject] = []
        self.many: Callable[[], None] = lambda: None
        """Called with every reject from MANY_REJECTS on; may put `rows` elsewhere."""

    def __call__(
        self, id: str, reason: str, detail: str, *, round: int = -1, image: str = "", record: Any = None
    ) -> None:
        for name, value in (("id", id), ("reason", reason), ("detail", detail), ("image", image)):
            if not isinstance(value, str):
                raise TypeError(f"a reject's {name} is {value!r}, expected text")
        text = "" if record is None else msgspec.json.encode(record).decode()
        self.rows.append(
            Reject(source=self.source, id=id, reason=reason, detail=detail, round=round, image=image, record=text)
        )
        if len(self.rows) >= MANY_REJECTS:
            self.many()


def same_rows(path: str, twin: str) -> VlmixError:
    """The error for two files of the same rows."""
    return VlmixError(f"{path} has the same rows as {twin}; remove one of them, or take `ids: content`")


_NO_HASH: Future[str] = Future()
_NO_HASH.set_result("")


class RawFolder(OfficialFiles):
    """The official files of a source below RAW. What is read becomes an input of the build, named with its hash."""

    def __init__(self, raw: Path, source: "Source", part: Any = None, origin: str = "") -> None:
        super().__init__(source.name, source.title, source.homepage, raw / source.name)
        self.part = part
        """What is to be read, one of those that `Source.split` gives; None: everything."""
        self.fingerprints: dict[str, str] = {}
        """What is the same for two files of the same rows -> the file."""
        self.raw = raw
        self.origin = origin
        """The URL whose annotations `raw` is a copy of; "": RAW is a local folder."""
        self.opened: list[Path] = []
        self.hashes: dict[Path, Future[str]] = {}
        """File -> its sha256, made beside the decoding: hashing leaves the interpreter free."""
        self.partly: dict[Path, str] = {}
        """File of which a part was read -> the sha256 of what says where the rest is, as a Parquet file's footer."""
        self.about: list[str] = []
        """How the user's own files are read, for `plan` to show."""
        self.notes: list[str] = []
        """What the user should know though nothing was dropped."""
        self.containers: list[Container] = []
        self.image_roots: list[Path | str] = []
        """Folders in which the images of the user's own rows lie, searched before all others."""
        self._hasher = ThreadPoolExecutor(1)

    def read(self, path: Path) -> memoryview:
        data = super().read(path)
        self.note(path)
        return data

    def note(self, path: Path) -> None:
        """A file that is read becomes an input of the build; the first share hashes it for all."""
        self.opened.append(path)
        if path not in self.hashes:
            self.hashes[path] = self._hasher.submit(sha256, path) if self.first else _NO_HASH

    @property
    def share(self) -> Share | None:
        """The share of the source's one large file that is to be read; None: all of it."""
        return self.part if isinstance(self.part, Share) else None

    @property
    def first(self) -> bool:
        return self.share is None or not self.share.number

    def shares(self, *names: str) -> tuple[Share | None, ...]:
        """The shares of the first of `names` that is there."""
        return shares(self.require(*names).stat().st_size)

    def where(self, path: Path) -> Path | str:
        """A folder as it is in RAW, with its pictures: a URL where RAW is one."""
        if not self.origin or not path.is_relative_to(self.raw):
            return path
        return Remote(self.origin).join(path.relative_to(self.raw).as_posix()).url

    def fingerprint(self, path: Path, fingerprint: str) -> None:
        """Raises VlmixError if another file has the same rows."""
        if (twin := self.fingerprints.setdefault(fingerprint, str(path))) != str(path):
            raise same_rows(str(path), twin)

    def container(self, container: Container) -> int:
        """The number under which a conversation's `place` names a container of images."""
        self.containers.append(container)
        return len(self.containers) - 1


ReadFunction = Callable[[RawFolder, Any, int, Rejects], Iterator[Conversation]]


def reject_source(source: "Source", name: str | None) -> str:
    """What rejects of a source are called after, that have no other name: of a collection the recipe's entry `name`, of
    a dataset always the dataset."""
    return name if name and source.own else source.name


def _whole(raw: RawFolder, options: Any, name: str) -> Sequence[Any]:
    return (None,)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One dataset. `read(raw, options, seed, reject)` yields its conversations in the order of the official files.

    `parts` names the datasets (name -> (license, home page)) whose conversations a collection holds. `images` maps a
    folder of LLaVA's image layout to the other folders where its files may lie. `verbatim` sources give every record
    back as it came, empty texts included. Of an `own` source the files are the user's, and its option `path` names
    them: its samples, and their loose images, are called after the recipe's entry, and their license is not known.
    `split` gives, for the options of the entry of this name, what `read` can read by itself in another process, as its
    `raw.part`; an entry for one of whose parts `read` raises Unsplit is read whole, and one of a source that `numbers`
    ids which repeat if two parts have an id in common.
    """

    name: str
    title: str
    homepage: str
    license: str
    response_formats: tuple[ResponseFormat, ...]
    files: tuple[RawFile, ...]
    read: ReadFunction
    options: type[Options] = Options
    images: Mapping[str, tuple[ImageFolder, ...]] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    verbatim: bool = False
    own: bool = False
    numbers: bool = False
    split: Callable[[RawFolder, Any, str], Sequence[Any]] = _whole

    def __post_init__(self) -> None:
        """Raises TypeError for what a builder may get wrong in its declaration."""
        for name in ("name", "title", "homepage", "license"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected text")
        if not isinstance(self.files, tuple) or not all(isinstance(file, RawFile) for file in self.files):
            raise TypeError(f"files is {self.files!r}, expected a tuple of RawFile")
        if unknown := [name for name in self.response_formats if name not in FORMATS]:
            raise TypeError(f"there is no response format {unknown[0]!r}{nearest(str(unknown[0]), FORMATS)}")
        if not (isinstance(self.options, type) and issubclass(self.options, Options)):
            raise TypeError(f"options is {self.options!r}, expected a subclass of Options")
        if not callable(self.read):
            raise TypeError(f"read is {self.read!r}, expected a function")
