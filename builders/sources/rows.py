"""Any table of conversations: Parquet, Arrow, JSONL, JSON, CSV or WebDataset tars, in any of the forms of
`builders.forms`, images inside or beside it."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from msgspec import Meta, Struct, field
from xxhash import xxh3_64, xxh3_128_hexdigest

from vlmix.builders.forms import FORMS, MEDIA, Form, Parsed, Reading, parse, recognise
from vlmix.builders.known_rows import known_rows
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.dataset.schema import RESERVED
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.filters import matching
from vlmix.mixture.io.containers import pieces, read_images
from vlmix.mixture.io.hub import HUB, download
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.io.tables import INSIDE, Batch, ImageItem, Table, find_tables
from vlmix.mixture.record import Conversation, ImageRef, Place, ResponseFormat, Scalar

ORIGIN = "origin"
"""The column that a row's own `source` becomes, as a sample's `source` is the recipe's entry."""


class RowsOptions(Options, frozen=True, kw_only=True):
    path: Annotated[
        str,
        Meta(
            description="a file, a glob, a folder of files of one kind or saved by `datasets`: below RAW/rows or RAW, "
            "or any path; or hf://datasets/OWNER/NAME/GLOB"
        ),
    ]
    form: Annotated[
        Form | None, Meta(description="texts, conversations, messages, qa or captions; by default recognised")
    ] = None
    fields: Annotated[
        dict[str, str | tuple[str, ...]],
        Meta(
            description="which column holds what: id, question, answer, choices, correct, caption, image (one or a "
            "list of several), texts, conversations, messages"
        ),
    ] = field(default_factory=dict)
    response_format: Annotated[
        ResponseFormat | None,
        Meta(description="of questions with answers: free by default; short_answer adds the prompt of the style"),
    ] = None
    ids: Annotated[
        str,
        Meta(
            description="auto: the column of ids, else row; row: file and number of the row; content: a hash of texts "
            "and images, which reads all of them; or a column"
        ),
    ] = "auto"
    where_rounds: Annotated[
        str | None,
        Meta(
            description="SQL condition over lists that are parallel to the rounds (relevance_ratings >= 3): rounds "
            "that fail are dropped"
        ),
    ] = None
    columns: Annotated[
        dict[str, str], Meta(description="new name -> column, where a column's own name is taken (image_width: width)")
    ] = field(default_factory=dict)
    image_root: Annotated[str | None, Meta(description="folder of the images; by default that of the table")] = None
    expect: Annotated[
        int | str | None,
        Meta(description="rows of the origin, or a known subset (finevision/docvqa); fewer are reported"),
    ] = None


class _Layout(Struct, frozen=True):
    """What is the same for all files of a set."""

    reading: Reading
    image_columns: tuple[str, ...]
    scalars: dict[str, str]
    """New name -> column, of what travels beside the conversation."""
    lists: tuple[str, ...]
    """Columns of lists that `where_rounds` names."""
    ids: tuple[str, ...]
    """The column that `ids` names."""


