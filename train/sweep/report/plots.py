"""The pictures of a report, as PNG. Bytes depend on the points and on matplotlib's version alone: no settings of the
user, no pyplot, no metadata.

Error bars are 95 % intervals, faint dots the runs, hollow marks single seeds, whose interval is over questions alone.
"""

import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

from vlmix.mixture.extras import missing
from vlmix.train.sweep.report.aggregate import FULL, Point, Series, Spread, benchmarks, grid_key, is_relative, series
from vlmix.train.sweep.report.wording import Namer, share

DPI = 180  # dots per inch: sharp on screens with two dots a pixel
_PAGE = 10.5  # inches of width on which 9.5 points still read well in a browser
_ONE_SEED = "one seed: interval over questions alone"


class Theme(NamedTuple):
    """Colours on a background. Those of series are Okabe and Ito's, which colour-blind people tell apart, without the
    yellow and with the pale ones darker on white, the dark ones paler on black."""

    ground: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme(
    "#ffffff", "#1b1f24", "#59636e", "#dfe3e8", ("#0072b2", "#d55e00", "#009e73", "#b3528c", "#b07a00", "#2a9bd6")
)
DARK = Theme(
    "#161b22", "#e6edf3", "#9aa4af", "#30363d", ("#56b4e9", "#ff8f4d", "#2fc9a0", "#e39cc5", "#e8b33f", "#a5d8f5")
)


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


def curve(points: list[Point], theme: Theme = LIGHT, note: str = "") -> bytes:
    """The main picture: the relative score over the share of the mixture; as long as nothing is relative, scores over
    the share; and where there is one share alone, a row of points for each benchmark. `note` stands above it."""
    if not benchmarks(points):
        return _render(theme, (6, 1), lambda figure: figure.text(0.5, 0.5, "no scores yet", ha="center", va="center"))
    if is_relative(points):
        return _relative(points, theme, note)
    return _over_share(points, theme) if len(_ratios(points)) > 1 else _rows(points, theme)


def scores(points: list[Point], theme: Theme = LIGHT) -> bytes | None:
    """A panel of scores over the share for each benchmark; None where `curve` has them all."""
    return _over_share(points, theme) if is_relative(points) and len(benchmarks(points)) > 1 else None


def _relative(points: list[Point], theme: Theme, note: str) -> bytes:
    lines = [line for line in series(points) if any(point.relative for point in line.points)]
    points = [point for line in lines for point in line.points]

    def draw(figure: Any) -> None:
        ax = figure.add_subplot()
        _draw_lines(ax, lines, theme, lambda point: point.relative, tick_distance=0.055, least=5, around=(100,))
        ax.axhline(100, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if note:
            ax.set_title("\n".join(clean(note, 100, 2).split("\n")), fontsize=9, color=theme.muted, loc="left")
        ax.set_xlabel("share of the mixture's samples")
        ax.set_ylabel("score relative to the full mixture")
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:g} %")
        if len(lines) == 1:  # means beside the points, right below, where a rising curve leaves room
            means = {point.ratio: point.relative.mean for point in points if point.relative and not point.full}
            for ratio in _readable(sorted(means), _ratios(points), 0.08):
                at = ratio, means[ratio]
                ax.annotate(f"{means[ratio]:.1f}", at, (10, -11), textcoords="offset points", fontsize=8.5)
        _legend(figure, lines, theme)

    return _render(theme, (7.8, 4.8), draw)


def _over_share(points: list[Point], theme: Theme) -> bytes:
    lines, names = series(points), benchmarks(points)
    columns, rows = _layout(len(names), 2.6)

    def draw(figure: Any) -> None:
        for index, (ax, name) in enumerate(_panels(figure, names, columns)):
            _draw_lines(ax, lines, theme, partial(_score, name=name), tick_distance=0.16)
            if index >= len(names) - columns:
                ax.set_xlabel("share of the samples")
        _legend(figure, lines, theme)

    return _render(theme, (max(columns * 2.6, 4.6), rows * 2.3 + 0.7), draw)


