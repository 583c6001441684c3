"""What is measured while a model is trained: the loss on held-out samples, benchmarks, and which step is best."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from tests.helpers import hashes
from tests.train.nano import nano
from vlmix.builders import benchmark_named
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.holdout import held_out
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train import run as runs
from vlmix.train.checkpoint import Best, checkpoints_in
from vlmix.train.config import Validation
from vlmix.train.images import decode, normalise
from vlmix.train.loop import better
from vlmix.train.metrics import read
from vlmix.train.run import export_model, train
from vlmix.train.tokens import Encoder, template
from vlmix.train.validation import other, split

TIMES = ("tokens_per_second", "step_seconds", "data_wait", "tflops", "mfu")


def rows(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read(run)]


@pytest.fixture(scope="module")
def changes(mixture: Path, raw: Path) -> dict[str, Any]:
    """Six steps with everything measured, at a constant rate, so that a shorter run is the beginning of this one."""
    asked = {"data": str(raw), "max_new_tokens": 3}
    return {
        "mixture": str(mixture),
        "optim": {"lr_scheduler": "constant", "warmup_ratio": 0},
        "validation": {"holdout": 0.1, "interval": 2},
        "evaluate": {"interval": 3, "limit": 4, "benchmarks": {"gqa": asked, "pope": asked | {"limit": 2}}},
        "checkpoint": {"interval": 2, "keep": 1, "best": "evaluate.gqa"},
    }


@pytest.fixture(scope="module")
def whole(changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("validation") / "whole"
    assert train(nano(**changes, out=str(out)), benchmark=benchmark_named) == 0
    return out


def test_no_picture_is_trained_on_and_held_out(mixture: Path) -> None:
    """By path and by bytes, against pairs that are compared one by one; a larger share holds out all of a smaller."""
    whole = open_mixture(mixture)
    before: set[str] = set()
    for share in (0.05, 0.2, 0.6):
        held = held_out([whole], share)[0]
        seen: list[set[str]] = [set(), set()]
        for position, sample in enumerate(whole):
            told = [image.path for image in sample.images], [str(hash(jpeg)) for jpeg in sample.jpegs]
            seen[int(held[position])].update(*told)
        assert not seen[0] & seen[1]
        names = {id for id, out in zip(whole.column("id").to_pylist(), held) if out}
        assert before <= names and 0.4 * share < len(names) / len(whole) < 1.7 * share
        before = names
    # The same pictures in a part, and apart from the seed.
    part = whole.subset(ratio=0.5)
    single = [position for position, many in enumerate(part.column("num_images").to_pylist()) if many]
    there = dict(zip(whole.column("id").to_pylist(), held_out([whole], 0.2)[0].tolist()))
    here = dict(zip(part.column("id").to_pylist(), held_out([part], 0.2)[0].tolist()))
    moved = [id for id, out in here.items() if there[id] != out]
    assert len(moved) < 0.02 * len(single)  # two files with the same bytes go by the one that is there
    assert held_out([whole], 0.2, seed=1)[0].tolist() != held_out([whole], 0.2)[0].tolist()
    both = held_out([whole, part], 0.2)
    assert both[0].tolist() == held_out([whole], 0.2)[0].tolist()
    assert [there[id] for id in part.column("id").to_pylist()] == both[1].tolist()


def test_the_loss_is_that_of_the_exported_model_on_each_sample_alone(
    whole: Path, changes: dict[str, Any], mixture: Path
) -> None:
    """transformers' own forward and loss, unpacked."""
    trained, held = split(open_mixture(mixture), Validation(holdout=0.1))
    assert len(trained) + len(held) == len(open_mixture(mixture))
    model = AutoModelForImageTextToText.from_pretrained(whole / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(whole / "tokenizer")
    encoder = Encoder(tokenizer, template("vicuna", tokenizer))
    from vlmix.train.model import build

    vision = build(nano(), tokenizer)[0].vision
    sums: dict[str, list[float]] = {}
    for sample in held:
        sizes = [vision.tokens(size.width, size.height) for size in sample.images]
        tokens = encoder.encode([turn.value for turn in sample.conversations], sizes)
        ids, mask = torch.from_numpy(tokens.ids[None, :512]), torch.from_numpy(tokens.loss_mask[None, :512])
        labels = torch.where(mask, ids, -100)
        count = int((labels[0, 1:] != -100).sum())
        if not count:
            continue
        given = {}
        if sample.images:
            tiles = torch.cat([vision.tiles(decode(jpeg)) for jpeg in sample.jpegs])
            given = {"pixel_values": normalise(tiles, vision.mean, vision.std, torch.float32)}
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=labels, **given).loss)
        of = sums.setdefault(sample.source, [0.0, 0.0])
        of[0], of[1] = of[0] + loss * count, of[1] + count
    found = read(whole)[-1]["validation"]
    assert {name: part["tokens"] for name, part in found["sources"].items()} == {
        n: int(t) for n, (_, t) in sums.items()
    }
    for name, (loss, tokens) in sums.items():
        assert found["sources"][name]["loss"] == pytest.approx(loss / tokens, rel=1e-5)
    total = np.sum(list(sums.values()), axis=0)
    assert found["loss"] == pytest.approx(total[0] / total[1], rel=1e-5)
    assert found["low"] < found["loss"] < found["high"]


