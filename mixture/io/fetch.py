"""Whole files of a store, copied to this machine."""

import hashlib
from pathlib import Path

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors
from vlmix.mixture.io.storage import Remote


def fetch(where: Remote, path: Path) -> None:
    """Copy a file to the new file `path`. Raises FileNotFoundError if it is not there, VlmixError as `read_ranges`
    does, and for a disk that refuses."""
    size = where.size()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    try:
        with file:
            for data in where.pieces(size):
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
