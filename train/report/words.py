"""Points in words and in cells of text, for the terminal, the page and the picture alike."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from train.report.aggregate import FULL, Point, Series, Spread, axes_key, benchmarks, series

NOTHING = "–"
UNKNOWN = "?"
KEEPS = 98.0
"""Percent of the full mixture's score that LLaVA-1.5 keeps with half of its mixture (5.1 of its paper)."""

_CHOSEN = {"random": "drawn at random", "lengths": "chosen by lengths", "clusters": "chosen by clusters"}


class Namer:
    """Names for axes and series: only what differs among `points`, and no longer than needed."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.keys = sorted({key for point in points for key in point.axes})
        self.varied = len({axes_key(point.axes) for point in points}) > 1
        self._selects = {point.select for point in points} - {FULL}
        first = points[0].axes if points else {}
        self._telling = [key for key in self.keys if any(_cell(p.axes, key) != _cell(first, key) for p in points)]
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
            return ", ".join(part for part in (self.axes(point.axes), FULL) if part)
        return f"{self.series(point.axes, point.select)}, {share(point.ratio)}"


def table(points: list[Point]) -> tuple[list[str], list[list[str]]]:
    """Header and rows. Numbers are mean ± standard deviation over seeds, `± ?` for one seed; `(2 of 3)` behind a
    number says how many of the seeds have it; `–`: there is none."""
    namer, names = Namer(points), benchmarks(points)
    relative = any(point.relative and not point.full for point in points)
    header = [*namer.keys, "selection", "share", "samples", "seeds", *["relative %"] * relative, *names]
    rows = []
    for point in points:
        numbers = [point.relative] * relative + [point.scores.get(name) for name in names]
        rows.append(
            [
                *(_cell(point.axes, key) for key in namer.keys),
                point.select,
                share(point.ratio),
                f"{point.samples:,}",
                str(point.seeds),
                *(_of(number, point.seeds) for number in numbers),
            ]
        )
    return header, rows


def headline(points: list[Point]) -> list[str]:
    """What the points say, in sentences: the lead series first, then the smallest share of every other one."""
    namer, lines = Namer(points), series(points)
    measured = [(line, [p for p in line.points if p.relative and not p.full]) for line in lines]
    measured = [(line, kept) for line, kept in measured if kept]
    if not measured:
        return _absolute(points, namer)
    selects = {line.select for line, _ in measured}
    sentences = []
    for line, kept in measured:
        sentences.append(_keeps(line, kept[0], namer, len(selects) > 1))
        if len(sentences) == 1:
            sentences.append(_enough(kept))
    return sentences


def _keeps(line: Series, point: Point, namer: Namer, several: bool) -> str:
    assert point.relative
    whose = f"{namer.axes(line.axes)}: with" if namer.varied else "With"
    chosen = f", {_CHOSEN.get(line.select, f'chosen by {line.select}')}," if several else ""
    return (
        f"{whose} {share(point.ratio)} of the samples{chosen} the model keeps {percent(point.relative)} "
        f"of the score of the full mixture ({seeds(point.relative)})."
    )


def _enough(kept: list[Point]) -> str:
    enough = next((point for point in kept if point.relative and point.relative.mean >= KEEPS), None)
    if enough is None or enough.relative is None:
        return f"No share that was measured keeps {KEEPS:g} %."
    return (
        f"The smallest share that keeps {KEEPS:g} % is {share(enough.ratio)} of the samples "
        f"({percent(enough.relative)})."
    )


def _absolute(points: list[Point], namer: Namer) -> list[str]:
    names = benchmarks(points)
    ratios = {point.ratio for point in points}
    if not names:
        return ["No run has been evaluated yet."]
    if len(ratios) > 1:
        return ["No run on the full mixture can be compared with yet: the scores are absolute."]
    where = "the full mixture" if ratios == {1.0} else f"{share(points[0].ratio)} of the samples"
    if len(points) == 1:
        found = points[0].scores
        return [f"On {where} the model scores {listed([f'{number(found[name])} in {name}' for name in names])}."]
    best = []
    for name in names:
        point = max((p for p in points if name in p.scores), key=lambda p: p.scores[name].mean)
        best.append(f"{name} {number(point.scores[name])} ({namer.series(point.axes, point.select)})")
    return [f"{len(points)} variants on {where}. Highest scores: {listed(best)}."]


def number(found: Spread | None) -> str:
    """`61.2 ± 3.1`; `61.2 ± ?` for one seed."""
    return NOTHING if found is None else f"{found.mean:.1f} ± {UNKNOWN if found.sd is None else _deviation(found.sd)}"


def percent(found: Spread) -> str:
    """`61.2 ± 3.1 %`; `61.2 %` for one seed."""
    return f"{found.mean:.1f} %" if found.sd is None else f"{number(found)} %"


def seeds(found: Spread) -> str:
    count = len(found.by_seed)
    return "1 seed, so the spread is unknown" if count == 1 else f"{count} seeds"


def share(ratio: float) -> str:
    """`12.5 %`."""
    return f"{100 * ratio:.4g} %"


def value(item: Any) -> str:
    """A recipe's value, as YAML would have it on one line."""
    return item if isinstance(item, str) else msgspec.json.encode(item, order="deterministic").decode()


def real(item: float, digits: int) -> str:
    return f"{item:,.{digits}f}" if math.isfinite(item) else "not a number"


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
