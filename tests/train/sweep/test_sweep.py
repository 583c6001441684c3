"""Sweeps over the miniature mixture, with models that are real and small."""

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmix.builders import benchmark_named

pytest.importorskip("transformers")

import yaml

from tests.helpers import VLMIX, vlmix_here
from tests.train.sweep.made import sweep_file, untrained
from vlmix.cli.sweep import _backend
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.strict_yaml import RECIPES
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.config import parse
from vlmix.train.sweep.folder import claim
from vlmix.train.sweep.recipe import Build, Choice, EvalConfig, RunSpec, Sweep, adds_random, choices, load, run_specs
from vlmix.train.sweep.report.aggregate import Result
from vlmix.train.sweep.subsets import same_as_random, write_subset
from vlmix.train.sweep.sweep import _mixture, _recipe, run


@pytest.fixture()
def spec(mixture: Path, raw: Path, tmp_path: Path) -> Path:
    """Three runs of two steps: two parts and all of the mixture."""
    return sweep_file(
        tmp_path,
        mixture,
        64,
        name="small",
        overrides={"max_steps": 2},
        ratios=[0.1, 0.3, 1.0],
        seeds=[0],
        evaluate={"vqav2": {"data": str(raw), "limit": 8, "max_new_tokens": 4}},
    )


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_started_again_ends_with_the_same_table(spec: Path, tmp_path: Path) -> None:
    """The real command, two workers; SIGKILL to all of them as soon as one run is done. One process, never killed, has
    the same."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run(load(spec, benchmark_named), straight, _backend(1))
    process = subprocess.Popen(
        [*VLMIX, "sweep", str(spec), "--out", str(killed), "--jobs", "2"],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not list(killed.glob("runs/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/result.json")}
    assert 0 < len(finished) < 3
    again = vlmix_here("sweep", spec, "--out", killed, "--jobs", "2", "--json")
    assert again.returncode == 0, again.stderr
    assert (killed / "report.html").exists()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "runs that exist are not repeated"

    def rows(folder: Path) -> list[dict[str, Any]]:
        lines = (folder / "results.jsonl").read_bytes().splitlines()
        found = [msgspec.to_builtins(msgspec.json.decode(line, type=Result)) for line in lines]
        return [{k: v for k, v in row.items() if k != "finished" and not k.endswith("_seconds")} for row in found]

    assert len(rows(killed)) == 3
    assert rows(killed) == rows(straight)
    assert (killed / "curve.png").stat().st_size > 1000
    whole = Path(yaml.safe_load(spec.read_text())["mixture"])
    digest = hashlib.sha256((whole / "manifest.json").read_bytes()).hexdigest()
    assert {row["mixture"] for row in rows(killed)} == {digest}
    assert all(row["machine"] and row["versions"]["torch"] for row in rows(killed))
    small, large = (
        set(open_mixture(straight / "runs" / f"random-{ratio}-seed0" / "subset").column("id").to_pylist())
        for ratio in (0.1, 0.3)
    )
    assert small < large, "subsets nest"

    with pytest.raises(VlmixError, match="is another sweep: overrides was {'max_steps': 2}, here"):
        run(load(spec, benchmark_named, ["overrides.max_steps=3"]), killed, _backend(1))
    before = [row["run"] for row in rows(killed)]
    more = run(load(spec, benchmark_named, ["ratios=[0.3,0.5]"]), killed, _backend(1))
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
        RunSpec(grid={"mixture.prompts": "plain"}, selection=Choice(name="b.parquet"), ratio=0.25, seed=3).name
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
    given = _backend(1).recipe("tiny")
    plain = parse(given)
    low, _, tiles, whole = (_recipe(sweep, spec, given) for spec in found.values())
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
    sweep = load(RECIPES / "sweep" / f"{name}.yaml", benchmark_named)
    backend = _backend(1)
    plain = backend.recipe(sweep.recipe)
    recipes = {spec.grid["resolution"]: _recipe(sweep, spec, plain) for spec in run_specs(sweep)}
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
        ({"selections": ["clusters"]}, "selection clusters: clusters of what"),
        (
            {"selections": [{"by": "s.csv", "colum": "x"}]},
            "selections\\[0\\]: unknown key 'colum'; did you mean 'column'",
        ),
        ({"selections": [{"by": "s.csv", "column": 3}]}, "`selections\\[0\\].column`: expected `str . null`, got 3"),
        (
            {"selections": [{"name": "low", "by": "lengths", "ascending": True}]},
            "selection low: ascending and threshold go",
        ),
        ({"selections": [{"by": "random", "column": "x"}]}, "selection random:x: column goes with a file of scores"),
        ({"selections": [{"name": "few", "by": "s.csv", "clusters": 3}]}, "selection few: embeddings and a number of"),
        ({"selections": [{"name": "control"}]}, "selection control: it is the random one"),
        ({"selections": [{"where": "num_rounds < 3"}]}, "selection random: the name is that of another"),
        ({"selections": [{"name": "random", "by": "s.csv"}]}, "selection random: the name is that of another"),
        ({"selections": [{"name": "lengths", "by": "s.csv"}]}, "selection lengths: the name is that of another"),
        ({"selections": [{"name": "full mixture", "by": "s.csv"}]}, "selection full mixture: the name is that of"),
        ({"selections": ["s.csv", {"by": "s.csv", "ascending": True}]}, "selections: two are called s.csv"),
        ({"selections": ["random", {}]}, "selections: two are called random"),
        ({"ratios": [0.0]}, "ratios"),
        ({"published": ["COINCIDES"]}, "published: there is no score of 'COINCIDES'; did you mean 'COINCIDE'"),
    ],
)
def test_what_cannot_be_swept_is_told(changes: dict[str, Any], message: str, spec: Path) -> None:
    data = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**data, **changes}))
    with pytest.raises(VlmixError, match=message):
        load(spec, benchmark_named)


def test_benchmarks_that_cannot_be_asked_are_told_before_anything_is_trained(spec: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**data, "evaluate": {"vqav2": {"data": str(tmp_path / "nowhere")}}}))
    with pytest.raises(VlmixError, match="nowhere does not exist"):
        run(load(spec, benchmark_named), tmp_path / "out", _backend(1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selections": ["random", "lenghts"]}, "lenghts is no file of scores or ids; did you mean 'lengths'"),
        ({"overrides": {"optim.lrr": 1}}, "did you mean 'lr'"),
        ({"grid": {"batch.samples": [1]}}, "did you mean 'global_size'"),
        ({"grid": {"size": {"a": {"epochs": 1}, "b": {"model.tower": 1}}}}, "did you mean 'vision_tower'"),
        (
            {"grid": {"size": {"a": {"template.x": 1}}}},
            "template.x: `template` is 'vicuna' in the recipe, without keys",
        ),
        ({"mixture": "nowhere"}, "nowhere is not a mixture"),
        ({"ratios": [0.001]}, r"run random-0.001-seed0: batch.global_size 64 is larger than its 0 samples"),
        ({"ratios": [0.1234567, 0.1234568]}, "two runs of the sweep would be called random-0.123457-seed0"),
        ({"selections": ["a/s.parquet", "b/s.parquet"]}, "two are called s.parquet; give one of them another `name`"),
        (
            {"selections": [{"name": "a b", "by": "lengths"}, {"name": "a+b", "by": "lengths"}]},
            "two runs of the sweep would be called a_b-0.1-seed0",
        ),
        ({"selections": [{"name": "best", "by": "s.csv"}]}, "selection best: s.csv is no file of scores or ids"),
        ({"selections": ["clusters"], "embeddings": "e.parquet"}, "selection clusters: there is no file e.parquet"),
        ({"selections": [{"name": "none", "where": "num_rounds < 0"}]}, "selection none: .*none matches `where`"),
        ({"selections": [{"name": "all", "where": "num_rounds > 0"}]}, "selection all: all 840 samples are in it"),
        ({"selections": [{"name": "odd", "where": "price > 0"}]}, "selection odd: where: .*price"),
    ],
)
def test_what_runs_would_stumble_over_is_told_before_the_first(
    changes: dict[str, Any], message: str, spec: Path, tmp_path: Path
) -> None:
    data = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**data, **changes}))
    with pytest.raises(VlmixError, match=message):
        run(load(spec, benchmark_named), tmp_path / "out", _backend(1))
    assert not (tmp_path / "out").exists()


def test_a_file_of_scores_that_changed_is_told(spec: Path, tmp_path: Path) -> None:
    """Its runs would be those of two selections."""
    scores, out = tmp_path / "scores.json", tmp_path / "out"
    sweep = load(spec, benchmark_named, [f"selections=[{scores}]"])
    scores.write_text("{}")
    claim(sweep, out)
    claim(sweep, out)
    scores.write_text("{ }")
    with pytest.raises(VlmixError, match="scores.json changed since this sweep started"):
        claim(sweep, out)


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
    sweep = load(spec, benchmark_named, [f"selections=[random, {choices}]", "ratios=[0.1]"])
    assert sweep.selections[1] == Choice(by=str(scores), column="quality")
    found = {spec.label: spec for spec in run_specs(sweep)}
    assert set(found) == {"random", "scores.csv:quality", "scores.csv:length", "scores.csv:flat"}
    ids = {}
    for label, spec in found.items():
        view = write_subset(spec, mixture, tmp_path / "out/runs" / spec.name / "subset")
        ids[label] = open_mixture(view).column("id").to_pylist()
    for column in ("quality", "length"):
        command = "subsample", mixture, "--by", scores, "--column", column, "--ratio", "0.1", "--seed", "0"
        assert vlmix_here(*command, "--out", tmp_path / column).returncode == 0
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
        ("ALL", "selection all.txt: all 840 samples are in it and none has a score, so its part is the random one"),
        ("{name: low, by: IDS, ascending: true}", "selection low: ids.txt: it has no `score`, which ascending"),
    ],
)
def test_selections_without_their_scores_are_refused_before_the_first_run(
    spec: Path, mixture: Path, scores: Path, tmp_path: Path, selections: str, message: str
) -> None:
    everything = tmp_path / "all.txt"
    everything.write_text("\n".join(open_mixture(mixture).column("id").to_pylist()))
    part = tmp_path / "ids.txt"
    part.write_text("\n".join(open_mixture(mixture).column("id").to_pylist()[:300]))
    for word, file in {"FILE": scores, "ALL": everything, "IDS": part}.items():
        selections = selections.replace(word, str(file))
    with pytest.raises(VlmixError, match=message):
        run(load(spec, benchmark_named, [f"selections=[random, {selections}]"]), tmp_path / "out", _backend(1))
    assert not (tmp_path / "out").exists()


def _ids(spec: Path, mixture: Path, out: Path, selections: str, ratios: str) -> dict[tuple[str, float], list[str]]:
    """(selection, ratio) -> the ids of its subset, sorted."""
    sweep = load(spec, benchmark_named, [f"selections={selections}", f"ratios={ratios}"])
    views = {(each.label, each.ratio): write_subset(each, mixture, out / each.name) for each in run_specs(sweep)}
    return {key: sorted(open_mixture(view).column("id").to_pylist()) for key, view in views.items()}


def test_the_best_and_the_worst_scores(spec: Path, mixture: Path, scores: Path, tmp_path: Path) -> None:
    best, worst = (f"{{name: {name}, by: {scores}, column: quality{more}}}" for name, more in _BEST_AND_WORST.items())
    ids = _ids(spec, mixture, tmp_path, f"[{best}, {worst}]", "[0.4]")
    assert ids.keys() == {("random", 0.4), ("best", 0.4), ("worst", 0.4)}
    table = open_mixture(mixture).samples.select("id", "source").collect()
    quality = {row.split(",")[0]: int(row.split(",")[1]) for row in scores.read_text().splitlines()[1:]}
    highest: dict[str, int] = {}
    lowest: dict[str, int] = {}
    for id, source in table.rows():
        if id in ids["worst", 0.4]:
            highest[source] = max(quality[id], highest.get(source, 0))
        if id in ids["best", 0.4]:
            lowest[source] = min(quality[id], lowest.get(source, 101))
    assert set(ids["best", 0.4]).isdisjoint(ids["worst", 0.4])
    assert len(highest) > 3 and all(highest[source] <= lowest[source] for source in highest)


_BEST_AND_WORST = {"best": "", "worst": ", ascending: true"}


def test_a_share_is_one_of_the_whole_mixture_whatever_a_selection_leaves_out(
    spec: Path, mixture: Path, scores: Path, tmp_path: Path
) -> None:
    """Else the points of one share would have different sizes. Shares of one selection nest."""
    table = open_mixture(mixture).samples.select("id", "num_words").collect()
    few_words = f"num_words <= {int(table['num_words'].median())}"
    listed = table["id"].to_list()[::2]
    (tmp_path / "ids.txt").write_text("\n".join(listed))
    vectors = pa.array([[float(place % 7), 1.0] for place in range(len(table))], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": table["id"].to_list(), "embedding": vectors}), tmp_path / "e.parquet")
    selections = [
        f"{{name: where, where: {few_words}}}",
        f"{{name: list, by: {tmp_path}/ids.txt}}",
        f"{{name: above, by: {scores}, column: quality, threshold: 50}}",
        f"{{name: short, by: lengths, where: {few_words}}}",
        f"{{name: diverse, by: clusters, embeddings: {tmp_path}/e.parquet, clusters: 5, where: {few_words}}}",
    ]
    ids = _ids(spec, mixture, tmp_path / "views", f"[{', '.join(selections)}]", "[0.1, 0.3]")
    assert len(ids) == 12
    for name in ("random", "where", "list", "above", "short", "diverse"):
        small, large = set(ids[name, 0.1]), set(ids[name, 0.3])
        assert (len(small), len(large)) == (84, 252) and small < large
    words = dict(table.rows())
    limit = table["num_words"].median()
    assert all(words[id] <= limit for name in ("where", "short", "diverse") for id in ids[name, 0.3])
    assert set(ids["list", 0.3]) <= set(listed)
    assert len({tuple(ids[name, 0.3]) for name, _ in ids}) == 6, "they are six selections"


def test_a_list_may_be_a_hundredth_shorter_than_its_share(spec: Path, mixture: Path, tmp_path: Path) -> None:
    """A share of 0.3 of 840 samples is 252; 99 % of that is 249.5."""
    ids, file = open_mixture(mixture).column("id").to_pylist(), tmp_path / "ids.txt"
    file.write_text("\n".join(ids[:250]))
    found = _ids(spec, mixture, tmp_path / "views", f"[{file}]", "[0.1, 0.3]")
    assert found["ids.txt", 0.3] == sorted(ids[:250]), "all of it"
    assert len(found["ids.txt", 0.1]) == 84 and set(found["ids.txt", 0.1]) < set(ids[:250])
    file.write_text("\n".join(ids[:249]))
    message = (
        "selection ids.txt: it offers 249 samples, and a share of 0.3 of the 840 in the mixture is 252; "
        "ratios up to 0.2964 work"
    )
    with pytest.raises(VlmixError, match=message):
        run(load(spec, benchmark_named, [f"selections=[{file}]"]), tmp_path / "out", _backend(1))
    assert not (tmp_path / "out").exists()
    assert len(_ids(spec, mixture, tmp_path / "most", f"[{file}]", "[0.2964]")["ids.txt", 0.2964]) == 249


def test_random_is_the_control_of_every_sweep_with_subsets() -> None:
    lengths = _sweep(selections=("lengths",), ratios=(0.5, 1.0))
    assert [spec.label for spec in run_specs(lengths)] == ["random", "random", "lengths"]
    assert adds_random(lengths)
    assert not adds_random(_sweep(selections=("lengths", "random"), ratios=(0.5,)))
    assert not adds_random(_sweep(selections=(Choice(),), ratios=(0.5,)))
    assert not adds_random(_sweep(selections=("lengths",), ratios=(1.0,)))
    assert [spec.ratio for spec in run_specs(_sweep(selections=("lengths",), ratios=(1.0,)))] == [1.0]


def test_the_embeddings_of_a_sweep_are_those_of_its_clusters() -> None:
    other = Choice(name="other", by="clusters", embeddings="other.parquet")
    sweep = _sweep(selections=("clusters", "lengths", other), embeddings="e.parquet")
    assert [choice.embeddings for choice in choices(sweep)] == [None, "e.parquet", None, "other.parquet"]


def test_a_selection_of_a_sweep_that_is_there_keeps_its_meaning(spec: Path, scores: Path, tmp_path: Path) -> None:
    """Its runs have its name: others of that name would be taken for them. Others may be added and left out."""
    out, copy, ids = tmp_path / "out", tmp_path / "copy.csv", tmp_path / "ids.txt"

    def claimed(selections: str, *changes: str) -> None:
        claim(load(spec, benchmark_named, [f"selections={selections}", *changes]), out)

    best = f"{{name: best, by: {scores}, column: quality}}"
    claimed(f"[random, {best}]")
    claimed(f"[{best}, lengths]")
    claimed("[lengths]")
    claimed("[clusters]", f"embeddings={scores}")
    for other in ("column: length", "column: quality, ascending: true", "column: quality, where: num_rounds < 3"):
        message = "is another sweep: selection best was {by: .*scores.csv, column: quality}, here it is {by"
        with pytest.raises(VlmixError, match=message):
            claimed(f"[{{name: best, by: {scores}, {other}}}]")
    ids.write_text("a\n")
    with pytest.raises(VlmixError, match="selection clusters was .*scores.csv}, here it is .*ids.txt}"):
        claimed("[clusters]", f"embeddings={ids}")
    copy.write_bytes(scores.read_bytes())
    claimed(f"[{{name: best, by: {copy}, column: quality}}]")
    claimed("[random]", "published=[ICONS]")
    with pytest.raises(VlmixError, match="is another sweep: budget was epochs, here it is steps"):
        claimed("[random]", "budget=steps")


def test_a_control_with_the_worst_scores_is_one_line(
    spec: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmix.cli.sweep._backend", lambda *_: untrained(lambda name: 0.5))
    worst = f"selections=[{{name: worst, by: {scores}, column: quality, ascending: true}}]"
    done = vlmix_here("sweep", spec, worst, "ratios=[0.1]", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert "random is added to the selections" in done.stderr
    rows = msgspec.json.decode(done.stdout)
    assert [(row["selection"], row["samples"]) for row in rows] == [("random", 84), ("worst", 84)]
    assert "by: scores.csv, column: quality, ascending: true" in (tmp_path / "out" / "report.html").read_text()


def test_selections_of_a_mixture_that_the_sweep_builds_are_checked_before_anything_is_trained(
    spec: Path, mixture: Path, tmp_path: Path
) -> None:
    changes = ["mixture=''", "build={recipe: sample, raw: raw}", "selections=[{name: none, where: num_words < 0}]"]
    sweep = load(spec, benchmark_named, changes)
    backend = msgspec.structs.replace(
        _backend(1), build=lambda _, __, folder: folder.symlink_to(mixture), train=lambda _: pytest.fail("it trains")
    )
    with pytest.raises(VlmixError, match="run random-1-seed0: selection none: .*none matches `where`"):
        run(sweep, tmp_path / "out", backend)
