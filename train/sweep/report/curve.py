"""The pictures of a report, as PNG.

Error bars are standard deviations over seeds, faint dots the runs, hollow marks single seeds.
"""

import math
from collections.abc import Sequence
from typing import Any

from vlmix.train.sweep.report.aggregate import FULL, Point, Series, Spread, axes_key, benchmarks, is_relative, series
from vlmix.train.sweep.report.canvas import LIGHT, Mark, Theme, clean, draw_spread, layout, limit, marks, panels, render
from vlmix.train.sweep.report.words import Namer, share

_FULL = "D"


def curve(points: list[Point], theme: Theme = LIGHT) -> bytes:
    """The main picture: the relative score over the share of the mixture; as long as nothing is relative, scores over
    the share; and where there is one share alone, a row of points for each benchmark.

    Raises VlmixError without matplotlib.
    """
    if not benchmarks(points):
        return render(theme, (6, 1), lambda figure: figure.text(0.5, 0.5, "no scores yet", ha="center", va="center"))
    if is_relative(points):
        return _relative(points, theme)
    return _over_share(points, theme) if len(_ratios(points)) > 1 else _rows(points, theme)


def scores(points: list[Point], theme: Theme = LIGHT) -> bytes | None:
    """A panel of scores over the share for each benchmark; None where `curve` says it all."""
    return _over_share(points, theme) if is_relative(points) and len(benchmarks(points)) > 1 else None


def _relative(points: list[Point], theme: Theme) -> bytes:
    lines = [line for line in series(points) if any(point.relative for point in line.points)]
    points = [point for line in lines for point in line.points]
    drawn = marks(len(lines), theme)

    def paint(figure: Any) -> None:
        ax = figure.add_subplot()
        _lines(ax, lines, drawn, theme, None)
        ax.axhline(100, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        _share_axis(ax, _ratios(points), apart=0.055)
        ax.set_xlabel("share of the mixture's samples")
        ax.set_ylabel("score relative to the full mixture")
        limit(ax, [p.relative for p in points if p.relative], least=5, around=[100])
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g} %")
        if len(lines) == 1:
            _numbers(ax, points)
        _legend(figure, lines, drawn, points, theme)

    return render(theme, (7.8, 4.8), paint)


def _over_share(points: list[Point], theme: Theme) -> bytes:
    lines, names = series(points), benchmarks(points)
    drawn = marks(len(lines), theme)
    columns, rows = layout(len(names), 2.6)

    def paint(figure: Any) -> None:
        for index, (ax, name) in enumerate(panels(figure, names, columns)):
            _lines(ax, lines, drawn, theme, name)
            _share_axis(ax, _ratios(points), apart=0.16)
            limit(ax, [p.scores[name] for p in points if name in p.scores])
            if index >= len(names) - columns:
                ax.set_xlabel("share of the samples")
        _legend(figure, lines, drawn, points, theme)

    return render(theme, (max(columns * 2.6, 4.6), rows * 2.3 + 0.7), paint)


def _rows(points: list[Point], theme: Theme) -> bytes:
    """Points that have one share in common, the steps of an ablation ladder: a row each, in panels by benchmark."""
    namer, names = Namer(points), benchmarks(points)
    labels = [clean(namer.series(point.grid, point.selection), 30, 4) for point in points]
    beside = 0.08 * max(len(line) for label in labels for line in label.split("\n"))
    columns, rows = layout(len(names), 2.2, beside)
    row_height = 0.2 + 0.16 * max(label.count("\n") + 1 for label in labels)
    mark = Mark(theme.series[0], "o")

    def paint(figure: Any) -> None:
        for index, (ax, name) in enumerate(panels(figure, names, columns)):
            for row, point in enumerate(points):
                if (found := point.scores.get(name)) is not None:
                    draw_spread(ax, found.mean, row, found, mark, theme, along="x")
            ax.set_yticks(range(len(labels)), labels if index % columns == 0 else [""] * len(labels))
            ax.set_ylim(len(labels) - 0.4, -0.6)
            limit(ax, [p.scores[name] for p in points if name in p.scores], along="x")
        if _hollow(points):
            figure.legend([_sample(theme.muted, "o", "", theme.ground)], [_ONE_SEED], loc="outside lower center")

    return render(theme, (max(columns * 2.2 + beside, 4.6), rows * (0.7 + row_height * len(labels)) + 0.5), paint)


def _lines(ax: Any, lines: Sequence[Series], drawn: Sequence[Mark], theme: Theme, name: str | None) -> None:
    """Draws the series' scores in benchmark `name`, or the relative ones."""
    dodge = _Dodge(lines)
    full: dict[Any, tuple[float, Spread, Mark]] = {}
    for number, (line, mark) in enumerate(zip(lines, drawn)):
        xs, ys = [], []
        for point in line.points:
            if (found := point.relative if name is None else point.scores.get(name)) is None:
                continue
            x = dodge.full(point) if point.full else dodge(point.ratio, number)
            xs.append(x)
            ys.append(found.mean)
            if point.full:
                shown = Mark(theme.ink, _FULL) if _shared(lines, line) else mark
                full[axes_key(point.grid)] = x, found, shown
            else:
                draw_spread(ax, x, found.mean, found, mark, theme)
        ax.plot(xs, ys, color=mark.colour, linestyle=mark.dash, linewidth=1.8, zorder=3)
    for x, found, mark in full.values():
        draw_spread(ax, x, found.mean, found, mark, theme)


