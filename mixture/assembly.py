"""Putting a mixture folder together: in `OUT.partial`, shard by shard, so that it appears whole or not at all, and a
killed run continues."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import pyarrow as pa
from xxhash import xxh3_128_hexdigest

from mixture import manifest as manifests
from mixture.card import card
from mixture.errors import VlmixError
from mixture.files import alone, disk_errors, file_digest, sha256, write_parquet, write_text
from mixture.manifest import REJECTS_NAME, SAMPLES_NAME, Counts, Manifest
from mixture.pool import Pool, Progress
from mixture.samples import SAMPLES
from mixture.shards import ShardDone, rows_path


class Job(Protocol):
    """What every shard job knows."""

    @property
    def number(self) -> int: ...
    @property
    def out(self) -> Path: ...
    @property
    def work(self) -> Path: ...


AnyJob = TypeVar("AnyJob", bound=Job)


@contextmanager
def assembling(out: Path) -> Iterator[tuple[Path, Path]]:
    """(folder to fill, its work folder) for the new folder `out`, held by this process alone. When the block ends well
    the work is removed and the folder takes its name."""
    if out.exists():
        raise VlmixError(f"{out} exists already; choose another --out or remove it")
    partial = out.with_name(out.name + ".partial")
    work = partial / "work"
    with disk_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with alone(partial) as mine:
        if not mine:
            raise VlmixError(f"{partial} is being written by another run; wait for it or stop it")
        try:
            if out.exists():
                raise VlmixError(f"{out} was made by another run meanwhile")
            with disk_errors(partial):
                work.mkdir(exist_ok=True)
            for leftover in partial.rglob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            yield partial, work
            with disk_errors(out):
                shutil.rmtree(work)
                partial.replace(out)
        except BaseException:
            if not any(path.is_file() for path in partial.rglob("*")):
                shutil.rmtree(partial, ignore_errors=True)  # nothing was made that a next run could use
            raise


def run_shards(
    write: Callable[[AnyJob], ShardDone],
    jobs: Sequence[AnyJob],
    plan: bytes,
    pool: Pool,
    progress: Progress,
) -> list[ShardDone]:
    """The results of all jobs in order. Shards of an earlier run are kept if its `plan`, which tells everything that
    decides the bytes, was the same."""
    if not jobs:
        return []
    _keep_only_if_same(jobs[0].out, jobs[0].work, plan)
    done = {job.number: earlier for job in jobs if (earlier := _finished(job)) is not None}
    progress("writing shards", len(done), len(jobs))
    for job, result in pool.map(write, [job for job in jobs if job.number not in done]):
        done[job.number] = result
        progress("writing shards", len(done), len(jobs))
    return [done[number] for number in sorted(done)]


def _keep_only_if_same(partial: Path, work: Path, plan: bytes) -> None:
    """Forget the shards of an interrupted build whose order was another (a changed recipe, changed images)."""
    mark = work / "order"
    fingerprint = xxh3_128_hexdigest(plan)
    if mark.exists() and mark.read_bytes() == fingerprint.encode():
        return
    shutil.rmtree(partial / "train", ignore_errors=True)
    for stale in work.glob("rows-*"):
        stale.unlink()
    write_text(mark, fingerprint)


def _finished(job: Job) -> ShardDone | None:
    """The result of an earlier run, if its files are still what it wrote; damaged work is absent work."""
    rows = rows_path(job.work, job.number)
    try:
        done = msgspec.msgpack.decode(rows.with_suffix(".done").read_bytes(), type=ShardDone)
        whole = file_digest(rows) == done.rows
        if done.shard is not None:
            whole = whole and sha256(job.out / done.shard.path) == done.shard.sha256
    except (OSError, ValueError):
        return None
    return done if whole else None


def write_index(folder: Path, work: Path, done: list[ShardDone]) -> None:
    """samples.parquet from the rows that the shard writers left, one row group per shard."""

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(len(done)):
            with pa.memory_map(str(rows_path(work, number))) as source:
                yield pa.ipc.open_file(source).get_batch(0)

    write_parquet(folder / SAMPLES_NAME, batches(), SAMPLES)


def merge_counts(done: list[ShardDone]) -> dict[str, Counts]:
    """Per source, summed over the shards."""
    counts: dict[str, Counts] = {}
    for shard in done:
        for source, more in shard.counts.items():
            counts[source] = counts.get(source, Counts()) + more
    return counts


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the card and, last of all, the manifest with the checksums of the other files."""
    write_text(folder / "README.md", card(manifest))
    names = ("README.md", REJECTS_NAME, SAMPLES_NAME)
    files = {name: sha256(folder / name) for name in names if (folder / name).exists()}
    manifest = msgspec.structs.replace(manifest, files=files)
    return manifests.write(folder, manifest)
