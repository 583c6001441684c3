"""Embedding files: Parquet with the columns `id` (string) and `embedding` (a list of floats, all of one length)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import digests
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.digests import sha256

WIDEST = 65_536  # components that can be clustered exactly: see `kmeans`
_BLOCK = 4096
_KEY = b"vlmix_embeddings"


class Made(Struct, frozen=True, kw_only=True):
    """How `vlmix embed` made a file, which stands in its metadata: of a mixture, or of the questions of a benchmark's
    split. Embeddings are comparable if `weights` and `how` are the same."""

    mixture: str = ""
    benchmark: str = ""
    split: str = ""
    tower: str
    weights: str
    """SHA-256 of the tower's weights, as float32."""
    how: str
    """What is taken of the tower, and how pictures are prepared for it."""

    @property
    def of(self) -> str:
        """What it is of, for messages."""
        return f"the mixture {self.mixture}" if self.mixture else f"{self.benchmark} {self.split}".strip()


@dataclass(frozen=True)
class Embeddings:
    """An embedding file: its sha256, the samples' or questions' ids [N], and how it was made, if vlmix made it. The
    vectors of `width` components stay in the file."""

    path: Path
    sha256: str
    ids: pa.ChunkedArray
    width: int
    made: Made | None

    def rows(self) -> Iterator[NDArray[np.float64]]:
        """[n, width] the embeddings, few at a time, each divided by its largest component."""
        return _rows(self.path)


def read_embeddings(path: Path) -> Embeddings:
    """Read an embedding file.

    Raises VlmixError for a file that is missing, damaged or in a different format, for a duplicate id, and for an
    embedding that is not finite or has no direction.
    """
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # else the whole file is held in memory
        digest = sha256(path)
        _check_schema(path, file)
        ids = file.read(["id"])["id"].cast(pa.string())
        width = 0
        for rows in _rows(path):  # looks at each
            width = rows.shape[1]
        ids.validate(full=True)
    except FileNotFoundError:
        raise VlmixError(f"{path}: there is no such file") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise VlmixError(f"{path}: {str(error).splitlines()[0]}; the file is damaged or is no Parquet") from None
    if not len(ids):
        raise VlmixError(f"{path}: there is no embedding in it")
    if (twice := _first_repeated(ids)) is not None:
        raise VlmixError(f"{path}: {ids[twice].as_py()!r} is a duplicate; keep one embedding for each sample")
    return Embeddings(path, digest, ids, width, _made(path, file))


def write_embeddings(path: Path, ids: Sequence[str], rows: NDArray[np.floating], made: Made) -> None:
    """Write an embedding file of `ids` [N] and `rows` [N, D], whole or not at all."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), pa.float32()), rows.shape[1])
    table = pa.table({"id": pa.array(ids, pa.string()), "embedding": vectors})
    with atomic_write(path) as file:
        said = table.replace_schema_metadata({_KEY: msgspec.json.encode(made)})
        pq.write_table(said, file, compression="zstd", row_group_size=4 * _BLOCK)  # a reader holds a group of rows


def _made(path: Path, file: pq.ParquetFile) -> Made | None:
    said = (file.schema_arrow.metadata or {}).get(_KEY)
    try:
        return None if said is None else msgspec.json.decode(said, type=Made)
    except msgspec.MsgspecError as error:
        raise VlmixError(f"{path}: its metadata do not say how it was made: {error}; run `vlmix embed` again") from None


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


def _rows(path: Path) -> Iterator[NDArray[np.float64]]:
    width = first = 0
    for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(_BLOCK, columns=["id", "embedding"]):
        rows = _matrix(path, batch, first, width)
        odd = np.flatnonzero(~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1))
        if len(odd):
            raise VlmixError(f"{path}: the embedding of row {first + odd[0] + 1} is zero or not finite; leave it out")
        yield rows / np.abs(rows).max(axis=1, keepdims=True)  # else squares may overflow, or vanish
        width, first = rows.shape[1], first + len(rows)


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
    if not 0 < width <= WIDEST:
        raise VlmixError(f"{path}: embeddings of {width} components; 1 to {WIDEST:,} can be clustered")
    rows: NDArray[np.float64] = flat.reshape(-1, width)
    return rows


def _first_repeated(ids: pa.ChunkedArray) -> int | None:
    """The first place of a text that stood before; None if all differ."""
    keys = digests(ids)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    again = order[1:][keys[1:] == keys[:-1]]
    return int(again.min()) if len(again) else None
