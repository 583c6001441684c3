"""Hashes of files, and the cheap signs that a file is unchanged."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_128


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stamp(NamedTuple):
    """A sign that a file may have changed, without reading it. Size and time of change alone can be kept by a copy
    over it (`cp -p`, `rsync -t`); the inode and its own time cannot. They differ where nothing changed, too, as on some
    shared file systems: then the bytes decide."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def stamp(path: str | Path) -> Stamp:
    stat = os.stat(path)  # noqa: PTH116 (a `Path` for each of a million images takes as long as looking)
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def file_digest(path: Path) -> str:
    """xxh3-128 of a file's bytes, 32 hex digits: fast, to recognise our own work."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()
