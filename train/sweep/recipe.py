"""What is swept: the recipe of a sweep, its selections, and the runs that come of it."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from vlmix.mixture.benchmark.benchmark import Benchmark
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import strict_yaml as strict
from vlmix.mixture.selection.subset import Selection, check_options
from vlmix.train.config import EvalConfig, Recipe
from vlmix.train.sweep.report.aggregate import BUILT_IN, FULL, RANDOM
from vlmix.train.sweep.report.published import published
from vlmix.train.sweep.report.wording import value as as_text

Share = Annotated[float, Meta(gt=0, le=1)]
Axis = Annotated[list[Any], Meta(min_length=1)] | Annotated[dict[str, dict[str, Any]], Meta(min_length=1)]
"""Values of a recipe key, or names of mappings from recipe keys to values."""


class Build(Struct, frozen=True, kw_only=True):
    """A mixture to be built by the sweep, so that keys of its recipe can be swept."""

    recipe: str
    raw: str
    images: list[str] = []


class Choice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which samples a subset takes, chosen as by `vlmix subsample`; how many is the ratio's matter."""

    name: str = ""
    """In results. By default random, lengths, clusters, or the file's name, with `:column` if there is one."""
    by: str = RANDOM
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
            by=None if self.by == RANDOM else self.by,
            column=self.column,
            ascending=self.ascending,
            threshold=self.threshold,
            embeddings=self.embeddings,
            clusters=self.clusters,
            where=self.where,
        )


CONTROL = Choice(name=RANDOM)
"""Random samples: part of every sweep with subsets."""


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
    overlaps: str = ""
    """The file of `vlmix overlaps` with the mixture: scores on seen and clean questions stand in the report."""
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
    if sweep.overlaps and sweep.build is not None:
        raise VlmixError(
            f"{path}: overlaps: the mixtures that a sweep builds have no file yet; build one, run `vlmix overlaps` "
            "with it, and give it as `mixture`"
        )
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
    named: dict[str, Choice] = {RANDOM: CONTROL}
    listed = []
    for given in sweep.selections:
        choice = Choice(by=given) if isinstance(given, str) else given
        name = choice.name or Path(choice.by).name + (f":{choice.column}" if choice.column else "")
        embeddings = choice.embeddings or (sweep.embeddings or None if choice.by == "clusters" else None)
        choice = msgspec.structs.replace(choice, name=name, embeddings=embeddings)
        with about(choice):
            check_options(choice.selection(1, 0))
        plain = choice.by == RANDOM and choice.where is None
        if plain and choice != CONTROL:
            raise VlmixError(f"selection {name}: it is the random one; give it a `where`, or call it random")
        if not plain and (name in (FULL, RANDOM) or (name in BUILT_IN and name != choice.by)):
            raise VlmixError(f"selection {name}: the name is that of another selection; give it a `name` of its own")
        if name in listed:
            raise VlmixError(f"selections: two are called {name}; give one of them another `name`")
        listed.append(name)
        named[name] = choice
    return list(named.values())


@contextmanager
def about(choice: Choice) -> Iterator[None]:
    """Errors inside name the selection."""
    try:
        yield
    except VlmixError as error:
        raise VlmixError(f"selection {choice.name}: {error}") from None


def first_grid(grid: dict[str, Any]) -> dict[str, Any]:
    """The first values of a grid, or their names: what the other values are compared with."""
    return {axis: next(iter(values)) for axis, values in grid.items()}


def adds_random(sweep: Sweep) -> bool:
    """Whether a sweep has the random selection only because it is the control."""
    subsets = any(ratio < 1 for ratio in sweep.ratios)
    return subsets and not any(given in (RANDOM, CONTROL, Choice()) for given in sweep.selections)


def run_specs(sweep: Sweep) -> list[RunSpec]:
    """All runs of a sweep, the largest first, so that several workers end together. The whole mixture is the same
    under every selection: it is trained once per seed. Raises VlmixError for two runs of one name."""
    found: dict[str, RunSpec] = {}
    for values in itertools.product(*sweep.grid.values()):
        for choice, ratio, seed in itertools.product(choices(sweep), sweep.ratios, sweep.seeds):
            chosen = CONTROL if ratio == 1 else choice
            spec = RunSpec(grid=dict(zip(sweep.grid, values)), selection=chosen, ratio=ratio, seed=seed)
            if found.setdefault(spec.name, spec) != spec:
                raise VlmixError(f"two runs of the sweep would be called {spec.name}: name their files or values apart")
    return sorted(found.values(), key=lambda spec: -spec.ratio)


def grid_settings(sweep: Sweep, spec: RunSpec) -> dict[str, Any]:
    """Recipe key -> value, as the grid has them for a run."""
    settings: dict[str, Any] = {}
    for axis, value in spec.grid.items():
        values = sweep.grid[axis]
        settings |= values[value] if isinstance(values, dict) else {axis: value}
    return settings


def described(choice: Choice, shown: Callable[[Any], Any] = lambda value: value) -> str:
    """What a selection is, but for its name, with each value as `shown` makes it: `by: scores.parquet, column: quality,
    ascending: true`."""
    plain = msgspec.to_builtins(choice) | {"by": choice.by}
    fields = [field for field in Choice.__struct_fields__ if field in plain and field != "name"]
    return ", ".join(f"{field}: {as_text(shown(plain[field]))}" for field in fields)
