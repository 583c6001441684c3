"""What a picture looks like, in bits that another encoding or size hardly changes."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from vlmix.mixture.extras import missing
from vlmix.mixture.io.images import decoded

BITS = 256
NEAR = 56
"""Bits in which two fingerprints of one picture may differ. Those of unrelated pictures differ in 128 on average; of
the 231 pairs of pictures in docs/overlaps.md, crops among them, none differs in less than 62."""
_CROPS = tuple(
    (share * x, share * y, 1 - share * (1 - x), 1 - share * (1 - y))
    for share in (0.05, 0.1, 0.15, 0.2)
    for x, y in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))
) + tuple(
    part
    for share in (0.1, 0.15, 0.2)
    for part in ((share, 0, 1, 1), (0, share, 1, 1), (0, 0, 1 - share, 1), (0, 0, 1, 1 - share))
)
"""Parts of a picture (left, top, right, bottom; of 1): what is left if 5, 10, 15 or 20 % of both sides are cut off, all
around or at a corner, or of one side at one edge."""
_SIDE = 128
"""Pixels of the longer side to which a picture is reduced first: JPEGs are then decoded at a part of their size."""
_BORDER = 8
"""Grey levels in which a border of one colour may differ, which JPEG does not keep exactly."""
_FLAT = 2.0
"""Grey levels of standard deviation below which a picture shows nothing that could be recognised."""

Fingerprints = NDArray[np.uint8]
"""[n, 32]"""


def fingerprints(data: bytes, *, crops: bool = False, flipped: bool = False) -> Fingerprints:
    """[n, 32] of a picture's bytes: of the whole without a border of one colour, and of the whole if it has one; with
    `crops` of parts of it, with `flipped` of all of these in a mirror. [0, 32] if the picture is flat. Raises
    VlmixError as `images.decoded` does.

    A fingerprint is the perceptual hash of the imagehash library: signs of the 16x16 lowest frequencies about their
    median.
    """
    try:
        import imagehash
    except ImportError:
        raise missing("imagehash", "looking for pictures that are alike") from None
    picture = decoded(data, _SIDE).convert("L")
    if np.asarray(picture).std() < _FLAT:
        return np.empty((0, BITS // 8), dtype=np.uint8)
    bits = [imagehash.phash(each, hash_size=16).hash.ravel() for each in _views(picture, crops, flipped)]
    return np.packbits(np.array(bits), axis=1)


def _views(picture: Image.Image, crops: bool, flipped: bool) -> Iterator[Image.Image]:
    width, height = picture.size
    inside = _without_border(picture)
    views = [inside] if inside.size == picture.size else [inside, picture]
    if crops:
        views += [picture.crop((x * width, y * height, right * width, low * height)) for x, y, right, low in _CROPS]
    for view in views:
        yield view
        if flipped:
            yield view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _without_border(picture: Image.Image) -> Image.Image:
    """The picture without the rows and columns at its edges that have the colour of its corner."""
    difference = ImageChops.difference(picture, Image.new("L", picture.size, picture.getpixel((0, 0))))
    box = difference.point(lambda level: 255 * (level > _BORDER)).getbbox()
    return picture if box is None else picture.crop(box)


def versions() -> dict[str, str]:
    """Name -> version of what decides what is near. Raises VlmixError if one is not installed."""
    found = {}
    for name, module in (("imagehash", "imagehash"), ("faiss-cpu", "faiss"), ("scipy", "scipy"), ("rensa", "rensa")):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise missing(module, "looking for what is alike") from None
    return found


def near(queries: Fingerprints, known: Fingerprints, most: int = NEAR) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each of some queries that are near any: (its number, [p, 2] the numbers of the known that differ from it in
    at most `most` bits, and in how many). All pairs are compared, so that none is missed."""
    try:
        import faiss
    except ImportError:
        raise missing("faiss", "looking for pictures that are alike") from None
    if not len(known):
        return
    index = faiss.IndexBinaryFlat(BITS)
    index.add(np.ascontiguousarray(known))
    step = max(1, min(_AT_ONCE, _MOST_PAIRS // len(known)))
    for start in range(0, len(queries), step):
        ends, distances, found = index.range_search(np.ascontiguousarray(queries[start : start + step]), most + 1)
        for number in np.flatnonzero(np.diff(ends)).tolist():
            part = slice(int(ends[number]), int(ends[number + 1]))
            yield start + number, np.stack([found[part], distances[part]], axis=1).astype(np.int64)


_AT_ONCE, _MOST_PAIRS = 8_192, 2**26
"""Queries, and pairs, at once: all of them may be near, which takes 1 GB."""
