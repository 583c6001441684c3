"""Verification: that the bytes on disk are those that were written, and that index and shards agree."""

import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
from msgspec import Struct
from PIL import Image

from vlmix.mixture.dataset.groups import groups_of
from vlmix.mixture.dataset.index_checks import COLUMNS, IndexChecks, row_problems
from vlmix.mixture.dataset.manifest import CARD_NAME, NAME, REJECTS_NAME, SAMPLES_NAME, Manifest, Shard, parse
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import SAMPLES, VIEW, Index, SampleJson, check_index, columns_problem, is_index
from vlmix.mixture.dataset.tar import image_member, scan
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.engines import EngineName, start
from vlmix.mixture.io.fetch import fetch
from vlmix.mixture.io.images import MAX_PIXELS, image_xxh3, too_complex, too_much_decoding
from vlmix.mixture.io.pool import Engine, Progress, silent
from vlmix.mixture.io.storage import Local, Location, Remote, StoreError, locate
from vlmix.mixture.keyed import distinct
from vlmix.mixture.record import unsafe_path

_MOST = 20  # problems reported per shard
_PLAIN_SEGMENTS, _PLAIN_SCANS = 50, 20  # of a JPEG: segments before its pixels, scans
_FRAMES = frozenset(bytes([code]) for code in (0xC0, 0xC1, 0xC2))
_PROGRESSIVE = b"\xc2"
_SEGMENTS = _FRAMES | {bytes([code]) for code in (0xC4, 0xDA, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)}
"""Markers, each with a length behind it: frames, tables, scans, restarts, what applications add, comments."""


class Verified(Struct, frozen=True):
    """What was looked at, and everything that was wrong, one sentence each."""

    samples: int
    shards: int
    bytes: int
    problems: list[str]


class Rows(Struct, frozen=True):
    """A row group of one of the files of the index of the mixture whose manifest has the sha256 `of`."""

    where: Location
    group: int
    of: str

    def read(self) -> list[dict[str, Any]]:
        index = Index([self.where]) if isinstance(self.where, Local) else _index_at(self.where.url, self.of)
        return list(index.read_row_group(self.group).to_pylist())


@lru_cache(maxsize=1)
def _index_at(url: str, _: str) -> Index:
    """Kept, as every task of a worker would fetch the file anew."""
    return Index([Remote(url)])


class VerifyJob(Struct, frozen=True):
    """One shard of `root` and its rows; None: the index cannot be read. `decoded`: a build decoded its images. A shard
    of a store is copied into a folder below `copies`, None: below the temporary folder of the worker's machine."""

    root: Location
    copies: Path | None
    shard: Shard
    rows: Rows | None
    prompts: str
    decoded: bool


class RowsJob(Struct, frozen=True):
    """Some rows of an index without shards: those of its row group `number`, counted through all files."""

    number: int
    rows: Rows
    prompts: str


def verify(
    folder: str | Path, *, workers: int | None = None, engine: EngineName = "local", progress: Progress = silent
) -> Verified:
    """Check every file of a mixture against the manifest, every member against the index, and every number against
    what it sums up; of a view, its own files and those shards of its root that it refers to. `folder` may be a URL:
    what is checked is copied to the temporary folder first, a shard by the worker that checks it, and removed then.

    Checks everything, however much is damaged. Raises VlmixError if `folder` is no mixture at all, and for a store that
    refuses or stays down.
    """
    store, problems = _opened(folder)
    if store is None:
        return Verified(0, 0, 0, problems)
    with TemporaryDirectory(prefix="vlmix-verify-") as copies:
        return _verified(store, problems, Path(copies), workers, engine, progress)


