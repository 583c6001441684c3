"""One file of rows, in batches, in bounded memory where its form allows it, and without the bytes of its images: of
these is only said whether they lie inside the row or under a path."""

import hashlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import stamp
from vlmix.mixture.io.rows.columns import (
    arrow_batches,
    bytes_are_there,
    image_fields,
    image_lists,
    leaf_columns,
    opened_parquet,
    type_name,
    values,
)
from vlmix.mixture.io.rows.containers import Container
from vlmix.mixture.io.rows.files import kind_of
from vlmix.mixture.io.rows.images import MEDIA, ImageItem, image_items, names_images
from vlmix.mixture.io.rows.tar import IMAGES, tar_rows
from vlmix.mixture.io.rows.text import Broken, Row, csv_rows, json_rows, jsonl_rows

_BATCH = 1024
_HEAVY_BATCH = 64  # where the images have to be looked at
_SAMPLE = 50  # rows from which forms and columns are recognised


@dataclass
class Batch:
    """Some rows: their numbers in the file, their places (see `Container`), the values of their columns without images,
    those of their columns of images, and what of the file could not be read as rows, by its number."""

    numbers: list[int]
    places: list[int]
    columns: dict[str, list[Any]]
    image_columns: dict[str, list[list[ImageItem]]]
    broken: list[tuple[int, Broken]] = field(default_factory=list)

    @cached_property
    def images(self) -> list[list[ImageItem]]:
        """The images of each row, of all columns."""
        columns = list(self.image_columns.values())
        if len(columns) == 1:
            return columns[0]
        return [[item for column in columns for item in column[row]] for row in range(len(self.places))]


