"""Which samples show the same pictures, and are kept together in an order (`share_images`)."""

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import mix64
from vlmix.mixture.schedule.shuffle import shuffle

_STEP = np.uint64(0x9E3779B97F4A7C15)


_MOST = 2**31 - 1


def share_of(number: int) -> int:
    """The number that `share_images` is. Raises VlmixError for what it cannot be."""
    if not isinstance(number, int | np.integer) or not 1 <= number <= _MOST:
        raise VlmixError(f"share_images {number!r}: a whole number from 1 to {_MOST:,}")
    return int(number)


def picture_groups(
    counts: NDArray[np.integer], digests: NDArray[np.uint64], identity: NDArray[np.integer], share_images: int
) -> NDArray[np.uint64]:
    """[N] the group of each sample: those of one group have the same pictures in the same order, and are at most
    `share_images`.

    `counts` [N]: pictures of each sample; `digests` [M, 2]: of all of them, one sample's after the other's; `identity`
    [N]: what orders the samples of a root, by which groups are cut, so it has to be given all of them. A sample
    without pictures is a group by itself, called by its identity. Raises VlmixError if two groups, or two lists
    of pictures, have one hash of 64 bits.
    """
    lists = _lists(counts, digests)
    shown = np.flatnonzero(counts > 0)
    order = shown[shuffle(identity[shown], np.ones(len(shown), np.int32), np.uint64(0), lists[shown, 0])]
    ordered = lists[order]
    fresh = np.ones(len(order), dtype=np.bool_)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    if (fresh[1:] & (ordered[1:, 0] == ordered[:-1, 0])).any():
        raise _alike("lists", "share_images: 1")
    starts = np.flatnonzero(fresh)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    number = mix64(ordered[:, 0] + (rank // share_images).astype(np.uint64) * _STEP)
    first = number[rank % share_images == 0]
    if len(np.unique(first)) < len(first):
        raise _alike("groups", "another share_images, or 1")
    groups = identity.astype(np.uint64)
    groups[order] = number
    return groups


def _alike(what: str, instead: str) -> VlmixError:
    return VlmixError(f"two {what} of pictures have the same hash of 64 bits; take {instead}")


def _lists(counts: NDArray[np.integer], digests: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[N, 2] a hash of each sample's list of pictures; zeros without any."""
    found = np.zeros((len(counts), 2), dtype=np.uint64)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    for nth in range(int(counts.max(initial=0))):
        some = np.flatnonzero(counts > nth)
        found[some] = mix64(found[some] * _STEP + digests[starts[some] + nth] + np.uint64(nth))
    return found


def runs(groups: NDArray[np.uint64], positions: NDArray[np.integer]) -> NDArray[np.int64]:
    """[R + 1] where the runs of one group begin among the samples at `positions` of an order, and their end. A sample
    that comes again begins another run."""
    mine = groups[positions]
    new = np.ones(len(positions) + 1, dtype=np.bool_)
    new[1:-1] = mine[1:] != mine[:-1]
    if len(np.unique(positions)) < len(positions):
        seen: set[int] = set()
        for place, position in enumerate(positions.tolist()):
            if new[place] or position in seen:
                new[place], seen = True, set()
            seen.add(position)
    return np.flatnonzero(new)
