"""Samples and mixtures as a notebook shows them: HTML without scripts, every text escaped."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from vlmix.mixture.dataset.schema import Turn
from vlmix.mixture.record import ImageRef

_BOX = re.compile(r"\[([01]\.\d+), ([01]\.\d+), ([01]\.\d+), ([01]\.\d+)\]")
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def sample_html(title: str, turns: list[Turn], jpegs: Sequence[bytes], images: Sequence[ImageRef]) -> str:
    """The images, with the boxes that the texts name where there is one, and the turns beside them. Boxes are read on
    the padded square, as `boxes.square_text` writes them, and marked in one color there and in the text."""
    colors: dict[str, str] = {}

    def marked(text: str) -> str:
        parts, end = [], 0
        for found in _BOX.finditer(text):
            color = colors.setdefault(found[0], _COLORS[len(colors) % len(_COLORS)])
            parts += [escape(text[end : found.start()]), f'<b style="color:{color}">{found[0]}</b>']
            end = found.end()
        return "".join([*parts, escape(text[end:])]).replace("\n", "<br>")

    rows = "".join(
        f'<p style="margin:0 0 .5em;text-align:left"><b>{escape(turn.from_)}</b> {marked(turn.value)}</p>'
        for turn in turns
    )
    drawn = colors if len(images) == 1 else {}  # which of several images a box is in, its text does not say
    pictures = "".join(_picture(jpeg, image.width, image.height, drawn) for jpeg, image in zip(jpegs, images))
    return (
        f'<div style="display:flex;gap:1em;align-items:flex-start">{pictures}'
        f'<div><p style="margin:0 0 .5em;text-align:left;opacity:.7">{escape(title)}</p>{rows}</div></div>'
    )


def _picture(jpeg: bytes, width: int, height: int, colors: Mapping[str, str]) -> str:
    kind = "png" if jpeg[:4] == b"\x89PNG" else "jpeg"
    side, shapes = max(width, height), []
    dx, dy = (side - width) // 2, (side - height) // 2
    for box, color in colors.items():
        x1, y1, x2, y2 = (float(number) * side for number in _BOX.fullmatch(box).groups())  # type: ignore[union-attr]
        shapes.append(
            f'<rect x="{x1 - dx:.1f}" y="{y1 - dy:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" '
            f'stroke="{color}" stroke-width="2" vector-effect="non-scaling-stroke"/>'
        )
    shown = min(336, side) / side
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width * shown:.0f}" height="{height * shown:.0f}" '
        f'style="flex:none"><image width="{width}" height="{height}" '
        f'href="data:image/{kind};base64,{base64.b64encode(jpeg).decode()}"/>{"".join(shapes)}</svg>'
    )


def mixture_html(title: str, sources: Mapping[str, int]) -> str:
    """The number of samples of each source."""
    total = sum(sources.values())
    rows = "".join(
        f'<tr><td style="text-align:left">{escape(name)}</td>'
        f"<td>{count:,}</td><td>{100 * count / total:.1f} %</td></tr>"
        for name, count in sources.items()
    )
    head = '<tr><th style="text-align:left">source</th><th>samples</th><th>share</th></tr>'
    return f"<p>{escape(title)}</p><table>{head}{rows}</table>"
