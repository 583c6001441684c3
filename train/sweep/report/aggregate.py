"""From runs to points: means over seeds, scores relative to the full mixture, and their intervals over questions and
seeds.

What comes out depends on the rows and values, not on their order.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeGuard

import msgspec
from msgspec import Struct

from vlmix.mixture.benchmark.compare import Estimate, Run, mean_score
from vlmix.mixture.benchmark.compare import relative as relative_score
from vlmix.mixture.benchmark.intervals import quantile
from vlmix.mixture.benchmark.values import Values
from vlmix.mixture.overlaps.scores import Parts

FULL = "full mixture"
"""`selection` of the points of the full mixture, which serves every selection of its grid values."""

RANDOM = "random"
"""The selection that others are compared with."""

BUILT_IN = (RANDOM, "lengths", "clusters")
"""Selections that need no file of scores or ids."""


class Result(Struct, frozen=True, kw_only=True):
    """One trained and evaluated model.

    `sources` are the samples of its subset, `train_seconds` and `evaluate_seconds` are wall clock, `questions` counts
    those asked per benchmark. Losses and scores may be NaN, or None, which NaN becomes on its way through JSON.
    """

    run: str
    grid: dict[str, Any]
    """Recipe keys that the sweep varies, with this run's values."""
    selection: str
    """Name of the selection that chose the subset. Of no meaning at ratio 1."""
    ratio: float
    """Share of the mixture's samples; 1.0: the full mixture."""
    seed: int
    samples: int
    sources: dict[str, int]
    steps: int
    loss: float | None
    train_seconds: float
    evaluate_seconds: float
    scores: Mapping[str, float | None]
    """Benchmark -> main number. A score that is not a finite number counts as missing."""
    metrics: Mapping[str, Mapping[str, float | None]]
    """Benchmark -> sub-scores."""
    questions: dict[str, int]
    chance: dict[str, float] = {}
    """Benchmark -> what guessing scores, where that is known."""
    halves: dict[str, dict[str, float]] = {}
    """Benchmark -> sub-score, "" for the score itself -> half of its 95 % interval over questions."""
    seen: dict[str, Parts] = {}
    """Benchmark -> scores on the questions that are in the run's own subset, and on the rest, with `overlaps`."""
    finished: str
    """When, in UTC: `2026-11-28T19:45:02Z`."""
    machine: str
    versions: dict[str, str]
    mixture: str
    """SHA-256 of the whole mixture's manifest."""


RunValues = Mapping[str, Mapping[str, Values]]
"""Run -> benchmark -> what each question adds to the score."""


class Spread(Struct, frozen=True, kw_only=True):
    """A mean over seeds with its 95 % interval: over questions and seeds; over seeds alone where what questions add is
    not at hand; over questions alone for one seed. None: unknown."""

    mean: float
    low: float | None
    high: float | None
    by_seed: dict[int, float]
    over: str = ""
    """`questions and seeds`, `questions`, `seeds`, `definition` (the reference itself), or "" without an interval."""

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def at_its_own(self) -> "Spread":
        """The spread of what is the reference: none."""
        return Spread(mean=self.mean, low=self.mean, high=self.mean, by_seed=self.by_seed, over="definition")


class Point(Struct, frozen=True, kw_only=True):
    """What the runs of one (grid, selection, ratio) say.

    `relative` is in percent. Per seed it is the mean over benchmarks of score / mean over seeds of the full mixture's
    score at the same grid values. Its interval has the spread of the reference in it, paired by question and by seed;
    that of the full mixture itself, 100 by definition, has no width. A seed counts only if it has every benchmark of
    the reference. None: no run on the full mixture, or no such seed.
    `left_out` are benchmarks that cannot be relative, as the full mixture scores 0 (or less) in them.
    """

    grid: dict[str, Any]
    selection: str
    ratio: float
    seeds: int
    samples: int
    """Mean over seeds, rounded."""
    scores: dict[str, Spread]
    relative: Spread | None
    left_out: list[str]
    chance: dict[str, float]
    """Benchmark -> what guessing scores, where the runs say one thing."""
    relative_chance: float | None
    """The same relative to the full mixture; None unless it is known for every benchmark of the relative score."""

    @property
    def full(self) -> bool:
        return self.ratio == 1


class Series(NamedTuple):
    """Points of one (grid, selection) by rising ratio, the full mixture's last, if there is one."""

    grid: dict[str, Any]
    selection: str
    points: list[Point]


def ordered(rows: Iterable[Result]) -> list[Result]:
    """By grid values, selection (random first, the full mixture last), ratio, seed and run."""
    return sorted(rows, key=lambda row: (_place(row), row.seed, row.run, msgspec.json.encode(row, order="sorted")))


def grouped(rows: Iterable[Result]) -> list[list[Result]]:
    """The rows of each point, in the order of `aggregate`."""
    groups: dict[Any, list[Result]] = {}
    for row in ordered(rows):
        groups.setdefault(_place(row), []).append(row)
    return list(groups.values())


