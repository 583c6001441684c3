"""Sweeps: nested subsets of a mixture, each trained and evaluated, over seeds, selections and recipe keys.

SWEEP/
  sweep.json               what is swept; another sweep is refused
  mixtures/<digest>/       mixtures built for keys of the mixture recipe
  runs/<name>/subset       the view of the mixture for the run
  runs/<name>/run          the training run, answers/ its answers, result.json its row
  results.jsonl and what `report.write` writes

A run that has its row is not repeated; one that was interrupted resumes. Any number of processes may work on one
folder: each claims an unlocked run; locks are released when the process exits.
"""

import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from vlmix.mixture.benchmark.benchmark import Benchmark, Report
from vlmix.mixture.benchmark.values import Values
from vlmix.mixture.dataset.manifest import NAME as MANIFEST_NAME
from vlmix.mixture.errors import VlmixError, abridged, nearest
from vlmix.mixture.io import strict_yaml as strict
from vlmix.mixture.io.atomic import disk_errors, write_text
from vlmix.mixture.io.digests import sha256 as digest
from vlmix.mixture.io.locks import exclusive_lock
from vlmix.mixture.keyed import exact_share
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.score_file import read_listing
from vlmix.mixture.selection.subset import Selected, Selection, TooFew, check_options, save, select
from vlmix.train.config import Recipe, parse
from vlmix.train.evaluate.evaluate import VALUES, Task, Unscored
from vlmix.train.metrics import read as read_metrics
from vlmix.train.sweep.early import by_use, needless
from vlmix.train.sweep.environment import machine, now, versions
from vlmix.train.sweep.report import Result
from vlmix.train.sweep.report.aggregate import BUILT_IN, FULL
from vlmix.train.sweep.report.published import published
from vlmix.train.sweep.report.wording import value as as_text

RESULTS, SPEC = "results.jsonl", "sweep.json"
_GROWING = ("seeds", "ratios", "selections", "embeddings", "files", "published", "stop_early")
"""What may be added to a sweep that is there: its runs are named by these, or do not depend on them. A selection that
is there stays as it is."""
_ENOUGH = 99
"""Percent of a share's samples that a selection must offer. Published lists are rounded: ICONS' "20 %" of 665,298 rows
are 133,046, and a fifth is 133,060."""
Share = Annotated[float, Meta(gt=0, le=1)]
Axis = Annotated[list[Any], Meta(min_length=1)] | Annotated[dict[str, dict[str, Any]], Meta(min_length=1)]
"""Values of a recipe key, or names of mappings from recipe keys to values."""


class Build(Struct, frozen=True, kw_only=True):
    """A mixture to be built by the sweep, so that keys of its recipe can be swept."""

    recipe: str
    raw: str
    images: list[str] = []


class EvalConfig(Struct, frozen=True, kw_only=True):
    """One benchmark of the sweep."""

    data: str = ""
    """Folder of the official files; a YAML file names its questions itself."""
    images: list[str] = []
    split: str = ""
    limit: Annotated[int, Meta(ge=0)] = 0
    """The first so many questions; 0: all."""
    max_new_tokens: Annotated[int, Meta(ge=0)] = 0
    """Of an answer; 0: what LLaVA-1.5 allowed the benchmark."""
    own: tuple[str, ...] = ()
    """The YAML file of a benchmark of one's own, and what it reads. `load` fills it in."""


class Choice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which samples a subset takes, chosen as by `vlmix subsample`; how many is the ratio's matter."""

    name: str = ""
    """In results. By default random, lengths, clusters, or the file's name, with `:column` if there is one."""
    by: str = "random"
    """random, lengths, clusters, or a file of scores or ids (docs/selection.md)."""
    column: str | None = None
    ascending: bool = False
    threshold: float | None = None
    embeddings: str | None = None
    """For clusters; by default the sweep's."""
    clusters: int | None = None
    where: str | None = None

    @property
    def files(self) -> list[str]:
        """What it reads."""
        return [file for file in (self.by, self.embeddings) if file is not None and file not in BUILT_IN]

    def selection(self, total: int, seed: int) -> Selection:
        """It, for so many samples."""
        return Selection(
            total=total,
            seed=seed,
            by=None if self.by == RANDOM.name else self.by,
            column=self.column,
            ascending=self.ascending,
            threshold=self.threshold,
            embeddings=self.embeddings,
            clusters=self.clusters,
            where=self.where,
        )


