"""Points in words and in cells of text, for the terminal, the page and the picture alike."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from vlmix.train.sweep.report.aggregate import (
    FULL,
    Point,
    Series,
    Spread,
    axes_key,
    benchmarks,
    is_number,
    is_relative,
    series,
)

NOTHING = "–"
UNKNOWN = "?"
KEEPS = 98.0
"""Percent of the full mixture's score that LLaVA-1.5 keeps with half of its mixture (5.1 of its paper)."""

_CHOSEN = {"random": "drawn at random", "lengths": "chosen by lengths", "clusters": "chosen by clusters"}


class Namer:
    """Names for axes and series: only what differs among `points`, and no longer than needed."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.keys = sorted({key for point in points for key in point.grid})
        self.varied = len({axes_key(point.grid) for point in points}) > 1
        self._selects = {point.selection for point in points} - {FULL}
        first = points[0].grid if points else {}
        self._telling = [key for key in self.keys if any(_cell(p.grid, key) != _cell(first, key) for p in points)]
        last = [key.rpartition(".")[2] for key in self._telling]
        self._short = {key: end if last.count(end) == 1 else key for key, end in zip(self._telling, last)}

    def axes(self, axes: dict[str, Any]) -> str:
        """`prompts=plain, lr=0.001`; "as in the recipe" for axes that set nothing."""
        return ", ".join(f"{self._short[key]}={value(axes[key])}" for key in self._telling if key in axes) or (
            "as in the recipe" if self.varied else ""
        )

    def series(self, axes: dict[str, Any], select: str) -> str:
        """Axes and selection, each if it tells this series from another."""
        selection = select if len(self._selects) > 1 or not self.varied else ""
        return ", ".join(part for part in (self.axes(axes), "" if select == FULL else selection) if part) or select

    def point(self, point: Point) -> str:
        """The series and the share."""
        if point.full:
            return ", ".join(part for part in (self.axes(point.grid), FULL) if part)
        return f"{self.series(point.grid, point.selection)}, {share(point.ratio)}"


def table(points: list[Point]) -> tuple[list[str], list[list[str]]]:
    """Header and rows. Numbers are mean ± standard deviation over seeds, `± ?` for one seed; `(2 of 3)` behind a
    number says how many of the seeds have it; `–`: there is none."""
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
    return header, rows


def headline(points: list[Point]) -> list[str]:
    """What the points say, in sentences: for each series what its smallest share keeps, then which share suffices."""
    namer = Namer(points)
    lines = [line._replace(points=[p for p in line.points if p.relative and not p.full]) for line in series(points)]
    lines = [line for line in lines if line.points]
    if not lines:
        return _absolute(points, namer)
    several = len({line.selection for line in lines}) > 1
    return [*(_keeps(line, namer, several) for line in lines), _enough(lines, namer)]


def _keeps(line: Series, namer: Namer, several: bool) -> str:
    point = line.points[0]
    assert point.relative
    whose = f"{namer.axes(line.grid)}: with" if namer.varied else "With"
    chosen = f", {_CHOSEN.get(line.selection, f'chosen by {line.selection}')}," if several else ""
    count = len(point.relative.by_seed)
    seeds = f"{count} seeds" if count > 1 else "1 seed, so the spread is unknown"
    return (
        f"{whose} {share(point.ratio)} of the samples{chosen} the model keeps {percent(point.relative)} "
        f"of the score of the full mixture ({seeds})."
    )


def _enough(lines: list[Series], namer: Namer) -> str:
    found = [next((p for p in line.points if p.relative and p.relative.mean >= KEEPS), None) for line in lines]
    if not any(found):
        return f"No smaller share that was measured keeps {KEEPS:g} %, LLaVA-1.5's mark for half of its mixture."
    told = [
        f"{share(point.ratio)} of the samples ({percent(point.relative)})" if point and point.relative else "none"
        for point in found
    ]
    if len(lines) > 1:
        told = [f"{namer.series(line.grid, line.selection)}: {what}" for line, what in zip(lines, told)]
    return f"The smallest share measured that keeps {KEEPS:g} %: {'; '.join(told)}."


def _absolute(points: list[Point], namer: Namer) -> list[str]:
    names, ratios = benchmarks(points), {point.ratio for point in points}
    if not names:
        return ["No run has been evaluated yet."]
    if len(ratios) > 1:
        return ["No smaller share can be compared with the full mixture yet: the scores are absolute."]
    where = "the full mixture" if ratios == {1.0} else f"{share(points[0].ratio)} of the samples"
    if len(points) == 1:
        found = points[0].scores
        return [f"On {where} the model scores {listed([f'{number(found[name])} in {name}' for name in names])}."]
    best: dict[str, list[str]] = {}
    for name in names:
        point = max((p for p in points if name in p.scores), key=lambda p: p.scores[name].mean)
        best.setdefault(namer.series(point.grid, point.selection), []).append(name)
    told = [f"{whose} is highest in {listed(highest)}" for whose, highest in best.items()]
    return [f"{len(points)} variants on {where}: {'; '.join(told)}."]


def number(found: Spread | None) -> str:
    """`61.2 ± 3.1`; `61.2 ± ?` for one seed."""
    return NOTHING if found is None else f"{found.mean:.1f} ± {UNKNOWN if found.sd is None else _deviation(found.sd)}"


def percent(found: Spread) -> str:
    """`61.2 ± 3.1 %`; `61.2 %` for one seed."""
    return f"{found.mean:.1f} %" if found.sd is None else f"{number(found)} %"


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


def _deviation(sd: float) -> str:
    # A small spread is not to be read as none.
    return f"{sd:.1f}" if sd >= 0.05 or sd == 0 else f"{sd:.1g}"


def _of(found: Spread | None, seeds: int) -> str:
    part = f" ({len(found.by_seed)} of {seeds})" if found and len(found.by_seed) < seeds else ""
    return number(found) + part


def _cell(axes: dict[str, Any], key: str) -> str:
    return value(axes[key]) if key in axes else NOTHING
