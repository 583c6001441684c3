"""A sample as the pages show it, from its row of the index."""

import json
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from vlmix.mixture.boxes import boxes_in, clip
from vlmix.mixture.browse.facts import PROMPTS
from vlmix.mixture.browse.overlaps import Found
from vlmix.mixture.browse.pictures import Picture
from vlmix.mixture.dataset.schema import RESERVED
from vlmix.mixture.io.visible import visible
from vlmix.mixture.record import IMAGE_TOKEN, Box

SHOWN = 2_000
"""Characters of a turn that stand on the page at once; the rest opens."""
LONGEST = 200_000
"""Characters of a turn that a page holds. A browser lays out no megabyte without a stop."""
SEARCHED = 20_000
"""Characters of a sample that the search of a gallery looks through."""
COLORS = 8
_SNIPPET = 140
_ENLARGED = 560
"""Pixels that a small picture is enlarged to at most, by a whole factor."""


@dataclass(frozen=True)
class DrawnBox:
    """A box of round `round` (from 0) in pixels of its picture. Of `layers` equal ones, as rounds ask for the same box
    both ways, it is number `layer`: their dashes take turns, so that each round's colour shows."""

    round: int
    x: float
    y: float
    width: float
    height: float
    layer: int = 0
    layers: int = 1


@dataclass(frozen=True)
class PictureOf:
    """A picture with what is drawn on it; `path` is its name in the mixture, its size the stored one in pixels."""

    number: int
    path: str
    width: int
    height: int
    transform: str
    full: str
    thumb: str
    problem: str
    boxes: list[DrawnBox]

    @property
    def scale(self) -> int:
        """How often its own size it is shown at: a miniature is no larger than a stamp."""
        return max(1, _ENLARGED // max(self.width, self.height, 1))


@dataclass(frozen=True)
class Turn:
    """`text` as it is shown at once, `rest` what opens, `cut` how many characters the page leaves out."""

    who: str
    text: str
    rest: str
    length: int
    cut: int


@dataclass(frozen=True)
class RoundOf:
    """A question with its answer. `boxed`: some of its boxes are drawn."""

    number: int
    format: str
    turns: list[Turn]
    boxed: bool


@dataclass(frozen=True)
class Card:
    """Everything that a gallery and a page show of a sample. `file` is its page below the pages' folder."""

    id: str
    source: str
    file: str
    pictures: list[PictureOf]
    rounds: list[RoundOf]
    question: str
    answer: str
    num_words: int
    boxes: int
    formats: list[str]
    transforms: list[str]
    columns: dict[str, Any]
    facts: list[tuple[str, str]]
    extra: str
    text: str
    overlaps: Found

    @property
    def about(self) -> str:
        """The line under a card."""
        parts = [counted(len(self.rounds), "round"), counted(self.num_words, "word")]
        if len(self.pictures) != 1:
            parts.append(counted(len(self.pictures), "picture"))
        if self.boxes:
            parts.append(counted(self.boxes, "box", "boxes"))
        return ", ".join(parts)

    def record(self, filtered: Set[str]) -> dict[str, Any]:
        """What the script of a gallery filters and sorts by; of the columns, those whose filters are among these."""
        return {
            "text": self.text,
            "format": self.formats,
            "pictures": len(self.pictures),
            "rounds": len(self.rounds),
            "words": self.num_words,
            "boxes": self.boxes,
            "flag": self.transforms,
            "overlap": self.overlaps.values,
            **{key: value for name, value in self.columns.items() if (key := f"column.{name}") in filtered},
        }


def card_of(row: dict[str, Any], file: str, pictures: list[Picture] | None, overlaps: Found) -> Card:
    """The card of a whole row of samples.parquet (see `dataset.schema`). `pictures` None: there are no shards."""
    values = [turn["value"] for turn in row["conversations"]]
    named, boxes = _boxes(row, values)
    drawn = []
    for number, image in enumerate(row["images"]):
        made = pictures[number] if pictures is not None else Picture(problem="this mixture has no shards")
        mine = [box for at, box in boxes if at == number]
        drawn.append(
            PictureOf(
                number,
                visible(image["path"]),
                image["width"],
                image["height"],
                image["transform"],
                made.full,
                made.thumb,
                visible(made.problem),
                mine,
            )
        )
    columns = {name: value for name, value in row.items() if name not in RESERVED}
    bare = values[0] if values else ""
    for known in (IMAGE_TOKEN, *PROMPTS):
        bare = bare.replace(known, " ")
    return Card(
        id=visible(row["id"]),
        source=visible(row["source"]),
        file=file,
        pictures=drawn,
        rounds=_rounds(row, values, {box.round for _, box in boxes}),
        question=snippet(bare),
        answer=snippet(values[1]) if len(values) > 1 else "",
        num_words=row["num_words"],
        boxes=named,
        formats=list(dict.fromkeys(row["response_formats"])),
        transforms=sorted({image["transform"] for image in row["images"]} - {"none"}),
        columns=columns,
        facts=[(name, _bounded(str(value))) for name, value in _facts(row, columns)],
        extra=_pretty(row["extra"]),
        text="\n".join([row["id"], *values])[:SEARCHED],
        overlaps=overlaps,
    )


def snippet(text: str, most: int = _SNIPPET) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text[: 8 * most].split())
    return visible(line if len(line) <= most else f"{line[: most - 1]}…")