RANDOM = Choice(name="random")
"""The control: it is part of every sweep with subsets."""


class Sweep(Struct, frozen=True, kw_only=True):
    """What is swept: every combination of `grid`, `selections`, `ratios` and `seeds` is one run."""

    name: str
    mixture: str = ""
    """A mixture, or `build`."""
    build: Build | None = None
    recipe: str
    """The training recipe: a file or a packaged one."""
    overrides: dict[str, Any] = {}
    """Keys of the training recipe for all runs."""
    ratios: Annotated[tuple[Share, ...], Meta(min_length=1)] = (0.1, 0.3, 0.5, 1.0)
    seeds: Annotated[tuple[int, ...], Meta(min_length=1)] = (0,)
    selections: Annotated[tuple[str | Choice, ...], Meta(min_length=1)] = ("random",)
    """random, lengths, clusters, a file of scores or ids, or a mapping; `choices` adds random where it is missing."""
    embeddings: str = ""
    """For clusters that name none themselves: the file that `vlmix embed` writes."""
    budget: Literal["epochs", "steps"] = "epochs"
    """Whether a subset is trained for the same number of epochs as the whole, or of steps."""
    grid: dict[str, Axis] = {}
    """Recipe key -> values; or, for keys that change together, any other name -> name of a value -> its keys.
    `mixture.KEY` is a key of the mixture recipe, others are of the training recipe."""
    evaluate: Annotated[dict[str, EvalConfig], Meta(min_length=1)]
    """By the name of the benchmark; in the recipe also by the path of a YAML file of one's own."""
    note: str = ""
    """What a reader of the report must know; it stands above the curve and on the page."""
    published: bool | tuple[str, ...] = False
    """Marks in the curve: the scores that papers report, or those of some methods (`report.published`)."""
    stop_early: bool = False
    """Leave out runs that can no longer change which share is enough (`sweep.early`); the report names them."""
    eval_batch_size: Annotated[int, Meta(ge=1)] = 16
    """Questions answered together."""


class RunSpec(Struct, frozen=True, kw_only=True):
    """One run of a sweep."""

    grid: dict[str, Any]
    """Axis -> its value, or the value's name."""
    selection: Choice
    """As `choices` gives it."""
    ratio: float
    seed: int

    @property
    def label(self) -> str:
        """What the selection is called in the results."""
        return self.selection.name

    @property
    def name(self) -> str:
        """A folder name that says what the run is."""
        values = [f"{key.rpartition('.')[2]}={value}" for key, value in self.grid.items()]
        parts = [*values, self.label, f"{self.ratio:g}", f"seed{self.seed}"]
        plain = "-".join("".join(c if c.isalnum() or c in "._=" else "_" for c in part) for part in parts)
        return plain if len(plain) < 100 else f"{plain[:80]}-{sha256(plain.encode()).hexdigest()[:12]}"


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


def load(path: Path, benchmark: Callable[[str], Benchmark], overrides: list[str] | None = None) -> Sweep:
    """The sweep in the YAML file at `path`, with `key=value` overrides. Raises VlmixError that names the key.

    `benchmark` gives the evaluation set of a name, or of a YAML file.
    """
    data = strict.load(path, overrides)
    if not isinstance(data, dict):
        raise VlmixError(f"{path}: a sweep is a mapping with `name`, `mixture`, `recipe` and `evaluate`")
    where = strict.label(path, overrides)
    strict.check_keys(data, Sweep, where)
    selections = data.get("selections")
    for number, selection in enumerate(selections if isinstance(selections, list) else []):
        if isinstance(selection, dict):
            strict.check_keys(selection, Choice, f"{where}: selections[{number}]")
    sweep: Sweep = strict.convert(data, Sweep, where)
    if bool(sweep.mixture) == (sweep.build is not None):
        raise VlmixError(f"{path}: a sweep has either a `mixture` or a `build`")
    _check_grid(sweep, path)
    try:
        published(sweep.published)
        choices(sweep)
        return msgspec.structs.replace(sweep, evaluate=_named(sweep.evaluate, benchmark))
    except VlmixError as error:
        raise VlmixError(f"{path}: {error}") from None


