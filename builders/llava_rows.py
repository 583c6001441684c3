"""Rows in LLaVA's own JSON form: `id`, `image`, `conversations: [{from, value}]`."""

from typing import Any, Literal

from mixture.record import IMAGE_TOKEN

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


def turn_problem(turns: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Why `turns` are not questions and answers by turns, as (code, detail); None if they are."""
    if not turns:
        return "no_exchanges", "the row has no turns"
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
