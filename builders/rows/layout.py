"""How the rows of a set of files are read: what is the same for all of them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from vlmix.builders.rows.forms import FIELDS, Reading, recognise
from vlmix.builders.rows.options import RowsOptions
from vlmix.mixture.dataset.schema import RESERVED
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.io.rows.images import INSIDE, MEDIA
from vlmix.mixture.io.rows.table import Table
from vlmix.mixture.io.rows.text import loaded

ORIGIN = "origin"
"""The column that a row's own `source` becomes, as a sample's `source` is the recipe's entry."""
_OPTIONAL = ("id", "source", "choices", "correct")
_WORD = re.compile(r'"([^"]+)"|(\w+)')


class Layout(Struct, frozen=True):
    """What is the same for all files of a set."""

    reading: Reading
    image_columns: tuple[str, ...]
    scalars: dict[str, str]
    """New name -> column, of what travels beside the conversation."""
    lists: tuple[str, ...]
    """Columns of lists that `where_rounds` names."""
    first: Path
    """The file by which the others are measured, and the types of its columns; "" where it has none."""
    types: dict[str, str]
    about: str
    """The same in words, for `plan`."""

    @property
    def columns(self) -> list[str]:
        """Those that are read, images aside."""
        return list(dict.fromkeys([*self.reading.columns.values(), *self.scalars.values(), *self.lists, *MEDIA]))

    def check(self, table: Table, where: str) -> None:
        """Raises VlmixError for a file whose columns are not those of the first."""
        if not table.columns and not table.image_columns:  # no rows
            return
        needed = {name for role, name in self.reading.columns.items() if role not in _OPTIONAL}
        # A file of text may have no image in any of its rows; one with types says so.
        images = () if table.schema is None else self.image_columns
        for name in sorted({*needed, *images}):
            if name not in (*table.columns, *table.image_columns):
                what = f"{table.path} has no column {name!r}, which {self.first.name} has"
                raise VlmixError(f"{where}: {what}; read them as two sources")
        for name in sorted({*needed, *self.scalars.values()}):
            types = self.types.get(name, ""), table.type_of(name)
            alike = [_kind(type) for type in types] if name not in needed else list(types)
            if alike[0] != alike[1] and not any("null" in type or not type for type in types):
                what = f"column {name!r} is {types[0]} in {self.first.name}, {types[1]} in {table.path}"
                remedy = "" if name in needed else f"leave it out with `without: [{name}]`, or "
                raise VlmixError(f"{where}: {what}; {remedy}read them as two sources")


def layout_of(tables: Sequence[Table], options: RowsOptions, where: str) -> Layout:
    """How the rows of a set are read, by its first file, and by the others for the columns that only they have."""
    table = tables[0]
    values = dict(table.sample.columns)
    for other in tables[1:]:
        if new := [name for name in other.columns if name not in values and name not in table.image_columns]:
            values |= {name: other.sample.columns[name] for name in new}
    single: dict[str, str] = {}
    for role, column in options.fields.items():
        if isinstance(column, str):
            single[role] = column
        elif role != "image":
            raise VlmixError(f"{where}: `fields` has several columns for {role}; only `image` may have several")
    single.pop("image", None)
    for name in options.image_columns:
        if not any(name in one.image_columns for one in tables):
            near = nearest(name, [*table.columns, *table.image_columns])
            raise VlmixError(f"{where}: `fields` has image: {name}, and {table.path.name} has no such column{near}")
    if options.ids not in ("auto", "row", "content", *values):
        near = nearest(options.ids, values)
        raise VlmixError(f"{where}: ids: there is no column {options.ids!r}{near}; or take row or content")
    place = f"{where}: {table.path}" if where else str(table.path)
    said = options.form, options.response_format, options.ids
    reading = recognise(values, any(table.sample.images), single, *said, place)
    # A column of ids is none to keep, also where the recipe takes others for ids.
    named = next((name for name in FIELDS["id"] if name in values), "")
    scalars = _travelling(options, values, {*reading.columns.values(), *table.image_columns, named}, where)
    origin = reading.columns.get("source")
    if origin and _is_scalar(values[origin]) and origin not in (*options.columns.values(), *options.without):
        scalars.setdefault(ORIGIN, origin)
    lists = _rated(options, values, reading, where)
    named = ", ".join(f"`{name}`" for name in reading.columns.values())
    about = f"rows of the form {reading.form}, from {named}; images: {_images_about(table)}"
    types = {name: table.type_of(name) for name in table.columns}
    return Layout(reading, table.image_columns, scalars, lists, table.path, types, about)


def ratings(value: Any) -> list[Any]:
    """The values of a list that is parallel to the rounds, none where there is no list."""
    return loaded(value) or []


def _travelling(options: RowsOptions, values: Mapping[str, list[Any]], taken: set[str], where: str) -> dict[str, str]:
    """New name -> column, of what travels beside the conversations."""
    for name in (*options.columns.values(), *options.without):
        if name not in values:
            near = nearest(name, values)
            said = "`without`" if name in options.without else "`columns`"
            new = next((f"{new}: " for new, old in options.columns.items() if old == name), "")
            raise VlmixError(f"{where}: {said} has {new}{name}, there is no such column{near}")
    scalars = {
        name: name
        for name, of in values.items()
        if name not in (*taken, *options.columns.values(), *options.without)
        and _is_scalar(of)
        and name not in MEDIA
        and not name.startswith("__")
    }
    for new, old in options.columns.items():
        if new in RESERVED:
            raise VlmixError(f"{where}: `columns`: {new!r} is the name of a column of every mixture; take another")
        if new in scalars:
            raise VlmixError(
                f"{where}: `columns` has {new}: {old}, and the rows have a column {new!r}; take another name"
            )
        if not _is_scalar(values[old]):
            raise VlmixError(f"{where}: `columns` has {new}: {old}, which holds no numbers, texts or booleans")
        scalars[new] = old
    return scalars


def _rated(options: RowsOptions, values: Mapping[str, list[Any]], reading: Reading, where: str) -> tuple[str, ...]:
    """The columns of lists that `where_rounds` names."""
    words = {quoted or word for quoted, word in _WORD.findall(options.where_rounds or "")}
    named = [name for name in values if name in words and name not in reading.columns.values()]
    for name in named:
        if any(value is not None for value in values[name]) and not any(map(ratings, values[name])):
            raise VlmixError(f"{where}: where_rounds names {name!r}, which holds no lists; `where` takes such columns")
    return tuple(named)


def _kind(type: str) -> str:
    """A type as far as one column can hold it beside others."""
    return "number" if re.match(r"u?int|float|double|half|decimal", type) else type


def _images_about(table: Table) -> str:
    images = table.sample.images
    if not any(images):
        return "none in the first rows"
    how = "inside the rows" if any(INSIDE in items for items in images) else "files beside them"
    named = ", ".join(f"`{name}`" for name in table.image_columns)
    return f"{how} ({named}), up to {max(map(len, images))} in the first rows"


def _is_scalar(values: list[Any]) -> bool:
    return all(value is None or isinstance(value, str | int | float) for value in values)