def _named(evaluate: dict[str, EvalConfig], benchmark: Callable[[str], Benchmark]) -> dict[str, EvalConfig]:
    """What is evaluated, by the names of the benchmarks."""
    found: dict[str, EvalConfig] = {}
    for key, exam in evaluate.items():
        one = benchmark(key)
        if exam.own:
            raise VlmixError(f"evaluate.{key}: unknown key 'own'; a benchmark of your own is named by its YAML file")
        if one.needs_judge:
            raise VlmixError(f"{key} needs a judge; a sweep evaluates what can be scored by itself")
        if one.own is None and not exam.data:
            raise VlmixError(f"evaluate.{key}: missing key `data`, the folder of its official files")
        if one.own is not None and exam.data:
            raise VlmixError(f"evaluate.{key}: it names its questions itself; leave `data` out")
        if one.name in found:
            raise VlmixError(f"evaluate: two benchmarks are called {one.name}; give one of them another `name`")
        own = () if one.own is None else (key, *(_beside(Path(key), file) for file in one.own.inputs[1:]))
        found[one.name] = msgspec.structs.replace(exam, own=own)
    return found


def _beside(recipe: Path, file: Path) -> str:
    """A file that `recipe` reads, by a path that starts where the recipe's does, so that folders may move."""
    base = recipe.absolute().parent
    return str(recipe.parent / file.relative_to(base)) if file.is_relative_to(base) else str(file)


def _check_grid(sweep: Sweep, path: Path) -> None:
    """Raises VlmixError for an axis that does not say what it sets, or sets what another one sets."""
    where: dict[str, str] = {}  # key -> the axis that sets it
    for axis, values in sweep.grid.items():
        keys = {axis: f"grid.{axis}"}
        if isinstance(values, dict):
            if axis in Recipe.__struct_fields__ or "." in axis:
                raise VlmixError(
                    f"{path}: grid.{axis} is a recipe key and takes a list of values; give an axis of several keys "
                    "another name: `resolution: {low: {KEY: VALUE, …}, high: {KEY: VALUE, …}}`"
                )
            if empty := [name for name, settings in values.items() if not settings]:
                raise VlmixError(f"{path}: grid.{axis}.{empty[0]} sets no key; write out what it stands for")
            keys = {key: f"grid.{axis}.{name}.{key}" for name, settings in values.items() for key in settings}
        for key, shown in keys.items():
            if sweep.build is None and key.startswith("mixture."):
                raise VlmixError(f"{path}: {shown} is a key of the mixture recipe; give `build` instead of `mixture`")
            if key.partition(".")[0] in ("seed", "out") or key == "mixture":
                raise VlmixError(f"{path}: {shown} is no key for a grid: each run has its own from the sweep")
            if key in where:
                raise VlmixError(f"{path}: {shown} is set by grid.{where[key]} too; leave it to one of them")
        where |= dict.fromkeys(keys, axis)


def choices(sweep: Sweep) -> list[Choice]:
    """The selections of a sweep, random first, with all names and embeddings written out.

    Random is added where the sweep leaves it out: it is the control that the others are compared with. Raises
    VlmixError for options that do not go together, and for a name that is taken.
    """
    named: dict[str, Choice] = {RANDOM.name: RANDOM}
    listed = []
    for given in sweep.selections:
        choice = Choice(by=given) if isinstance(given, str) else given
        name = choice.name or Path(choice.by).name + (f":{choice.column}" if choice.column else "")
        embeddings = choice.embeddings or (sweep.embeddings or None if choice.by == "clusters" else None)
        choice = msgspec.structs.replace(choice, name=name, embeddings=embeddings)
        with _about(choice):
            check_options(choice.selection(1, 0))
        plain = choice.by == RANDOM.name and choice.where is None
        if plain and choice != RANDOM:
            raise VlmixError(f"selection {name}: it is the random one; give it a `where`, or call it random")
        if not plain and (name == FULL or (name in BUILT_IN and name != choice.by) or name == RANDOM.name):
            raise VlmixError(f"selection {name}: the name is that of another selection; give it a `name` of its own")
        if name in listed:
            raise VlmixError(f"selections: two are called {name}; give one of them another `name`")
        listed.append(name)
        named[name] = choice
    return list(named.values())


