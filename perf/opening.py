"""Opening a mixture of 665,298 samples and producing the first batch of 128: all of it, a view, and a part in memory.

The folder is the one of `views.py`; the members of the first batches lie in shards that are otherwise empty (sparse).
Timed, each in a process of its own, imports excluded: `mixture.open`, the order of the epoch and the members of the
first batch; and what the index and the order hold in memory per sample.

`--many 26000000` instead makes up that many samples, their index in parts, and reads the first batch through a loader
with two workers: once where the order has to be computed, once where the machine has it. Memory is then that of all
three processes, shared pages counted once. Two samples each show one picture; with `--share 8` they are kept together.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from common import (
    TIMES,
    Clock,
    Facts,
    alternate,
    machine,
    megabytes,
    parser,
    perform,
    run,
    spread,
    table,
    watched,
    work_folder,
)
from views import generate as generate_mixture

BATCH = 128
SHARD, IMAGE, TEXT = 5_000, 100_000, 512  # samples of a shard, bytes of a picture at the most and of a text
STEPS = 8  # whose texts are there
LINES = {"whole": "100 %", "view": "view of 10 %", "part": "10 % in memory, sampled anew"}


def generate(args: argparse.Namespace) -> Facts:
    import msgspec
    import polars as pl

    import vlmix
    from vlmix.mixture.dataset import manifest as manifests
    from vlmix.mixture.selection.subset import Selection, subsample

    facts = generate_mixture(args)
    folder = args.work / "mixture"
    opened = vlmix.open(folder)
    end = (pl.col("json_offset") + pl.col("json_size")).max()
    ends = dict(opened.samples.group_by("shard").agg(end).collect().iter_rows())
    shards = [msgspec.structs.replace(shard, bytes=ends[shard.path]) for shard in opened.manifest.shards]
    for shard in shards:
        with (folder / shard.path).open("wb") as file:
            os.truncate(file.fileno(), shard.bytes)
    manifests.write(folder, msgspec.structs.replace(opened.manifest, shards=shards))
    subsample(folder, args.work / "view", Selection(ratio=0.1))
    whole = vlmix.open(folder)
    for part in (whole, vlmix.open(args.work / "view"), whole.subset(ratio=0.1)):
        _write_headers(folder, part)
    return facts


def _write_headers(folder: Path, part: Any) -> None:
    """The tar headers of the texts of a part's first batch, at which the reader looks when it opens a shard."""
    from vlmix.mixture.dataset.shards import sample_key
    from vlmix.mixture.dataset.tar import BLOCK, header

    batch = part.schedule(BATCH).batch(0)
    columns = (part.column(name).take(batch).to_pylist() for name in ("shard", "json_offset", "json_size"))
    for row, shard, offset, size in zip(part.rows[batch].tolist(), *columns):
        with (folder / shard).open("r+b") as file:
            file.seek(offset - BLOCK)
            file.write(header(f"{sample_key(row)}.json", size))


def generate_many(folder: Path, samples: int) -> None:
    """A mixture of `samples`, a tenth of them text only: the index in parts, with every column, and empty shards."""
    import msgspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vlmix.mixture.build.recipe import Recipe
    from vlmix.mixture.dataset import manifest as manifests
    from vlmix.mixture.dataset import schema
    from vlmix.mixture.dataset.manifest import Counts, Manifest, Shard, SourceInfo
    from vlmix.mixture.dataset.shards import shard_path
    from vlmix.mixture.io.digests import sha256

    (folder / "train").mkdir(parents=True)
    (folder / "samples.parquet").mkdir()
    shards, checksums = [], {}
    for part, start in enumerate(range(0, samples, schema.PART_ROWS)):
        path = folder / "samples.parquet" / schema.part_name(part)
        with pq.ParquetWriter(path, schema.SAMPLES, compression="zstd", compression_level=3) as writer:
            for first in range(start, min(start + schema.PART_ROWS, samples), SHARD):
                columns, end = _columns(first, min(SHARD, samples - first))
                writer.write_table(pa.table(columns, schema.SAMPLES), row_group_size=SHARD)
                shards.append(Shard(shard_path(len(shards)), min(SHARD, samples - first), end, "0" * 64))
        checksums[f"samples.parquet/{path.name}"] = sha256(path)
    for shard in shards:
        with (folder / shard.path).open("wb") as file:
            os.truncate(file.fileno(), shard.bytes)
    recipe = Recipe(name="many", sources={})
    counts = Counts(samples, samples, samples, samples, samples)
    manifest = Manifest(
        kind="mixture",
        name=recipe.name,
        seed=0,
        recipe=msgspec.to_builtins(recipe),
        samples=samples,
        sources={"made-up": SourceInfo(license="none", homepage="", counts=counts)},
        shards=shards,
        checksums=checksums,
    )
    manifests.write(folder, manifest)


