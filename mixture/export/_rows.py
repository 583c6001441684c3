"""What the forms made of rows share: samples with their texts, image tokens that can be counted on, content blocks and
loose images."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.mixture.dataset.groups import Stored, row_groups
from vlmix.mixture.dataset.manifest import SAMPLES_NAME
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import Index, columns_problem, source_columns
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import digests
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.storage import Location
from vlmix.mixture.keyed import hash_order
from vlmix.mixture.record import IMAGE_TOKEN, unsafe_path
from vlmix.mixture.render import tokens_in_place

_COLUMNS = [
    "id", "source", "width", "height", "num_images", "images", "num_words", "repeat", "natural_index", "shard",
    "json_offset", "json_size", "conversations", "response_formats", "boxes", "extra",
]  # fmt: skip
_SLICE = 1000  # rows that are Python objects at a time
_AHEAD = 128  # rows whose images are in memory
_DOUBTFUL = r"(?s)^[/\\]|^.:|[\\\x00]|(^|/)\.\.(/|$)"  # paths that `unsafe_path` may refuse
_ODD = re.compile(r"(^|/)\.?(/|$)")  # what `PurePosixPath` writes otherwise


def open_whole(folder: str | Path) -> Reader:
    """The mixture or view `folder`, which must have shards."""
    mixture = Reader.open(folder)
    if not mixture.root_manifest.shards:
        raise VlmixError(
            f"{folder} was built with --annotations-only: it has no images to export; llava-json writes its texts"
        )
    return mixture


@dataclass(frozen=True)
class Part:
    """The samples of one row group that are exported; a worker reads them by itself."""

    index: list[Location]
    """The files of the root's index, on this machine."""
    label: str
    """What errors call the mixture."""
    sources: frozenset[str]
    natural: bool
    group: int
    first: int
    """Row of the group's first sample in the root's index."""
    rows: NDArray[np.int32]
    """[n] inside the row group."""
    repeats: int
    """Rows that they make."""

    def table(self) -> pa.Table:
        """Rows of samples.parquet, the columns of sources included, with their number in the root as `root_row`: in the
        natural order where the recipe's is, else in mixture order. Raises VlmixError for what no form could write."""
        index = Index(self.index)
        columns = _COLUMNS + [field.name for field in source_columns(index.schema_arrow)]
        table = index.read_row_group(self.group, columns)
        table = table.append_column("root_row", pa.array(np.arange(self.first, self.first + table.num_rows)))
        if not np.array_equal(self.rows, np.arange(table.num_rows)):
            table = table.take(self.rows)
        if problem := columns_problem(table):
            raise VlmixError(f"{self.label}: {SAMPLES_NAME}: {problem}; `vlmix verify` lists all damage")
        # In the natural order only the first images of a shard were moved, so sorting each shard restores it.
        table = table.sort_by("natural_index") if self.natural else table
        if not _sound(table, self.sources):
            for row in plain(table):
                if problem := _damage(row, self.sources):
                    what = f"{self.label}: {SAMPLES_NAME}: {row['id']} {problem}"
                    raise VlmixError(f"{what}; `vlmix verify` lists all damage")
        return table

    def has(self, lists: str) -> bool:
        """Whether a list of this column, in any row of the group, is not empty."""
        column = Index(self.index).read_row_group(self.group, [lists])[lists]
        return bool(pc.any(pc.greater(pc.list_value_length(column), 0)).as_py())


def parts(mixture: Reader) -> Iterator[Part]:
    """The samples, in order."""
    index, sources = mixture.index_here, frozenset(mixture.manifest.sources)
    natural = mixture.manifest.recipe["order"] == "natural"
    repeats = mixture.column("repeat").to_numpy()
    for group in row_groups(mixture, Index(index).group_rows):
        rows, times = group.rows.astype(np.int32), int(repeats[group.positions].sum())
        yield Part(index, mixture.folder.name, sources, natural, group.number, group.first, rows, times)


def rows(mixture: Reader, progress: Progress) -> Iterator[dict[str, Any]]:
    """The samples as rows of samples.parquet, the columns of sources included, and their `root_row`, once each: in the
    natural order where the recipe's is, else in mixture order. One row group is in memory at a time."""
    count, total = 0, len(mixture)
    for part in parts(mixture):
        progress("exporting", count, total)
        yield from plain(part.table())
        count += len(part.rows)
    progress("exporting", total, total)


