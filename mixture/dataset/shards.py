"""One shard: samples to a tar and to their rows of the index; and which samples a shard leads with."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.dataset.manifest import Counts, Shard
from vlmix.mixture.dataset.tar import TarWriter, image_member
from vlmix.mixture.io.atomic import atomic_write, write_bytes
from vlmix.mixture.io.digests import file_digest
from vlmix.mixture.io.store_lock import Held
from vlmix.mixture.keyed import Indices

_TOGETHER = 4 * 2**20  # bytes that are hashed and written at once


class ShardTask(Struct, frozen=True):
    """What every job of a shard knows: its number, the mixture position of its first sample, the folder to fill, the
    folder of the stage before, and the place in a store where the shard belongs; None: in the folder."""

    number: int
    first: int
    out: Path
    work: Path
    store: Held | None


def shard_path(number: int) -> str:
    return f"train/train-{number:06d}.tar"


def sample_key(position: int) -> str:
    return f"{position:09d}"


class ShardDone(Struct, frozen=True):
    """The result of a ShardJob; also kept beside the rows, so that a resumed build need not write it again."""

    shard: Shard | None
    counts: dict[str, Counts]
    rows: str
    """xxh3-128 of the file of index rows."""
    etag: str = ""
    """Of the shard in a store."""


class Members(Struct, frozen=True):
    """What goes into the tar of a sample."""

    json: bytes
    images: Sequence[bytes]


class Places(Struct, frozen=True):
    """Where members lie in a shard: [n, 2] offset and size of each JSON, [m, 2] of each image, zeros without a tar."""

    json: NDArray[np.int64]
    images: NDArray[np.int64]


def rows_path(work: Path, number: int) -> Path:
    return work / f"rows-{number:06d}.arrow"


def store_rows(
    samples: Iterable[Members],
    columns: Callable[[Places], dict[str, pa.Array]],
    task: ShardTask,
    schema: pa.Schema,
    *,
    with_tar: bool,
) -> ShardDone:
    """Write samples to a tar under the keys `task.first`, `task.first + 1`, … and keep their rows of `schema` in
    `task.work`. `columns` is asked for all columns but those of the samples' places once all samples were taken."""
    name = shard_path(task.number) if with_tar else ""
    path = task.out / name
    places: list[tuple[int, int]] = []
    images: list[tuple[int, int]] = []
    digest, count, size = "", 0, 0
    with atomic_write(path) if with_tar else nullcontext() as file, _Hashed(file) if file else nullcontext() as hashed:
        tar = TarWriter(hashed) if hashed else None
        for count, sample in enumerate(samples, start=1):
            if tar:
                key = sample_key(task.first + count - 1)
                images += [tar.add(image_member(key, nth), data)[1:] for nth, data in enumerate(sample.images)]
                places.append(tar.add(f"{key}.json", sample.json)[1:])
        if tar and hashed:
            tar.close()
            digest, size = hashed.digest(), tar.position
    if not with_tar:
        places = [(0, 0)] * count
    where = np.array(places, dtype=np.int64).reshape(-1, 2)
    made = columns(Places(where, np.array(images, dtype=np.int64).reshape(-1, 2)))
    made |= {
        "key": pa.array([sample_key(task.first + number) for number in range(count)], pa.string()),
        "shard": pa.array([name] * count, pa.string()),
        "json_offset": pa.array(where[:, 0]),
        "json_size": pa.array(where[:, 1]),
    }
    shard = Shard(name, count, size, digest) if with_tar else None
    etag = ""
    if task.store is not None and with_tar:
        etag = task.store.put(name, path).etag
        path.unlink()
    return keep_rows(pa.record_batch([made[field.name] for field in schema], schema=schema), task, shard, etag)


def keep_rows(batch: pa.RecordBatch, task: ShardTask, shard: Shard | None, etag: str = "") -> ShardDone:
    """Keep a shard's rows of the index in `task.work`, and beside them, last of all, what was done."""
    rows = rows_path(task.work, task.number)
    with atomic_write(rows) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    done = ShardDone(shard, _counts(batch), file_digest(rows), etag)
    write_bytes(rows.with_suffix(".done"), msgspec.msgpack.encode(done))
    return done


def moved(table: pa.Table, places: Places) -> dict[str, pa.Array]:
    """The columns of rows of an index whose samples were stored again at `places`."""
    columns = {name: column.combine_chunks() for name, column in zip(table.column_names, table.columns)}
    images = columns["images"]
    stored = images.flatten()
    spots = places.images if len(places.images) else np.zeros((len(stored), 2), dtype=np.int64)
    fields = {field.name: stored.field(field.name) for field in stored.type}
    fields |= {"offset": pa.array(spots[:, 0]), "size": pa.array(spots[:, 1])}
    struct = pa.StructArray.from_arrays(list(fields.values()), fields=list(stored.type))
    return columns | {"images": listed(pc.list_value_length(images).to_numpy(), struct, images.type)}


def _counts(batch: pa.RecordBatch) -> dict[str, Counts]:
    """What each source gives to a shard."""
    summed = ("repeat", "num_rounds", "num_words", "num_images")
    table = pa.Table.from_batches([batch.select(["source", *summed])])
    groups = table.group_by("source").aggregate([([], "count_all"), *((name, "sum") for name in summed)])
    return {row.pop("source"): Counts(*row.values()) for row in groups.to_pylist()}


class _Hashed:
    """Writes to a file and hashes what it writes, in two threads beside the one that makes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self._waiting: list[bytes | memoryview] = []
        self._size = 0
        self._threads = ThreadPoolExecutor(2)
        self._running: list[Future[Any]] = []

    def write(self, data: bytes | memoryview) -> None:
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= _TOGETHER:
            self._pass_on()

    def digest(self) -> str:
        """Hex sha256 of everything, once all of it is written."""
        self._pass_on()
        self._wait()
        return self._sha256.hexdigest()

    def _pass_on(self) -> None:
        self._wait()
        data, self._waiting, self._size = b"".join(self._waiting), [], 0
        self._running = [self._threads.submit(each, data) for each in (self._sha256.update, self._file.write)]

    def _wait(self) -> None:
        for each in self._running:
            each.result()

    def __enter__(self) -> "_Hashed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()


def listed(counts: Sequence[int] | NDArray[np.integer], values: pa.Array, type: pa.ListType) -> pa.ListArray:
    """A column of lists: the first `counts[0]` of `values`, and so on."""
    ends = np.cumsum(counts, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(np.append(np.int32(0), ends)), values, type=type)


def structs(type: pa.StructType, columns: Sequence[Sequence[object] | NDArray[np.integer]]) -> pa.StructArray:
    """A column of structs from the values of their fields."""
    arrays = [pa.array(column, field.type) for field, column in zip(type, columns)]
    return pa.StructArray.from_arrays(arrays, fields=list(type))


def lead_with_images(order: Indices, has_image: NDArray[np.bool_], shard: int) -> Indices:
    """[N] `order`, the samples by number, changed inside each shard of `shard` samples so that its first five are image
    samples, because HF datasets infers types from them; one with fewer than five leads with those it has. `has_image`
    [N] is by the samples' numbers."""
    order = order.copy()
    for start in range(0, len(order), shard):
        part = order[start : start + shard]
        with_image = np.flatnonzero(has_image[part])[:5]
        rest = np.setdiff1d(np.arange(len(part)), with_image, assume_unique=True)
        order[start : start + shard] = part[np.concatenate([with_image, rest])]
    return order
