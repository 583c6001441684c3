"""docs/add_a_source.md, followed to the letter: as an installed distribution with an entry point."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from tests.helpers import dump, vlmix, vlmix_each

ROOT = Path(__file__).parents[3]


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the page's module is installed."""
    page = (ROOT / "docs/add_a_source.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    site = tmp_path / "site"
    info = site / "plantvqa-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "plantvqa.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plantvqa\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vlmix.builders]\nplantvqa = plantvqa:SOURCE\n")
    (tmp_path / "plants.yaml").write_text(recipe)
    return {"PYTHONPATH": f"{site}:{ROOT}"}


@pytest.mark.processes
@pytest.mark.slow
def test_the_page_works_as_printed(tmp_path: Path, installed: dict[str, str]) -> None:
    records = [
        {"image": "fern.jpg", "question": "What plant is this?", "answer": "tree fern"},
        {"image": "fern.jpg", "question": "Is it a tree?", "answer": " "},
        {"image": "gone.jpg", "question": "What plant is this?", "answer": "moss"},
    ]
    dump(tmp_path / "raw/plantvqa/plants.json", records)
    (tmp_path / "raw/plantvqa/images").mkdir()
    Image.new("RGB", (40, 30), "green").save(tmp_path / "raw/plantvqa/images/fern.jpg")
    run = {"cwd": tmp_path, "env": installed}
    shown = vlmix("sources", "plantvqa", **run)
    assert shown.returncode == 0 and "capitalize" in shown.stdout and "CC BY 4.0" in shown.stdout
    planned = json.loads(vlmix("plan", "plants.yaml", "--raw", "raw", "--json", **run).stdout)["sources"]
    assert [(row["source"], row["samples"], row["missing"], row["rejects"]) for row in planned] == [
        ("plantvqa", 1, 1, 1)
    ]
    built = vlmix("build", "plants.yaml", "--raw", "raw", "--out", "mix", "--workers", "2", **run)
    assert built.returncode == 0, built.stderr
    (row,) = pl.read_parquet(tmp_path / "mix/samples.parquet").to_dicts()
    assert [turn["value"] for turn in row["conversations"]] == [
        "<image>\nWhat plant is this?\nAnswer the question using a single word or phrase.",
        "tree fern",
    ]
    rejects = pl.read_parquet(tmp_path / "mix/rejects.parquet").to_dicts()
    assert {row["reason"] for row in rejects} == {"empty_answer", "image_missing"}


_DECLARED = (
    "import dataclasses; from vlmix.builders.sources.gqa import SOURCE as GQA\n"
    "SOURCE = dataclasses.replace(GQA, **{{'name': 'plantvqa'}} | dict({}))"
)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("SOURCE = 5", "not a vlmix.mixture.build.source.Source"),
        ("from vlmix.builders.sources.gqa import SOURCE", "'gqa' exists already"),
        ("import sys; sys.exit(3)", "3 (SystemExit)"),
        (_DECLARED.format("name=5"), "name is 5, expected text"),
        (_DECLARED.format("files=None"), "files is None, expected a tuple of RawFile"),
        (_DECLARED.format("options=dict"), "options is <class 'dict'>, expected a subclass of Options"),
        (_DECLARED.format("response_formats=('shortx',)"), "there is no response format 'shortx'"),
    ],
)
def test_a_broken_distribution_is_one_warning(tmp_path: Path, installed: dict[str, str], code: str, why: str) -> None:
    (tmp_path / "site/plantvqa.py").write_text(code)
    commands = ["sources", "--json"], ["plan", "plants.yaml", "--raw", "."]
    shown, asked = vlmix_each(*commands, cwd=tmp_path, env=installed)
    assert shown.returncode == 0 and "gqa" in {source["name"] for source in json.loads(shown.stdout)}
    assert shown.stderr.count("\n") == 1 and why in shown.stderr and "plantvqa" in shown.stderr
    assert (
        asked.returncode == 1 and "there is no builder 'plantvqa'" in asked.stderr and "Traceback" not in asked.stderr
    )
