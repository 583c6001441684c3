"""Pages of 2,000 samples: `vlmix browse`, from the start of its process to its end, and the bytes that it writes.

A mixture of ten sources of 250 samples is made up and built first: four rounds of text, in every second sample a box,
and a picture of 640x480 as large as a photograph. Then:

- `vlmix browse MIXTURE --out PAGES`, whose pictures are reduced, as they are more than pages copy;
- `vlmix browse MIXTURE --pictures stored`;
- the floor: the stored pictures read and decoded at the size of the reduced ones.
- the index: the same command on the made-up index of `perf/views.py`, 665,298 samples whose shards are not there, so
  that it is texts and numbers alone that are counted.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import views
from common import (
    MB,
    TIMES,
    Clock,
    Facts,
    alternate,
    execute,
    machine,
    megabytes,
    parser,
    perform,
    photographs,
    run,
    spread,
    table,
    work_folder,
)

SOURCES, EACH, DIFFERENT = 10, 250, 500
LINES = {
    "reduced": "vlmix browse",
    "stored": "vlmix browse --pictures stored",
    "decode": "floor: read and decode",
    "index": "vlmix browse, 665,298 samples",
}


def generate(args: argparse.Namespace) -> Facts:
    import numpy as np

    from vlmix.builders import known_sources
    from vlmix.mixture.build.build import build
    from vlmix.mixture.build.recipe import parse

    clock, rng = Clock(), np.random.default_rng(0)
    count = max(round(EACH * args.scale), 5)
    raw = args.work / "raw"
    (raw / "images").mkdir(parents=True)
    encoded = photographs(min(DIFFERENT, SOURCES * count), rng)
    letters = np.array(list("etaoinshrdlcumwfgypb"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 9, 3_000)]
    sources: dict[str, Any] = {}
    for source in range(SOURCES):
        rows = [_row(raw, source, number, encoded, words, rng) for number in range(count)]
        (raw / f"rows-{source}.json").write_text(json.dumps(rows))
        sources[f"source{source}"] = {"builder": "llava_json", "path": str(raw / f"rows-{source}.json")}
    known = known_sources()
    recipe = parse({"name": "made-up", "sources": sources}, known, "perf")
    build(recipe, known, raw, args.work / "mixture", images=[raw])
    index = argparse.Namespace(work=args.work / "index", scale=args.scale)
    views.generate(index)
    return clock.facts()


def _row(raw: Path, source: int, number: int, encoded: list[bytes], words: list[str], rng: Any) -> dict[str, Any]:
    path = f"images/{source}-{number}.jpg"
    # A comment of its own makes each file another picture to a reader that looks at bytes.
    data = encoded[(source * EACH + number) % len(encoded)]
    note = path.encode()
    data = data[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + data[2:]
    (raw / path).write_bytes(data)
    turns = []
    for at in range(4):
        said = [" ".join(words[i] for i in rng.integers(0, len(words), size)) for size in rng.integers(5, 40, 2)]
        said[0] = f"<image>\n{said[0]}" if at == 0 else said[0]
        said[1] = f"{said[1]} [0.1, 0.2, 0.5, 0.75]" if at == 1 and number % 2 else said[1]
        turns += [{"from": "human", "value": said[0]}, {"from": "gpt", "value": said[1]}]
    return {"id": f"{source}/{number}", "image": path, "conversations": turns}


def decode(args: argparse.Namespace) -> Facts:
    from vlmix.mixture.browse.pictures import SIDE
    from vlmix.mixture.io.images import decoded
    from vlmix.mixture.mixture import open as open_mixture

    clock = Clock()
    for position, sample in enumerate(open_mixture(args.work / "mixture")):
        if position == 2000:
            break
        for jpeg in sample.jpegs:
            decoded(jpeg, SIDE)
    return clock.facts(bytes=0)


def command(work: Path, name: str) -> tuple[Facts, int, int | None]:
    """`vlmix browse` as a user types it."""
    out = work / "pages"
    vlmix = str(Path(sys.executable).with_name("vlmix"))
    options = ["--pictures", "stored"] if name == "stored" else []
    mixture = work / "index/mixture" if name == "index" else work / "mixture"
    facts, peak, anon = execute([vlmix, "browse", str(mixture), "--out", str(out), *options], facts=False)
    facts["bytes"] = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    facts["pictures"] = sum(path.stat().st_size for path in (out / "pictures").iterdir())
    shutil.rmtree(out)
    return facts, peak, anon


def main() -> None:
    args = parser(__doc__, repeat=3).parse_args()
    if perform(args, {"generate": generate, "decode": decode}):
        return
    print(machine("vlmix", "pillow", "jinja2", "polars"))
    with work_folder(args) as work:
        run("generate", work, "--scale", str(args.scale))
        measured = alternate(
            tuple(LINES), args.repeat, lambda name: run(name, work) if name == "decode" else command(work, name)
        )
    rows = [
        [
            LINES[name],
            *spread(found),
            f"{found.facts['bytes'] / MB:.1f} MB",
            f"{found.facts.get('pictures', 0) / MB:.1f} MB",
            megabytes(found.peak),
        ]
        for name, found in measured.items()
    ]
    print(table(["2,000 samples", *TIMES, "pages", "of them pictures", "peak RSS"], rows))
    print("\nseconds best .. worst of the runs; the command includes the start of its processes")


if __name__ == "__main__":
    main()
