"""The real command in real processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import hashes, vlmix
from vlmix.builders import known_sources


def data(*arguments: object) -> Any:
    done = vlmix(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.processes
def test_sources_show_files_licences_and_options() -> None:
    listed = data("sources")
    assert [source["name"] for source in listed] == sorted(known_sources())
    for source in listed:
        assert source["license"] and source["files"]
        assert source["homepage"].startswith("https://") or source["name"] == "rows", "anybody's rows have no home page"
        assert all(option["description"] for option in source["options"])
        text = vlmix("sources", source["name"]).stdout
        assert source["license"] in text and all(option["name"] in text for option in source["options"])
    wrong = vlmix("sources", "vqa2")
    assert wrong.returncode == 1 and "did you mean 'vqav2'" in wrong.stderr


@pytest.mark.processes
def test_the_whole_way(raw: Path, tmp_path: Path) -> None:
    mix, tenth = tmp_path / "mix", tmp_path / "tenth"
    planned = data("plan", "sample", "--raw", raw)
    built = data("build", "sample", "--raw", raw, "--out", mix)
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
        ["plan", "sample", "--raw", raw],
        ["inspect", mix, "--rejects"],
        ["verify", tenth],
    ):
        shown = vlmix(*command)
        assert shown.returncode == 0 and len(shown.stdout.splitlines()) > (command[0] != "verify")


def _first(folder: Path, source: str) -> str:
    import polars as pl

    frame = pl.read_parquet(folder / "samples.parquet").filter(pl.col("source") == source)
    return str(frame["id"][0]).partition("/")[2]


@pytest.mark.processes
def test_plan_writes_nothing_and_tells_what_is_missing(raw: Path, tmp_path: Path) -> None:
    before = hashes(raw)
    rows = {row["source"]: row for row in data("plan", "sample", "--raw", raw)["sources"]}
    assert rows["vqav2"]["missing"] == 1 and rows["ocrvqa"]["missing"] == 1
    assert hashes(raw) == before
    bare = tmp_path / "bare"
    shutil.copytree(raw / "okvqa", bare / "okvqa")
    (tmp_path / "r.yaml").write_text("name: x\nsources: {okvqa: {}}")
    (row,) = data("plan", tmp_path / "r.yaml", "--raw", bare)["sources"]
    assert (row["samples"], row["images"], row["missing"]) == (64, 0, 64)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "sampel", "--raw", ".", "--out", "x"], 1, "did you mean 'sample'"),
        (["build", "none.yaml", "--raw", ".", "--out", "x"], 1, "none.yaml: No such file"),
        (["build", "sample", "--raw", "nowhere", "--out", "x"], 1, "nowhere does not exist"),
        (["build", "sample", "--raw", "."], 2, "--out"),
        (["build", "sample", "--raw", ".", "--out", "x", "sede=1"], 1, "did you mean 'seed'"),
        (["build", "sample", "--raw", ".", "--out", "x", "--workers", "0"], 2, "workers"),
        (["inspect", "nowhere"], 1, "not a mixture"),
        (["subsample", "nowhere", "--out", "x"], 1, "say what to keep"),
        (["export", "nowhere", "--to", "llava-jsn", "--out", "x"], 1, "did you mean 'llava-json'"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_mistakes_end_with_one_message(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    done = vlmix(*arguments, cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.processes
def test_the_version_is_told() -> None:
    assert vlmix("--version").stdout.startswith("vlmix 0.")


@pytest.mark.processes
def test_unknown_samples_are_met_with_the_nearest(mixture: Path) -> None:
    wrong = vlmix("inspect", mixture, "--id", "gqa/0")
    assert wrong.returncode == 1 and "has no sample 'gqa/0'" in wrong.stderr


@pytest.mark.processes
def test_problems_make_verify_fail(mixture: Path, tmp_path: Path) -> None:
    shutil.copytree(mixture, tmp_path / "copy")
    (tmp_path / "copy/train/train-000000.tar").unlink()
    done = vlmix("verify", tmp_path / "copy")
    assert done.returncode == 1 and "train-000000.tar: missing" in done.stdout


@pytest.mark.processes
def test_demo_runs_the_commands_in_order(tmp_path: Path) -> None:
    done = vlmix("demo", tmp_path / "demo", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    for step in ("sample", "plan", "build", "verify", "inspect", "subsample", "train", "evaluate", "sweep"):
        assert f"$ vlmix {step} " in done.stdout
    assert f"report: {tmp_path / 'demo' / 'sweep' / 'report.html'}" in done.stdout
    assert "sound" in done.stdout and vlmix("demo", tmp_path / "demo").returncode == 1


def test_the_home_folder_is_meant_behind_an_equals_sign(mixture: Path, tmp_path: Path) -> None:
    done = vlmix("subsample", mixture, "--ratio", "0.1", "--out=~/view", env={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "view/manifest.json").exists()
