"""Writing shards: vlmix against `webdataset.ShardWriter` and against a plain copy of the same bytes.

The samples are the same for all: 20,000 pre-encoded pairs of a JPEG (61 KB on average) and a JSON document (0.9 KB),
1.24 GB in shards of 5,000. They are taken from a pool of 2,000 pairs in memory, larger than a processor's cache. Each
contender in a process of its own, alternating, into a folder that is emptied in between:

- `webdataset`: `ShardWriter` with its defaults but `maxcount`;
- `vlmix tar`: `mixture.dataset.tar.TarWriter` into atomic files, the way a build writes;
- `vlmix all`: `dataset.shards.store_rows`, with everything else a build keeps of a sample: the hash of its image, its
  row of the index, the sha256 of the shard;
- `copy`: the same bytes from memory to files, one `write` per shard, the limit of the file system.

Memory files (/dev/shm) are used where they are large enough, so that the writers are measured and not the disk. On a
disk, pass `--work` and mind that vlmix waits for the disk (`fsync`) and ShardWriter does not, unless `--sync`.
"""

import argparse
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import (
    TIMES,
    Clock,
    Facts,
    Measured,
    alternate,
    machine,
    megabytes,
    parser,
    perform,
    run,
    spread,
    table,
    warm_arrow,
    work_folder,
)

SAMPLES, SAMPLES_PER_SHARD, POOL = 20_000, 5_000, 2_000
IMAGE_BYTES, JSON_BYTES = 61_000, 900
LINES = {
    "webdataset": "webdataset ShardWriter",
    "tar": "vlmix TarWriter",
    "store": "vlmix store_rows",
    "copy": "limit: plain copy",
}
Pair = tuple[bytes, bytes]