def read(raw: RawFolder, options: RowsOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per row, in the order of the files' names and rows."""
    where = f"sources.{reject.source}"
    paths = tables_of(raw, options)
    named = image_columns_of(options)
    layout: _Layout | None = None
    names = _short_names(paths)
    seen: Counter[str] = Counter()
    prints: dict[tuple[int, bytes], Path] = {}
    total = 0
    raw.image_roots += _image_roots(raw, options, paths)
    for path in paths:
        table = Table(path, named)
        if layout is None:
            layout = layout_of(table, options, where)
            about = f"{layout.reading.form}, from {_list(layout.reading.columns.values())}"
            raw.about.append(f"{reject.source}: rows of the form {about}; images: {_images_about(table)}")
            first = table
        else:
            _check_same(first, table, layout)
        container = raw.container(table.container())
        fingerprint = xxh3_64()
        numbers = {name: _number(type) for name, type in table.csv_types().items()}
        for batch in table.batches([name for name in _columns(layout) if name not in MEDIA or name in table.columns]):
            for number, code, detail, text in batch.broken:
                reject(f"{reject.source}/{names[path]}/{number}", code, f"{path.name}: {detail}", record=text)
            dropped = _dropped(batch, layout, options, where)
            hashes = _content(raw.containers[container], batch) if options.ids == "content" else None
            scalars = _scalars(batch, layout, numbers)
            rows = _Rows(reject, names[path], layout, options, container, hashes, seen, scalars)
            for index, values in enumerate(zip(*batch.columns.values())):
                row = dict(zip(batch.columns, values))
                parsed = parse(row, len(batch.images[index]), layout.reading)
                fingerprint.update(_said(parsed))
                conversation = rows.made(row, batch, index, parsed, dropped.get(index, set()))
                if conversation is not None:
                    yield conversation
        total += table.rows
        raw.containers[container] = table.container()
        _note_input(raw, table)
        digest = table.rows, fingerprint.digest()
        if options.ids != "content" and table.rows > 1 and (twin := prints.setdefault(digest, path)) != path:
            raise VlmixError(f"{path} has the same rows as {twin}; remove one of them, or take `ids: content`")
    repeated = sum(count - 1 for count in seen.values() if count > 1)
    if repeated:
        example = next(name for name, count in seen.items() if count > 1)
        raw.notes.append(
            f"{reject.source}: {repeated:,} ids repeat ({example}); repeats are called ~2, ~3 and are kept"
        )
    _expected(raw, options, reject, total, where)


def tables_of(raw: RawFolder, options: RowsOptions) -> list[Path]:
    """The files of `path`; of the hub, downloaded into its cache."""
    if options.path.startswith(HUB):
        return find_tables(str(download(options.path)), [])
    return find_tables(options.path, [raw.folder, raw.raw])


def layout_of(table: Table, options: RowsOptions, where: str) -> _Layout:
    """How the rows of a set are read, by its first file."""
    sample = table.sample()
    fields = {role: column for role, column in options.fields.items() if role != "image"}
    for role, column in fields.items():
        if not isinstance(column, str):
            raise VlmixError(f"{where}: `fields` has several columns for {role}; only `image` may have several")
    single = {role: str(column) for role, column in fields.items()}
    for name in image_columns_of(options):
        if name not in table.image_columns:
            near = nearest(name, [*table.columns, *table.image_columns])
            raise VlmixError(f"{where}: `fields` has image: {name}, and {table.path.name} has no such column{near}")
    columns = [name for name in table.columns if options.form is None or _admits(options.form, name, single)]
    reading = recognise(columns, sample.columns, any(sample.images), single, f"{where}: {table.path}")
    if options.form is not None and reading.form != options.form:
        raise VlmixError(f"{where}: {table.path} holds rows of the form {reading.form}, the recipe says {options.form}")
    reading = Reading(reading.form, reading.columns, options.response_format)
    if options.ids not in ("auto", "row", "content", *table.columns):
        near = nearest(options.ids, table.columns)
        raise VlmixError(f"{where}: ids: there is no column {options.ids!r}{near}; or take row or content")
    taken = {*reading.columns.values(), *table.image_columns}
    for new, old in options.columns.items():
        if old not in table.columns:
            raise VlmixError(
                f"{where}: `columns` has {new}: {old}, there is no such column{nearest(old, table.columns)}"
            )
        if new in RESERVED:
            raise VlmixError(f"{where}: `columns`: {new!r} is the name of a column of every mixture; take another")
    renamed = {old: new for new, old in options.columns.items()}
    scalars = {
        renamed.get(name, name): name
        for name in table.columns
        if name in renamed or (name not in taken and _is_scalar(sample.columns[name]) and not name.startswith("__"))
    }
    if "source" in reading.columns and _is_scalar(sample.columns[reading.columns["source"]]):
        scalars.setdefault(renamed.get("source", ORIGIN), reading.columns["source"])
    lists = tuple(
        name
        for name in table.columns
        if options.where_rounds and name in options.where_rounds and name not in reading.columns.values()
    )
    ids = () if options.ids in ("auto", "row", "content") else (options.ids,)
    return _Layout(reading, table.image_columns, scalars, lists, ids)


def _admits(form: Form, column: str, fields: dict[str, str]) -> bool:
    """Whether a column may say what rows are, where the recipe names their form."""
    others = {"texts", "conversations", "messages", "conversation"} - {form}
    return column not in others or column in fields.values()


class _Rows:
    """Makes conversations of the rows of a batch."""

    def __init__(
        self,
        reject: Rejects,
        file: str,
        layout: _Layout,
        options: RowsOptions,
        container: int,
        hashes: list[str] | None,
        seen: Counter[str],
        scalars: list[dict[str, Scalar]],
    ) -> None:
        self.scalars = scalars
        self.reject, self.file, self.layout, self.options = reject, file, layout, options
        self.container, self.hashes, self.seen = container, hashes, seen

    def made(
        self, row: dict[str, Any], batch: Batch, index: int, parsed: Parsed, dropped: set[int]
    ) -> Conversation | None:
        """The conversation of a row; None if it is rejected."""
        place = f"{self.reject.source}/{self.file}/{batch.numbers[index]}"
        name, stem = self._names(row, index, place, parsed)
        items = batch.images[index] if parsed.images is None else parsed.images
        for problem in parsed.problems:
            if problem.round >= 0:
                self.reject(name, problem.code, problem.detail, round=problem.round)
        whole = next((problem for problem in parsed.problems if problem.round < 0), None)
        rounds = {number: qa for number, qa in parsed.rounds.items() if number not in dropped}
        for number in sorted(parsed.rounds.keys() & dropped):
            self.reject(name, "where_rounds", f"fails {self.options.where_rounds}", round=number)
        found, bad = self._images(items, stem)
        if whole is None and bad is None and not rounds:
            bad = "no_rounds", "no round is left"
        if whole is None and bad is None and parsed.image_at == "inline" and len(rounds) < len(parsed.rounds):
            bad = "no_rounds", "a round was dropped in a text that places its images"
        if whole is not None or bad is not None:
            code, detail = (whole.code, whole.detail) if whole else bad or ("", "")
            self.reject(name, code, detail, image=stem, record=row)
            return None
        inside = bool(items) and all(item == INSIDE for item in items)
        return Conversation(
            id=name,
            source=self.reject.source,
            rounds=tuple(rounds.values()),
            images=tuple(map(ImageRef, found)),
            image_at=parsed.image_at,
            extra=_json(tuple(parsed.extra.items())),
            place=Place(self.container, batch.places[index]) if inside else None,
            columns=self.scalars[index],
        )

    def _names(self, row: dict[str, Any], index: int, place: str, parsed: Parsed) -> tuple[str, str]:
        """(id of the row, path of its first image without extension)."""
        column = self.layout.reading.columns.get("id")
        name, stem = place, place
        if self.hashes is not None:
            name = f"{self.reject.source}/{xxh3_128_hexdigest(_said(parsed) + self.hashes[index].encode())[:20]}"
        elif self.options.ids not in ("row", "auto"):
            name = f"{self.reject.source}/{row[self.options.ids]}"
        elif self.options.ids == "auto" and column and row.get(column) not in (None, ""):
            name = f"{self.reject.source}/{row[column]}"
        if name != place:
            self.seen[name] += 1
            if (count := self.seen[name]) > 1:
                name = f"{name}~{count}"
            stem = name if self.hashes is not None else place
        return name, stem

    def _images(self, items: list[ImageItem], stem: str) -> tuple[list[str], tuple[str, str] | None]:
        """The paths of a row's images in the mixture, and why they cannot be used."""
        kinds = {item == INSIDE for item in items}
        if None in items:
            at = items.index(None)
            return [], ("bad_image", f"image {at + 1} of {len(items)} is null or not an image")
        if len(kinds) > 1:
            return [], ("bad_image", "some of its images are inside the row and some are paths")
        if kinds == {True}:
            return [f"{stem}_{number}.jpg" if number else f"{stem}.jpg" for number in range(len(items))], None
        paths = []
        for item in items:
            path = str(item)
            if "://" in path:
                return [], ("image_url", f"{path} is a URL; download the images and name their folder in `image_root`")
            root = self.options.image_root
            if root and path.startswith(f"{root.rstrip('/')}/"):
                path = path[len(root.rstrip("/")) + 1 :]
            while path.startswith("./"):
                path = path[2:]
            if path.startswith("/"):
                return [], ("unsafe_path", f"{path} is absolute; name the folder that it begins with in `image_root`")
            paths.append(f"{self.reject.source}/{path}")
        return paths, None


def _columns(layout: _Layout) -> list[str]:
    return list(dict.fromkeys([*layout.reading.needed, *layout.scalars.values(), *layout.lists, *layout.ids]))


def image_columns_of(options: RowsOptions) -> tuple[str, ...]:
    """The columns of images that the recipe names."""
    named = options.fields.get("image", ())
    return (named,) if isinstance(named, str) else tuple(named)


def _dropped(batch: Batch, layout: _Layout, options: RowsOptions, where: str) -> dict[int, set[int]]:
    """Row of the batch -> its rounds that `where_rounds` is false of. A round that has no rating stays."""
    if not options.where_rounds:
        return {}
    if not layout.lists:
        raise VlmixError(f"{where}: where_rounds: {options.where_rounds!r} names no column of lists")
    columns: dict[str, list[Any]] = {name: [] for name in layout.lists}
    owners: list[tuple[int, int]] = []
    for index in range(len(batch.places)):
        lists = [value if isinstance(value := batch.columns[name][index], list) else [] for name in layout.lists]
        longest = max(map(len, lists))
        owners += [(index, number) for number in range(longest)]
        for name, values in zip(layout.lists, lists):
            columns[name] += [*values, *[None] * (longest - len(values))]
    if not owners:
        return {}
    frame = pl.DataFrame(columns, strict=False)
    fails = matching(frame, f"NOT ({options.where_rounds})", f"{where}: where_rounds")
    dropped: dict[int, set[int]] = {}
    for at in np.flatnonzero(fails).tolist():
        dropped.setdefault(owners[at][0], set()).add(owners[at][1])
    return dropped


def _content(container: Any, batch: Batch) -> list[str]:
    """A hash of the images of each row of a batch."""
    found = {}
    inside = [place for place, items in zip(batch.places, batch.images) if items and items[0] == INSIDE]
    for part in pieces(container, inside) if inside else []:
        for place, images in zip(part, read_images(container, part)):
            found[place] = " ".join(xxh3_128_hexdigest(data) for data in images)
    return [found.get(place, repr(items)) for place, items in zip(batch.places, batch.images)]


def _check_same(first: Table, table: Table, layout: _Layout) -> None:
    """Raises VlmixError where files of a set have columns of other names."""
    needed = {name for role, name in layout.reading.columns.items() if role not in ("id", "source")}
    for name in sorted({*needed, *layout.image_columns}):
        if name not in (*table.columns, *table.image_columns):
            raise VlmixError(
                f"{table.path} has no column {name!r}, which {first.path.name} has; read them as two sources"
            )
    if types := [name for name in sorted(needed) if first.type_of(name) != table.type_of(name)]:
        what = f"{first.type_of(types[0])} in {first.path.name}, {table.type_of(types[0])} in {table.path}"
        raise VlmixError(f"column {types[0]!r} is {what}; read them as two sources")


def _short_names(paths: list[Path]) -> dict[Path, str]:
    """A name for each file of a set, without its extension: what follows the folder that they share."""
    folders = [path.absolute().parent for path in paths]
    shared = folders[0]
    while not all(folder.is_relative_to(shared) for folder in folders):
        shared = shared.parent
    return {path: path.absolute().relative_to(shared).with_suffix("").as_posix() for path in paths}


def _note_input(raw: RawFolder, table: Table) -> None:
    if digest := table.partial_sha256:
        raw.partly[table.path] = digest
    else:
        raw.opened.append(table.path)


def _image_roots(raw: RawFolder, options: RowsOptions, paths: list[Path]) -> list[Path]:
    folders = list(dict.fromkeys(path.absolute().parent for path in paths))
    if options.image_root is None:
        return folders
    places = [raw.folder / options.image_root, raw.raw / options.image_root, Path(options.image_root).expanduser()]
    for place in (*places, *(folder / options.image_root for folder in folders)):
        if place.is_dir():
            return [place.absolute(), *folders]
    raise VlmixError(f"image_root {options.image_root}: there is no such folder; looked at {_list(map(str, places))}")


def _expected(raw: RawFolder, options: RowsOptions, reject: Rejects, total: int, where: str) -> None:
    if options.expect is None:
        return
    expected = options.expect
    if isinstance(expected, str):
        known = known_rows()
        if expected not in known:
            raise VlmixError(f"{where}: expect: there is no known subset {expected!r}{nearest(expected, known)}")
        expected = known[expected]
    if total < expected:
        what = f"{total:,} rows of the {expected:,} that the origin has"
        raw.notes.append(f"{reject.source}: {what}; the copy is not whole")
        reject(reject.source, "fewer_rows", f"{what}; nothing of these was dropped here")


def _images_about(table: Table) -> str:
    items = [item for images in table.sample().images for item in images]
    if not items:
        return "none in the first rows"
    most = max(map(len, table.sample().images))
    how = "inside the rows" if any(item == INSIDE for item in items) else "files beside them"
    return f"{how} ({_list(table.image_columns)}), up to {most} in the first rows"


def _is_scalar(values: list[Any]) -> bool:
    return all(value is None or isinstance(value, str | int | float) for value in values)


def _number(type: type[int] | type[float]) -> Callable[[Any], Scalar]:
    return lambda value: None if value is None else type(value)


def _scalar(value: Any) -> Scalar:
    return value if isinstance(value, str | int | float) else None


def _scalars(batch: Batch, layout: _Layout, numbers: Mapping[str, Callable[[Any], Scalar]]) -> list[dict[str, Scalar]]:
    """What travels beside the conversations of a batch."""
    if not layout.scalars:
        return [{} for _ in batch.places]
    columns = [map(numbers.get(old, _scalar), batch.columns[old]) for old in layout.scalars.values()]
    return [dict(zip(layout.scalars, values)) for values in zip(*columns)]


def _said(parsed: Parsed) -> bytes:
    """The texts of a row as bytes that differ where the texts do."""
    return "\0".join(text for qa in parsed.rounds.values() for text in (qa.question, qa.answer)).encode(
        errors="replace"
    )


@lru_cache(maxsize=1000)
def _json(extra: tuple[tuple[str, Any], ...]) -> str:
    return json.dumps(dict(extra), ensure_ascii=False)


def _list(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


SOURCE = Source(
    name="rows",
    title="table of rows",
    homepage="",
    license="that of the rows",
    response_formats=("free", "short_answer", "choice", "caption"),
    files=(RawFile("*", "Parquet, Arrow, JSONL, JSON, CSV or tars of conversations, questions or captions (`path`)"),),
    read=read,
    options=RowsOptions,
    own=True,
)

__all__ = ["FORMS", "SOURCE", "RowsOptions", "image_columns_of", "layout_of", "read", "tables_of"]
