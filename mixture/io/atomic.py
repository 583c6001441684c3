"""Files that appear whole or not at all, and the errors of a disk."""

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from vlmix.mixture.errors import VlmixError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when the block ends well. A full disk is an error that says so."""
    host = this_host()
    temporary = path.with_name(f".{path.name}.{host}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path, host)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # of a disk that turned read-only, which the error has told
            temporary.unlink(missing_ok=True)


@cache
def this_host() -> str:
    """What the process id is unique on: this machine, or the container on it whose processes are numbered apart."""
    name = "".join(c for c in socket.gethostname() if c.isalnum() or c == "-")
    try:
        return f"{name}-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    except OSError:  # not Linux
        return name


def _remove_leftovers(path: Path, host: str) -> None:
    """Remove what processes of this machine that were killed left of `path`."""
    beginning = f".{path.name}.{host}."
    for name in os.listdir(path.parent):  # noqa: PTH208 (of thousands of files, for each that is written)
        if not (name.startswith(beginning) and name.endswith(".tmp")):
            continue
        try:
            os.kill(int(name[len(beginning) : -len(".tmp")]), 0)
        except ProcessLookupError:
            path.with_name(name).unlink(missing_ok=True)
        except (PermissionError, ValueError):  # somebody else's process, or no number
            pass


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write into a message with a remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space and run the same command again; what is finished is kept" if full else "check it"
        raise VlmixError(f"{path}: cannot write: {error.strerror or error}; {remedy}") from error


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_parquet(path: Path, batches: Iterable[Any], schema: Any) -> None:
    """Record batches to a Parquet file, one row group each; the bytes depend on the rows alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_write(path) as file, pq.ParquetWriter(file, schema, compression="zstd", compression_level=3) as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch], schema), row_group_size=max(batch.num_rows, 1))
