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
    """One of them, under a name that no other has. `about` says how it was made, "" for a mixture that is whole."""

    name: str
    mixture: Reader
    about: str = ""


def sides_of(opened: Sequence[Reader]) -> list[Side]:
    """The sides of one or more mixtures. One view, or a view beside its root, is what was selected and what was left.

    Raises VlmixError for more than MOST_SIDES.
    """
    if len(opened) == 2:
        first, second = opened
        views = [one for one, other in ((first, second), (second, first)) if _is_view_of(one, other)]
        opened = views or opened
    if len(opened) == 1:
        return selected_and_left([(_short(opened[0]), opened[0], "")]) if _is_view(opened[0]) else _alone(opened[0])
    if len(opened) > MOST_SIDES:
        raise VlmixError(f"{len(opened)} mixtures: at most {MOST_SIDES} are shown beside each other")
    names = [_short(one) for one in opened]
    return [
        Side(name if names.count(name) == 1 else f"{name} ({chr(65 + at)})", one, _selection(one))
        for at, (name, one) in enumerate(zip(names, opened))
    ]


def selected_and_left(parts: Sequence[tuple[str, Reader, str]]) -> list[Side]:
    """(name, part, how it was made) of parts of one root as sides, and as the last one what none of them has."""
    root = whole(parts[0][1])
    taken = np.zeros(len(root), dtype=bool)
    for _, part, _ in parts:
        taken[part.rows] = True
    left = np.flatnonzero(~taken)
    sides = [Side(f"selected: {name}" if len(parts) == 1 else name, part, about) for name, part, about in parts]
    sides = [Side(side.name, side.mixture, side.about or _selection(side.mixture)) for side in sides]
    if len(left):
        sides.append(Side("left out", root.select(left), f"the samples of {_short(root)} that were not selected"))
    return sides


def whole(mixture: Reader) -> Reader:
    """All samples of what a mixture or view is a part of."""
    return type(mixture)(mixture.root, mixture.root_manifest, mixture.root, mixture.root_manifest, None)


def share_of_root(sides: Sequence[Side]) -> bool:
    """Whether all sides are parts of one folder, so that shares of it can be shown."""
    return len(sides) > 1 and len({side.mixture.root.name for side in sides}) == 1


def in_common(one: Reader, other: Reader) -> int:
    """How many ids both have."""
    mine, others = (pl.DataFrame({"id": pl.Series(part.column("id"))}) for part in (one, other))
    return len(mine.join(others, on="id", how="semi"))


def _alone(mixture: Reader) -> list[Side]:
    return [Side(_short(mixture), mixture)]


def _short(mixture: Reader) -> str:
    return mixture.folder.name.rstrip("/").rpartition("/")[2] or mixture.manifest.name


def _is_view(mixture: Reader) -> bool:
    return mixture.manifest.parent is not None


def _is_view_of(one: Reader, other: Reader) -> bool:
    return _is_view(one) and not _is_view(other) and one.root_manifest.sha256 == other.manifest.sha256


def _selection(mixture: Reader) -> str:
    """How a subset was selected, in words: the keys of its selections that say something."""
    steps = []
    for entry in mixture.manifest.selections:
        said = [f"{key} {value}" for key, value in entry.items() if value not in (None, {}, False, "") and key != "of"]
        steps.append(f"of {entry.get('of', '?')}: {', '.join(said)}")
    return "; then ".join(steps)