def first_grid(grid: dict[str, Any]) -> dict[str, Any]:
    """The first values of a grid, or their names: what the other values are compared with."""
    return {axis: next(iter(values)) for axis, values in grid.items()}


def adds_random(sweep: Sweep) -> bool:
    """Whether a sweep has the random selection only because it is the control."""
    subsets = any(ratio < 1 for ratio in sweep.ratios)
    return subsets and not any(given in ("random", RANDOM, Choice()) for given in sweep.selections)


def run_specs(sweep: Sweep) -> list[RunSpec]:
    """All runs of a sweep, the largest first, so that several workers end together. The whole mixture is the same
    under every selection: it is trained once per seed. Raises VlmixError for two runs of one name."""
    found: dict[str, RunSpec] = {}
    for values in itertools.product(*sweep.grid.values()):
        for choice, ratio, seed in itertools.product(choices(sweep), sweep.ratios, sweep.seeds):
            chosen = RANDOM if ratio == 1 else choice
            spec = RunSpec(grid=dict(zip(sweep.grid, values)), selection=chosen, ratio=ratio, seed=seed)
            if found.setdefault(spec.name, spec) != spec:
                raise VlmixError(f"two runs of the sweep would be called {spec.name}: name their files or values apart")
    return sorted(found.values(), key=lambda spec: -spec.ratio)


def same_as_random(sweep: Sweep, out: Path) -> list[str]:
    """Runs of a sweep whose subset is exactly that of the random selection, though they select by something."""

    def subset(spec: RunSpec) -> Path:
        return out / "runs" / spec.name / "subset"

    names = []
    for spec in run_specs(sweep):
        control = msgspec.structs.replace(spec, selection=RANDOM)
        if spec.ratio < 1 and spec != control and subset(spec).exists() and subset(control).exists():
            rows, random_rows = (open_mixture(subset(each)).rows for each in (spec, control))
            names += [spec.name] * np.array_equal(rows, random_rows)
    return sorted(names)


def run(sweep: Sweep, out: Path, backend: Backend, report_progress: ProgressCallback = lambda *_: None) -> list[Result]:
    """Do what is left of a sweep, beside other processes that work on the same folder; the rows of all runs.

    Seeds, ratios and selections may be added to a sweep that is there. Raises VlmixError where `out` holds another
    one, before the first run for what cannot be trained or asked, and for a run that fails; what is done stays.
    """
    left = run_specs(sweep)
    names = {spec.name for spec in left}
    _check(sweep, left, backend)
    _claim(sweep, out)
    count = len(left)
    while left:
        held: list[RunSpec] = []
        queue = left
        while queue := _useful(sweep, queue, out):
            spec, queue = queue[0], queue[1:]
            home = out / "runs" / spec.name
            if (home / "result.json").exists():
                continue
            with _held(home) as mine:
                if not mine:
                    held.append(spec)
                elif not (home / "result.json").exists():
                    report_progress(spec.name, finished(out, names), count)
                    try:
                        _run_one(sweep, spec, out, home, backend)
                    except VlmixError as error:
                        raise VlmixError(f"run {spec.name}: {error}") from None
            report_progress(spec.name, finished(out, names), count)
        if held and len(held) == len(left):
            time.sleep(0.5)  # the others hold them all; they may end without a result
        left = held
    rows = [row for row in read_rows(out) if row.run in names]
    text = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    write_text(out / RESULTS, text.decode())
    return rows


def left_out(sweep: Sweep, out: Path) -> dict[str, str]:
    """Run -> why it is left out, with `stop_early`."""
    if not sweep.stop_early:
        return {}
    rows = read_rows(out)
    return needless(run_specs(sweep), rows, read_values(out, rows))