def aggregate(rows: Iterable[Result], values: RunValues | None = None) -> list[Point]:
    """One point for each (grid, selection, ratio); rows of ratio 1 make one point for each grid, with selection `FULL`.

    Runs that share a point and a seed count as one, by their mean.
    """
    return points_of(grouped(rows), values)


def points_of(groups: Sequence[list[Result]], values: RunValues | None = None) -> list[Point]:
    """The same of rows that are grouped already, a point for each group."""
    known = values or {}
    scored = [(group, scores_of(group, known)) for group in groups]
    full = {grid_key(group[0].grid): (group, scores) for group, scores in scored if group[0].ratio == 1}
    points = []
    for group, scores in scored:
        first = group[0]
        reference, whole = full.get(grid_key(first.grid), ([], {}))
        means = {name: score.mean for name, score in whole.items()}
        usable = {name: mean for name, mean in means.items() if mean > 0}
        chance = _chance(group)
        points.append(
            Point(
                grid=first.grid,
                selection=FULL if first.ratio == 1 else first.selection,
                ratio=first.ratio,
                seeds=len({row.seed for row in group}),
                samples=round(fmean(row.samples for row in group)),
                scores=scores,
                relative=_relative_spread(group, reference, usable, known),
                left_out=[name for name in means if name not in usable],
                chance=chance,
                relative_chance=_mean_ratio(chance, usable),
            )
        )
    return points


def series(points: list[Point]) -> list[Series]:
    """The lines of a curve. A grid with nothing but the full mixture is a line of that point, with selection `FULL`."""
    lines: dict[Any, Series] = {}
    full = {grid_key(point.grid): point for point in points if point.full}
    for point in points:
        key = grid_key(point.grid)
        if not point.full:
            lines.setdefault((key, point.selection), Series(point.grid, point.selection, [])).points.append(point)
        elif not any(grid_key(other.grid) == key for other in points if not other.full):
            lines[key, FULL] = Series(point.grid, FULL, [])
    for (key, _), line in lines.items():
        line.points.extend([full[key]] if key in full else [])
    return sorted(lines.values(), key=lambda line: (grid_key(line.grid), _selection_key(line.selection)))


def spread(rows: Iterable[Result], value: Callable[[Result], float | None]) -> Spread | None:
    """`value` over the seeds of `rows`, with an interval over seeds; None if no row has one."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if is_number(number := value(row)):
            by_seed.setdefault(row.seed, []).append(number)
    means = {seed: fmean(values) for seed, values in sorted(by_seed.items())}
    if not means:
        return None
    mean, count = fmean(means.values()), len(means)
    if count < 2:
        return Spread(mean=mean, low=None, high=None, by_seed=means)
    reach = quantile(count - 1) * stdev(means.values()) / math.sqrt(count)
    return Spread(mean=mean, low=mean - reach, high=mean + reach, by_seed=means, over="seeds")


def sub_score(rows: Iterable[Result], benchmark: str, metric: str) -> Spread | None:
    """A sub-score over the seeds of `rows`. Its interval is that over seeds, widened by that of one run over questions,
    which is a little more than questions add to the mean of several."""
    rows = list(rows)
    found = spread(rows, lambda row: row.metrics.get(benchmark, {}).get(metric))
    over_questions = [row.halves[benchmark][metric] for row in rows if metric in row.halves.get(benchmark, {})]
    return _widened(found, over_questions, over_questions)


def _widened(found: Spread | None, below: list[float], above: list[float]) -> Spread | None:
    """The interval over seeds, widened by how far those over questions reach below and above their scores."""
    if found is None or not below:
        return found
    down, up = (math.hypot(found.half or 0.0, fmean(reach)) for reach in (below, above))
    over = "questions and seeds" if len(found.by_seed) > 1 else "questions"
    return Spread(mean=found.mean, low=found.mean - down, high=found.mean + up, by_seed=found.by_seed, over=over)


class PartSpread(NamedTuple):
    """The score on a part of a benchmark's questions. `questions` are those of the part in each run: seeds draw other
    samples. `spread` is over the runs whose part has answers, None where there are none."""

    spread: Spread | None
    questions: list[int]


def part_spread(rows: Iterable[Result], benchmark: str, part: str) -> PartSpread:
    """The score on a part (`picture_seen`, `text_seen`, `clean`) over the seeds of `rows`, with an interval like that
    of `sub_score`."""
    rows = [row for row in rows if benchmark in row.seen]
    parts = {row.run: row.seen[benchmark].by_name()[part] for row in rows}
    found = spread(rows, lambda row: None if (one := parts[row.run]) is None else one.score)
    ends = [(one.score, *one.interval) for one in parts.values() if one and one.score is not None and one.interval]
    below, above = [score - low for score, low, _ in ends], [high - score for score, _, high in ends]
    widened = _widened(found, below, above)
    if widened is not None and widened.low is not None:  # few questions and seeds reach below what can be scored
        widened = msgspec.structs.replace(widened, low=max(0.0, widened.low))
    return PartSpread(widened, [one.questions if one else 0 for one in parts.values()])


def runs_of(rows: Sequence[Result], values: RunValues, benchmarks: Iterable[str]) -> list[Run] | None:
    """Rows with what their questions add, one for each seed; None where a row has not all of it, or a seed stands
    twice."""
    names = list(benchmarks)
    if not rows or len({row.seed for row in rows}) < len(rows):
        return None
    if any(name not in values.get(row.run, {}) for row in rows for name in names):
        return None
    return [Run(row.seed, {name: values[row.run][name] for name in names}) for row in rows]


def with_interval(spread: Spread, estimate: Estimate) -> Spread:
    """The same mean with the interval of an estimate."""
    low, high = (spread.mean + end - estimate.value for end in (estimate.low, estimate.high))
    over = "questions and seeds" if estimate.seeds > 1 else "questions"
    return Spread(mean=spread.mean, low=low, high=high, by_seed=spread.by_seed, over=over)


def is_number(item: float | None) -> TypeGuard[float]:
    return item is not None and math.isfinite(item)


def is_relative(points: Iterable[Point]) -> bool:
    """Whether there is something to read off beyond the full mixture's own 100 %."""
    return any(point.relative and not point.full for point in points)