def _verified(
    store: Reader, problems: list[str], copies: Path, workers: int | None, engine: EngineName, progress: Progress
) -> Verified:
    index, own_files = store.root_manifest.index, [*store.manifest.checksums, *store.manifest.index]
    is_view, prompts = store.manifest.parent is not None, str(store.root_manifest.recipe["prompts"])
    digests = _Digests()
    root = _at_hand(store.root, index if is_view else own_files, copies / "root", progress)
    folder = _at_hand(store.folder, own_files, copies / "view", progress) if is_view else root
    damaged = _check_files(folder, _names(store.folder), store.manifest, digests)
    there = [_attempt(problems, name, partial(_regular, folder, name)) for name in store.manifest.index]
    used = None
    # Parquet readers answer damage with a crash or all memory as easily as with an error, so what differs from its
    # checksum is not given to them.
    sound = digests.match(root, store.root_manifest, index)
    own = not is_view or digests.match(folder, store.manifest, store.manifest.index)
    if store.manifest.parent is not None and not sound:
        problems.append(f"{store.manifest.parent.path}/{SAMPLES_NAME}: missing, or differs from its checksum")
    places: list[Rows] = []
    if all(there) and sound and own:
        mine, theirs = partial(_index_of, folder, store.manifest), partial(_index_of, root, store.root_manifest)
        near = store.root if engine == "ray" else Local(root)  # workers on other machines have no copies
        used = _referred(mine, theirs, store.manifest, problems)
        _attempt(problems, SAMPLES_NAME, lambda: problems.extend(_check_columns(mine(), store.manifest)))
        _attempt(problems, REJECTS_NAME, lambda: problems.extend(_check_rejects(folder, store.manifest, digests)))
        _attempt(problems, SAMPLES_NAME, lambda: problems.extend(_check_layout(theirs, store.root_manifest)))
        _attempt(problems, SAMPLES_NAME, lambda: places.extend(_places(theirs(), near, store.root_manifest)))
    problems += damaged
    below, decoded = None if engine == "ray" else copies, store.root_manifest.check is msgspec.UNSET
    jobs = [
        VerifyJob(store.root, below, shard, rows, prompts, decoded)
        for shard, rows in zip_longest(store.root_manifest.shards, places[: len(store.root_manifest.shards)])
        if used is None or shard.path in used
    ]
    done = 0
    progress("verifying shards", 0, len(jobs))
    sees = [where.path / NAME for where in (store.root, store.folder) if isinstance(where, Local)]
    with start(engine, workers, sees) as pool:
        if store.manifest.kind == "annotations":
            problems += _check_rows(places, prompts, pool, progress)
        for _, found in pool.map(verify_shard, jobs):
            problems += found
            done += 1
            progress("verifying shards", done, len(jobs))
    for path, where in ((root, store.root), (folder, store.folder)):
        problems = [problem.replace(str(path), where.name) for problem in problems]
    distinct = sorted(dict.fromkeys(problems))
    return Verified(store.manifest.samples, len(jobs), sum(job.shard.bytes for job in jobs), distinct)


def _opened(folder: str | Path) -> tuple[Reader | None, list[str]]:
    """The mixture, and what is wrong with its manifest; without its checksum, if that alone is wrong."""
    place = locate(folder)
    try:
        return Reader.open(folder), []
    except StoreError:
        raise
    except VlmixError as error:
        if not _has_manifest(place):
            raise
        problem = str(error)
    try:
        manifest = parse(place.join(NAME).whole(), NAME, sealed=False)
    except StoreError:
        raise
    except (VlmixError, OSError):
        return None, [problem]
    if manifest.parent is not None:
        return None, [problem]
    return Reader(place, manifest, place, manifest, None), [problem]


def _has_manifest(place: Location) -> bool:
    if isinstance(place, Local):
        return os.path.lexists(place.path / NAME)
    try:
        return place.join(NAME).size() >= 0
    except FileNotFoundError:
        return False


def _at_hand(where: Location, names: Sequence[str], copies: Path, progress: Progress) -> Path:
    """A folder of this machine with files of `where`: itself, or copies of those that the store has."""
    if isinstance(where, Local):
        return where.path
    for number, name in enumerate(dict.fromkeys(names)):
        progress("fetching files", number, len(names))
        with suppress(FileNotFoundError):
            fetch(where.join(name), copies / name)
    return copies


def _names(where: Location) -> set[str]:
    """What lies in a folder, and in those of its folders that hold parts of a mixture."""
    if isinstance(where, Local):
        found = [path for pattern in ("*", "train/*", f"{SAMPLES_NAME}/*") for path in where.path.glob(pattern)]
        return {path.relative_to(where.path).as_posix() for path in found}
    parts = [path.split("/") for path in where.below()]
    return {path[0] for path in parts} | {"/".join(path[:2]) for path in parts if path[0] in ("train", SAMPLES_NAME)}


def _attempt(problems: list[str], about: str, check: Callable[[], object]) -> bool:
    """Run a check; what it raises is a problem too. True if it raised nothing."""
    try:
        check()
    except Exception as error:  # libraries raise whatever they like about damaged files
        problems.append(f"{about}: {(str(error) or type(error).__name__).splitlines()[0][:300]}")
        return False
    except pl.exceptions.PanicException as error:
        problems.append(f"{about}: {str(error).splitlines()[0][:300]}")
        return False
    return True


