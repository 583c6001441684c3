"""The index of a mixture: `samples.parquet`, one row per sample in mixture order, and `rejects.parquet`."""

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct, field
from msgspec.structs import asdict

from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.io import exact_json
from vlmix.mixture.io.atomic import write_parquet
from vlmix.mixture.record import ImageRef

_TURN = pa.struct({"from": pa.string(), "value": pa.string()})
_BOX = pa.struct(
    {
        "round": pa.int32(),
        "image": pa.int32(),
        "x1": pa.float64(),
        "y1": pa.float64(),
        "x2": pa.float64(),
        "y2": pa.float64(),
    }
)
_IMAGE = pa.struct(
    {
        "path": pa.string(),  # in LLaVA's layout
        "width": pa.int32(),  # of the stored image, pixels
        "height": pa.int32(),
        "offset": pa.int64(),  # of the member's data in the shard; 0 with size 0 without shards
        "size": pa.int64(),
        "xxh3": pa.string(),  # xxh3-128 of the stored bytes
        "transform": pa.string(),  # what was done to the file's bytes: none, reencoded, rotated, orientation_cleared
    }
)

SAMPLES = pa.schema(
    {
        "key": pa.string(),  # of the members in the tar
        "id": pa.string(),
        "source": pa.string(),
        "image": pa.string(),  # path of the first image, "" for text only; this, its width and height are for `where`
        "width": pa.int32(),
        "height": pa.int32(),
        "num_images": pa.int32(),
        "images": pa.list_(_IMAGE),  # in the order of their tokens
        "num_rounds": pa.int32(),
        "num_words": pa.int32(),
        "repeat": pa.int32(),  # times seen per epoch
        "natural_index": pa.int64(),  # place in the natural order
        "shard": pa.string(),  # path below the folder, "" without shards
        "json_offset": pa.int64(),
        "json_size": pa.int64(),
        "conversations": pa.list_(_TURN),
        "response_formats": pa.list_(pa.string()),  # response format of each round
        "boxes": pa.list_(_BOX),  # pixels of the stored image that they lie in, by its number
        "extra": pa.string(),
    }
)

Transform = Literal["none", "reencoded", "rotated", "orientation_cleared"]
MOST_REPEATS = 1000

TEXT_COLUMNS = ("conversations", "response_formats", "boxes", "extra")
"""The heavy columns, which a view leaves with its root."""

VIEW = pa.schema([*(f for f in SAMPLES if f.name not in TEXT_COLUMNS), pa.field("root_row", pa.int64())])
"""A view's index: no text, and `root_row`, the sample's row in the root's samples.parquet."""

SCALARS = (pa.string(), pa.int64(), pa.float64(), pa.bool_())
"""Types of what sources say about their samples (ratings): nullable columns behind those of SAMPLES or VIEW."""
RESERVED = frozenset((*SAMPLES.names, *VIEW.names, "position", "characters", "container", "at", "record", "match"))
"""Names that such a column may not have."""


def with_columns(base: pa.Schema, index: pa.Schema) -> pa.Schema:
    """`base` and the columns of sources that `index` has."""
    return pa.schema([*base, *source_columns(index)])


def source_columns(index: pa.Schema) -> list[pa.Field]:
    """The columns of an index that come from sources."""
    return [field for field in index if field.name not in RESERVED]


def is_index(schema: pa.Schema, base: pa.Schema = SAMPLES) -> bool:
    """Whether a file has the columns of a mixture's index."""
    more = list(schema)[len(base) :]
    return pa.schema(list(schema)[: len(base)]).equals(base) and all(
        field.name not in RESERVED and field.type in SCALARS for field in more
    )


REJECTS = pa.schema(
    {
        "source": pa.string(),
        "id": pa.string(),
        "round": pa.int32(),  # inside the upstream record; -1 for the whole of it
        "image": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "record": pa.string(),  # JSON, where the upstream record would be lost otherwise
    }
)


class Reject(Struct, frozen=True, kw_only=True):
    """Something that was dropped. `round` is the position inside the upstream record, -1 for a whole record;
    `reason` a stable code; `record` the upstream record as JSON where it would be lost otherwise."""

    source: str
    id: str
    reason: str
    detail: str
    round: int = -1
    image: str = ""
    record: str = ""


def open_index(path: Path) -> pq.ParquetFile:
    """A mixture's samples.parquet, opened. Raises VlmixError if it is missing, damaged or of other columns."""
    if path.exists() and not path.is_file():
        raise VlmixError(f"{path}: not a regular file")
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise VlmixError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise VlmixError(f"{path}: {str(error).splitlines()[0]}; the index is damaged") from None
    if not is_index(file.schema_arrow):
        raise VlmixError(f"{path}: its columns are not those of a mixture's index; it was not written by this vlmix")
    return file


def columns_problem(table: pa.Table) -> str | None:
    """What in columns of an index no writer could have put there: a value that is missing, a repeat past the recipe's
    bounds. None if all is well."""
    for name in table.column_names:
        if table[name].null_count and name in RESERVED:
            return f"{name} is missing for a sample"
    if "repeat" in table.column_names and len(table):
        least, most = pc.min_max(table["repeat"]).as_py().values()
        if least < 1 or most > MOST_REPEATS:
            return f"repeat goes from {least} to {most}, a recipe's from 1 to {MOST_REPEATS}"
    return None


def extra_of(row: dict[str, Any]) -> dict[str, Any]:
    """The `extra` of a row with its `conversations`, `{}` for none. Raises VlmixError if it is not such an object."""
    if not row["extra"]:
        return {}
    try:
        origin = exact_json.loads(row["extra"])
        if not isinstance(origin, dict):
            raise ValueError("not an object")
        whole = origin.get("conversations")
        fits = isinstance(whole, list) and len(whole) == len(row["conversations"])
        if whole is not None and row["conversations"] and not (fits and all(isinstance(turn, dict) for turn in whole)):
            raise ValueError("it has other turns")
    except (ValueError, RecursionError) as error:
        raise VlmixError(f"sample {abridged(str(row['id']))}: its `extra` is damaged: {error}") from None
    return origin


class Turn(Struct, frozen=True):
    """One turn in LLaVA's form."""

    from_: str = field(name="from")
    value: str


class SampleJson(Struct, frozen=True):
    """The `.json` member of a sample: every field always there and of one type. `image`, `width` and `height` are those
    of the first image."""

    id: str
    source: str
    image: str
    width: int
    height: int
    images: list[ImageRef]
    conversations: list[Turn]
    extra: str


ROLES = ("human", "gpt")


def turns(texts: list[str]) -> list[Turn]:
    return [Turn(ROLES[i % 2], text) for i, text in enumerate(texts)]


def write_rejects(path: Path, rejects: list[Reject]) -> None:
    batch = pa.RecordBatch.from_pylist([asdict(reject) for reject in rejects], REJECTS)
    write_parquet(path, [batch], REJECTS)
