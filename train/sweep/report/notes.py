"""What the numbers of a report leave out, and what is odd about its runs."""

from collections.abc import Iterable, Iterator
from typing import Any

from vlmix.train.sweep.report.aggregate import Point, Result, aggregate, axes_key, benchmarks, grouped, is_number
from vlmix.train.sweep.report.words import Namer, listed


def notes(rows: Iterable[Result]) -> Iterator[str]:
    """Sentences for the foot of a report; none where all is complete and sound."""
    groups = grouped(rows)
    points = aggregate(row for group in groups for row in group)
    full = {axes_key(point.grid): point for point in points if point.full}
    yield from _references(points, full)
    asked = set(benchmarks(points))
    for point, group in zip(points, groups):
        reference = full.get(axes_key(point.grid))
        for row in group:
            yield from _run(row, asked, reference)
        if len(group) > point.seeds:
            doubles = [row.run for row in group if sum(row.seed == other.seed for other in group) > 1]
            yield f"{listed(doubles)} are runs of one point and one seed: they count as one, by their mean."
    if any(len(number.by_seed) == 1 for point in points for number in point.scores.values()):
        yield "± ?: there is one seed, so the spread is unknown."
    for name in sorted({name for group in groups for row in group for name in row.questions}):
        counts = sorted({row.questions[name] for group in groups for row in group if name in row.questions})
        if len(counts) > 1:
            numbers = listed([f"{count:,}" for count in counts])
            yield f"{name}: runs were asked different numbers of questions ({numbers}), so their scores do not compare."


def _references(points: list[Point], full: dict[Any, Point]) -> Iterator[str]:
    namer = Namer(points)
    for key, axes in {axes_key(point.grid): point.grid for point in points}.items():
        whose = f"{namer.axes(axes)}: " if namer.varied else ""
        if key not in full:
            yield f"{whose}There is no run on the full mixture yet, so nothing is relative to it."
        elif full[key].left_out:
            yield (
                f"{whose}{listed(full[key].left_out)} cannot be relative, as the full mixture scores 0 there, and "
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
