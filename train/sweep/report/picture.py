"""Pictures as files and as SVG inside a page. Bytes depend on what is drawn and on matplotlib's version alone: no
settings of the user, no pyplot, no metadata."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple
from xml.etree import ElementTree

DPI = 180  # dots per inch of a PNG: sharp on screens with two dots a pixel
_METADATA = {"png": ["Software"], "svg": ["Date", "Creator"], "pdf": ["CreationDate", "Creator", "Producer"]}
"""What each kind of file would say beyond the picture."""
_SALT = "vlmix"  # of the ids in an SVG, which are random without one


class Theme(NamedTuple):
    """Colours on a background. Those of series are Okabe and Ito's, which colour-blind people tell apart, without the
    yellow and with the pale ones darker on white, the dark ones paler on black."""

    ground: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]

    def names(self) -> dict[str, str]:
        """Name of the CSS variable -> colour."""
        plain = {"ground": self.ground, "ink": self.ink, "muted": self.muted, "grid": self.grid}
        return plain | {f"series-{number}": color for number, color in enumerate(self.series)}


LIGHT = Theme(
    "#ffffff", "#1b1f24", "#59636e", "#dfe3e8", ("#0072b2", "#d55e00", "#009e73", "#b3528c", "#b07a00", "#2a9bd6")
)
DARK = Theme(
    "#161b22", "#e6edf3", "#9aa4af", "#30363d", ("#56b4e9", "#ff8f4d", "#2fc9a0", "#e39cc5", "#e8b33f", "#a5d8f5")
)


class Picture(NamedTuple):
    """A figure of `width` x `height` inches that `draw` draws on in the colours of `LIGHT`, with text of `font`
    points."""

    width: float
    height: float
    font: float
    draw: Callable[[Any], Any]

    def files(self, *kinds: str) -> dict[str, bytes]:
        """By kind, drawn once: `png` in pixels; `svg` in lines, text too, so that it looks the same wherever it is
        shown; `pdf` in lines and text with its TrueType font, as publishers refuse Type 3."""
        return self._drawn(*kinds, outlines=True)

    def inline(self, prefix: str) -> str:
        """An `<svg>` element for a page: text in the page's font, colours as CSS variables of `Theme.names`, ids that
        begin with `prefix`."""
        root = ElementTree.fromstring(self._drawn("svg")["svg"])  # noqa: S314 (our own)
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag.rpartition("}")[2] in ("metadata", "style"):
                    parent.remove(child)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
            element.tail = None
            element.attrib = {
                name: self._own(name, value, prefix)
                for name, value in ((name.rpartition("}")[2], value) for name, value in element.items())
                if not (name == "id" and element.tag == "g")
            }
        return ElementTree.tostring(root, encoding="unicode")

    @staticmethod
    def _own(name: str, value: str, prefix: str) -> str:
        """The value of an attribute in the page."""
        if name == "id":
            return prefix + value
        if name in ("href", "clip-path"):
            return value.replace("#", f"#{prefix}")
        if name == "style":
            value = re.sub(r" ?font-family: [^;]*;?", "", value)
            for variable, color in LIGHT.names().items():
                value = value.replace(color, f"var(--{variable})")
        return value

    def _drawn(self, *kinds: str, outlines: bool = False) -> dict[str, bytes]:
        """Drawn once, saved as each of `kinds`; `outlines` makes lines of an SVG's text."""
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        files = {kind: BytesIO() for kind in kinds}
        with _settings(self.font, outlines):
            pad = self.font / 95
            layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
            figure = Figure(figsize=(self.width, self.height), dpi=72, layout=layout)
            self.draw(figure)
            for kind, file in files.items():
                dots = DPI if kind == "png" else 72
                figure.savefig(file, format=kind, dpi=dots, metadata=dict.fromkeys(_METADATA[kind]))
        return {kind: file.getvalue() for kind, file in files.items()}


@contextmanager
def _settings(font: float, outlines: bool) -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Names in scripts that the font lacks become boxes; the tables have them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "text.parse_math": False,
                "font.family": "DejaVu Sans",
                "font.size": font,
                "svg.fonttype": "path" if outlines else "none",
                "svg.hashsalt": _SALT,
                "pdf.fonttype": 42,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.linewidth": 0.8,
                "legend.frameon": False,
                "axes.edgecolor": LIGHT.muted,
                "grid.color": LIGHT.grid,
                **dict.fromkeys(["figure.facecolor", "savefig.facecolor", "axes.facecolor"], LIGHT.ground),
                **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], LIGHT.ink),
                **dict.fromkeys(["xtick.color", "ytick.color"], LIGHT.muted),
            }
        )
        yield
