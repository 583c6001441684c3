"""A GQA question before it becomes a record, and the text form of its program."""

from dataclasses import dataclass

from vlmix.builders.miniature.scenes import Thing

Step = tuple[str, list[int], str]
"""operation, dependencies, argument"""


@dataclass(frozen=True, slots=True)
class Draft:
    """A question before it gets its key. Drafts of one `topic` entail each other; `things` are those it mentions."""

    question: str
    answer: str
    full: str
    steps: list[Step]
    types: tuple[str, str, str]
    """structural, semantic, detailed"""
    group: str | None
    local: str
    topic: str
    things: tuple[Thing, ...] = ()
    answered: Thing | None = None


def program_text(steps: list[Step]) -> str:
    """GQA's semanticStr: "select: ball (7)->query: color [0]"."""
    return "->".join(f"{operation}: {argument}" + (f" {at}" if at else "") for operation, at, argument in steps)
