"""Where bytes are: a local path, or anything that fsspec opens."""

import errno
import os
import posixpath
import stat
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import pyarrow as pa

from vlmix.mixture.errors import VlmixError

_TRIES = 8
_FIRST_WAIT = 0.2  # seconds, doubled from try to try
_GAP = 32 * 1024  # bytes between ranges that are read along: less than what a store sends while a request is on its way
_AT_ONCE = 32  # connections of a process to a store
_MOST_TOGETHER = 8 * 2**20
_PIECE = 8 * _MOST_TOGETHER  # bytes of a file that are in memory while it is copied
_WHOLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # where a file appears when all of it is there
_MOST_AHEAD, _BYTES_AHEAD = 256, 64 * 2**20  # ranges, and bytes of them, that `read_ahead` holds
_PAGE = {"total_max_attempts": 4, "mode": "standard"}  # tries of S3's client for a page of a listing
_LATER = (408, 425, 429)  # statuses of 400 to 499 that mean: ask again
_NO_CREDENTIALS = (
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),
    *(
        "NoAuthTokenError",
        "UnauthorizedSSOTokenError",
        "SSOTokenLoadError",
        "ProfileNotFound",
        "ClientAuthenticationError",
    ),
    *("DefaultCredentialsError", "RefreshError"),
)


class StoreError(VlmixError):
    """A store that refuses, or that failed at every try: what it holds is not known."""


