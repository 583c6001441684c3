"""Sweeps over the miniature mixture, with models that are real and small."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vlmix.builders import known_benchmarks

pytest.importorskip("transformers")

import yaml

from tests.helpers import VLMIX, vlmix
from tests.train.nano import NANO
from vlmix.cli.sweep import _backend
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.strict_yaml import RECIPES
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.config import parse
from vlmix.train.sweep.report import Result
from vlmix.train.sweep.sweep import (
    Build,
    Choice,
    EvalConfig,
    RunSpec,
    Sweep,
    _claim,
    _mixture,
    _recipe,
    _subset,
    load,
    run,
    run_specs,
    same_as_random,
)


@pytest.fixture()
def spec(mixture: Path, raw: Path, tmp_path: Path) -> Path:
    """Three runs of two steps: two parts and all of the mixture."""
    recipe = tmp_path / "nano.yaml"
    recipe.write_text(yaml.safe_dump({**NANO, "batch": {"global_size": 64, "pack_length": 2048, "max_length": 512}}))
    path = tmp_path / "sweep.yaml"
    data = {
        "name": "small",
        "mixture": str(mixture),
        "recipe": str(recipe),
        "overrides": {"max_steps": 2},
        "ratios": [0.1, 0.3, 1.0],
        "seeds": [0],
        "evaluate": {"vqav2": {"data": str(raw), "limit": 8, "max_new_tokens": 4}},
    }
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_sweep_that_is_killed_and_started_again_ends_with_the_same_table(spec: Path, tmp_path: Path) -> None:
    """The real command, two workers; SIGKILL to all of them as soon as one run is done. One process, never killed, has
    the same."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run(load(spec, known_benchmarks()), straight, _backend(1))
    process = subprocess.Popen(
        [*VLMIX, "sweep", str(spec), "--out", str(killed), "--jobs", "2"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while not list(killed.glob("runs/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/result.json")}
    assert 0 < len(finished) < 3
    again = vlmix("sweep", spec, "--out", killed, "--jobs", "2", "--json")
    assert again.returncode == 0, again.stderr
    assert (killed / "report.html").exists()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "runs that exist are not repeated"

    def rows(folder: Path) -> list[dict[str, Any]]:
        lines = (folder / "results.jsonl").read_bytes().splitlines()
        found = [msgspec.to_builtins(msgspec.json.decode(line, type=Result)) for line in lines]
        return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in found]

    assert len(rows(killed)) == 3
    assert rows(killed) == rows(straight)
    assert (killed / "curve.png").stat().st_size > 1000
    small, large = (
        set(open_mixture(straight / "runs" / f"random-{ratio}-seed0" / "subset").column("id").to_pylist())
        for ratio in (0.1, 0.3)
    )
    assert small < large, "subsets nest"

    other = vlmix("sweep", spec, "overrides.max_steps=3", "--out", killed)
    assert other.returncode == 1 and "is another sweep: overrides was {'max_steps': 2}, here" in other.stderr
    before = [row["run"] for row in rows(killed)]
    more = run(load(spec, known_benchmarks(), ["ratios=[0.3,0.5]"]), killed, _backend(1))
    assert [row.ratio for row in more] == [0.3, 0.5], "runs are added, those that are left out stay"
    assert {*before, "random-0.5-seed0"} == {path.parent.name for path in killed.glob("runs/*/result.json")}


def test_the_runs_of_a_sweep(tmp_path: Path, mixture: Path) -> None:
    sweep = Sweep(
        name="x",
        mixture="m",
        recipe="tiny",
        ratios=[0.1, 1.0],
        seeds=[0, 1],
        selections=["random", "lengths"],
        grid={"optim.lr": [1e-3, 2e-3]},
        evaluate={"gqa": EvalConfig(data="x")},
    )
    found = run_specs(sweep)
    assert len(found) == len({spec.name for spec in found}) == 2 * (2 * 2 + 2)
    assert [spec.ratio for spec in found[:4]] == [1.0] * 4, "the longest first"
    assert (
        RunSpec(grid={"mixture.prompts": "plain"}, selection="a/b.parquet", ratio=0.25, seed=3).name
        == "prompts=plain-b.parquet-0.25-seed3"
    )


def _sweep(**changes: Any) -> Sweep:
    evaluate = {"gqa": EvalConfig(data="x")}
    return Sweep(name="x", mixture="m", recipe="tiny", evaluate=evaluate, **{"ratios": (1.0,), **changes})


def test_a_named_value_sets_all_its_keys_and_nothing_of_its_neighbours() -> None:
    tower = {"hidden_size": 32}
    sweep = _sweep(
        overrides={"batch.max_length": 512},
        grid={
            "resolution": {
                "low": {"model.vision_tower.image_size": 32},
                "tiles": {"model.vision_tower": tower, "model.vision_tower.patch_size": 8, "batch.max_length": 900},
            },
            "model.tile_grids": [[[1, 1], [1, 2]], None],
        },
    )
    found = {spec.name: spec for spec in run_specs(sweep)}
    assert [name.partition("-")[0] for name in found] == ["resolution=low"] * 2 + ["resolution=tiles"] * 2
    assert [spec.grid["resolution"] for spec in found.values()] == ["low", "low", "tiles", "tiles"]
    backend = _backend(1)
    plain = parse(backend.recipe("tiny"))
    low, _, tiles, whole = (_recipe(sweep, spec, backend) for spec in found.values())
    assert low.model.vision_tower == {**plain.model.vision_tower, "image_size": 32}
    assert (low.batch.max_length, low.model.tile_grids) == (512, [[1, 1], [1, 2]]), "values that are lists stay lists"
    assert tiles.model.vision_tower == {"hidden_size": 32, "patch_size": 8}
    assert (tiles.batch.max_length, whole.model.tile_grids) == (900, None)
    assert tower == {"hidden_size": 32}, "the sweep's own values are left alone"
    with pytest.raises(VlmixError, match="two runs of the sweep would be called a=b_c-random-1-seed0"):
        run_specs(_sweep(grid={"a": {"b c": {"epochs": 1}, "b+c": {"epochs": 2}}}))


def test_named_values_reach_the_recipe_of_the_mixture(tmp_path: Path) -> None:
    built: list[dict[str, Any]] = []

    def build(_: Build, changes: dict[str, Any], folder: Path) -> None:
        built.append(changes)
        folder.mkdir(parents=True)

    sweep = _sweep(grid={"size": {"a": {"mixture.total": 9, "epochs": 1}, "b": {"mixture.prompts": "plain"}}})
    sweep = msgspec.structs.replace(sweep, mixture="", build=Build(recipe="sample", raw="raw"))
    backend = msgspec.structs.replace(_backend(1), build=build)
    folders = {_mixture(sweep, spec, tmp_path, backend) for spec in run_specs(sweep)}
    assert (built, len(folders)) == ([{"total": 9}, {"prompts": "plain"}], 2)


@pytest.mark.parametrize("name", ["resolution", "resolution-demo"])
def test_the_resolutions_of_the_packaged_sweeps_are_those_of_the_training_recipes(name: str) -> None:
    sweep = load(RECIPES / "sweep" / f"{name}.yaml", known_benchmarks())
    backend = _backend(1)
    recipes = {spec.grid["resolution"]: _recipe(sweep, spec, backend) for spec in run_specs(sweep)}
    assert [asked.split for asked in sweep.evaluate.values()] == ["", "existence"]
    assert {spec.ratio for spec in run_specs(sweep)} == {1.0}
    low, high, tiles = recipes.values()
    assert tiles.model.vision_tower == low.model.vision_tower != high.model.vision_tower
    assert low.model.tile_grids is high.model.tile_grids is None
    if name == "resolution":
        packaged = {key: parse(backend.recipe(key)) for key in ("llava-mlp-224", "llava-1.5-7b", "llava-1.5-hd")}
        for recipe, other in zip(recipes.values(), packaged.values(), strict=True):
            assert recipe.model.vision_tower == other.model.vision_tower
            assert (recipe.model.tile_grids, recipe.batch) == (other.model.tile_grids, other.batch)
        for recipe in recipes.values():
            stage_one = parse(backend.recipe(str(Path(recipe.model.init_connector_from or "").name)))
            assert stage_one.model.vision_tower == recipe.model.vision_tower
            assert stage_one.model.lm == recipe.model.lm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": [1]}, "did you mean 'ratios'"),
        ({"mixture": ""}, "either a `mixture` or a `build`"),
        ({"evaluate": {"vqa2": {"data": "x"}}}, "no benchmark 'vqa2'"),
        ({"evaluate": {"mm-vet": {"data": "x"}}}, "needs a judge"),
        ({"grid": {"mixture.prompts": ["plain"]}}, "give `build` instead of `mixture`"),
        ({"grid": {"seed": [1]}}, "grid.seed is no key for a grid"),
        ({"grid": {"data": {"a": {"mixture": "m"}}}}, "grid.data.a.mixture is no key for a grid"),
        ({"grid": {"optim.lr": []}}, "length >= 1"),
        ({"grid": {"size": {}}}, "length >= 1"),
        ({"grid": {"size": 3}}, "expected `(array \\| object|object \\| array)`, got"),
        ({"grid": {"size": {"a": {"optim.lr": 1}, "b": {}}}}, "grid.size.b sets no key"),
        ({"grid": {"size": {"a": {"mixture.total": 9}}}}, "grid.size.a.mixture.total is a key of the mixture recipe"),
        ({"grid": {"optim.lr": {"a": {"epochs": 1}}}}, "grid.optim.lr is a recipe key and takes a list"),
        ({"grid": {"optim": {"low": {"optim.lr": 1}}}}, "grid.optim is a recipe key and takes a list"),
        (
            {"grid": {"optim.lr": [1], "size": {"a": {"epochs": 1}, "b": {"optim.lr": 2}}}},
            "grid.size.b.optim.lr is set by grid.optim.lr too",
        ),
        ({"selections": ["clusters"]}, "needs `embeddings`"),
        ({"ratios": [0.0]}, "ratios"),
    ],
)
def test_what_cannot_be_swept_is_told(changes: dict[str, Any], message: str, spec: Path) -> None:
    data = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**data, **changes}))
    with pytest.raises(VlmixError, match=message):
        load(spec, known_benchmarks())


