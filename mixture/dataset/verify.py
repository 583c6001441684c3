"""Verification: that the bytes on disk are those that were written, and that index and shards agree."""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import polars as pl
import pyarrow.parquet as pq
from msgspec import Struct
from PIL import Image

from vlmix.mixture.dataset.index_checks import COLUMNS, count_problems, index_problems, row_problems
from vlmix.mixture.dataset.manifest import CARD_NAME, NAME, REJECTS_NAME, SAMPLES_NAME, Manifest, Shard, parse
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import SAMPLES, VIEW, SampleJson, columns_problem, is_index, open_index
from vlmix.mixture.dataset.shards import image_member
from vlmix.mixture.dataset.tar import scan
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.images import image_xxh3, too_complex, too_much_decoding
from vlmix.mixture.io.pool import Pool, Progress, silent
from vlmix.mixture.io.storage import Local
from vlmix.mixture.record import unsafe_path

_MOST = 20  # problems reported per shard


class Verified(Struct, frozen=True):
    """What was looked at, and everything that was wrong, one sentence each."""

    samples: int
    shards: int
    bytes: int
    problems: list[str]


class VerifyJob(Struct, frozen=True):
    """One shard of `root`, whose rows are row group `group` of its index; None: the index cannot be read."""

    root: Path
    shard: Shard
    group: int | None
    prompts: str


def verify(folder: Path, *, workers: int = 1, progress: Progress = silent) -> Verified:
    """Check every file of a mixture against the manifest, every member against the index, and every number against
    what it sums up; of a view, its own files and those shards of its root that it refers to.

    Checks everything, however much is damaged. Raises VlmixError if `folder` is no mixture at all.
    """
    store, problems = _opened(folder)
    if store is None:
        return Verified(0, 0, 0, problems)
    root = store.local_root
    damaged = _check_files(folder, store.manifest)
    index_is_there = _attempt(problems, SAMPLES_NAME, lambda: _regular(folder, SAMPLES_NAME))
    used = None
    # Parquet readers answer damage with a crash or all memory as easily as with an error, so what differs from its
    # checksum is not given to them.
    sound = _matches(root, store.root_manifest)
    readable = index_is_there and sound and (store.manifest.parent is None or _matches(folder, store.manifest))
    if store.manifest.parent is not None and not sound:
        problems.append(f"{store.manifest.parent.path}/{SAMPLES_NAME}: missing, or differs from its checksum")
    if readable:
        used = _referred(folder, store, problems)
        _attempt(problems, SAMPLES_NAME, lambda: problems.extend(_check_columns(folder, store.manifest)))
        _attempt(problems, REJECTS_NAME, lambda: problems.extend(_check_rejects(folder, store.manifest)))
        _attempt(problems, SAMPLES_NAME, lambda: problems.extend(_check_layout(store)))
    problems += damaged
    jobs = [
        VerifyJob(root, shard, number if readable else None, str(store.root_manifest.recipe["prompts"]))
        for number, shard in enumerate(store.root_manifest.shards)
        if used is None or shard.path in used
    ]
    if store.manifest.kind == "annotations" and readable:
        _attempt(
            problems, SAMPLES_NAME, lambda: problems.extend(_check_rows(folder, str(store.manifest.recipe["prompts"])))
        )
    done = 0
    progress("verifying shards", 0, len(jobs))
    with Pool(workers) as pool:
        for _, found in pool.map(verify_shard, jobs):
            problems += found
            done += 1
            progress("verifying shards", done, len(jobs))
    distinct = sorted(dict.fromkeys(problems))
    return Verified(store.manifest.samples, len(jobs), sum(job.shard.bytes for job in jobs), distinct)


def _opened(folder: Path) -> tuple[Reader | None, list[str]]:
    """The mixture, and what is wrong with its manifest; without its checksum, if that alone is wrong."""
    try:
        return Reader.open(folder), []
    except VlmixError as error:
        if not os.path.lexists(folder / NAME):
            raise
        problem = str(error)
    try:
        place = Local(folder.resolve())
        manifest = parse(place.join(NAME).whole(), NAME, sealed=False)
    except (VlmixError, OSError):
        return None, [problem]
    if manifest.parent is not None:
        return None, [problem]
    return Reader(place, manifest, place, manifest, None), [problem]


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


def _matches(folder: Path, manifest: Manifest, name: str = SAMPLES_NAME) -> bool:
    """Whether a file has the checksum that the manifest gives it, if it gives one."""
    try:
        path = _regular(folder, name)
        return name not in manifest.checksums or sha256(path) == manifest.checksums[name]
    except (VlmixError, OSError):
        return False


def _check_files(folder: Path, manifest: Manifest) -> list[str]:
    problems: list[str] = []
    for name, digest in manifest.checksums.items():

        def check(name: str = name, digest: str = digest) -> None:
            if sha256(_regular(folder, name)) != digest:
                raise VlmixError("its bytes differ from the manifest's checksum")

        _attempt(problems, name, check)
    expected = {*manifest.checksums, NAME, *(shard.path for shard in manifest.shards)}
    always = {CARD_NAME, SAMPLES_NAME} | ({REJECTS_NAME} if manifest.kind != "view" else set())
    problems += [f"{name}: the manifest has no checksum of it" for name in sorted(always - manifest.checksums.keys())]
    folders = {str(PurePosixPath(name).parent) for name in expected}
    there = {p.relative_to(folder).as_posix() for p in (*folder.glob("*"), *folder.glob("train/*"))}
    # Hidden files are other tools' (.gitattributes, .nv-meta).
    stray = {name for name in there - expected - folders if not PurePosixPath(name).name.startswith(".")}
    problems += [f"{name}: not part of the mixture" for name in sorted(stray)]
    return problems


