"""All that a run can have at once: several mixtures, a hold-out, benchmarks, the best checkpoint, a window, chunks of
logits and copies of the model. However it is run, it is the same training."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import yaml

from tests.helpers import hashes, vlmix
from tests.train.nano import NANO, nano
from vlmix.builders import benchmark_named
from vlmix.train.metrics import read
from vlmix.train.run import train

pytestmark = pytest.mark.slow
TIMES = ("tokens_per_second", "step_seconds", "data_wait", "tflops", "mfu")


@pytest.fixture(scope="module")
def changes(mixture: Path, several: Path, raw: Path) -> dict[str, Any]:
    lm = NANO["model"]["lm"] | {"model_type": "mistral", "sliding_window": 24}
    return {
        "mixture": {str(mixture): 0.7, str(several): 0.3},
        "model": {"lm": lm},
        "batch": {"length_window": 2},
        "loss_chunk": 7,
        "reduce_gradients": "last",
        "shard_size": 1,
        "validation": {"holdout": 0.1, "interval": 2, "samples": 60},
        "evaluate": {"interval": 3, "benchmarks": {"gqa": {"data": str(raw), "max_new_tokens": 3, "limit": 4}}},
        "checkpoint": {"interval": 2, "keep": 1, "best": "validation.loss"},
        "max_steps": 5,
    }


@pytest.fixture(scope="module")
def whole(changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together") / "whole"
    assert train(nano(**changes, out=str(out)), benchmark=benchmark_named) == 0
    return out


def same_training(run: Path, other: Path) -> None:
    """The same samples, losses and scores, but for rounding."""
    for one, two in zip(read(run), read(other), strict=True):
        for name in ("step", "samples", "tokens", "image_tokens", "target_tokens", "total"):
            assert one[name] == two[name]
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-6)
        assert one["sources"].keys() == two["sources"].keys() and len(one["sources"]) > 2
        assert ("validation" in one, "evaluate" in one) == ("validation" in two, "evaluate" in two)
        if "validation" in one:
            assert one["validation"]["tokens"] == two["validation"]["tokens"]
            assert np.allclose(
                [one["validation"][name] for name in ("loss", "low", "high")],
                [two["validation"][name] for name in ("loss", "low", "high")],
                atol=5e-6,
            )
        assert one.get("evaluate") == two.get("evaluate")


def test_padded_is_packed(whole: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    padded = changes | {"batch": changes["batch"] | {"pack_length": 0, "micro_size": 3}, "out": str(tmp_path / "run")}
    train(nano(**padded), benchmark=benchmark_named)
    same_training(tmp_path / "run", whole)


def test_resumed_is_uninterrupted(whole: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = nano(**changes, out=str(out))

    def stop(event: str, facts: dict[str, Any]) -> None:
        if event == "step" and facts["step"] in (1, 3):
            os.kill(os.getpid(), signal.SIGTERM)

    assert [train(recipe, stop, benchmark_named) for _ in range(3)] == [signal.SIGTERM, signal.SIGTERM, 0]
    rows = [[{name: row[name] for name in row if name not in TIMES} for row in read(run)] for run in (whole, out)]
    assert rows[0] == rows[1]
    assert hashes(out / "model") == hashes(whole / "model")


def test_two_ranks_are_one(whole: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    plain = json.loads(json.dumps(NANO))
    for key, value in changes.items():
        plain[key] = plain.get(key, {}) | value if isinstance(value, dict) else value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain))
    for shard_size in (1, 2):
        out = tmp_path / f"run-{shard_size}"
        command = ["train", tmp_path / "recipe.yaml", f"out={out}", f"shard_size={shard_size}", "--nproc", "2"]
        done = vlmix(*map(str, command))
        assert done.returncode == 0, done.stderr
        same_training(out, whole)
