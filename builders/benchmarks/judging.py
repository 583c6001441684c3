"""What the benchmarks share whose answers a language model grades."""

import math

from vlmix.mixture.benchmark.benchmark import Matched
from vlmix.mixture.benchmark.judge import Judgements
from vlmix.mixture.errors import VlmixError


def finite_numbers(words: list[str]) -> list[float] | None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def required_judgements(name: str, judgements: Judgements | None, matched: Matched) -> Judgements:
    """The judgements of questions that have an answer."""
    if judgements is None:
        raise VlmixError(f"{name} needs a judge: name one with --judge, or a file of judgements with --judgements")
    found = {id: judgement for id, judgement in judgements.items() if id in matched.texts}
    if not found:
        raise VlmixError(f"{name}: none of the {len(judgements):,} judgements is of one of the answered questions")
    return found


def judge_notes(found: Judgements, judged: int, count: int, usual: str) -> list[str]:
    models = sorted({judgement.model for judgement in found.values() if judgement.model})
    by = f"by {', '.join(models)}" if models else "by a judge that the file does not name"
    return [f"{judged:,} of {count:,} questions judged {by}; {usual}, and scores of different judges do not compare"]
