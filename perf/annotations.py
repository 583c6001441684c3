"""Reading annotations: vlmix's first stage against a throw-away script, on VQAv2 and Visual Genome at their true size.

Files in the official schema are generated first: VQAv2 train (82,783 images, 443,757 questions of ten answers) and
Visual Genome (108,077 images, 50 regions each on average). Then, each in a process of its own:

- `plain`: `json.load`, dictionaries and loops to a list of LLaVA rows, as such scripts do it; nothing is written;
- `vlmix`: `mixture.build.plan.prepare`, from the raw files to the candidates in Arrow files: validation, ids,
  sampling, rejects, rendering, word counts, writing, and the sha256 of every input; in one process, and in two
  workers;
- the floor: reading the bytes, hashing them, skipping through the JSON with msgspec, `json.load` alone.

Times exclude interpreter start and imports, also those of the workers, which serve all stages of a build. For VQAv2
both must give the same text, letter for letter in count; for Visual Genome the draws differ, so only the number of
rows is compared.
"""

import argparse
import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

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
from true_size.catalogue import ANNOTATIONS, IMAGE_DATA, QUESTIONS, REGIONS, Catalogue

FILES = {"vqav2": (QUESTIONS, ANNOTATIONS), "vg": (IMAGE_DATA, REGIONS)}
LINES = {
    "plain": "json.load + dicts",
    "vlmix": "vlmix, one process",
    "vlmix_2": "vlmix, two workers",
    "load": "floor: json.load alone",
    "skip": "floor: msgspec skips",
    "sha256": "floor: sha256",
    "read": "floor: bytes read",
}


def generate(args: argparse.Namespace) -> Facts:
    from true_size.questions import vqav2
    from true_size.regions import vg

    clock = Clock()
    catalogue = Catalogue(args.scale)
    vqav2(args.work, catalogue)
    vg(args.work, catalogue)
    return clock.facts()


def plain_vqav2(raw: Path) -> list[dict[str, Any]]:
    """LLaVA rows, one per image with all its questions, by `json.load` and dictionaries."""
    with (raw / QUESTIONS).open() as file:
        questions = json.load(file)["questions"]
    with (raw / ANNOTATIONS).open() as file:
        annotations = json.load(file)["annotations"]
    answers = {a["question_id"]: a["multiple_choice_answer"] for a in annotations}
    grouped: dict[int, list[tuple[str, str]]] = {}
    for question in questions:
        answer = answers.get(question["question_id"], "").strip().capitalize()
        if answer and question["question"].strip():
            grouped.setdefault(question["image_id"], []).append((question["question"], answer))
    rows = []
    for image, pairs in grouped.items():
        turns = []
        for number, (question_text, answer) in enumerate(pairs):
            if number == 0:
                question_text = f"<image>\n{question_text}\nAnswer the question using a single word or phrase."
            turns.append({"from": "human", "value": question_text})
            turns.append({"from": "gpt", "value": answer})
        rows.append({"id": f"{image:012d}", "image": f"coco/train2017/{image:012d}.jpg", "conversations": turns})
    return rows


def plain_vg(raw: Path) -> list[dict[str, Any]]:
    """LLaVA rows, one per image with ten of its regions, by `json.load` and `random.sample`."""
    rng = random.Random(0)
    with (raw / IMAGE_DATA).open() as file:
        pictures = {picture["image_id"]: picture for picture in json.load(file)}
    with (raw / REGIONS).open() as file:
        images = json.load(file)
    rows = []
    for image in images:
        picture = pictures[image["id"]]
        width, height = picture["width"], picture["height"]
        usable = [
            r
            for r in image["regions"]
            if r["width"] > 0
            and r["height"] > 0
            and r["x"] < width
            and r["y"] < height
            and r["x"] + r["width"] > 0
            and r["y"] + r["height"] > 0
            and r["phrase"].strip()
        ]
        if len(usable) < 10:
            continue
        turns = _plain_turns(rng.sample(usable, 10), width, height, rng)
        if turns:
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            name = f"vg/{picture['url'].split('/')[-2]}/{image['id']}.jpg"
            rows.append({"id": str(image["id"]), "image": name, "conversations": turns})
    return rows


def _plain_turns(regions: list[dict[str, Any]], width: int, height: int, rng: random.Random) -> list[dict[str, str]]:
    side = max(width, height)
    dx, dy = (side - width) // 2, (side - height) // 2
    turns: list[dict[str, str]] = []
    for r in regions:
        x1, y1 = max(r["x"], 0), max(r["y"], 0)
        x2, y2 = min(r["x"] + r["width"], width), min(r["y"] + r["height"], height)
        if min(x2 - x1, y2 - y1) < 0.015 * side:
            continue
        corners = (x1 + dx) / side, (y1 + dy) / side, (x2 + dx) / side, (y2 + dy) / side
        box = str([round(corner, 2) for corner in corners])
        phrase = r["phrase"].strip().rstrip(". ")
        if rng.random() < 0.5:
            question = f"Please provide a short description for this region: {box}."
            answer = phrase.capitalize() + "."
        else:
            question = f"Please provide the bounding box coordinate of the region this sentence describes: {phrase}."
            answer = box
        turns += {"from": "human", "value": question}, {"from": "gpt", "value": answer}
    return turns


