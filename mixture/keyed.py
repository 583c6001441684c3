"""Keyed sampling. Hash order is the order of hashes of (seed, id), and a subset is a prefix of it; so subsets nest and
depend neither on file order, worker count and machine nor on which other sources there are."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import mix64

HashOrder = NDArray[np.uint64]
Indices = NDArray[np.int64]


def hash_order(ids: Sequence[str], seed: int, purpose: str = "") -> HashOrder:
    """[N] uint64: the hash that orders each id. Another `purpose` gives an independent order from the same seed."""
    from xxhash import xxh3_64_intdigest  # here: a reader's machine need not have it

    hashes = map(xxh3_64_intdigest, map(str.encode, ids), repeat(_key(seed, purpose)))
    return np.fromiter(hashes, dtype=np.uint64, count=len(ids))


def _key(seed: int, purpose: str) -> int:
    from xxhash import xxh3_64_intdigest

    return xxh3_64_intdigest(f"{seed}/{purpose}".encode())


def integer_hashes(numbers: NDArray[np.integer], seed: int, purpose: str = "") -> HashOrder:
    """[N] uint64: like `hash_order` for integer ids by the million (`mix64` of number + key)."""
    return mix64(numbers.astype(np.uint64) + np.uint64(_key(seed, purpose)))


def keyed_order(ids: Sequence[str], seed: int, purpose: str = "") -> Indices:
    """[N] positions of `ids` in hash order; equal hashes are ordered by id."""
    values = hash_order(ids, seed, purpose)
    order = np.argsort(values, kind="stable")
    if len(order) and (np.diff(values[order]) == 0).any():
        return np.asarray(sorted(range(len(ids)), key=lambda i: (int(values[i]), ids[i])), dtype=np.int64)
    return order.astype(np.int64)


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
    strata: Mapping[str, Indices], ids: Sequence[str], seed: int, total: int, weights: Mapping[str, float] | None = None
) -> Indices:
    """Positions (ascending) of `total` samples, apportioned over the strata, each a prefix of its hash order.

    `strata` maps a name to the positions in `ids` that belong to it; `weights` default to the sizes of the strata.
    Raises VlmixError when a stratum holds fewer samples than its share.
    """
    shares = apportion(total, weights or {name: len(members) for name, members in strata.items()})
    for name, members in strata.items():
        if shares[name] > len(members):
            raise VlmixError(
                f"total {total}: the weight of {name!r} asks for {shares[name]} samples, it has {len(members)}; "
                "lower its weight or the total, or give the source a `repeat`"
            )
    return prefixes(strata, ids, seed, shares)


def prefixes(strata: Mapping[str, Indices], ids: Sequence[str], seed: int, shares: Mapping[str, int]) -> Indices:
    """Positions (ascending) of the first `shares[name]` samples of each stratum's hash order; all of a smaller one."""
    chosen = []
    for name, members in strata.items():
        order = keyed_order([ids[i] for i in members.tolist()], seed)
        chosen.append(members[order[: shares.get(name, 0)]])
    return np.sort(np.concatenate([*chosen, np.empty(0, dtype=np.int64)]))


def repeats(ids: Sequence[str], repeat: float, seed: int) -> NDArray[np.int32]:
    """[N] int32: how often each sample is seen in an epoch, so that the sum is exactly `repeat` times N.

    The whole part goes to every sample, the rest to the prefix of the hash order.
    """
    whole = int(repeat)
    counts = np.full(len(ids), whole, dtype=np.int32)
    extra = exact_share(repeat, len(ids)) - whole * len(ids)
    counts[keyed_order(ids, seed, "repeat")[:extra]] += 1
    return counts
