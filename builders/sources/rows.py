"""Any table of conversations: Parquet, Arrow, JSONL, JSON, CSV or WebDataset tars, in any of the forms of
`builders.forms`, images inside or beside it."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from msgspec import Meta, Struct, field
from xxhash import xxh3_64, xxh3_128_hexdigest

from vlmix.builders.forms import FORMS, Form, Parsed, Reading, parse, recognise
from vlmix.builders.known_rows import known_rows
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.dataset.schema import RESERVED
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.filters import matching
from vlmix.mixture.io.containers import Container, pieces, read_images
from vlmix.mixture.io.hub import HUB, download
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.io.tables import INSIDE, MEDIA, Batch, ImageItem, Table, find_tables, kind_of, number_columns
from vlmix.mixture.io.text_rows import loaded
from vlmix.mixture.record import Conversation, ImageRef, Place, ResponseFormat, Scalar

_OPTIONAL = ("id", "source", "choices", "correct")
_WORD = re.compile(r'"([^"]+)"|(\w+)')
_MOST_PARTS = 32
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
    without: Annotated[tuple[str, ...], Meta(description="columns that do not travel into samples.parquet")] = ()
    image_root: Annotated[str | None, Meta(description="folder of the images; by default that of the table")] = None
    image_prefix: Annotated[
        str | None, Meta(description="what the rows' paths begin with and the files' do not (/mnt/data/images/)")
    ] = None
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
    tables = [Table(path, named) for path in paths]
    layout = layout_of(tables[0], options, where, tables[1:])
    about = f"{layout.reading.form}, from {_list(layout.reading.columns.values())}"
    raw.about.append(f"{reject.source}: rows of the form {about}; images: {_images_about(tables[0])}")
    numbers = {name: _number(type) for name, type in number_columns(tables, list(layout.scalars.values())).items()}
    names = _short_names(paths)
    several = len({path.absolute().parent for path in paths}) > 1 and options.image_root is None
    seen: Counter[str] = Counter()
    raw.image_roots += _image_roots(raw, options, paths)
    part, parts = raw.part
    mine = slice(len(paths) * part // parts, len(paths) * (part + 1) // parts)
    for path, table in zip(paths[mine], tables[mine]):
        _check_same(tables[0], table, layout)
        _check_scalars(tables[0], table, layout, where)
        inside = any_image = False
        container = raw.container(table.container())
        blocks = raw.container(_block_container(table, layout)) if layout.reading.form == "messages" else -1
        fingerprint, pictured = xxh3_64(), xxh3_64()
        kept = {name: xxh3_64() for name in layout.scalars.values()}
        for batch in table.batches([name for name in _columns(layout) if name not in MEDIA or name in table.columns]):
            for number, code, detail, text in batch.broken:
                reject(f"{reject.source}/{names[path]}/{number}", code, f"{path.name}: {detail}", record=text)
            dropped, rated = _dropped(batch, layout, options, where)
            rows = [dict(zip(batch.columns, values)) for values in zip(*batch.columns.values())]
            parsed = [parse(row, len(items), layout.reading) for row, items in zip(rows, batch.images)]
            hashes = _content(raw.containers, container, blocks, batch, parsed) if options.ids == "content" else None
            scalars = _scalars(batch, layout, numbers)
            in_tar = table.kind == "tar"
            made = _Rows(
                reject, names[path], layout, options, (container, blocks), hashes, seen, scalars, several, in_tar
            )
            fingerprint.update(b"".join(map(_said, parsed)))
            for name, hashed in kept.items():
                hashed.update("".join(f"{value}\0" for value in batch.columns[name]).encode(errors="replace"))
            any_image = any_image or any(batch.images)
            inside = inside or any(INSIDE in items for items in batch.images)
            ids = batch.columns.get(layout.reading.columns.get("id", ""), [None] * len(rows))
            pictured.update("".join(f"{items}{id}" for items, id in zip(batch.images, ids)).encode(errors="replace"))
            for index, row in enumerate(rows):
                conversation = made.made(row, batch, index, parsed[index], dropped.get(index, set()), rated[index])
                if conversation is not None:
                    yield conversation
        raw.containers[container] = table.container()
        _note_input(raw, table)
        if options.ids != "content" and (table.rows > 1 or not inside):  # two images may share a question
            if not inside and any_image:  # its paths are below its own folder
                pictured.update(str(path.parent).encode())
            digest = b"".join(one.digest() for one in (fingerprint, pictured, *kept.values()))
            raw.fingerprint(path, f"{table.rows} {digest.hex()}")
    repeated = sum(count - 1 for count in seen.values() if count > 1)
    if repeated:
        example = next(name for name, count in seen.items() if count > 1)
        raw.notes.append(
            f"{reject.source}: {repeated:,} ids repeat ({example}); repeats are called ~2, ~3 and are kept"
        )
    if part == 0:
        total = sum(table.rows if parts == 1 else table.count() for table in tables)
        _expected(raw, options, reject, total, where)


def _check_scalars(first: Table, table: Table, layout: _Layout, where: str) -> None:
    """Raises VlmixError where a column that travels has types in two files that do not go together."""
    for name in layout.scalars.values():
        types = [one.type_of(name) for one in (first, table)]
        kinds = ["number" if re.match(r"u?int|float|double|half|decimal", type) else type for type in types]
        if all(types) and "null" not in types and kinds[0] != kinds[1]:
            raise VlmixError(
                f"{where}: column {name!r} is {types[0]} in {first.path.name}, {types[1]} in {table.path}; leave it "
                f"out with `without: [{name}]`, or read the files as two sources"
            )


def part_count(raw: RawFolder, options: RowsOptions) -> int:
    """Several Parquet files are read in parts, where the id of a row depends on no other row."""
    paths = tables_of(raw, options)
    if options.ids not in ("auto", "row") or len(paths) < 2 or any(kind_of(path) != "parquet" for path in paths):
        return 1
    tables = [Table(path, image_columns_of(options)) for path in paths]
    layout = layout_of(tables[0], options, str(paths[0]), tables[1:])
    return 1 if options.ids == "auto" and "id" in layout.reading.columns else min(len(paths), _MOST_PARTS)


def tables_of(raw: RawFolder, options: RowsOptions) -> list[Path]:
    """The files of `path`; of the hub, downloaded into its cache."""
    if options.path.startswith(HUB):
        return find_tables(str(download(options.path)), [])
    return find_tables(options.path, [raw.folder, raw.raw])


def layout_of(table: Table, options: RowsOptions, where: str, others: Sequence[Table] = ()) -> _Layout:
    """How the rows of a set are read, by its first file, and by `others` for the columns that only they have."""
    sample = table.sample()
    values = dict(sample.columns)
    for other in others:
        if new := [name for name in other.columns if name not in values and name not in table.image_columns]:
            more = other.sample().columns
            values |= {name: more[name] for name in new}
    names = list(values)
    fields = {role: column for role, column in options.fields.items() if role != "image"}
    for role, column in fields.items():
        if not isinstance(column, str):
            raise VlmixError(f"{where}: `fields` has several columns for {role}; only `image` may have several")
    single = {role: str(column) for role, column in fields.items()}
    for name in image_columns_of(options):
        if not any(name in one.image_columns for one in (table, *others)):
            near = nearest(name, [*table.columns, *table.image_columns])
            raise VlmixError(f"{where}: `fields` has image: {name}, and {table.path.name} has no such column{near}")
    place = where if where == str(table.path) else f"{where}: {table.path}"
    reading = recognise(names, values, any(sample.images), single, options.form, place)
    reading = Reading(reading.form, reading.columns, options.response_format)
    if options.ids not in ("auto", "row", "content", *names):
        near = nearest(options.ids, names)
        raise VlmixError(f"{where}: ids: there is no column {options.ids!r}{near}; or take row or content")
    ids = () if options.ids in ("auto", "row", "content") else (options.ids,)
    scalars = _travelling(options, values, {*reading.columns.values(), *table.image_columns}, where)
    if "source" in reading.columns and _is_scalar(values[reading.columns["source"]]):
        column = reading.columns["source"]
        if column not in (*options.columns.values(), *options.without):
            scalars.setdefault(ORIGIN, column)
    lists = _rated(options, values, reading, where)
    return _Layout(reading, table.image_columns, scalars, lists, ids)


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
        if any(value is not None for value in values[name]) and not any(map(_ratings, values[name])):
            raise VlmixError(f"{where}: where_rounds names {name!r}, which holds no lists; `where` takes such columns")
    return tuple(named)


class _Rows:
    """Makes conversations of the rows of a batch."""

    def __init__(
        self,
        reject: Rejects,
        file: str,
        layout: _Layout,
        options: RowsOptions,
        containers: tuple[int, int],
        hashes: list[str] | None,
        seen: Counter[str],
        scalars: list[dict[str, Scalar]],
        several: bool,
        in_tar: bool,
    ) -> None:
        self.in_tar = in_tar
        self.scalars, self.containers = scalars, containers
        self.folder = f"{file.rpartition('/')[0]}/" if several and "/" in file else ""
        self.reject, self.file, self.layout, self.options = reject, file, layout, options
        self.hashes, self.seen = hashes, seen

    def made(
        self, row: dict[str, Any], batch: Batch, index: int, parsed: Parsed, dropped: set[int], rated: dict[str, int]
    ) -> Conversation | None:
        """The conversation of a row; None if it is rejected. `rated`: how many ratings each of its lists has."""
        place = f"{self.reject.source}/{self.file}/{batch.numbers[index]}"
        name, stem = self._names(row, index, place, parsed)
        items = batch.images[index] if parsed.images is None else parsed.images
        rounds, whole = parsed.rounds, None
        if parsed.problems or dropped:
            for problem in parsed.problems:
                if problem.round >= 0:
                    self.reject(name, problem.code, problem.detail, round=problem.round)
            whole = next((problem for problem in parsed.problems if problem.round < 0), None)
            rounds = {number: qa for number, qa in parsed.rounds.items() if number not in dropped}
            for number in sorted(parsed.rounds.keys() & dropped):
                self.reject(name, "where_rounds", f"fails {self.options.where_rounds}", round=number)
        found, bad = self._images(items, stem)
        if parsed.images is not None and INSIDE in items and self.in_tar:
            bad = "bad_image", "a tar's images are read from its members, not from messages"
        count = max([-1, *parsed.rounds, *(problem.round for problem in parsed.problems)]) + 1 if rated else 0
        if bad is None and (lists := [name for name, length in rated.items() if length != count]):
            bad = "where_rounds", f"{lists[0]!r} has {rated[lists[0]]} values for {count} rounds"
        if whole is None and bad is None and not rounds:
            bad = "no_rounds", "no round is left"
        if whole is None and bad is None and parsed.image_at == "inline" and len(rounds) < len(parsed.rounds):
            bad = "no_rounds", "a round was dropped in a text that places its images"
        if whole is not None or bad is not None:
            code, detail = (whole.code, whole.detail) if whole else bad or ("", "")
            self.reject(name, code, detail, image=stem, record=_shown(row))
            return None
        inside = bool(items) and items.count(INSIDE) == len(items)
        container = self.containers[parsed.images is not None]
        return Conversation(
            id=name,
            source=self.reject.source,
            rounds=tuple(rounds.values()),
            images=tuple(map(ImageRef, found)),
            image_at=parsed.image_at,
            extra=_json(tuple(parsed.extra.items())),
            place=Place(container, batch.places[index]) if inside else None,
            columns=self.scalars[index],
        )

    def _names(self, row: dict[str, Any], index: int, place: str, parsed: Parsed) -> tuple[str, str]:
        """(id of the row, path of its first image without extension)."""
        column = self.layout.reading.columns.get("id")
        name, stem = place, place
        if self.hashes is not None:
            name = f"{self.reject.source}/{xxh3_128_hexdigest(_said(parsed) + self.hashes[index].encode())[:20]}"
        elif self.options.ids != "row":
            column = column if self.options.ids == "auto" else self.options.ids
            if column and row.get(column) not in (None, ""):
                name = f"{self.reject.source}/{row[column]}"
        if name != place:
            self.seen[name] += 1
            if self.seen[name] > 1:
                name = self._repeated(name)
            stem = name if self.hashes is not None else place
        return name, stem

    def _repeated(self, name: str) -> str:
        """`name` with the first of ~2, ~3 … that no other row has as its id so far."""
        count = self.seen[name]
        while f"{name}~{count}" in self.seen:
            count += 1
        self.seen[f"{name}~{count}"] += 1
        return f"{name}~{count}"

    def _images(self, items: list[ImageItem], stem: str) -> tuple[list[str], tuple[str, str] | None]:
        """The paths of a row's images in the mixture, and why they cannot be used."""
        if items.count(INSIDE) == len(items):
            return [f"{stem}_{number}.jpg" if number else f"{stem}.jpg" for number in range(len(items))], None
        if None in items:
            at = items.index(None)
            return [], ("bad_image", f"image {at + 1} of {len(items)} is null or not an image")
        if INSIDE in items:
            return [], ("bad_image", "some of its images are inside the row and some are paths")
        paths = []
        for item in items:
            path = str(item)
            if "://" in path:
                return [], ("image_url", f"{path} is a URL; download the images and name their folder in `image_root`")
            if (prefix := self.options.image_prefix) and path.startswith(prefix):
                path = path[len(prefix) :].lstrip("/")
            root = self.options.image_root
            if root and path.startswith(f"{root.rstrip('/')}/"):
                path = path[len(root.rstrip("/")) + 1 :]
            while path.startswith("./"):
                path = path[2:]
            if path.startswith("/"):
                what = "is absolute; say what it begins with on the machine of the rows in `image_prefix`"
                return [], ("unsafe_path", f"{path} {what}")
            paths.append(f"{self.reject.source}/{self.folder}{path}")
        return paths, None


