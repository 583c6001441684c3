"""Rows of the hub: planning a million of them, and building shards against `datasets.map` with `ShardWriter`.

The rows have FineVision's schema: a list of one image of 30 KB, one to four rounds, and ratings; 100 to a row group.

- `plan`: `vlmix plan` of a tenth of 1,000,000 rows by a rating. Images are not read, so that the files hold the same
  few of them over and over, which Parquet's dictionaries keep once per row group (3 GB instead of 30).
- `few`: `vlmix build` of 20 of 20,000 rows with images of their own, which reads only row groups that hold one of them.
- `vlmix`: `vlmix build` of all 20,000 on two cores;
- `datasets`: the same work as people do it: `load_dataset`, `map` on two processes that decodes every image and makes
  LLaVA's conversations, `filter`, `shuffle`, `ShardWriter`. Images are decoded whole; vlmix decodes JPEGs at an eighth
  of their size, which reads all their data too.

Memory is that of all processes together, without pages of files that are mapped.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from common import (
    TIMES,
    Facts,
    Measured,
    alternate,
    machine,
    megabytes,
    parser,
    perform,
    photographs,
    run,
    spread,
    table,
    watched,
    work_folder,
)

MILLION, BUILT, GROUP, PER_FILE, SHARD, FEW = 1_000_000, 20_000, 100, 10_000, 5_000, 20
LINES = {
    "plan": "plan, 1,000,000 rows",
    "few": "build, 0.1 % of 20,000",
    "vlmix": "build, 20,000 rows",
    "datasets": "datasets.map + ShardWriter",
}
RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")


def write_rows(folder: Path, count: int, images: list[bytes], own: bool) -> None:
    """`count` rows; with `own` every image differs, in a comment behind its pixels."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = pa.struct({"user": pa.string(), "assistant": pa.string()})
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {
            "images": pa.list_(image),
            "texts": pa.list_(turn),
            "source": pa.string(),
            **{f"{name}_ratings": pa.list_(pa.int64()) for name in RATINGS},
            **{f"{name}_min": pa.int64() for name in RATINGS},
        }
    )
    features = {
        "images": [{"_type": "Image"}],
        "texts": [{name: {"dtype": "string", "_type": "Value"} for name in ("user", "assistant")}],
        "source": {"dtype": "string", "_type": "Value"},
        **{f"{name}_ratings": [{"dtype": "int64", "_type": "Value"}] for name in RATINGS},
        **{f"{name}_min": {"dtype": "int64", "_type": "Value"} for name in RATINGS},
    }
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    files = -(-count // PER_FILE)
    for number in range(files):
        with pq.ParquetWriter(folder / f"train-{number:05d}-of-{files:05d}.parquet", schema) as writer:
            for first in range(number * PER_FILE, min(count, (number + 1) * PER_FILE), GROUP):
                rows = []
                for row in range(first, min(first + GROUP, count)):
                    rounds = 1 + row % 4
                    ratings = rng.integers(1, 6, (len(RATINGS), rounds)).tolist()
                    data = images[row % len(images)] + (b"%09d" % row if own else b"")
                    rows.append(
                        {
                            "images": [{"bytes": data, "path": None}],
                            "texts": [
                                {
                                    "user": f"What is shown in picture {row} at place {i}, and why is it there?",
                                    "assistant": f"It is number {7 * row + i}, which somebody put there long ago.",
                                }
                                for i in range(rounds)
                            ],
                            "source": "docvqa",
                            **{f"{name}_ratings": found for name, found in zip(RATINGS, ratings)},
                            **{f"{name}_min": min(found) for name, found in zip(RATINGS, ratings)},
                        }
                    )
                writer.write_table(pa.Table.from_pylist(rows, schema))


def contender(args: argparse.Namespace) -> Facts:
    """Run one contender in processes of its own and watch the memory of all of them."""
    out = args.work / "out"
    sources = {"plan": "million", "few": "built", "vlmix": "built"}
    command = [sys.executable, __file__, "--contender", "map", "--work", str(args.work)]
    if args.contender in sources:
        recipe = args.work / f"{args.contender}.yaml"
        entry: dict[str, Any] = {"builder": "rows", "path": str(args.work / sources[args.contender])}
        entry |= {"plan": {"where": "relevance_min >= 3", "ratio": 0.1}, "few": {"take": FEW}}.get(args.contender, {})
        recipe.write_text(json.dumps({"name": "rows", "samples_per_shard": SHARD, "sources": {"docvqa": entry}}))
        verb = ["plan"] if args.contender == "plan" else ["build", "--out", str(out)]
        vlmix = [sys.executable, "-c", "from vlmix.cli.main import main; main()"]
        command = [*vlmix, verb[0], str(recipe), "--raw", str(args.work), *verb[1:], "--workers", "2", "--json"]
    facts = watched(command)
    facts["samples"] = sum(_members(path) for path in out.rglob("*.tar"))
    shutil.rmtree(out, ignore_errors=True)
    return facts


def _members(path: Path) -> int:
    import tarfile

    with tarfile.open(path) as tar:
        return sum(name.endswith(".json") for name in tar.getnames())


def map_and_write(args: argparse.Namespace) -> Facts:
    """The peer: every image decoded, LLaVA's conversations, shuffled, in shards."""
    import io

    from datasets import Image, List, disable_progress_bars, load_dataset
    from PIL import Image as Pil
    from webdataset import ShardWriter

    disable_progress_bars()
    rows = load_dataset(
        "parquet", data_files=str(args.work / "built/*.parquet"), split="train", cache_dir=str(args.work / "cache")
    ).cast_column("images", List(Image(decode=False)))

    def checked(row: dict[str, Any]) -> dict[str, Any]:
        sizes = []
        try:
            for image in row["images"]:
                with Pil.open(io.BytesIO(image["bytes"])) as picture:
                    picture.load()
                    sizes.append(picture.size)
        except Exception:
            return {"ok": False, "conversations": "", "width": 0, "height": 0}
        turns = []
        for number, text in enumerate(row["texts"]):
            first = "<image>\n" * len(sizes) if not number else ""
            turns += [
                {"from": "human", "value": first + text["user"]},
                {"from": "gpt", "value": text["assistant"]},
            ]
        return {"ok": True, "conversations": json.dumps(turns), "width": sizes[0][0], "height": sizes[0][1]}

    made = rows.map(checked, num_proc=2).filter(lambda ok: ok, input_columns="ok").shuffle(seed=0)
    (args.work / "out").mkdir()
    with ShardWriter(str(args.work / "out/train-%06d.tar"), maxcount=SHARD, verbose=0) as writer:
        for number, row in enumerate(made):
            sample: dict[str, Any] = {"__key__": f"{number:09d}"}
            for nth, image in enumerate(row["images"]):
                sample[f"{nth}.jpg" if nth else "jpg"] = image["bytes"]
            facts = {"id": number, "width": row["width"], "height": row["height"]}
            sample["json"] = {**facts, "conversations": json.loads(row["conversations"])}
            writer.write(sample)
    shutil.rmtree(args.work / "cache")
    return {"seconds": 0.0, "cpu": 0.0}


def show(measured: dict[str, Measured]) -> str:
    rows = []
    peer = measured["datasets"]
    for name, found in measured.items():
        same = name in ("vlmix", "datasets")
        speed = f"{peer.seconds / found.seconds:.2f}x" if same else ""
        memory = found.facts["anon"]
        share = f"1/{peer.facts['memory'] / memory:.1f}" if name == "vlmix" else ""
        rows.append([LINES[name], spread(found)[0], speed, megabytes(memory), share])
    return table(["", TIMES[0], "speed", "memory", ""], rows)


def main() -> None:
    arguments = parser(__doc__, repeat=2)
    args = arguments.parse_args()
    if perform(args, {**dict.fromkeys(LINES, contender), "map": map_and_write}):
        return
    import numpy as np

    print(machine("vlmix", "datasets", "webdataset", "pyarrow", "pillow"))
    with work_folder(args) as work:
        from PIL import Image

        images = []
        for data in photographs(200, np.random.default_rng(0)):
            import io

            out = io.BytesIO()
            with Image.open(io.BytesIO(data)) as picture:
                picture.resize((512, 384)).save(out, "JPEG", quality=62)
            images.append(out.getvalue())
        print(f"images of {sum(map(len, images)) // len(images):,} bytes on average", file=sys.stderr)
        write_rows(work / "million", round(MILLION * args.scale), images[:10], own=False)
        write_rows(work / "built", round(BUILT * args.scale), images, own=True)
        measured = alternate(list(LINES), args.repeat, lambda name: run(name, work))
        print(show(measured))


if __name__ == "__main__":
    main()
