"""Any table of conversations: Parquet, Arrow, JSONL, JSON, CSV or WebDataset tars, in any of the forms of
`builders.rows.forms`, images inside or beside it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from msgspec import Struct
from xxhash import xxh3_64, xxh3_128_hexdigest

from vlmix.builders.rows.forms import parse
from vlmix.builders.rows.known_rows import known_rows
from vlmix.builders.rows.layout import Layout, layout_of, ratings
from vlmix.builders.rows.options import RowsOptions
from vlmix.builders.rows.parsed import Parsed
from vlmix.mixture.build.source import RawFolder, Rejects, Source
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.filters import matching
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.io.rows.containers import Container, pieces, read_images
from vlmix.mixture.io.rows.files import kind_of
from vlmix.mixture.io.rows.images import INSIDE, MEDIA, ImageItem
from vlmix.mixture.io.rows.table import Batch, Table
from vlmix.mixture.io.rows.text import number_columns
from vlmix.mixture.io.storage import is_folder, is_url
from vlmix.mixture.record import Conversation, ImageRef, Place, Round, Scalar

_MOST_PARTS = 32
Problem = tuple[str, str] | None
"""The code and the detail of a reject."""


class _Part(Struct, frozen=True):
    """Files that are read together: all of a set, or some of its Parquet files."""

    files: list[Path]
    names: list[str]
    """What each is called in ids and images."""
    image_roots: list[Path | str]
    below: bool
    """Whether images beside the rows are below the folder of each file, as there are several."""
    layout: Layout | None
    """None: to be found out by looking at the files."""
    rows: int | None
    """Of the whole set, where that is known and this is its first part."""


def split(raw: RawFolder, options: RowsOptions, name: str) -> list[_Part]:
    """Several Parquet files make several parts, where the id of a row depends on no other row."""
    files = options.files(raw)
    several = len({path.absolute().parent for path in files}) > 1 and options.image_root is None
    whole = _Part(files, _short_names(files), _image_roots(raw, options, files), several, None, None)
    if options.ids not in ("auto", "row") or len(files) < 2 or any(kind_of(path) != "parquet" for path in files):
        return [whole]
    tables = [Table(path, options.image_columns) for path in files]
    layout = layout_of(tables, options, f"sources.{name}")
    count = 1 if "id" in layout.reading.columns else min(len(files), _MOST_PARTS)
    rows = sum(table.count() for table in tables)
    edges = [len(files) * part // count for part in range(count + 1)]
    return [
        _Part(whole.files[a:b], whole.names[a:b], whole.image_roots, several, layout, None if a else rows)
        for a, b in zip(edges, edges[1:])  # noqa: RUF007
    ]


def read(raw: RawFolder, options: RowsOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per row, in the order of the files' names and rows."""
    where = f"sources.{reject.source}"
    part: _Part = raw.part or _whole(raw, options, reject.source)
    tables = [Table(path, options.image_columns) for path in part.files]
    layout = part.layout or layout_of(tables, options, where)
    raw.about.append(f"{reject.source}: {layout.about}")
    raw.image_roots += part.image_roots
    csv = [table.path for table in tables if table.kind == "csv"]
    numbers = number_columns(csv, layout.scalars.values() if csv else ())
    seen: Counter[str] = Counter()
    for table, name in zip(tables, part.names):
        layout.check(table, where)
        if table.kind in ("jsonl", "json", "csv"):
            raw.note(table.path)
        yield from _File(raw, options, reject, layout, numbers, table, name, part.below, seen).conversations(where)
        if table.partial_sha256:
            raw.partly[table.path] = table.partial_sha256
    if repeated := sum(count - 1 for count in seen.values() if count > 1):
        example = next(name for name, count in seen.items() if count > 1)
        raw.notes.append(
            f"{reject.source}: {repeated:,} ids repeat ({example}); repeats are called ~2, ~3 and are kept"
        )
    if part.layout is None or part.rows is not None:
        total = sum(table.rows for table in tables) if part.rows is None else part.rows
        _expected(raw, options, reject, total, where)


def _whole(raw: RawFolder, options: RowsOptions, name: str) -> _Part:
    """All files as one part."""
    first, *others = split(raw, options, name)
    files = [path for part in (first, *others) for path in part.files]
    names = [name for part in (first, *others) for name in part.names]
    return _Part(files, names, first.image_roots, first.below, first.layout, first.rows)