class Local:
    """A local path. Safe to share over threads and forks: reads carry their own offsets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return str(self.path)

    def join(self, relative: str) -> "Local":
        """`relative` (slashes, may climb with `..`) below this folder."""
        return Local(Path(os.path.normpath(self.path / relative)))

    def whole(self) -> bytes:
        with self._open() as file:
            return file.read()

    def size(self) -> int:
        return self._stat().st_size

    def range(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the file ends."""
        with self._open() as file:
            return os.pread(file.fileno(), size, offset)

    def arrow(self) -> pa.NativeFile:
        """The file for Arrow. Never a Python file object: reading one with threads aborts some processes at their
        exit (apache/arrow#50482)."""
        self._stat()
        return pa.OSFile(self.name)

    def _stat(self) -> os.stat_result:
        """Opening a pipe would wait for good, and a device may have no end."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise VlmixError(f"{self.name[:200]}: {error.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            raise VlmixError(f"{self.path}: not a regular file")
        return found

    def _open(self) -> BinaryIO:
        self._stat()
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise VlmixError(f"{self.path}: {error.strerror}") from None


class Facts(NamedTuple):
    """What a store says of a file: its size in bytes, and its ETag, empty where the store has none."""

    size: int
    etag: str = ""


class Remote:
    """A URL of one of fsspec's file systems. May be pickled and forked.

    A request that fails is made again, with growing waits, because stores do fail and throttle. One for which the
    store lacks credentials or permission is not: it would fail again.
    """

    def __init__(self, url: str) -> None:
        self.url = _plain(url)
        self._opened: tuple[int, Any, str] | None = None
        self._kept: pa.Buffer | None = None
        self._connection()

    @property
    def name(self) -> str:
        return self.url

    def join(self, relative: str) -> "Remote":
        scheme, _, path = self.url.partition("://")
        joined = posixpath.normpath(posixpath.join(path, relative))
        if joined.partition("/")[0] != path.partition("/")[0]:
            raise VlmixError(f"{self.url}: {relative[:200]!r} leaves its host or bucket")
        return Remote(f"{scheme}://{joined}")

    def whole(self) -> bytes:
        return bytes(self._retry(lambda files, path: files.cat_file(path)))

    def size(self) -> int:
        return self.facts().size

    def facts(self) -> Facts:
        return _facts(self._retry(lambda files, path: files.info(path)))

    def is_folder(self) -> bool:
        """Whether anything lies below it. Raises VlmixError where the store does not say."""
        try:
            if self._retry(lambda files, path: files.info(path))["type"] == "directory":
                return True
            found = self._retry(lambda files, path: files.ls(path, detail=False), pages=True)  # a file may be both
        except FileNotFoundError:
            return False
        return any(name.rstrip("/") != self._connection()[1] for name in found)

    def listed(self) -> dict[str, Facts]:
        """The files of this folder by name; none where the store does not list it."""
        try:
            return self.listing()
        except (FileNotFoundError, VlmixError):  # some stores do not list, or permit to read alone
            return {}

    def listing(self) -> dict[str, Facts]:
        """The files of this folder by name. Raises FileNotFoundError where it is not there, and VlmixError where the
        store does not list it."""
        entries = self._retry(lambda files, path: files.ls(path, detail=True), pages=True)
        return {
            posixpath.basename(entry["name"]): _facts(entry)
            for entry in entries
            if entry["type"] == "file" and entry.get("size") is not None
        }

    def below(self) -> dict[str, Facts]:
        """All files below this folder by their paths from here on, "" of a file itself; none where there are none.
        Raises VlmixError where the store does not list them."""
        path = self._connection()[1]
        try:
            found = self._retry(_find, pages=True)
        except FileNotFoundError:
            return {}
        return {
            name.removeprefix(path).lstrip("/"): _facts(entry)
            for name, entry in found.items()
            if entry["type"] == "file" and entry.get("size") is not None and not name.endswith("/")
        }

    def range(self, offset: int, size: int) -> bytes:
        return bytes(self._retry(lambda files, path: files.cat_file(path, start=offset, end=offset + size)))

    def put(self, path: Path, before: Callable[[], None] | None = None) -> Facts:
        """Upload a local file, which appears whole or not at all; what the store says of it then. `before` is called
        before each try and at the end; what it raises ends them. Raises FileExistsError where there is a file, if it is
        that of a try whose answer was lost, too; a store without conditional puts overwrites it."""
        size = path.stat().st_size
        self._write(lambda files, there: files.put_file(str(path), there, mode="create"), before)
        facts = None
        with suppress(FileNotFoundError):
            facts = self.facts()
        if before is not None:
            before()  # else they may be facts of what came in its place
        if facts is None:
            raise VlmixError(f"{self.url}: the store took it and has it not; run the same command again")
        if facts.size != size:
            raise VlmixError(f"{self.url}: the store has {facts.size} bytes of {size}; run the same command again")
        return facts

    def write(self, data: bytes) -> None:
        """Write a file, which appears whole or not at all."""
        self._write(lambda files, path: files.pipe_file(path, data))

    def create(self, data: bytes) -> bool:
        """Write a file if there is none; False if there is one of other bytes. A store without conditional puts
        overwrites it, which True does not tell."""
        try:
            self._write(lambda files, path: files.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return self.whole() == data  # of a try whose answer was lost
        return True

    def remove(self, before: Callable[[], None] | None = None) -> None:
        """Remove the file, if it is there. `before` is called before each try; what it raises ends them."""
        with suppress(FileNotFoundError):
            self._retry(lambda files, path: files.rm_file(path), before=before)

    def _write(self, write: Callable[[Any, str], Any], before: Callable[[], None] | None = None) -> None:
        try:
            self._retry(write, before=before)
        except FileNotFoundError as error:
            raise VlmixError(f"{self.url}: there is no such bucket; create it first") from error

    def pieces(self, size: int) -> Iterator[bytes]:
        """The bytes of a file of `size` bytes, a whole number of MiB at a time. Raises as `read_ranges` does."""
        for start in range(0, size, _PIECE):
            places = range(start, min(start + _PIECE, size), _MOST_TOGETHER)
            yield b"".join(read_ranges([Range(self, at, min(_MOST_TOGETHER, size - at)) for at in places]))

    def arrow(self) -> pa.NativeFile:
        """The file for Arrow: in memory, where it stays as long as this object."""
        if self._kept is None:
            self._kept = pa.py_buffer(self.whole())
        return pa.BufferReader(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_opened": None, "_kept": None}

    def _connection(self) -> tuple[Any, str]:
        """The file system, and the path there. After a fork it is opened anew, as its connections are the parent's."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), *self._open({"max_attempts": 0})
        return self._opened[1:]

    def _open(self, retries: dict[str, Any]) -> tuple[Any, str]:
        """The file system and the path there; `retries` are those of S3's client, which would try again below ours."""
        import fsspec

        options = {}
        if self.url.startswith(("s3://", "s3a://")):
            known = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options = {"config_kwargs": {"max_pool_connections": _AT_ONCE, **known, "retries": retries}}
        try:
            files, path = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError, OSError) as error:
            raise VlmixError(f"{self.url}: {error}") from None
        return files, path

    def _retry(
        self, read: Callable[[Any, str], Any], *, pages: bool = False, before: Callable[[], None] | None = None
    ) -> Any:
        """`pages`: of a listing, which is many requests; each is made again by itself, or a long list had no end."""
        for attempt in range(_TRIES):
            if before is not None:
                before()
            files, path = self._open(_PAGE) if pages else self._connection()
            try:
                files.invalidate_cache()  # of listings, which would hide what changed
                return read(files, path)
            except (FileExistsError, VlmixError):
                raise
            except Exception as error:  # each store has exceptions of its own
                _raise_if_final(self.url, error, attempt)
            time.sleep(_FIRST_WAIT * 2**attempt)
        raise AssertionError("unreachable")


