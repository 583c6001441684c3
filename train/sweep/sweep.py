"""Sweeps: nested subsets of a mixture, each trained and evaluated, over seeds, selections and recipe keys.

A run that has its row is not repeated; one that was interrupted resumes. Any number of processes may work on one
folder: each claims an unlocked run; locks are released when the process exits.
"""

import math
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from vlmix.mixture.benchmark.benchmark import Benchmark, Report
from vlmix.mixture.benchmark.values import Values
from vlmix.mixture.dataset.manifest import NAME as MANIFEST_NAME
from vlmix.mixture.errors import VlmixError, abridged, nearest
from vlmix.mixture.io.atomic import write_text
from vlmix.mixture.io.digests import sha256 as digest
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.score_file import read_listing
from vlmix.train.config import Recipe, parse
from vlmix.train.evaluate.evaluate import Task, Unscored
from vlmix.train.metrics import read as read_metrics
from vlmix.train.sweep.early import by_use, needless
from vlmix.train.sweep.environment import machine, now, versions
from vlmix.train.sweep.folder import (
    RESULTS,
    claim,
    finished,
    locked,
    read_rows,
    read_values,
    row_file,
    run_folder,
    subset_folder,
)
from vlmix.train.sweep.recipe import Build, RunSpec, Sweep, about, choices, grid_settings, run_specs
from vlmix.train.sweep.report.aggregate import BUILT_IN, Result, RunValues
from vlmix.train.sweep.seen import Seen
from vlmix.train.sweep.subsets import check_selections, write_subset


class Backend(Struct, frozen=True):
    """The work of a run, as whoever runs the sweep does it: in this process or in others."""

    build: Callable[[Build, dict[str, Any], Path], None]
    """Build a mixture with changes to its recipe into a folder."""
    train: Callable[[Recipe], int]
    """0 if the run got to its end, else the signal that stopped it."""
    evaluate: Callable[[str, list[Task], Path], list[Report | Unscored]]
    recipe: Callable[[str], Any]
    """Plain data of a training recipe by its name."""
    benchmark: Callable[[str], Benchmark]
    """The evaluation set of a name, or of a YAML file."""


ProgressCallback = Callable[[str, int, int], None]
"""Called when runs change state: (what happens, runs that are done, runs in all)."""


def run(sweep: Sweep, out: Path, backend: Backend, report_progress: ProgressCallback = lambda *_: None) -> list[Result]:
    """Do what is left of a sweep, beside other processes that work on the same folder; the rows of all runs.

    Seeds, ratios and selections may be added to a sweep that is there. Raises VlmixError where `out` holds another
    one, before the first run for what cannot be trained or asked, and for a run that fails; what is done stays.
    """
    left = run_specs(sweep)
    names = {spec.name for spec in left}
    plain = backend.recipe(sweep.recipe)
    recipes = {spec.name: _recipe(sweep, spec, plain) for spec in left}
    tasks = _tasks(sweep, backend)
    _check(sweep, left, recipes, tasks)
    seen = Seen(Path(sweep.overlaps), sweep.mixture, tasks) if sweep.overlaps else None
    claim(sweep, out)
    standing = Standing(sweep, out)
    while left:
        held: list[RunSpec] = []
        queue = left
        while queue := standing.useful(queue):
            spec, queue = queue[0], queue[1:]
            home, row = run_folder(out, spec.name), row_file(out, spec.name)
            if row.exists():
                continue
            with locked(home) as mine:
                if not mine:
                    held.append(spec)
                elif not row.exists():
                    report_progress(spec.name, *standing.counts())
                    try:
                        result = _run_one(sweep, spec, out, home, backend, recipes[spec.name], tasks)
                        if seen is not None:  # here, where workers share it
                            seen.told(result, out)
                    except VlmixError as error:
                        raise VlmixError(f"run {spec.name}: {error}") from None
            report_progress(spec.name, *standing.counts())
        if held and len(held) == len(left):
            time.sleep(0.5)  # the others hold them all; they may end without a result
        left = held
    rows = [row if seen is None else seen.told(row, out) for row in read_rows(out, names)]
    text = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    write_text(out / RESULTS, text.decode())
    return rows


def left_out(sweep: Sweep, rows: Iterable[Result], values: RunValues) -> dict[str, str]:
    """Run -> why it is left out, with `stop_early`. `rows` and `values` are those of finished runs."""
    return needless(run_specs(sweep), rows, values) if sweep.stop_early else {}


class Standing:
    """How far a sweep is, by its folder. What a finished run left is read once."""

    def __init__(self, sweep: Sweep, out: Path) -> None:
        self._sweep, self._out = sweep, out
        self._names = [spec.name for spec in run_specs(sweep)]
        self._rows: dict[str, Result] = {}
        self._values: dict[str, dict[str, Values]] = {}
        self._left_out: dict[str, str] = {}

    def counts(self) -> tuple[int, int]:
        """Runs that are done, and runs in all without those that are left out."""
        self._look()
        return finished(self._out, self._names), len(self._names) - len(self._left_out)

    def useful(self, queue: list[RunSpec]) -> list[RunSpec]:
        """The runs of a queue, with `stop_early` those that are still of use, the one that decides soonest first."""
        if not self._sweep.stop_early:
            return queue
        self._look()
        return by_use([spec for spec in queue if spec.name not in self._left_out and spec.name not in self._rows])

    def _look(self) -> None:
        if not self._sweep.stop_early:
            return
        if new := read_rows(self._out, [name for name in self._names if name not in self._rows]):
            self._rows |= {row.run: row for row in new}
            self._values |= read_values(self._out, new)
            self._left_out = left_out(self._sweep, self._rows.values(), self._values)