def _shared(lines: Sequence[Series], line: Series) -> bool:
    """Whether the full mixture has a mark of its own: where it serves several selections, and where there are no axes
    to tell apart."""
    keys = [axes_key(other.grid) for other in lines]
    return len(set(keys)) == 1 or keys.count(axes_key(line.grid)) > 1


class _Dodge:
    """Positions on the share axis: series of one share stand beside each other, as their error bars would overlap."""

    def __init__(self, lines: Sequence[Series]) -> None:
        self._lines = len(lines)
        self._axes = list(dict.fromkeys(axes_key(line.grid) for line in lines))
        ratios = _ratios([point for line in lines for point in line.points])
        self._log = _log(ratios)
        low, high = _ends(ratios)
        self._step = min(0.014, 0.07 / self._lines) * (math.log(high / low) if self._log else high)

    def __call__(self, ratio: float, number: int) -> float:
        return self._moved(ratio, number, self._lines)

    def full(self, point: Point) -> float:
        return self._moved(1.0, self._axes.index(axes_key(point.grid)), len(self._axes))

    def _moved(self, ratio: float, number: int, count: int) -> float:
        by = self._step * (number - (count - 1) / 2)
        return ratio * math.exp(by) if self._log else ratio + by


def _share_axis(ax: Any, ratios: list[float], apart: float) -> None:
    """Ticks at the shares that were measured, at least `apart` (share of the axis) from each other."""
    from matplotlib.ticker import NullLocator

    ax.set_xscale("log" if _log(ratios) else "linear")
    ax.set_xlim(*_ends(ratios))
    ticks = _apart(ratios, ratios, apart)
    ax.set_xticks(ticks, [share(ratio) for ratio in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def _numbers(ax: Any, points: list[Point]) -> None:
    """Means beside the points of a single line, right below, where a rising curve leaves room."""
    means = {point.ratio: point.relative.mean for point in points if point.relative and not point.full}
    for ratio in _apart(sorted(means), _ratios(points), 0.08):
        ax.annotate(f"{means[ratio]:.1f}", (ratio, means[ratio]), (10, -11), textcoords="offset points", fontsize=8.5)


_ONE_SEED = "one seed: spread unknown"


def _legend(figure: Any, lines: Sequence[Series], drawn: Sequence[Mark], points: list[Point], theme: Theme) -> None:
    namer = Namer(points)
    entries = [
        (_sample(mark.colour, mark.marker, mark.dash), clean(namer.series(line.grid, line.selection)))
        for line, mark in zip(lines, drawn)
        if line.selection != FULL or not _shared(lines, line)
    ]
    if any(line.points[-1].full and _shared(lines, line) for line in lines):
        entries.append((_sample(theme.ink, _FULL, ""), FULL))
    if _hollow(points):
        entries.append((_sample(theme.muted, "o", "", theme.ground), _ONE_SEED))
    handles, labels = zip(*entries)
    widest = max(len(line) for label in labels for line in label.split("\n"))
    most = max(1, min(len(labels), int(figure.get_figwidth() * 13 // (widest + 7))))
    columns = -(-len(labels) // -(-len(labels) // most))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _sample(colour: str, marker: str, dash: Any, face: str | None = None) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, linestyle=dash, markerfacecolor=face or colour)


def _hollow(points: list[Point]) -> bool:
    return any(found.sd is None for point in points for found in point.scores.values())


def _ratios(points: Sequence[Point]) -> list[float]:
    return sorted({point.ratio for point in points})


def _log(ratios: list[float]) -> bool:
    """From 10 % up the shares read well side by side; below, a linear axis would crowd them at its left end."""
    return ratios[0] < 0.08 and len(ratios) > 1


def _ends(ratios: list[float]) -> tuple[float, float]:
    return (ratios[0] / 1.25, ratios[-1] * 1.2) if _log(ratios) else (0.0, ratios[-1] * 1.06)


def _apart(chosen: list[float], ratios: list[float], apart: float) -> list[float]:
    """Those of `chosen` that stand at least `apart` (share of the axis of all `ratios`) from each other; the last
    always."""
    low, high = _ends(ratios)
    log = _log(ratios)
    place = {r: math.log(r / low) / math.log(high / low) if log else r / high for r in chosen}
    kept = chosen[-1:]
    for ratio in chosen[:-1]:
        if all(abs(place[ratio] - place[other]) >= apart for other in kept):
            kept.append(ratio)
    return sorted(kept)
