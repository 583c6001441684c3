"""Where bytes are: a local path, or anything that fsspec opens."""

import os
import posixpath
import stat
import time
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from vlmix.mixture.errors import VlmixError

_TRIES = 4
_FIRST_WAIT = 0.2  # seconds, doubled from try to try


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


class Remote:
    """A URL of one of fsspec's file systems. A read that fails is tried again, because stores do fail."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self._files, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise VlmixError(f"{url}: {error}") from None

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
        return bytes(self._retry(lambda: self._files.cat_file(self._path)))

    def size(self) -> int:
        return int(self._retry(lambda: self._files.info(self._path))["size"])

    def range(self, offset: int, size: int) -> bytes:
        return bytes(self._retry(lambda: self._files.cat_file(self._path, start=offset, end=offset + size)))

    def arrow(self) -> pa.NativeFile:
        return pa.BufferReader(self.whole())

    def _retry(self, read: Any) -> Any:
        for attempt in range(_TRIES):
            try:
                return read()
            except FileNotFoundError:
                raise
            except Exception as error:  # each store has exceptions of its own
                if attempt == _TRIES - 1:
                    raise VlmixError(f"{self.url}: {error} (tried {_TRIES} times)") from error
            time.sleep(_FIRST_WAIT * 2**attempt)
        raise AssertionError("unreachable")


Location = Local | Remote
"""A file or folder. Reading a file that is not there raises FileNotFoundError, any other trouble VlmixError."""


def locate(path: str | Path) -> Location:
    """The location that `path` names: a URL such as `s3://bucket/mixture`, else a local path."""
    if isinstance(path, str) and "://" in path:
        return Remote(path)
    local = Path(path).resolve()
    return Local(local.parent if local.is_file() else local)  # a file of the folder stands for it
