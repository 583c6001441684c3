"""What the columns of an index must agree with: the manifest, each other, the texts that they count."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, get_args

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlmix.mixture.boxes import box_defect, square_text
from vlmix.mixture.dataset.manifest import Counts, Manifest
from vlmix.mixture.dataset.schema import MOST_REPEATS, ROLES, VIEW, Transform, extra_of
from vlmix.mixture.dataset.shards import lead_with_images
from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.record import FORMATS, IMAGE_TOKEN
from vlmix.mixture.render import LETTERS, OPTION_LETTER, SHORT_ANSWER, count_words

_SIZE = ("width", "height")
COLUMNS = [field for field in VIEW.names if field != "root_row"]
"""Of an index, without the texts, which are checked row by row."""


class IndexChecks:
    """Whether the columns `COLUMNS` of an index agree, texts aside: `add` takes its rows a piece at a time, `problems`
    says what is wrong with all of them. Of a sample it keeps 18 bytes."""

    def __init__(self, manifest: Manifest, samples: int) -> None:
        """`samples`: rows of the index."""
        self.manifest, self.samples, self.seen = manifest, samples, 0
        self.listed = sum(shard.samples for shard in manifest.shards) == samples
        """Whether the shards have as many; else they are not compared, as the number is reported already."""
        self._wrong: dict[tuple[str, str], tuple[int, int]] = {}
        """Column and what is wrong with it -> the first row of which it is true, and how many there are."""
        self._counts: dict[str, Counts] = {}
        self._ids, self._ordinals = np.empty(samples, np.uint64), np.empty(samples, np.int64)
        self._has_image, self._unnamed = np.empty(samples, np.bool_), np.empty(samples, np.bool_)
        self._lacking = False

    def add_counts(self, frame: pl.DataFrame) -> None:
        """Of the next rows, what the sources of the manifest count, alone."""
        for name, more in counts_of(frame).items():
            self._counts[name] = self._counts.get(name, Counts()) + more
        self.seen += len(frame)

    def add(self, frame: pl.DataFrame) -> None:
        """The next rows, one at least; without nulls."""
        manifest, first, stop = self.manifest, self.seen, self.seen + len(frame)
        numbers, shards = np.arange(first, stop), None
        if manifest.shards and self.listed:
            shards = manifest.shard_numbers(first, stop)
            numbers += np.array(manifest.key_shifts(), dtype=np.int64)[shards]
        keys = pl.Series(numbers).cast(pl.String).str.zfill(9)
        self._rows("key", frame["key"] != keys, "is not the position in the mixture, or what its shard begins with")
        self._unnamed[first:stop] = (frame["id"] == "").to_numpy()
        self._ids[first:stop] = frame["id"].hash().to_numpy()
        self._ordinals[first:stop] = frame["natural_index"].to_numpy()
        self._has_image[first:stop] = (frame["image"] != "").to_numpy()
        most = most_repeats(manifest)
        self._rows("repeat", ~frame["repeat"].is_between(1, most), f"is not from 1 to {most}, as the recipe says")
        self._images(frame, bool(manifest.shards))
        self._rows("json_size", (frame["json_size"] > 0) != bool(manifest.shards), "disagrees with the shards")
        if shards is not None or not manifest.shards:
            paths = pl.Series([shard.path for shard in manifest.shards] or [""], dtype=pl.String)
            of = paths.gather(shards) if shards is not None else ""
            self._rows("shard", frame["shard"] != of, "is not the shard that the manifest puts it in")
        self.add_counts(frame)

    def problems(self, ids: Callable[[], Iterator[pl.Series]]) -> Iterator[str]:
        """What is wrong with all rows, which were all added. `ids` reads their ids again."""
        yield from self.count_problems()
        self._duplicate_ids(ids)
        self._check_ordinals()
        for (column, what), (row, count) in self._wrong.items():
            if not (self._lacking and column == "images"):
                yield f"row {row}{f' and {count - 1} more' if count > 1 else ''}: `{column}` {what}"
        if self._lacking:
            yield "`images` has an image that lacks something"

    def count_problems(self) -> Iterator[str]:
        """Where the sums over the index differ from the counts of the manifest's sources."""
        for name in self._counts.keys() - self.manifest.sources.keys():
            yield f"source {abridged(name)!r} is not in the manifest"
        for name, info in self.manifest.sources.items():
            for what, number in msgspec.structs.asdict(self._counts.get(name, Counts())).items():
                if number != (said := getattr(info.counts, what)):
                    yield f"{abridged(name)} has {number} {what}, the manifest says {said}"

    def _images(self, frame: pl.DataFrame, stored: bool) -> None:
        self._rows("num_images", frame["num_images"] != frame["images"].list.len(), "is not the length of `images`")
        first = frame.select(
            pl.col("images").list.get(0, null_on_oob=True).struct.field("path").fill_null(""),
            *(pl.col("images").list.get(0, null_on_oob=True).struct.field(name).fill_null(0) for name in _SIZE),
        )
        for name, of in (("image", "path"), ("width", "width"), ("height", "height")):
            self._rows(name, frame[name] != first[of], "is not that of the first of `images`")
        flat = frame.select("images").with_row_index().explode("images").filter(pl.col("images").is_not_null())
        images = flat.unnest("images")
        if self._lacking or images.null_count().select(pl.sum_horizontal(pl.all())).item():
            self._lacking = True
            return
        bad = {
            "path": images["path"] == "",
            "size": (images["size"] > 0) != stored,
            "xxh3": (images["xxh3"] != "") != stored,
            "offset": (images["offset"] != 0) & (not stored),
            "transform": ~images["transform"].is_in(list(get_args(Transform))),
        }
        for name, wrong in bad.items():
            rows = images["index"].filter(wrong)
            if len(rows):
                self._add("images", f"has a wrong {name}", self.seen + rows[0], len(rows))

    def _duplicate_ids(self, ids: Callable[[], Iterator[pl.Series]]) -> None:
        alike = _duplicated(self._ids)
        if alike.any():  # by 64 bits of theirs
            first, parts = 0, []
            for part in ids():
                parts.append(part.filter(pl.Series(alike[first : first + len(part)])))
                first += len(part)
            alike[alike] = pl.concat(parts).is_duplicated().to_numpy()
        self._flagged("id", self._unnamed | alike, "is empty or a duplicate")

    def _check_ordinals(self) -> None:
        manifest, ordinal = self.manifest, self._ordinals
        bad = (ordinal < 0) | _duplicated(ordinal)
        if not manifest.selections:
            bad |= ordinal >= len(ordinal)
        self._flagged("natural_index", bad, "is not a place in the natural order of its own")
        if manifest.recipe["order"] == "natural" and not bad.any():
            places = np.argsort(ordinal)
            natural, has_image = ordinal[places], self._has_image[places]
            size = int(manifest.recipe["samples_per_shard"])
            sizes = [shard.samples for shard in manifest.shards] or [size] * -(-len(ordinal) // size)
            starts = [0, *np.cumsum(sizes).tolist()]
            images = [has_image[a:b] for a, b in pairwise(starts)]
            order = [a + lead_with_images(np.arange(len(i)), i, size) for a, i in zip(starts, images)]
            # Nothing says where the row groups of merged annotations begin.
            if sum(map(len, images)) == len(ordinal) and (manifest.shards or "mixtures" not in manifest.recipe):
                self._flagged("natural_index", ordinal != natural[np.concatenate(order)], "is not in the natural order")

    def _rows(self, column: str, bad: pl.Series, what: str) -> None:
        """Note of which of the next rows something is wrong."""
        if bad.any():
            rows: NDArray[np.bool_] = bad.to_numpy()
            self._add(column, what, self.seen + int(rows.argmax()), int(rows.sum()))

    def _flagged(self, column: str, bad: NDArray[np.bool_], what: str) -> None:
        """The same, of all rows."""
        if bad.any():
            self._add(column, what, int(bad.argmax()), int(bad.sum()))

    def _add(self, column: str, what: str, row: int, count: int) -> None:
        first, before = self._wrong.get((column, what), (row, 0))
        self._wrong[column, what] = min(first, row), before + count


def _duplicated(values: NDArray[Any]) -> NDArray[np.bool_]:
    """[N] which values are there more than once."""
    ordered = np.sort(values)
    twins = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.isin(values, np.unique(twins)) if len(twins) else np.zeros(len(values), dtype=np.bool_)


def most_repeats(manifest: Manifest) -> int:
    """How often an epoch sees a sample at most, by the recipe's entries."""
    entries = manifest.recipe.get("sources")
    numbers = [entry.get("repeat", 1) for entry in entries.values()] if isinstance(entries, dict) and entries else []
    return min(math.ceil(max(numbers, default=MOST_REPEATS)), MOST_REPEATS)


def counts_of(frame: pl.DataFrame) -> dict[str, Counts]:
    """What each source gives, by the columns of an index."""
    sums = frame.group_by("source").agg(
        pl.len().alias("samples"),
        pl.col("repeat").sum().alias("samples_per_epoch"),
        pl.col("num_rounds").cast(pl.Int64).sum().alias("rounds"),
        pl.col("num_words").cast(pl.Int64).sum().alias("words"),
        pl.col("num_images").cast(pl.Int64).sum().alias("images"),
    )
    return {row.pop("source"): Counts(**row) for row in sums.to_dicts()}


def row_problems(row: dict[str, Any], prompts: str) -> Iterator[str]:
    """What is wrong with the text columns of a row and the numbers that count them, prompts being
    of the style `prompts`. Boxes are compared with the numbers that the text shows."""
    turns, formats = row["conversations"], row["response_formats"]
    texts = [turn["value"] for turn in turns]
    if len(turns) != 2 * row["num_rounds"] or any(turn["from"] != ROLES[i % 2] for i, turn in enumerate(turns)):
        yield "`num_rounds` is not the number of its questions with answers"
        return
    if row["num_words"] != (words := count_words(texts)):
        yield f"`num_words` is {row['num_words']}, its text has {words}"
    if len(formats) != row["num_rounds"] or not set(formats) <= set(FORMATS):
        yield "`response_formats` is not a known response format for each of its rounds"
        return
    try:
        extra_of(row)
    except VlmixError:
        yield "`extra` is not a JSON object, or has other turns"
    if problem := _box_problem(row, texts) or _prompt_problem(row, texts, prompts):
        yield problem


def _box_problem(row: dict[str, Any], texts: list[str]) -> str | None:
    boxes: dict[int, list[str]] = {}
    for number, box in enumerate(row["boxes"]):
        corners = box["x1"], box["y1"], box["x2"], box["y2"]
        if not 0 <= box["round"] < row["num_rounds"]:
            return f"`boxes`: box {number} belongs to no round"
        if not 0 <= box["image"] < len(row["images"]):
            return f"`boxes`: box {number} belongs to no image"
        width, height = (row["images"][box["image"]][name] for name in _SIZE)
        inside = min(corners) >= 0 and corners[2] <= width and corners[3] <= height
        if not all(map(math.isfinite, corners)) or not inside or box_defect(corners, width, height):
            return f"`boxes`: box {number} is not one inside the image"
        boxes.setdefault(box["round"], []).append(square_text(corners, width, height))
    if list(boxes) != sorted(boxes):
        return "`boxes` is not in the order of the rounds"
    for nth, name in enumerate(row["response_formats"]):
        if name not in ("grounding", "region_caption"):
            continue
        if nth not in boxes:
            return f"`boxes`: round {nth}, a {name}, has none"
        said = ", ".join(boxes[nth])
        question, answer = texts[2 * nth : 2 * nth + 2]
        if (answer != said) if name == "grounding" else (said not in question):
            return f"`boxes`: round {nth} has other numbers in its text"
    return None


def _prompt_problem(row: dict[str, Any], texts: list[str], prompts: str) -> str | None:
    """Where a format's prompt, which the style puts to its first question, or its answer's form is missing."""
    for name, prompt in (("short_answer", SHORT_ANSWER), ("choice", OPTION_LETTER)):
        if name in row["response_formats"] and prompts == "llava":
            first = 2 * row["response_formats"].index(name)
            if not texts[first].removesuffix(f"\n{IMAGE_TOKEN}").endswith(prompt):
                return f"`response_formats`: round {first // 2} is called a {name} and is not asked as one"
    for nth, name in enumerate(row["response_formats"]):
        answer = texts[2 * nth + 1]
        if name == "choice" and prompts in ("llava", "plain") and not (len(answer) == 1 and answer in LETTERS):
            return f"`response_formats`: round {nth} is called a choice, and its answer is no letter"
    return None