class _File:
    """Makes conversations of the rows of one file."""

    def __init__(
        self,
        raw: RawFolder,
        options: RowsOptions,
        reject: Rejects,
        layout: Layout,
        numbers: dict[str, type[int] | type[float]],
        table: Table,
        name: str,
        below: bool,
        seen: Counter[str],
    ) -> None:
        self.raw, self.options, self.reject, self.layout, self.table = raw, options, reject, layout, table
        self.name, self.seen = name, seen
        self.folder = f"{name.rpartition('/')[0]}/" if below and "/" in name else ""
        self.scalars: dict[str, tuple[str, Callable[[Any], Scalar]]] = {
            new: (old, _number(numbers[old]) if old in numbers else _scalar) for new, old in layout.scalars.items()
        }
        """New name -> column, and what makes its values."""
        own = table.container()
        messages = layout.reading.columns.get("messages")
        blocks = Container(own.path, own.kind, (messages,), blocks=True) if messages else own
        self.containers = [(raw.container(one), one) for one in (own, blocks)]
        """Of the images of the row, and of those in the blocks of its messages: number and container."""

    def conversations(self, where: str) -> Iterator[Conversation]:
        """Those of all rows. Raises VlmixError if another file has the same rows."""
        layout, table = self.layout, self.table
        same = _SameRows(list(layout.scalars.values()), layout.reading.columns.get("id", ""))
        names = [name for name in layout.columns if name not in MEDIA or name in table.columns]
        for batch in table.batches(names):
            for number, broken in batch.broken:
                detail = f"{table.path.name}: {broken.detail}"
                self.reject(f"{self._stem(number)}", broken.code, detail, record=broken.text)
            dropped, rated = _dropped(batch, layout, self.options, where)
            rows = [dict(zip(batch.columns, values)) for values in zip(*batch.columns.values())]
            parsed = [parse(row, len(items), layout.reading) for row, items in zip(rows, batch.images)]
            same.add(batch, parsed)
            hashes: Sequence[str] = ()
            if self.options.ids == "content":
                hashes = _content(self.containers[0][1], self.containers[1][1], batch, parsed)
            scalars = self._scalars(batch)
            for index, row in enumerate(rows):
                stem = self._stem(batch.numbers[index])
                name = self._id(row, stem, parsed[index], hashes[index] if hashes else None)
                stem = name if hashes else stem
                in_blocks = parsed[index].images
                items = batch.images[index] if in_blocks is None else in_blocks
                rounds, problem = self._rounds(name, parsed[index], dropped.get(index, set()), rated[index])
                paths, unusable = self._images(items, stem, parsed[index])
                if problem := problem or unusable:
                    shown = {column: value for column, value in row.items() if column not in MEDIA}
                    self.reject(name, *problem, image=stem, record=shown)
                    continue
                container = self.containers[in_blocks is not None][0]
                yield Conversation(
                    id=name,
                    source=self.reject.source,
                    rounds=rounds,
                    images=tuple(map(ImageRef, paths)),
                    image_at=parsed[index].image_at,
                    extra=_json(tuple(parsed[index].extra.items())),
                    place=Place(container, batch.places[index]) if INSIDE in items else None,
                    columns=scalars[index],
                )
        if self.options.ids != "content" and (table.rows > 1 or not same.inside):  # two images may share a question
            self.raw.fingerprint(table.path, f"{table.rows} {same.digest(table.path.parent)}")

    def _stem(self, number: int) -> str:
        """The name of a row by its place, and the path of its first image without extension."""
        return f"{self.reject.source}/{self.name}/{number}"

    def _id(self, row: dict[str, Any], stem: str, parsed: Parsed, content: str | None) -> str:
        """The id of a row; one that another row has, too, with the first of ~2, ~3 … that is free."""
        column = self.layout.reading.columns.get("id")
        if content is not None:
            name = f"{self.reject.source}/{xxh3_128_hexdigest(_said(parsed) + content.encode())[:20]}"
        elif column and row.get(column) not in (None, ""):
            name = f"{self.reject.source}/{row[column]}"
        else:
            return stem
        self.seen[name] += 1
        if (count := self.seen[name]) > 1:
            while f"{name}~{count}" in self.seen:
                count += 1
            name = f"{name}~{count}"
            self.seen[name] += 1
        return name

    def _rounds(
        self, name: str, parsed: Parsed, dropped: set[int], rated: dict[str, int]
    ) -> tuple[tuple[Round, ...], Problem]:
        """The rounds of a row that stay, and why the whole row does not. `rated`: how many ratings each of its lists
        has."""
        rounds = parsed.rounds
        if parsed.problems or dropped:
            for problem in parsed.problems:
                if problem.round >= 0:
                    self.reject(name, problem.code, problem.detail, round=problem.round)
            for problem in parsed.problems:
                if problem.round < 0:
                    return (), (problem.code, problem.detail)
            rounds = {number: qa for number, qa in parsed.rounds.items() if number not in dropped}
            for number in sorted(parsed.rounds.keys() & dropped):
                self.reject(name, "where_rounds", f"fails {self.options.where_rounds}", round=number)
        count = max([-1, *parsed.rounds, *(problem.round for problem in parsed.problems)]) + 1 if rated else 0
        if lists := [column for column, length in rated.items() if length != count]:
            return (), ("where_rounds", f"{lists[0]!r} has {rated[lists[0]]} values for {count} rounds")
        if not rounds:
            return (), ("no_rounds", "no round is left")
        if parsed.image_at == "inline" and len(rounds) < len(parsed.rounds):
            return (), ("no_rounds", "a round was dropped in a text that places its images")
        return tuple(rounds.values()), None

    def _images(self, items: list[ImageItem], stem: str, parsed: Parsed) -> tuple[list[str], Problem]:
        """The paths of a row's images in the mixture, and why they cannot be used."""
        if parsed.images is not None and INSIDE in items and self.table.kind == "tar":
            return [], ("bad_image", "a tar's images are read from its members, not from messages")
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
            if prefix := self.options.image_prefix:
                path = path.removeprefix(prefix).lstrip("/") if path.startswith(prefix) else path
            if root := self.options.image_root:
                path = path.removeprefix(f"{root.rstrip('/')}/")
            while path.startswith("./"):
                path = path[2:]
            if path.startswith("/"):
                what = "is absolute; say what it begins with on the machine of the rows in `image_prefix`"
                return [], ("unsafe_path", f"{path} {what}")
            paths.append(f"{self.reject.source}/{self.folder}{path}")
        return paths, None

    def _scalars(self, batch: Batch) -> list[dict[str, Scalar]]:
        """What travels beside the conversations of a batch."""
        if not self.scalars:
            return [{} for _ in batch.places]
        columns = [map(made, batch.columns[old]) for old, made in self.scalars.values()]
        return [dict(zip(self.scalars, values)) for values in zip(*columns)]