def _columns(layout: _Layout) -> list[str]:
    return list(dict.fromkeys([*layout.reading.needed, *layout.scalars.values(), *layout.lists, *layout.ids]))


def image_columns_of(options: RowsOptions) -> tuple[str, ...]:
    """The columns of images that the recipe names."""
    named = options.fields.get("image", ())
    return (named,) if isinstance(named, str) else tuple(named)


def _ratings(value: Any) -> list[Any]:
    return loaded(value) or []


def _dropped(
    batch: Batch, layout: _Layout, options: RowsOptions, where: str
) -> tuple[dict[int, set[int]], list[dict[str, int]]]:
    """(row of the batch -> its rounds that `where_rounds` is false of, how many ratings the lists of each row have
    where they have any). A round that has no rating stays."""
    rated: list[dict[str, int]] = [{} for _ in batch.places]
    if not options.where_rounds:
        return {}, rated
    if not layout.lists:
        raise VlmixError(f"{where}: where_rounds: {options.where_rounds!r} names no column of lists")
    columns: dict[str, list[Any]] = {name: [] for name in layout.lists}
    owners: list[tuple[int, int]] = []
    for index in range(len(batch.places)):
        lists = [_ratings(batch.columns[name][index]) for name in layout.lists]
        rated[index] = {name: len(values) for name, values in zip(layout.lists, lists) if values}
        longest = max(map(len, lists))
        owners += [(index, number) for number in range(longest)]
        for name, values in zip(layout.lists, lists):
            columns[name] += [*values, *[None] * (longest - len(values))]
    if not owners:
        return {}, rated
    frame = pl.DataFrame(columns, strict=False)
    matching(frame, options.where_rounds, f"{where}: where_rounds")  # NOT makes a condition of what is none
    fails = matching(frame, f"NOT ({options.where_rounds})", f"{where}: where_rounds")
    dropped: dict[int, set[int]] = {}
    for at in np.flatnonzero(fails).tolist():
        dropped.setdefault(owners[at][0], set()).add(owners[at][1])
    return dropped, rated


