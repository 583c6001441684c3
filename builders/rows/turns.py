"""Rows of the forms `conversations` and `messages`: turns that alternate."""

from typing import Any, Literal

from vlmix.builders.rows.parsed import Parsed, Problem, bad, placed
from vlmix.mixture.io.rows.images import IMAGE_BLOCKS, ImageItem, block_image, image_items
from vlmix.mixture.io.rows.text import loaded
from vlmix.mixture.record import IMAGE_TOKEN

_USERS = ("human", "user", "User", "USER", "Human")
_ASSISTANTS = ("gpt", "assistant", "Assistant", "ASSISTANT", "model", "bot")
_SYSTEMS = ("system", "System")


def turns(value: Any, images: int, form: Literal["conversations", "messages"]) -> Parsed:
    """Alternating turns. A system turn at the beginning joins the first question, a last question without an answer is
    dropped, and any other turn is a reject."""
    listed = loaded(value)
    if not listed:
        return bad("no_rounds", "the row has no turns")
    role_key, text_key = ("from", "value") if form == "conversations" else ("role", "content")
    texts: list[str] = []
    inside: list[ImageItem] = []
    system, blocks = "", False
    for number, turn in enumerate(listed):
        if not isinstance(turn, dict):
            return bad("bad_turn", f"turn {number} is {type(turn).__name__}, expected an object")
        role, content = turn.get(role_key), turn.get(text_key)
        text, found, problem = _content(content)
        if problem:
            return bad(problem[0], f"turn {number} {problem[1]}")
        blocks |= isinstance(content, list)
        inside += found
        if role in _SYSTEMS and number == 0:
            system = text
            continue
        expected = _ASSISTANTS if len(texts) % 2 else _USERS
        if role not in (*_USERS, *_ASSISTANTS):
            return bad("unknown_role", f"turn {number} is from {role!r}")
        if role not in expected:
            return bad("role_order", f"turn {number} is from {role!r}, expected {expected[0]!r}")
        if turn.get("tool_calls"):
            return bad("unknown_role", f"turn {number} calls a tool")
        texts.append(text)
    problems = []
    if len(texts) % 2:
        problems = [Problem("odd_turns", "the last question has no answer", len(texts) // 2)]
        if IMAGE_TOKEN in texts.pop():
            return bad("odd_turns", "the last question has an image and no answer")
    if not texts:
        return bad("odd_turns", "the question has no answer")
    extra: dict[str, Any] = {"form": form}
    if system.strip():
        texts[0] = f"{system}\n\n{texts[0]}"
        extra["system"] = system
    # A block of an image with nothing in it stands for one of the row's.
    given = inside if blocks and any(item is not None for item in inside) else None
    pairs = [(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]
    parsed = placed(pairs, images if given is None else len(given), extra)
    return Parsed(parsed.rounds, parsed.image_at, [*problems, *parsed.problems], parsed.extra, given)


def _content(content: Any) -> tuple[str, list[ImageItem], tuple[str, str] | None]:
    """(text with image tokens, the images of its blocks, why it cannot be read). Blocks of images that lead are
    followed by a line break, as in LLaVA's rows."""
    if isinstance(content, str):
        return content, [], None
    blocks = content if isinstance(content, list) else None
    if blocks is None:
        return "", [], ("bad_turn", "has no text")
    text, images, leading = "", list[ImageItem](), True
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            text, leading = text + block["text"], False
        elif kind in IMAGE_BLOCKS:
            found = image_items(block_image(block)) or [None]
            if len(found) > 1:
                return "", [], ("bad_image", f"has a block of {len(found)} images; give each a block")
            images += found
            text += f"{IMAGE_TOKEN}\n" if leading else IMAGE_TOKEN
        elif kind in ("video", "audio", "video_url", "input_audio"):
            return "", [], ("unread_media", f"has a block of {kind}; take frames as images")
        else:
            return "", [], ("bad_turn", f"has a block of type {kind!r}")
    return text, images, None
