"""Shares of a global batch over ranks, and bins of bounded length."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError

Positions = NDArray[np.int64]
Lengths = NDArray[np.signedinteger]


def shares(lengths: Lengths, world: int) -> list[NDArray[np.int64]]:
    """The samples of a batch over `world` ranks: indices into `lengths`, longest first.

    Counts differ by at most one, and the sums of the lengths are balanced greedily: the longest sample that is left
    goes to the rank with the least, ties to the lower rank. A rank's share may be empty where a short last batch has
    fewer samples than there are ranks.
    """
    floor, extra = divmod(len(lengths), world)
    mine: list[list[int]] = [[] for _ in range(world)]
    ranks = [(0, rank) for rank in range(world)]
    for index in np.argsort(-lengths, kind="stable").tolist():
        total, rank = heappop(ranks)
        while len(mine[rank]) >= floor and not extra:
            total, rank = heappop(ranks)  # this rank is full for good: no more extras are left
        extra -= len(mine[rank]) >= floor
        mine[rank].append(index)
        if len(mine[rank]) <= floor:
            heappush(ranks, (total + int(lengths[index]), rank))
    return [np.asarray(indices, dtype=np.int64) for indices in mine]


def pack(lengths: Lengths, capacity: int) -> list[NDArray[np.int64]]:
    """As few bins of indices into `lengths`, of sums up to `capacity`, as best fit in order of falling length makes.

    A sample longer than the capacity has a bin of its own; the trainer truncates it.
    """
    if capacity < 1:
        raise VlmixError(f"capacity {capacity}: at least 1")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, bin), ascending
    for index in np.argsort(-lengths, kind="stable").tolist():
        need = min(int(lengths[index]), capacity)
        at = bisect_left(room, (need, -1))
        if at == len(room):
            left, chosen = capacity, len(bins)
            bins.append([])
        else:
            left, chosen = room.pop(at)
        bins[chosen].append(index)
        insort(room, (left - need, chosen))
    return [np.asarray(members, dtype=np.int64) for members in bins]


def packed_shares(lengths: Lengths, world: int, capacity: int) -> list[list[NDArray[np.int64]]]:
    """The bins of a batch over `world` ranks, the same number for every rank, the fullest first; some may be empty.

    There are as few as best fit finds, rounded up to a multiple of `world`, and the batch is spread evenly over them:
    ranks that wait for each other have about the same number of tokens in all, and in their k-th bins.
    """
    tight = pack(lengths, capacity)
    count = -(-len(tight) // world) * world
    need = np.minimum(lengths, capacity)
    bins = level(need, count, capacity) or tight + [np.empty(0, dtype=np.int64)] * (count - len(tight))
    fill = np.array([need[members].sum() for members in bins], dtype=np.int64)
    return [[bins[number] for number in mine] for mine in dealt(fill, world)]


def dealt(fill: Lengths, world: int) -> list[list[int]]:
    """The numbers of bins of `fill` tokens over `world` ranks, as many for each, the fullest first, so that ranks have
    about the same in their k-th bins and in all."""
    taken: list[list[int]] = [[] for _ in range(world)]
    total = np.zeros(world, dtype=np.int64)
    for alike in np.argsort(-fill, kind="stable").reshape(-1, world):
        ranks = np.argsort(total, kind="stable")
        for rank, chosen in zip(ranks.tolist(), alike.tolist()):
            taken[rank].append(chosen)
        total[ranks] += fill[alike]
    return taken


def level(need: Lengths, count: int, capacity: int) -> list[NDArray[np.int64]] | None:
    """`count` bins of about equal sums, the longest sample first into the emptiest bin; None where one overflows."""
    bins: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, chosen) for chosen in range(count)]
    for index in np.argsort(-need, kind="stable").tolist():
        total, chosen = heappop(emptiest)
        total += int(need[index])
        if total > capacity:
            return None
        bins[chosen].append(index)
        heappush(emptiest, (total, chosen))
    return [np.asarray(members, dtype=np.int64) for members in bins]


def waste(tokens: Sequence[int], capacity: int) -> float:
    """Share of the room of bins with so many tokens that holds none, 0 to 1."""
    return 1 - sum(min(each, capacity) for each in tokens) / (len(tokens) * capacity) if tokens else 0.0
