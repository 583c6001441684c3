"""Whole files of a store, kept in a folder of this machine for all its processes: `ShardCache`.

A file is named by its sha256 and appears whole. Behind its bytes stand the CRC-32 of each block of them, which every
read checks, so damage is found where it matters. Reading never waits for the cache: what is not there yet is read from
the store, while a thread of each process that reads fetches whole files, each file in one process.
"""

import hashlib
import logging
import os
import queue
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.locks import exclusive_lock
from vlmix.mixture.io.node_cache import private_folder
from vlmix.mixture.io.storage import Remote

FOLDER, MOST_BYTES = "VLMIX_SHARD_CACHE", "VLMIX_SHARD_CACHE_BYTES"
"""Environment variables: the folder, and the bytes that it holds at most."""
DEFAULT_BYTES = 100 * 10**9

_log = logging.getLogger(__name__)
_BLOCK, _SUM = 256 * 1024, 4  # bytes
_PARTIAL, _LOCK = ".partial", ".lock"
_TOUCHED = 60  # seconds after which a use is noted again


def configured(folder: str | Path | None = None, most: int | None = None) -> "ShardCache | None":
    """The cache in `folder` with at most `most` bytes; where they are None, what the environment says. None: no cache.
    Raises VlmixError for a limit that is none."""
    named = folder or os.environ.get(FOLDER)
    if not named:
        return None
    if most is None:
        said = os.environ.get(MOST_BYTES) or str(DEFAULT_BYTES)
        try:
            most = int(float(said))
        except (ValueError, OverflowError):
            raise VlmixError(f"{MOST_BYTES}={said!r}: expected a number of bytes, such as 500e9") from None
    if most <= 0:
        raise VlmixError(f"a cache of {most} bytes holds nothing; give a number of bytes, such as 500e9")
    return ShardCache(Path(named).expanduser().resolve(), most)