def _block_container(table: Table, layout: _Layout) -> Container:
    return Container(str(table.path), table.kind, (layout.reading.columns["messages"],), blocks=True)


def _content(containers: list[Container], own: int, blocks: int, batch: Batch, parsed: list[Parsed]) -> list[str]:
    """A hash of the images of each row of a batch."""
    found = {}
    for container, in_blocks in ((own, False), (blocks, True)):
        inside = [
            place
            for place, items, one in zip(batch.places, batch.images, parsed)
            if (one.images is not None) == in_blocks and INSIDE in (one.images or items)
        ]
        for part in pieces(containers[container], inside) if inside else []:
            for place, images in zip(part, read_images(containers[container], part)):
                found[place] = " ".join(xxh3_128_hexdigest(data) for data in images)
    every = (items if one.images is None else one.images for items, one in zip(batch.images, parsed))
    return [found.get(place, repr(items)) for place, items in zip(batch.places, every)]


def _check_same(first: Table, table: Table, layout: _Layout) -> None:
    """Raises VlmixError where files of a set have columns of other names."""
    if not table.columns and not table.image_columns:  # no rows
        return
    needed = {name for role, name in layout.reading.columns.items() if role not in _OPTIONAL}
    # A file of text may have no image in any of its rows; one with types says so.
    images = layout.image_columns if table.kind in ("parquet", "arrow") else ()
    for name in sorted({*needed, *images}):
        if name not in (*table.columns, *table.image_columns):
            raise VlmixError(
                f"{table.path} has no column {name!r}, which {first.path.name} has; read them as two sources"
            )
    for name in sorted(needed):
        types = first.type_of(name), table.type_of(name)
        if types[0] != types[1] and not any("null" in type or not type for type in types):
            what = f"{types[0]} in {first.path.name}, {types[1]} in {table.path}"
            raise VlmixError(f"column {name!r} is {what}; read them as two sources")


