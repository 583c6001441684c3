"""Points in words and in cells of text, for the terminal, the page and the pictures alike."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from vlmix.mixture.benchmark.compare import Comparison
from vlmix.mixture.benchmark.wording import p_value, signed, verdict
from vlmix.train.sweep.report.aggregate import (
    FULL,
    RANDOM,
    Point,
    Result,
    Series,
    Spread,
    benchmarks,
    chances,
    grid_key,
    is_number,
    is_relative,
    part_spread,
    relative_chances,
    series,
)
from vlmix.train.sweep.report.comparisons import Compared, Summary

NOTHING = "–"
GUESSING = "guessing"
KEEPS = 98.0
"""Percent of the full mixture's score that LLaVA-1.5 keeps with half of its mixture (5.1 of its paper)."""

_MARKS = {"questions": "*", "seeds": "†"}
_CHOSEN = {RANDOM: "sampled at random", "lengths": "chosen by lengths", "clusters": "chosen by clusters"}


class Namer:
    """Names for grids and series: only what differs among `points`, and no longer than needed."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.keys = sorted({key for point in points for key in point.grid})
        self.varied = len({grid_key(point.grid) for point in points}) > 1
        self._selections = {point.selection for point in points} - {FULL}
        varying = [key for key in self.keys if len({_cell(point.grid, key) for point in points}) > 1]
        last = [key.rpartition(".")[2] for key in varying]
        self._short = {key: end if last.count(end) == 1 else key for key, end in zip(varying, last)}

    def grid(self, grid: dict[str, Any]) -> str:
        """`prompts=plain, lr=0.001`; "as in the recipe" for a grid that sets nothing."""
        return ", ".join(f"{short}={value(grid[key])}" for key, short in self._short.items() if key in grid) or (
            "as in the recipe" if self.varied else ""
        )

    def series(self, grid: dict[str, Any], selection: str) -> str:
        """Grid and selection, each if it sets this series apart from another."""
        shown = selection if selection != FULL and (len(self._selections) > 1 or not self.varied) else ""
        return ", ".join(part for part in (self.grid(grid), shown) if part) or selection

    def point(self, point: Point) -> str:
        """The series and the share."""
        if point.full:
            return ", ".join(part for part in (self.grid(point.grid), FULL) if part)
        return f"{self.series(point.grid, point.selection)}, {share(point.ratio)}"


def table(points: list[Point]) -> tuple[list[str], list[list[str]]]:
    """Header and rows. Numbers are mean ± half of the 95 % interval (see `number`); `(2 of 3)` behind a number says how
    many of the seeds have it; `–`: there is none. The last row is what guessing scores, if that is known."""
    namer, names = Namer(points), benchmarks(points)
    relative = is_relative(points)
    header = [*namer.keys, "selection", "share", "samples", "seeds", *["relative %"] * relative, *names]
    rows = []
    for point in points:
        numbers = [point.relative] * relative + [point.scores.get(name) for name in names]
        rows.append(
            [
                *(_cell(point.grid, key) for key in namer.keys),
                point.selection,
                share(point.ratio),
                f"{point.samples:,}",
                str(point.seeds),
                *(_of(number, point.seeds) for number in numbers),
            ]
        )
    if guessing := chances(points):
        numbers_by_chance = [span(relative_chances(points))] * relative
        numbers_by_chance += [f"{guessing[name]:.1f}" if name in guessing else NOTHING for name in names]
        rows.append([GUESSING, *[NOTHING] * (len(namer.keys) + 3), *numbers_by_chance])
    return header, rows


PARTS = ("picture_seen", "text_seen", "clean")


def seen_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Header and rows: of every point and benchmark the score on all questions, on those whose picture or text is in
    the subset, and on the rest, each with the number of questions. No rows where overlaps are not known."""
    namer, rows = Namer(summary.points), []
    for name in benchmarks(summary.points):
        for point, group in zip(summary.points, summary.groups):
            if any(name in row.seen for row in group):
                asked = sorted({row.questions[name] for row in group if name in row.questions})
                parts = [part_spread(group, name, part) for part in PARTS]
                cells = [_counted(each.spread, each.questions) for each in parts]
                rows.append([name, namer.point(point), _counted(point.scores.get(name), asked), *cells])
    return ["benchmark", "subset", "all", *(part.replace("_", " ") for part in PARTS)], rows


def _counted(spread: Spread | None, questions: Sequence[int]) -> str:
    """`61.2 ± 3.1 (1,234)`, `61.2 ± 3.1 (12 to 15)`, `– (0)`."""
    ends = dict.fromkeys(f"{end:,}" for end in (min(questions), max(questions))) if questions else {NOTHING: None}
    return f"{number(spread)} ({' to '.join(ends)})"


def headline(points: list[Point]) -> list[str]:
    """What the points say, in sentences: for each series what its smallest share keeps, then which share suffices."""
    namer = Namer(points)
    lines = [line._replace(points=[p for p in line.points if p.relative and not p.full]) for line in series(points)]
    lines = [line for line in lines if line.points]
    if not lines:
        return _absolute(points, namer)
    several = len({line.selection for line in lines}) > 1
    return [*(_keeps(line, namer, several) for line in lines), _enough(lines, namer)]