class Table:
    """One file of rows. Raises VlmixError, from every method, for a file that is damaged."""

    def __init__(self, path: Path, image_columns: Sequence[str] = ()) -> None:
        self.path, self.kind = path, kind_of(path)
        self._named = tuple(image_columns)
        self._inside: dict[str, bool | None] = {}
        """Column of images -> whether they have bytes, all or none of them; None where they have to be looked at."""
        self.rows = 0
        """Rows read so far, broken ones included."""
        self.partial_sha256 = ""
        """Of what says where everything is in the file, once it was read; "" where all of it counts."""
        with _damage(path):
            self.schema = self._read_schema()
            self.columns, self.image_columns = self._head()

    def type_of(self, name: str) -> str:
        """The type of a column where the file has types, "" where it has none. Text is text, however long."""
        if self.schema is None or name not in self.columns:
            return ""
        return type_name(self.schema.field(name).type)

    def container(self) -> Container:
        """The file as one that images can be taken from."""
        return Container(str(self.path), self.kind, self.image_columns)

    @cached_property
    def sample(self) -> Batch:
        """The first rows, with all columns."""
        with _damage(self.path):
            nothing = Batch([], [], {name: [] for name in self.columns}, {})
            return next(iter(self._batches(self.columns, _SAMPLE)), nothing)

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """All rows with the columns `names`; a column that the file lacks is None everywhere."""
        self.rows = 0
        there = [name for name in names if name in self.columns]
        with _damage(self.path):
            for batch in self._batches(there, _BATCH):
                self.rows += len(batch.places) + len(batch.broken)
                for name in names:
                    if name not in batch.columns:
                        batch.columns[name] = [None] * len(batch.places)
                yield batch
        if self.kind == "parquet":
            self.partial_sha256 = hashlib.sha256(_footer(self.path)).hexdigest()
        elif self.kind == "arrow":
            self.partial_sha256 = _ends_sha256(self.path)

    def count(self) -> int:
        """The rows of a Parquet file, by its footer."""
        return int(opened_parquet(self.path).metadata.num_rows)

    def _read_schema(self) -> pa.Schema | None:
        """The types of the columns; None for a file without types."""
        if self.kind == "parquet":
            return opened_parquet(self.path).schema_arrow
        return arrow_batches(str(self.path), stamp(self.path))[0] if self.kind == "arrow" else None

    def _head(self) -> tuple[list[str], tuple[str, ...]]:
        """(columns without images, columns of images)."""
        if self.schema is not None:
            names = self.schema.names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise VlmixError(f"{self.path}: two columns have one name, {twice[0]!r}")
            images = tuple(name for name in self._named if name in names) or image_fields(self.schema)
            return [name for name in names if name not in images], images
        # All rows, as any of them may be the first with an image; in a tar these are known by their names.
        rows = islice(self._rows(), _SAMPLE) if self.kind == "tar" else self._rows()
        said: dict[str, bool | None] = {}  # name -> whether it has images, None as long as nothing is in it
        for _, row in rows:
            for name, value in () if isinstance(row, Broken) else row.items():
                if not names_images(name):
                    said[name] = False
                elif not said.get(name) and not _is_nothing(value):
                    said[name] = _holds_image(value)
                else:
                    said.setdefault(name, None)
        if self.kind == "tar":
            return [name for name in said if name != IMAGES], (IMAGES,)
        images = tuple(name for name in self._named if name in said)
        images = images or tuple(sorted((name for name, has in said.items() if has is not False), key=_number_in))
        return [name for name in said if name not in images], images

    def _batches(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        match self.kind:
            case "parquet":
                yield from self._parquet(names, size)
            case "arrow":
                yield from self._arrow(names, size)
            case _:
                yield from self._plain(names, size)

    def _parquet(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        file = opened_parquet(self.path)
        leaves = {name: [file.schema.column(i).path for i in of] for name, of in leaf_columns(file).items()}
        light = {name: [path for path in of if path[len(name) :].endswith(".path")] for name, of in leaves.items()}
        wanted = [path for name in names for path in (name in MEDIA and light[name]) or leaves[name]]
        for name in self.image_columns:
            if name not in self._inside:
                self._inside[name] = bytes_are_there(file, name, light[name]) if light[name] else None
            looked_at = self._inside[name] is None
            wanted += leaves[name] if looked_at else light[name]
            size = min(size, _HEAVY_BATCH) if looked_at else size
        start = 0
        for batch in file.iter_batches(size, columns=wanted):
            columns = {name: values(batch.column(name)) for name in names}
            images = {name: image_lists(batch.column(name), self._inside[name]) for name in self.image_columns}
            places = list(range(start, start + len(batch)))
            yield Batch(places, places, columns, images)
            start += len(batch)

    def _arrow(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        start = 0
        for whole in arrow_batches(str(self.path), stamp(self.path))[1]:
            # Where a value begins and ends is taken on trust otherwise, and may lie outside of the file.
            whole.select([*names, *self.image_columns]).validate(full=True)
            for at in range(0, len(whole), size):
                batch = whole.slice(at, size)
                columns = {name: values(batch.column(name)) for name in names}
                images = {name: image_lists(batch.column(name), None) for name in self.image_columns}
                places = list(range(start, start + len(batch)))
                yield Batch(places, places, columns, images)
                start += len(batch)

    def _plain(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        numbered = ((number, place, row) for number, (place, row) in enumerate(self._rows()))
        while rows := list(islice(numbered, size)):
            batch = Batch([], [], {name: [] for name in names}, {name: [] for name in self.image_columns})
            for number, place, row in rows:
                if isinstance(row, Broken):
                    batch.broken.append((number, row))
                    continue
                batch.numbers.append(number)
                batch.places.append(place)
                for name in names:
                    batch.columns[name].append(row.get(name))
                for name, images in batch.image_columns.items():
                    images.append(row[name] if self.kind == "tar" else image_items(row.get(name)))
            yield batch

    def _rows(self) -> Iterator[tuple[int, Row]]:
        """(place, row)."""
        match self.kind:
            case "jsonl":
                return jsonl_rows(self.path)
            case "json":
                return json_rows(self.path)
            case "csv":
                return csv_rows(self.path)
            case _:
                return tar_rows(self.path, lambda digest: setattr(self, "partial_sha256", digest))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns what libraries raise about damaged files into a VlmixError that names the file."""
    try:
        yield
    except VlmixError:
        raise
    except (pa.ArrowException, OSError, tarfile.TarError, ValueError, EOFError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise VlmixError(f"{path}: {why}; the file is damaged or was not copied whole") from None


def _is_nothing(value: Any) -> bool:
    return value is None or value == "" or value == []


def _number_in(name: str) -> int:
    return int(digits[-1]) if (digits := re.findall(r"\d{1,9}", name)) else 0


def _holds_image(value: Any) -> bool:
    items: Iterable[Any] = value if isinstance(value, list) else [value]
    return any(
        isinstance(item, str) or (isinstance(item, dict) and ("bytes" in item or "path" in item)) for item in items
    )


def _footer(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return file.read(length)


def _ends_sha256(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(2**16)
        size = file.seek(0, 2)
        file.seek(max(size - 2**16, 0))
        return hashlib.sha256(b"%d" % size + head + file.read()).hexdigest()
