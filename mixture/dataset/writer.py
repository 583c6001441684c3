"""Putting a mixture folder together: in `OUT.partial`, shard by shard, so that it appears whole or not at all, and a
killed run continues."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from xxhash import xxh3_128_hexdigest

from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.card import card
from vlmix.mixture.dataset.manifest import CARD_NAME, REJECTS_NAME, SAMPLES_NAME, Counts, Manifest
from vlmix.mixture.dataset.schema import index_files
from vlmix.mixture.dataset.shards import ShardDone, ShardTask, rows_path
from vlmix.mixture.io.atomic import write_bytes, write_parquet, write_text
from vlmix.mixture.io.digests import file_digest, sha256
from vlmix.mixture.io.pool import Pool, Progress

AnyJob = TypeVar("AnyJob", bound=ShardTask)


def run_shards(
    write: Callable[[AnyJob], ShardDone],
    jobs: Sequence[AnyJob],
    plan: bytes,
    pool: Pool,
    progress: Progress,
) -> list[ShardDone]:
    """The results of all jobs in order. Shards of an earlier run are kept if its `plan`, which holds everything that
    decides the bytes, was the same."""
    if not jobs:
        return []
    mark, fingerprint = jobs[0].work / "order", xxh3_128_hexdigest(plan).encode()
    if not mark.exists() or mark.read_bytes() != fingerprint:
        shutil.rmtree(jobs[0].out / "train", ignore_errors=True)
        for stale in jobs[0].work.glob("rows-*"):
            stale.unlink()
        write_bytes(mark, fingerprint)
    done = {job.number: earlier for job in jobs if (earlier := _finished(job)) is not None}
    progress("writing shards", len(done), len(jobs))
    for job, result in pool.map(write, [job for job in jobs if job.number not in done]):
        done[job.number] = result
        progress("writing shards", len(done), len(jobs))
    return [done[number] for number in sorted(done)]


def _finished(job: ShardTask) -> ShardDone | None:
    """The result of an earlier run, if its files are still what it wrote; damaged work is absent work."""
    rows = rows_path(job.work, job.number)
    try:
        done = msgspec.msgpack.decode(rows.with_suffix(".done").read_bytes(), type=ShardDone)
        if file_digest(rows) != done.rows:
            return None
        if done.shard is not None and sha256(job.out / done.shard.path) != done.shard.sha256:
            return None
    except (OSError, ValueError):
        return None
    return done


def write_index(folder: Path, work: Path, done: list[ShardDone], schema: pa.Schema) -> None:
    """samples.parquet of `schema` from the rows that the shard writers left, one row group per shard."""

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(len(done)):
            with pa.memory_map(str(rows_path(work, number))) as source:
                yield pa.ipc.open_file(source).get_batch(0)

    write_parquet(folder / SAMPLES_NAME, batches(), schema)


def merge_counts(done: list[ShardDone]) -> dict[str, Counts]:
    """Per source, summed over the shards."""
    counts: dict[str, Counts] = {}
    for shard in done:
        for source, more in shard.counts.items():
            counts[source] = counts.get(source, Counts()) + more
    return counts


def finalize(folder: Path, manifest: Manifest) -> Manifest:
    """Write the card and, last of all, the manifest with the checksums of the other files."""
    most_images = pc.max(pq.read_table(folder / SAMPLES_NAME, columns=["num_images"])["num_images"]).as_py()
    write_text(folder / CARD_NAME, card(manifest, most_images))
    index = [str(file.path.relative_to(folder)) for file in index_files(folder / SAMPLES_NAME)]
    names = (CARD_NAME, REJECTS_NAME, *index)
    files = {name: sha256(folder / name) for name in names if (folder / name).exists()}
    manifest = msgspec.structs.replace(manifest, checksums=files)
    return manifests.write(folder, manifest)
