"""Columns of Parquet and Arrow files: which hold images, and what they say of them without their bytes."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmix.mixture.io.rows.images import INSIDE, MEDIA, ImageItem, image_items, names_images

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


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


def bytes_are_there(file: pq.ParquetFile, name: str, paths: list[str]) -> bool | None:
    """Whether all images of a column have bytes, or none has; None where the file's statistics do not say."""
    leaves = [i for i in leaf_columns(file)[name] if file.schema.column(i).path[len(name) :].endswith(".bytes")]
    found = 0
    for group in range(file.num_row_groups):
        for number in leaves:
            column = file.metadata.row_group(group).column(number)
            nulls = column.statistics.null_count if column.statistics else None
            if nulls is None:
                return None
            found += column.num_values - nulls
    if not found:
        return False
    images = sum(_count_items(batch.column(name)) for batch in file.iter_batches(2**14, columns=paths))
    return True if images == found else None


def _count_items(column: pa.Array) -> int:
    while _is_list(column.type):
        column = column.flatten()
    return len(column) - int(column.null_count)


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


def image_lists(column: pa.Array, inside: bool | None) -> list[list[ImageItem]]:
    """What a column of an Arrow batch says of images, a list for each row. `inside` says that all of its images have
    bytes, or none has, where these were not read; None: the column itself says it."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
        items = iter(image_lists(column.flatten(), inside))
        return [[item for _ in range(length) for item in next(items) or [None]] for length in lengths]
    if _is_text(column.type):
        return [image_items(value) for value in column.to_pylist()]
    return [[] if item is None else [item] for item in _items(column, inside)]


def _items(array: pa.Array, inside: bool | None) -> list[ImageItem]:
    valid = array.is_valid().to_pylist()
    if pa.types.is_struct(array.type):
        names = [field.name for field in array.type]
        if inside:
            return [INSIDE if ok else None for ok in valid]
        there = array.field("bytes").is_valid().to_pylist() if "bytes" in names else [False] * len(array)
        paths = array.field("path").to_pylist() if "path" in names else [None] * len(array)
        return [(INSIDE if has else path) if ok else None for ok, has, path in zip(valid, there, paths)]
    return [INSIDE if ok and _is_binary(array.type) else None for ok in valid]


def values(column: pa.Array) -> list[Any]:
    """The values of a column; a time that Python cannot hold is ()."""
    try:
        return list(column.to_pylist())
    except (ValueError, KeyError, OverflowError):
        if pa.types.is_temporal(column.type):
            return [() if ok else None for ok in column.is_valid().to_pylist()]
        raise


def image_fields(schema: pa.Schema) -> tuple[str, ...]:
    """The columns of images: those with bytes, or else with text under a name that says so."""
    fields = [field for field in schema if field.name not in MEDIA]
    binary = [field for field in fields if _holds_images(field.type)]
    plain = [field for field in binary if pa.types.is_struct(_item(field.type)) or names_images(field.name)]
    named = [field for field in fields if names_images(field.name)]
    text = [field for field in named if _is_text(_item(field.type)) or _has(_item(field.type), "path", _is_text)]
    chosen = plain or binary or text
    return tuple(f.name for f in fields if f in chosen or (f in named and pa.types.is_null(_item(f.type))))


def type_name(type: pa.DataType) -> str:
    """A type as it matters to who reads it: lists and texts of all kinds are the same."""
    if pa.types.is_dictionary(type):
        return type_name(type.value_type)
    if _is_list(type):
        return f"list<{type_name(type.value_type)}>"
    if pa.types.is_struct(type):
        return f"struct<{', '.join(f'{field.name}: {type_name(field.type)}' for field in type)}>"
    return "string" if _is_text(type) else str(type)


def _item(type: pa.DataType) -> pa.DataType:
    """The type of what is in a list, or in a dictionary."""
    while _is_list(type) or pa.types.is_dictionary(type):
        type = type.value_type
    return type


def _is_list(type: pa.DataType) -> bool:
    kinds = pa.types
    return any(
        is_one(type)
        for is_one in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list, kinds.is_list_view,
                       kinds.is_large_list_view)
    )  # fmt: skip


def _holds_images(type: pa.DataType) -> bool:
    return _is_binary(_item(type)) or _has(_item(type), "bytes", lambda of: _is_binary(of) or _is_text(of))


def _has(type: pa.DataType, name: str, is_one: Callable[[pa.DataType], bool]) -> bool:
    return pa.types.is_struct(type) and any(field.name == name and is_one(field.type) for field in type)


def _is_binary(type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type))


def _is_text(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))
