"""New folders: filled beside their place, held by one process, and renamed when whole."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors, write_text
from vlmix.mixture.io.locks import exclusive_lock

HELD = "held"
"""File of the work folder that is there, with the same text, as long as one process holds it."""


@contextmanager
def staging_folder(out: Path) -> Iterator[tuple[Path, Path]]:
    """(folder to fill, its work folder) for the new folder `out`, held by this process alone. When the block ends well
    the work is removed and the folder takes its name."""
    if out.exists() or out.is_symlink():
        raise VlmixError(f"{out} exists already; choose another --out or remove it")
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise VlmixError(f"the name {str(out)!r} is not UTF-8; choose another --out") from None
    partial = out.with_name(out.name + ".partial")
    work = partial / "work"
    with disk_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(partial) as mine:
        if not mine:
            raise VlmixError(f"{partial} is being written by another run; wait for it or stop it")
        try:
            if out.exists():
                raise VlmixError(f"{out} was made by another run meanwhile")
            with disk_errors(partial):
                work.mkdir(exist_ok=True)
            _remove_temporaries(partial)
            write_text(work / HELD, uuid4().hex)
            yield partial, work
            with disk_errors(out):
                shutil.rmtree(work)
                _remove_temporaries(partial)  # of workers that were lost and made up for
                partial.replace(out)
        except BaseException:
            (work / HELD).unlink(missing_ok=True)
            if not any(path.is_file() for path in partial.rglob("*")):
                shutil.rmtree(partial, ignore_errors=True)  # nothing was made that a next run could use
            raise


def _remove_temporaries(folder: Path) -> None:
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes the name `out` when the block ends well. What a killed run left in `OUT.partial` is
    removed by the next one."""
    with staging_folder(out) as (partial, work), disk_errors(out):
        _empty(partial, work)
        (work / HELD).unlink()  # no task of a cluster writes here
        try:
            yield partial
        except BaseException:
            _empty(partial, work)
            raise


def _empty(folder: Path, but: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and entry != but:
            shutil.rmtree(entry)
        elif entry != but:
            entry.unlink()