def _useful(sweep: Sweep, queue: list[RunSpec], out: Path) -> list[RunSpec]:
    """The runs of a queue, with `stop_early` those that are still of use, the one that decides soonest first."""
    if not sweep.stop_early:
        return queue
    skipped = left_out(sweep, out)
    return by_use(
        [spec for spec in queue if spec.name not in skipped and not (out / "runs" / spec.name / "result.json").exists()]
    )


def _run_one(sweep: Sweep, spec: RunSpec, out: Path, home: Path, backend: Backend) -> None:
    whole = _mixture(sweep, spec, out, backend)
    data = whole if spec.ratio == 1 else _subset(sweep, spec, whole, home / "subset")
    recipe = msgspec.structs.replace(_recipe(sweep, spec, backend), mixture=str(data), out=str(home / "run"))
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
    reports = backend.evaluate(str(home / "run"), _tasks(sweep, backend), home / "answers")
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
    write_text(home / "result.json", msgspec.json.format(msgspec.json.encode(result)).decode() + "\n")


def _check(sweep: Sweep, planned: list[RunSpec], backend: Backend) -> None:
    """Raises VlmixError for what the runs would stumble over one by one."""
    for choice in choices(sweep):
        with _about(choice):
            if choice.embeddings is not None and not Path(choice.embeddings).is_file():
                raise VlmixError(f"there is no file {choice.embeddings} of embeddings; `vlmix embed` writes one")
            if choice.by not in BUILT_IN and not Path(choice.by).is_file():
                raise VlmixError(f"{choice.by} is no file of scores or ids{nearest(choice.by, BUILT_IN)}")
            if choice.by not in BUILT_IN:
                read_listing(Path(choice.by), choice.column)
    for task in _tasks(sweep, backend):
        task.benchmark.questions(task.folder, task.split)
    samples = int(open_mixture(sweep.mixture).column("repeat").to_numpy().sum()) if sweep.mixture else None
    for spec in planned:
        batch = _recipe(sweep, spec, backend).batch.global_size
        if samples is not None and batch > (held := int(samples * spec.ratio)):
            raise VlmixError(
                f"run {spec.name}: batch.global_size {batch} is larger than its {held} samples; add "
                "overrides.batch.global_size=N, or leave the ratio out"
            )
    if sweep.mixture:
        _check_selections(planned, Path(sweep.mixture))


@contextmanager
def _about(choice: Choice) -> Iterator[None]:
    """Errors inside name the selection."""
    try:
        yield
    except VlmixError as error:
        raise VlmixError(f"selection {choice.name}: {error}") from None


def _check_selections(planned: list[RunSpec], whole: Path) -> None:
    """Raises VlmixError for a selection that cannot give the largest share that is asked of it."""
    largest: dict[str, RunSpec] = {}
    for spec in planned:  # by falling ratio
        if spec.ratio < 1 and spec.selection not in (RANDOM, Choice(name="lengths", by="lengths")):
            largest.setdefault(spec.label, spec)
    if largest:
        mixture = open_mixture(whole)
        for spec in largest.values():
            _select(spec, mixture)


def _recipe(sweep: Sweep, spec: RunSpec, backend: Backend) -> Recipe:
    """The training recipe of a run, but for its folders."""
    plain = backend.recipe(sweep.recipe)
    changes = {key: value for key, value in _settings(sweep, spec).items() if not key.startswith("mixture.")}
    for key, value in (sweep.overrides | changes).items():
        _set(plain, key, value, f"sweep {sweep.name}")
    return parse(plain | {"seed": spec.seed}, f"sweep {sweep.name}")


def _settings(sweep: Sweep, spec: RunSpec) -> dict[str, Any]:
    """Recipe key -> value, as the grid has them for a run."""
    settings: dict[str, Any] = {}
    for axis, value in spec.grid.items():
        values = sweep.grid[axis]
        settings |= values[value] if isinstance(values, dict) else {axis: value}
    return settings


def _tasks(sweep: Sweep, backend: Backend) -> list[Task]:
    return [
        Task(
            benchmark=backend.benchmark(exam.own[0] if exam.own else name),
            data=Path(exam.data) if exam.data else None,
            images=tuple(Path(root) for root in exam.images),
            split=exam.split,
            limit=exam.limit,
            max_new_tokens=exam.max_new_tokens,
            batch_size=sweep.eval_batch_size,
        )
        for name, exam in sweep.evaluate.items()
    ]


