"""How LLaVA-1.5 words answers and phrases."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from vlmix.mixture.record import IMAGE_TOKEN, INVISIBLE, is_blank

Split = Literal["train", "val"]


def short(answer: str, capitalize: bool = True) -> str:
    """A short answer: outer white space gone, `str.capitalize()` unless the options say otherwise."""
    answer = answer.strip(INVISIBLE)
    return answer.capitalize() if capitalize else answer


def text_problem(question: str, answer: str) -> tuple[str, str] | None:
    """Why a question and its answer are no round, as (code, detail); None if they are."""
    if question[:1].isalnum() and answer[:1].isalnum() and "<" not in question and "<" not in answer:
        return None  # nearly all of them
    if is_blank(answer):
        return "empty_answer", f"{question!r} has an empty answer"
    if is_blank(question):
        return "empty_question", f"an empty question has the answer {answer!r}"
    if IMAGE_TOKEN in question or IMAGE_TOKEN in answer:
        return "image_token", f"{question!r} or its answer holds {IMAGE_TOKEN!r}"
    return None


def majority(answers: Iterable[str]) -> str:
    """The most frequent answer, the earliest on ties, "" when there is none."""
    counts = Counter(answers)
    return counts.most_common(1)[0][0] if counts else ""


def phrase(text: str) -> str:
    """A referring phrase as it stands before the prompt's full stop: outer white space and final stops removed, line
    breaks made spaces; case and double spaces are kept."""
    lines = text.strip(INVISIBLE).splitlines() or [""]
    return (lines[0] if len(lines) == 1 else " ".join(line.strip() for line in lines if line.strip())).rstrip(". ")
