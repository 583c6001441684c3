"""The record: a conversation about any number of images, as meaning. `render` turns it into text."""

from collections.abc import Collection
from typing import Literal, get_args

from msgspec import Struct

from vlmix.mixture.errors import nearest

ResponseFormat = Literal["short_answer", "choice", "caption", "region_caption", "grounding", "free"]
FORMATS: tuple[ResponseFormat, ...] = get_args(ResponseFormat)
IMAGE_TOKEN = "<image>"  # noqa: S105

Box = tuple[float, float, float, float]
"""Pixel corners x1, y1, x2, y2 in the frame of the size that its image is given."""
Scalar = str | int | float | bool | None
MAX_IMAGES = 64
"""Of a conversation, unless the recipe says otherwise."""

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

    `box_images` are the numbers of the images that the boxes lie in, `()` for the first image.
    """

    question: str
    answer: str
    format: ResponseFormat = "free"
    choices: tuple[str, ...] = ()
    correct: int = -1
    boxes: tuple[Box, ...] = ()
    ocr_tokens: tuple[str, ...] | None = None
    box_images: tuple[int, ...] = ()


class ImageRef(Struct, frozen=True, gc=False):
    """An image of a conversation: its path in LLaVA's layout; width and height in pixels, 0 when unknown."""

    path: str
    width: int = 0
    height: int = 0


class Place(Struct, frozen=True, gc=False):
    """Where the images of a conversation lie if they are no files of their own: the number of the container among those
    that its builder has named (`RawFolder.container`), and the place of the row in it."""

    container: int
    at: int


class Conversation(Struct, frozen=True, gc=False):
    """One training sample.

    `id` is unique in a mixture and stable (`vqav2/000000180641`). `images` are in the order of their tokens, none for
    text only; files of those paths, or the images of the row at `place`. `image_at` says where the image tokens stand
    in the first question; `"inline"` means that the texts hold them already. `columns` is what the source says about
    the sample beyond the conversation (ratings), for `where`. `extra` is a JSON object with what the way back to the
    source's own form needs beyond the text (see `export`), or `""`.
    """

    id: str
    source: str
    rounds: tuple[Round, ...]
    images: tuple[ImageRef, ...] = ()
    image_at: Literal["front", "back", "inline"] = "front"
    extra: str = ""
    place: Place | None = None
    columns: dict[str, Scalar] = {}

    @property
    def image(self) -> str:
        """The path of the first image, `""` for text only."""
        return self.images[0].path if self.images else ""


def is_blank(text: str) -> bool:
    """True if nothing in `text` would be seen."""
    return not text[:1].isalnum() and not text.strip(INVISIBLE)  # the first test spares nearly all texts the second


def builder_mistake(conversation: Conversation, labels: Collection[str]) -> str | None:
    """What a builder got wrong in every such record, whatever its data: a response format that does not exist, or a
    `source` it has not declared (`labels`). None if nothing."""
    for name in ("id", "extra"):
        if not isinstance(getattr(conversation, name), str):
            return f"its `{name}` is {getattr(conversation, name)!r}, expected text"
    if not isinstance(conversation.images, tuple) or not all(isinstance(i, ImageRef) for i in conversation.images):
        return f"its `images` is {conversation.images!r}, expected a tuple of ImageRef"
    for image in conversation.images:
        if not isinstance(image.path, str) or not image.path:
            return f"it has an image whose path is {image.path!r}, expected text"
    if conversation.source not in labels:
        return f"there is no source {conversation.source!r}{nearest(str(conversation.source), labels)}"
    if conversation.image_at not in _PLACES:
        return f"there is no `image_at` {conversation.image_at!r}{nearest(str(conversation.image_at), _PLACES)}"
    for qa in conversation.rounds:
        if qa.format not in FORMATS:
            return f"there is no response format {qa.format!r}{nearest(str(qa.format), FORMATS)}"
    return None


def defect(conversation: Conversation, verbatim: bool = False, max_images: int = MAX_IMAGES) -> tuple[str, str] | None:
    """The first reason, as (code, detail), why a conversation cannot be a sample; None if it can.

    `verbatim` records pass with empty texts, because they must be given back as they came.
    """
    if not conversation.rounds:
        return "no_rounds", "no question with an answer is left"
    images = conversation.images
    if len(images) > max_images:
        return "too_many_images", f"{len(images)} images, `max_images` is {max_images}"
    for image in images:
        if not (0 <= image.width <= _MOST_PIXELS and 0 <= image.height <= _MOST_PIXELS):
            return "bad_size", f"an image of {image.width}x{image.height} pixels"
        if problem := unsafe_path(image.path):
            return "unsafe_path", problem
    inline = conversation.image_at == "inline"
    if inline and len(images) > 1 and (tokens := image_tokens(conversation)) > len(images):
        return "image_token", f"its text has {tokens} {IMAGE_TOKEN} for {len(images)} images"
    for number, qa in enumerate(conversation.rounds):
        question, answer, format = qa.question, qa.answer, qa.format
        if not inline and (IMAGE_TOKEN in question or IMAGE_TOKEN in answer):
            return "image_token", f"round {number} holds {IMAGE_TOKEN!r} in its text"
        if qa.boxes and (problem := _box_problem(qa, images)):
            return "no_image_size", f"round {number} has a box {problem}"
        if format == "choice" and not 0 <= qa.correct < len(qa.choices) <= 26:
            return "bad_choice", f"round {number}: option {qa.correct} of {len(qa.choices)}"
        # The first tests spare nearly all texts the others.
        if not (question[:1].isalnum() and answer[:1].isalnum()) and not verbatim:
            asked, answered = format not in ("region_caption", "caption"), format not in ("choice", "grounding")
            if (asked and is_blank(question)) or (answered and is_blank(answer)):
                return "empty_text", f"round {number} has an empty question or answer"
        if not qa.boxes and (format == "grounding" or format == "region_caption"):
            return "no_box", f"round {number} has no box"
    return None


def image_tokens(conversation: Conversation) -> int:
    """How often the texts of its rounds name an image."""
    return sum(qa.question.count(IMAGE_TOKEN) + qa.answer.count(IMAGE_TOKEN) for qa in conversation.rounds)


def _box_problem(qa: Round, images: tuple[ImageRef, ...]) -> str | None:
    if not qa.box_images and images and images[0].width and images[0].height:
        return None  # nearly all of them
    numbers = qa.box_images or (0,) * len(qa.boxes)
    if len(numbers) != len(qa.boxes):
        return f"too many or too few: {len(qa.boxes)} boxes and {len(numbers)} `box_images`"
    for number in numbers:
        if not 0 <= number < len(images):
            return f"in image {number} of {len(images)}"
        if not (images[number].width and images[number].height):
            return "but the size of the image is unknown"
    return None


def unsafe_path(path: str) -> str | None:
    """Why `path` may not be used as an image path below a root; None if it may."""
    if ".." not in path and "\\" not in path and "\0" not in path and path[:1] != "/" and path[1:2] != ":":
        return None  # nearly all of them
    if path.startswith(("/", "\\")) or (len(path) > 1 and path[1] == ":"):
        return f"image path {path!r} is absolute"
    if "\\" in path or "\0" in path:
        return f"image path {path!r} holds a backslash or a zero byte"
    if ".." in path.split("/"):
        return f"image path {path!r} leaves its root"
    return None
