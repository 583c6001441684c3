"""What the pictures of a report are drawn with: colours, marks, limits, panels, PNG bytes.

The bytes depend on what is drawn and on matplotlib's version alone: no user's settings, no pyplot, no metadata.
"""

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from vlmix.mixture.errors import VlmixError
from vlmix.train.sweep.report.aggregate import Spread

DPI = 180  # dots per inch: sharp on screens with two dots a pixel
_PAGE = 10.5  # inches of width on which 9.5 points still read well in a browser
_MARKERS = "os^vPX*p"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))


@dataclass(frozen=True)
class Theme:
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


@dataclass(frozen=True)
class Mark:
    """How a series is drawn; two series share a colour only where their markers and dashes differ."""

    colour: str
    marker: str
    dash: Any = "-"


def marks(count: int, theme: Theme) -> list[Mark]:
    return [
        Mark(
            theme.series[number % len(theme.series)],
            _MARKERS[number % len(_MARKERS)],
            _DASHES[number // len(theme.series) % len(_DASHES)],
        )
        for number in range(count)
    ]


def draw_spread(ax: Any, x: float, y: float, found: Spread, mark: Mark, theme: Theme, *, along: str = "y") -> None:
    """A mean at (x, y) with its standard deviation as error bar `along` an axis, and the runs as faint dots beside it.
    A single seed is a hollow mark without either."""
    from matplotlib.transforms import offset_copy

    ax.errorbar(
        x,
        y,
        **{f"{along}err": found.sd},
        color=mark.colour,
        marker=mark.marker,
        markersize=6,
        markerfacecolor=theme.ground if found.sd is None else mark.colour,
        elinewidth=1.5,
        capsize=3,
        capthick=1.5,
        zorder=4,
    )
    if found.sd is not None:
        runs, across = list(found.by_seed.values()), [x if along == "y" else y] * len(found.by_seed)
        right, up = (5, 0) if along == "y" else (0, -6)
        ax.plot(
            *((across, runs) if along == "y" else (runs, across)),
            color=mark.colour,
            marker="o",
            markersize=4,
            markeredgewidth=0,
            linestyle="",
            alpha=0.45,
            zorder=2,
            transform=offset_copy(ax.transData, ax.figure, right, up, units="points"),
        )


def limit(
    ax: Any, found: Sequence[Spread], *, least: float | None = None, around: Sequence[float] = (), along: str = "y"
) -> None:
    """Limits that hold every run and error bar, and span `least` (default: 5 % of the largest number) at least, so that
    noise does not look like a slope."""
    ends = list(around)
    for spread in found:
        sd = spread.sd or 0.0
        ends += [spread.mean - sd, spread.mean + sd, *spread.by_seed.values()]
    if not ends:
        return
    low, high = min(ends), max(ends)
    least = 0.05 * max(abs(low), abs(high), 1) if least is None else least
    margin = max(0.07 * (high - low), (least - (high - low)) / 2)
    floor = 0.0 if low >= 0 and low - margin < 0.25 * (high + margin) else low - margin
    (ax.set_ylim if along == "y" else ax.set_xlim)(floor, high + margin)
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(6 if along == "y" else 3, steps=[1, 2, 5, 10])
    (ax.yaxis if along == "y" else ax.xaxis).set_major_locator(locator)


def clean(text: str, width: int = 44, most: int = 2) -> str:
    """A name on at most `most` lines of `width` characters, of characters that can be drawn."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    lines = textwrap.wrap(printable, width) or [" "]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: width - 1] + "…"]
    return "\n".join(lines) if lines[0][0] != "_" else " " + "\n".join(lines)  # legends drop labels that begin with _


def layout(panels: int, width: float, beside: float = 0.0) -> tuple[int, int]:
    """Columns and rows of `panels` of `width` inches on a page, with `beside` inches of names at the left."""
    most = max(1, min(4, int((_PAGE - beside) / width)))
    rows = -(-panels // most)
    return -(-panels // rows), rows


def panels(figure: Any, names: list[str], columns: int) -> Iterator[tuple[Any, str]]:
    """Axes under the headings `names`, row by row."""
    grid = figure.subplots(-(-len(names) // columns), columns, squeeze=False).ravel()
    for ax in grid[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(grid, names):
        ax.set_title(clean(name, 26), fontsize=10, fontweight="bold", loc="left")
        yield ax, name


def require() -> None:
    """Raises VlmixError without matplotlib, so that a sweep can tell before it trains."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise VlmixError("the curve of a sweep needs matplotlib: pip install 'vlmix[sweep]'") from None


def render(theme: Theme, size: tuple[float, float], paint: Callable[[Any], None]) -> bytes:
    """PNG of a figure of `size` inches that `paint` has drawn on. Raises VlmixError without matplotlib."""
    require()
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    png = BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Names in scripts that the font lacks become boxes; the tables have them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_style(theme))
        figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        paint(figure)
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return png.getvalue()


def _style(theme: Theme) -> dict[str, Any]:
    return {
        "text.parse_math": False,
        "text.color": theme.ink,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
    }