def _referred(folder: Path, store: Reader, problems: list[str]) -> set[str] | None:
    """Shards that a view needs (None: all), after comparing its index with the root's rows."""
    if store.manifest.parent is None:
        _attempt(problems, SAMPLES_NAME, lambda: open_index(folder / SAMPLES_NAME))
        return None
    used: set[str] = set()

    def compare() -> None:
        mine = pl.read_parquet(folder / SAMPLES_NAME)
        names = [name for name in mine.columns if name != "root_row"]
        root = pl.read_parquet(_regular(store.local_root, SAMPLES_NAME), columns=names)
        if mine["root_row"].is_duplicated().any() or not mine["root_row"].is_between(0, len(root) - 1).all():
            raise VlmixError("its rows are not rows of the root, each once")
        if not root[mine["root_row"]].equals(mine.select(names)):
            problems.append(f"{SAMPLES_NAME}: rows differ from the root's")
        used.update(mine["shard"].unique())

    return used if _attempt(problems, SAMPLES_NAME, compare) else None


def _check_columns(folder: Path, manifest: Manifest) -> list[str]:
    """The index's columns against the manifest and each other."""
    view = manifest.kind == "view"
    file = pq.ParquetFile(folder / SAMPLES_NAME)
    if not is_index(file.schema_arrow, VIEW if view else SAMPLES):
        return [f"{SAMPLES_NAME}: its columns are not those of a mixture's index"]
    table = file.read(COLUMNS)
    if problem := columns_problem(table):
        return [f"{SAMPLES_NAME}: {problem}"]
    frame = pl.DataFrame(pl.from_arrow(table))
    problems = [] if view else [f"{SAMPLES_NAME}: {problem}" for problem in index_problems(frame, manifest)]
    if view:
        problems += [f"{SAMPLES_NAME}: {problem}" for problem in count_problems(frame, manifest)]
    if len(frame) != manifest.samples:
        problems.append(f"{SAMPLES_NAME}: {len(frame)} rows, the manifest says {manifest.samples}")
    return problems


def _check_rejects(folder: Path, manifest: Manifest) -> list[str]:
    if REJECTS_NAME not in manifest.checksums:
        return [] if not manifest.rejects else [f"{REJECTS_NAME}: missing, the manifest counts rejects"]
    path = _regular(folder, REJECTS_NAME)
    if not _matches(folder, manifest, REJECTS_NAME):
        return []  # which is reported already
    frame = pl.read_parquet(path, columns=["source", "reason"])
    found: dict[str, dict[str, int]] = {}
    for source, reason, count in frame.group_by("source", "reason").len().rows():
        found.setdefault(source, {})[reason] = count
    return [] if found == manifest.rejects else [f"{REJECTS_NAME}: its counts differ from the manifest's"]


def _check_layout(store: Reader) -> list[str]:
    """Shards and row groups, where there are shards."""
    shards = store.root_manifest.shards
    if not shards:
        return []
    path = _regular(store.local_root, SAMPLES_NAME)
    frame = pl.read_parquet(path, columns=["shard"])
    problems = []
    listed = [(shard.path, shard.samples) for shard in shards]
    if frame.group_by("shard", maintain_order=True).len().rows() != listed:
        problems.append(f"{SAMPLES_NAME}: shards and their sample counts differ from the manifest's")
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if groups != [shard.samples for shard in shards]:
        problems.append(f"{SAMPLES_NAME}: its row groups are not the shards")
    return problems


def _check_rows(folder: Path, prompts: str) -> list[str]:
    """The rows of an index without shards."""
    file = open_index(folder / SAMPLES_NAME)
    problems: list[str] = []
    for group in range(file.num_row_groups):
        problems += [
            f"{SAMPLES_NAME}: {row['key']} {wrong}"
            for row in file.read_row_group(group).to_pylist()
            if (wrong := row_problem(row, prompts))
        ]
    return _few(problems, SAMPLES_NAME)


def _few(problems: list[str], about: str) -> list[str]:
    more = len(problems) - _MOST
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
    name = job.shard.path
    problems: list[str] = []
    try:
        path = _regular(job.root, name)
    except VlmixError as error:
        return [f"{name[:200]}: {error}"]
    if path.stat().st_size != job.shard.bytes:
        problems.append(f"{name}: {path.stat().st_size} bytes, the manifest says {job.shard.bytes}")
    elif sha256(path) != job.shard.sha256:
        problems.append(f"{name}: its bytes differ from the manifest's checksum")
    try:
        members = {member.name: member for member in scan(path)}
        if job.group is None:
            return problems
        rows = open_index(job.root / SAMPLES_NAME).read_row_group(job.group).to_pylist()
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
                wrong = _image_problem(data, place) if "path" in place else _json_problem(data, row)
                if wrong:
                    problems.append(f"{name}: {member} {wrong}")
    problems += [f"{name}: {member} is not in the index" for member in sorted(members.keys() - expected)]
    return _few(problems, name)


def _image_problem(data: bytes, row: dict[str, object]) -> str | None:
    if image_xxh3(data) != row["xxh3"]:
        return "differs from the hash in the index"
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
