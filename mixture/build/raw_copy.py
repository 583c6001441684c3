"""RAW in a store: its annotations, copied beside the work of a build, as builders read local files and map them."""

import glob
import logging
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

import msgspec
from fsspec.utils import glob_translate
from msgspec import Struct

from vlmix.mixture.build.recipe import Recipe
from vlmix.mixture.build.source import Source
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write, disk_errors, write_bytes
from vlmix.mixture.io.image_index import EXTENSIONS
from vlmix.mixture.io.pool import Engine, Progress
from vlmix.mixture.io.storage import Facts, Range, Remote, is_url, place, read_ahead

_log = logging.getLogger(__name__)
_PIECE = 8 * 2**20
_TOGETHER, _BYTES_TOGETHER = 64, 256 * 2**20  # files of a task, and bytes of them
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")
_MAGIC = re.compile(r"[*?[]")
Files = dict[str, Facts]
"""Path below RAW -> what the store says of the file."""


class FetchJob(Struct, frozen=True):
    """Files below a URL, to be copied to the same paths below a folder."""

    url: str
    files: list[tuple[str, Facts]]
    out: Path


def copy_raw(
    url: str,
    recipe: Recipe,
    known: Mapping[str, Source],
    out: Path,
    pool: Engine,
    progress: Progress,
    *,
    sets: bool,
) -> None:
    """Copy what builders read of RAW at `url` to the folder `out`, with `sets` the recipe's evaluation sets, too.

    Pictures stay where they are, but for those of evaluation sets, and so do archives, which no builder opens. Of an
    earlier copy those files stay whose size and ETag are the same. Raises VlmixError where the store refuses or holds
    nothing, and for a file that is changed meanwhile.
    """
    if not Remote(url).is_folder():
        raise VlmixError(f"{url}: there is nothing below it; it should hold one folder of official files per source")
    _log.info("%s is copied to %s, without its pictures", url, out)
    wanted = _wanted(Remote(url), recipe, known, sets)
    if unsafe := next((name for name in wanted if {"", ".", ".."} & {*name.split("/")}), None):
        raise VlmixError(f"{url}: {unsafe!r} is no name for a file; rename it")
    left = _outdated(wanted, out)
    progress("fetching raw files", 0, len(left))
    done = 0
    for job, _ in pool.map(fetch, _jobs(url, left, out)):
        done += len(job.files)
        progress("fetching raw files", done, len(left))


@contextmanager
def told_by_url(raw: Path | str, work: Path) -> Iterator[None]:
    """Errors that name files of the copy in `work` name those of `raw`, where that is the URL of a store."""
    try:
        yield
    except VlmixError as error:
        copy, of_the_disk = str(copy_of_raw(work)), isinstance(error.__cause__, OSError)
        if not is_url(raw) or copy not in str(error) or of_the_disk:
            raise
        raise VlmixError(str(error).replace(copy, str(place(raw)))) from error


def copy_of_raw(work: Path) -> Path:
    """The folder of `work`, where sources are read, for a copy of RAW."""
    return (work / "raw").absolute()


def fetch(job: FetchJob) -> None:
    """Copy the files of a job; each appears when it is whole. Runs in a worker."""
    root = Remote(job.url)

    def pieces(name: str, size: int) -> Iterator[Range]:
        where = root.join(name)
        for start in range(0, size, _PIECE):
            yield Range(where, start, min(_PIECE, size - start), last=start + _PIECE >= size)

    data = read_ahead(piece for name, facts in job.files for piece in pieces(name, facts.size))
    for name, facts in job.files:
        with atomic_write(job.out / name) as file, _told_if_gone():
            for _ in range(0, facts.size, _PIECE):
                file.write(next(data))
            now = root.join(name).facts()  # pieces of two versions are no file
            if now.size != facts.size or (now.etag and facts.etag and now.etag != facts.etag):
                raise VlmixError(f"{job.url}/{name} was changed while it was copied; run the same command again")


@contextmanager
def _told_if_gone() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise VlmixError(f"{error.filename} was removed while it was copied; run the same command again") from None


def _jobs(url: str, files: Files, out: Path) -> Iterator[FetchJob]:
    together: list[tuple[str, Facts]] = []
    for name, facts in files.items():
        size = sum(each.size for _, each in together) + facts.size
        if together and (len(together) == _TOGETHER or size > _BYTES_TOGETHER):
            yield FetchJob(url, together, out)
            together = []
        together.append((name, facts))
    if together:
        yield FetchJob(url, together, out)


def _outdated(wanted: Files, out: Path) -> Files:
    """Those of the wanted files that have to be copied. Removes what is there and is not wanted any more.

    The list of files is written before they are copied and after others are removed: a file that is there is the one of
    the list, whenever the run is killed.
    """
    listed = out.with_name(f"{out.name}.state")
    try:
        before = msgspec.msgpack.decode(listed.read_bytes(), type=Files)
    except (OSError, msgspec.MsgspecError):
        before = {}
    kept: set[str] = set()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for path in out.rglob("*"):
            if path.is_file():
                name = path.relative_to(out).as_posix()
                # A store without ETags does not tell whether a file has changed.
                if name in wanted and wanted[name].etag and before.get(name) == wanted[name]:
                    kept.add(name)
                else:
                    path.unlink()
    write_bytes(listed, msgspec.msgpack.encode(wanted))
    return {name: facts for name, facts in wanted.items() if name not in kept}


def _wanted(root: Remote, recipe: Recipe, known: Mapping[str, Source], sets: bool) -> Files:
    @cache
    def below(folder: str) -> Files:
        """All files of a folder of RAW, or the file itself."""
        found = (root.join(folder) if folder else root).below()
        return {posixpath.join(folder, name) if name else folder: facts for name, facts in found.items()}

    files: Files = {}
    for entry in recipe.sources.values():
        source = known[entry.builder]
        path = getattr(entry.options, "path", None) if source.own else None
        if isinstance(path, str):
            found = _named(path, source.name, below)
        else:
            found = {name: facts for name, facts in below(source.name).items() if not name.lower().endswith(_ARCHIVES)}
        files |= {name: facts for name, facts in found.items() if PurePosixPath(name).suffix.lower() not in EXTENSIONS}
    for each in recipe.decontaminate if sets else ():
        for folder in (each.data, *each.images):
            if folder is None or is_url(folder) or Path(folder).is_absolute():
                continue
            found = below(_plain(folder))
            if not found:
                where = f"{root.url}/{folder}"
                raise VlmixError(f"decontaminate: {each.benchmark}: there is nothing below {where}; check the recipe")
            files |= found
    return files


def _named(path: str, source: str, below: Callable[[str], Files]) -> Files:
    """What `path` names as `io.rows.files.find_tables` reads it: a file, a folder or a glob, in the folder of the
    source or in RAW."""
    if is_url(path) or path.startswith(("/", "~")):
        return {}
    for base in (source, ""):
        wanted = _plain(posixpath.join(base, path))
        if wanted.startswith(".."):
            continue
        if found := below(wanted):
            return found
        folder, name = posixpath.split(wanted)
        patterns = [
            (_MAGIC.split(wanted)[0].rpartition("/")[0], wanted),
            (folder, posixpath.join(glob.escape(folder), name)),
        ]
        for listed, pattern in patterns if _MAGIC.search(wanted) else ():
            matches = re.compile(glob_translate(pattern)).match
            if found := {each: facts for each, facts in below(listed).items() if matches(each)}:
                return found
    return {}


def _plain(path: str) -> str:
    """A path below RAW without detours; "" for RAW itself."""
    plain = posixpath.normpath(path)
    return "" if plain == "." else plain