def test_benchmarks_that_cannot_be_asked_are_told_before_anything_is_trained(spec: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**data, "evaluate": {"vqav2": {"data": str(tmp_path / "nowhere")}}}))
    with pytest.raises(VlmixError, match="nowhere does not exist"):
        run(load(spec, known_benchmarks()), tmp_path / "out", _backend(1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selections": ["random", "lenghts"]}, "lenghts is no file of scores or ids; did you mean 'lengths'"),
        ({"overrides": {"optim.lrr": 1}}, "did you mean 'lr'"),
        ({"grid": {"batch.samples": [1]}}, "did you mean 'global_size'"),
        ({"grid": {"size": {"a": {"epochs": 1}, "b": {"model.tower": 1}}}}, "did you mean 'vision_tower'"),
        ({"grid": {"size": {"a": {"template.x": 1}}}}, "template.x: `template` is 'vicuna' in the recipe, without keys"),
        ({"mixture": "nowhere"}, "nowhere is not a mixture"),
        ({"ratios": [0.001]}, r"run random-0.001-seed0: batch.global_size 64 is larger than its 0 samples"),
        ({"ratios": [0.1234567, 0.1234568]}, "two runs of the sweep would be called random-0.123457-seed0"),
        ({"selections": ["a/s.parquet", "b/s.parquet"]}, "two runs of the sweep would be called s.parquet-0.1-seed0"),
    ],
)
def test_what_runs_would_stumble_over_is_told_before_the_first(
    changes: dict[str, Any], message: str, spec: Path, tmp_path: Path
) -> None:
    data = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**data, **changes}))
    with pytest.raises(VlmixError, match=message):
        run(load(spec, known_benchmarks()), tmp_path / "out", _backend(1))
    assert not (tmp_path / "out").exists()


