"""LLaVA-1.5's 665K mixture at true size, from nothing: its stages, their growth, its peers, and what lies beyond it.

`releases.py` generates the raw files (`--raw DIR` takes those that are there). Then, each in processes of its own:

- `plan`, `annotations`, `images`: `vlmix plan` with small pictures; `vlmix build --annotations-only` with one worker
  and two, whose files must be the same; `vlmix build` with small pictures;
- `verify`: `vlmix verify` of those shards, beside `sha256sum` of the same files;
- `opening`: `mixture.open`, the order of the epoch and the first batch of 128 raw samples;
- `peers`: a LLaVA JSON of a quarter of the mixture, with its images: json and `webdataset.ShardWriter`, with and
  without a check of every image, HF `datasets` to Parquet, `vlmix build llava-json`; and `energon prepare` of vlmix's
  shards, where `--energon` is its command;
- `growth`: `vlmix build --annotations-only` of releases of 1/8 of the true size, of twice that and so
  on, up to `--growth` times it;
- `candidates`: what the parent process of a build holds and does, for `--candidates` made-up candidates;
- `stages`: the scripts of single stages, which print tables of their own: `annotations.py`, `shards.py`, `batches.py`,
  and `opening.py` with 26 M samples.

All of it takes hours; `--only` names parts.

Memory is that of all processes together. PSS counts shared pages once, and files that are mapped; anon is what has to
be there. CPU is that of all processes.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from common import Clock, Facts, machine, parser, perform, table, watched, work_folder
from releases import generate, takes

GB = 1e9
QUARTER, BATCH, PHOTOS, MANY = "0.25", 128, 0.1, 26_000_000
VLMIX = (sys.executable, "-c", "from vlmix.cli.main import main; main()")
COUNTS = {
    "llava_instruct": 157_712,
    "vqav2": 82_783,
    "okvqa": 8_998,
    "gqa": 72_140,
    "ocrvqa": 80_000,
    "aokvqa": 66_160,
    "textcaps": 21_953,
    "refcoco": 48_447,
    "vg": 86_417,
    "sharegpt": 40_688,
}
"""Samples of the paper's mixture (full size)."""
FOLDERS = {
    "gqa": "gqa/images/",
    "ocrvqa": "ocr_vqa/images/",
    "textcaps": "textvqa/train_images/",
    "vg": "vg/VG_100K/",
    "sharegpt": "",
}
CHUNK = 1_000_000
Row = tuple[str, Facts, str]
"""What was run, what was measured of it, and a remark."""


def vlmix(*arguments: object) -> Facts:
    return watched([*VLMIX, *map(str, arguments)])


def built(work: Path, raw: Path, scale: float, out: str, *more: object) -> Facts:
    """A build of the recipe into `work / out`, anew."""
    shutil.rmtree(work / out, ignore_errors=True)
    return vlmix("build", "llava-1.5-665k", *takes(scale), "--raw", raw, "--out", work / out, "--json", *more)