def _mixture(sweep: Sweep, spec: RunSpec, out: Path, backend: Backend) -> Path:
    """The whole mixture of a spec, built where keys of its recipe are swept."""
    if sweep.build is None:
        return Path(sweep.mixture)
    settings = _settings(sweep, spec)
    changes = {key.removeprefix("mixture."): value for key, value in settings.items() if key.startswith("mixture.")}
    digest = sha256(msgspec.json.encode([msgspec.to_builtins(sweep.build), changes])).hexdigest()[:12]
    folder = out / "mixtures" / digest
    with _held(folder, wait=True):
        if not (folder / "mixture").is_dir():
            backend.build(sweep.build, changes, folder / "mixture")
            _check_selections(run_specs(sweep), folder / "mixture")
    return folder / "mixture"


def _subset(sweep: Sweep, spec: RunSpec, whole: Path, view: Path) -> Path:
    """A view of part of a mixture, sampled by the run's seed: parts of one seed nest."""
    if view.exists():  # of a run that was interrupted: the same, and quickly made
        shutil.rmtree(view)
    save(_select(spec, open_mixture(whole)), view)
    return view


def _select(spec: RunSpec, whole: Mixture) -> Selected[Mixture]:
    """The samples of a spec: its share of the whole mixture, whatever the selection leaves out, so that the points of
    one share have the same size. Raises VlmixError for a selection that offers less than that (see `_ENOUGH`), and for
    one that offers all samples and ranks none: that is the random one."""
    choice, count = spec.selection, len(whole)
    total = exact_share(spec.ratio, count)
    if not total:
        raise VlmixError(f"a share of {spec.ratio:g} of {count:,} samples is less than one; raise it")
    with _about(choice):
        try:
            selected = select(whole, choice.selection(total, spec.seed))
        except TooFew as few:
            if 100 * few.offered < _ENOUGH * total:
                raise VlmixError(
                    f"it offers {few.offered:,} samples, and a share of {spec.ratio:g} of the {count:,} in the mixture "
                    f"is {total:,}; ratios up to {_floor(few.offered, count)} work"
                ) from None
            selected = select(whole, choice.selection(few.offered, spec.seed))
        unranked = selected.report is None or selected.report.listed
        if choice != RANDOM and unranked and selected.offered == count:
            raise VlmixError(
                f"all {count:,} samples are in it and none has a score, so its part is the random one; add a column "
                "score, or leave the selection out"
            )
    return selected


