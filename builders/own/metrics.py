"""What an answer is worth, from 0 to 1, by the metrics that a benchmark of one's own may name.

Of several accepted answers the best counts, but for `vqa`, which counts them all.
"""

import importlib
import math
import re
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from vlmix.builders.benchmarks.mmbench import chosen
from vlmix.builders.benchmarks.normalise import Memo, evalai
from vlmix.builders.benchmarks.vqa import AS_SUBMITTED, Human, HumanAnswers, TextCache
from vlmix.builders.own.item import Item
from vlmix.mixture.errors import VlmixError, fault, nearest
from vlmix.mixture.render import LETTERS

FEWEST_HUMANS = 3
"""Of a question scored by `vqa`: below, no answer is worth 1."""
_ANLS_THRESHOLD = 0.5
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts that put no space between words: Thai, Lao, Burmese, Khmer, Chinese, Japanese."""
_CODE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

Rate = Callable[[str, Item], float]
"""(prediction, question with its accepted answers) -> 0..1."""


class Metric(NamedTuple):
    """A metric by its title, its rule in a sentence for the report, and itself."""

    title: str
    rule: str
    rate: Rate


def metric_named(name: str, allow_code: bool, where: str) -> Metric:
    """The metric of this name, or `module:function`. `where` begins errors. Raises VlmixError for one that there is
    not, and for code unless `allow_code`."""
    if name in METRICS:
        return METRICS[name]()
    if not _CODE.fullmatch(name):
        raise VlmixError(f"{where}: metric: there is no metric {name!r}{nearest(name, METRICS)}; or module:function")
    if not allow_code:
        raise VlmixError(
            f"{where}: its metric is code, {name}, which is run only with --allow-code: look at what it does first"
        )
    return Metric(name, f"scored by {name}", _loaded(name, where))


def exact(text: str, answer: str) -> bool:
    """Whether two texts are the same, but for case, white space around them, and one full stop at the end."""
    return _bare(text) == _bare(answer)


def contains(text: str, answer: str) -> bool:
    """Whether the words of `answer` are in `text`, one after the other, whatever their case."""
    words = _bare(answer).split()
    if not words:
        return False
    before = "" if re.match(rf"[{_UNSPACED}\W]", words[0]) else r"(?<!\w)"
    after = "" if re.match(rf"[{_UNSPACED}\W]", words[-1][-1]) else r"(?!\w)"
    pattern = before + r"\s+".join(map(re.escape, words)) + after
    return re.search(pattern, text.casefold()) is not None


def anls(text: str, answer: str) -> float:
    """1 - edits / length of the longer text, 0 if that is below 0.5: ANLS of DocVQA's `infographicsvqa_eval.py`, which
    lower-cases and joins white space before it counts edits, and not before it measures lengths."""
    longest = max(len(text), len(answer))
    if not longest:
        return 1.0
    one, other = " ".join(text.lower().split()), " ".join(answer.lower().split())
    if abs(len(one) - len(other)) > longest * (1 - _ANLS_THRESHOLD):
        return 0.0
    value = 1 - _edits(one, other) / longest
    return value if value >= _ANLS_THRESHOLD else 0.0


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").rstrip().casefold()


def _edits(one: str, other: str) -> int:
    """Levenshtein's distance."""
    before = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, of_other in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != of_other)))
        before = row
    return before[-1]


def _best(rate: Callable[[str, str], float]) -> Rate:
    return lambda text, item: max(float(rate(text, answer)) for answer in item.answers)


def _vqa() -> Metric:
    words, processed = TextCache(), Memo(evalai)

    def rate(text: str, item: Item) -> float:
        humans = [Human(answer, number) for number, answer in enumerate(item.answers)]
        return HumanAnswers(humans, words).accuracy(processed[text])

    return Metric("VQA accuracy", AS_SUBMITTED.partition(";")[0], rate)


def _choice(text: str, item: Item) -> float:
    return float(chosen(text, dict(zip(LETTERS, item.options))) == item.answers[0])


METRICS: dict[str, Callable[[], Metric]] = {
    "exact": lambda: Metric("exact match", "case, outer white space and a final full stop aside", _best(exact)),
    "contains": lambda: Metric(
        "answer contained", "right if the words of an accepted answer are in it, case aside", _best(contains)
    ),
    "vqa": _vqa,
    "anls": lambda: Metric("ANLS", "1 - edits / length, 0 below 0.5", _best(anls)),
    "choice": lambda: Metric(
        "accuracy", "letters by MMBench's exact matching, an answer that matches no option is wrong", _choice
    ),
}


def _loaded(name: str, where: str) -> Rate:
    module, _, function = name.partition(":")
    try:
        call: Any = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # whatever somebody's module does when it is imported
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise VlmixError(
                f"{where}: metric: there is no module {error.name}; install it, or put its folder on PYTHONPATH"
            ) from None
        raise VlmixError(f"{where}: metric: {module} cannot be imported: {fault(error)}") from None
    if not callable(call):
        raise VlmixError(f"{where}: metric: {module} has no function {function}")

    def rate(text: str, item: Item) -> float:
        try:
            value = call(text, list(item.answers), dict(item.row))
        except Exception as error:  # whatever somebody's function does
            raise VlmixError(f"{where}: question {item.question.id}: {name} failed: {fault(error)}") from None
        return _share(value, f"{where}: question {item.question.id}: {name} returned")

    return rate


def _share(value: Any, what: str) -> float:
    if not isinstance(value, Real | np.bool_):
        raise VlmixError(f"{what} {type(value).__name__} {str(value)[:60]!r}, expected a number from 0 to 1")
    number = float(value)
    if math.isnan(number) or not 0 <= number <= 1:
        raise VlmixError(f"{what} {number:g}, expected a number from 0 to 1")
    return number
