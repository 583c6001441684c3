"""`perf/held_out.py` counts what `vlmix overlaps` finds by id."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vlmix.builders import benchmark_named, known_sources
from vlmix.builders.layout import picture_id
from vlmix.mixture.benchmark.benchmark import EvaluationSet
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.overlaps.find import find
from vlmix.mixture.overlaps.questions import Asked
from vlmix.mixture.overlaps.table import touched

SCRIPT = Path(__file__).parents[1] / "perf" / "held_out.py"


@pytest.fixture(scope="module")
def held_out() -> ModuleType:
    spec = importlib.util.spec_from_file_location("held_out", SCRIPT)
    assert spec and spec.loader
    module = sys.modules["held_out"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts_are_those_of_overlaps_by_id(
    held_out: ModuleType, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three sources, with an evaluation set whose val questions are those of train."""
    for name in ("aokvqa", "vqav2", "vg"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / name).symlink_to(raw / name)
    folder = tmp_path / "eval" / "aokvqa"
    folder.mkdir(parents=True)
    (folder / "aokvqa_v1p0_val.json").write_bytes((raw / "aokvqa" / "aokvqa_v1p0_train.json").read_bytes())
    monkeypatch.setattr(sys, "argv", ["held_out.py", "--raw", str(tmp_path / "raw"), "--data", str(tmp_path / "eval")])
    held_out.main()
    said = capsys.readouterr().out
    recipe = parse({"name": "all", "sources": {"aokvqa": {}, "vqav2": {}, "vg": {}}}, known_sources())
    build(recipe, known_sources(), tmp_path / "raw", tmp_path / "all", annotations_only=True)
    asked = EvaluationSet(benchmark=benchmark_named("aokvqa"), data=tmp_path / "eval", split="val")
    overlaps = find(tmp_path / "all", [Asked(asked)], picture_id=picture_id)
    expected = {each.source: each for each in touched(overlaps) if each.level == "id" and each.benchmark}
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("|")]
    counted = {row[0]: [int(cell.split()[0]) for cell in row[2:]] for row in rows if row[1] == "aokvqa val"}
    assert counted.keys() == expected.keys() == {"aokvqa", "vqav2"}
    for source, each in expected.items():
        paths = {row["path"] for row in overlaps.rows.to_pylist() if (row["source"], row["level"]) == (source, "id")}
        assert counted[source] == [each.samples, len(paths), each.questions, len(paths)]
    of_vqav2 = {path for path in Reader.open(tmp_path / "all").column("image").to_pylist() if "coco/" in path}
    both = {row[0]: row[1:] for row in rows if row[-1].isdigit()}
    shown = str(counted["aokvqa"][1])
    assert both["aokvqa"] == [shown, "0", shown] and both["vqav2"] == [shown, "0", str(len(of_vqav2))]
    assert both["vg"][::2] == ["0", "0"]
    for missing in ("source gqa: ", "evaluation set aokvqa train, test: ", "evaluation set pope: "):
        assert f"\n- {missing}" in said
    assert str(tmp_path) not in said