class Range(NamedTuple):
    """`size` bytes from `offset` of a file in a store; with `last` the file has to end there."""

    where: Remote
    offset: int
    size: int
    last: bool = False


def read_ranges(asked: Sequence[Range]) -> list[bytes]:
    """The bytes of ranges of one file system, each whole. Those that lie close to each other are one request, and
    requests are made at once; what fails or comes short is asked for again. Raises FileNotFoundError, and VlmixError,
    also where a file has another length than a `last` range says."""
    from fsspec.utils import merge_offset_ranges

    if not all(each.size for each in asked):  # a store refuses a range of nothing
        found_there = iter(read_ranges([each for each in asked if each.size]))
        return [next(found_there) if each.size else b"" for each in asked]
    if not asked:
        return []
    urls = {path: each.where.url for each in asked for _, path in [each.where._connection()]}
    files = asked[0].where._connection()[0]
    names = [each.where._connection()[1] for each in asked]
    starts, ends = [each.offset for each in asked], [each.offset + each.size for each in asked]
    lengths = {name: end for name, end, each in zip(names, ends, asked) if each.last}
    ends = [end + each.last for end, each in zip(ends, asked)]  # a byte too many, which must not be there
    left = list(zip(*merge_offset_ranges(list(names), starts, ends, max_gap=_GAP, max_block=_MOST_TOGETHER)))
    found: dict[str, list[tuple[int, bytes]]] = {}
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
        again = []
        for piece, got in zip(left, files.cat_ranges(*map(list, zip(*left)), on_error="return")):
            path, start, end = piece
            size = min(end, lengths.get(path, end)) - start
            if not isinstance(got, BaseException) and len(got) != size:
                got = OSError(f"{len(got)} bytes of {size} came")
                where = Remote(urls[path])
                if path in lengths and (length := where.size()) != lengths[path]:
                    what = f"it has {length} bytes, the store listed {lengths[path]}"
                    raise VlmixError(f"{where.url} changed during the build: {what}; run the same command again")
            if isinstance(got, BaseException):
                _raise_if_final(urls[path], got, attempt)
                again.append(piece)
            else:
                found.setdefault(path, []).append((start, got))
        left = again
        if not left:
            break
    for pieces in found.values():
        pieces.sort(key=itemgetter(0))
    return [_cut_out(found[name], each.offset, each.size) for name, each in zip(names, asked)]


def read_ahead(asked: Iterable[Range]) -> Iterator[bytes]:
    """The bytes of ranges one after the other, as `read_ranges` gives them: of some at a time, up to 64 MiB."""
    group: list[Range] = []
    for each in asked:
        together = sum(one.size for one in group) + each.size
        other = bool(group) and each.where._connection()[0] is not group[0].where._connection()[0]
        if group and (other or len(group) == _MOST_AHEAD or together > _BYTES_AHEAD):
            yield from read_ranges(group)
            group = []
        group.append(each)
    yield from read_ranges(group)