def _regular(folder: Path, name: str) -> Path:
    """The file `name` of a folder. Raises VlmixError if it is missing, special, or a link that leads out."""
    path = folder / name
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise VlmixError("missing") from None
    except OSError as error:
        raise VlmixError(error.strerror or "cannot be opened") from None
    if not stat.S_ISREG(mode):
        raise VlmixError("not a regular file")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise VlmixError("a link that leads out of the folder; verify a copy that holds the file itself")
    return path


class _Digests:
    """The sha256 of files, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, folder: Path, name: str) -> str:
        """Raises VlmixError as `_regular` does."""
        path = _regular(folder, name)
        if path not in self._known:
            self._known[path] = sha256(path)
        return self._known[path]

    def match(self, folder: Path, manifest: Manifest, names: Sequence[str]) -> bool:
        """Whether files have the checksums that the manifest gives them, where it gives one."""
        try:
            return all(manifest.checksums.get(name) in (None, self.of(folder, name)) for name in names)
        except (VlmixError, OSError):
            return False


def _check_files(folder: Path, there: set[str], manifest: Manifest, digests: _Digests) -> list[str]:
    problems: list[str] = []
    for name, digest in manifest.checksums.items():

        def check(name: str = name, digest: str = digest) -> None:
            if digests.of(folder, name) != digest:
                raise VlmixError("its bytes differ from the manifest's checksum")

        _attempt(problems, name, check)
    expected = {*manifest.checksums, NAME, *(shard.path for shard in manifest.shards)}
    always = {CARD_NAME, *manifest.index} | ({REJECTS_NAME} if manifest.kind != "view" else set())
    problems += [f"{name}: the manifest has no checksum of it" for name in sorted(always - manifest.checksums.keys())]
    folders = {str(PurePosixPath(name).parent) for name in expected}
    # Hidden files are other tools' (.gitattributes, .nv-meta).
    stray = {name for name in there - expected - folders if not PurePosixPath(name).name.startswith(".")}
    problems += [f"{name}: not part of the mixture" for name in sorted(stray)]
    return problems


def _index_of(folder: Path, manifest: Manifest) -> Index:
    return Index([Local(_regular(folder, name)) for name in manifest.index])


def _referred(
    own: Callable[[], Index], of_root: Callable[[], Index], manifest: Manifest, problems: list[str]
) -> set[str] | None:
    """Shards that a view needs (None: all), after comparing its index with the root's rows."""
    if manifest.parent is None:
        _attempt(problems, SAMPLES_NAME, lambda: check_index(own(), SAMPLES_NAME))
        return None
    used: set[str] = set()

    def compare() -> None:
        mine, root = own(), of_root()
        taken, differs = np.zeros(root.group_rows.sum(), dtype=np.bool_), False
        names = [name for name in mine.schema_arrow.names if name != "root_row"]
        if missing := sorted(set(names) - set(root.schema_arrow.names)):
            raise VlmixError(f"the root has no column {missing[0]}")
        for table in mine.batches([*names, "root_row"]):
            used.update(table["shard"].unique().to_pylist())
            rows = table["root_row"].to_numpy()
            if table["root_row"].null_count:
                differs = True
                continue
            if rows.min() < 0 or rows.max() >= len(taken) or taken[rows].any() or not distinct(rows):
                raise VlmixError("its rows are not rows of the root, each once")
            taken[rows] = True
            groups = list(groups_of(rows, root.group_rows))
            theirs = (root.read_row_group(group.number, names).take(pa.array(group.rows)) for group in groups)
            others = pl.DataFrame(pa.concat_tables(theirs)).select(names)
            order = np.concatenate([group.positions for group in groups])
            differs = differs or not pl.DataFrame(table.select(names).take(pa.array(order))).equals(others)
        if differs:
            problems.append(f"{SAMPLES_NAME}: rows differ from the root's")

    return used if _attempt(problems, SAMPLES_NAME, compare) else None


def _check_columns(index: Index, manifest: Manifest) -> list[str]:
    """The index's columns against the manifest and each other."""
    view = manifest.kind == "view"
    if not is_index(index.schema_arrow, VIEW if view else SAMPLES):
        return [f"{SAMPLES_NAME}: its columns are not those of a mixture's index"]
    samples = int(index.group_rows.sum())
    checks = IndexChecks(manifest, samples)
    for table in index.batches(COLUMNS):
        if columns_problem(table):
            whole = (columns_problem(index.read([name])) for name in sorted(COLUMNS, key="repeat".__eq__))
            return [f"{SAMPLES_NAME}: {next(problem for problem in whole if problem)}"]
        (checks.add_counts if view else checks.add)(pl.DataFrame(table))
    found = checks.count_problems() if view else checks.problems(lambda: _ids(index))
    problems = [f"{SAMPLES_NAME}: {problem}" for problem in found]
    if samples != manifest.samples:
        problems.append(f"{SAMPLES_NAME}: {samples} rows, the manifest says {manifest.samples}")
    return problems