def benchmarks(points: Iterable[Point]) -> list[str]:
    """All benchmarks that some point has a score in, by name."""
    return sorted({name for point in points for name in point.scores})


def chances(points: Iterable[Point]) -> dict[str, float]:
    """Benchmark -> what guessing scores, where the points say one thing."""
    said: dict[str, set[float]] = {}
    for point in points:
        for name, chance in point.chance.items():
            said.setdefault(name, set()).add(chance)
    return {name: chance for name, (chance, *others) in sorted(said.items()) if not others}


def relative_chances(points: Iterable[Point]) -> list[float]:
    """What guessing scores relative to the full mixtures: one number for each that differs, by size."""
    return sorted({point.relative_chance for point in points if point.relative_chance is not None})


def grid_key(grid: dict[str, Any]) -> tuple[tuple[str, bool, float, bytes], ...]:
    """Equal for equal grids; sorts numbers by value and before everything else."""
    return tuple((name, *_value_key(value)) for name, value in sorted(grid.items()))


def _value_key(value: Any) -> tuple[bool, float, bytes]:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not number, float(value) if number else 0.0, msgspec.json.encode(value, order="deterministic")


def _place(row: Result) -> tuple[Any, ...]:
    return grid_key(row.grid), _selection_key(FULL if row.ratio == 1 else row.selection), row.ratio


def _selection_key(name: str) -> tuple[int, str]:
    """Built-in selections first, then files, the full mixture last."""
    first = {**{built_in: at for at, built_in in enumerate(BUILT_IN)}, FULL: len(BUILT_IN) + 1}
    return first.get(name, len(BUILT_IN)), name


def scores_of(group: list[Result], values: RunValues) -> dict[str, Spread]:
    """Benchmark -> the score over the seeds of a point."""
    found = {}
    for name in sorted({name for row in group for name in row.scores}):
        scored = [row for row in group if is_number(row.scores.get(name))]
        over_seeds = spread(scored, lambda row, name=name: row.scores.get(name))  # type: ignore[misc]
        if over_seeds is None:
            continue
        runs = runs_of(scored, values, [name])
        found[name] = over_seeds if runs is None else with_interval(over_seeds, mean_score(runs, name))
    return found


def _relative_spread(
    group: list[Result], reference: list[Result], usable: dict[str, float], values: RunValues
) -> Spread | None:
    over_seeds = spread(group, lambda row: _relative(row, usable))
    if over_seeds is None or group is reference:
        return None if over_seeds is None else over_seeds.at_its_own()
    counted = [row for row in group if _relative(row, usable) is not None]
    runs, full = runs_of(counted, values, usable), runs_of(with_all(reference, usable), values, usable)
    if runs is None or full is None:
        return over_seeds
    return with_interval(over_seeds, relative_score(runs, full, list(usable)))


def with_all(rows: list[Result], names: Collection[str]) -> list[Result]:
    """The rows that have a score in every one of these benchmarks."""
    return [row for row in rows if all(is_number(row.scores.get(name)) for name in names)]


def _relative(row: Result, full: dict[str, float]) -> float | None:
    """Percent; None where the row lacks one of the benchmarks, as means over different ones do not compare."""
    return _mean_ratio({name: score for name, score in row.scores.items() if is_number(score)}, full)


def _mean_ratio(scores: Mapping[str, float], full: dict[str, float]) -> float | None:
    if not full or not full.keys() <= scores.keys():
        return None
    return 100 * fmean(scores[name] / mean for name, mean in full.items())


def _chance(group: list[Result]) -> dict[str, float]:
    names = sorted({name for row in group for name in row.chance})
    said = {name: {row.chance[name] for row in group if name in row.chance} for name in names}
    return {name: chance for name, (chance, *others) in said.items() if not others}
