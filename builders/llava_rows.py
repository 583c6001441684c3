"""Rows in LLaVA's own JSON form: `id`, `image`, `conversations: [{from, value}]`."""

from typing import Any, Literal

from vlmix.mixture.record import IMAGE_TOKEN

UNREAD_MEDIA = (
    "audio",
    "audio_path",
    "audios",
    "image_bytes",
    "image_file",
    "image_files",
    "image_path",
    "image_paths",
    "image_url",
    "image_urls",
    "img",
    "video",
    "video_path",
    "videos",
)
"""Keys of a row that hold media which no sample can have, or an image under a name that is not read."""

_OTHER_TOKENS = ("<video>", "<audio>")

Place = Literal["front", "back", "inline"]


def split_image(question: str) -> tuple[str, Place | None]:
    """The first question without its image token, and where the token stood; `inline` leaves it in the text, None
    says that there is none."""
    if question.count(IMAGE_TOKEN) == 1:
        if question.startswith(f"{IMAGE_TOKEN}\n"):
            return question[len(IMAGE_TOKEN) + 1 :], "front"
        if question.endswith(f"\n{IMAGE_TOKEN}"):
            return question[: -len(IMAGE_TOKEN) - 1], "back"
    return question, "inline" if IMAGE_TOKEN in question else None


def row_images(row: dict[str, Any]) -> tuple[list[str], tuple[str, str] | None]:
    """The images of a row, from `image` or `images`, each a path or a list of paths; and why the row cannot be read, as
    (code, detail), or None."""
    for key in UNREAD_MEDIA:
        if row.get(key):
            return [], ("unread_media", f"the row has {key!r}, which is not read; images stand in `image` or `images`")
    named = []
    for key in ("image", "images"):
        value = row.get(key)
        listed = value if isinstance(value, list) else [value] if value not in (None, "") else []
        for path in listed:
            if not isinstance(path, str) or not path:
                return [], ("bad_image", f"{key!r} has an image that is {path!r}, expected a path")
        named += [listed] if listed else []
    if len(named) > 1 and named[0] != named[1]:
        return [], ("conflicting_images", f"'image' is {named[0]!r} and 'images' is {named[1]!r}")
    return named[0] if named else [], None


def token_problem(images: int, texts: list[str]) -> tuple[str, str] | None:
    """Why the media tokens of questions and answers do not fit the row's images, as (code, detail); None if they do.
    Where there is one image, a token that is repeated stands for it again, as LLaVA reads it.

    `<video>` and `<audio>` are HTML inside a text, so they count only where a question begins or ends with one.
    """
    for number, question in enumerate(texts[::2]):
        if not images and IMAGE_TOKEN in question:
            return "image_token", f"question {number} has {IMAGE_TOKEN}, but the row has no image"
        bare = question.strip()
        for token in _OTHER_TOKENS:
            if bare.startswith(token) or bare.endswith(token):
                return "unread_media", f"question {number} has {token}, which is not read"
    if images > 1 and (tokens := sum(text.count(IMAGE_TOKEN) for text in texts)) > images:
        return "image_token", f"its turns have {tokens} {IMAGE_TOKEN}, the row has {images} images"
    return None


def turn_problem(turns: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Why `turns` do not alternate between question and answer, as (code, detail); None if they are."""
    if not turns:
        return "no_rounds", "the row has no turns"
    for number, turn in enumerate(turns):
        role, expected = turn.get("from"), ("human", "gpt")[number % 2]
        if role not in ("human", "gpt"):
            return "unknown_role", f"turn {number} is from {role!r}"
        if not isinstance(turn.get("value"), str):
            return "bad_turn", f"turn {number} has no text in `value`"
        if role != expected:
            return "role_order", f"turn {number} is from {role!r}, expected {expected!r}"
    if len(turns) % 2:
        return "odd_turns", f"{len(turns)} turns, the last question has no answer"
    return None
