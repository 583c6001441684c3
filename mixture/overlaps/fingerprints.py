"""What a picture looks like, in bits that another encoding or size hardly changes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmix.mixture.extras import missing
from vlmix.mixture.io.images import decoded

BITS = 256
NEAR = 64
"""Bits in which two fingerprints of one picture may differ. Those of unrelated pictures differ in 128 on average, and
of 253 pairs of photographs (docs/overlaps.md) none in less than 104."""
CROPS = (0.1, 0.2)
"""Shares of width and height that are cut off, half on each side, for the other fingerprints of a question's picture."""
_SIDE = 256
"""Pixels of the longer side to which a picture is reduced first: JPEGs are then decoded at a part of their size."""
_FLAT = 2.0
"""Grey levels of standard deviation below which a picture shows nothing that could be recognised."""

Fingerprints = NDArray[np.uint8]
"""[n, 32]"""


def fingerprints(data: bytes, *, crops: bool = False, flipped: bool = False) -> Fingerprints:
    """[n, 32] of a picture's bytes: of the whole; with `crops` also of its middle, once for each of `CROPS`; with
    `flipped` of all of these in a mirror. [0, 32] if the picture is flat. Raises VlmixError as `images.decoded` does.

    The fingerprint is the perceptual hash of the imagehash library: signs of the 16x16 lowest frequencies about their
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
    for share in (0.0, *CROPS) if crops else (0.0,):
        x, y = width * share / 2, height * share / 2
        view = picture.crop((round(x), round(y), round(width - x), round(height - y))) if share else picture
        yield view
        if flipped:
            yield view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def near(queries: Fingerprints, known: Fingerprints, most: int = NEAR) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each of some queries that are near any: (its number, [p, 2] the numbers of the known that differ from it in at
    most `most` bits, and in how many). All pairs are compared, so that none is missed."""
    try:
        import faiss
    except ImportError:
        raise missing("faiss", "looking for pictures that are alike") from None
    if not len(known):
        return
    index = faiss.IndexBinaryFlat(BITS)
    index.add(np.ascontiguousarray(known))
    for start in range(0, len(queries), _AT_ONCE):
        ends, distances, found = index.range_search(np.ascontiguousarray(queries[start : start + _AT_ONCE]), most + 1)
        for number in np.flatnonzero(np.diff(ends)).tolist():
            part = slice(int(ends[number]), int(ends[number + 1]))
            yield start + number, np.stack([found[part], distances[part]], axis=1).astype(np.int64)


_AT_ONCE = 8_192  # queries
