"""What the checks share. Standard library alone: every peer has an environment of its own."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MADE = ROOT / ".interop" / "made"
MODELS = ROOT / ".interop" / "models"


def cases(form: str) -> Iterator[tuple[str, Path, list[dict[str, Any]]]]:
    """(name, the export, the samples that it must hold) of every case."""
    for case in ("whole", "several", "repeated", "view"):
        yield case, MADE / case / form, json.loads((MADE / f"{case}.json").read_text(encoding="utf-8"))


def repeated(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every sample as often as an epoch sees it, in a row."""
    return [sample for sample in samples for _ in range(sample["repeat"])]


def same(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        sys.exit(f"{what}:\n  found  {str(found)[:600]}\n  wanted {str(wanted)[:600]}")


def same_counts(what: str, found: list[str], samples: list[dict[str, Any]]) -> None:
    """Every id as often as its `repeat` says."""
    wanted = {sample["id"]: sample["repeat"] for sample in samples}
    same(what, dict(sorted(Counter(found).items())), dict(sorted(wanted.items())))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256s(sample: dict[str, Any]) -> list[str]:
    return [image["sha256"] for image in sample["images"]]


def sizes(sample: dict[str, Any]) -> list[tuple[int, int]]:
    """(width, height) of every image."""
    return [tuple(image["size"]) for image in sample["images"]]


def members(found: dict[str, Any], dot: str = "") -> list[Any]:
    """What a reader of tars has of a sample's images, in their order; `dot` begins its names."""
    names = [f"{dot}jpg", *(f"{dot}{number}.jpg" for number in range(1, 6))]
    there = [found[name] for name in names if found.get(name) is not None]
    same("images without a gap", there, [found[name] for name in names[: len(there)] if found.get(name) is not None])
    return there


def texts(sample: dict[str, Any]) -> list[str]:
    """The turns' texts with one `<image>` for each image: what is missing put first, what is over spelled apart."""
    wanted = len(sample["images"])
    turns = "\x00".join(turn["value"] for turn in sample["conversations"])
    turns = "<image>\n" * max(wanted - turns.count("<image>"), 0) + turns
    parts = turns.split("<image>")
    return ("<image>".join(parts[: wanted + 1]) + "".join("< image >" + part for part in parts[wanted + 1 :])).split(
        "\x00"
    )


def chat(sample: dict[str, Any], *, with_system: bool) -> list[tuple[str, str]]:
    """(role, text) of every message, with `<image>` for each image block; the line break of a token that leads a turn
    is part of the token."""
    said = list(zip(("user", "assistant") * len(sample["conversations"]), texts(sample)))
    lead = re.compile("(?:<image>\n?)*")
    said = [
        (role, "<image>" * lead.match(text)[0].count("<image>") + lead.sub("", text, count=1)) for role, text in said
    ]
    system = json.loads(sample["extra"] or "{}").get("system")
    if with_system and system:
        said[0] = ("user", said[0][1].replace(f"{system}\n\n", "", 1))
        said.insert(0, ("system", system))
    return said


def run_docs(heading: str, places: dict[str, str]) -> None:
    """Run the Python of a section of docs/feeding.md as it stands, where `demo/<name>` is the made folder `places`."""
    section = (ROOT / "docs" / "feeding.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = [block.split("```")[0] for block in section.split("```python\n")[1:]]
    for block in blocks:
        with tempfile.TemporaryDirectory() as folder:
            demo = Path(folder) / "demo"
            demo.mkdir()
            for name, made in places.items():
                (demo / name).symlink_to(MADE / made)
            (Path(folder) / "snippet.py").write_text(block, encoding="utf-8")
            environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache", "WIDS_CACHE": f"{folder}/cache"}
            command = [sys.executable, "snippet.py"]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"docs/feeding.md, {heading}: {done.stderr}")
            print(f"docs/feeding.md, {heading}: {done.stdout.strip()}", flush=True)


def report(peer: str, case: str, samples: list[dict[str, Any]], rows: int) -> None:
    text = sum(not sample["images"] for sample in samples)
    several = sum(len(sample["images"]) > 1 for sample in samples)
    boxes = sum(len(sample["boxes"]) for sample in samples)
    what = f"{text} text-only, {several} of several images, {boxes} boxes"
    print(f"{peer}: {case}: {rows} rows of {len(samples)} samples ({what}) agree", flush=True)
