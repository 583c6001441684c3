"""Putting a mixture folder together: in `OUT.partial`, shard by shard, so that it appears whole or not at all, and a
killed run continues."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from xxhash import xxh3_128_hexdigest

from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.card import card
from vlmix.mixture.dataset.manifest import CARD_NAME, OVERLAPS_NAME, REJECTS_NAME, SAMPLES_NAME, Counts, Manifest
from vlmix.mixture.dataset.schema import PART_ROWS, index_files, part_name
from vlmix.mixture.dataset.shards import ShardDone, ShardTask, rows_path
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import write_bytes, write_parquet, write_text
from vlmix.mixture.io.digests import file_digest, sha256
from vlmix.mixture.io.pool import Engine, Progress
from vlmix.mixture.io.staging import Staging
from vlmix.mixture.io.storage import Facts
from vlmix.mixture.io.store_lock import Held

AnyJob = TypeVar("AnyJob", bound=ShardTask)


def run_shards(
    write: Callable[[AnyJob], ShardDone],
    jobs: Callable[[int], AnyJob],
    sizes: Sequence[int],
    plan: bytes,
    staging: Staging,
    schema: pa.Schema,
    pool: Engine,
    progress: Progress,
) -> list[ShardDone]:
    """Write the shards `jobs(0)`, `jobs(1)`, … of `sizes` samples and the index of `schema`: the results in order.
    Shards of an earlier run are kept if its `plan`, which holds everything that decides the bytes, was the same."""
    folder, work, store = staging
    count = len(sizes)
    mark, fingerprint = work / "order", xxh3_128_hexdigest(plan).encode()
    if not mark.exists() or mark.read_bytes() != fingerprint:
        shutil.rmtree(folder / "train", ignore_errors=True)
        for stale in work.glob("rows-*"):
            stale.unlink()
        write_bytes(mark, fingerprint)
    there = {} if store is None else store.root.below()
    found = ((number, _finished(number, staging, there)) for number in range(count))
    done = {number: earlier for number, earlier in found if earlier is not None}
    missing = [number for number in range(count) if number not in done]
    progress("writing shards", len(done), count)

    def results() -> Iterator[ShardDone]:
        """Those of all shards, in order, as soon as they are there."""
        running = pool.map(write, map(jobs, missing))
        for number in range(count):
            while number not in done:
                job, result = next(running)
                done[job.number] = result
                progress("writing shards", len(done), count)
            yield done[number]

    write_index(folder, work, sizes, results(), schema, pool)
    if store is not None:
        _check_store(store, list(done.values()))
    return [done[number] for number in range(count)]


def _check_store(store: Held, done: Sequence[ShardDone]) -> None:
    """That a store has the shards that were uploaded, and no others, which an earlier run with another plan left."""
    there, wanted = store.root.below(), {each.shard.path: each for each in done if each.shard is not None}
    for name, each in wanted.items():
        if not _is_stored(each, there):
            what = "is not in the store any more" if name not in there else "was changed since it was written"
            raise VlmixError(f"{store.root.join(name).name} {what}; run the same command again, which writes it anew")
    for name in there.keys() - wanted.keys():
        if name.startswith("train/"):
            store.remove(name)


def _is_stored(done: ShardDone, there: Mapping[str, Facts]) -> bool:
    """Whether a store, which has the files `there`, still has a shard as it was uploaded."""
    assert done.shard is not None
    return bool(done.etag) and there.get(done.shard.path) == Facts(done.shard.bytes, done.etag)


def _finished(number: int, staging: Staging, there: Mapping[str, Facts]) -> ShardDone | None:
    """The result of an earlier run, if its files are still what it wrote; damaged work is absent work. A store has the
    files `there`."""
    folder, work, store = staging
    rows = rows_path(work, number)
    try:
        done = msgspec.msgpack.decode(rows.with_suffix(".done").read_bytes(), type=ShardDone)
        if file_digest(rows) != done.rows:
            return None
        if done.shard is None:
            return done
        if store is not None:
            return done if _is_stored(done, there) else None
        if sha256(folder / done.shard.path) != done.shard.sha256:
            return None
    except (OSError, ValueError):
        return None
    return done


class PartJob(Struct, frozen=True):
    """A part of an index to write: its file, the shards from `first` up to `end` that it holds, the index's schema."""

    path: Path
    work: Path
    first: int
    end: int
    schema: bytes


def write_index(
    folder: Path, work: Path, sizes: Sequence[int], done: Iterable[ShardDone], schema: pa.Schema, pool: Engine
) -> None:
    """samples.parquet of `schema` from the rows that shard writers leave, one row group per shard, of `sizes` rows.

    Up to PART_ROWS rows it is a file, written while the shards are made, which are `done` one after the other; else a
    folder of parts, each of as many whole shards as fit, written side by side when all shards are there.
    """
    index, ends = folder / SAMPLES_NAME, _part_ends(sizes)
    if index.is_dir():  # of a run that was killed
        shutil.rmtree(index)
    index.unlink(missing_ok=True)
    if len(ends) == 1:
        write_parquet(index, (_rows(work, number) for number, _ in enumerate(done)), schema)
        return
    for _ in done:
        pass
    described = schema.serialize().to_pybytes()
    parts = zip([0, *ends], ends)
    jobs = (PartJob(index / part_name(i), work, first, end, described) for i, (first, end) in enumerate(parts))
    for _ in pool.map(write_part, jobs):
        pass


def _part_ends(sizes: Sequence[int]) -> list[int]:
    """The number of the first shard after each part."""
    ends, rows = list[int](), 0
    for number, size in enumerate(sizes):
        if rows and rows + size > PART_ROWS:
            ends.append(number)
            rows = 0
        rows += size
    return [*ends, len(sizes)]


def write_part(job: PartJob) -> None:
    """Write a part of an index; runs in a worker."""
    schema = pa.ipc.read_schema(pa.py_buffer(job.schema))
    write_parquet(job.path, (_rows(job.work, number) for number in range(job.first, job.end)), schema)


def _rows(work: Path, number: int) -> pa.RecordBatch:
    with pa.memory_map(str(rows_path(work, number))) as source:
        return pa.ipc.open_file(source).get_batch(0)


def merge_counts(done: list[ShardDone]) -> dict[str, Counts]:
    """Per source, summed over the shards."""
    counts: dict[str, Counts] = {}
    for shard in done:
        for source, more in shard.counts.items():
            counts[source] = counts.get(source, Counts()) + more
    return counts


def finalize(folder: Path, manifest: Manifest) -> Manifest:
    """Write the card and, last of all, the manifest with the checksums of the other files."""
    index = folder / SAMPLES_NAME
    most_images = pc.max(pq.read_table(index, columns=["num_images"])["num_images"]).as_py()
    write_text(folder / CARD_NAME, card(manifest, most_images))
    beside = (CARD_NAME, REJECTS_NAME, OVERLAPS_NAME)
    named = [*(folder / name for name in beside), *(file.path for file in index_files(index))]
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in named if path.exists()}
    manifest = msgspec.structs.replace(manifest, checksums=files)
    return manifests.write(folder, manifest)
