"""What the forms made of rows share: samples with their texts, image tokens that can be counted on, content blocks,
loose images, Parquet files and files of one source each."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmix.mixture.dataset.manifest import SAMPLES_NAME
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import columns_problem, open_index, source_columns
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write, write_parquet
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.record import IMAGE_TOKEN, unsafe_path
from vlmix.mixture.render import tokens_in_place

_COLUMNS = [
    "id", "source", "image", "width", "height", "images", "num_words", "repeat", "natural_index", "conversations",
    "response_formats", "boxes", "extra",
]  # fmt: skip


def open_whole(folder: str | Path) -> Reader:
    """The mixture or view `folder`, which must have shards."""
    mixture = Reader.open(folder)
    if not mixture.root_manifest.shards:
        raise VlmixError(
            f"{folder} was built with --annotations-only: it has no images to export; llava-json writes its texts"
        )
    return mixture


def rows(mixture: Reader, progress: Progress) -> Iterator[dict[str, Any]]:
    """The samples as rows of samples.parquet, the columns of sources included, with their `position`, once each: in the
    natural order where the recipe's is, else in mixture order. One row group is in memory at a time."""
    natural = mixture.manifest.recipe["order"] == "natural"
    wanted = mixture.rows
    file = open_index(mixture.local_root / SAMPLES_NAME)
    columns = _COLUMNS + [field.name for field in source_columns(file.schema_arrow)]
    start, count, total = 0, 0, len(mixture)
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        positions = np.flatnonzero((wanted >= start) & (wanted < start + size))
        if len(positions):
            table = file.read_row_group(group, columns=columns).take(wanted[positions] - start)
            if problem := columns_problem(table):
                raise VlmixError(f"{mixture.folder.name}: {SAMPLES_NAME}: {problem}; `vlmix verify` lists all damage")
            table = table.append_column("position", pa.array(positions))
            # In the natural order only the first images of a shard were moved, so sorting each shard restores it.
            for row in (table.sort_by("natural_index") if natural else table).to_pylist():
                if count % 1000 == 0:
                    progress("exporting", count, total)
                count += 1
                if problem := _damage(row, mixture):
                    what = f"{mixture.folder.name}: {SAMPLES_NAME}: {row['id']} {problem}"
                    raise VlmixError(f"{what}; `vlmix verify` lists all damage")
                yield row
        start += size
    progress("exporting", total, total)


def _damage(row: dict[str, Any], mixture: Reader) -> str | None:
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
    if row["source"] not in mixture.manifest.sources:
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
    fields = source_columns(open_index(mixture.local_root / SAMPLES_NAME).schema_arrow)
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
    values = placed(row)
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
    """Stored images as files below `folder`, under the paths that the samples name, each written once.

    Two samples may name one path and yet have different bytes (an EXIF turn that only one annotation asked for); such
    images take a name with their hash.
    """

    def __init__(self, mixture: Reader, folder: Path, *, shared: bool = False) -> None:
        self.mixture, self.folder = mixture, folder
        self.shared = shared
        """Whether the folder may be in use already: then every file appears whole."""
        _, (paths, hashes) = mixture.image_fields("path", "xxh3")
        table = pa.table({"image": paths, "hash": hashes})
        counts = table.group_by("image").aggregate([("hash", "count_distinct")])
        self._unlike = set(counts.filter(pc.greater(counts["hash_count_distinct"], 1))["image"].to_pylist())

    def add(self, row: dict[str, Any]) -> list[str]:
        """The sample's images as paths below the folder, written if need be."""
        names, jpegs = [], None
        for number, image in enumerate(row["images"]):
            if problem := unsafe_path(image["path"]):
                raise VlmixError(f"sample {row['id']}: {problem}")
            name = PurePosixPath(image["path"])
            if image["path"] in self._unlike:
                name = name.with_name(f"{name.stem}.{image['xxh3'][:8]}{name.suffix}")
            path = self.folder / name
            if not path.exists():
                jpegs = jpegs or self.mixture.raw(row["position"]).jpegs
                if self.shared:
                    with atomic_write(path) as file:
                        file.write(jpegs[number])
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(jpegs[number])
            names.append(str(name))
        return names


def write_tables(
    folder: Path,
    mixture: Reader,
    progress: Progress,
    converted: Callable[[dict[str, Any]], dict[str, Any]],
    schema: pa.Schema,
    per_file: int | None = None,
    per_group: int = 100,
) -> int:
    """The samples, `converted` and as often as their `repeat` says, as `train-00000-of-00009.parquet` …, by default of
    `samples_per_shard` rows, in row groups that a reader can hold with their images; returns the number of rows."""
    total, per_file = row_count(mixture), per_file or int(mixture.manifest.recipe["samples_per_shard"])
    files = max(-(-total // per_file), 1)
    repeated = (new for row in rows(mixture, progress) for new in [converted(row)] * row["repeat"])

    def batches() -> Iterator[pa.RecordBatch]:
        of_file = islice(repeated, per_file)
        while group := list(islice(of_file, per_group)):
            yield pa.RecordBatch.from_pylist(group, schema)

    for number in range(files):
        write_parquet(folder / f"train-{number:05d}-of-{files:05d}.parquet", batches(), schema)
    return total


def write_sources(
    folder: Path,
    mixture: Reader,
    progress: Progress,
    suffix: str,
    text_of: Callable[[dict[str, Any], bool], str],
    end: str = "",
) -> dict[str, str]:
    """A file for each source that has samples: `text_of` (row, whether it is the source's first) for each, then `end`.

    Returns source -> name of its file. Raises VlmixError where two sources would have the same.
    """
    names: dict[str, str] = {}
    for source in mixture.manifest.sources:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", source).lstrip(".") or "_"
        if name in names.values():
            raise VlmixError(f"sources {source!r} and another would both be called {name}; rename one in the recipe")
        names[source] = name
    files: dict[str, TextIO] = {}
    with ExitStack() as stack:
        for row in rows(mixture, progress):
            source = row["source"]
            first = source not in files
            if first:
                path = folder / f"{names[source]}{suffix}"
                files[source] = stack.enter_context(path.open("w", encoding="utf-8"))
            files[source].write(text_of(row, first))
        for file in files.values():
            file.write(end)
    return {source: f"{name}{suffix}" for source, name in names.items() if source in files}