def _ids(index: Index) -> Iterator[pl.Series]:
    return (pl.Series(table["id"]) for table in index.batches(["id"]))


def _check_rejects(folder: Path, manifest: Manifest, digests: _Digests) -> list[str]:
    if REJECTS_NAME not in manifest.checksums:
        return [] if not manifest.rejects else [f"{REJECTS_NAME}: missing, the manifest counts rejects"]
    path = _regular(folder, REJECTS_NAME)
    if not digests.match(folder, manifest, [REJECTS_NAME]):
        return []  # which is reported already
    frame = pl.read_parquet(path, columns=["source", "reason"])
    found: dict[str, dict[str, int]] = {}
    for source, reason, count in frame.group_by("source", "reason").len().rows():
        found.setdefault(source, {})[reason] = count
    return [] if found == manifest.rejects else [f"{REJECTS_NAME}: its counts differ from the manifest's"]


def _check_layout(of_root: Callable[[], Index], manifest: Manifest) -> list[str]:
    """Shards and row groups, where there are shards."""
    shards = manifest.shards
    if not shards:
        return []
    index, problems, found = of_root(), [], dict[str | None, int]()
    for table in index.batches(["shard"]):
        for shard, count in pl.DataFrame(table).group_by("shard", maintain_order=True).len().rows():
            found[shard] = found.get(shard, 0) + count
    if list(found.items()) != [(shard.path, shard.samples) for shard in shards]:
        problems.append(f"{SAMPLES_NAME}: shards and their sample counts differ from the manifest's")
    if index.group_rows.tolist() != [shard.samples for shard in shards]:
        problems.append(f"{SAMPLES_NAME}: its row groups are not the shards")
    return problems


def _places(index: Index, where: Location, manifest: Manifest) -> list[Rows]:
    """Where the rows of each shard are, or of an index without shards all of them; `where` has its files."""
    places = (index.place(number) for number in range(index.num_row_groups))
    return [Rows(where.join(manifest.index[file]), group, manifest.sha256) for file, group in places]


def _check_rows(places: list[Rows], prompts: str, pool: Engine, progress: Progress) -> list[str]:
    """The rows of an index without shards."""
    found: dict[int, tuple[list[str], int]] = {}
    progress("verifying rows", 0, len(places))
    for job, result in pool.map(verify_rows, [RowsJob(*numbered, prompts) for numbered in enumerate(places)]):
        found[job.number] = result
        progress("verifying rows", len(found), len(places))
    problems = [problem for number in sorted(found) for problem in found[number][0]]
    return _few(problems, SAMPLES_NAME, sum(count for _, count in found.values()))


def verify_rows(job: RowsJob) -> tuple[list[str], int]:
    """The first problems of some rows, and how many there are; runs in a worker."""
    try:
        rows = job.rows.read()
    except StoreError:
        raise
    except Exception as error:  # Arrow, about damage of any kind
        return [f"{SAMPLES_NAME}: {(str(error) or type(error).__name__).splitlines()[0][:300]}"], 1
    wrong = (f"{SAMPLES_NAME}: {row['key']} {wrong}" for row in rows if (wrong := row_problem(row, job.prompts)))
    problems = list(wrong)
    return problems[:_MOST], len(problems)


def _few(problems: list[str], about: str, count: int | None = None) -> list[str]:
    """The first of `count` problems, by default of these."""
    more = (len(problems) if count is None else count) - _MOST
    return [*problems[:_MOST], f"{about}: and {more} more problems"] if more > 0 else problems


def row_problem(row: dict[str, Any], prompts: str) -> str | None:
    """The first thing in a row of the index that contradicts the rest of it; None if nothing does."""
    if missing := [name for name in SAMPLES.names if row[name] is None]:
        return f"has no {missing[0]}"
    parts = [*row["conversations"], *row["boxes"], *row["images"]]
    if any(part is None or None in part.values() for part in parts) or None in row["response_formats"]:
        return "has no value in a list"
    for image in row["images"]:
        if problem := unsafe_path(image["path"]):
            return problem
    return next(iter(row_problems(row, prompts)), None)