def _rows(points: list[Point], theme: Theme) -> bytes:
    """Points of one share, as in an ablation ladder: a row each, in panels by benchmark."""
    namer, names = Namer(points), benchmarks(points)
    labels = [clean(namer.series(point.grid, point.selection), 30, 4) for point in points]
    label_width = 0.08 * max(len(line) for label in labels for line in label.split("\n"))
    columns, rows = _layout(len(names), 2.2, label_width)
    row_height = 0.2 + 0.16 * max(label.count("\n") + 1 for label in labels)

    def draw(figure: Any) -> None:
        for index, (ax, name) in enumerate(_panels(figure, names, columns)):
            spreads = {row: point.scores[name] for row, point in enumerate(points) if name in point.scores}
            for row, spread in spreads.items():
                _draw_spread(ax, row, spread, Mark(theme.series[0], "o"), theme, axis="x")
            ax.set_yticks(range(len(labels)), labels if index % columns == 0 else [""] * len(labels))
            ax.set_ylim(len(labels) - 0.4, -0.6)
            _limit(ax, spreads.values(), axis="x")
        if _has_single_seeds(points):
            figure.legend([_handle(Mark(theme.muted, "o"), theme.ground)], [_ONE_SEED], loc="outside lower center")

    return _render(theme, (max(columns * 2.2 + label_width, 4.6), rows * (0.7 + row_height * len(labels)) + 0.5), draw)