def _rounds(row: dict[str, Any], values: list[str], boxed: set[int]) -> list[RoundOf]:
    turns = [_turn(turn["from"], turn["value"]) for turn in row["conversations"]]
    formats = row["response_formats"]
    return [
        RoundOf(at, formats[at] if at < len(formats) else "", turns[2 * at : 2 * at + 2], at in boxed)
        for at in range((len(values) + 1) // 2)
    ]


def _turn(who: str, value: str) -> Turn:
    held = value[:LONGEST]
    shown = held if len(held) <= SHOWN * 5 // 4 else held[:SHOWN]
    text, rest = (visible(part, lines=True) for part in (shown, held[len(shown) :]))
    return Turn(visible(who), text, rest, len(value), len(value) - len(held))


def _boxes(row: dict[str, Any], values: list[str]) -> tuple[int, list[tuple[int, DrawnBox]]]:
    """How many boxes a sample has, and (number of the picture, box) of those with an area in it: those of the index;
    where a sample has none there, those that its text names, as rows that came with their text (LLaVA's JSON) have
    them. No text says which of several pictures such a box is in."""
    images = row["images"]
    if row["boxes"]:
        places = [
            (each["image"], each["round"], (each["x1"], each["y1"], each["x2"], each["y2"])) for each in row["boxes"]
        ]
    elif len(images) == 1:
        width, height = images[0]["width"], images[0]["height"]
        places = [(0, at // 2, box) for at, value in enumerate(values) for box in boxes_in(value, width, height)]
    else:
        return 0, []
    found: list[tuple[int, DrawnBox]] = []
    for image, number, box in places:
        size = (images[image]["width"], images[image]["height"]) if 0 <= image < len(images) else (0, 0)
        if (inside := clip(box, *size)) is not None:
            found.append((image, _drawn(number, inside)))
    equal = [(image, drawn.x, drawn.y, drawn.width, drawn.height) for image, drawn in found]
    counts, seen = Counter(equal), Counter[tuple[float, ...]]()
    layered = []
    for key, (image, drawn) in zip(equal, found):
        layered.append((image, replace(drawn, layer=seen[key], layers=counts[key])))
        seen[key] += 1
    return len(places), layered


def _drawn(number: int, box: Box) -> DrawnBox:
    x1, y1, x2, y2 = box
    return DrawnBox(number, round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1))


def _facts(row: dict[str, Any], columns: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a sample was read from and where it lies."""
    named = [("source", row["source"]), ("place in the source's order", row["natural_index"])]
    if row["repeat"] != 1:
        named.append(("seen per epoch", row["repeat"]))
    if row["shard"]:
        named += [("shard", row["shard"]), ("key in the shard", row["key"])]
    for number, image in enumerate(row["images"]):
        label = "picture" if len(row["images"]) == 1 else f"picture {number + 1}"
        change = "" if image["transform"] == "none" else f", {image['transform']}"
        size = f", {image['size']:,} bytes" if image["size"] else ""
        named.append((label, f"{image['path']}, {image['width']} x {image['height']} pixels{size}{change}"))
    return named + [(name, "no value" if value is None else value) for name, value in columns.items()]


def _bounded(value: str) -> str:
    more = len(value) - SHOWN
    return visible(value[:SHOWN]) + (f"… {more:,} more characters" if more > 0 else "")


def _pretty(extra: str) -> str:
    if not extra:
        return ""
    try:
        text = msgspec.json.format(extra, indent=2) if len(extra) <= LONGEST else extra
    except msgspec.DecodeError:
        text = extra
    return visible(text[:LONGEST], lines=True)


def counted(number: int, one: str, many: str = "") -> str:
    """`2 boxes`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def script_json(data: Any) -> str:
    r"""JSON for a `<script type="application/json">`: ASCII, and no letter that could end it or begin markup. Numbers
    that JSON does not know (NaN of a rating) are null."""
    text = json.dumps(_finite(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not -1e308 < data < 1e308:
        return None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list) else data
