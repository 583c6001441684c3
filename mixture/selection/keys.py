"""What names samples, as columns: keys by their digests, and which of some keys each sample has."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlmix.mixture.hashing import digests

Numbers = NDArray[np.int32]
Keys = NDArray[np.bytes_]
"""[N] S16: see `hashing.digests`."""

_SLICE = 1_000_000


def keys_of(texts: pl.Series) -> Keys:
    """The keys of a column of texts; a null counts as an empty one."""
    keys = np.empty(len(texts), dtype="S16")
    for start in range(0, len(texts), _SLICE):
        keys[start : start + _SLICE] = digests(texts.slice(start, _SLICE).fill_null("").to_arrow())
    return keys


def coded(keys: Keys, rows: Numbers) -> tuple[Keys, Numbers]:
    """[K] the different keys, sorted, and [n] which of them each of the `rows` has."""
    order = np.argsort(keys, kind="stable").astype(np.int32)
    keys = keys[order]
    new = np.full(len(keys), True)
    new[1:] = keys[1:] != keys[:-1]
    code = np.empty(len(keys), dtype=np.int32)
    code[order] = np.cumsum(new, dtype=np.int32) - 1
    return (keys if new.all() else keys[new]), code[rows]


def places(keys: Keys, among: Keys) -> Numbers:
    """[N] the place of each key in `among` [K], which is sorted; -1 for one that is not there."""
    found = np.full(len(keys), -1, dtype=np.int32)
    if len(among):
        for start in range(0, len(keys), _SLICE):
            part = keys[start : start + _SLICE]
            at = np.minimum(np.searchsorted(among, part), len(among) - 1)
            found[start : start + _SLICE] = np.where(among[at] == part, at, -1)
    return found
