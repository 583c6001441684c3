"""Whole files of a store, copied to this machine."""

from collections.abc import Iterator
from pathlib import Path

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
