"""Clusters of embeddings: spherical k-means in exact arithmetic, so that every machine finds the same ones.

A unit vector is held as whole numbers, `_SCALE` times its components, rounded. Any partial sum of a dot product of two
of them is at most the product of their norms (Cauchy-Schwarz), which is below 2^24: so float32 holds every sum exactly,
in whatever order a BLAS adds. Of at most 65,536 components rounding adds at most sqrt(65,536) / 2 to a norm, and
(3500 + 128)^2 < 2^24.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.keyed import Ids, Indices, keyed_order

_SCALE = 3500.0
_MOST_CLUSTERS = 1024
_SAMPLES_PER_CLUSTER = 128  # that k-means sees; more of them move its centres little
_ITERATIONS = 12
_BLOCK = 4096

Vectors = NDArray[np.int16]
"""[N, D]: `_SCALE` times unit vectors."""


def directions(rows: NDArray[np.float64]) -> Vectors:
    """[n, D] the directions of rows that are not zero, and whose squares neither overflow nor vanish."""
    scaled = rows * (_SCALE / np.sqrt(_square_sums(rows)))[:, None]
    return np.rint(scaled).astype(np.int16)


def _square_sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] squared norms, added in an order of our own: NumPy's depends on the machine's vector width."""
    squares = rows * rows
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        rest = squares[:, 2 * half :]
        squares = np.concatenate([squares[:, :half] + squares[:, half : 2 * half], rest], axis=1)
    return squares[:, 0]


def cluster_count(samples: int) -> int:
    """How many clusters `samples` embeddings get by default: their square root, at most 1,024."""
    return max(1, min(round(math.sqrt(samples)), _MOST_CLUSTERS))


def spherical_kmeans(ids: Ids, blocks: Callable[[], Iterable[Vectors]], clusters: int, seed: int) -> NDArray[np.int64]:
    """[N] cluster of each vector, from 0: the nearest centre by angle, the first of equally near ones. `blocks` gives
    the vectors [N, D], few at a time, as often as it is called.

    Centres start at the first `clusters` different vectors in hash order and move for at most 12 rounds over the
    first 128 per cluster in that order. A cluster may end empty. The result depends on ids, vectors and seed alone: on
    neither the order of the rows nor the machine.
    """
    seen = _rows(blocks(), keyed_order(ids, seed, "clusters")[: clusters * _SAMPLES_PER_CLUSTER])
    starts: dict[bytes, int] = {}
    for row in range(len(seen)):
        starts.setdefault(seen[row].tobytes(), row)
        if len(starts) == clusters:
            break
    centres = seen[list(starts.values())]
    labels = _nearest(seen, centres)
    for _ in range(_ITERATIONS):
        centres = _centres(seen, labels, centres)
        before, labels = labels, _nearest(seen, centres)
        if np.array_equal(before, labels):
            break
    return np.concatenate([_nearest(vectors, centres) for vectors in blocks()])


def _rows(blocks: Iterable[Vectors], wanted: Indices) -> Vectors:
    """[n, D] the vectors at the positions `wanted`, in that order."""
    order, parts, first, taken = np.argsort(wanted), [], 0, 0
    ascending = wanted[order]
    for vectors in blocks:
        first += len(vectors)
        end = int(np.searchsorted(ascending, first))
        parts.append(vectors[ascending[taken:end] - first + len(vectors)])
        taken = end
    rows = np.concatenate(parts)
    found = np.empty_like(rows)
    found[order] = rows
    return found


def _nearest(vectors: Vectors, centres: Vectors) -> NDArray[np.int64]:
    towards = centres.astype(np.float32).T.copy()
    labels = np.empty(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float32)
        labels[start : start + _BLOCK] = np.argmax(block @ towards, axis=1)
    return labels


def _centres(vectors: Vectors, labels: NDArray[np.int64], before: Vectors) -> Vectors:
    """The mean directions of the clusters; an empty one, or one whose vectors cancel out, stays where it was."""
    centres = before.copy()
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=len(before)))
    for cluster, members in enumerate(np.split(order, ends[:-1])):
        # Sums of whole numbers below 2^53: exact in any order.
        total = vectors[members].sum(axis=0, dtype=np.int64).astype(np.float64)[None]
        if total.any():
            centres[cluster] = directions(total)[0]
    return centres
