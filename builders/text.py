"""How LLaVA-1.5 words answers and phrases."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from mixture.record import INVISIBLE

Split = Literal["train", "val"]

_LINE_BREAK = re.compile(r"[^\S\n\r]*[\n\r]+\s*")


def short(answer: str, capitalize: bool = True) -> str:
    """A short answer: outer white space gone, `str.capitalize()` unless told otherwise."""
    answer = answer.strip(INVISIBLE)
    return answer.capitalize() if capitalize else answer


def majority(answers: Iterable[str]) -> str:
    """The most frequent answer, the earliest on ties, "" when there is none."""
    counts = Counter(answers)
    return counts.most_common(1)[0][0] if counts else ""


def phrase(text: str) -> str:
    """A referring phrase as it stands before the prompt's full stop: outer white space and final stops removed, line
    breaks made spaces; case and double spaces are kept."""
    return _LINE_BREAK.sub(" ", text.strip(INVISIBLE)).rstrip(". ")


def sentence(text: str) -> str:
    """A phrase as an answer: `str.capitalize()` and exactly one full stop."""
    return f"{phrase(text).capitalize()}."
