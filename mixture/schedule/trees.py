"""Trees: samples of a batch that begin with the same tokens, which are computed once, and their bins."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.schedule.packing import Lengths, Positions, dealt, level, pack
from vlmix.mixture.schedule.pictures import runs

_LEVEL = 0.005  # of the mean: bins that differ by less are level


class Sharing(NamedTuple):
    """What samples share, [N] each: their `groups` (`pictures.picture_groups`), the tokens up to the last of a picture,
    and a hash of those tokens."""

    groups: NDArray[np.uint64]
    trunks: NDArray[np.integer]
    prefixes: NDArray[np.uint64]


class Tree(NamedTuple):
    """Samples with a common beginning: their places in a batch, the tokens that they share, and [n] the tokens of each
    after them. A sample alone shares none."""

    members: Positions
    trunk: int
    rest: Lengths

    @property
    def tokens(self) -> int:
        return self.trunk + int(self.rest.sum())


class Bin(NamedTuple):
    """The samples of a bin by their positions, and how many of them, one after the other, are a tree each."""

    positions: Positions
    trees: list[int]


def packed_bins(samples: Positions, lengths: Lengths, sharing: Sharing, world: int, capacity: int) -> list[list[Bin]]:
    """The bins of a batch over `world` ranks; `lengths` [n]: tokens of its `samples`. See `packed_trees`."""
    ranks = packed_trees(trees_of(samples, lengths, sharing, capacity), world, capacity)
    none = np.empty(0, dtype=np.int64)
    return [
        [
            Bin(
                samples[np.concatenate([none, *(tree.members for tree in trees)])],
                [len(tree.members) for tree in trees],
            )
            for trees in bins
        ]
        for bins in ranks
    ]


def trees_of(samples: Positions, lengths: Lengths, sharing: Sharing, capacity: int) -> list[Tree]:
    """The trees of a batch, in its order. `lengths` [n]: tokens of its `samples`. Only samples of one group that come
    together and have the same tokens up to the last picture share them. A tree of more than `capacity` tokens is cut
    into several."""
    found = []
    bounds = runs(sharing.groups, samples).tolist()
    for start, stop in pairwise(bounds):
        alike: dict[tuple[int, int], list[int]] = {}
        for place in range(start, stop):
            sample = samples[place]
            trunk = int(sharing.trunks[sample])
            key = (trunk, int(sharing.prefixes[sample])) if trunk else (0, -1 - place)
            alike.setdefault(key, []).append(place)
        for (trunk, _), members in alike.items():
            for some in _cut(members, lengths, trunk, capacity):
                shared = trunk if len(some) > 1 else 0
                found.append(Tree(np.array(some, dtype=np.int64), shared, lengths[some] - shared))
    return found


def _cut(members: list[int], lengths: Lengths, trunk: int, capacity: int) -> list[list[int]]:
    pieces: list[list[int]] = []
    room = -1
    for place in members:
        more = int(lengths[place]) - trunk
        if more > room:
            pieces.append([])
            room = capacity - trunk
        pieces[-1].append(place)
        room -= more
    return pieces


def packed_trees(trees: Sequence[Tree], world: int, capacity: int) -> list[list[list[Tree]]]:
    """The bins of a batch's trees over `world` ranks, as `packing.packed_shares` makes them of samples: the same number
    for every rank. Where it makes the fullest bin less full, a tree is cut in two, which both have its trunk."""
    need = np.array([min(tree.tokens, capacity) for tree in trees], dtype=np.int64)
    tight = pack(need, capacity)
    count = -(-len(tight) // world) * world
    placed = level(need, count, capacity) or tight + [np.empty(0, dtype=np.int64)] * (count - len(tight))
    bins = [[trees[number] for number in members.tolist()] for members in placed]
    _even(bins, capacity)
    fill = np.array([sum(tree.tokens for tree in each) for each in bins], dtype=np.int64)
    return [[bins[number] for number in mine] for mine in dealt(fill, world)]


def _even(bins: list[list[Tree]], capacity: int) -> None:
    """Moves trees, or branches of them, from the fullest bin to the emptiest, as long as that one becomes less full."""
    fill = [sum(tree.tokens for tree in each) for each in bins]
    for _ in range(4 * len(bins)):
        high, low = int(np.argmax(fill)), int(np.argmin(fill))
        gap = fill[high] - fill[low]
        if gap <= _LEVEL * sum(fill) / len(fill):
            return
        change = _best(bins[high], bins[low], gap, capacity - fill[low])
        if change is None:
            return
        bins[high], bins[low] = change
        for each in (high, low):
            fill[each] = sum(tree.tokens for tree in bins[each])


def _best(high: list[Tree], low: list[Tree], gap: int, room: int) -> tuple[list[Tree], list[Tree]] | None:
    """The two bins after the change that leaves the fuller of them least full; None where none helps. `gap`: how much
    fuller `high` is, `room`: what `low` has left."""
    best: tuple[int, int] = gap, 0
    """How much fuller the fuller one is than `low` was, and the tokens that are computed again."""
    found: tuple[list[Tree], list[Tree]] | None = None
    for at, tree in enumerate(high):
        others = high[:at] + high[at + 1 :]
        for back in (None, *range(len(low))):  # moved, or exchanged with one
            more = tree.tokens - (0 if back is None else low[back].tokens)
            score = max(gap - more, more), 0
            if 0 < more <= room and score < best:
                left = [] if back is None else [low[back]]
                best, found = score, ([*others, *left], [*(t for i, t in enumerate(low) if i != back), tree])
        if tree.trunk and (parts := _halved(tree, gap, room)):
            stays, goes = parts
            score = max(gap - tree.tokens + stays.tokens, goes.tokens), tree.trunk
            if score < best:
                best, found = score, ([*others, stays], [*low, goes])
    return found


def _halved(tree: Tree, gap: int, room: int) -> tuple[Tree, Tree] | None:
    """A tree cut so that the second part, in a bin that is `gap` less full, makes both about equal."""
    wanted, taken, total = (gap - tree.trunk) / 2, list[int](), 0
    for branch in np.argsort(-tree.rest, kind="stable").tolist():
        more = int(tree.rest[branch])
        if total + more <= wanted and tree.trunk + total + more <= room and len(taken) + 1 < len(tree.members):
            taken.append(branch)
            total += more
    if not taken:
        return None
    goes = np.zeros(len(tree.members), dtype=np.bool_)
    goes[taken] = True
    return _part(tree, ~goes), _part(tree, goes)


def _part(tree: Tree, which: NDArray[np.bool_]) -> Tree:
    """Some samples of a tree; one alone shares nothing."""
    if which.sum() > 1:
        return Tree(tree.members[which], tree.trunk, tree.rest[which])
    return Tree(tree.members[which], 0, tree.rest[which] + tree.trunk)
