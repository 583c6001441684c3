"""Samples and mixtures as a notebook shows them, and a sample in a terminal. HTML has no scripts, escapes every text,
takes the notebook's colors, and is bounded, because a notebook keeps what its cells have shown."""

import base64
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape

from vlmix.mixture.boxes import SQUARE_TEXT, boxes_in, clip
from vlmix.mixture.dataset.manifest import Counts
from vlmix.mixture.dataset.schema import SampleJson, Turn
from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.io.visible import visible
from vlmix.mixture.record import ImageRef

MOST_IMAGES, MOST_TURNS, MOST_SOURCES = 16, 100, 100
"""Images and turns of a sample, sources of a mixture that are shown."""
LONGEST_TURN, LONGEST_TEXT = 4_000, 40_000
"""Characters that are shown of a turn, and of all turns of a sample."""
MOST_WINDOWS = 4
"""Images that `show` opens, each in a window of its own."""

_BOX = re.compile(SQUARE_TEXT)
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_ONE, _SEVERAL = 336, 224  # pixels of the longer side of an image on the page
_FAINT = "opacity:.7;font-size:90%;overflow-wrap:anywhere;text-align:start"


def sample_html(sample: SampleJson, jpegs: Sequence[bytes]) -> str:
    """The images, reduced, with the boxes that the texts name where there is one, and the rounds beside them. Boxes are
    read on the padded square, as `boxes.square_text` writes them, and marked in one color there and in the text."""
    colors: dict[str, str] = {}

    def marked(text: str) -> str:
        parts, end = [], 0
        for found in _BOX.finditer(text):
            color = colors.setdefault(found[0], _COLORS[len(colors) % len(_COLORS)])
            parts += [escape(text[end : found.start()]), f'<b style="border-bottom:3px solid {color}">{found[0]}</b>']
            end = found.end()
        return "".join([*parts, escape(text[end:])])

    turns, left_out = _shown_turns(sample.conversations)
    rows = [
        f'<div style="display:flex;gap:.6em;text-align:start;margin:0 0 {".7em" if number % 2 else ".1em"}">'
        f'<b style="flex:none;width:4.5em;overflow-wrap:anywhere">{escape(who)}</b><div style="min-width:0">'
        f'<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere">{marked(text)}</div>'
        f"{_faint(note) if note else ''}</div></div>"
        for number, (who, text, note) in enumerate(turns)
    ]
    notes = [f"… {left_out:,} more turns"] if left_out else []
    drawn = colors if len(sample.images) == 1 else {}  # which of several images a box is in, its text does not say
    shown = list(zip(sample.images, jpegs))[:MOST_IMAGES]
    figures = [_figure(number, image, jpeg, drawn, len(jpegs)) for number, (image, jpeg) in enumerate(shown)]
    if len(sample.images) > len(shown):
        figures.append(_faint(f"… {len(sample.images) - len(shown)} more images"))
    return (
        f'<div><div style="{_FAINT};margin:0 0 .5em">{escape(_about(sample))}</div>'
        '<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start">'
        f'<div style="display:flex;flex-wrap:wrap;gap:.5em;align-items:flex-start">{"".join(figures)}</div>'
        f'<div style="flex:1 1 18em;min-width:0">{"".join([*rows, *map(_faint, notes)])}</div></div></div>'
    )


def _about(sample: SampleJson) -> str:
    rounds, images = len(sample.conversations) // 2, len(sample.images)
    counts = f"{rounds:,} round{'s' * (rounds != 1)}, {images:,} image{'s' * (images != 1)}"
    return f"{_short(sample.id)} · {_short(sample.source)} · {counts}"


def _shown_turns(turns: Sequence[Turn]) -> tuple[list[tuple[str, str, str]], int]:
    """Who says what in the turns that are shown, each with a note on what was cut or ""; and how many are left out."""
    shown, left = [], LONGEST_TEXT
    for turn in turns[:MOST_TURNS]:
        if not left:
            break
        text = turn.value[: min(LONGEST_TURN, left)]
        left -= len(text)
        cut = len(turn.value) - len(text)
        shown.append((_short(turn.from_), visible(text, lines=True), f"… {cut:,} more characters" if cut else ""))
    return shown, len(turns) - len(shown)


def _short(text: str) -> str:
    return abridged(visible(text[:10_000]), 200)


def _faint(text: str) -> str:
    return f'<div style="{_FAINT}">{escape(text)}</div>'


def _caption(number: int, image: ImageRef, jpeg: bytes) -> str:
    return f"[{number}] {_short(image.path)} {image.width}x{image.height}, {len(jpeg):,} bytes"


