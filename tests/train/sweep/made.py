"""Sweeps for tests: their files, and models that need no training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.mixture.benchmark.made import values_of
from tests.train.nano import NANO
from vlmix.builders import known_benchmarks
from vlmix.mixture.benchmark.benchmark import Report
from vlmix.mixture.benchmark.values import NAME as VALUES_NAME
from vlmix.train.config import Recipe
from vlmix.train.evaluate.evaluate import Task
from vlmix.train.sweep.sweep import Backend


def sweep_file(folder: Path, mixture: Path, global_size: int, **plain: Any) -> Path:
    """A sweep over the smallest model, in `folder`."""
    recipe, path = folder / "nano.yaml", folder / "sweep.yaml"
    batch = {"global_size": global_size, "pack_length": 2048, "max_length": 512}
    recipe.write_text(yaml.safe_dump({**NANO, "batch": batch}))
    path.write_text(yaml.safe_dump({"mixture": str(mixture), "recipe": str(recipe), **plain}))
    return path


def untrained(rate: Callable[[str], float]) -> Backend:
    """Models that need no training: `rate` of their questions is right."""

    def train(recipe: Recipe) -> int:
        out = Path(recipe.out)
        out.mkdir(parents=True)
        (out / "metrics.jsonl").write_text('{"step": 1, "of": 1, "loss": 1.0}\n')
        return 0

    def evaluate(model: str, tasks: list[Task], out: Path) -> list[Any]:
        values = values_of(np.arange(4000) < rate(Path(model).parent.name) * 4000)
        (out / "vqav2").mkdir(parents=True)
        values.write(out / "vqav2" / VALUES_NAME)
        return [
            Report(
                benchmark="vqav2", split="val", score=values.score(), metrics={}, answered=4000, missing=0,
                duplicates=0, unknown=0, notes=[],
            )
        ]  # fmt: skip

    return Backend(
        build=lambda *_: None, train=train, evaluate=evaluate,
        recipe=lambda name: yaml.safe_load(Path(name).read_text()), benchmark=known_benchmarks().__getitem__,
    )  # fmt: skip
