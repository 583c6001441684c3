"""Benchmarks that are asked while a model is trained."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from vlmix.mixture.benchmark.benchmark import Benchmark, Report
from vlmix.mixture.errors import VlmixError
from vlmix.train.config import Recipe
from vlmix.train.evaluate.evaluate import Task, check, evaluate_on
from vlmix.train.model import TrainableVLM
from vlmix.train.parallel import Ranks

FOLDER = "evaluate"
"""Folder of a run that holds the answers."""


class Evaluation:
    """Asks the model of a step as `vlmix evaluate` asks a finished one: it is exported, answers, and is removed.
    `RUN/evaluate/step-00000500/BENCHMARK/` keeps answers, report and values."""

    name = "evaluate"

    def __init__(
        self,
        recipe: Recipe,
        benchmark: Callable[[str], Benchmark],
        run: Path,
        export: Callable[[TrainableVLM, Path], None],
        me: Ranks,
    ) -> None:
        """`export` writes a model folder, all ranks taking part. Raises VlmixError for what cannot be asked or
        scored."""
        config = recipe.evaluate
        assert config is not None
        self.interval, self.folder, self.export, self.me = config.interval, run / FOLDER, export, me
        self.tasks = {}
        for key, each in config.benchmarks.items():
            one = benchmark(key)
            if one.own is not None and each.data:
                raise VlmixError(f"evaluate: benchmarks.{key}: it names its questions itself; take `data` out")
            self.tasks[one.name] = Task.of(
                one, structs.replace(each, limit=each.limit or config.limit), config.batch_size
            )
        kind, _, name = recipe.checkpoint.best.partition(".")
        if kind == "evaluate" and name not in self.tasks:
            raise VlmixError(f"checkpoint.best: {name!r} is not asked; `evaluate` has {', '.join(self.tasks)}")
        for task in self.tasks.values():
            check(task)

    def __call__(self, model: TrainableVLM, step: int) -> dict[str, Any]:
        """Score, its 95 % interval where there is one, and number of questions by benchmark."""
        out = self.folder / f"step-{step:08d}"
        exported = out / "model"
        self.me.run_on_main(lambda: shutil.rmtree(out, ignore_errors=True))  # a killed run's, of weights that are gone
        self.export(model, exported)
        try:
            reports = evaluate_on(self.me, str(exported), list(self.tasks.values()), out)
        finally:
            self.me.run_on_main(lambda: shutil.rmtree(exported, ignore_errors=True))
            if self.me.device.type == "cuda":
                torch.cuda.empty_cache()
        return {name: _facts(report) for name, report in zip(self.tasks, reports, strict=True)}


def _facts(report: Any) -> dict[str, Any]:
    if not isinstance(report, Report):
        raise VlmixError(f"no score: {report.why}")
    facts: dict[str, Any] = {"score": report.score, "questions": report.answered + report.missing}
    return facts | (dict(zip(("low", "high"), report.interval)) if report.interval else {})