def samples(mixture: Path, scale: float) -> str:
    """The number of samples; at true size, whether each source has the paper's."""
    manifest = json.loads((mixture / "manifest.json").read_text())
    said = f"{manifest['samples']:,} samples"
    if scale == 1:
        counts = {name: source["counts"]["samples"] for name, source in manifest["sources"].items()}
        said += ", the paper's ten counts" if counts == COUNTS else f", NOT the paper's counts: {counts}"
    return said


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def plan(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    yield "plan", vlmix("plan", "llava-1.5-665k", *takes(args.scale), "--raw", raw, "--json"), "with small pictures"


def annotations(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    one = built(work, raw, args.scale, "one", "--annotations-only", "--workers", 1)
    yield "build --annotations-only, 1 worker", one, samples(work / "one", args.scale)
    two = built(work, raw, args.scale, "two", "--annotations-only", "--workers", 2)
    same = contents(work / "one") == contents(work / "two")
    yield "the same, 2 workers", two, "the same bytes" if same else "OTHER BYTES"
    shutil.rmtree(work / "one")
    shutil.rmtree(work / "two")


def images(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    yield (
        "build with small pictures, 2 workers",
        built(work, raw, args.scale, "mixture"),
        samples(work / "mixture", args.scale),
    )


def verify(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    """Of small pictures and of photographs; sha256sum runs twice, because the first reads the files into memory."""
    photos, scale = work / "photos", PHOTOS * args.scale
    generate(photos, scale, "photos")
    built(work, photos, scale, "photographed")
    for mixture, what in ((_mixture(work, raw, args), "small pictures"), (work / "photographed", "photographs")):
        shards = sorted(map(str, mixture.rglob("*.tar")))
        size = sum(map(os.path.getsize, shards))
        for _ in range(2):
            hashed = watched(["sha256sum", *shards])
        checked = vlmix("verify", mixture)
        yield f"sha256sum, {what}", hashed, f"{size / GB:.1f} GB in {len(shards)} shards"
        yield f"verify, 2 workers, {what}", checked, f"{checked['seconds'] / hashed['seconds']:.1f}x sha256sum"
    shutil.rmtree(photos)
    shutil.rmtree(work / "photographed")


def growth(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    times = Fraction(1, 8)
    while times <= args.growth:
        grown, scale = work / "grown", args.scale * float(times)
        generate(grown, scale)
        found = built(work, grown, scale, "annotated", "--annotations-only", "--workers", 1)
        yield f"annotations, 1 worker, {times}x", found, samples(work / "annotated", scale)
        shutil.rmtree(grown)
        shutil.rmtree(work / "annotated")
        times *= 2


def opening(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    mixture = _mixture(work, raw, args)
    found = own("first_batch", work, mixture)
    yield "open, order, first batch of 128", found, f"{found['facts']['seconds']:.1f} s without imports"


def peers(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    mixture = _mixture(work, raw, args)
    built(work, raw, args.scale, "annotated", "--annotations-only")
    rows = work / "rows.json"
    vlmix("subsample", work / "annotated", "--ratio", QUARTER, "--out", work / "quarter")
    vlmix("export", work / "quarter", "--to", "llava-json", "--out", rows)
    plain = None
    for name, said in (
        ("plain", "json + ShardWriter"),
        ("checked", "json + ShardWriter, images checked"),
        ("hf", "HF datasets to Parquet"),
    ):
        found = own(name, work, raw)
        plain = plain or found
        facts = found["facts"]
        yield said, found, f"{facts['rows']:,} of {facts['listed']:,} rows, {found['cpu'] / plain['cpu']:.2f}x the CPU"
    if shutil.which(args.energon):
        crude = work / "energon"
        (crude / "train").mkdir(parents=True)
        for shard in mixture.rglob("*.tar"):
            (crude / "train" / shard.name).symlink_to(shard.resolve())
        options = ("--non-interactive", "--split-parts", "train:train/.*", "--sample-type", "CrudeWebdataset")
        yield "energon prepare of all shards", watched([args.energon, "prepare", *options, str(crude)]), "indexes only"
    for check in ((), ("--check", "header")):
        out = work / "from-json"
        found = vlmix(
            "build",
            "llava-json",
            f"sources.llava_json.path={rows}",
            "--raw",
            raw,
            "--out",
            out,
            "--workers",
            1,
            *check,
            "--json",
        )
        yield (
            " ".join(["vlmix build llava-json", *check]),
            found,
            f"{samples(out, 0)}, {found['cpu'] / plain['cpu']:.2f}x the CPU",
        )
        shutil.rmtree(out)
    shutil.rmtree(work / "annotated")


def stages(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    many = "--many", str(round(MANY * args.scale))
    for script, *options in (("annotations.py",), ("shards.py",), ("batches.py",), ("opening.py", *many)):
        command = [sys.executable, str(Path(__file__).with_name(script)), "--scale", str(args.scale), *options]
        subprocess.run(command, check=True)
    yield from ()


def candidates(work: Path, raw: Path, args: argparse.Namespace) -> Iterator[Row]:
    for count in (round(count * args.scale) for count in args.candidates):
        folder = work / "made-up"
        own("made_up", work, folder, "--candidates", count)
        found = own("parent", work, folder)
        stages = found["facts"]["stages"].items()
        yield f"parent of a build, {count:,} candidates", found, ", ".join(f"{name} {at:.0f} s" for name, at in stages)
        shutil.rmtree(folder)


def _mixture(work: Path, raw: Path, args: argparse.Namespace) -> Path:
    if not (work / "mixture").exists():
        built(work, raw, args.scale, "mixture")
    return work / "mixture"


def own(name: str, work: Path, source: Path, *more: object) -> Facts:
    """Contender `name` of this script in a process of its own, watched; what it reports is under `facts`."""
    command = [sys.executable, __file__, "--contender", name, "--work", work, "--raw", source, *more]
    found = watched(list(map(str, command)))
    return {**found, "facts": json.loads(found["output"].splitlines()[-1])}


def first_batch(args: argparse.Namespace) -> Facts:
    import vlmix

    clock = Clock()
    opened = vlmix.open(args.raw)
    for position in opened.schedule(BATCH).batch(0).tolist():
        opened.raw(position)
    return clock.facts()


def script(args: argparse.Namespace) -> Facts:
    """What people write: rows of the JSON and their images into tars, what cannot be opened left out."""
    import io

    from PIL import Image
    from webdataset import ShardWriter

    clock = Clock()
    rows = json.loads((args.work / "rows.json").read_text())
    out = args.work / "tars"
    out.mkdir()
    written = 0
    with ShardWriter(str(out / "train-%06d.tar"), maxcount=5_000, verbose=0) as writer:
        for number, row in enumerate(rows):
            sample: dict[str, Any] = {"__key__": f"{number:09d}", "json": row}
            if "image" in row:
                try:
                    sample["jpg"] = (args.raw / row["image"]).read_bytes()
                    if args.contender == "checked":
                        Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
                except OSError:
                    continue
            writer.write(sample)
            written += 1
    facts = clock.facts(rows=written, listed=len(rows))
    shutil.rmtree(out)
    return facts


def hf(args: argparse.Namespace) -> Facts:
    from datasets import Dataset, Features, Image, List, Value, disable_progress_bars

    disable_progress_bars()
    turns = List({"from": Value("string"), "value": Value("string")})
    features = Features({"id": Value("string"), "image": Image(), "conversations": turns})

    def rows() -> Iterator[dict[str, Any]]:
        for row in json.loads((args.work / "rows.json").read_text()):
            image = None
            if "image" in row:
                try:
                    image = {"bytes": (args.raw / row["image"]).read_bytes(), "path": None}
                except OSError:
                    continue
            yield {"id": str(row["id"]), "image": image, "conversations": row["conversations"]}

    clock = Clock()
    cache = args.work / "cache"
    made = Dataset.from_generator(rows, features=features, cache_dir=str(cache))
    made.to_parquet(str(cache / "rows.parquet"))
    facts = clock.facts(rows=len(made), listed=len(json.loads((args.work / "rows.json").read_text())))
    shutil.rmtree(cache)
    return facts


def made_up(args: argparse.Namespace) -> Facts:
    """Files of candidates as a build has them after reading its sources, but for the records, which are empty: the
    parent does not read them. Ids and names of images are as long as real ones; a folder holds 10,000 images."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from vlmix.mixture.build.extract import CANDIDATES, KEYS, CandidateFiles
    from vlmix.mixture.dataset.schema import REJECTS
    from vlmix.mixture.hashing import mix64

    clock = Clock()
    args.raw.mkdir()
    folders = dict.fromkeys(COUNTS, "coco/train2017/") | FOLDERS
    order = list(dict.fromkeys(folders.values()))
    for place, (name, share) in enumerate(COUNTS.items()):
        total = round(args.candidates[0] * share / sum(COUNTS.values()))
        files, folder = CandidateFiles(args.raw / f"{name}.arrow"), folders[name]
        files.records.touch()
        np.zeros(total + 1, dtype=np.int64).tofile(files.offsets)
        with pa.ipc.new_file(str(files.rejects), REJECTS):
            pass
        with pa.ipc.new_file(str(files.rows), CANDIDATES) as rows, pa.ipc.new_file(str(files.keys), KEYS) as keys:
            for first in range(0, total, CHUNK):
                count = min(CHUNK, total - first)
                # Scattered, so that neither ids nor images come in an order of their own.
                numbers = first + np.random.default_rng(first).permutation(count)
                digits = pc.utf8_lpad(pa.array(numbers).cast("string"), 12, "0")
                within = pc.utf8_lpad(pa.array(numbers // 10_000).cast("string"), 6, "0")
                hashes = mix64(numbers.astype(np.uint64) * np.uint64(16) + np.uint64(place))
                known = dict.fromkeys(CANDIDATES.names, np.full(count, 5)) | {
                    "id": pc.binary_join_element_wise(f"{name}/", digits, ""),
                    "source": [name] * count,
                    "image": [""] * count,
                    "images": [[]] * count,
                    "num_images": np.zeros(count),
                    "container": -np.ones(count),
                    "at": -np.ones(count),
                }
                shown = [[]] * count
                if folder:
                    known["image"] = pc.binary_join_element_wise(folder, within, "/", digits, ".jpg", "")
                    offsets = np.arange(count + 1, dtype=np.int32)
                    known["images"] = pa.ListArray.from_arrays(offsets, known["image"])
                    known["num_images"] = np.ones(count)
                    named = mix64(numbers.astype(np.uint64) * np.uint64(16) + np.uint64(order.index(folder)))
                    shown = pa.ListArray.from_arrays(offsets, pa.array(named))
                plain = [pa.array(known[field.name]).cast(field.type) for field in CANDIDATES]
                rows.write_batch(pa.record_batch(plain, schema=CANDIDATES))
                made = {"rank": hashes, "order": mix64(hashes), "images": shown, "boxed": np.zeros(count, dtype=bool)}
                plain = [pa.array(made[field.name]).cast(field.type) for field in KEYS]
                keys.write_batch(pa.record_batch(plain, schema=KEYS))
    return clock.facts()


def parent(args: argparse.Namespace) -> Facts:
    """What the parent process does in a build of the candidates of `made_up`: the sources count as read, folders hold
    the images that they should, whose files are sound, and the jobs for shards are made and pickled, but not done."""
    import pickle
    import time

    from vlmix.mixture.build import build as builds
    from vlmix.mixture.build import examine
    from vlmix.mixture.build import plan as plans
    from vlmix.mixture.build.extract import CandidateFiles, Converted, ConvertJob
    from vlmix.mixture.build.facts import pack
    from vlmix.mixture.build.recipe import Entry, Recipe
    from vlmix.mixture.build.source import Options, Source
    from vlmix.mixture.io import image_index
    from vlmix.mixture.io.images import ImageInfo

    class EnoughError(Exception):
        pass

    stages: dict[str, float] = {}
    before = time.process_time()

    def progress(stage: str, done: int, total: int) -> None:
        stages.setdefault(stage, time.process_time() - before)

    def taken(job: ConvertJob) -> Converted:
        here, there = CandidateFiles(args.raw / f"{job.name}.arrow"), CandidateFiles(job.out)
        for name in ("rows", "keys", "records", "offsets", "rejects"):
            os.link(getattr(here, name), getattr(there, name))
        count = here.offsets.stat().st_size // 8 - 1
        lists = "inputs", "containers", "image_roots", "about", "notes"
        nothing: dict[str, Any] = {name: [] for name in lists}
        return Converted(candidates=count, digest="0" * 32, rejects={}, fingerprints={}, **nothing)

    def listing(index: image_index.ImageIndex, directory: str) -> image_index.Listing:
        """As if all of its images were there."""
        number = directory.rpartition("/")[2]
        if not number.isdigit() or len(number) != 6:
            return {}
        return {stem: [f"{stem}.jpg"] for i in range(10_000) for stem in [f"{int(number) * 10_000 + i:012d}"]}

    def probed(job: examine.ProbeJob) -> tuple[bytes, dict[int, tuple[str, str]], list[int]]:
        return rows * len(job.files), {}, [1] * len(job.files)

    def planned(write: Any, jobs: Any, sizes: Any, *rest: Any) -> None:
        stages["jobs"] = time.process_time() - before
        for number in range(len(sizes)):
            pickle.dumps(jobs(number))
        stages["end"] = time.process_time() - before
        raise EnoughError

    sound = ImageInfo(path="", bytes=100_000, digest="0" * 32, format="JPEG", width=640, height=480)
    rows, _ = pack([sound], [bytes(16)])
    plans.convert, examine.probe_files, builds.run_shards = taken, probed, planned
    image_index.ImageIndex._listing = listing  # type: ignore[method-assign]
    known = {
        name: Source(
            name=name, title=name, homepage="", license="", response_formats=(), files=(), read=lambda *_: iter(())
        )
        for name in COUNTS
    }
    recipe = Recipe(name="made-up", sources={name: Entry(builder=name, options=Options()) for name in COUNTS})
    clock = Clock()
    with suppress(EnoughError):
        builds.build(recipe, known, args.raw, args.raw / "out", progress=progress)
    return clock.facts(stages=stages)


PARTS: dict[str, Callable[[Path, Path, argparse.Namespace], Iterator[Row]]] = {
    each.__name__: each for each in (plan, annotations, images, verify, opening, peers, growth, candidates, stages)
}
CONTENDERS = {
    "first_batch": first_batch,
    "plain": script,
    "checked": script,
    "hf": hf,
    "made_up": made_up,
    "parent": parent,
}


def main() -> None:
    arguments = parser(__doc__, repeat=1)
    arguments.add_argument("--raw", type=Path, help="releases that `releases.py --images small` made at this scale")
    arguments.add_argument("--only", default=",".join(PARTS), help=f"parts, separated by commas: {', '.join(PARTS)}")
    arguments.add_argument("--growth", type=int, default=8, help="largest multiple of the true size (default 8)")
    counts = [665_298, 2_661_192, MANY]
    arguments.add_argument("--candidates", type=int, nargs="*", default=counts, help="numbers of made-up candidates")
    arguments.add_argument("--energon", default="energon", help="the command of an environment that has it")
    args = arguments.parse_args()
    if perform(args, CONTENDERS):
        return
    if unknown := [name for name in args.only.split(",") if name not in PARTS]:
        arguments.error(f"there is no part {unknown[0]!r}")
    print(machine("vlmix", "webdataset", "datasets", "pyarrow", "polars"))
    rows = []
    with work_folder(args) as work:
        raw = args.raw or work / "raw"
        if args.raw is None and set(args.only.split(",")) - {"growth", "candidates", "stages"}:
            clock = Clock()
            generate(raw, args.scale, "small")
            print(f"releases generated in {clock.facts()['seconds']:.0f} s", file=sys.stderr)
        for name in args.only.split(","):
            for what, found, remark in PARTS[name](work, raw, args):
                cells = [f"{found['seconds']:.1f}", f"{found['cpu']:.1f}"]
                cells += [f"{found[kind] / GB:.2f}" for kind in ("pss", "anon")]
                rows.append([what, *cells, f"  {remark}"])
                print("\t".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(["", "wall s", "CPU s", "PSS GB", "anon GB", ""], rows))


if __name__ == "__main__":
    main()
