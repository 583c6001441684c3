"""Scores that papers report for parts of LLaVA-1.5's 665K mixture, as marks in a picture. They are no comparison.

A new entry needs its source, and how sure the number is.
"""

from collections.abc import Collection
from typing import NamedTuple

from vlmix.mixture.errors import VlmixError, nearest

CAVEAT = (
    "Published scores of LLaVA-1.5-7B on parts of its 665K mixture are reference marks and no comparison: every paper "
    "takes the mean over other benchmarks, most train with LoRA, and nearly all have one seed."
)
_ABSTRACT = "stated in the abstract"
_MEMORY = "from memory of a table, not checked"


class Published(NamedTuple):
    """One score in percent of the full mixture's."""

    name: str
    """The method. A sweep's `published` names it."""
    ratio: float
    relative: float
    source: str
    certainty: str
    above: bool = False
    """Whether the source says only that the score is above `relative`."""


PUBLISHED = (
    Published("OFA", 0.15, 98.3, "arXiv 2605.26761", f"{_ABSTRACT}, mean over 10 benchmarks"),
    Published("COINCIDE", 0.2, 97.4, "arXiv 2406.10995", f'{_MEMORY}; the abstract says "comparable"'),
    Published("ICONS", 0.2, 98.6, "arXiv 2501.00654", _ABSTRACT),
    Published("random", 0.2, 95.8, "arXiv 2501.00654 (ICONS)", _MEMORY),
    Published("XMAS", 0.5, 100.0, "arXiv 2510.01454", f'{_ABSTRACT} as "fully preserving", on 10 benchmarks'),
    Published("random", 0.5, 98.0, "arXiv 2310.03744 (LLaVA-1.5), section 5.1", 'stated as "more than"', above=True),
)


def published(names: bool | Collection[str]) -> list[Published]:
    """All of `PUBLISHED`, none, or those of `names`. Raises VlmixError for a name that is not among them."""
    if isinstance(names, bool):
        return list(PUBLISHED) if names else []
    known = {each.name for each in PUBLISHED}
    if unknown := [name for name in names if name not in known]:
        raise VlmixError(f"published: there is no score of {unknown[0]!r}{nearest(unknown[0], known)}")
    return [each for each in PUBLISHED if each.name in names]