def _floor(part: int, count: int) -> str:
    """The largest ratio of four digits of which `count` has at most `part`."""
    digits = 3 + len(str(count // part))
    return f"{part * 10**digits // count / 10**digits:.{digits}f}".rstrip("0")


def _set(data: Any, key: str, value: Any, where: str) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise VlmixError(f"{where}: {key}: `{parent}` is {abridged(repr(data))} in the recipe, without keys")
    data[leaf] = deepcopy(value)  # one run's changes to it are not another's


def _claim(sweep: Sweep, out: Path) -> None:
    """Make the folder this sweep's."""
    plain, chosen = json.loads(msgspec.json.encode(sweep)), choices(sweep)
    plain["selections"] = msgspec.to_builtins(chosen)
    read = [file for choice in chosen for file in choice.files]
    read += [file for exam in sweep.evaluate.values() for file in exam.own]
    plain["files"] = {file: digest(Path(file)) for file in read}
    path = out / SPEC
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with _held(out, wait=True):
        if not path.exists():
            if any(out.iterdir()):
                raise VlmixError(f"{out} is not empty and no sweep; choose another --out")
            write_text(path, json.dumps(plain, indent=1) + "\n")
            return
        before = json.loads(path.read_text())
        former, listed = before.get("files", {}), before.get("selections", [])
        # Converted, it has the keys that came since, with their defaults.
        earlier = strict.convert({key: value for key, value in before.items() if key != "files"}, Sweep, str(path))
        before = json.loads(msgspec.json.encode(earlier))
        for file, was in former.items():
            if plain["files"].get(file, was) != was:
                raise VlmixError(f"{out}: {file} changed since this sweep started; choose another --out")
        plain["files"] = {**former, **plain["files"]}
        known = {choice.name: choice for choice in choices(earlier)}
        _check_same_selections(known, chosen, plain["files"], out)
        _check_lists(listed, chosen, out)
        plain["selections"] = msgspec.to_builtins(list({**known, **{each.name: each for each in chosen}}.values()))
        same = {key: value for key, value in before.items() if key not in _GROWING}
        if same == {key: value for key, value in plain.items() if key not in _GROWING}:
            write_text(path, json.dumps(plain, indent=1) + "\n")
            return
    keys = (plain.keys() | before.keys()) - set(_GROWING)
    if other := sorted(key for key in keys if plain.get(key) != before.get(key)):
        differences = "; ".join(f"{key} was {before.get(key)}, here it is {plain.get(key)}" for key in other[:3])
        raise VlmixError(f"{out} is another sweep: {differences}. Choose another --out")


def _check_same_selections(known: dict[str, Choice], chosen: list[Choice], files: dict[str, str], out: Path) -> None:
    """Raises VlmixError for a selection that has the name of an earlier one and is another. Files are the same if their
    contents are."""

    def meaning(choice: Choice) -> Choice:
        embeddings = choice.embeddings and files.get(choice.embeddings, choice.embeddings)
        return msgspec.structs.replace(choice, by=files.get(choice.by, choice.by), embeddings=embeddings)

    for choice in chosen:
        was = known.get(choice.name, choice)
        if meaning(was) != meaning(choice):
            raise VlmixError(
                f"{out} is another sweep: selection {choice.name} was {{{described(was)}}}, here it is "
                f"{{{described(choice)}}}. Give it another name, or choose another --out"
            )


def _check_lists(listed: list[Any], chosen: list[Choice], out: Path) -> None:
    """Raises VlmixError for a list of ids in a sweep that recorded no names: it took shares of the list then."""
    plain = [{"by": each} if isinstance(each, str) else each for each in listed]
    unnamed = {each["by"] for each in plain if "name" not in each} - {*BUILT_IN}
    for choice in chosen:
        if choice.by in unnamed and not read_listing(Path(choice.by), choice.column).scored:
            raise VlmixError(
                f"{out}: its runs by {choice.name} are shares of that list, and a share is one of the whole mixture; "
                "choose another --out"
            )


def described(choice: Choice, shown: Callable[[Any], Any] = lambda value: value) -> str:
    """What a selection is, but for its name, with each value as `shown` makes it: `by: scores.parquet, column: quality,
    ascending: true`."""
    plain = msgspec.to_builtins(choice) | {"by": choice.by}
    fields = [field for field in Choice.__struct_fields__ if field in plain and field != "name"]
    return ", ".join(f"{field}: {as_text(shown(plain[field]))}" for field in fields)


def finished(out: Path, names: Collection[str]) -> int:
    """How many of the runs have their result in a folder."""
    return sum((out / "runs" / name / "result.json").exists() for name in names)


def recorded_grid(out: Path) -> dict[str, Any]:
    """The grid of the sweep in a folder."""
    grid: dict[str, Any] = json.loads((out / SPEC).read_text())["grid"]
    return grid


def read_rows(out: Path) -> list[Result]:
    """The rows of all finished runs in a sweep's folder."""
    files = sorted((out / "runs").glob("*/result.json"))
    rows = [msgspec.json.decode(file.read_bytes(), type=Result) for file in files]
    return sorted(rows, key=lambda row: (json.dumps(row.grid), row.selection, row.ratio, row.seed))


def read_values(out: Path, rows: Sequence[Result]) -> dict[str, dict[str, Values]]:
    """Run -> benchmark -> what each question adds to the score, for the runs of a sweep's folder."""
    return {
        row.run: {
            name: Values.read(path)
            for name in row.scores
            if (path := out / "runs" / row.run / "answers" / name / VALUES).exists()
        }
        for row in rows
    }


@contextmanager
def _held(folder: Path, wait: bool = False) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder, wait) as mine:
        yield mine