def comparison_table(points: list[Point], compared: list[Compared]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every point with a control, and the overall difference in percent."""
    namer = Namer(points)
    rows = []
    for point, control, comparison in compared:
        whole = comparison.overall
        cells = [NOTHING] * 3 if whole is None else [signed(whole), p_value(whole.p), _verdict(comparison)]
        rows.append([namer.point(point), namer.point(control), *cells])
    return ["compared", "with", "difference %", "p", "verdict"], rows


def _verdict(comparison: Comparison) -> str:
    whole, adjusted = comparison.overall, comparison.overall_adjusted
    assert whole is not None and adjusted is not None
    return verdict(whole, adjusted)


def compared_headline(points: list[Point], compared: list[Compared]) -> list[str]:
    """One sentence on what differs from its control, none where nothing is compared."""
    if not compared:
        return []
    namer = Namer(points)
    found = [
        f"{namer.point(each.point)} against {namer.point(each.control)} ({signed(each.comparison.overall)} %)"
        for each in compared
        if each.shown and each.comparison.overall is not None
    ]
    if not found:
        return [f"Of {len(compared)} comparisons with a control, none shows a difference."]
    return [f"Of {len(compared)} comparisons with a control, {len(found)} show a difference: {'; '.join(found)}."]


def _keeps(line: Series, namer: Namer, several: bool) -> str:
    point = line.points[0]
    whose = f"{namer.grid(line.grid)}: with" if namer.varied else "With"
    chosen = f", {_CHOSEN.get(line.selection, f'selected as {line.selection}')}," if several else ""
    count = len(point.relative.by_seed) if point.relative else 0
    seeds = f"{count} seeds" if count > 1 else "1 seed, so how much seeds differ is unknown"
    return (
        f"{whose} {share(point.ratio)} of the samples{chosen} the model keeps {percent(point.relative)} "
        f"of the score of the full mixture ({seeds})."
    )


def _enough(lines: list[Series], namer: Namer) -> str:
    smallest = []
    for line in lines:
        enough = (point for point in line.points if point.relative and point.relative.mean >= KEEPS)
        shares = [f"{share(point.ratio)} of the samples ({_surely(point.relative)})" for point in enough]
        smallest.append(shares[0] if shares else "none")
    if set(smallest) == {"none"}:
        may = [
            f"{namer.point(point)} ({percent(point.relative)})"
            for line in lines
            for point in line.points
            if point.relative and point.relative.high is not None and point.relative.high >= KEEPS
        ]
        unsure = f" By its interval it may be so of {listed(may)}." if may else ""
        return (
            f"No smaller share that was measured keeps {KEEPS:g} %, LLaVA-1.5's mark for half of its mixture.{unsure}"
        )
    if len(lines) > 1:
        smallest = [f"{namer.series(line.grid, line.selection)}: {text}" for line, text in zip(lines, smallest)]
    return f"The smallest share measured that keeps {KEEPS:g} %: {'; '.join(smallest)}."


def _surely(relative: Spread | None) -> str:
    unsure = relative is not None and (relative.low is None or relative.low < KEEPS)
    return percent(relative) + (f"; its interval reaches below {KEEPS:g} %" if unsure else "")


def _absolute(points: list[Point], namer: Namer) -> list[str]:
    names, ratios = benchmarks(points), {point.ratio for point in points}
    if not names:
        return ["No run has been evaluated yet."]
    if len(ratios) > 1:
        return ["No smaller share can be compared with the full mixture yet: the scores are absolute."]
    where = "the full mixture" if ratios == {1.0} else f"{share(points[0].ratio)} of the samples"
    if len(points) == 1:
        scores = [f"{number(points[0].scores[name])} in {name}" for name in names]
        return [f"On {where} the model scores {listed(scores)}."]
    best: dict[str, list[str]] = {}
    for name in names:
        point = max((p for p in points if name in p.scores), key=lambda p: p.scores[name].mean)
        best.setdefault(namer.series(point.grid, point.selection), []).append(name)
    highest = [f"{variant} is highest in {listed(benchmarks)}" for variant, benchmarks in best.items()]
    return [f"{len(points)} variants on {where}: {'; '.join(highest)}."]


def notes(summary: Summary) -> Iterator[str]:
    """Sentences for the foot of a report; none where all is complete and sound."""
    points, groups = summary.points, summary.groups
    full = {grid_key(point.grid): point for point in points if point.full}
    yield from _references(points, full)
    asked = set(benchmarks(points))
    for point, group in zip(points, groups):
        reference = full.get(grid_key(point.grid))
        for row in group:
            yield from _run(row, asked, reference)
        if len(group) > point.seeds:
            doubles = [row.run for row in group if sum(row.seed == other.seed for other in group) > 1]
            yield f"{listed(doubles)} are runs of one point and one seed: they count as one, by their mean."
    shown = {number.over for point in points for number in (*point.scores.values(), point.relative) if number}
    if "questions" in shown:
        yield "*: there is one seed, so the interval is over questions alone; how much seeds differ is unknown."
    if "seeds" in shown:
        yield "†: what each question adds is not at hand, so the interval is over seeds alone."
    if "" in shown:
        yield "± ?: there is one seed, and what each question adds is not at hand, so the interval is unknown."
    yield from _not_compared(row for group in groups for row in group)
    for name in sorted({name for group in groups for row in group for name in row.questions}):
        counts = sorted({row.questions[name] for group in groups for row in group if name in row.questions})
        if len(counts) > 1:
            numbers = listed([f"{count:,}" for count in counts])
            yield f"{name}: runs were asked different numbers of questions ({numbers}), so their scores do not compare."


def _not_compared(rows: Iterable[Result]) -> Iterator[str]:
    found: dict[str, None] = {}
    for row in rows:
        for name, parts in sorted(row.seen.items()):
            found[f"{name}: clean by {', '.join(parts.checked.levels) or 'no level'}."] = None
            for level, why in parts.checked.unchecked.items():
                found[f"{name}: not compared by {level}: {why}."] = None
            if many := len(parts.checked.unreadable):
                found[f"{name}: {many:,} pictures do not decode, so they are not compared by near."] = None
    yield from sorted(found)


def _references(points: list[Point], full: dict[Any, Point]) -> Iterator[str]:
    namer = Namer(points)
    for key, grid in {grid_key(point.grid): point.grid for point in points}.items():
        prefix = f"{namer.grid(grid)}: " if namer.varied else ""
        if key not in full:
            yield f"{prefix}There is no run on the full mixture yet, so nothing is relative to it."
        elif full[key].left_out:
            yield (
                f"{prefix}{listed(full[key].left_out)} cannot be relative, as the full mixture scores 0 there, and "
                "is left out of the relative score."
            )


def _run(row: Result, asked: set[str], reference: Point | None) -> Iterator[str]:
    finite = {name for name, score in row.scores.items() if is_number(score)}
    if broken := sorted(set(row.scores) - finite):
        yield f"{row.run}: the score in {listed(broken)} is not a number and counts as missing."
    if missing := sorted(asked - set(row.scores)):
        yield f"{row.run} has no score in {listed(missing)} yet."
    counted = set(reference.scores) - set(reference.left_out) if reference else set()
    if counted - finite:
        yield f"{row.run} does not count in the relative score, which takes a mean over the same benchmarks for all."
    if reference and (more := sorted(finite - set(reference.scores))):
        yield f"{row.run}: no run on the full mixture has {listed(more)}, which is left out of the relative score."
    if not is_number(row.loss):
        yield f"{row.run}: the last loss is not a number; the training diverged."


def number(spread: Spread | None) -> str:
    """`61.2 ± 3.1`, the mean and half of its 95 % interval, or `2.0 [0.0, 9.1]` of an interval that reaches further to
    one side; with `*` over questions alone, with `†` over seeds alone; `61.2 ± ?` where neither is known, `100.0` of
    the reference itself."""
    if spread is None:
        return NOTHING
    if spread.over == "definition":
        return f"{spread.mean:.1f}"
    half, mark = spread.half, _MARKS.get(spread.over, "")
    if half and abs(spread.high + spread.low - 2 * spread.mean) > half / 5:  # type: ignore[operator]
        return f"{spread.mean:.1f} [{spread.low:.1f}, {spread.high:.1f}]{mark}"
    # A small interval must not read as none.
    shown = "?" if half is None else f"{half:.1f}" if half >= 0.05 or half == 0 else f"{half:.1g}"
    return f"{spread.mean:.1f} ± {shown}{mark}"


def span(numbers: Sequence[float]) -> str:
    """`61.2`, or `61.2 to 63.4` of several that are sorted."""
    ends = {f"{end:.1f}": None for end in (numbers[0], numbers[-1])} if numbers else {NOTHING: None}
    return " to ".join(ends)


def printable(text: str) -> str:
    """Characters that XML forbids, that end a line or that turn the direction of writing become spaces."""
    return "".join(c if c.isprintable() else " " for c in text)


def percent(spread: Spread | None) -> str:
    """`61.2 ± 3.1 %`; `61.2 %` without an interval."""
    return f"{spread.mean:.1f} %" if spread and spread.half is None else f"{number(spread)} %"


def share(ratio: float) -> str:
    """`12.5 %`."""
    return f"{100 * ratio:.4g} %"


def value(item: Any) -> str:
    """A recipe's value, as YAML would have it on one line."""
    return item if isinstance(item, str) else msgspec.json.encode(item, order="deterministic").decode()


def real(item: float | None, digits: int) -> str:
    return f"{item:,.{digits}f}" if is_number(item) else "not a number"


def listed(items: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def _of(spread: Spread | None, seeds: int) -> str:
    part = f" ({len(spread.by_seed)} of {seeds})" if spread and len(spread.by_seed) < seeds else ""
    return number(spread) + part


def _cell(grid: dict[str, Any], key: str) -> str:
    return value(grid[key]) if key in grid else NOTHING
