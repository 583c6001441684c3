"""Pixel boxes, and their text on the padded square (reference: the released 665K rows)."""

import re

from vlmix.mixture.record import Box

SQUARE_TEXT = r"\[([01]\.\d+), ([01]\.\d+), ([01]\.\d+), ([01]\.\d+)\]"
"""A box as `square_text` writes it."""
_SQUARE_TEXT = re.compile(SQUARE_TEXT)


def square_text(box: Box, width: int, height: int) -> str:
    """`box` in pixels of a `width` x `height` image as LLaVA-1.5 writes it: `[0.0, 0.69, 1.0, 0.83]`.

    Coordinates are normalised on the square that `expand2square` pads the image to (side L = max(width, height),
    integer offsets). Python's own `round` and `repr` are the rule; `numpy.round` differs (16/640 is 0.03, NumPy
    says 0.02).
    """
    side = max(width, height)
    dx, dy = (side - width) // 2, (side - height) // 2
    x1, y1, x2, y2 = box
    return repr(
        [round((x1 + dx) / side, 2), round((y1 + dy) / side, 2), round((x2 + dx) / side, 2), round((y2 + dy) / side, 2)]
    )


def from_square(box: Box, width: int, height: int) -> Box:
    """The way back: `box` on the padded square, 0..1, in pixels of the unpadded `width` x `height` image."""
    side = max(width, height)
    dx, dy = (side - width) // 2, (side - height) // 2
    x1, y1, x2, y2 = box
    return x1 * side - dx, y1 * side - dy, x2 * side - dx, y2 * side - dy


def boxes_in(text: str, width: int, height: int) -> list[Box]:
    """The boxes that `text` names as `square_text` writes them, in pixels of the `width` x `height` image."""
    found = (tuple(map(float, each)) for each in _SQUARE_TEXT.findall(text))
    return [from_square((x1, y1, x2, y2), width, height) for x1, y1, x2, y2 in found]


def clip(box: Box, width: int, height: int) -> Box | None:
    """The part of `box` inside the image, or None when nothing of positive area is left."""
    x1, y1, x2, y2 = box
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def box_defect(box: Box, width: int, height: int) -> tuple[str, str] | None:
    """Why a pixel box cannot be used, as (code, detail); None if some of it lies in the image."""
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "box_reversed", f"box {list(box)} has a corner before its origin"
    if x1 == x2 or y1 == y2:
        return "box_empty", f"box {list(box)} has no area"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return "box_outside", f"box {list(box)} lies outside the {width}x{height} image"
    return None
