"""The index of a mixture: `samples.parquet`, one row per sample in mixture order, and `rejects.parquet`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct, field
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.io import exact_json
from vlmix.mixture.io.storage import Local, Location
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
_HINT = "`vlmix verify` lists all damage"
PART_ROWS = 1_000_000
"""Rows of one file of an index. With more, samples.parquet is a folder of parts, each of as many whole row groups as
fit, and of one at least."""

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


def filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, null where the table has none."""
    there = set(table.column_names)
    columns = [
        table[field.name].cast(field.type) if field.name in there else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


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


class Index:
    """A mixture's samples.parquet, opened: one file, or the parts of a folder, read as one. Row groups are numbered
    through all parts; where there are shards, row group k has the rows of shard k.

    A part is opened when it is needed, and one at a time. Whatever is read raises VlmixError if its file is missing,
    damaged, or of other columns than the first. Columns are named as Parquet's leaves are: `images.list.element.size`.
    """

    def __init__(self, files: Sequence[Location], dictionaries: Sequence[str] = ()) -> None:
        """`files`: the file, or the parts in order; `dictionaries`: columns to read as dictionaries of their values."""
        self.files, self._dictionaries = files, list(dictionaries)
        self._open: tuple[int, pq.ParquetFile] = 0, self._opened(0)
        self.schema_arrow: pa.Schema = self._open[1].schema_arrow

    @cached_property
    def group_rows(self) -> NDArray[np.int64]:
        """[G] rows of each row group."""
        return np.concatenate(self._groups)

    @property
    def num_row_groups(self) -> int:
        return len(self.group_rows)

    def place(self, group: int) -> tuple[int, int]:
        """The number of the file that holds a row group, and the group's number in it."""
        ends = np.cumsum([len(groups) for groups in self._groups])
        file = int(np.searchsorted(ends, group, side="right"))
        return file, group - int(ends[file]) + len(self._groups[file])

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        number, within = self.place(group)
        return self._read(number, columns, within)

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, int, Callable[[], pa.Table]]]:
        """Of each row group its first row, its number of rows, and what reads it."""
        first = 0
        for number in range(len(self.files)):
            for within, rows in enumerate(_counted(self._part(number).metadata).tolist()):
                yield first, rows, partial(self._read, number, columns, within)
                first += rows

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows, a part at a time."""
        for number in range(len(self.files)):
            yield self._read(number, columns)

    def batches(self, columns: Sequence[str], rows: int = 200_000) -> Iterator[pa.Table]:
        """All rows, at most so many at a time."""
        for number, where in enumerate(self.files):
            with _sound(where):
                for batch in self._part(number).iter_batches(rows, columns=list(columns)):
                    yield pa.Table.from_batches([batch])

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        return pa.concat_tables(self.parts(columns))

    def _read(self, number: int, columns: Sequence[str] | None, group: int | None = None) -> pa.Table:
        file = self._part(number)
        with _sound(self.files[number]):
            return file.read(columns) if group is None else file.read_row_group(group, columns)

    def _part(self, number: int) -> pq.ParquetFile:
        if self._open[0] != number:
            file = self._opened(number)
            if not file.schema_arrow.equals(self.schema_arrow):
                raise VlmixError(f"{self.files[number].name}: its columns are not those of the first part; {_HINT}")
            self._open = number, file
        return self._open[1]

    def _opened(self, number: int) -> pq.ParquetFile:
        where = self.files[number]
        with _sound(where):
            file = pq.ParquetFile(where.arrow())
            known = [name for name in self._dictionaries if name in file.schema_arrow.names]
            return pq.ParquetFile(where.arrow(), metadata=file.metadata, read_dictionary=known) if known else file

    @cached_property
    def _groups(self) -> list[NDArray[np.int64]]:
        """Of each part, the rows of its row groups."""
        return [self._counts(number) for number in range(len(self.files))]

    def _counts(self, number: int) -> NDArray[np.int64]:
        where = self.files[number]
        if len(self.files) == 1 or not isinstance(where, Local):
            return _counted(self._part(number).metadata)
        with _sound(where):
            found = where.path.stat()
            return _counts_of(where.path, (found.st_size, found.st_mtime_ns, found.st_ino))


@lru_cache(maxsize=1024)
def _counts_of(path: Path, _: tuple[int, ...]) -> NDArray[np.int64]:
    """Kept, as a worker that reads a few row groups would open all parts for each of its tasks."""
    return _counted(pq.read_metadata(path))


def _counted(metadata: pq.FileMetaData) -> NDArray[np.int64]:
    return np.array([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], dtype=np.int64)


@contextmanager
def _sound(where: Location) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise VlmixError(f"{where.name} is missing; {_HINT}") from None
    except (pa.ArrowException, OSError) as error:
        raise VlmixError(f"{where.name}: {str(error).splitlines()[0]}; {_HINT}") from None


def open_index(path: Path) -> Index:
    """A mixture's samples.parquet, a file or a folder of parts, opened. Raises VlmixError if it is missing, damaged or
    of other columns."""
    index = Index(index_files(path))
    check_index(index, str(path))
    return index


def check_index(index: Index, name: str) -> None:
    """Raises VlmixError, in which it is called `name`, for an index of other columns."""
    if not is_index(index.schema_arrow):
        raise VlmixError(f"{name}: its columns are not those of a mixture's index; it was not written by this vlmix")


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def index_files(path: Path) -> list[Local]:
    """The files of a samples.parquet: itself, or the parts of the folder. Raises VlmixError where one is missing."""
    if not path.is_dir():
        return [Local(path)]
    names = sorted(part.name for part in path.glob("part-*.parquet"))
    if not names or names != [part_name(number) for number in range(len(names))]:
        raise VlmixError(f"{path}: its parts are not {part_name(0)} and those after it; {_HINT}")
    return [Local(path / name) for name in names]


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