def plain(args: argparse.Namespace) -> Facts:
    make = {"vqav2": plain_vqav2, "vg": plain_vg}[args.source]
    clock = Clock()
    rows = make(args.work)
    facts = clock.facts()
    characters = sum(len(turn["value"]) for row in rows for turn in row["conversations"])
    return {**facts, "rows": len(rows), "characters": characters}


def vlmix(args: argparse.Namespace, workers: int = 1) -> Facts:
    from vlmix.builders import known_sources
    from vlmix.mixture.build.extract import read_rows
    from vlmix.mixture.build.plan import prepare
    from vlmix.mixture.build.recipe import parse
    from vlmix.mixture.io.pool import Pool

    out = args.work / "candidates"
    shutil.rmtree(out, ignore_errors=True)  # a finished conversion would be taken as it is
    recipe = parse({"name": "one", "sources": {args.source: {}}}, known_sources())
    warm_arrow()
    with Pool(workers) as pool:
        list(pool.map(_warm_worker, range(2 * workers)))
        clock = Clock()
        prepared = prepare(recipe, known_sources(), args.work, out, pool, None)
        facts = clock.facts()
    files = [path for path in sorted(out.glob("*.arrow")) if re.fullmatch(r"[-\d]+", path.stem)]
    characters = sum(sum(read_rows(path)["characters"].to_pylist()) for path in files)
    return {**facts, "rows": len(prepared.candidates), "characters": characters}


def _warm_worker(_: int) -> None:
    import vlmix.builders
    import vlmix.mixture.build.plan  # noqa: F401

    warm_arrow()
    time.sleep(0.2)  # so that no worker gets another's


def floor(args: argparse.Namespace) -> Facts:
    """One pass over the source's files that does no more than `args.contender` says."""
    import hashlib
    import mmap

    import msgspec

    def once(path: Path) -> None:
        if args.contender == "load":
            with path.open() as text:
                json.load(text)
            return
        with path.open("rb") as file:
            if args.contender == "sha256":
                hashlib.file_digest(file, "sha256")
            elif args.contender == "read":
                while file.read(2**20):
                    pass
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    msgspec.json.decode(data, type=msgspec.Raw)

    clock = Clock()
    for name in FILES[args.source]:
        once(args.work / name)
    return clock.facts()


CONTENDERS = {
    "generate": generate,
    "plain": plain,
    "vlmix": vlmix,
    "vlmix_2": lambda args: vlmix(args, 2),
    "load": floor,
    "skip": floor,
    "sha256": floor,
    "read": floor,
}


def compare(source: str, work: Path, repeat: int) -> dict[str, Measured]:
    return alternate(tuple(LINES), repeat, lambda name: run(name, work, "--source", source))


def show(source: str, work: Path, measured: dict[str, Measured]) -> str:
    size = sum((work / name).stat().st_size for name in FILES[source])
    base, load = measured["plain"], measured["load"]
    rows = []
    for name, found in measured.items():
        ratios = [f"{base.seconds / found.seconds:.1f}x", f"1/{base.peak / found.peak:.1f}"]
        anon = f"1/{base.anon / found.anon:.1f}" if base.anon and found.anon else "-"
        rate = f"{size / found.seconds / 1e6:,.0f}"
        memory = [megabytes(found.peak), ratios[1], megabytes(found.anon), anon] if name != "vlmix_2" else 4 * [""]
        cells = [*spread(found), rate, ratios[0], f"{load.seconds / found.seconds:.1f}x", *memory]
        rows.append([LINES[name], *cells, f"{found.facts['rows']:,}" if "rows" in found.facts else ""])
    headings = [source, *TIMES, "MB/s", "of plain", "of load", "peak RSS", "of plain", "peak anon", "of plain", "rows"]
    same = measured["vlmix"].facts["characters"] == base.facts["characters"]
    text = f"{size / 1e6:,.0f} MB of JSON\n{table(headings, rows)}"
    if source == "vqav2":
        text += f"\nthe two ways give {'the same' if same else 'DIFFERENT'} numbers of characters"
    return text


def main() -> None:
    arguments = parser(__doc__, repeat=3)
    arguments.add_argument("--source", choices=tuple(FILES), help="only this one")
    args = arguments.parse_args()
    if perform(args, CONTENDERS):
        return
    print(machine("vlmix", "msgspec", "pyarrow", "numpy"))
    with work_folder(args) as work:
        run("generate", work, "--scale", str(args.scale))
        for source in [args.source] if args.source else FILES:
            print(f"\n{show(source, work, compare(source, work, args.repeat))}", flush=True)
    print(
        "\nspeed and memory relative to the first line; seconds best .. worst; peak RSS counts the pages of mapped "
        "input files,\nwhich the kernel can drop, peak anon does not"
    )


if __name__ == "__main__":
    main()
