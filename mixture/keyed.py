"""Keyed sampling. Hash order is the order of hashes of (seed, id), and a subset is a prefix of it; so subsets nest and
depend neither on file order, worker count and machine nor on which other sources there are."""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain, repeat
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import mix64

if TYPE_CHECKING:
    import pyarrow as pa

HashOrder = NDArray[np.uint64]
Indices = NDArray[np.int64]
Ids: TypeAlias = "Sequence[str] | pa.StringArray | pa.ChunkedArray"
ORDER = "order"
"""The purpose of the hash order in which a shuffled mixture holds its samples."""
_SLICE = 65_536  # ids of a column that are Python strings at a time


def hash_order(ids: Ids, seed: int, purpose: str = "") -> HashOrder:
    """[N] uint64: the hash that orders each id. Another `purpose` gives an independent order from the same seed."""
    from xxhash import xxh3_64_intdigest  # here: a reader's machine need not have it

    hashes = map(xxh3_64_intdigest, map(str.encode, _strings(ids)), repeat(hash_key(seed, purpose)))
    return np.fromiter(hashes, dtype=np.uint64, count=len(ids))


def _strings(ids: Ids) -> Iterator[str]:
    """The ids, of a column few at a time."""
    if isinstance(ids, Sequence):
        return iter(ids)
    return chain.from_iterable(ids.slice(start, _SLICE).to_pylist() for start in range(0, len(ids), _SLICE))


def hash_key(seed: int, purpose: str = "") -> int:
    """The seed of xxh3-64 that makes an id its hash in an order."""
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(f"{seed}/{purpose}".encode())


def integer_hashes(numbers: NDArray[np.integer], seed: int, purpose: str = "") -> HashOrder:
    """[N] uint64: like `hash_order` for integer ids by the million (`mix64` of number + key)."""
    return mix64(numbers.astype(np.uint64) + np.uint64(hash_key(seed, purpose)))


def keyed_order(ids: Ids, seed: int, purpose: str = "") -> Indices:
    """[N] positions of `ids` in hash order; equal hashes are ordered by id."""
    return ranked(ids, seed, purpose).order()


def ranked(ids: Ids, seed: int, purpose: str = "") -> "Ranks":
    """The hash order of `ids` for a seed."""
    return Ranks(ids, hash_order(ids, seed, purpose))


class Ranks:
    """The hash order of `ids` by their hashes [N] (`hash_order`)."""

    def __init__(self, ids: Ids, hashes: HashOrder) -> None:
        self.ids, self.hashes = ids, hashes

    def order(self, members: Indices | None = None) -> Indices:
        """[n] the positions `members` (None: all) in hash order; equal hashes are ordered by id."""
        hashes = self.hashes if members is None else self.hashes[members]
        order = np.argsort(hashes, kind="stable").astype(np.int64, copy=False)
        ordered = hashes[order]
        order = order if members is None else members[order]
        ties = np.flatnonzero(ordered[1:] == ordered[:-1])
        for start, stop in _runs(ties):
            tied = order[start:stop].tolist()
            order[start:stop] = sorted(tied, key=lambda position: str(self.ids[position]))
        return order


def _runs(ties: Indices) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of equal values, whose members but the last are at `ties`."""
    breaks = np.flatnonzero(np.diff(ties) > 1)
    for first, last in zip(np.append(0, breaks + 1), np.append(breaks, len(ties) - 1)):
        if len(ties):
            yield int(ties[first]), int(ties[last]) + 2


def distinct(values: NDArray[np.integer]) -> bool:
    """Whether no value stands twice. Sorting integers is several times as fast as the hash table of `np.unique`."""
    ordered = np.sort(values)
    return bool((ordered[1:] != ordered[:-1]).all())


def exact_share(ratio: float, count: int) -> int:
    """`ratio` of `count`, halves rounded up, free of binary rounding (0.1 of 5 is 1, not 0)."""
    return int(Fraction(str(ratio)) * count + Fraction(1, 2))


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers proportional to `weights` that sum to `total`.

    The method is Sainte-Lague's: seats go one by one to the largest weight / (2 * seats + 1), ties to the name that
    comes first. Unlike largest remainders it never takes a seat away when `total` grows, so subsets nest.
    """
    counts = seats(total, np.array(list(weights.values()), dtype=np.float64))
    return dict(zip(weights, counts.tolist()))


def seats(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """[P] int64: `apportion` for weights [P], each at least 0; none of `total` where all are 0.

    With n weights above 0, a count differs from share * total by at most 1/2 + share * (n - 2) / 2: by half with two.
    """
    counts = np.zeros(len(weights), dtype=np.int64)
    present = weights > 0
    if not present.any():
        return counts
    weight = weights[present]
    quota = total * weight / weight.sum()
    # A seat count differs from its quota by less than the number of parties, so start below it and hand out the rest.
    found = np.maximum(np.floor(quota).astype(np.int64) - len(weight), 0)
    for _ in range(total - int(found.sum())):
        found[np.argmax(weight / (2 * found + 1))] += 1
    counts[present] = found
    return counts


def choose(
    strata: Mapping[str, Indices], ranks: Ranks, total: int, weights: Mapping[str, float] | None = None
) -> Indices:
    """Positions (ascending) of `total` samples, apportioned over the strata, each a prefix of its hash order.

    `strata` maps a name to the positions in `ranks` that belong to it; `weights` default to the sizes of the strata.
    Raises VlmixError when a stratum holds fewer samples than its share.
    """
    shares = apportion(total, weights or {name: len(members) for name, members in strata.items()})
    for name, members in strata.items():
        if shares[name] > len(members):
            raise VlmixError(
                f"total {total}: the weight of {name!r} asks for {shares[name]} samples, it has {len(members)}; "
                "lower its weight or the total, or give the source a `repeat`"
            )
    return prefixes(strata, ranks, shares)


def prefixes(strata: Mapping[str, Indices], ranks: Ranks, shares: Mapping[str, int]) -> Indices:
    """Positions (ascending) of the first `shares[name]` samples of each stratum's hash order; all of a smaller one."""
    chosen = [ranks.order(members)[: shares.get(name, 0)] for name, members in strata.items()]
    return np.sort(np.concatenate([*chosen, np.empty(0, dtype=np.int64)]))


def repeats(ids: Ids, repeat: float, seed: int) -> NDArray[np.int32]:
    """[N] int32: how often each sample is seen in an epoch, so that the sum is exactly `repeat` times N.

    The whole part goes to every sample, the rest to the prefix of the hash order.
    """
    whole = int(repeat)
    counts = np.full(len(ids), whole, dtype=np.int32)
    extra = exact_share(repeat, len(ids)) - whole * len(ids)
    counts[keyed_order(ids, seed, "repeat")[:extra]] += 1
    return counts