class ShardCache:
    """Files in `folder`, at most `most` bytes of them. May be pickled and forked.

    Where there is no room, files go that were not used since this object was made, the least recently used first. A
    file that would take the place of one in use is not kept: of a mixture larger than the cache, as much as fits is
    read from there and the rest from the store, in every epoch.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most, self.made = folder, most, time.time()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._wanted: queue.SimpleQueue[tuple[str, Remote, int]] = queue.SimpleQueue()
        self._seen: set[str] = set()
        """Files that this process wants or will not keep."""
        self._changed: dict[str, VlmixError] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._off = False

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "most": self.most, "made": self.made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, sha256: str, size: int, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Ranges (offset, size) of the file of `size` bytes; None where it is not here, or damaged."""
        path = self.folder / sha256
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        if os.fstat(file).st_uid != os.geteuid():  # whoever may write here may write sums, too
            os.close(file)
            return None
        try:
            found = os.fstat(file)
            blocks = -(-size // _BLOCK)
            if found.st_size == size + _SUM * blocks:
                if found.st_mtime < max(self.made, time.time() - _TOUCHED):
                    with suppress(OSError):
                        os.utime(file)
                return [self._checked(file, size, offset, length) for offset, length in ranges]
            what = f"{found.st_size} bytes"
        except (OSError, ValueError) as error:
            what = str(error)
        finally:
            os.close(file)
        _log.warning("%s: damaged (%s); it is fetched anew", path, what)
        with suppress(OSError):
            path.unlink()
        self._seen.discard(sha256)
        return None

    def _checked(self, file: int, size: int, offset: int, length: int) -> bytes:
        first, last = offset // _BLOCK, -(-(offset + length) // _BLOCK)
        data = os.pread(file, min(last * _BLOCK, size) - first * _BLOCK, first * _BLOCK)
        sums = os.pread(file, _SUM * (last - first), size + _SUM * first)
        if _sums(data) != sums:
            raise ValueError(f"between bytes {first * _BLOCK:,} and {last * _BLOCK:,}")
        return data[offset - first * _BLOCK : offset - first * _BLOCK + length]

    def want(self, sha256: str, where: Remote, size: int) -> None:
        """Have a file fetched in the background. Raises VlmixError if it was, and is not the one of this sha256."""
        if self._pid != os.getpid():
            self._begin()
        if error := self._changed.get(sha256):
            raise error
        if self._off or sha256 in self._seen:
            return
        with self._lock:
            self._seen.add(sha256)
            self._wanted.put((sha256, where, size))
            if self._thread is None:
                self._thread = threading.Thread(target=self._fetch_wanted, name="shard cache", daemon=True)
                self._thread.start()

    def _fetch_wanted(self) -> None:
        while not self._off:
            sha256, where, size = self._wanted.get()
            try:
                self._fetch(sha256, where, size)
            except OSError as error:
                self._off = True
                reason = error.strerror or error
                _log.warning("%s: %s; shards that are not there are read from the store", self.folder, reason)
            except VlmixError as error:  # reading asks the store for itself, and says what is wrong with it
                _log.warning("%s is not cached: %s", where.name, error)

    def _fetch(self, sha256: str, where: Remote, size: int) -> None:
        path = private_folder(self.folder) / sha256
        partial = path.with_name(sha256 + _PARTIAL)
        with self._held(sha256) as mine:
            if not mine or path.exists() or not self._reserve(partial, size + _SUM * -(-size // _BLOCK)):
                return
            try:
                digest, sums = hashlib.sha256(), b""
                with partial.open("r+b") as file:
                    for data in where.pieces(size):
                        digest.update(data)
                        sums += _sums(data)
                        file.write(data)
                    file.write(sums)
                    file.flush()
                    os.fsync(file.fileno())
                if digest.hexdigest() != sha256:
                    what = f"{where.name} was changed since the index was made: its bytes have another sha256"
                    self._changed[sha256] = VlmixError(f"{what}; copy or build the mixture again")
                    return
                partial.rename(path)
            except FileNotFoundError:  # reading says so, with what to do
                return
            finally:
                partial.unlink(missing_ok=True)

    @contextmanager
    def _held(self, sha256: str) -> Iterator[bool]:
        """Whether no other process fetches this file."""
        lock = self.folder / (sha256 + _LOCK)
        lock.touch(mode=0o600)
        with exclusive_lock(lock) as mine:
            yield mine

    def _reserve(self, partial: Path, size: int) -> bool:
        """Make `partial` as long as it will be, if there is room for it: among all processes, one at a time."""
        lock = self.folder / ("reserving" + _LOCK)
        lock.touch(mode=0o600)
        with exclusive_lock(lock, wait=True):
            partial.unlink(missing_ok=True)  # of a killed process, as this one holds the file
            kept: list[tuple[float, int, Path]] = []
            for entry in self.folder.iterdir():
                if entry.name.endswith(_PARTIAL) and not _is_being_fetched(entry):
                    entry.unlink(missing_ok=True)
                elif not entry.name.endswith(_LOCK):
                    with suppress(FileNotFoundError):
                        found = entry.stat()
                        kept.append((found.st_mtime, found.st_size, entry))
            needed = size - (self.most - sum(bytes for _, bytes, _ in kept))
            unused = [each for each in sorted(kept) if each[0] < self.made and len(each[2].name) == 64]
            if needed > sum(bytes for _, bytes, _ in unused):
                return False
            for _, bytes, entry in unused:
                if needed <= 0:
                    break
                entry.unlink(missing_ok=True)
                needed -= bytes
            with partial.open("wb") as file:
                file.truncate(size)
        return True


def _is_being_fetched(partial: Path) -> bool:
    try:
        with exclusive_lock(partial.with_name(partial.name.removesuffix(_PARTIAL) + _LOCK)) as mine:
            return not mine
    except FileNotFoundError:
        return False


def _sums(data: bytes) -> bytes:
    """The CRC-32 of each block."""
    view = memoryview(data)
    crcs = (zlib.crc32(view[start : start + _BLOCK]) for start in range(0, len(data), _BLOCK))
    return b"".join(crc.to_bytes(_SUM, "big") for crc in crcs)
