"""Files are written whole or not at all."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mixture.errors import VlmixError


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when the block ends well. A full disk is an error that says so."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write into a message with a remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space and run the same command again; what is finished is kept" if full else "check it"
        raise VlmixError(f"{path}: cannot write: {error.strerror or error}; {remedy}") from error


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a folder: True if no other process does, or when none does any more with `wait`. The hold ends with the
    block, or with the process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        yield mine
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode())


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stamp(NamedTuple):
    """What tells that a file may have changed, without reading it. Size and time of change alone can be kept by a copy
    over it (`cp -p`, `rsync -t`); the inode and its own time cannot. They differ where nothing changed, too, as on some
    shared file systems: then the bytes decide."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def stamp(path: Path) -> Stamp:
    stat = path.stat()
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def file_digest(path: Path) -> str:
    """xxh3-128 of a file's bytes, 32 hex digits: fast, to recognise our own work."""
    from xxhash import xxh3_128

    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return str(digest.hexdigest())


def write_parquet(path: Path, batches: Iterator[Any], schema: Any) -> None:
    """Record batches to a Parquet file, one row group each; the bytes depend on the rows alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic(path) as file, pq.ParquetWriter(file, schema, compression="zstd", compression_level=3) as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch], schema), row_group_size=max(batch.num_rows, 1))
