"""What the checks share. Standard library alone: every peer has an environment of its own."""

import hashlib
import json
import os
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
    for case in ("whole", "repeated", "view"):
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


def without_token(sample: dict[str, Any]) -> list[str]:
    """The texts where the image is put first by the peer."""
    values = [turn["value"] for turn in sample["conversations"]]
    return [value.replace("<image>\n", "").replace("\n<image>", "") for value in values]


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
    text = sum(not sample["image"] for sample in samples)
    boxes = sum(len(sample["boxes"]) for sample in samples)
    print(f"{peer}: {case}: {rows} rows of {len(samples)} samples ({text} text-only, {boxes} boxes) agree", flush=True)
