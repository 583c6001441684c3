"""New folders: filled beside their place, held by one process, and renamed or uploaded when whole."""

import logging
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors, write_text
from vlmix.mixture.io.locks import exclusive_lock
from vlmix.mixture.io.storage import Remote, new_store
from vlmix.mixture.io.store_lock import Held, store_lock

_log = logging.getLogger(__name__)
HELD = "held"
"""File of the work folder that is there, with the same text, as long as one process holds it."""
_LAST = "manifest.json"  # without which a folder is no mixture


class Staging(NamedTuple):
    """The folder to fill, its work folder, and the place in a store that it is for: files that are there already need
    not be in the folder."""

    folder: Path
    work: Path
    store: Held | None


@contextmanager
def staging_folder(out: Path | str, work: Path | None = None) -> Iterator[Staging]:
    """What to fill for the new folder `out`, held by this process alone: a folder beside it, which takes its name when
    the block ends well. Of the URL of a store it is `work`, by default `NAME.partial` here; when the block ends well
    its files are uploaded, the manifest last, and it is removed."""
    store = new_store(out)
    if store is None:
        if work is not None:
            raise VlmixError(f"a work folder is for an --out in a store; {out} is made beside its place")
        partial = _beside(Path(out))
    else:
        partial = work or Path(posixpath.basename(store.url) + ".partial")
    with disk_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(partial) as mine:
        if not mine:
            raise VlmixError(f"{partial} is being written by another run; wait for it or stop it")
        inside = partial / "work"
        try:
            with nullcontext() if store is None else _held(store) as held:
                if store is None and Path(out).exists():
                    raise VlmixError(f"{out} was made by another run meanwhile")
                with disk_errors(partial):
                    inside.mkdir(exist_ok=True)
                _remove_temporaries(partial)
                write_text(inside / HELD, uuid4().hex)
                yield Staging(partial, inside, held)
                with disk_errors(partial):
                    _remove_temporaries(partial)  # of workers that were lost and made up for
                if held is not None:
                    _publish(partial, inside, held)
                with disk_errors(partial):
                    shutil.rmtree(inside)
                    if held is None:
                        partial.replace(out)
                    else:
                        shutil.rmtree(partial)
        except BaseException:
            (inside / HELD).unlink(missing_ok=True)
            if not any(path.is_file() for path in partial.rglob("*")):
                shutil.rmtree(partial, ignore_errors=True)  # nothing was made that a next run could use
            raise


def _beside(out: Path) -> Path:
    if out.exists() or out.is_symlink():
        raise VlmixError(f"{out} exists already; choose another --out or remove it")
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise VlmixError(f"the name {str(out)!r} is not UTF-8; choose another --out") from None
    return out.with_name(out.name + ".partial")


@contextmanager
def _held(store: Remote) -> Iterator[Held]:
    """Hold the place of a new folder in a store. Beside it is a mark as long as what is there is not finished."""
    beside = Remote(f"{store.url}.partial")
    mark = beside.join("unfinished")
    with store_lock(beside, store) as held:
        there = store.below()
        if _LAST in there:
            mark.remove()
            raise VlmixError(f"{store.url} exists already; choose another --out or remove it")
        if there and mark.name not in (beside.join(name).name for name in beside.below()):
            what = f"holds {first}, which no unfinished command left" if (first := min(there)) else "is a file"
            raise VlmixError(f"{store.url} {what}; choose another --out")
        mark.write(b"")
        yield held
        try:
            mark.remove()
        except VlmixError as error:
            _log.warning("%s is finished, and a mark stays: %s", store.url, error)


def _publish(folder: Path, work: Path, store: Held) -> None:
    """Upload what is in `folder`, the manifest last; what an earlier run left there is removed, shards excepted."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_relative_to(work)
    }
    for name in store.root.below():
        if name not in files and not name.startswith("train/"):
            store.remove(name)
    for name, path in files.items():
        if name != _LAST:
            store.put(name, path)
    store.put(_LAST, files[_LAST])


def _remove_temporaries(folder: Path) -> None:
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes the name `out` when the block ends well. What a killed run left in `OUT.partial` is
    removed by the next one."""
    with staging_folder(out) as (partial, work, _), disk_errors(out):
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
