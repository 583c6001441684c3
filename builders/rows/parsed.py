"""What a row says: its rounds, where their images stand, and what of it is dropped."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from vlmix.builders.llava_rows import split_image
from vlmix.mixture.io.rows.images import ImageItem
from vlmix.mixture.record import IMAGE_TOKEN, ResponseFormat, Round, is_blank

_MEDIA_TOKEN = re.compile(r"<(video|audio)>")


class Problem(Struct, frozen=True):
    """Why a row, or one of its rounds, is dropped: a code, a detail, and the number of the round, -1 for the row."""

    code: str
    detail: str
    round: int = -1


class Parsed(Struct, frozen=True):
    """What a row says. `rounds` are numbered as the row numbers them; `image_at` is "inline" where its text places the
    images itself."""

    rounds: dict[int, Round]
    image_at: Literal["front", "back", "inline"] = "front"
    problems: list[Problem] = []
    extra: dict[str, Any] = {}
    images: list[ImageItem] | None = None
    """Images that its messages hold in their blocks; None: those of the row."""


def bad(code: str, detail: str) -> Parsed:
    """A row that is dropped."""
    return Parsed({}, problems=[Problem(code, detail)])


def text_of(value: Any) -> str | None:
    """A value as text; None for what is no text or number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:  # NaN is no text
        return None
    return str(value)


def placed(
    pairs: Sequence[tuple[Any, Any]],
    images: int,
    extra: dict[str, Any],
    response_format: ResponseFormat | None = None,
) -> Parsed:
    """Questions with answers as rounds, and where their images stand."""
    if not pairs:
        return bad("no_rounds", "the row has no question with an answer")
    format: ResponseFormat = response_format or "free"
    problems, rounds, dropped = [], {}, 0
    for number, (question, answer) in enumerate(pairs):
        if not (isinstance(question, str) and isinstance(answer, str)):
            question, answer = text_of(question), text_of(answer)
        if question is None or answer is None or is_blank(question) or is_blank(answer):
            dropped += (question or "").count(IMAGE_TOKEN)
            problems.append(Problem("empty_text", "a question or answer is empty", number))
            continue
        if IMAGE_TOKEN in answer:
            return bad("image_token", f"round {number} has {IMAGE_TOKEN} in its answer")
        if _MEDIA_TOKEN.search(question) and images == 0:
            return bad("unread_media", f"round {number} has a token of a video or sound, which are not read")
        rounds[number] = Round(question, answer, format)
    tokens = sum(qa.question.count(IMAGE_TOKEN) for qa in rounds.values()) + dropped
    if tokens > images:
        return bad("image_token", f"its text has {tokens} {IMAGE_TOKEN} for {images} images")
    if dropped:
        return bad("empty_text", f"a round with {IMAGE_TOKEN} has an empty question or answer")
    if not rounds:
        return Parsed({}, problems=[*problems, Problem("no_rounds", "no question with an answer is left")])
    if not tokens:
        return Parsed(rounds, "front", problems, extra)
    extra = {**extra, "inline": True}
    first = min(rounds)
    bare, place = split_image(rounds[first].question)
    if images == tokens == 1 and place in ("front", "back") and not is_blank(bare):
        rounds[first] = Round(bare, rounds[first].answer, format)
        return Parsed(rounds, place, problems, extra)
    return Parsed(rounds, "inline", problems, extra)
