"""Clusters of embeddings: spherical k-means in exact arithmetic, so that every machine finds the same ones.

A unit vector is held as whole numbers, `_SCALE` times its components, rounded. Any partial sum of a dot product of two
of them is at most the product of their norms (Cauchy-Schwarz), which is below 2^24: so float32 holds every sum exactly,
in whatever order a BLAS adds.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.keyed import Ids, Indices, keyed_order
from vlmix.mixture.selection.keys import first_repeated

_SCALE = 3500.0
_WIDEST = 65_536  # components; rounding adds at most sqrt(65,536) / 2 to a norm, and (3500 + 128)^2 < 2^24
_MOST_CLUSTERS = 1024
_SAMPLES_PER_CLUSTER = 128  # that k-means sees; more of them move its centres little
_ITERATIONS = 12
_BLOCK = 4096

Vectors = NDArray[np.int16]
"""[N, D]: `_SCALE` times unit vectors."""


@dataclass(frozen=True)
class Embeddings:
    """An embedding file: its sha256 and the samples' ids [N]. The vectors stay in the file."""

    path: Path
    sha256: str
    ids: pa.ChunkedArray

    def blocks(self) -> Iterator[Vectors]:
        """[n, D] the directions of all samples, few at a time."""
        width = first = 0
        for batch in pq.ParquetFile(self.path, pre_buffer=False).iter_batches(_BLOCK, columns=["id", "embedding"]):
            rows = _matrix(self.path, batch, first, width)
            yield _directions(self.path, rows, first)
            width, first = rows.shape[1], first + len(rows)


def read_embeddings(path: Path) -> Embeddings:
    """Read a parquet file with the columns `id` (string) and `embedding` (list of floats, all equally long).

    Raises VlmixError for a file that is missing, damaged or in a different format, for a duplicate id, and for an
    embedding that is not finite or has no direction.
    """
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # else the whole file is held in memory
        digest = sha256(path)
        _check_schema(path, file)
        ids = file.read(["id"])["id"].cast(pa.string())
        found = Embeddings(path, digest, ids)
        for _ in found.blocks():  # looks at each
            pass
        ids.validate(full=True)
    except FileNotFoundError:
        raise VlmixError(f"{path}: there is no such file") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise VlmixError(f"{path}: {str(error).splitlines()[0]}; the file is damaged or is no Parquet") from None
    if not len(ids):
        raise VlmixError(f"{path}: there is no embedding in it")
    if (twice := first_repeated(ids)) is not None:
        raise VlmixError(f"{path}: {ids[twice].as_py()!r} is a duplicate; keep one embedding for each sample")
    return found


def _check_schema(path: Path, file: pq.ParquetFile) -> None:
    schema = file.schema_arrow
    for name in ("id", "embedding"):
        if name not in schema.names:
            raise VlmixError(f"{path}: no column {name!r}; an embedding file has id (string) and embedding (floats)")
    kind = schema.field("embedding").type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise VlmixError(f"{path}: column embedding is {kind}; it should be a list of float32")
    if not (pa.types.is_string(schema.field("id").type) or pa.types.is_large_string(schema.field("id").type)):
        raise VlmixError(f"{path}: column id is {schema.field('id').type}; it should be a string")


def _matrix(path: Path, batch: pa.RecordBatch, first: int, width: int) -> NDArray[np.float64]:
    """[n, D] the embeddings of a batch that begins with row `first` of the file; `width` 0 if no row was read yet."""
    column, ids = batch.column("embedding"), batch.column("id")
    if column.null_count or ids.null_count:
        raise VlmixError(f"{path}: a row from {first + 1} on has no id or no embedding; leave it out")
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    lengths = pc.list_value_length(column).to_numpy()
    width = width or int(lengths[0])
    odd = np.flatnonzero(lengths != width)
    if len(odd):
        raise VlmixError(f"{path}: row {first + odd[0] + 1} has {lengths[odd[0]]} components, others have {width}")
    if not 0 < width <= _WIDEST:
        raise VlmixError(f"{path}: embeddings of {width} components; 1 to {_WIDEST:,} can be clustered")
    rows: NDArray[np.float64] = flat.reshape(-1, width)
    return rows


def _directions(path: Path, rows: NDArray[np.float64], first: int) -> Vectors:
    odd = np.flatnonzero(~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1))
    if len(odd):
        raise VlmixError(f"{path}: the embedding of row {first + odd[0] + 1} is zero or not finite; leave it out")
    return _whole(rows / np.abs(rows).max(axis=1, keepdims=True))  # else squares may overflow, or vanish


def _whole(rows: NDArray[np.float64]) -> Vectors:
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
            centres[cluster] = _whole(total)[0]
    return centres
