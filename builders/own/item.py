"""A question of one's own benchmark, with what is needed to score it, and all of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vlmix.mixture.benchmark.benchmark import Question


class Item(NamedTuple):
    """`answers` are the accepted ones; of a question with `options` the letter of the right one. `cluster` is what it
    shares with others, `groups` are the sub-scores that it counts in, (column, value) each, `row` is what its source
    says."""

    question: Question
    answers: tuple[str, ...]
    cluster: str
    groups: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    row: Mapping[str, Any] = {}


class Asked(NamedTuple):
    """The questions of a benchmark, and what a report should say about them."""

    items: list[Item]
    notes: list[str]
