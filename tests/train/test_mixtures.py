"""Runs on several mixtures with weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import yaml

from tests.helpers import hashes, vlmix
from tests.train.nano import NANO, nano
from tests.train.test_run import damaged, losses, rows
from vlmix.mixture.blend import blend
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.metrics import read
from vlmix.train.run import train

EVERY = {"interval": 2, "keep": 9}


@pytest.fixture(scope="module")
def shares(mixture: Path, several: Path) -> dict[str, Any]:
    """The sample mixture, and samples with none to five images each. Both folders are called mixture."""
    return {str(mixture): 0.75, str(several): 0.25}


@pytest.fixture(scope="module")
def blended(shares: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six packed steps in one process, never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "blended"
    assert train(nano(mixture=shares, out=str(out), checkpoint=EVERY)) == 0
    return out


def without(run: Path, out: Path, *steps: int) -> Path:
    """A copy of a run that has not come to these steps."""
    shutil.copytree(run, out)
    for step in steps:
        shutil.rmtree(out / "checkpoints" / f"step-{step:08d}")
    return out


def test_sources_are_kept_apart_and_counts_are_the_schedule_s(blended: Path, shares: dict[str, Any]) -> None:
    facts = json.loads((blended / "data.json").read_text())
    names = [each["name"] for each in facts["mixtures"]]
    assert names == [f"{Path(folder).parent.name}/mixture" for folder in shares]
    both = blend(shares)
    order = both.schedule(16, seed=0)
    first = len(next(iter(both.mixtures.values())))
    samples = np.concatenate([order.batch(step) for step in range(6)])
    trained = [each["trained_samples"] for each in facts["mixtures"]]
    assert trained == [int((samples < first).sum()), int((samples >= first).sum())]
    assert abs(trained[1] - 0.25 * 96) <= 9, "half a batch, and a sample"
    assert facts["mixtures"][1]["weight"] == 0.25 and facts["mixtures"][1]["epochs"] == round(trained[1] / 66, 4)
    seen = {source for row in read(blended) for source in row["sources"]}
    assert seen == {both[int(position)].source for position in samples}
    assert all(source.startswith(tuple(f"{name}/" for name in names)) for source in seen)
    assert read(blended)[-1]["total"]["samples"] == 96
    assert yaml.safe_load((blended / "recipe.yaml").read_text())["mixture"] == shares


def test_padded_is_the_same_training_as_packed(blended: Path, shares: dict[str, Any], tmp_path: Path) -> None:
    train(nano(mixture=shares, out=str(tmp_path / "run"), batch={"pack_length": 0, "micro_size": 3}))
    assert np.allclose(losses(tmp_path / "run"), losses(blended), rtol=0, atol=2e-6)
    assert [row["sources"].keys() for row in read(tmp_path / "run")] == [row["sources"].keys() for row in read(blended)]


def test_a_resumed_run_is_the_uninterrupted_one(blended: Path, shares: dict[str, Any], tmp_path: Path) -> None:
    run = without(blended, tmp_path / "run", 4, 6)
    assert train(nano(mixture=shares, out=str(run), checkpoint=EVERY)) == 0
    assert rows(run) == rows(blended) and hashes(run / "model") == hashes(blended / "model")


@pytest.mark.slow
def test_two_ranks_are_one_and_resume_on_one(blended: Path, shares: dict[str, Any], tmp_path: Path) -> None:
    """By the real command, the mixtures given on its line."""
    recipe = tmp_path / "nano.yaml"
    recipe.write_text(yaml.safe_dump(NANO))
    run = tmp_path / "two"
    common = [recipe, f"mixture={json.dumps(shares)}", "checkpoint={interval: 2, keep: 9}", f"out={run}"]
    done = vlmix("train", *common, "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert "mixture: weight 0.25, 66 samples" in " ".join(done.stderr.split())
    assert np.allclose(losses(run), losses(blended), rtol=0, atol=2e-6)
    assert [row["samples"] for row in read(run)] == [row["samples"] for row in read(blended)]
    resumed = without(run, tmp_path / "resumed", 4, 6)
    train(nano(mixture=shares, out=str(resumed), checkpoint=EVERY))
    assert np.allclose(losses(resumed), losses(blended), rtol=0, atol=2e-6)


@pytest.mark.slow
def test_the_packaged_recipe_trains_on_two(shares: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = vlmix("train", "tiny", f"mixture={json.dumps(shares)}", "max_steps=2", f"out={run}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["last"]["step"] == 2


def test_a_run_with_other_weights_or_another_mixture_is_refused(
    blended: Path, shares: dict[str, Any], mixture: Path
) -> None:
    other = dict(zip(shares, (0.5, 0.5)))
    with pytest.raises(VlmixError, match=r"another recipe: shares was \[0.75, 0.25\], here it is \[0.5, 0.5\]"):
        train(nano(mixture=other, out=str(blended)))
    for changed in (str(mixture), dict(reversed(shares.items()))):
        with pytest.raises(VlmixError, match="a run on another mixture"):
            train(nano(mixture=changed, out=str(blended)))


def test_one_mixture_with_a_weight_is_that_mixture() -> None:
    assert nano(mixture={"demo/mixture": 0.3}) == nano(mixture="demo/mixture")


def test_validation_holds_out_of_all(shares: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    held = {"holdout": 0.3, "interval": 2}
    assert train(nano(mixture=shares, out=str(run), max_steps=2, validation=held)) == 0
    measured = read(run)[-1]["validation"]
    assert {name.split("/")[0] for name in measured["sources"]} == {Path(folder).parent.name for folder in shares}


def test_a_view_beside_its_root_is_reported(mixture: Path, tmp_path: Path) -> None:
    open_mixture(mixture).subset(total=20).save(tmp_path / "hard")
    events: list[tuple[str, Any]] = []
    shares = {str(mixture): 1000, str(tmp_path / "hard"): 0.001}
    train(nano(mixture=shares, out=str(tmp_path / "run"), max_steps=1), lambda *event: events.append(event))
    facts = dict(events)["data"]
    assert facts["common"] == [{"names": ["mixture", "hard"], "samples": 20}]
    assert facts["mixtures"][1]["trained_samples"] == 0, "so small a weight is said by the command"


def test_samples_that_are_skipped_or_damaged_are_named_by_their_mixture(
    mixture: Path, several: Path, tmp_path: Path
) -> None:
    bad = damaged(mixture, tmp_path / "bad", 10_000)
    shares = {str(several): 0.5, str(bad): 0.5}
    short = {"max_length": 40, "pack_length": 64, "global_size": 16}
    with pytest.raises(VlmixError, match=rf"did not decode so far, the last of bad/.*`vlmix verify {bad}` lists"):
        train(nano(mixture=shares, out=str(tmp_path / "run"), max_bad_images=0, template="bare", batch=short))
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {line["mixture"] for line in lines} <= {str(several), str(bad)}
    first = next(line for line in lines if line["mixture"] == str(several))
    assert open_mixture(several)[first["id"]].id == first["id"]


def test_mixtures_that_cannot_be_trained_on_are_named(mixture: Path, several: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    open_mixture(mixture).subset(where="image != ''").save(images)
    out = str(tmp_path / "run")
    with pytest.raises(VlmixError, match=rf"{several} has samples without an image, such as \S+; stage one"):
        train(nano(mixture={str(images): 1, str(several): 1}, out=out, template="plain", trainable=["connector"]))
    with pytest.raises(VlmixError, match="nowhere"):
        train(nano(mixture={str(images): 1, str(tmp_path / "nowhere"): 1}, out=out))
    with pytest.raises(VlmixError, match="recipe: mixture: a: a weight is above 0"):
        nano(mixture={"a": 0, "b": 1})
    assert not Path(out).exists()
    few = tmp_path / "few"
    open_mixture(mixture).subset(total=1).save(few)
    often = nano(mixture={str(images): 1, str(few): 1}, out=out, epochs=5, max_steps=0)
    with pytest.raises(VlmixError, match="few: its weight asks for its 1 samples 2,0.. times, 1,000 at most; lower it"):
        train(often)