def pool() -> list[Pair]:
    """Images of log-normal size and JSON documents; the same for every process."""
    rng = random.Random(0)
    sigma = 0.4
    sizes = [IMAGE_BYTES * rng.lognormvariate(-(sigma**2) / 2, sigma) for _ in range(POOL)]
    images = [b"\xff\xd8\xff\xe0" + rng.randbytes(int(size) - 4) for size in sizes]
    texts = [b'{"text":"' + rng.randbytes(JSON_BYTES // 2 - 6).hex().encode() + b'"}' for _ in range(POOL)]
    return list(zip(images, texts))


def samples(pairs: list[Pair], first: int, count: int) -> Iterator[tuple[int, Pair]]:
    for position in range(first, first + count):
        yield position, pairs[position % len(pairs)]


def shards(total: int) -> Iterator[tuple[int, int]]:
    """(number of the first sample, samples) of each shard."""
    for first in range(0, total, SAMPLES_PER_SHARD):
        yield first, min(SAMPLES_PER_SHARD, total - first)


def webdataset(folder: Path, pairs: list[Pair], total: int) -> Iterator[None]:
    from webdataset import ShardWriter

    yield
    with ShardWriter(str(folder / "train-%06d.tar"), maxcount=SAMPLES_PER_SHARD, verbose=0) as writer:
        for position, (image, text) in samples(pairs, 0, total):
            writer.write({"__key__": f"{position:09d}", "jpg": image, "json": text})


def tar(folder: Path, pairs: list[Pair], total: int) -> Iterator[None]:
    from vlmix.mixture.dataset.shards import sample_key, shard_path
    from vlmix.mixture.dataset.tar import TarWriter
    from vlmix.mixture.io.atomic import atomic_write

    yield
    for number, (first, count) in enumerate(shards(total)):
        with atomic_write(folder / shard_path(number)) as file:
            writer = TarWriter(file)
            for position, (image, text) in samples(pairs, first, count):
                key = sample_key(position)
                writer.add(f"{key}.jpg", image)
                writer.add(f"{key}.json", text)
            writer.close()


def store(folder: Path, pairs: list[Pair], total: int) -> Iterator[None]:
    import numpy as np

    from vlmix.mixture.build.images import StoredForm
    from vlmix.mixture.build.shard import ImageFiles, ShardJob, ShardRows
    from vlmix.mixture.dataset.schema import SAMPLES as SCHEMA
    from vlmix.mixture.dataset.shards import Members, store_rows
    from vlmix.mixture.record import Conversation, ImageRef, Round

    rounds = tuple(Round("word " * 15, "word " * 15, "short_answer") for _ in range(5))
    turns = [text for qa in rounds for text in (qa.question, qa.answer)]
    forms = [StoredForm("none", turn=False, width=640, height=480)]
    none = np.empty(0, dtype=np.int64)
    images = ImageFiles(none, [], [], none, none, folder, full=True)

    def members(rows: ShardRows, first: int, count: int) -> Iterator[Members]:
        for position, (image, text) in samples(pairs, first, count):
            name = f"{position:012d}"
            held = (ImageRef(f"coco/train2017/{name}.jpg", 640, 480),)
            rows.note(Conversation(f"vqav2/{name}", "vqav2", rounds, held), turns, forms, (image,))
            yield Members(text, (image,))

    warm_arrow()
    yield
    for number, (first, count) in enumerate(shards(total)):
        job = ShardJob(
            number,
            first,
            folder,
            folder / "work",
            parts=[],
            part=none,
            row=none,
            natural_index=np.arange(first, first + count),
            repeat=np.ones(count, dtype=np.int32),
            num_words=np.full(count, 150, dtype=np.int32),
            prompts="llava",
            images=images,
            schema=b"",
        )
        rows = ShardRows(job, SCHEMA)
        store_rows(members(rows, first, count), rows.columns, job, SCHEMA, with_tar=True)


def copy(folder: Path, pairs: list[Pair], total: int) -> Iterator[None]:
    # One block for all shards: more memory than the others touch would be slower for that alone.
    block = b"".join(part for _, pair in samples(pairs, 0, min(SAMPLES_PER_SHARD, total)) for part in pair)
    sizes = [len(block) * count // min(SAMPLES_PER_SHARD, total) for _, count in shards(total)]
    yield
    for number, size in enumerate(sizes):
        with (folder / f"train-{number:06d}").open("wb", buffering=0) as file:
            file.write(memoryview(block)[:size])


WRITERS = {"webdataset": webdataset, "tar": tar, "store": store, "copy": copy}


def contender(args: argparse.Namespace) -> Facts:
    """Prepare one writer, time it, count what it wrote, and remove that. A writer first prepares, up to its `yield`."""
    total = round(SAMPLES * args.scale)
    with _emptied(args.work / "out") as folder:
        writer = WRITERS[args.contender](folder, pool(), total)
        next(writer)
        clock = Clock()
        next(writer, None)
        if args.sync:
            _sync(folder)
        facts = clock.facts()
        tars = [path for path in folder.rglob("train-*") if path.is_file()]
        return {**facts, "samples": total, "bytes": sum(path.stat().st_size for path in tars)}


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _sync(folder: Path) -> None:
    for path in folder.rglob("train-*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def memory_files(needed: int) -> Path | None:
    """/dev/shm if it has room for `needed` bytes twice."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() and shutil.disk_usage(folder).free > 2 * needed else None


def show(measured: dict[str, Measured]) -> str:
    base = measured["webdataset"].seconds
    rows = []
    for name, found in measured.items():
        samples, size = found.facts["samples"], found.facts["bytes"]
        rates = [
            f"{samples / found.seconds:,.0f}",
            f"{size / found.seconds / 1e6:,.0f}",
            f"{base / found.seconds:.2f}x",
        ]
        rows.append([LINES[name], *spread(found), *rates, megabytes(size), megabytes(found.peak)])
    return table(["writer", *TIMES, "samples/s", "MB/s", "speed", "written", "peak RSS"], rows)


def main() -> None:
    arguments = parser(__doc__, repeat=3)
    arguments.add_argument("--sync", action="store_true", help="wait for the disk after every contender")
    args = arguments.parse_args()
    if perform(args, dict.fromkeys(WRITERS, contender)):
        return
    needed = round(SAMPLES * args.scale * (IMAGE_BYTES + JSON_BYTES + 2_000))
    memory = None if args.work else memory_files(needed)
    print(machine("vlmix", "webdataset", "xxhash"))
    with work_folder(args, memory) as work:
        print(f"writing to {'memory files' if memory else 'the file system of the work folder'}\n")
        options = ["--scale", str(args.scale), *(["--sync"] if args.sync else [])]
        measured = alternate(tuple(LINES), args.repeat, lambda name: run(name, work, *options))
        print(show(measured))
    print("\nspeed relative to ShardWriter; seconds best .. worst of the runs; peak RSS holds the samples (124 MB)")


if __name__ == "__main__":
    main()