def _draw_lines(
    ax: Any,
    lines: Sequence[Series],
    theme: Theme,
    score: Callable[[Point], Spread | None],
    *,
    tick_distance: float,
    **limits: Any,
) -> None:
    """Draws `score` of the series over a share axis, with ticks at the shares that were measured."""
    from matplotlib.ticker import NullLocator

    ratios = _ratios([point for line in lines for point in line.points])
    shared_marks: dict[Any, tuple[Spread, float]] = {}
    spreads = []
    for number, (line, mark) in enumerate(zip(lines, _marks(len(lines), theme))):
        # Series stand some points of width beside each other, as their error bars would overlap.
        shift = min(6, 18 / len(lines)) * (number - (len(lines) - 1) / 2)
        scored = [(point, spread) for point in line.points if (spread := score(point))]
        spreads += [spread for _, spread in scored]
        for point, spread in scored:
            if point.full and _shares_full(lines, line):
                shared_marks.setdefault(grid_key(point.grid), (spread, shift))
            else:
                _draw_spread(ax, point.ratio, spread, mark, theme, shift=shift)
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
        _draw_spread(ax, 1.0, spread, Mark(theme.ink, "D"), theme, shift=shift if len(shared_marks) > 1 else 0)
    ax.set_xscale("log" if _log(ratios) else "linear")
    ax.set_xlim(*_ends(ratios))
    ticks = _readable(ratios, ratios, tick_distance)
    ax.set_xticks(ticks, [share(ratio) for ratio in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    _limit(ax, spreads, **limits)


def _draw_spread(
    ax: Any, place: float, spread: Spread, mark: Mark, theme: Theme, *, axis: str = "y", shift: float = 0.0
) -> None:
    """A mean with its 95 % interval as error bar along `axis`, at `place` on the other axis and `shift` points
    beside it, and the runs as faint dots. A single seed is a hollow mark without either."""
    ax.errorbar(
        *((place, spread.mean) if axis == "y" else (spread.mean, place)),
        **{f"{axis}err": spread.half or None},
        color=mark.color,
        marker=mark.marker,
        markersize=6,
        markerfacecolor=mark.color if len(spread.by_seed) > 1 else theme.ground,
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
            transform=_shifted(ax, shift + 5) if axis == "y" else _shifted(ax, 0, -6),
        )


def _limit(
    ax: Any, spreads: Iterable[Spread], *, least: float | None = None, around: Sequence[float] = (), axis: str = "y"
) -> None:
    """Limits that hold every run and error bar, and span `least` (default: 5 % of the largest number) at least, so that
    noise does not look like a slope."""
    from matplotlib.ticker import MaxNLocator

    ends = list(around)
    for spread in spreads:
        half = spread.half or 0.0
        ends += [spread.mean - half, spread.mean + half, *spread.by_seed.values()]
    if not ends:
        return
    low, high = min(ends), max(ends)
    least = 0.05 * max(abs(low), abs(high), 1) if least is None else least
    margin = max(0.07 * (high - low), (least - (high - low)) / 2)
    floor = 0.0 if low >= 0 and low - margin < 0.25 * (high + margin) else low - margin
    ax.set(**{f"{axis}lim": (floor, high + margin)})
    getattr(ax, f"{axis}axis").set_major_locator(MaxNLocator(6 if axis == "y" else 3, steps=[1, 2, 5, 10]))


def _legend(figure: Any, lines: Sequence[Series], theme: Theme) -> None:
    points = [point for line in lines for point in line.points]
    namer = Namer(points)
    entries = [
        (_handle(mark), clean(namer.series(line.grid, line.selection)))
        for line, mark in zip(lines, _marks(len(lines), theme))
        if line.selection != FULL or not _shares_full(lines, line)
    ]
    if any(line.points[-1].full and _shares_full(lines, line) for line in lines):
        entries.append((_handle(Mark(theme.ink, "D")), FULL))
    if _has_single_seeds(points):
        entries.append((_handle(Mark(theme.muted, "o"), theme.ground), _ONE_SEED))
    handles, labels = zip(*entries)
    widest = max(len(line) for label in labels for line in label.split("\n"))
    most = max(1, min(len(labels), int(figure.get_figwidth() * 13 // (widest + 7))))
    columns = math.ceil(len(labels) / math.ceil(len(labels) / most))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _handle(mark: Mark, face: str | None = None) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **mark._asdict(), markerfacecolor=face or mark.color)


def _marks(count: int, theme: Theme) -> list[Mark]:
    markers, dashes = "os^vPX*p", ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
    colors = len(theme.series)
    return [
        Mark(theme.series[at % colors], markers[at % len(markers)], dashes[at // colors % len(dashes)])
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


def _readable(chosen: list[float], ratios: list[float], distance: float) -> list[float]:
    """Those of `chosen` that stand at least `distance` (share of the axis of all `ratios`) from each other; the last
    always."""
    low, high = _ends(ratios)
    kept: list[tuple[float, float]] = []
    for ratio in chosen[-1:] + chosen[:-1]:
        place = math.log(ratio / low) / math.log(high / low) if _log(ratios) else ratio / high
        if all(abs(place - other) >= distance for _, other in kept):
            kept.append((ratio, place))
    return sorted(ratio for ratio, _ in kept)


def _layout(panels: int, width: float, left: float = 0.0) -> tuple[int, int]:
    """Columns and rows of `panels` of `width` inches on a page, with `left` inches of names at its left."""
    rows = math.ceil(panels / max(1, min(4, int((_PAGE - left) / width))))
    return math.ceil(panels / rows), rows


def _panels(figure: Any, names: list[str], columns: int) -> list[tuple[Any, str]]:
    """Axes under the headings `names`, row by row."""
    axes = figure.subplots(math.ceil(len(names) / columns), columns, squeeze=False).ravel()
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(axes, names):
        ax.set_title(clean(name, 26), fontsize=10, fontweight="bold", loc="left")
    return list(zip(axes, names))


def clean(text: str, width: int = 44, most: int = 2) -> str:
    """A name on at most `most` lines of `width` characters, of characters that the font has."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    lines = textwrap.wrap(printable, width, max_lines=most, placeholder="…") or [" "]
    return "\n".join(lines) if lines[0][0] != "_" else " " + "\n".join(lines)  # legends drop labels that begin with _


def _render(theme: Theme, size: tuple[float, float], draw: Callable[[Any], Any]) -> bytes:
    """PNG of a figure of `size` inches that `draw` has drawn on."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    png = BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Names in scripts that the font lacks become boxes; the tables have them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "text.parse_math": False,
                "font.family": "DejaVu Sans",
                "font.size": 9.5,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.linewidth": 0.8,
                "legend.frameon": False,
                "axes.edgecolor": theme.muted,
                "grid.color": theme.grid,
                **dict.fromkeys(["figure.facecolor", "savefig.facecolor", "axes.facecolor"], theme.ground),
                **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], theme.ink),
                **dict.fromkeys(["xtick.color", "ytick.color"], theme.muted),
            }
        )
        figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        draw(figure)
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return png.getvalue()
