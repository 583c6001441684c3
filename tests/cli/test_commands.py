"""The real command: in this process what it says and does, and in processes of its own what depends on them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import hashes, vlmix, vlmix_here
from vlmix.builders import known_sources
from vlmix.cli import main


def data(*arguments: object) -> Any:
    done = vlmix_here(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sources_show_files_licences_and_options() -> None:
    listed = data("sources")
    assert [source["name"] for source in listed] == sorted(known_sources())
    for source in listed:
        assert source["license"] and source["files"]
        assert source["homepage"].startswith("https://") or source["name"] == "rows", "anybody's rows have no home page"
        assert all(option["description"] for option in source["options"])
        text = vlmix_here("sources", source["name"]).stdout
        assert source["license"] in text and all(option["name"] in text for option in source["options"])
    wrong = vlmix_here("sources", "vqa2")
    assert wrong.returncode == 1 and "did you mean 'vqav2'" in wrong.stderr


def test_the_whole_way(raw: Path, tmp_path: Path) -> None:
    mix, tenth = tmp_path / "mix", tmp_path / "tenth"
    planned = data("plan", "sample", "--raw", raw, "--workers", 1)
    built = data("build", "sample", "--raw", raw, "--out", mix, "--workers", 1)
    counts = {name: info["counts"]["samples"] for name, info in built["sources"].items()}
    assert {row["source"]: row["samples"] for row in planned["sources"]} == counts
    words = {name: info["counts"]["words"] for name, info in built["sources"].items()}
    assert {row["source"]: row["words"] for row in planned["sources"]} == words
    size = sum(shard["bytes"] for shard in built["shards"])
    assert abs(sum(row["bytes"] for row in planned["sources"]) - size) < 0.15 * size
    assert data("inspect", mix) == built
    assert data("verify", mix)["problems"] == []
    assert data("subsample", mix, "--ratio", "0.1", "--source", "gqa=10", "--out", tenth)["samples"] == 80
    assert len(data("inspect", mix, "--rejects")) == 17
    sample = data("inspect", tenth, "--id", "gqa/" + _first(tenth, "gqa"))
    assert sample["conversations"][0]["value"].startswith("<image>\n")
    assert data("export", tenth, "--to", "llava-json", "--out", tmp_path / "x.json")["rows"] == 80
    for command in (
        ["inspect", mix],
        ["plan", "sample", "--raw", raw, "--workers", 1],
        ["inspect", mix, "--rejects"],
        ["verify", tenth, "--workers", 1],
    ):
        shown = vlmix_here(*command)
        assert shown.returncode == 0 and len(shown.stdout.splitlines()) > (command[0] != "verify")


def _first(folder: Path, source: str) -> str:
    import polars as pl

    frame = pl.read_parquet(folder / "samples.parquet").filter(pl.col("source") == source)
    return str(frame["id"][0]).partition("/")[2]


def test_plan_writes_nothing_and_tells_what_is_missing(raw: Path, tmp_path: Path) -> None:
    before = hashes(raw)
    rows = {row["source"]: row for row in data("plan", "sample", "--raw", raw, "--workers", 1)["sources"]}
    assert rows["vqav2"]["missing"] == 1 and rows["ocrvqa"]["missing"] == 1
    assert hashes(raw) == before
    bare = tmp_path / "bare"
    shutil.copytree(raw / "okvqa", bare / "okvqa")
    (tmp_path / "r.yaml").write_text("name: x\nsources: {okvqa: {}}")
    (row,) = data("plan", tmp_path / "r.yaml", "--raw", bare, "--workers", 1)["sources"]
    assert (row["samples"], row["images"], row["missing"]) == (64, 0, 64)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "sampel", "--raw", ".", "--out", "x"], 1, "did you mean 'sample'"),
        (["build", "sample", "--raw", "."], 2, "--out"),
    ],
)
def test_mistakes_end_with_one_message(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    """As a shell sees them; `test_mistakes.py` has many more."""
    done = vlmix(*arguments, cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.processes
def test_the_version_is_told() -> None:
    assert vlmix("--version").stdout.startswith("vlmix 0.")


def test_problems_make_verify_fail(mixture: Path, tmp_path: Path) -> None:
    shutil.copytree(mixture, tmp_path / "copy")
    (tmp_path / "copy/train/train-000000.tar").unlink()
    done = vlmix_here("verify", tmp_path / "copy", "--workers", 1)
    assert done.returncode == 1 and "train-000000.tar: missing" in done.stdout


def in_order(printed: str, out: Path) -> None:
    place = 0
    for step in ("sample", "plan", "build", "verify", "inspect", "subsample", "train", "evaluate", "sweep", "browse"):
        assert f"$ vlmix {step} " in printed[place:], step
        place = printed.index(f"$ vlmix {step} ", place)
    assert f"report: {out / 'sweep' / 'report.html'}" in printed and "sound" in printed


def test_demo_runs_the_commands_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer steps, questions and runs than it takes."""
    pytest.importorskip("transformers")
    out, train, evaluate, sweep = tmp_path / "demo", main.train, main.evaluate, main.sweep
    few = ["ratios=[0.3]", "seeds=[0]", "overrides.max_steps=2", "evaluate.vqav2.limit=4", "evaluate.gqa.limit=4"]
    monkeypatch.setattr(main, "train", lambda recipe, changes: train(recipe, [*changes, "max_steps=2"]))
    monkeypatch.setattr(main, "evaluate", lambda *given, **options: evaluate(*given, **options, limit=4))
    monkeypatch.setattr(main, "sweep", lambda name, changes, to, jobs: sweep(name, [*changes, *few], to))
    main.demo(out, workers=1, epochs=1)
    in_order(capsys.readouterr().out, out)
    assert (out / "pages" / "index.html").exists()
    again = vlmix_here("demo", out)
    assert again.returncode == 1 and "exists already" in again.stderr


@pytest.mark.slow
@pytest.mark.processes
def test_the_whole_demo(tmp_path: Path) -> None:
    done = vlmix("demo", tmp_path / "demo", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    in_order(done.stdout, tmp_path / "demo")


def test_the_home_folder_is_meant_behind_an_equals_sign(mixture: Path, tmp_path: Path) -> None:
    done = vlmix("subsample", mixture, "--ratio", "0.1", "--out=~/view", env={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "view/manifest.json").exists()
