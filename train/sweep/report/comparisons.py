"""A sweep's points, and each against its control: random samples of the same share, or the first values of the grid."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import structs

from vlmix.mixture.benchmark.compare import ALPHA, Comparison, Run, compare, holm
from vlmix.train.sweep.report.aggregate import (
    FULL,
    RANDOM,
    Point,
    Result,
    RunValues,
    grid_key,
    grouped,
    points_of,
    runs_of,
    with_all,
)


class Compared(NamedTuple):
    """A point against its control. The comparison's `overall_adjusted` is the p of the overall difference among all
    comparisons of the sweep."""

    point: Point
    control: Point
    comparison: Comparison

    @property
    def shown(self) -> bool:
        """Whether there is a difference overall."""
        adjusted = self.comparison.overall_adjusted
        return adjusted is not None and adjusted < ALPHA


class Summary(NamedTuple):
    """What the runs of a sweep say: `rows` in the order of reports, each point with its group of rows, and every point
    that has a control against it."""

    rows: list[Result]
    points: list[Point]
    groups: list[list[Result]]
    compared: list[Compared]


def summarise(rows: Sequence[Result], values: RunValues | None = None, first: dict[str, Any] | None = None) -> Summary:
    """`values` are what each question adds to the scores of each run; without them intervals are over seeds alone, and
    nothing is compared. `first` is the grid that others are compared with, by default the first of the table."""
    groups = grouped(rows)
    points = points_of(groups, values)
    ordered = [row for group in groups for row in group]
    return Summary(ordered, points, groups, _compared(points, groups, values or {}, first))


def in_common(one: Summary, values: RunValues, other: Summary, other_values: RunValues) -> list[Compared]:
    """The points that two sweeps share, the other's against the one's."""
    found = []
    places = _places(other.points, other.groups)
    for place, (control, reference) in _places(one.points, one.groups).items():
        if place in places:
            point, group = places[place]
            sides = _sides(control, reference, values, point, group, other_values)
            if sides is not None:
                found.append(Compared(point, control, compare(*sides)))
    return found


def _compared(
    points: list[Point], groups: list[list[Result]], values: RunValues, first: dict[str, Any] | None
) -> list[Compared]:
    """A selection against random samples of its grid and share; every grid against `first` at the same selection and
    share."""
    places = _places(points, groups)
    base = min((grid for grid, _, _ in places), default=None) if first is None else grid_key(first)
    found = []
    for (grid, selection, ratio), (point, group) in places.items():
        controls = []
        if selection not in (FULL, RANDOM):
            controls.append((grid, RANDOM, ratio))
        if grid != base and base is not None:
            controls.append((base, selection, ratio))
        for place in controls:
            if place in places:
                sides = _sides(*places[place], values, point, group, values)
                if sides is not None:
                    found.append(Compared(point, places[place][0], compare(*sides)))
    ps = [1.0 if each.comparison.overall is None else each.comparison.overall.p for each in found]
    return [
        each._replace(comparison=structs.replace(each.comparison, overall_adjusted=p))
        for each, p in zip(found, holm(ps))
    ]


def _places(
    points: list[Point], groups: list[list[Result]]
) -> dict[tuple[Any, str, float], tuple[Point, list[Result]]]:
    """(grid, selection, ratio) -> point and its rows."""
    return {
        (grid_key(point.grid), point.selection, point.ratio): (point, group) for point, group in zip(points, groups)
    }


def _sides(
    control: Point, reference: list[Result], values: RunValues, point: Point, group: list[Result], own: RunValues
) -> tuple[list[Run], list[Run]] | None:
    """The runs of a control and of a point, in the benchmarks that both have; None where their questions are not at
    hand."""
    names = [name for name in point.scores if name in control.scores]
    one, two = runs_of(with_all(reference, names), values, names), runs_of(with_all(group, names), own, names)
    return None if not names or one is None or two is None else (one, two)
