"""Whole files of a store, copied to this machine."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors
from vlmix.mixture.io.storage import Range, Remote, read_ranges

_REQUEST = 8 * 2**20  # bytes
_PIECE = 4 * _REQUEST  # asked for at a time


def pieces(where: Remote, size: int) -> Iterator[bytes]:
    """The bytes of a file of `size` bytes, a whole number of MiB at a time. Raises as `read_ranges` does."""
    for start in range(0, size, _PIECE):
        places = range(start, min(start + _PIECE, size), _REQUEST)
        yield b"".join(read_ranges([Range(where, at, min(_REQUEST, size - at)) for at in places]))


def fetch(where: Remote, path: Path) -> None:
    """Copy a file to the new file `path`. Raises FileNotFoundError if it is not there, VlmixError as `read_ranges`
    does, and for a disk that refuses."""
    size = where.size()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    try:
        with file:
            for data in pieces(where, size):
                with disk_errors(path):
                    file.write(data)
                    file.flush()
    except BaseException:
        path.unlink()
        raise


def fetch_sound(folder: Remote, name: str, path: Path, digest: str | None) -> None:
    """The same for the file `name` of a mixture's folder. Raises VlmixError if it is missing or has another sha256."""
    where, hint = folder.join(name), f"`vlmix verify {folder.name}` lists all damage"
    try:
        fetch(where, path)
    except FileNotFoundError:
        raise VlmixError(f"{where.name} is missing; {hint}") from None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        path.unlink()
        raise VlmixError(f"{where.name}: its bytes differ from the manifest's checksum; {hint}")