def _figure(number: int, image: ImageRef, jpeg: bytes, colors: Mapping[str, str], of: int) -> str:
    # Imported here: it needs Pillow, which readers of bytes need not have.
    from vlmix.mixture.io.images import thumbnail

    caption, width, height = _caption(number, image, jpeg), image.width, image.height
    at_most = _ONE if of == 1 else _SEVERAL
    try:
        small = thumbnail(jpeg, 2 * at_most if of == 1 else at_most)  # sharp on dense screens
    except VlmixError as error:
        return _faint(f"{caption}: does not decode: {error}")
    shapes = [
        f'<rect x="{inside[0]:.1f}" y="{inside[1]:.1f}" width="{inside[2] - inside[0]:.1f}" '
        f'height="{inside[3] - inside[1]:.1f}" fill="none" '
        f'stroke="{color}" stroke-width="2" vector-effect="non-scaling-stroke"/>'
        for box, color in colors.items()
        for named in boxes_in(box, width, height)
        if (inside := clip(named, width, height)) is not None
    ]
    # An img below the drawing: notebooks that are not trusted strip SVG, and show the image still.
    drawing = (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true" '
        f'style="position:absolute;top:0;left:0;width:100%;height:100%">{"".join(shapes)}</svg>'
        if shapes
        else ""
    )
    shown = max(1, round(width * min(1, at_most / max(1, width, height))))
    return (
        f'<div style="max-width:100%;width:{max(shown, 176)}px">'
        f'<div style="position:relative;line-height:0;max-width:100%;width:{shown}px">'
        f'<img alt="{escape(caption)}" width="{shown}" style="width:100%;height:auto;margin:0" '
        f'src="data:image/jpeg;base64,{base64.b64encode(small).decode()}"/>{drawing}</div>{_faint(caption)}</div>'
    )


def mixture_html(title: str, where: str, counts: Mapping[str, Counts]) -> str:
    """What each source gives, and where it lies."""
    left, total = ' style="text-align:left"', sum(counts.values(), Counts())

    def row(name: str, c: Counts, cell: str = "td") -> str:
        share = f"{100 * c.samples / max(1, total.samples):.1f}\N{NO-BREAK SPACE}%"
        cells = (f"{c.samples:,}", share, f"{c.rounds:,}", f"{c.words:,}", f"{c.images:,}")
        return f"<tr><{cell}{left}>{escape(name)}</{cell}>{''.join(f'<{cell}>{text}</{cell}>' for text in cells)}</tr>"

    names = ("samples", "share", "rounds", "words", "images")
    head = f"<tr><th{left}>source</th>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    rows = "".join(row(_short(name), c) for name, c in list(counts.items())[:MOST_SOURCES])
    rest = len(counts) - MOST_SOURCES
    more = f'<tr><td{left} colspan="6">… {rest:,} more sources</td></tr>' if rest > 0 else ""
    foot = row("total", total, "th")
    return (
        f'<div><div>{escape(_short(title))}</div><div style="overflow-x:auto"><table>'
        f"<thead>{head}</thead><tbody>{rows}{more}</tbody>"
        f"<tfoot>{foot}</tfoot></table></div>{_faint(_short(where))}</div>"
    )


def show(sample: SampleJson, jpegs: Sequence[bytes]) -> None:
    """In a notebook, display the sample. Elsewhere print its rounds, within the bounds above, and open its first images
    in the viewer that Pillow finds; where there is no screen or no viewer, their paths and sizes say what they are."""
    # A program that has not imported IPython does not run in it; its terminal shell has no kernel.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is not None:
        importlib.import_module("IPython.display").display(sample)
        return
    turns, left_out = _shown_turns(sample.conversations)
    lines = [_about(sample)]
    lines += [_caption(number, image, jpeg) for number, (image, jpeg) in enumerate(zip(sample.images, jpegs))]
    for number, (who, text, note) in enumerate(turns):
        lines += ["", f"[{number // 2}]"] if number % 2 == 0 else []
        lines += [f"{who:>6}: {text}", *([note] if note else [])]
    lines += [f"… {left_out:,} more turns"] if left_out else []
    _print(lines)
    _print(_opened(jpegs))


def _opened(jpegs: Sequence[bytes]) -> list[str]:
    """Open the first images in windows; what there is to say of those that were not."""
    if not jpegs:
        return []
    window_system = (
        sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if not window_system:
        return ["no screen to show the images on"]  # xdg-open would start a browser in the terminal
    from PIL import ImageShow

    from vlmix.mixture.io.images import decoded

    said = []
    for number, jpeg in enumerate(jpegs[:MOST_WINDOWS]):
        try:
            if not ImageShow.show(decoded(jpeg)):
                return ["Pillow finds no viewer to show the images in"]
        except VlmixError as error:
            said.append(f"[{number}] does not decode: {error}")
    if len(jpegs) > MOST_WINDOWS:
        said.append(f"… {len(jpegs) - MOST_WINDOWS} more images; images_pil() has them all")
    return said


def _print(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
