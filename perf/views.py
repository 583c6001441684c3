"""A view of a tenth of a mixture of 665,298 samples: the real command, and the call inside it.

A mixture folder is made up first: manifest.json with its shards, and samples.parquet with every column, about 1 KB of
text in each row and row groups of 5,000, as a build leaves them. No shard is needed, because a view refers to them.
Then, each in a process of its own:

- `vlmix subsample MIX --ratio 0.1 --out VIEW`, from the start of the process to its end;
- `mixture.selection.subset.subsample`, imports excluded;
- the floor: the columns of the index that a view copies, read by polars.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from common import (
    TIMES,
    Clock,
    Facts,
    Measured,
    alternate,
    execute,
    machine,
    megabytes,
    parser,
    perform,
    run,
    spread,
    table,
    work_folder,
)

RATIO = 0.1
# Source -> (samples, rounds of each), about LLaVA-1.5's 665K.
SOURCES = {
    "llava_instruct": (157_712, 3),
    "vqav2": (82_783, 5),
    "okvqa": (8_998, 1),
    "gqa": (72_140, 9),
    "ocrvqa": (80_000, 5),
    "aokvqa": (66_160, 1),
    "textcaps": (21_953, 1),
    "refcoco": (48_447, 5),
    "vg": (86_417, 10),
    "sharegpt": (40_688, 4),
}
TEXT_BYTES, TURNS_POOL = 1_000, 20_000
LINES = {"command": "vlmix subsample", "call": "subsample()", "read": "floor: index read"}


def generate(args: argparse.Namespace) -> Facts:
    from vlmix.mixture.dataset.schema import SAMPLES
    from vlmix.mixture.io.atomic import write_parquet

    clock = Clock()
    folder = args.work / "mixture"
    (folder / "train").mkdir(parents=True)
    batches = _batches({name: max(round(count * args.scale), 1) for name, (count, _) in SOURCES.items()})
    write_parquet(folder / "samples.parquet", batches, SAMPLES)
    _manifest(folder, args.scale)
    return clock.facts(bytes=(folder / "samples.parquet").stat().st_size)


def _batches(counts: dict[str, int]) -> Any:
    """Row groups of shuffled samples."""
    import numpy as np

    from vlmix.mixture.build.recipe import Recipe

    rng = np.random.default_rng(0)
    size = Recipe(name="", sources={}).samples_per_shard
    names = list(counts)
    labels = np.repeat(np.arange(len(names)), list(counts.values()))
    numbers = np.concatenate([np.arange(count) for count in counts.values()])
    order = rng.permutation(len(labels))
    turns = _turns(rng)
    for first in range(0, len(order), size):
        part = order[first : first + size]
        yield _batch(first // size, first, part, [names[i] for i in labels[part]], numbers[part], turns, rng)


def _turns(rng: Any) -> Any:
    """A pool of turn texts of 30 to 300 characters, in words."""
    import numpy as np
    import pyarrow as pa

    letters = np.array(list("etaoinshrdlcumwfgypb"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 9, 5_000)]
    picked = [rng.integers(0, len(words), size) for size in rng.integers(5, 50, TURNS_POOL)]
    return pa.array([" ".join(words[i] for i in pick) for pick in picked])


def _batch(number: int, first: int, part: Any, sources: list[str], numbers: Any, turns: Any, rng: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    from vlmix.mixture.dataset.schema import SAMPLES
    from vlmix.mixture.dataset.shards import sample_key, shard_path

    count = len(part)
    ids = [f"{source}/{n:012d}" for source, n in zip(sources, numbers.tolist())]
    text_only = np.array([source == "sharegpt" for source in sources])
    rounds = np.array([SOURCES[source][1] for source in sources], dtype=np.int32)
    sizes = np.where(text_only, 0, rng.lognormal(11, 0.4, count)).astype(np.int64)
    texts = rng.lognormal(7.1, 0.3, count).astype(np.int64)
    places = np.cumsum(sizes + texts + 2_048) - sizes - texts
    starts = np.concatenate([[0], np.cumsum(2 * rounds)])
    said = pa.StructArray.from_arrays(
        [
            pa.array(["human", "gpt"] * int(rounds.sum())),
            turns.take(pa.array(rng.integers(0, len(turns), int(starts[-1])))),
        ],
        ["from", "value"],
    )
    hashes = rng.bytes(16 * count).hex()
    paths = [f"images/{id}.jpg" for id in ids]
    images = [
        []
        if bare
        else [
            {
                "path": path,
                "width": 640,
                "height": 480,
                "offset": offset,
                "size": size,
                "xxh3": hashes[32 * i : 32 * i + 32],
                "transform": "none",
            }
        ]
        for i, (bare, path, offset, size) in enumerate(zip(text_only, paths, places.tolist(), sizes.tolist()))
    ]
    columns: dict[str, Any] = {
        "key": [sample_key(first + i) for i in range(count)],
        "id": ids,
        "source": sources,
        "image": ["" if bare else path for path, bare in zip(paths, text_only)],
        "width": np.where(text_only, 0, 640).astype(np.int32),
        "height": np.where(text_only, 0, 480).astype(np.int32),
        "num_images": (~text_only).astype(np.int32),
        "images": images,
        "num_rounds": rounds,
        "num_words": (texts // 6).astype(np.int32),
        "repeat": np.ones(count, dtype=np.int32),
        "natural_index": part,
        "shard": [shard_path(number)] * count,
        "json_offset": places + sizes + 1_024,
        "json_size": texts,
        "conversations": pa.ListArray.from_arrays(pa.array(starts, pa.int32()), said),
        "response_formats": [["short_answer"] * n for n in rounds.tolist()],
        "boxes": [_boxes(source) for source in sources],
        "extra": [""] * count,
    }
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SAMPLES], schema=SAMPLES)


def _boxes(source: str) -> list[dict[str, float]]:
    if source not in ("vg", "refcoco"):
        return []
    return [
        {"round": i, "image": 0, "x1": 1.5 * i, "y1": 20.0, "x2": 100.25, "y2": 50.0} for i in range(SOURCES[source][1])
    ]


def _manifest(folder: Path, scale: float) -> None:
    import msgspec

    from vlmix.mixture.build.recipe import Recipe
    from vlmix.mixture.dataset import manifest as manifests
    from vlmix.mixture.dataset.manifest import Counts, Manifest, Shard, SourceInfo
    from vlmix.mixture.dataset.shards import shard_path

    counts = {name: max(round(count * scale), 1) for name, (count, _) in SOURCES.items()}
    total = sum(counts.values())
    recipe = Recipe(name="made-up", sources={})
    size = recipe.samples_per_shard
    # The selection takes its numbers from the index; these stand for what a build would have counted.
    infos = {name: SourceInfo(license="none", homepage="", counts=Counts(n, n, n, n, n)) for name, n in counts.items()}
    shards = [Shard(shard_path(i // size), min(size, total - i), 600_000_000, "0" * 64) for i in range(0, total, size)]
    manifest = Manifest(
        kind="mixture",
        name=recipe.name,
        seed=recipe.seed,
        recipe=msgspec.to_builtins(recipe),
        samples=total,
        sources=infos,
        shards=shards,
        checksums={},
    )
    manifests.write(folder, manifest)


def call(args: argparse.Namespace) -> Facts:
    from vlmix.mixture.selection.subset import Selection, subsample

    out = args.work / "view"
    clock = Clock()
    manifest = subsample(args.work / "mixture", out, Selection(ratio=RATIO))
    facts = clock.facts()
    shutil.rmtree(out)
    return {**facts, "samples": manifest.samples}


def read(args: argparse.Namespace) -> Facts:
    import polars as pl

    from vlmix.mixture.dataset.schema import SAMPLES, TEXT_COLUMNS

    columns = [name for name in SAMPLES.names if name not in TEXT_COLUMNS]
    clock = Clock()
    pl.read_parquet(args.work / "mixture" / "samples.parquet", columns=columns)
    return clock.facts()


def command(work: Path) -> tuple[Facts, int, int | None]:
    """`vlmix subsample` as a user types it."""
    out = work / "view"
    vlmix = str(Path(sys.executable).with_name("vlmix"))
    found = execute([vlmix, "subsample", str(work / "mixture"), "--ratio", str(RATIO), "--out", str(out)], facts=False)
    shutil.rmtree(out)
    return found


def show(measured: dict[str, Measured]) -> str:
    rows = []
    for name, found in measured.items():
        rows.append([LINES[name], *spread(found), megabytes(found.peak), megabytes(found.anon)])
    return table(["a tenth as a view", *TIMES, "peak RSS", "peak anon"], rows)


def main() -> None:
    args = parser(__doc__, repeat=5).parse_args()
    if perform(args, {"generate": generate, "call": call, "read": read}):
        return
    print(machine("vlmix", "polars", "pyarrow", "numpy"))
    with work_folder(args) as work:
        made, _, _ = run("generate", work, "--scale", str(args.scale))
        measured = alternate(
            tuple(LINES), args.repeat, lambda name: command(work) if name == "command" else run(name, work)
        )
        kept = measured["call"].facts["samples"]
        print(f"\nsamples.parquet {megabytes(made['bytes'])}; the view holds {kept:,} samples\n\n{show(measured)}")
    print("\nseconds best .. worst of the runs; the command includes the start of its process")


if __name__ == "__main__":
    main()
