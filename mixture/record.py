"""The record: a conversation about at most one image, as meaning. `render` turns it into text."""

from collections.abc import Collection
from typing import Literal, get_args

from msgspec import Struct

from vlmix.mixture.errors import nearest

ResponseFormat = Literal["short_answer", "choice", "caption", "region_caption", "grounding", "free"]
FORMATS: tuple[ResponseFormat, ...] = get_args(ResponseFormat)
IMAGE_TOKEN = "<image>"  # noqa: S105

Box = tuple[float, float, float, float]
"""Pixel corners x1, y1, x2, y2 in the frame of the conversation's `width` and `height`."""

_PLACES = ("front", "back", "inline")
_MOST_PIXELS = 1_000_000  # of a side

# Characters that print nothing. ShareGPT has answers made of U+200B alone.
INVISIBLE = " \t\r\n\f\v\u00a0\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"


class Round(Struct, frozen=True, gc=False):
    """One question with its answer, and what their text is made from.

    - `short_answer`, `free`: `question` and `answer` are the words.
    - `choice`: `choices` are the options, `correct` the index of the right one (options may repeat, so an index).
    - `caption`: `question` may be empty (the style then asks), `ocr_tokens` are offered as a reference line;
      `None` means no such line, `()` a line without tokens.
    - `region_caption`: one box in `boxes`; `answer` is the phrase.
    - `grounding`: `question` is the phrase, `boxes` the answer.
    """

    question: str
    answer: str
    format: ResponseFormat = "free"
    choices: tuple[str, ...] = ()
    correct: int = -1
    boxes: tuple[Box, ...] = ()
    ocr_tokens: tuple[str, ...] | None = None


class Conversation(Struct, frozen=True, gc=False):
    """One training sample.

    `id` is unique in a mixture and stable (`vqav2/000000180641`). `image` is a path in LLaVA's layout, `""` for text
    only. `width` and `height` are pixels, 0 when unknown. `image_at` says where the image token stands in the first
    question; `"inline"` means that the text holds it already. `extra` is a JSON object with what the way back to
    LLaVA's JSON needs beyond the text (see `export`), or `""`.
    """

    id: str
    source: str
    rounds: tuple[Round, ...]
    image: str = ""
    width: int = 0
    height: int = 0
    image_at: Literal["front", "back", "inline"] = "front"
    extra: str = ""


def is_blank(text: str) -> bool:
    """True if nothing in `text` would be seen."""
    return not text[:1].isalnum() and not text.strip(INVISIBLE)  # the first test spares nearly all texts the second


def builder_mistake(conversation: Conversation, labels: Collection[str]) -> str | None:
    """What a builder got wrong in every such record, whatever its data: a response format that does not exist, or a
    `source` it has not declared (`labels`). None if nothing."""
    for name in ("id", "image", "extra"):
        if not isinstance(getattr(conversation, name), str):
            return f"its `{name}` is {getattr(conversation, name)!r}, expected text"
    if conversation.source not in labels:
        return f"there is no source {conversation.source!r}{nearest(str(conversation.source), labels)}"
    if conversation.image_at not in _PLACES:
        return f"there is no `image_at` {conversation.image_at!r}{nearest(str(conversation.image_at), _PLACES)}"
    for qa in conversation.rounds:
        if qa.format not in FORMATS:
            return f"there is no response format {qa.format!r}{nearest(str(qa.format), FORMATS)}"
    return None


def defect(conversation: Conversation, verbatim: bool = False) -> tuple[str, str] | None:
    """The first reason, as (code, detail), why a conversation cannot be a sample; None if it can.

    `verbatim` records pass with empty texts, because they must be given back as they came.
    """
    if not conversation.rounds:
        return "no_rounds", "no question with an answer is left"
    if not (0 <= conversation.width <= _MOST_PIXELS and 0 <= conversation.height <= _MOST_PIXELS):
        return "bad_size", f"an image of {conversation.width}x{conversation.height} pixels"
    path = conversation.image
    if path and (problem := unsafe_path(path)):
        return "unsafe_path", problem
    inline = conversation.image_at == "inline"
    for number, qa in enumerate(conversation.rounds):
        if not inline and (IMAGE_TOKEN in qa.question or IMAGE_TOKEN in qa.answer):
            return "image_token", f"round {number} holds {IMAGE_TOKEN!r} in its text"
        if qa.boxes and not (conversation.width and conversation.height):
            return "no_image_size", f"round {number} has a box but the size of the image is unknown"
        match qa.format:
            case "choice":
                blank = is_blank(qa.question)
                if not 0 <= qa.correct < len(qa.choices) <= 26:
                    return "bad_choice", f"round {number}: option {qa.correct} of {len(qa.choices)}"
            case "grounding":
                blank = is_blank(qa.question)
            case "region_caption" | "caption":
                blank = is_blank(qa.answer)
            case _:
                blank = is_blank(qa.question) or is_blank(qa.answer)
        if blank and not verbatim:
            return "empty_text", f"round {number} has an empty question or answer"
        if qa.format in ("grounding", "region_caption") and not qa.boxes:
            return "no_box", f"round {number} has no box"
    return None


def unsafe_path(path: str) -> str | None:
    """Why `path` may not be used as an image path below a root; None if it may."""
    if path.startswith(("/", "\\")) or (len(path) > 1 and path[1] == ":"):
        return f"image path {path!r} is absolute"
    if "\\" in path or "\0" in path:
        return f"image path {path!r} holds a backslash or a zero byte"
    if ".." in path.split("/"):
        return f"image path {path!r} leaves its root"
    return None
