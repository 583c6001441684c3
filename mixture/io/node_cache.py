"""Arrays that one process of a machine computes and all of them map: `once_per_node`.

They lie in VLMIX_CACHE, or in a folder of the user's below the temporary directory. Nothing there is needed: what
cannot be written or was damaged is computed anew, in memory if need be, and the oldest entries go when they are too
many.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.io.locks import exclusive_lock

LEAST = 1_000_000
"""Samples below which everything is computed in memory: it takes less than a second."""

_log = logging.getLogger(__name__)
_LAYOUT = 1
_MOST_BYTES = 16 * 10**9
_SIZES = "sizes.json"

Arrays = dict[str, NDArray[Any]]


def once_per_node(key: object, make: Callable[[], Arrays]) -> Arrays:
    """What `make` returns, read only: computed by the first process that asks for `key` (anything that JSON writes),
    while others wait for it, and mapped by all."""
    name = hashlib.sha256(json.dumps([_LAYOUT, _boot(), key]).encode()).hexdigest()[:32]
    with ExitStack() as held:
        try:
            folder = _folder()
            entry, lock = folder / name, folder / f"{name}.lock"
            if (found := _mapped(entry)) is not None:
                return found
            lock.touch(mode=0o600)
            held.enter_context(exclusive_lock(lock, wait=True))
        except OSError as error:
            _warn(error)
            return make()
        if (found := _mapped(entry)) is not None:
            return found
        arrays = make()
        try:
            _write(entry, arrays)
        except OSError as error:
            _warn(error)
            return arrays
    return _mapped(entry) or arrays


def _warn(error: OSError) -> None:
    where = error.filename or _where()
    _log.warning("%s: %s; each process keeps its own copy in memory", where, error.strerror or error)


def _write(entry: Path, arrays: Arrays) -> None:
    for stale in entry.parent.glob(f"{entry.name}.*.partial"):
        shutil.rmtree(stale, ignore_errors=True)  # a killed process left it, as this one holds the lock
    partial = Path(tempfile.mkdtemp(".partial", f"{entry.name}.", entry.parent))
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        sizes = {name: (partial / f"{name}.npy").stat().st_size for name in arrays}
        (partial / _SIZES).write_text(json.dumps(sizes))
        shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _forget(entry)


def _mapped(entry: Path) -> Arrays | None:
    """The arrays of an entry; None if there is none, or one that is not as it was written."""
    try:
        sizes: Mapping[str, int] = json.loads((entry / _SIZES).read_bytes())
        files = {name: entry / f"{name}.npy" for name in sizes}
        if any(files[name].stat().st_size != size for name, size in sizes.items()):
            return None
        os.utime(entry)
        return {name: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)) for name, file in files.items()}
    except (OSError, ValueError, AttributeError):
        return None


def _forget(kept: Path) -> None:
    """Remove the entries that were not used for the longest time, where all are too large together. A process that
    mapped one keeps it."""
    entries = []
    for path in kept.parent.iterdir():
        with suppress(OSError):
            entries.append((path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir()), path))
    total = 0
    for _, size, path in sorted(entries, reverse=True):
        total += size
        if total > _MOST_BYTES and path != kept:
            shutil.rmtree(path, ignore_errors=True)


def _where() -> Path:
    named = os.environ.get("VLMIX_CACHE")
    return Path(named).expanduser().resolve() if named else Path(tempfile.gettempdir()) / f"vlmix-{os.geteuid()}"


def _folder() -> Path:
    return private_folder(_where())


def private_folder(folder: Path) -> Path:
    """A folder, made where there is none. Raises OSError if it is not this user's alone to write."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError(errno.EPERM, "others may write to this cache folder", str(folder))
    return folder


def _boot() -> str:
    """Of the machine: what was written before it went down may not have reached the disk, and a folder that several
    machines see holds an entry for each."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    return os.uname().nodename
