"""Files that hold the images of many rows: the bytes of some of these."""

import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import stamp
from vlmix.mixture.io.rows.columns import arrow_batches, bytes_leaves, opened_parquet
from vlmix.mixture.io.rows.files import Kind
from vlmix.mixture.io.rows.images import block_images, image_bytes
from vlmix.mixture.io.rows.tar import tar_images
from vlmix.mixture.io.rows.text import Broken, Row, csv_rows, decoded, json_rows

_TOGETHER = 64  # rows of a piece where a container has no row groups


class Container(Struct, frozen=True):
    """A file whose rows hold images: in `columns`, or for a tar in the members with an image's extension. A row's place
    is its number; in JSONL the offset of its line, in a tar that of its first header."""

    path: str
    kind: Kind
    columns: tuple[str, ...]
    blocks: bool = False
    """Whether the images lie in the blocks of the messages that its column holds."""


def pieces(container: Container, places: Sequence[int]) -> list[list[int]]:
    """`places`, ascending, in the parts that are read together: by row group, or some rows at a time."""
    if container.kind in ("json", "csv"):  # which are read from their beginning
        return [list(places)]
    if container.kind != "parquet":
        return [list(places[i : i + _TOGETHER]) for i in range(0, len(places), _TOGETHER)]
    groups = np.searchsorted(_group_ends(_parquet(container)), places, side="right")
    edges = np.flatnonzero(np.diff(groups)) + 1
    return [part.tolist() for part in np.split(np.asarray(places, dtype=np.int64), edges)]


def read_images(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    """The bytes of the images of each row; `places` are one of the `pieces`. Raises VlmixError for a damaged file."""
    read = {"parquet": _from_parquet, "arrow": _from_arrow, "tar": _from_tar}.get(container.kind, _from_text)
    try:
        yield from read(container, places)
    except (pa.ArrowException, OSError, tarfile.TarError, ValueError) as error:
        raise VlmixError(f"{container.path}: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def _images(container: Container, values: Sequence[Any]) -> list[bytes]:
    """The images that a row's values of the container's columns hold."""
    read = block_images if container.blocks else image_bytes
    return [data for value in values for data in read(value)]


def _parquet(container: Container) -> pq.ParquetFile:
    return _opened_parquet(container.path, stamp(Path(container.path)))


@lru_cache(maxsize=4)
def _opened_parquet(path: str, _: Any) -> pq.ParquetFile:
    return opened_parquet(path)


def _group_ends(file: pq.ParquetFile) -> np.ndarray[Any, np.dtype[np.int64]]:
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return np.cumsum(sizes, dtype=np.int64)


def _from_parquet(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    file = _parquet(container)
    ends = _group_ends(file)
    group = int(np.searchsorted(ends, places[0], side="right"))
    start = int(ends[group - 1]) if group else 0
    wanted = np.asarray(places, dtype=np.int64) - start
    done = 0
    leaves = list(container.columns) if container.blocks else bytes_leaves(file, container.columns)
    for batch in file.iter_batches(_TOGETHER, row_groups=[group], columns=leaves):
        inside = wanted[(wanted >= done) & (wanted < done + len(batch))] - done
        for row in inside.tolist():
            yield _images(container, [batch.column(name)[row].as_py() for name in container.columns])
        done += len(batch)


def _from_arrow(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    _, batches = arrow_batches(container.path, stamp(Path(container.path)))
    ends = np.cumsum([len(batch) for batch in batches])
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        row = place - (int(ends[number - 1]) if number else 0)
        values = [batches[number].column(name)[row].as_py() for name in container.columns]
        yield _images(container, values)


def _from_tar(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    return tar_images(Path(container.path), places)


def _from_text(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    path = Path(container.path)
    with path.open("rb") as file:
        rows = {} if container.kind == "jsonl" else _all_rows(container, stamp(path))
        for place in places:
            row: Row
            if container.kind == "jsonl":
                file.seek(place)
                row = decoded(file.readline(), f"the line at byte {place}")
            else:
                row = rows[place]
            if isinstance(row, Broken):
                raise ValueError(row.detail)
            yield _images(container, [row.get(name) for name in container.columns])


@lru_cache(maxsize=1)
def _all_rows(container: Container, _: Any) -> dict[int, Row]:
    """The columns of images of a file that has to be read from its beginning."""
    rows = csv_rows(Path(container.path)) if container.kind == "csv" else json_rows(Path(container.path))
    names = container.columns
    return {at: row if isinstance(row, Broken) else {name: row.get(name) for name in names} for at, row in rows}
