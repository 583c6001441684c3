"""One shard: samples to a tar and to their rows of the index; and which samples a shard leads with."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.dataset.manifest import Counts, Shard
from vlmix.mixture.dataset.tar import TarWriter
from vlmix.mixture.io.atomic import atomic_write, write_bytes
from vlmix.mixture.io.digests import file_digest, sha256
from vlmix.mixture.keyed import Indices, keyed_order


class ShardTask(Struct, frozen=True):
    """What every job of a shard knows: its number, the mixture position of its first sample, the folder to fill, the
    folder of the stage before."""

    number: int
    first: int
    out: Path
    work: Path


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


class Row(Struct, frozen=True):
    """A sample ready to be stored: everything but its place. `images` are the bytes that go into the tar."""

    source: str
    columns: dict[str, Any]
    json: bytes
    images: Sequence[bytes]


def image_member(key: str, number: int) -> str:
    """The name of a sample's image in the tar: readers of one image find it where it has always been."""
    return f"{key}.{number}.jpg" if number else f"{key}.jpg"


def rows_path(work: Path, number: int) -> Path:
    return work / f"rows-{number:06d}.arrow"


def store_rows(
    rows: Iterator[Row], number: int, first: int, out: Path, work: Path, schema: pa.Schema, *, with_tar: bool
) -> ShardDone:
    """Append samples to a tar under the keys `first`, `first + 1`, … and keep their rows of `schema` in `work`."""
    name = shard_path(number) if with_tar else ""
    path = out / name
    stored: list[dict[str, Any]] = []
    counts: dict[str, Counts] = {}
    with atomic_write(path) if with_tar else nullcontext() as tar_file:
        tar = TarWriter(tar_file) if tar_file else None
        for position, row in enumerate(rows, start=first):
            key, columns = sample_key(position), row.columns
            places = {"json_offset": 0, "json_size": 0}
            images = [{**image, "offset": 0, "size": 0} for image in columns["images"]]
            if tar:
                for nth, (image, data) in enumerate(zip(images, row.images)):
                    member = tar.add(image_member(key, nth), data)
                    image |= {"offset": member.offset, "size": member.size}
                member = tar.add(f"{key}.json", row.json)
                places = {"json_offset": member.offset, "json_size": member.size}
            stored.append({**columns, **places, "images": images, "key": key, "shard": name})
            counts[row.source] = counts.get(row.source, Counts()) + Counts(
                1, columns["repeat"], columns["num_rounds"], columns["num_words"], columns["num_images"]
            )
        if tar:
            tar.close()
    shard = Shard(name, len(stored), path.stat().st_size, sha256(path)) if with_tar else None
    batch = pa.RecordBatch.from_pylist(stored, schema)
    index_rows = rows_path(work, number)
    with atomic_write(index_rows) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(batch)
    done = ShardDone(shard, counts, file_digest(index_rows))
    write_bytes(index_rows.with_suffix(".done"), msgspec.msgpack.encode(done))
    return done


def arrange(
    picked: Indices, ids: Sequence[str], has_image: NDArray[np.bool_], recipe_order: str, seed: int, shard: int
) -> Indices:
    """[N] indices into `picked` in mixture order, for shards of `shard` samples.

    The first five samples of a shard that holds images are image samples, because HF datasets infers types from them;
    a shard with fewer than five leads with those it has. `has_image` and the result index `picked`.
    """
    if recipe_order == "natural":
        order = np.arange(len(picked), dtype=np.int64)
    else:
        order = keyed_order([ids[i] for i in picked], seed, "order")
    for start in range(0, len(order), shard):
        part = order[start : start + shard]
        with_image = np.flatnonzero(has_image[part])[:5]
        rest = np.setdiff1d(np.arange(len(part)), with_image, assume_unique=True)
        order[start : start + shard] = part[np.concatenate([with_image, rest])]
    return order
