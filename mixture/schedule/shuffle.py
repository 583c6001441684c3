"""Samples in the order of what a key draws for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.hashing import mix64

BLOCK = 2**20  # samples that are hashed or sorted at a time, so that no array of 64 bits a sample is made beside

_Keys = tuple[NDArray[Any], NDArray[Any], NDArray[np.uint64]]


def shuffle(
    identity: NDArray[np.integer],
    repeat: NDArray[np.int32],
    key: np.uint64,
    groups: NDArray[np.uint64] | None = None,
) -> NDArray[np.signedinteger]:
    """[sum of `repeat`] positions of N samples, each as often as `repeat` [N] says, ordered by `key`. `identity` [N] is
    unique, and all that the order of a sample depends on. Samples of one of the `groups` [N] come together, in the
    order of their identities, where the group's number puts them; when they come again, that is another place.

    The upper bits of the draws are sorted with their places in the lower bits, in place: that takes a quarter of the
    time of an argsort. Those few that agree in the upper bits are then sorted among themselves.
    """
    kind: type[np.signedinteger] = np.int32 if len(identity) < 2**31 else np.int64
    total = int(repeat.sum(dtype=np.int64))
    once = total == len(repeat)  # as no repeat is below 1
    drawn_by = identity if groups is None else groups
    positions: NDArray[np.signedinteger] | None = (
        None if once else np.repeat(np.arange(len(identity), dtype=kind), repeat)
    )
    first = None if once else np.cumsum(repeat, dtype=np.int64) - repeat

    def drawn(places: NDArray[np.signedinteger]) -> _Keys:
        """Of some places of the list of positions, the keys to sort them by, the first one last."""
        at = places if positions is None else positions[places]
        occurrence = np.zeros(len(places), dtype=np.int64) if first is None else places - first[at]
        hashed = mix64(mix64(drawn_by[at].astype(np.uint64) + key) + occurrence.astype(np.uint64) * key)
        return occurrence, identity[at], hashed

    low = np.uint64((1 << total.bit_length()) - 1)
    sorting = np.empty(total, dtype=np.uint64)
    for start in range(0, total, BLOCK):
        places = np.arange(start, min(start + BLOCK, total))
        sorting[start : start + BLOCK] = drawn(places)[-1] & ~low | places.astype(np.uint64)
    sorting.sort()
    alike = np.flatnonzero((sorting[1:] ^ sorting[:-1]) <= low)
    sorting &= low
    order: NDArray[np.signedinteger] = sorting.astype(kind)
    # Of one group all agree, and are mostly in order already.
    wrong = np.concatenate(
        [_descending(drawn(order[at]), drawn(order[at + 1])) for at in np.array_split(alike, len(alike) // BLOCK + 1)]
    )
    if wrong.any():
        run = np.cumsum(np.diff(alike, prepend=-1) > 1)
        alike = alike[np.isin(run, run[wrong])]
        alike = np.union1d(alike, alike + 1)
        places = order[alike]
        order[alike] = places[np.lexsort(drawn(places))]
    return order if positions is None else positions[order]


def _descending(left: _Keys, right: _Keys) -> NDArray[np.bool_]:
    """[n] where keys, the first one last, are greater on the left. No two are equal in all."""
    greater = left[0] > right[0]
    for a, b in zip(left[1:], right[1:]):
        greater = (a > b) | (a == b) & greater
    return greater