def _run_one(
    sweep: Sweep, spec: RunSpec, out: Path, home: Path, backend: Backend, recipe: Recipe, tasks: list[Task]
) -> Result:
    """`recipe` is that of the run, but for its folders."""
    whole = _mixture(sweep, spec, out, backend)
    data = whole if spec.ratio == 1 else write_subset(spec, whole, subset_folder(out, spec.name))
    recipe = msgspec.structs.replace(recipe, mixture=str(data), out=str(home / "run"))
    if sweep.budget == "steps" and not recipe.max_steps:
        batch = recipe.batch
        full = (
            open_mixture(whole)
            .schedule(batch.global_size, length_window=batch.length_window, drop_last=batch.drop_last)
            .steps_per_epoch
        )
        recipe = msgspec.structs.replace(recipe, max_steps=math.ceil(recipe.epochs * full))
    began = time.monotonic()
    if stopped := backend.train(recipe):
        raise SystemExit(128 + stopped)
    trained = time.monotonic()
    reports = backend.evaluate(str(home / "run"), tasks, home / "answers")
    scored: dict[str, Report] = {}
    for name, report in zip(sweep.evaluate, reports, strict=True):
        if isinstance(report, Unscored):
            raise VlmixError(f"{home}: no score for {name}: {report.why}")
        scored[name] = report
    opened, last = open_mixture(data), read_metrics(home / "run")[-1]
    result = Result(
        run=spec.name,
        grid=spec.grid,
        selection=spec.label,
        ratio=spec.ratio,
        seed=spec.seed,
        samples=len(opened),
        sources={name: info.counts.samples for name, info in sorted(opened.manifest.sources.items())},
        steps=last["step"],
        loss=last["loss"],
        train_seconds=round(trained - began, 1),
        evaluate_seconds=round(time.monotonic() - trained, 1),
        scores={name: report.score for name, report in scored.items()},
        metrics={name: report.metrics for name, report in scored.items()},
        halves={name: report.halves() for name, report in scored.items()},
        questions={name: report.answered + report.missing for name, report in scored.items()},
        chance={name: report.chance for name, report in scored.items() if report.chance is not None},
        finished=now(),
        machine=machine(),
        versions=versions(),
        mixture=digest(whole / MANIFEST_NAME),
    )
    write_text(row_file(out, spec.name), msgspec.json.format(msgspec.json.encode(result)).decode() + "\n")
    return result


def _check(sweep: Sweep, planned: list[RunSpec], recipes: dict[str, Recipe], tasks: list[Task]) -> None:
    """Raises VlmixError for what the runs would stumble over one by one."""
    for choice in choices(sweep):
        with about(choice):
            if choice.embeddings is not None and not Path(choice.embeddings).is_file():
                raise VlmixError(f"there is no file {choice.embeddings} of embeddings; `vlmix embed` writes one")
            if choice.by not in BUILT_IN and not Path(choice.by).is_file():
                raise VlmixError(f"{choice.by} is no file of scores or ids{nearest(choice.by, BUILT_IN)}")
            if choice.by not in BUILT_IN:
                read_listing(Path(choice.by), choice.column)
    for task in tasks:
        task.benchmark.questions(task.folder, task.split)
    samples = int(open_mixture(sweep.mixture).column("repeat").to_numpy().sum()) if sweep.mixture else None
    for spec in planned:
        batch = recipes[spec.name].batch.global_size
        if samples is not None and batch > (held := int(samples * spec.ratio)):
            raise VlmixError(
                f"run {spec.name}: batch.global_size {batch} is larger than its {held} samples; add "
                "overrides.batch.global_size=N, or leave the ratio out"
            )
    if sweep.mixture:
        check_selections(planned, Path(sweep.mixture))


def _recipe(sweep: Sweep, spec: RunSpec, plain: Any) -> Recipe:
    """The training recipe of a run, but for its folders, from plain data of the sweep's."""
    plain = deepcopy(plain)
    changes = {key: value for key, value in grid_settings(sweep, spec).items() if not key.startswith("mixture.")}
    for key, value in (sweep.overrides | changes).items():
        _set(plain, key, value, f"sweep {sweep.name}")
    return parse(plain | {"seed": spec.seed}, f"sweep {sweep.name}")


def _tasks(sweep: Sweep, backend: Backend) -> list[Task]:
    return [
        Task.of(backend.benchmark(exam.own[0] if exam.own else name), exam, sweep.eval_batch_size)
        for name, exam in sweep.evaluate.items()
    ]


def _mixture(sweep: Sweep, spec: RunSpec, out: Path, backend: Backend) -> Path:
    """The whole mixture of a spec, built where keys of its recipe are swept."""
    if sweep.build is None:
        return Path(sweep.mixture)
    settings = grid_settings(sweep, spec)
    changes = {key.removeprefix("mixture."): value for key, value in settings.items() if key.startswith("mixture.")}
    key = sha256(msgspec.json.encode([msgspec.to_builtins(sweep.build), changes])).hexdigest()[:12]
    folder = out / "mixtures" / key
    with locked(folder, wait=True):
        if not (folder / "mixture").is_dir():
            backend.build(sweep.build, changes, folder / "mixture")
            check_selections(run_specs(sweep), folder / "mixture")
    return folder / "mixture"


def _set(data: Any, key: str, value: Any, where: str) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise VlmixError(f"{where}: {key}: `{parent}` is {abridged(repr(data))} in the recipe, without keys")
    data[leaf] = deepcopy(value)  # one run's changes to it are not another's
