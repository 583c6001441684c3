"""Raw samples from local shards: stock webdataset and vlmix on the same files.

A mixture of N samples (JPEG-sized noise of 61 KB on average, 0.9 KB of JSON) is written once with vlmix's own writer,
which is kind to the peer: shards of its own ShardWriter have PAX headers, which it is slow to read. Then, each in a
process of its own and after one untimed pass that fills the page cache:

- `webdataset.WebDataset(shards, shardshuffle=False)`, its samples taken one by one, nothing decoded;
- `mixture.raw(i)` in mixture order, and in a random order, which webdataset has no way to read;
- the limit: the bytes of the same files copied once, into a buffer that is used again.
"""

import argparse
from pathlib import Path
from typing import Any

from common import TIMES, Clock, Facts, alternate, machine, megabytes, parser, perform, run, spread, table, work_folder

SAMPLES, SHARD = 20_000, 2_000
LINES = {
    "webdataset": "webdataset",
    "vlmix": "vlmix, in order",
    "shuffled": "vlmix, shuffled",
    "copy": "limit: bytes copied",
}


def generate(args: argparse.Namespace) -> Facts:
    import random
    from functools import partial

    import pyarrow as pa

    from vlmix.mixture.dataset.manifest import Manifest, SourceInfo
    from vlmix.mixture.dataset.schema import SAMPLES as SCHEMA
    from vlmix.mixture.dataset.shards import Members, ShardDone, ShardTask, moved, store_rows
    from vlmix.mixture.dataset.writer import finalize, merge_counts, write_index
    from vlmix.mixture.io.images import image_xxh3
    from vlmix.mixture.io.pool import Pool

    clock = Clock()
    rng = random.Random(0)
    pool = [rng.randbytes(int(rng.lognormvariate(11, 0.2))) for _ in range(200)]
    folder, work = args.work / "mixture", args.work / "rows"
    text = rng.randbytes(400).hex()

    def row(position: int) -> tuple[dict[str, Any], Members]:
        turns = [{"from": "human", "value": text}]
        columns = {"id": f"x/{position}", "source": "x", "image": f"{position}.jpg", "width": 640, "height": 480}
        counts = {"num_images": 1, "num_rounds": 1, "num_words": 1, "repeat": 1, "natural_index": position}
        data = pool[position % len(pool)]
        image = {"path": f"{position}.jpg", "width": 640, "height": 480, "xxh3": image_xxh3(data), "transform": "none"}
        rest = {"images": [image], "response_formats": ["free"], "boxes": [], "extra": ""}
        json = f'{{"id":"x/{position}","conversations":[{{"from":"human","value":"{text}"}}]}}'.encode()
        return {**columns, **counts, **rest, "conversations": turns}, Members(json, (data,))

    total = round(SAMPLES * args.scale)
    done: list[ShardDone] = []
    for first in range(0, total, SHARD):
        rows, members = zip(*(row(position) for position in range(first, min(first + SHARD, total))))
        table = pa.Table.from_pylist(rows, SCHEMA)
        task = ShardTask(len(done), first, folder, work)
        done.append(store_rows(members, partial(moved, table), task, SCHEMA, with_tar=True))
    sizes = [shard.shard.samples for shard in done if shard.shard]
    with Pool(1) as pool_of_one:
        write_index(folder, work, sizes, done, SCHEMA, pool_of_one)
    manifest = Manifest(
        kind="mixture",
        name="noise",
        seed=0,
        recipe={"name": "noise", "order": "natural", "prompts": "llava", "samples_per_shard": SHARD},
        samples=total,
        sources={"x": SourceInfo(license="", homepage="", counts=merge_counts(done)["x"])},
        shards=[d.shard for d in done if d.shard is not None],
        checksums={},
    )
    finalize(folder, manifest)
    return clock.facts(bytes=sum(shard.bytes for shard in manifest.shards))


def webdataset(args: argparse.Namespace) -> Facts:
    import webdataset as wds

    shards = [str(path) for path in sorted((args.work / "mixture").glob("train/*.tar"))]

    def read() -> int:
        return sum(len(sample["jpg"]) + len(sample["json"]) for sample in wds.WebDataset(shards, shardshuffle=False))

    read()
    clock = Clock()
    return clock.facts(bytes=read())


def vlmix(args: argparse.Namespace, shuffled: bool = False) -> Facts:
    import random

    import vlmix

    opened = vlmix.open(args.work / "mixture")
    positions = list(range(len(opened)))
    if shuffled:
        random.Random(0).shuffle(positions)

    def read() -> int:
        total = 0
        for position in positions:
            sample = opened.raw(position)
            total += sum(map(len, sample.jpegs)) + len(sample.json)
        return total

    read()
    clock = Clock()
    return clock.facts(bytes=read())


def copy(args: argparse.Namespace) -> Facts:
    paths = sorted((args.work / "mixture").glob("train/*.tar"))

    buffer = memoryview(bytearray(2**18))

    def read() -> int:
        total = 0
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
        return total

    read()
    clock = Clock()
    return clock.facts(bytes=read())


CONTENDERS = {
    "generate": generate,
    "webdataset": webdataset,
    "vlmix": vlmix,
    "shuffled": lambda args: vlmix(args, shuffled=True),
    "copy": copy,
}


def main() -> None:
    args = parser(__doc__, repeat=3).parse_args()
    if perform(args, CONTENDERS):
        return
    print(machine("vlmix", "webdataset"))
    with work_folder(args, Path("/dev/shm") if Path("/dev/shm").is_dir() else None) as work:
        options = ("--scale", str(args.scale))
        run("generate", work, *options)
        measured = alternate(tuple(LINES), args.repeat, lambda name: run(name, work, *options))
    samples = round(SAMPLES * args.scale)
    base = measured["webdataset"].seconds
    rows = [
        [
            LINES[name],
            *spread(found),
            f"{samples / found.seconds:,.0f}",
            f"{found.facts['bytes'] / found.seconds / 1e6:,.0f}",
            f"{base / found.seconds:.1f}x",
            megabytes(found.anon),
        ]
        for name, found in measured.items()
    ]
    print(table(["raw samples", *TIMES, "samples/s", "MB/s", "speed", "memory"], rows))


if __name__ == "__main__":
    main()
