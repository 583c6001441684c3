"""What is drawn of a sweep. Error bars are 95 % intervals, faint dots the runs, hollow marks single seeds, whose
interval is over questions alone, dashed lines what guessing scores, short grey ones published scores."""

import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from vlmix.mixture.extras import missing
from vlmix.train.sweep.report.aggregate import (
    FULL,
    Point,
    Series,
    Spread,
    benchmarks,
    chances,
    grid_key,
    is_relative,
    relative_chances,
    series,
)
from vlmix.train.sweep.report.picture import LIGHT, Picture
from vlmix.train.sweep.report.published import Published
from vlmix.train.sweep.report.wording import GUESSING, Namer, printable, share, span

_ONE_SEED = "one seed: interval over questions alone"
_PUBLISHED = "published, on other benchmarks"
_DASHED = (0, (4, 3))
_MARK = 13  # points of width of a published score
_BEHIND = {"facecolor": LIGHT.ground, "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
"""Behind words that lines may pass through."""


class Sheet(NamedTuple):
    """What a picture is drawn for: lengths in inches, `font` in points."""

    width: float
    font: float
    curve: tuple[float, float]
    panel: tuple[float, float]
    """Of one benchmark among several."""
    label: int
    """Characters of a name before a panel."""

    def characters(self, width: float) -> float:
        """How many of them, of mean width, fit."""
        return 120 * width / self.font

    def tick_distance(self, width: float) -> float:
        """The least distance between the middles of two ticks, as a share of an axis in a picture of so many inches."""
        return 2.8 * self.font / (72 * (width - 0.06 * self.font))


WIDE = Sheet(width=10.5, font=9.5, curve=(7.8, 4.8), panel=(2.6, 2.3), label=30)
"""For a page or paper, and for browsers, where 9.5 points still read well when it is fitted to 820 pixels."""
NARROW = Sheet(width=3.5, font=8, curve=(3.5, 3.6), panel=(1.75, 1.6), label=18)
"""For a telephone: 336 pixels."""


class Mark(NamedTuple):
    """How a series is drawn; two series share a colour only where their markers and dashes differ."""

    color: str
    marker: str
    linestyle: Any = ""


def require() -> None:
    """Raises VlmixError without matplotlib or Jinja2, so that a sweep stops before it trains."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing(error.name or "matplotlib", "the report of a sweep") from None


def curve(points: list[Point], published: Sequence[Published] = (), note: str = "", sheet: Sheet = WIDE) -> Picture:
    """The main picture: the relative score over the share of the mixture, with `published` scores; as long as nothing
    is relative, scores over the share; and where there is one share alone, a row of points for each benchmark. `note`
    stands above the first."""
    if not benchmarks(points):
        height = sheet.font / 10
        return Picture(
            sheet.curve[0],
            height,
            sheet.font,
            lambda figure: figure.text(0.5, 0.5, "no scores yet", ha="center", va="center"),
        )
    if is_relative(points):
        return _relative(points, published, note, sheet)
    return _over_share(points, sheet) if len(_ratios(points)) > 1 else _rows(points, sheet)


def scores(points: list[Point], sheet: Sheet = WIDE) -> Picture | None:
    """A panel of scores over the share for each benchmark; None where `curve` has them all."""
    return _over_share(points, sheet) if is_relative(points) and len(benchmarks(points)) > 1 else None


def _relative(points: list[Point], published: Sequence[Published], note: str, sheet: Sheet) -> Picture:
    lines = [line for line in series(points) if any(point.relative for point in line.points)]
    points = [point for line in lines for point in line.points]
    width, height = sheet.curve
    guessing = relative_chances(points)

    def draw(figure: Any) -> None:
        ax = figure.add_subplot()
        around = [100.0, *(mark.relative for mark in published)]
        _draw_lines(ax, lines, lambda point: point.relative, width, guessing, sheet, least=5, around=around)
        ax.axhline(100, color=LIGHT.muted, linewidth=1, zorder=1)
        if note:
            shown = clean(note, int(sheet.characters(width - 0.8)), 2)
            ax.set_title(shown, fontsize=sheet.font - 0.5, color=LIGHT.muted, loc="left")
        ax.set_xlabel("share of the mixture's samples")
        ax.set_ylabel("score relative to the full mixture")
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g} %")
        _draw_published(ax, published, _ratios(points), sheet)
        if len(lines) == 1:  # means beside the points, right below, where a rising curve leaves room
            means = {point.ratio: point.relative.mean for point in points if point.relative and not point.full}
            for ratio in _readable(sorted(means), _ratios(points), 1.4 * sheet.tick_distance(width)):
                at = ratio, means[ratio]
                ax.annotate(f"{means[ratio]:.1f}", at, (10, -11), textcoords="offset points", fontsize=sheet.font - 1)
        _legend(figure, lines, sheet, f"{GUESSING}: {span(guessing)} %" if guessing else "", bool(published))

    return Picture(width, height, sheet.font, draw)


def _over_share(points: list[Point], sheet: Sheet) -> Picture:
    lines, names, guessing = series(points), benchmarks(points), chances(points)
    panel = sheet.panel
    columns, rows = _layout(len(names), panel[0], sheet.width)

    def draw(figure: Any) -> None:
        for index, (ax, name) in enumerate(_panels(figure, names, columns, sheet)):
            chance = [guessing[name]] if name in guessing else []
            _draw_lines(ax, lines, partial(_score, name=name), panel[0], chance, sheet)
            if index >= len(names) - columns:
                ax.set_xlabel("share of the samples")
        _legend(figure, lines, sheet, GUESSING if guessing else "")

    # A single panel is as wide as its legend needs.
    return Picture(max(columns * panel[0], min(4.6, sheet.width)), rows * panel[1] + 0.7, sheet.font, draw)


def _rows(points: list[Point], sheet: Sheet) -> Picture:
    """Points of one share, as in an ablation ladder: a row each, in panels by benchmark."""
    namer, names, guessing = Namer(points), benchmarks(points), chances(points)
    labels = [clean(namer.series(point.grid, point.selection), sheet.label, 4) for point in points]
    label_width = max(len(line) for label in labels for line in label.split("\n")) / sheet.characters(1)
    columns, rows = _layout(len(names), 2.2, sheet.width, label_width)
    row_height = 0.2 + 0.017 * sheet.font * max(label.count("\n") + 1 for label in labels)

    def draw(figure: Any) -> None:
        for index, (ax, name) in enumerate(_panels(figure, names, columns, sheet)):
            spreads = {row: point.scores[name] for row, point in enumerate(points) if name in point.scores}
            for row, spread in spreads.items():
                _draw_spread(ax, row, spread, Mark(LIGHT.series[0], "o"), axis="x")
            ax.set_yticks(range(len(labels)), labels if index % columns == 0 else [""] * len(labels))
            ax.set_ylim(len(labels) - 0.4, -0.6)
            _limit(ax, spreads.values(), axis="x")
            _draw_arrows(ax, [(row, spread, LIGHT.series[0], 0.0) for row, spread in spreads.items()], axis="x")
            _draw_guessing(ax, [guessing[name]] if name in guessing else [], sheet, axis="x")
        entries = [(_handle(Mark(LIGHT.muted, "o"), LIGHT.ground), _ONE_SEED)] if _has_single_seeds(points) else []
        entries += [(_handle(Mark(LIGHT.muted, "", _DASHED)), GUESSING)] if guessing else []
        if entries:
            figure.legend(*zip(*entries), loc="outside lower center", ncols=2 if sheet is WIDE else 1)

    width = max(columns * 2.2 + label_width, min(4.6, sheet.width))
    return Picture(width, rows * (0.7 + row_height * len(labels)) + 0.5, sheet.font, draw)


def _draw_lines(
    ax: Any,
    lines: Sequence[Series],
    score: Callable[[Point], Spread | None],
    width: float,
    guessing: Collection[float],
    sheet: Sheet,
    *,
    least: float | None = None,
    around: Sequence[float] = (),
) -> None:
    """Draws `score` of the series over a share axis, with ticks at the shares that were measured, in a picture or panel
    of `width` inches. `least` and `around` as for `_limit`."""
    from matplotlib.ticker import NullLocator

    ratios = _ratios([point for line in lines for point in line.points])
    shared_marks: dict[Any, tuple[Spread, float]] = {}
    drawn: list[tuple[float, Spread, str, float]] = []
    for number, (line, mark) in enumerate(zip(lines, _marks(len(lines)))):
        # Series stand some points of width beside each other, as their error bars would overlap.
        shift = min(6, 18 / len(lines)) * (number - (len(lines) - 1) / 2)
        scored = [(point, spread) for point in line.points if (spread := score(point))]
        for point, spread in scored:
            if point.full and _shares_full(lines, line):
                shared_marks.setdefault(grid_key(point.grid), (spread, shift))
            else:
                _draw_spread(ax, point.ratio, spread, mark, shift=shift)
                drawn.append((point.ratio, spread, mark.color, shift))
        ax.plot(
            [point.ratio for point, _ in scored],
            [spread.mean for _, spread in scored],
            color=mark.color,
            linestyle=mark.linestyle,
            linewidth=1.8,
            zorder=3,
            transform=_shifted(ax, shift),
        )
    for spread, shift in shared_marks.values():
        shift = shift if len(shared_marks) > 1 else 0
        _draw_spread(ax, 1.0, spread, Mark(LIGHT.ink, "D"), shift=shift)
        drawn.append((1.0, spread, LIGHT.ink, shift))
    ax.set_xscale("log" if _log(ratios) else "linear")
    ax.set_xlim(*_ends(ratios))
    ticks = _readable(ratios, ratios, sheet.tick_distance(width))
    ax.set_xticks(ticks, [share(ratio) for ratio in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    _limit(ax, [spread for _, spread, _, _ in drawn], least=least, around=around)
    _draw_arrows(ax, drawn)
    _draw_guessing(ax, guessing, sheet)


def _draw_spread(ax: Any, place: float, spread: Spread, mark: Mark, *, axis: str = "y", shift: float = 0.0) -> None:
    """A mean with its 95 % interval as error bar along `axis`, at `place` on the other axis and `shift` points
    beside it, and the runs as faint dots. A single seed is a hollow mark without dots."""
    ax.errorbar(
        *((place, spread.mean) if axis == "y" else (spread.mean, place)),
        **{f"{axis}err": _reaches(spread)},
        color=mark.color,
        marker=mark.marker,
        markersize=6,
        markerfacecolor=mark.color if len(spread.by_seed) > 1 else LIGHT.ground,
        elinewidth=1.5,
        capsize=3,
        capthick=1.5,
        zorder=4,
        transform=_shifted(ax, shift),
    )
    if len(spread.by_seed) > 1:
        runs, places = list(spread.by_seed.values()), [place] * len(spread.by_seed)
        ax.plot(
            *((places, runs) if axis == "y" else (runs, places)),
            color=mark.color,
            marker="o",
            markersize=4,
            markeredgewidth=0,
            linestyle="",
            alpha=0.45,
            zorder=2,
            clip_on=False,
            transform=_shifted(ax, shift + 5) if axis == "y" else _shifted(ax, 0, -6),
        )


def _reaches(spread: Spread) -> list[list[float]] | None:
    """How far an error bar goes down and up; None for no bar."""
    if not spread.half or spread.low is None or spread.high is None:
        return None
    return [[max(0.0, spread.mean - spread.low)], [max(0.0, spread.high - spread.mean)]]


def _draw_arrows(ax: Any, drawn: Iterable[tuple[float, Spread, str, float]], *, axis: str = "y") -> None:
    """Arrows at the edge where an interval goes on beyond the picture: of (place, spread, colour, shift)."""
    edges = getattr(ax, f"get_{axis}lim")()
    for place, spread, color, shift in drawn:
        for edge, beyond, marker in (
            (edges[0], spread.low is not None and spread.low < edges[0], "v" if axis == "y" else "<"),
            (edges[1], spread.high is not None and spread.high > edges[1], "^" if axis == "y" else ">"),
        ):
            if beyond:
                inside = 3 if edge == edges[0] else -3
                ax.plot(
                    *((place, edge) if axis == "y" else (edge, place)),
                    color=color,
                    marker=marker,
                    markersize=6,
                    markeredgewidth=0,
                    linestyle="",
                    zorder=4,
                    transform=_shifted(ax, shift, inside) if axis == "y" else _shifted(ax, inside),
                )


def _draw_guessing(ax: Any, chances: Iterable[float], sheet: Sheet, *, axis: str = "y") -> None:
    """A dashed line at each score of guessing; one that is out of the picture is named at its edge."""
    low, high = getattr(ax, f"get_{axis}lim")()
    line = ax.axhline if axis == "y" else ax.axvline
    for chance in chances:
        if low <= chance <= high:
            line(chance, color=LIGHT.muted, linewidth=1, linestyle=_DASHED, zorder=1)
        else:
            beyond = ("↓" if chance < low else "↑") if axis == "y" else ("←" if chance < low else "→")
            left, up = axis == "x" and chance < low, axis == "y" and chance > high
            ax.text(
                0.01 if left else 0.99,
                0.98 if up else 0.02,
                f"{beyond} {GUESSING}: {chance:.1f}",
                ha="left" if left else "right",
                va="top" if up else "bottom",
                color=LIGHT.muted,
                fontsize=sheet.font - 1,
                bbox=_BEHIND,
                zorder=3.5,
                transform=ax.transAxes,
            )


def _draw_published(ax: Any, published: Sequence[Published], ratios: list[float], sheet: Sheet) -> None:
    """Short grey lines with their names beside them, at the right unless others follow too soon."""
    low, high = ax.get_ylim()
    unit = 72 * 0.75 * sheet.curve[1] / (high - low)  # points, as the axes take three quarters of the height
    size = sheet.font - 1
    places = {ratio: _place(ratio, ratios) for ratio in sorted({mark.ratio for mark in published})}
    for ratio, place in places.items():
        left = any(0 < other - place < 8 * size / (72 * sheet.curve[0]) for other in places.values())
        below = math.inf
        for mark in sorted((m for m in published if m.ratio == ratio), key=lambda m: -m.relative):
            ax.plot(
                ratio,
                mark.relative,
                marker="_",
                markersize=_MARK,
                markeredgewidth=1.8,
                color=LIGHT.muted,
                linestyle="",
                zorder=2.5,
            )
            text = min(mark.relative * unit, below - size)  # labels of near marks stand below each other
            below = text
            ax.annotate(
                f"> {mark.name}" if mark.above else mark.name,
                (ratio, mark.relative),
                (-9 if left else 9, text - mark.relative * unit),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                color=LIGHT.muted,
                fontsize=size,
                bbox=_BEHIND,
                zorder=3.5,  # below the means
            )


def _limit(
    ax: Any, spreads: Iterable[Spread], *, least: float | None = None, around: Sequence[float] = (), axis: str = "y"
) -> None:
    """Limits that hold every run and mean, and span `least` (default: 5 % of the largest number) at least, so that
    noise does not look like a slope. Intervals of two or three seeds are wide: they may take half as much again at
    either end, so that the points stay apart. There is nothing below 0 where no score is."""
    from matplotlib.ticker import MaxNLocator

    numbers, ends = list(around), list(around)
    for spread in spreads:
        numbers += [spread.mean, *spread.by_seed.values()]
        ends += [end for end in (spread.low, spread.high) if end is not None]
    if not numbers:
        return
    low, high = min(numbers), max(numbers)
    least = 0.05 * max(abs(low), abs(high), 1) if least is None else least
    reach = max(high - low, least) / 2
    bottom, top = max(min([low, *ends]), low - reach), min(max([high, *ends]), high + reach)
    margin = max(0.07 * (top - bottom), (least - (top - bottom)) / 2)
    bottom, top = bottom - margin, top + margin
    if low >= 0 and bottom < 0.25 * top:
        bottom = 0.0
    ax.set(**{f"{axis}lim": (bottom, top)})
    getattr(ax, f"{axis}axis").set_major_locator(MaxNLocator(6 if axis == "y" else 3, steps=[1, 2, 5, 10]))


def _legend(figure: Any, lines: Sequence[Series], sheet: Sheet, guessing: str = "", published: bool = False) -> None:
    points = [point for line in lines for point in line.points]
    namer = Namer(points)
    entries = [
        (_handle(mark), clean(namer.series(line.grid, line.selection)))
        for line, mark in zip(lines, _marks(len(lines)))
        if line.selection != FULL or not _shares_full(lines, line)
    ]
    if any(line.points[-1].full and _shares_full(lines, line) for line in lines):
        entries.append((_handle(Mark(LIGHT.ink, "D")), FULL))
    if _has_single_seeds(points):
        entries.append((_handle(Mark(LIGHT.muted, "o"), LIGHT.ground), _ONE_SEED))
    if guessing:
        entries.append((_handle(Mark(LIGHT.muted, "", _DASHED)), guessing))
    if published:
        entries.append((_handle(Mark(LIGHT.muted, "_"), markersize=_MARK, markeredgewidth=1.8), _PUBLISHED))
    handles, labels = zip(*entries)
    widest = max(len(line) for label in labels for line in label.split("\n"))
    most = max(1, min(len(labels), int(sheet.characters(figure.get_figwidth()) // (widest + 7))))
    columns = math.ceil(len(labels) / math.ceil(len(labels) / most))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _handle(mark: Mark, face: str | None = None, **options: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **mark._asdict(), markerfacecolor=face or mark.color, **options)


def _marks(count: int) -> list[Mark]:
    markers, dashes = "os^vPX*p", ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
    colors = len(LIGHT.series)
    return [
        Mark(LIGHT.series[at % colors], markers[at % len(markers)], dashes[at // colors % len(dashes)])
        for at in range(count)
    ]


def _shares_full(lines: Sequence[Series], line: Series) -> bool:
    """Whether the full mixture of `line` has a mark of its own: where it serves several selections, and where one grid
    is all there is."""
    keys = [grid_key(other.grid) for other in lines]
    return len(set(keys)) == 1 or keys.count(grid_key(line.grid)) > 1


def _shifted(ax: Any, right: float, up: float = 0.0) -> Any:
    from matplotlib.transforms import offset_copy

    return offset_copy(ax.transData, ax.figure, right, up, units="points")


def _score(point: Point, name: str) -> Spread | None:
    return point.scores.get(name)


def _has_single_seeds(points: list[Point]) -> bool:
    return any(len(spread.by_seed) == 1 for point in points for spread in point.scores.values())


def _ratios(points: Sequence[Point]) -> list[float]:
    return sorted({point.ratio for point in points})


def _log(ratios: list[float]) -> bool:
    """From 10 % up the shares read well side by side; below, a linear axis would crowd them at its left end."""
    return ratios[0] < 0.08 and len(ratios) > 1


def _ends(ratios: list[float]) -> tuple[float, float]:
    return (ratios[0] / 1.25, ratios[-1] * 1.2) if _log(ratios) else (0.0, ratios[-1] * 1.06)


def _place(ratio: float, ratios: list[float]) -> float:
    """Of a share on the axis of all `ratios`, from 0 to 1."""
    low, high = _ends(ratios)
    return math.log(ratio / low) / math.log(high / low) if _log(ratios) else ratio / high


def _readable(chosen: list[float], ratios: list[float], distance: float) -> list[float]:
    """Those of `chosen` that stand at least `distance` (share of the axis of all `ratios`) from each other; the last
    always."""
    kept: list[tuple[float, float]] = []
    for ratio in chosen[-1:] + chosen[:-1]:
        place = _place(ratio, ratios)
        if all(abs(place - other) >= distance for _, other in kept):
            kept.append((ratio, place))
    return sorted(ratio for ratio, _ in kept)


def _layout(panels: int, width: float, page: float, left: float = 0.0) -> tuple[int, int]:
    """Columns and rows of `panels` of `width` inches on a page, with `left` inches of names at its left."""
    rows = math.ceil(panels / max(1, min(4, int((page - left) / width))))
    return math.ceil(panels / rows), rows


def _panels(figure: Any, names: list[str], columns: int, sheet: Sheet) -> list[tuple[Any, str]]:
    """Axes under the headings `names`, row by row."""
    axes = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes, names):
        ax.set_title(clean(name, 26), fontsize=sheet.font + 0.5, fontweight="bold", loc="left")
    return list(zip(axes, names))


def clean(text: str, width: int = 44, most: int = 2) -> str:
    """A name on at most `most` lines of `width` characters, of characters that the font has."""
    lines = textwrap.wrap(printable(text), width, max_lines=most, placeholder="…") or [" "]
    return "\n".join(lines) if lines[0][0] != "_" else " " + "\n".join(lines)  # legends drop labels that begin with _
