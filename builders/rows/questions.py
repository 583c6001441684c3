"""Rows of the forms `qa` and `captions`: questions with answers or choices, and images with captions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmix.builders.rows.parsed import Parsed, Problem, bad, placed, text_of
from vlmix.builders.text import majority
from vlmix.mixture.io.rows.text import loaded
from vlmix.mixture.record import IMAGE_TOKEN, ResponseFormat, Round, is_blank
from vlmix.mixture.render import LETTERS

_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


def questions(
    row: Mapping[str, Any], images: int, column: Mapping[str, str], response_format: ResponseFormat | None
) -> Parsed:
    """One round for a question, or several for lists of questions and answers. `column` names the columns of
    `question`, `answer`, `choices` and `correct`."""
    question, answer = row[column["question"]], row.get(column.get("answer", ""))
    listed = row.get(column.get("choices", ""))
    labels, options = listed_options(listed)
    if isinstance(question, list):  # a question each with an answer, as in OCR-VQA
        answers = loaded(answer)
        if answers is None or len(answers) != len(question):
            return bad("bad_answer", "it has not as many answers as questions")
        if options:
            return bad("bad_choice", "it has choices for several questions at once")
        return placed(list(zip(question, answers)), images, {"form": "qa"}, response_format)
    question = text_of(question)
    if options or (isinstance(listed, str) and listed and loaded(listed) is None):
        choices = tuple(text_of(choice) or "" for choice in options)
        if "" in choices:
            return bad("bad_choice", f"choice {choices.index('') + 1} of {len(choices)} is empty")
        index = row.get(column.get("correct", ""))
        correct = correct_option(index, answer, choices, labels)
        if correct is None or len(choices) > len(LETTERS):
            if _is_place(answer) and text_of(answer) in choices:
                return bad(
                    "bad_choice",
                    f"the answer {answer} may be a place or the text of a choice; if it is a place, say so: "
                    f"`fields: {{correct: {column['answer']}}}`",
                )
            return bad(
                "bad_choice", f"the answer {answer if index is None else index!r} is none of its {len(choices)} choices"
            )
        if question is None or is_blank(question):
            return bad("empty_text", "the question is empty")
        if tokens := question.count(IMAGE_TOKEN):
            return bad("image_token", f"the question has {tokens} {IMAGE_TOKEN}; images stand in front of choices")
        return Parsed({0: Round(question, choices[correct], "choice", choices, correct)}, extra={"form": "qa"})
    answer = listed_answers(answer, column.get("answer", ""))
    if isinstance(answer, bool):
        return bad("bad_answer", f"its answer is {str(answer).lower()}; write it as text, such as yes or no")
    if isinstance(answer, list) and any(_is_place(one) or isinstance(one, float) for one in answer):
        return bad("bad_answer", "its answer is a list of numbers")
    return placed([(question, _answer(answer))], images, {"form": "qa"}, response_format)


def listed_answers(value: Any, column: str) -> Any:
    """The list of answers that a text stands for, in a column with a plural name; elsewhere it is an answer that looks
    like one. What is no list comes back as it is."""
    return value if not column.endswith("s") or (listed := loaded(value)) is None else listed


def listed_options(value: Any) -> tuple[list[str], list[Any]]:
    """(labels, choices) of `{label: [A, B], text: [...]}` or `{A: ..., B: ...}`, or of a list, which has no labels.
    What is null at the end, or under a label, is no choice."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), list):
            labels = value.get("label")
            named = labels if isinstance(labels, list) and len(labels) == len(value["text"]) else []
            return [str(label) for label in named], value["text"]
        value = {label: choice for label, choice in value.items() if choice is not None}
        return list(map(str, value)), list(value.values())
    choices = list(loaded(value) or [])
    while choices and choices[-1] is None:
        choices.pop()
    return [], choices


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def correct_option(index: Any, answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    """Which choice is right: the one at an index, under a label, of this text or letter, tried in this order. A number
    as the answer that is the text of another choice is None."""
    for value, is_index in ((index, True), (answer, False)):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and _is_place(value):
            if not is_index and str(value) in choices and choices.index(str(value)) != value:
                return None
            if 0 <= value < len(choices):
                return value
            if is_index and value > 0:
                return None
        if not isinstance(value, str):
            continue
        digits = int(value) if re.fullmatch(r"\s*\d{1,3}\s*", value) else len(choices)
        if is_index and digits < len(choices):
            return digits
        for listed in (labels, choices):
            if value in listed:
                return listed.index(value)
        if (place := place_of_letter(value, labels, len(choices))) is not None:
            return place
        if digits < len(choices):
            return digits
    return None


def place_of_letter(text: str, labels: Sequence[str], count: int) -> int | None:
    """Which of `count` choices a letter means, such as B, (b) or B., by their labels if they have any; None: it is no
    letter of theirs."""
    letter = _LETTER.fullmatch(text.strip())
    letters = labels or LETTERS[:count]
    return letters.index(letter[1].upper()) if letter and letter[1].upper() in letters else None


def _answer(value: Any) -> str | None:
    """An answer; of several the one given most often, the earliest on ties."""
    if not isinstance(value, list):
        return text_of(value)
    texts = [text_of(one.get("answer") if isinstance(one, dict) else one) for one in value]
    return majority(text for text in texts if text)


def captions(value: Any, images: int) -> Parsed:
    """One round under the prompt of the style."""
    several = value if isinstance(value, list) else [value]
    caption = text_of(several[0] if several else None)
    if caption is None or is_blank(caption):
        return bad("empty_text", "the caption is empty")
    if IMAGE_TOKEN in caption:
        return bad("image_token", f"the caption has {IMAGE_TOKEN}")
    if not images:
        return bad("no_image", "a caption without an image")
    further = [Problem("further_caption", repr(one), number) for number, one in enumerate(several) if number]
    return Parsed({0: Round("", caption, "caption")}, problems=further, extra={"form": "captions"})