def test_a_file_of_scores_that_changed_is_told(spec: Path, tmp_path: Path) -> None:
    """Its runs would be those of two selections."""
    scores, out = tmp_path / "scores.json", tmp_path / "out"
    sweep = load(spec, known_benchmarks(), [f"selections=[{scores}]"])
    scores.write_text("{}")
    _claim(sweep, out)
    _claim(sweep, out)
    scores.write_text("{ }")
    with pytest.raises(VlmixError, match="scores.json changed since this sweep started"):
        _claim(sweep, out)


@pytest.fixture()
def scores(mixture: Path, tmp_path: Path) -> Path:
    """Two columns of scores, neither of them called score; `flat` ranks nothing."""
    ids = open_mixture(mixture).column("id").to_pylist()
    path = tmp_path / "scores.csv"
    rows = [f"{id},{place * 37 % 101},{place * 53 % 97},1" for place, id in enumerate(ids)]
    path.write_text("\n".join(["id,quality,length,flat", *rows]) + "\n")
    return path


def test_a_column_gives_the_same_samples_in_a_sweep_in_python_and_on_the_command_line(
    spec: Path, mixture: Path, scores: Path, tmp_path: Path
) -> None:
    choices = ", ".join(f"{{by: {scores}, column: {name}}}" for name in ("quality", "length", "flat"))
    sweep = load(spec, known_benchmarks(), [f"selections=[random, {choices}]", "ratios=[0.1]"])
    assert sweep.selections[1] == Choice(by=str(scores), column="quality")
    found = {spec.label: spec for spec in run_specs(sweep)}
    assert set(found) == {"random", "scores.csv:quality", "scores.csv:length", "scores.csv:flat"}
    ids = {}
    for label, spec in found.items():
        view = _subset(sweep, spec, mixture, tmp_path / "out/runs" / spec.name / "subset")
        ids[label] = open_mixture(view).column("id").to_pylist()
    for column in ("quality", "length"):
        command = "subsample", mixture, "--by", scores, "--column", column, "--ratio", "0.1", "--seed", "0"
        assert vlmix(*command, "--out", tmp_path / column).returncode == 0
        part = open_mixture(mixture).subset(by=scores, column=column, ratio=0.1, seed=0)
        shown = open_mixture(tmp_path / column).column("id").to_pylist()
        assert ids[f"scores.csv:{column}"] == part.column("id").to_pylist() == shown != ids["random"]
    assert ids["scores.csv:quality"] != ids["scores.csv:length"]
    assert ids["scores.csv:flat"] == ids["random"]
    assert same_as_random(sweep, tmp_path / "out") == ["scores.csv_flat-0.1-seed0"]


@pytest.mark.parametrize(
    ("selections", "message"),
    [
        ("{by: FILE, column: price}", "no column price; it has id, quality, length, flat"),
        ("FILE", "no column is called score.*quality, length, flat.*--column quality"),
        ("ALL", "has no scores and lists all 840 samples, so its part is the random one"),
        ("{by: random, column: quality}", "column quality goes with a file of scores, not with random"),
    ],
)
def test_selections_without_their_scores_are_refused_before_the_first_run(
    spec: Path, mixture: Path, scores: Path, tmp_path: Path, selections: str, message: str
) -> None:
    everything = tmp_path / "all.txt"
    everything.write_text("\n".join(open_mixture(mixture).column("id").to_pylist()))
    selections = selections.replace("FILE", str(scores)).replace("ALL", str(everything))
    with pytest.raises(VlmixError, match=message):
        run(load(spec, known_benchmarks(), [f"selections=[random, {selections}]"]), tmp_path / "out", _backend(1))
    assert not (tmp_path / "out").exists()
