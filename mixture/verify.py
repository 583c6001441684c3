"""Verification: that the bytes on disk are those that were written, and that index and shards agree."""

import io
from pathlib import Path, PurePosixPath

import msgspec
import polars as pl
import pyarrow as pa
from msgspec import Struct
from PIL import Image

from mixture.errors import VlmixError
from mixture.files import sha256
from mixture.images import content_hash
from mixture.manifest import NAME, SAMPLES_NAME, Manifest, Shard
from mixture.pool import Pool, Progress, silent
from mixture.reader import Mixture
from mixture.reader import open as open_mixture
from mixture.samples import VIEW, SampleJson, open_index
from mixture.tar import scan

_MOST = 20  # problems told per shard


class Verified(Struct, frozen=True):
    """What was looked at, and everything that was wrong, one sentence each."""

    samples: int
    shards: int
    bytes: int
    problems: list[str]


class VerifyJob(Struct, frozen=True):
    """One shard of `root`, whose rows are row group `group` of its index."""

    root: Path
    shard: Shard
    group: int


def verify(folder: Path, *, workers: int = 1, progress: Progress = silent) -> Verified:
    """Check every file of a mixture against the manifest, and every member against the index; of a view, its own files
    and those shards of its root that it refers to."""
    store = open_mixture(folder)
    root = store.local_root
    problems = _check_files(folder, store.manifest)
    used = _referred(folder, store, problems)
    jobs = [
        VerifyJob(root, shard, number)
        for number, shard in enumerate(store.root_manifest.shards)
        if used is None or shard.path in used
    ]
    if store.root_manifest.shards and not problems:
        problems += _check_layout(store)
    done = 0
    progress("verifying shards", 0, len(jobs))
    with Pool(workers) as pool:
        for _, found in pool.map(verify_shard, jobs):
            problems += found
            done += 1
            progress("verifying shards", done, len(jobs))
    return Verified(store.manifest.samples, len(jobs), sum(job.shard.bytes for job in jobs), sorted(problems))


def _check_files(folder: Path, manifest: Manifest) -> list[str]:
    problems = []
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif sha256(path) != digest:
            problems.append(f"{name}: its bytes differ from the manifest's checksum")
    expected = {*manifest.files, NAME, *(shard.path for shard in manifest.shards)}
    folders = {str(PurePosixPath(name).parent) for name in expected}
    there = {p.relative_to(folder).as_posix() for p in (*folder.glob("*"), *folder.glob("train/*"))}
    # Hidden files are other tools' (.gitattributes, .nv-meta).
    stray = {name for name in there - expected - folders if not PurePosixPath(name).name.startswith(".")}
    problems += [f"{name}: not part of the mixture" for name in sorted(stray)]
    return problems


def _referred(folder: Path, store: Mixture, problems: list[str]) -> set[str] | None:
    """Shards that a view needs (None: all), after comparing its index with the root's rows."""
    if store.manifest.parent is None:
        if not problems:
            open_index(folder / SAMPLES_NAME)
        return None
    try:
        mine = pl.read_parquet(folder / SAMPLES_NAME)
        if len(mine) != store.manifest.samples:
            problems.append(f"{SAMPLES_NAME}: {len(mine)} rows, the manifest says {store.manifest.samples}")
        names = [name for name in VIEW.names if name != "row"]
        root = pl.read_parquet(store.local_root / SAMPLES_NAME, columns=names)
        if not root[mine["row"]].equals(mine.select(names)):
            problems.append(f"{SAMPLES_NAME}: rows differ from the root's")
        return set(mine["shard"].unique())
    except (VlmixError, pl.exceptions.PolarsError, OSError) as error:
        problems.append(str(error).splitlines()[0])
        return None


def _check_layout(store: Mixture) -> list[str]:
    frame = pl.read_parquet(store.local_root / SAMPLES_NAME, columns=["key", "id", "shard"])
    problems = []
    if len(frame) != store.root_manifest.samples:
        problems.append(f"{SAMPLES_NAME}: {len(frame)} rows, the manifest says {store.root_manifest.samples}")
    for column in ("key", "id"):
        if frame[column].n_unique() != len(frame):
            problems.append(f"{SAMPLES_NAME}: a {column} stands twice")
    listed = [(shard.path, shard.samples) for shard in store.root_manifest.shards]
    if frame.group_by("shard", maintain_order=True).len().rows() != listed:
        problems.append(f"{SAMPLES_NAME}: shards and their sample counts differ from the manifest's")
    return problems


def verify_shard(job: VerifyJob) -> list[str]:
    """Problems of one shard; runs in a worker."""
    name, path = job.shard.path, job.root / job.shard.path
    if not path.is_file():
        return [f"{name}: missing"]
    problems = []
    if path.stat().st_size != job.shard.bytes:
        problems.append(f"{name}: {path.stat().st_size} bytes, the manifest says {job.shard.bytes}")
    elif sha256(path) != job.shard.sha256:
        problems.append(f"{name}: its bytes differ from the manifest's checksum")
    try:
        members = {member.name: member for member in scan(path)}
        rows = open_index(job.root / SAMPLES_NAME).read_row_group(job.group).to_pylist()
    except (VlmixError, pa.ArrowException, OSError, ValueError, IndexError) as error:
        return [*problems, f"{name}: {error}"]
    expected = set()
    with path.open("rb") as file:
        for row in rows:
            for kind, suffix in (("image", "jpg"), ("json", "json")):
                if not row[f"{kind}_size"]:
                    continue
                member = f"{row['key']}.{suffix}"
                expected.add(member)
                found = members.get(member)
                if found is None or (found.offset, found.size) != (row[f"{kind}_offset"], row[f"{kind}_size"]):
                    problems.append(f"{name}: {member} is not where the index says")
                    continue
                file.seek(found.offset)
                data = file.read(found.size)
                wrong = _image_problem(data, row) if kind == "image" else _json_problem(data, row)
                if wrong:
                    problems.append(f"{name}: {member} {wrong}")
    problems += [f"{name}: {member} is not in the index" for member in sorted(members.keys() - expected)]
    if len(problems) > _MOST:
        problems = [*problems[:_MOST], f"{name}: and {len(problems) - _MOST} more problems"]
    return problems


def _image_problem(data: bytes, row: dict[str, object]) -> str | None:
    if content_hash(data) != row["image_hash"]:
        return "differs from the hash in the index"
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.size != (row["width"], row["height"]):
                return f"is {image.size[0]}x{image.size[1]}, the index says {row['width']}x{row['height']}"
            image.draft(None, (image.width // 8, image.height // 8))
            image.load()
    except Exception as error:  # whatever Pillow makes of broken bytes
        return f"does not decode: {error}"
    return None


def _json_problem(data: bytes, row: dict[str, object]) -> str | None:
    try:
        sample = msgspec.to_builtins(msgspec.json.decode(data, type=SampleJson))
    except msgspec.DecodeError as error:
        return f"is no sample: {error}"
    for key, value in sample.items():
        if row[key] != value:
            return f"has another `{key}` than the index"
    return None