def write_texts(folder: Path, order: Any, steps: int) -> None:
    """Texts for the samples of the first steps, where the index says that they are."""
    import numpy as np

    from vlmix.mixture.dataset.schema import open_index
    from vlmix.mixture.dataset.shards import sample_key, shard_path
    from vlmix.mixture.dataset.tar import BLOCK, header

    said = {"id": "", "source": "made-up", "image": "", "width": 0, "height": 0}
    said |= {"images": [], "conversations": [], "extra": ""}
    rows = np.sort(np.concatenate([order.batch(step) for step in range(steps)]))
    index = open_index(folder / "samples.parquet")
    for number in np.unique(rows // SHARD).tolist():
        places = index.read_row_group(number, ["json_offset"])["json_offset"].to_numpy()
        with (folder / shard_path(number)).open("r+b") as file:
            for row in rows[rows // SHARD == number].tolist():
                file.seek(int(places[row % SHARD]) - BLOCK)
                text = json.dumps({**said, "id": f"made-up/{sample_key(row)}"}).encode()
                file.write(header(f"{sample_key(row)}.json", TEXT) + text.ljust(TEXT))


def _columns(first: int, count: int) -> tuple[dict[str, Any], int]:
    """The columns of a row group from row `first`, and the bytes of its shard."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from vlmix.mixture.dataset.schema import SAMPLES
    from vlmix.mixture.dataset.shards import shard_path

    rng, rows = np.random.default_rng(first), np.arange(first, first + count)
    pictured = rng.random(count) >= 0.1
    sizes = np.where(pictured, rng.integers(IMAGE // 2, IMAGE, count) // 512 * 512, 0)
    places = np.cumsum(sizes + 4 * 512) - sizes - 2 * 512
    number = pc.utf8_lpad(pa.array(rows).cast(pa.string()), 9, "0")
    path = pc.binary_join_element_wise("images/", number, ".jpg", "")
    drawn = np.repeat(np.frombuffer(rng.bytes(16 * count), "V16")[::2], 2)[:count].tobytes().hex().encode()
    hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), count, [None, pa.py_buffer(drawn)])

    def same(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.array([value], kind).take(pa.array(np.zeros(count, dtype=np.int64)))

    def where(value: Any, other: Any, kind: pa.DataType) -> pa.Array:
        return pa.array([value, other], kind).take(pa.array((~pictured).astype(np.int64)))

    kind = SAMPLES.field("images").type.value_type
    values = [path, same(640, pa.int32()), same(480, pa.int32()), pa.array(places), pa.array(sizes)]
    values += [hashes.cast(pa.binary()).cast(pa.string()), same("none", pa.string())]
    images = pa.StructArray.from_arrays(values, fields=list(kind)).filter(pa.array(pictured))
    offsets = pa.array(np.concatenate([[0], np.cumsum(pictured)]), pa.int32())
    text = [{"from": "human", "value": "What is shown here?"}, {"from": "gpt", "value": "Nothing, it is made up."}]
    columns = {
        "key": number,
        "id": pc.binary_join_element_wise("made-up/", number, ""),
        "source": same("made-up", pa.string()),
        "image": pc.if_else(pa.array(pictured), path, ""),
        "width": where(640, 0, pa.int32()),
        "height": where(480, 0, pa.int32()),
        "num_images": where(1, 0, pa.int32()),
        "images": pa.ListArray.from_arrays(offsets, images, type=SAMPLES.field("images").type),
        "num_rounds": same(1, pa.int32()),
        "num_words": pa.array(rng.integers(5, 300, count), pa.int32()),
        "repeat": same(1, pa.int32()),
        "natural_index": pa.array(rows),
        "shard": same(shard_path(first // SHARD), pa.string()),
        "json_offset": pa.array(places + sizes + 512),
        "json_size": same(TEXT, pa.int64()),
        "conversations": same(text, SAMPLES.field("conversations").type),
        "response_formats": same(["free"], SAMPLES.field("response_formats").type),
        "boxes": same([], SAMPLES.field("boxes").type),
        "extra": same("", pa.string()),
    }
    return columns, int(places[-1] + sizes[-1] + 3 * 512)


def first_batch(args: argparse.Namespace) -> Facts:
    import vlmix

    clock = Clock()
    opened = vlmix.open(args.work / ("view" if args.contender == "view" else "mixture"))
    if args.contender == "part":
        opened = opened.subset(ratio=0.1)
    order = opened.schedule(BATCH)
    batch = [opened.raw(position) for position in order.batch(0).tolist()]
    facts = clock.facts(samples=len(opened), batch=len(batch))
    epoch = order.epoch(0)
    arrays = [*(opened._places or {}).values(), *order._columns(), order.lengths, epoch.samples, epoch.starts]
    return {**facts, "index": sum(array.nbytes for array in arrays)}


def ids(samples: list[Any]) -> list[str]:
    return [sample.id for sample in samples]


def loader(args: argparse.Namespace) -> Facts:
    """The first batch of a loader with two workers, which then prepare the others whose texts are there."""
    import vlmix
    from vlmix.torch import StepDataset, make_loader

    clock = Clock()
    opened = vlmix.open(args.work / "many")
    seconds = clock.facts()["seconds"]
    order = opened.schedule(BATCH, share_images=args.share)
    loaded = make_loader(StepDataset(opened, order, ids), 0, STEPS, workers=2)
    batches = iter(loaded)
    first = next(batches)
    facts = clock.facts(samples=len(opened), opened=seconds)
    assert [first, *batches][-1] == [opened[position].id for position in order.rank_batch(STEPS - 1, 0, 1).tolist()]
    return facts


def many(work: Path, samples: int, share: int) -> list[list[str]]:
    """The rows of the table."""
    import vlmix

    os.environ["VLMIX_CACHE"] = str(work / "cache")
    generate_many(work / "many", samples)
    write_texts(work / "many", vlmix.open(work / "many").schedule(BATCH, share_images=share), STEPS)
    shutil.rmtree(work / "cache", ignore_errors=True)
    rows, options = [], ("--share", str(share))
    for name in ("computed", "found"):
        seen = watched([sys.executable, sys.argv[0], "--contender", "loader", "--work", str(work), *options])
        facts = json.loads(seen["output"].splitlines()[-1])
        times = [f"{facts['opened']:.2f}", f"{facts['seconds']:.2f}", f"{seen['cpu']:.1f}"]
        rows.append([name, f"{samples:,}", *times, megabytes(seen["pss"]), megabytes(seen["anon"])])
    return rows


CONTENDERS = {
    "generate": generate,
    "whole": first_batch,
    "view": first_batch,
    "part": first_batch,
    "loader": loader,
}


def main() -> None:
    arguments = parser(__doc__, repeat=3)
    arguments.add_argument("--many", type=int, help="samples of a mixture whose index has parts")
    arguments.add_argument(
        "--share", type=int, default=1, help="samples of a picture that are kept together (default 1)"
    )
    args = arguments.parse_args()
    if perform(args, CONTENDERS):
        return
    print(machine("vlmix", "pyarrow", "numpy"))
    if args.many:
        with work_folder(args) as work:
            rows = many(work, args.many, args.share)
        print(table(["order", "samples", "open", "first batch", "cpu, whole process", "memory", "anonymous"], rows))
        return
    with work_folder(args) as work:
        options = ("--scale", str(args.scale))
        run("generate", work, *options)
        measured = alternate(tuple(LINES), args.repeat, lambda name: run(name, work, *options))
    rows = [
        [
            LINES[name],
            f"{found.facts['samples']:,}",
            *spread(found),
            f"{found.facts['index'] / found.facts['samples']:.0f}",
            megabytes(found.anon),
        ]
        for name, found in measured.items()
    ]
    print(table(["open and first batch", "samples", *TIMES, "index, bytes/sample", "memory"], rows))


if __name__ == "__main__":
    main()