def _find(files: Any, path: str) -> dict[str, dict[str, Any]]:
    """All files below a path. fsspec's own walk, which some stores take, leaves out what it cannot list, unless told
    not to."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    kind = type(files)
    walks = kind._find is AsyncFileSystem._find if issubclass(kind, AsyncFileSystem) else False
    walks = walks or (not issubclass(kind, AsyncFileSystem) and kind.find is AbstractFileSystem.find)
    found: dict[str, dict[str, Any]] = files.find(path, detail=True, **({"on_error": "raise"} if walks else {}))
    return found


def _cut_out(pieces: list[tuple[int, bytes]], offset: int, size: int) -> bytes:
    start, data = pieces[bisect_right(pieces, offset, key=itemgetter(0)) - 1]
    return data[offset - start : offset - start + size]


def _facts(info: dict[str, Any]) -> Facts:
    # Some stores quote an ETag where they are asked for one file, and do not in a list.
    return Facts(int(info["size"]), str(info.get("ETag") or info.get("etag") or "").strip('"'))


def _raise_if_final(url: str, error: BaseException, attempt: int) -> None:
    """Raises what ends the tries: a file that is not there, a lack of permission and other faults of the request at
    once, anything else after the last one."""
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
    if not isinstance(error, Exception):
        raise error
    if _is_refusal(error):
        what = "check its credentials, and that they may read (or write) this place"
        if "request time" in str(error):  # S3: "The difference between the request time and the current time …"
            what = "set the clock of this machine, which is another than the store's"
        raise StoreError(f"{url}: the store refuses: {error}; {what}") from error
    if 400 <= _status(error) < 500 and _status(error) not in _LATER:
        raise StoreError(f"{url}: {error}") from error
    if attempt == _TRIES - 1:
        raise StoreError(f"{url}: {error or type(error).__name__} (tried {_TRIES} times)") from error


def _is_refusal(error: BaseException | None) -> bool:
    """Whether a store lacks credentials or permission, of an error or what caused it. Stores' clients are optional, so
    their exceptions are known by name."""
    while error is not None:
        if (
            isinstance(error, PermissionError)
            or type(error).__name__ in _NO_CREDENTIALS
            or _status(error) in (401, 403)
        ):
            return True
        error = error.__cause__
    return False


def _status(error: BaseException) -> int:
    """The HTTP status that an error of a client carries, 0 where it has none."""
    found = next((getattr(error, name) for name in ("status", "status_code", "code") if hasattr(error, name)), 0)
    return found if isinstance(found, int) else 0


Location = Local | Remote
"""A file or folder. Reading a file that is not there raises FileNotFoundError, any other trouble VlmixError."""


def is_url(path: str | Path) -> TypeGuard[str]:
    """Whether `path` is a URL and not a local path."""
    return isinstance(path, str) and "://" in path


def place(path: str | Path) -> str | Path:
    """A URL without slashes at its end, or a local path."""
    return path.rstrip("/") if is_url(path) else Path(path)


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there, or anything below a URL. Raises VlmixError where a store does not say."""
    return Remote(path).is_folder() if is_url(path) else Path(path).is_dir()


def store_at(path: str | Path) -> Remote | None:
    """The store that a URL such as `s3://bucket/mixture` names; None for a local path."""
    return Remote(path) if is_url(path) else None


def new_store(path: str | Path) -> Remote | None:
    """The same for what is to be written. Raises VlmixError for a store in which files do not appear whole."""
    if not is_url(path):
        return None
    scheme, _, where = _plain(path).partition("://")
    if scheme not in _WHOLE:
        known = ", ".join(f"{each}://" for each in _WHOLE)
        raise VlmixError(f"{path}: nothing is written there, only to stores whose files appear whole: {known}")
    if "/" not in where:
        raise VlmixError(f"{path} is no folder in a bucket; name one: {scheme}://{where or 'BUCKET'}/mixture")
    return store_at(path)


def _plain(url: str) -> str:
    """A URL without slashes at its end and detours, which file systems would keep in some calls and not in others."""
    scheme, _, path = url.partition("://")
    if scheme in ("http", "https") or not path:
        return url
    if scheme in _WHOLE and path.startswith("/"):
        raise VlmixError(f"{url} has no bucket; two slashes come before it: {scheme}://{path.lstrip('/')}")
    plain = posixpath.normpath(path).rstrip("/")
    if plain.partition("/")[0] != path.partition("/")[0]:
        raise VlmixError(f"{url} leaves its host or bucket; name the folder itself")
    return f"{scheme}://{plain}"


def locate(path: str | Path) -> Location:
    """The location that `path` names: a URL such as `s3://bucket/mixture`, else a local path."""
    if store := store_at(path):
        return store
    local = Path(path).resolve()
    return Local(local.parent if local.is_file() else local)  # a file of the folder stands for it