class _SameRows:
    """Recognises files of the same rows, whatever their row groups and compression."""

    def __init__(self, scalars: list[str], id: str) -> None:
        self.inside = self._beside = False
        """Whether images are inside the rows, and beside them."""
        self._said, self._images = xxh3_64(), xxh3_64()
        self._columns = {name: xxh3_64() for name in (*scalars, id) if name}

    def add(self, batch: Batch, parsed: list[Parsed]) -> None:
        self._said.update(b"".join(map(_said, parsed)))
        self._images.update("".join(map(str, batch.images)).encode(errors="replace"))
        for name, hashed in self._columns.items():
            hashed.update("".join(f"{value}\0" for value in batch.columns[name]).encode(errors="replace"))
        self.inside = self.inside or any(INSIDE in items for items in batch.images)
        self._beside = self._beside or any(items and INSIDE not in items for items in batch.images)

    def digest(self, folder: Path) -> str:
        """The same for the same rows; of those with images beside them in the same `folder`."""
        whole = xxh3_64(str(folder).encode() if self._beside else b"")
        for one in (self._said, self._images, *self._columns.values()):
            whole.update(one.digest())
        return whole.hexdigest()


def _dropped(
    batch: Batch, layout: Layout, options: RowsOptions, where: str
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
        lists = [ratings(batch.columns[name][index]) for name in layout.lists]
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


def _content(own: Container, blocks: Container, batch: Batch, parsed: list[Parsed]) -> list[str]:
    """A hash of the images of each row of a batch."""
    found = {}
    for container, in_blocks in ((own, False), (blocks, True)):
        inside = [
            place
            for place, items, one in zip(batch.places, batch.images, parsed)
            if (one.images is not None) == in_blocks and INSIDE in (one.images or items)
        ]
        for part in pieces(container, inside) if inside else []:
            for place, images in zip(part, read_images(container, part)):
                found[place] = " ".join(xxh3_128_hexdigest(data) for data in images)
    every = (items if one.images is None else one.images for items, one in zip(batch.images, parsed))
    return [found.get(place, repr(items)) for place, items in zip(batch.places, every)]


def _short_names(paths: list[Path]) -> list[str]:
    """A name for each file of a set, without its extension: what follows the folder that they share."""
    shared = _shared_folder(paths)
    whole = [path.absolute().relative_to(shared) for path in paths]
    bare = [path.with_suffix("").as_posix() for path in whole]
    return bare if len(set(bare)) == len(bare) else [path.as_posix() for path in whole]


def _shared_folder(paths: list[Path]) -> Path:
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def _image_roots(raw: RawFolder, options: RowsOptions, paths: list[Path]) -> list[Path | str]:
    if (root := options.image_root) is None:
        return [raw.where(_shared_folder(paths))]
    folders = list(dict.fromkeys(path.absolute().parent for path in paths))
    places: list[Path | str] = [root.rstrip("/")]
    if not is_url(root):
        places = [raw.where(raw.folder / root), raw.where(raw.raw / root), Path(root).expanduser()]
    for each in (*places, *(raw.where(folder / root) for folder in folders if not is_url(root))):
        if is_folder(each):
            return [
                each if is_url(each) else Path(each).absolute(),
                *map(raw.where, folders if len(folders) == 1 else []),
            ]
    raise VlmixError(
        f"image_root {options.image_root}: there is no such folder; looked at {', '.join(map(str, places))}"
    )


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


def _number(type: type[int] | type[float]) -> Callable[[Any], Scalar]:
    return lambda value: None if value is None else type(value)


def _scalar(value: Any) -> Scalar:
    return value if isinstance(value, str | int | float) else None


def _said(parsed: Parsed) -> bytes:
    """The texts of a row as bytes that differ where the texts do."""
    texts = [text for qa in parsed.rounds.values() for text in (qa.question, qa.answer, *qa.choices)]
    return "\0".join((*texts, "")).encode(errors="replace")


@lru_cache(maxsize=1000)
def _json(extra: tuple[tuple[str, Any], ...]) -> str:
    return json.dumps(dict(extra), ensure_ascii=False)


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
    split=split,
)