def _short_names(paths: list[Path]) -> dict[Path, str]:
    """A name for each file of a set, without its extension: what follows the folder that they share."""
    folders = [path.absolute().parent for path in paths]
    shared = folders[0]
    while not all(folder.is_relative_to(shared) for folder in folders):
        shared = shared.parent
    names = {path: path.absolute().relative_to(shared).with_suffix("").as_posix() for path in paths}
    if len(set(names.values())) == len(paths):
        return names
    return {path: path.absolute().relative_to(shared).as_posix() for path in paths}


def _note_input(raw: RawFolder, table: Table) -> None:
    if digest := table.partial_sha256:
        raw.partly[table.path] = digest
    else:
        raw.opened.append(table.path)


def _image_roots(raw: RawFolder, options: RowsOptions, paths: list[Path]) -> list[Path]:
    folders = list(dict.fromkeys(path.absolute().parent for path in paths))
    if options.image_root is None:
        shared = folders[0]
        while not all(folder.is_relative_to(shared) for folder in folders):
            shared = shared.parent
        return [shared]
    places = [raw.folder / options.image_root, raw.raw / options.image_root, Path(options.image_root).expanduser()]
    for place in (*places, *(folder / options.image_root for folder in folders)):
        if place.is_dir():
            return [place.absolute(), *(folders if len(folders) == 1 else [])]
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


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a reject keeps it, without what is only read to be refused."""
    return {name: value for name, value in row.items() if name not in MEDIA}


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
    part_count=part_count,
)

__all__ = ["FORMS", "SOURCE", "RowsOptions", "image_columns_of", "layout_of", "read", "tables_of"]
