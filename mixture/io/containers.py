"""Files that hold the images of many rows: which there are, and the bytes of some of them."""

import base64
import binascii
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import stamp
from vlmix.mixture.io.image_index import EXTENSIONS

Kind = Literal["parquet", "arrow", "jsonl", "json", "csv", "tar"]
_TOGETHER = 64  # rows of a piece where a container has no row groups
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


class Container(Struct, frozen=True):
    """A file whose rows hold images: in `columns`, or for a tar in the members with an image's extension. A row's place
    is its number; in JSONL the offset of its line, in a tar that of its first header."""

    path: str
    kind: Kind
    columns: tuple[str, ...]
    mean_bytes: int = 0
    """Of an image, about."""


def pieces(container: Container, places: Sequence[int]) -> list[list[int]]:
    """`places`, ascending, in the parts that are read together: by row group, or some rows at a time."""
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


def bytes_leaves(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    """The paths of the Parquet columns that hold the images' bytes."""
    paths = [file.schema.column(i).path for i in range(len(file.schema.names))]
    inside = [path for path in paths if path.partition(".")[0] in columns]
    nested = [path for path in inside if path.endswith(".bytes")]
    flat = [path for path in inside if not any(path.startswith(f"{one.partition('.')[0]}.") for one in nested)]
    return [*nested, *(path for path in flat if path not in nested)]


def decoded_base64(text: str) -> bytes:
    """The bytes that base64 text, or a data URL, stands for; none if it is not base64."""
    try:
        return base64.b64decode(_DATA_URL.sub("", text, count=1), validate=True)
    except (binascii.Error, ValueError):
        return b""


def in_row(value: Any) -> list[bytes]:
    """The bytes of the images that a value of a row holds: bytes, `{bytes, path}`, base64, or a list of these."""
    if value is None:
        return []
    if isinstance(value, list):
        return [data for one in value for data in in_row(one)]
    if isinstance(value, dict):
        return in_row(value.get("bytes"))
    return [decoded_base64(value) if isinstance(value, str) else bytes(value)]


def is_image_member(name: str) -> bool:
    """Whether a tar member, `name` being what follows its key, is an image: `jpg`, `1.jpg`, `image.png`."""
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def image_order(name: str) -> tuple[int, str]:
    """How the images of a sample in a tar are sorted: `jpg`, `1.jpg`, `2.jpg`, …, `10.jpg`."""
    digits = re.match(r"\d+", name)
    return (int(digits[0]) if digits else 0), name


def _parquet(container: Container) -> pq.ParquetFile:
    return _opened_parquet(container.path, stamp(Path(container.path)))


@lru_cache(maxsize=4)
def _opened_parquet(path: str, _: Any) -> pq.ParquetFile:
    return pq.ParquetFile(path)


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
    leaves = bytes_leaves(file, container.columns)
    for batch in file.iter_batches(_TOGETHER, row_groups=[group], columns=leaves):
        inside = wanted[(wanted >= done) & (wanted < done + len(batch))] - done
        if len(inside):
            taken = batch.take(pa.array(inside))
            columns = [taken.column(name).to_pylist() for name in container.columns]
            yield from ([data for value in row for data in in_row(value)] for row in zip(*columns))
        done += len(batch)


@lru_cache(maxsize=4)
def arrow_batches(path: str, _: Any) -> list[pa.RecordBatch]:
    """The batches of an Arrow file or stream, mapped."""
    source = pa.memory_map(path)
    try:
        with pa.ipc.open_stream(source) as stream:
            return list(stream)
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        return [file.get_batch(i) for i in range(file.num_record_batches)]


def _from_arrow(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    batches = arrow_batches(container.path, stamp(Path(container.path)))
    ends = np.cumsum([len(batch) for batch in batches])
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        row = place - (int(ends[number - 1]) if number else 0)
        values = [batches[number].column(name)[row].as_py() for name in container.columns]
        yield [data for value in values for data in in_row(value)]


def _from_tar(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    from webdataset.tariterators import base_plus_ext

    with Path(container.path).open("rb") as file:
        for place in places:
            file.seek(place)
            found: list[tuple[tuple[int, str], bytes]] = []
            first = None
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    key, suffix = base_plus_ext(member.name)
                    first = key if first is None else first
                    if key != first:
                        break
                    if suffix and member.isfile() and is_image_member(suffix):
                        content = tar.extractfile(member)
                        found.append((image_order(suffix), content.read() if content else b""))
            yield [data for _, data in sorted(found, key=lambda item: item[0])]


def _from_text(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    for place in places:
        if container.kind == "jsonl":
            with Path(container.path).open("rb") as file:
                file.seek(place)
                row = msgspec.json.decode(file.readline())
        else:
            row = _all_rows(container.path, container.kind, stamp(Path(container.path)))[place]
        yield [data for name in container.columns for data in in_row(row.get(name))]


@lru_cache(maxsize=1)
def _all_rows(path: str, kind: Kind, _: Any) -> list[dict[str, Any]]:
    if kind == "csv":
        import polars as pl

        return pl.read_csv(path, infer_schema=False).to_dicts()
    rows: list[dict[str, Any]] = msgspec.json.decode(Path(path).read_bytes())
    return rows