def verify_shard(job: VerifyJob) -> list[str]:
    """Problems of one shard; runs in a worker."""
    if isinstance(job.root, Local):
        return _shard_problems(job, job.root.path)
    with TemporaryDirectory(prefix="vlmix-verify-", dir=job.copies) as copies:
        with suppress(FileNotFoundError):
            fetch(job.root.join(job.shard.path), Path(copies, job.shard.path))
        return [problem.replace(copies, job.root.name) for problem in _shard_problems(job, Path(copies))]


def _shard_problems(job: VerifyJob, root: Path) -> list[str]:
    """The same for one that lies below `root`."""
    name = job.shard.path
    problems: list[str] = []
    try:
        path = _regular(root, name)
    except VlmixError as error:
        return [f"{name[:200]}: {error}"]
    if path.stat().st_size != job.shard.bytes:
        problems.append(f"{name}: {path.stat().st_size} bytes, the manifest says {job.shard.bytes}")
    elif sha256(path) != job.shard.sha256:
        problems.append(f"{name}: its bytes differ from the manifest's checksum")
    built = job.decoded and not problems
    try:
        members = {member.name: member for member in scan(path)}
        if job.rows is None:
            return problems
        rows = job.rows.read()
    except StoreError:
        raise
    except Exception as error:  # Arrow and the tar reader, about damage of any kind
        return [*problems, f"{name}: {(str(error) or type(error).__name__).splitlines()[0][:300]}"]
    expected = set()
    with path.open("rb") as file:
        for row in rows:
            if wrong := row_problem(row, job.prompts):
                problems.append(f"{name}: {row['key']} {wrong}")
                if wrong.startswith("has no "):
                    continue
            places = {image_member(row["key"], number): image for number, image in enumerate(row["images"])}
            places[f"{row['key']}.json"] = {"offset": row["json_offset"], "size": row["json_size"]}
            for member, place in places.items():
                expected.add(member)
                found = members.get(member)
                if found is None or (found.offset, found.size) != (place["offset"], place["size"]):
                    problems.append(f"{name}: {member} is not where the index says")
                    continue
                if row["shard"] != name:
                    problems.append(f"{name}: {member} is in {row['shard']!r} by the index")
                file.seek(found.offset)
                data = file.read(found.size)
                wrong = _image_problem(data, place, built) if "path" in place else _json_problem(data, row)
                if wrong:
                    problems.append(f"{name}: {member} {wrong}")
    problems += [f"{name}: {member} is not in the index" for member in sorted(members.keys() - expected)]
    return _few(problems, name)


def _image_problem(data: bytes, row: dict[str, Any], built: bool) -> str | None:
    """`built`: the whole shard is as a build wrote it that decoded images. Then what their headers say is enough; the
    others are decoded."""
    if image_xxh3(data) != row["xxh3"]:
        return "differs from the hash in the index"
    if built and plain_jpeg_size(data) == (row["width"], row["height"]):
        return None
    if problem := too_complex(data):
        return f"has {problem}"
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.size != (row["width"], row["height"]):
                return f"is {image.size[0]}x{image.size[1]}, the index says {row['width']}x{row['height']}"
            if problem := too_much_decoding(image, data):
                return f"has {problem}"
            image.draft(None, (image.width // 8, image.height // 8))
            image.load()
    except Exception as error:  # whatever Pillow makes of broken bytes
        return f"does not decode: {error}"
    return None


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG by its header. None if it may be anything but whole, and as cameras and encoders write
    it."""
    size, components, at = (0, 0), b"", 2
    if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return None
    for _ in range(_PLAIN_SEGMENTS):
        mark, code, length = data[at : at + 1], data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4])
        if mark != b"\xff" or code not in _SEGMENTS or length < 2:
            return None
        if code == b"\xda":
            # A decoder reads one scan where the first has all components, and the counting takes longest.
            few = data[at + 4 : at + 5] == components or data.count(b"\xff\xda") <= _PLAIN_SCANS
            return size if few and 0 < size[0] * size[1] <= MAX_PIXELS else None
        if code in _FRAMES:
            size = int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
            components = b"" if code == _PROGRESSIVE else data[at + 9 : at + 10]
        at += 2 + length
    return None


def _json_problem(data: bytes, row: dict[str, Any]) -> str | None:
    try:
        sample = msgspec.to_builtins(msgspec.json.decode(data, type=SampleJson))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"is no sample: {error}"
    images = [{name: image[name] for name in ("path", "width", "height")} for image in row["images"]]
    for key, value in sample.items():
        if (images if key == "images" else row[key]) != value:
            return f"has another `{key}` than the index"
    return None
