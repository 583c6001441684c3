"""Points against their control: random samples of the same share, or the first values of the grid."""

from typing import Any, NamedTuple

from vlmix.mixture.benchmark.compare import ALPHA, Comparison, compare, holm
from vlmix.train.sweep.report.aggregate import (
    FULL,
    Point,
    Result,
    RunValues,
    aggregate,
    grid_key,
    grouped,
    is_number,
    runs_of,
)

CONTROL = "random"


class Compared(NamedTuple):
    """A point against its control. `adjusted` is the p of the overall difference for all comparisons of the sweep
    together."""

    point: Point
    control: Point
    comparison: Comparison
    adjusted: float

    @property
    def shown(self) -> bool:
        """Whether there is a difference overall."""
        return self.adjusted < ALPHA


def comparisons(rows: list[Result], values: RunValues, first: dict[str, Any] | None = None) -> list[Compared]:
    """Every point that has a control whose questions are at hand: a selection against random samples of its grid and
    share; and every grid against `first` at the same selection and share, by default the first of the table."""
    points, groups = aggregate(rows, values), grouped(rows)
    places = {
        (grid_key(point.grid), point.selection, point.ratio): (point, group) for point, group in zip(points, groups)
    }
    base = min((grid_key(point.grid) for point in points), default=None) if first is None else grid_key(first)
    found = []
    for (grid, selection, ratio), (point, group) in places.items():
        controls = []
        if selection not in (FULL, CONTROL):
            controls.append((grid, CONTROL, ratio))
        if grid != base and base is not None:
            controls.append((base, selection, ratio))
        for place in controls:
            if place not in places:
                continue
            control, reference = places[place]
            names = [name for name in point.scores if name in control.scores]
            sides = [runs_of([row for row in side if _has(row, names)], values, names) for side in (reference, group)]
            if names and sides[0] is not None and sides[1] is not None:
                found.append((point, control, compare(sides[0], sides[1])))
    ps = [1.0 if each.overall is None else each.overall.p for _, _, each in found]
    return [Compared(*each, adjusted) for each, adjusted in zip(found, holm(ps))]


def _has(row: Result, names: list[str]) -> bool:
    return all(is_number(row.scores.get(name)) for name in names)