def test_rows_hold_what_was_due(whole: Path) -> None:
    measured = {row["step"]: sorted({"validation", "evaluate"} & row.keys()) for row in read(whole)}
    assert measured == {
        1: [],
        2: ["validation"],
        3: ["evaluate"],
        4: ["validation"],
        5: [],
        6: ["evaluate", "validation"],
    }
    asked = read(whole)[2]["evaluate"]
    assert asked["gqa"]["questions"] == 4 and asked["pope"]["questions"] == 2
    answers = whole / "evaluate" / "step-00000003" / "gqa"
    assert {"answers.jsonl", "report.json", "values.parquet"} <= {path.name for path in answers.iterdir()}
    assert not list(whole.glob("evaluate/*/model"))


@pytest.mark.slow
def test_a_run_that_is_stopped_where_it_should_measure_measures_when_it_resumes(
    whole: Path, changes: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    recipe = nano(**changes, out=str(out))

    def stop(event: str, facts: dict[str, Any]) -> None:
        if event == "step" and facts["step"] in (1, 3, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(recipe, stop, benchmark_named) == signal.SIGTERM
    assert "validation" not in read(out)[-1] and read(out)[-1]["step"] == 2
    assert train(recipe, stop, benchmark_named) == signal.SIGTERM
    assert "validation" in read(out)[1] and "validation" not in read(out)[-1] and read(out)[-1]["step"] == 4
    assert train(recipe, stop, benchmark_named) == 0  # asked to stop before the last step, which ends it anyway
    assert rows(out) == rows(whole)
    assert hashes(out / "model") == hashes(whole / "model")
    names = [path.name for path in checkpoints_in(out / "checkpoints")]
    assert names == [path.name for path in checkpoints_in(whole / "checkpoints")]


def test_any_checkpoint_becomes_the_model_of_a_run_that_ended_there(
    whole: Path, changes: dict[str, Any], tmp_path: Path
) -> None:
    best = [path.name for path in checkpoints_in(whole / "checkpoints")]
    assert best == ["step-00000003", "step-00000006"]  # keep: 1, and the best: of equal scores the first
    shorter = tmp_path / "shorter"
    train(nano(**changes, out=str(shorter), max_steps=3), benchmark=benchmark_named)
    found = export_model(whole, best=True, out=tmp_path / "best")
    names = {path.name for path in found.iterdir()} - {"README.md"}  # which says what run it is of
    assert {name: hashes(found)[name] for name in names} == {name: hashes(shorter / "model")[name] for name in names}
    assert hashes(export_model(whole, out=tmp_path / "last")) == hashes(whole / "model")
    with pytest.raises(VlmixError, match="exists; choose another --out"):
        export_model(whole, step=6, out=tmp_path / "last")
    with pytest.raises(VlmixError, match="no checkpoint of step 4; there are those of 3, 6"):
        export_model(whole, step=4)
    with pytest.raises(VlmixError, match="no recipe.yaml"):
        export_model(tmp_path)
    assert not (whole / "exports").exists()


def test_a_run_of_the_connector_alone_becomes_a_model(mixture: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(nano(mixture=str(mixture), out=str(out), trainable=["connector"], max_steps=1))
    assert not (out / "model").exists()
    exported = load_file(export_model(out) / "model.safetensors")
    connector = load_file(out / "connector.safetensors")
    assert torch.equal(exported["multi_modal_projector.linear_1.weight"], connector["linear_1.weight"])


def test_the_best_is_the_lowest_loss_and_the_highest_score() -> None:
    facts = {"validation": {"loss": 2.0}, "evaluate": {"gqa": {"score": 2.0}}}
    for number, worse in (("validation.loss", 3.0), ("evaluate.gqa", 1.0)):
        now = Best(number, 2.0, 7)
        assert better(None, number, facts, 7) == now
        assert better(Best(number, worse, 1), number, facts, 7) == now
        assert better(Best(number, 2.0, 1), number, facts, 7) == Best(number, 2.0, 1)
        assert better(Best(number, 4.0 - worse, 1), number, facts, 7) == Best(number, 4.0 - worse, 1)
        assert better(Best("another", 9.0, 1), number, facts, 7) == now
        assert better(Best(number, 0.5, 1), number, {}, 7) == Best(number, 0.5, 1)
        for broken in (float("nan"), float("inf")):  # which JSON has no number for: no run could resume from it
            facts_then = {"validation": {"loss": broken}, "evaluate": {"gqa": {"score": broken}}}
            assert better(None, number, facts_then, 7) is None
            assert better(Best(number, 0.5, 1), number, facts_then, 7) == Best(number, 0.5, 1)


def test_another_mixture(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss on it; its pictures and texts may be known, which is said. Its texts are tokenized once."""
    told: list[dict[str, Any]] = []
    part = tmp_path / "part"
    open_mixture(mixture).subset(ratio=0.05).save(part)
    recipe = nano(mixture=str(mixture), out=str(tmp_path / "run"), max_steps=1, validation={"mixture": str(part)})
    train(recipe, lambda event, facts: told.append(facts) if event == "seen" else None)
    assert 0 in open_mixture(part).column("num_images").to_pylist()
    assert told == [{"mixture": str(part), "samples": len(open_mixture(part)), "of": len(open_mixture(part))}]
    assert read(tmp_path / "run")[-1]["validation"]["samples"] == len(open_mixture(part))
    monkeypatch.setattr(runs, "measure", None)
    assert train(recipe) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": {"holdout": 1e-9}}, "holds out none of the"),
        ({"validation": {"holdout": 0.995}}, "takes all"),
        ({"validation": {"holdout": 0.1, "mixture": "x"}}, "either holdout, a share of the mixture, or another"),
        ({"validation": {}}, "either holdout, a share of the mixture, or another"),
        ({"validation": {"holdout": 0.1, "intervall": 2}}, "unknown key 'intervall'; did you mean 'interval'"),
        ({"checkpoint": {"best": "validation.loss"}}, "is nothing that the run measures"),
        ({"checkpoint": {"best": "evaluate.vqav2"}, "evaluate": "gqa"}, "'vqav2' is not asked; `evaluate` has gqa"),
        ({"evaluate": "mm-vet"}, "a judge says what answers are worth"),
        ({"evaluate": {"benchmarks": {"gqa": {"own": ["x"]}}}}, "benchmarks.gqa: unknown key 'own'"),
        ({"evaluate": "gqa", "template": "plain"}, "answers no questions"),
        ({"evaluate": {"benchmarks": {"gqa": {"date": "x"}}}}, "evaluate: benchmarks.gqa: unknown key 'date'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(
    change: dict[str, Any], message: str, mixture: Path, raw: Path, tmp_path: Path
) -> None:
    if isinstance(change.get("evaluate"), str):
        change = change | {"evaluate": {"benchmarks": {change["evaluate"]: {"data": str(raw)}}}}
    with pytest.raises(VlmixError, match=message):
        train(nano(mixture=str(mixture), out=str(tmp_path / "run"), **change), benchmark=benchmark_named)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_mixture_with_other_prompts_does_not_validate(mixture: Path) -> None:
    whole, styled = open_mixture(mixture), open_mixture(mixture)
    styled.root_manifest.recipe["prompts"] = "plain"
    with pytest.raises(VlmixError, match="prompts of the style llava, what is trained on of plain"):
        other(styled, Validation(mixture=str(mixture)))
    assert len(other(whole, Validation(mixture=str(mixture)))) == len(whole)


def test_no_space_for_the_checkpoints_is_told_before_the_first_step(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(
        VlmixError, match=r"2 and the best checkpoints of 0\.\d MB each do not fit into the 1\.0 MB there"
    ):
        train(nano(**changes, out=str(tmp_path / "run")), benchmark=benchmark_named)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_the_space_that_is_asked_for_is_what_the_checkpoints_take(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most that are on disk at once, being written or whole; the best is not counted twice where it is the last."""
    plain = changes | {"evaluate": None, "optim": {"lr_scheduler": "constant", "warmup_ratio": 0}}
    once = {"checkpoint": {"interval": 0, "best": "validation.loss"}, "validation": {"holdout": 0.1}, "max_steps": 2}
    usage = shutil.disk_usage(tmp_path)
    free = [usage.free]
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    train(nano(**plain | once, out=str(tmp_path / "first")))
    parts = json.loads((tmp_path / "first" / "data.json").read_text())["parts"]
    one = 12 * sum(part["trained"] for part in parts.values())  # fp32: a weight and two moments
    free[0] = one + 1
    assert train(nano(**plain | once, out=str(tmp_path / "once"))) == 0

    often = once | {"validation": {"holdout": 0.1, "interval": 1}, "max_steps": 5}
    most, whole = [0], runs.Checkpoints._finish  # the last two, the best, and the one that is written

    def count(self: Any, path: Path, best: Any, problem: Any) -> None:
        most[0] = max(most[0], len([*self.folder.iterdir()]))
        whole(self, path, best, problem)

    monkeypatch.setattr(runs.Checkpoints, "_finish", count)
    free[0] = 4 * one - 1
    with pytest.raises(VlmixError, match="3 and the best checkpoints of"):
        train(nano(**plain | often, out=str(tmp_path / "often")))
    free[0] = 4 * one
    assert train(nano(**plain | often, out=str(tmp_path / "often"))) == 0
    assert 3 <= most[0] <= 4


def test_a_hold_out_is_part_of_the_run(whole: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    changed = changes | {"validation": {"holdout": 0.2, "interval": 2}}
    with pytest.raises(VlmixError, match="validation.holdout was 0.1, here it is 0.2"):
        train(nano(**changed, out=str(tmp_path / "run")), benchmark=benchmark_named)
    free = changes | {"validation": {"holdout": 0.1, "interval": 100, "samples": 5}, "evaluate": None}
    free["checkpoint"] = {"interval": 2, "keep": 1}
    assert train(nano(**free, out=str(tmp_path / "run"))) == 0
