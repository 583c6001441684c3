"""Files that hold the images of many rows: which there are, and the bytes of some of them."""

import base64
import binascii
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import stamp
from vlmix.mixture.io.image_index import EXTENSIONS
from vlmix.mixture.io.text_rows import TextRow, csv_rows, decoded, json_rows, loaded

IMAGE_BLOCKS = ("image", "image_url")
"""Types of the blocks of a message that are images."""
Kind = Literal["parquet", "arrow", "jsonl", "json", "csv", "tar"]
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
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
    blocks: bool = False
    """Whether the images lie in the blocks of the messages that its column holds."""


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


def opened_parquet(path: Path | str) -> pq.ParquetFile:
    """A Parquet file that is read piece by piece and not a whole column of a row group at once."""
    return pq.ParquetFile(path, buffer_size=2**20)


def leaf_columns(file: pq.ParquetFile) -> dict[str, list[int]]:
    """Column -> the numbers of the Parquet columns that it is made of."""
    numbers = iter(range(len(file.schema.names)))
    return {field.name: [next(numbers) for _ in range(_leaves(field.type))] for field in file.schema_arrow}


def _leaves(type: pa.DataType) -> int:
    if isinstance(type, pa.ExtensionType | pa.BaseExtensionType):
        return _leaves(type.storage_type)
    if pa.types.is_dictionary(type) or not pa.types.is_nested(type):
        return 1
    return sum(_leaves(type.field(i).type) for i in range(type.num_fields))


def bytes_leaves(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    """The paths of the Parquet columns that hold the images' bytes."""
    found = []
    for name, numbers in leaf_columns(file).items():
        paths = [file.schema.column(i).path for i in numbers] if name in columns else []
        found += [path for path in paths if path[len(name) :].endswith(".bytes")] or paths
    return found


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
        return [data for one in value for data in in_row(one) or [b""]]
    if isinstance(value, dict):
        return in_row(value.get("bytes"))
    if isinstance(value, str):
        return [decoded_base64(value)] if value else []
    return [value if isinstance(value, bytes) else b""]


def block_image(block: Mapping[str, Any]) -> Any:
    """What a block of a message says of its image: bytes, `{bytes, path}`, base64, a path or URL."""
    keys = ("image", "image_url", "url", "path")
    value = next((block[key] for key in keys if block.get(key) is not None), None)
    return value.get("url") or value if isinstance(value, dict) and value.get("bytes") is None else value


def _block_images(messages: Any) -> list[bytes]:
    contents = [turn.get("content") for turn in loaded(messages) or () if isinstance(turn, dict)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    images = [block for block in blocks if isinstance(block, dict) and block.get("type") in IMAGE_BLOCKS]
    return [data for block in images for data in (in_row(block_image(block)) or [b""])[:1]]


def _images(container: Container, values: Sequence[Any]) -> list[bytes]:
    """The images that a row's values of the container's columns hold."""
    read = _block_images if container.blocks else in_row
    return [data for value in values for data in read(value)]


def is_image_member(name: str) -> bool:
    """Whether a tar member, `name` being what follows its key, is an image: `jpg`, `1.jpg`, `image.png`."""
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def image_order(name: str) -> tuple[int, str]:
    """How the images of a sample in a tar are sorted: `jpg`, `1.jpg`, `2.jpg`, …, `10.jpg`, `img1.png` …."""
    digits = re.search(r"\d+", name)
    return (int(digits[0]) if digits else 0), name


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


@lru_cache(maxsize=4)
def arrow_batches(path: str, _: Any) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """The schema and the batches of an Arrow file or stream, mapped."""
    source = pa.memory_map(path)
    try:
        stream = pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        return file.schema, [file.get_batch(i) for i in range(file.num_record_batches)]
    batches = list(stream)
    source.seek(max(source.tell() - 8, 0))
    if source.read(8) != _END_OF_STREAM:
        raise pa.ArrowInvalid("the end of the stream is missing")
    return stream.schema, batches


def _from_arrow(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    _, batches = arrow_batches(container.path, stamp(Path(container.path)))
    ends = np.cumsum([len(batch) for batch in batches])
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        row = place - (int(ends[number - 1]) if number else 0)
        values = [batches[number].column(name)[row].as_py() for name in container.columns]
        yield _images(container, values)


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
                    if member.isdir() or key is None:  # as webdataset passes over them
                        continue
                    first = key if first is None else first
                    if key != first:
                        break
                    if suffix and member.isfile() and is_image_member(suffix):
                        content = tar.extractfile(member)
                        found.append((image_order(suffix), content.read() if content else b""))
            yield [data for _, data in sorted(found, key=lambda item: item[0])]


def _from_text(container: Container, places: Sequence[int]) -> Iterator[list[bytes]]:
    for place in places:
        row: TextRow
        if container.kind == "jsonl":
            with Path(container.path).open("rb") as file:
                file.seek(place)
                row = decoded(file.readline(), f"the line at byte {place}")
        else:
            row = _all_rows(container, stamp(Path(container.path)))[place]
        if isinstance(row, str):
            raise ValueError(row.split("\0")[1])
        yield _images(container, [row.get(name) for name in container.columns])


@lru_cache(maxsize=1)
def _all_rows(container: Container, _: Any) -> dict[int, TextRow]:
    """The columns of images of a file that has to be read from its beginning."""
    rows = csv_rows(Path(container.path)) if container.kind == "csv" else json_rows(Path(container.path))
    names = container.columns
    return {at: row if isinstance(row, str) else {name: row.get(name) for name in names} for at, row in rows}
