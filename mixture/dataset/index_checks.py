"""What the columns of an index must agree with: the manifest, each other, the texts that they count."""

import math
from collections.abc import Iterator
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


def index_problems(frame: pl.DataFrame, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the columns `COLUMNS` of a mixture's index, texts aside; `frame` has no nulls."""
    count = len(frame)
    yield from count_problems(frame, manifest)
    shifts = np.repeat(np.array(manifest.key_shifts(), dtype=np.int64), [shard.samples for shard in manifest.shards])
    numbers = np.arange(count) + (shifts if len(shifts) == count else 0)
    keys = pl.Series(numbers).cast(pl.String).str.zfill(9)
    yield from _rows("key", frame["key"] != keys, "is not the position in the mixture, or what its shard begins with")
    yield from _rows("id", (frame["id"] == "") | frame["id"].is_duplicated(), "is empty or a duplicate")
    yield from _ordinal_problems(frame, manifest)
    most = most_repeats(manifest)
    yield from _rows("repeat", ~frame["repeat"].is_between(1, most), f"is not from 1 to {most}, as the recipe says")
    yield from _image_problems(frame, bool(manifest.shards))
    yield from _rows("json_size", (frame["json_size"] > 0) != bool(manifest.shards), "disagrees with the shards")
    shards = [path for shard in manifest.shards for path in [shard.path] * min(shard.samples, count)] or [""] * count
    if len(shards) == count:  # else the number of rows is wrong, which is reported already
        yield from _rows("shard", frame["shard"] != pl.Series(shards), "is not the shard that the manifest puts it in")


def _image_problems(frame: pl.DataFrame, stored: bool) -> Iterator[str]:
    yield from _rows("num_images", frame["num_images"] != frame["images"].list.len(), "is not the length of `images`")
    first = frame.select(
        pl.col("images").list.get(0, null_on_oob=True).struct.field("path").fill_null(""),
        *(pl.col("images").list.get(0, null_on_oob=True).struct.field(name).fill_null(0) for name in _SIZE),
    )
    for name, of in (("image", "path"), ("width", "width"), ("height", "height")):
        yield from _rows(name, frame[name] != first[of], "is not that of the first of `images`")
    flat = frame.select("images").with_row_index().explode("images").filter(pl.col("images").is_not_null())
    images = flat.unnest("images")
    if images.null_count().select(pl.sum_horizontal(pl.all())).item():
        yield "`images` has an image that lacks something"
        return
    transforms = images["transform"].is_in(list(get_args(Transform)))
    bad = {
        "path": images["path"] == "",
        "size": (images["size"] > 0) != stored,
        "xxh3": (images["xxh3"] != "") != stored,
        "offset": (images["offset"] != 0) & (not stored),
        "transform": ~transforms,
    }
    for name, wrong in bad.items():
        rows = images["index"].filter(wrong)
        if len(rows):
            yield f"row {rows[0]}{f' and {len(rows) - 1} more' if len(rows) > 1 else ''}: `images` has a wrong {name}"


def _ordinal_problems(frame: pl.DataFrame, manifest: Manifest) -> Iterator[str]:
    ordinal = frame["natural_index"]
    bad = (ordinal < 0) | ordinal.is_duplicated()
    if not manifest.selections:
        bad |= ordinal >= len(frame)
    yield from _rows("natural_index", bad, "is not a place in the natural order of its own")
    if manifest.recipe["order"] == "natural" and not bad.any():
        natural = frame.select("natural_index", pl.col("image") != "").sort("natural_index")
        has_image, size = natural["image"].to_numpy(), int(manifest.recipe["samples_per_shard"])
        sizes = [shard.samples for shard in manifest.shards] or [size] * -(-len(frame) // size)
        starts = [0, *np.cumsum(sizes).tolist()]
        images = [has_image[a:b] for a, b in pairwise(starts)]
        order = [a + lead_with_images(np.arange(len(i)), i, size) for a, i in zip(starts, images)]
        # Nothing says where the row groups of merged annotations begin.
        if sum(map(len, images)) == len(frame) and (manifest.shards or "mixtures" not in manifest.recipe):
            wrong = ordinal != natural["natural_index"][np.concatenate(order)]
            yield from _rows("natural_index", wrong, "is not in the natural order")


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


def count_problems(frame: pl.DataFrame, manifest: Manifest) -> Iterator[str]:
    """Where the sums over an index differ from the counts of the manifest's sources."""
    counts = counts_of(frame)
    for name in counts.keys() - manifest.sources.keys():
        yield f"source {abridged(name)!r} is not in the manifest"
    for name, info in manifest.sources.items():
        for what, number in msgspec.structs.asdict(counts.get(name, Counts())).items():
            if number != (said := getattr(info.counts, what)):
                yield f"{abridged(name)} has {number} {what}, the manifest says {said}"


def _rows(column: str, bad: pl.Series, what: str) -> Iterator[str]:
    if bad.any():
        rows: NDArray[np.bool_] = bad.to_numpy()
        more = f" and {rows.sum() - 1} more" if rows.sum() > 1 else ""
        yield f"row {rows.argmax()}{more}: `{column}` {what}"


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
