"""Opening a mixture of 665,298 samples and producing the first batch of 128: all of it, a view, and a part in memory.

The folder is the one of `views.py`; the members of the first batches lie in shards that are otherwise empty (sparse).
Timed, each in a process of its own, imports excluded: `mixture.open`, the order of the epoch and the members of the
first batch; and what the index and the order hold in memory per sample.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from common import TIMES, Clock, Facts, alternate, machine, megabytes, parser, perform, run, spread, table, work_folder
from views import generate as generate_mixture

BATCH = 128
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


def first_batch(args: argparse.Namespace) -> Facts:
    import vlmix

    clock = Clock()
    opened = vlmix.open(args.work / ("view" if args.contender == "view" else "mixture"))
    if args.contender == "part":
        opened = opened.subset(ratio=0.1)
    order = opened.schedule(BATCH)
    batch = [opened.raw(position) for position in order.batch(0).tolist()]
    facts = clock.facts(samples=len(opened), batch=len(batch))
    places, order_arrays = opened._places, (*order._order.args, order.lengths)
    arrays = [places, opened._images, *order_arrays]
    epoch = order.epoch(0)
    arrays += [epoch.samples, epoch.starts]
    return {**facts, "index": sum(array.nbytes for array in arrays)}


CONTENDERS = {"generate": generate, "whole": first_batch, "view": first_batch, "part": first_batch}


def main() -> None:
    args = parser(__doc__, repeat=3).parse_args()
    if perform(args, CONTENDERS):
        return
    print(machine("vlmix", "pyarrow", "numpy"))
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
