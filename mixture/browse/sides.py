"""What pages show beside each other: a mixture alone, a view and what it left of its root, or several mixtures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError

MOST_SIDES = 8


@dataclass(frozen=True)
class Side:
    """One of them, under a name that no other has. `about` says how it was made, "" for a mixture that is whole; `of`
    is what it is a part of, None for no part. `left` is true of what the other sides leave."""

    name: str
    mixture: Reader
    about: str = ""
    of: Reader | None = None
    left: bool = False


def sides_of(opened: Sequence[Reader]) -> list[Side]:
    """The sides of one or more mixtures. One view, or a view beside its root, is what was selected and what was left.

    Raises VlmixError for more than MOST_SIDES.
    """
    if len(opened) == 2:
        first, second = opened
        views = [one for one, other in ((first, second), (second, first)) if _is_view_of(one, other)]
        opened = views or opened
    if len(opened) == 1:
        only = opened[0]
        return (
            selected_and_left([(short_name(only), only)], whole(only))
            if _is_view(only)
            else [Side(short_name(only), only)]
        )
    if len(opened) > MOST_SIDES:
        raise VlmixError(f"{len(opened)} mixtures: at most {MOST_SIDES} are shown beside each other")
    names = [short_name(one) for one in opened]
    return [
        Side(name if names.count(name) == 1 else f"{name} ({chr(65 + at)})", one, _selection(one))
        for at, (name, one) in enumerate(zip(names, opened))
    ]


def selected_and_left(parts: Sequence[tuple[str, Reader]], of: Reader) -> list[Side]:
    """(name, part) of parts of the mixture or view `of` as sides, and as the last one what none of them has.

    Raises VlmixError for more than MOST_SIDES, and for a part of something else.
    """
    if len(parts) >= MOST_SIDES:
        raise VlmixError(f"{len(parts)} subsets: at most {MOST_SIDES - 1} are shown beside what they left")
    taken = np.zeros(of.root_manifest.samples, dtype=bool)
    for name, part in parts:
        if part.root_manifest.sha256 != of.root_manifest.sha256:
            raise VlmixError(f"{name} is no part of {of.folder.name}, or of what that was before it was built anew")
        taken[part.rows] = True
    left = np.flatnonzero(~taken[of.rows])
    sides = [Side(f"selected: {name}" if len(parts) == 1 else name, part, _selection(part), of) for name, part in parts]
    if len(left):
        about = f"the samples of {short_name(of)} that were not selected"
        sides.append(Side("left out", of.select(left), about, of, left=True))
    return sides


def whole(mixture: Reader) -> Reader:
    """All samples of what a mixture or view is a part of."""
    return type(mixture)(mixture.root, mixture.root_manifest, mixture.root, mixture.root_manifest, None)


def common_whole(sides: Sequence[Side]) -> Reader | None:
    """What all of several sides are parts of; None if there is no such thing."""
    if len(sides) == 1 or len({side.mixture.root_manifest.sha256 for side in sides}) > 1:
        return None
    return sides[0].of or whole(sides[0].mixture)


def shared_ids(sides: Sequence[Side]) -> list[tuple[str, str, int]]:
    """(first side, another, ids that both have) for all sides but what they left."""
    first, *others = sides
    return [(first.name, other.name, in_common(first.mixture, other.mixture)) for other in others if not other.left]


def in_common(one: Reader, other: Reader) -> int:
    """How many ids both have."""
    mine, others = (pl.DataFrame({"id": pl.Series(part.column("id"))}) for part in (one, other))
    return len(mine.join(others, on="id", how="semi"))


def short_name(mixture: Reader) -> str:
    return mixture.folder.name.rstrip("/").rpartition("/")[2] or mixture.manifest.name


def _is_view(mixture: Reader) -> bool:
    return mixture.manifest.parent is not None


def _is_view_of(one: Reader, other: Reader) -> bool:
    return _is_view(one) and not _is_view(other) and one.root_manifest.sha256 == other.manifest.sha256


_SAID = ("total", "sources", "where", "by", "column", "threshold", "embeddings", "clusters", "seed")


def _selection(mixture: Reader) -> str:
    """How a subset was selected, in words; one step after the other."""
    steps = []
    for entry in mixture.manifest.selections:
        said = [f"{100 * entry['ratio']:g} %"] if entry.get("ratio") else []
        said += [f"{key} {entry[key]}" for key in _SAID if entry.get(key) not in (None, {})]
        said += ["the lowest first"] if entry.get("ascending") else []
        said += ["not stratified"] if entry.get("stratify") is False else []
        steps.append(", ".join(said))
    return "; then ".join(step for step in steps if step)