def plain(table: pa.Table, pictures: Stored | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table, few at a time; `pictures` are read as far ahead."""
    for batch in table.to_batches(max_chunksize=_SLICE if pictures is None else _AHEAD):
        some = batch.to_pylist()
        if pictures is not None:
            pictures.read_ahead(some)
        yield from some


def _sound(table: pa.Table, sources: Collection[str]) -> bool:
    """Whether `_damage` certainly finds nothing in the rows of a table: the same, in columns."""
    said, boxes, images = (whole_column(table[name]) for name in ("conversations", "boxes", "images"))
    turns, shown = (pc.list_value_length(lists).to_numpy() for lists in (said, images))
    placed, pictures = boxes.flatten(), images.flatten()
    fields = [each.field(i) for each in (said.flatten(), placed, pictures) for i in range(each.type.num_fields)]
    if any(values.null_count for values in (said.flatten(), placed, pictures, *fields)):
        return False
    owners = np.repeat(np.arange(table.num_rows), pc.list_value_length(boxes).to_numpy())
    rounds, numbers = placed.field("round").to_numpy(), placed.field("image").to_numpy()
    paths = pictures.field("path")
    return bool(
        (turns > 0).all()
        and not (turns % 2).any()
        and (2 * rounds < turns[owners]).all()
        and (numbers >= 0).all()
        and (numbers < shown[owners]).all()
        and pc.all(pc.is_in(table["source"], value_set=pa.array(sources, pa.string()))).as_py()
        and not pc.any(pc.or_(pc.equal(paths, ""), pc.match_substring_regex(paths, _DOUBTFUL))).as_py()
    )


def whole_column(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; of a row group it mostly is one."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _damage(row: dict[str, Any], sources: Collection[str]) -> str | None:
    """What in a row no form could write; the columns by themselves are sound."""
    turns = row["conversations"]
    if not turns or len(turns) % 2 or any(turn is None or None in turn.values() for turn in turns):
        return "has turns without text, or not in pairs"
    if any(
        box is None
        or None in box.values()
        or 2 * box["round"] >= len(turns)
        or not 0 <= box["image"] < len(row["images"])
        for box in row["boxes"]
    ):
        return "has a box of no round"
    if row["source"] not in sources:
        return f"is of the unknown source {row['source']!r}"
    for image in row["images"]:
        if image is None or None in image.values() or not image["path"] or unsafe_path(image["path"]):
            return "has an image without a safe path or a place"
    return None


def row_count(mixture: Reader) -> int:
    """Samples per epoch, repeats counted."""
    return int(pc.sum(mixture.column("repeat")).as_py())


def own_columns(mixture: Reader, taken: Collection[str]) -> dict[str, pa.DataType]:
    """The columns that sources gave the samples, with their types, for a form that has the columns `taken` itself."""
    fields = source_columns(mixture.root_index().schema_arrow)
    for field in fields:
        if field.name in taken:
            raise VlmixError(
                f"{mixture.folder.name}: a source's column is called {field.name!r}, as one of this export's own; give "
                f"it another name in the recipe, `columns: {{NEW: {field.name}}}`, and build again"
            )
    return {field.name: field.type for field in fields}


def texts(row: dict[str, Any]) -> list[str]:
    """The turns' texts with exactly one image token for each image.

    Peers pair tokens with images by counting them, and stop or train on the wrong picture where the counts differ.
    Tokens that are missing are put first; a further one, such as a tag in somebody's XML, is spelled `< image >`.
    """
    left = len(row["images"])
    values = [turn["value"] for turn in row["conversations"]]
    if sum(value.count(IMAGE_TOKEN) for value in values) == left:
        return values
    values = tokens_in_place(values, left)
    for number, value in enumerate(values):
        kept, *others = value.split(IMAGE_TOKEN)
        for other in others:
            kept += (IMAGE_TOKEN if left > 0 else spaced(IMAGE_TOKEN)) + other
            left -= 1
        values[number] = kept
    return values


def placed(row: dict[str, Any]) -> list[str]:
    """The turns' texts with at least one image token for each image: those that are missing are put first."""
    return tokens_in_place([turn["value"] for turn in row["conversations"]], len(row["images"]))


def placed_turns(row: dict[str, Any]) -> list[dict[str, str]]:
    """Turns in LLaVA's form, with `placed`: all that is in the texts stays."""
    return [{"from": turn["from"], "value": text} for turn, text in zip(row["conversations"], placed(row))]


def spaced(token: str) -> str:
    """A special token that stands for itself, spelled so that nobody takes it for one."""
    return f"{token[0]} {token[1:-1]} {token[-1]}"


def conversations(row: dict[str, Any]) -> list[dict[str, str]]:
    """Turns in LLaVA's form, with `texts`."""
    return [{"from": turn["from"], "value": text} for turn, text in zip(row["conversations"], texts(row))]


def messages(contents: Sequence[Any]) -> list[dict[str, Any]]:
    """Contents, of questions and answers alternating, as OpenAI's messages."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def leading_images(text: str) -> tuple[int, str]:
    """How many image tokens lead a text, and what follows them. A line break behind such a token is part of it."""
    count = 0
    while text.startswith(IMAGE_TOKEN):
        text = text.removeprefix(IMAGE_TOKEN).removeprefix("\n")
        count += 1
    return count, text


def blocks(text: str) -> list[dict[str, str]]:
    """A text as content blocks: `{type: image}` for each of its image tokens, `{type: text, text}` for what is between
    them, which may be nothing. The line breaks of the tokens that lead go with them."""
    count, rest = leading_images(text)
    found: list[dict[str, str]] = [{"type": "image"}] * count
    for number, part in enumerate(rest.split(IMAGE_TOKEN)):
        found += [{"type": "image"}] * (number > 0)
        found += [{"type": "text", "text": part}] * bool(part)
    return found or [{"type": "text", "text": ""}]


class LooseImages:
    """Stored images as files below `folder`, under the paths that the samples name, each written once, whatever the
    number of processes.

    Two samples may name one path and yet have different bytes (an EXIF turn that only one annotation asked for); such
    images take a name with their hash.
    """

    def __init__(self, mixture: Reader, folder: Path, *, shared: bool = False) -> None:
        self.folder, self.pictures = str(folder), Stored(mixture)
        self.shared = shared
        """Whether the folder may be in use already: then every file appears whole."""
        self._unlike = unlike_paths(mixture)

    def add(self, row: dict[str, Any]) -> list[str]:
        """The sample's images as paths below the folder, written if need be."""
        names, jpegs = [], None
        for number, image in enumerate(row["images"]):
            if problem := unsafe_path(image["path"]):
                raise VlmixError(f"sample {row['id']}: {problem}")
            name = str(PurePosixPath(image["path"])) if _ODD.search(image["path"]) else image["path"]
            if self._unlike and _digest(image["path"]) in self._unlike:
                path = PurePosixPath(name)
                name = str(path.with_name(f"{path.stem}.{image['xxh3'][:8]}{path.suffix}"))
            names.append(name)
            with self._new(f"{self.folder}/{name}") as file:
                if file is not None:
                    jpegs = jpegs or self.pictures.of(row)
                    file.write(jpegs[number])
        return names

    @contextmanager
    def _new(self, path: str) -> Iterator[BinaryIO | None]:
        """The file to fill, None where it is there already."""
        if self.shared:
            with nullcontext() if Path(path).exists() else atomic_write(Path(path)) as file:
                yield file
            return
        try:
            descriptor = _create(path)
        except FileExistsError:
            yield None
            return
        with os.fdopen(descriptor, "wb") as file:
            yield file


def _create(path: str) -> int:
    """A descriptor of a file that was not there: one call to look and to make it, whichever process is first."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)


def unlike_paths(mixture: Reader) -> frozenset[bytes]:
    """The paths under which samples have different images, as `_digest` writes them. Holds 24 bytes for each image."""
    paths, contents = [np.empty(0, "S16")], [np.empty(0, np.uint64)]
    index = mixture.root_index()
    for group in row_groups(mixture, index.group_rows):
        names = [f"images.list.element.{name}" for name in ("path", "xxh3")]
        images = whole_column(index.read_row_group(group.number, names)["images"].take(group.rows)).flatten()
        if images.null_count or images.field("path").null_count or images.field("xxh3").null_count:
            what = f"{mixture.folder.name}: {SAMPLES_NAME}: an image has no path or xxh3"
            raise VlmixError(f"{what}; `vlmix verify` lists all damage")
        paths.append(digests(images.field("path")))
        contents.append(hash_order(images.field("xxh3"), 0))
    path, content = np.concatenate(paths), np.concatenate(contents)
    del paths, contents
    order = np.argsort(path)
    path, content = path[order], content[order]
    return frozenset(path[1:][(path[1:] == path[:-1]) & (content[1:] != content[:-1])].tolist())


def _digest(path: str) -> bytes:
    return bytes(digests(pa.array([path])).tolist()[0])
