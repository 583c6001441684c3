"""The samples of a mixture or a part of it by the row groups of the root's index, and what is stored of
them by the places that their rows name: what goes through all samples holds one group at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.dataset.manifest import SAMPLES_NAME
from vlmix.mixture.dataset.reader import Place, RawSample, Reader
from vlmix.mixture.errors import VlmixError


@dataclass(frozen=True)
class Group:
    """The samples of a row group: its number, the row of its `first` in the index, their `rows` [n] in the group, and
    their `positions` [n] in the mixture."""

    number: int
    first: int
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]


def row_groups(mixture: Reader, sizes: NDArray[np.int64]) -> Iterator[Group]:
    """The row groups that hold samples of `mixture`, in order, within one by position; `sizes` [G] are their rows.

    Raises VlmixError for a view that names rows which its root has not.
    """
    rows = mixture.rows
    if len(rows) and (rows.min() < 0 or rows.max() >= sizes.sum()):
        what = f"{mixture.folder.name}: {SAMPLES_NAME} names rows that {mixture.root.name} has not"
        raise VlmixError(f"{what}; `vlmix verify` lists all damage")
    return groups_of(rows, sizes)


def groups_of(rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[Group]:
    """The same for `rows` [N] of any index."""
    ends = np.cumsum(sizes)
    if bool((rows[1:] > rows[:-1]).all()):
        order, bounds = None, np.searchsorted(rows, [0, *ends])
    else:
        groups = np.searchsorted(ends, rows, side="right").astype(np.int32)
        order = np.argsort(groups, kind="stable")
        bounds = np.searchsorted(groups[order], np.arange(len(ends) + 1))
    for number, (start, stop) in enumerate(zip(bounds.tolist(), bounds[1:].tolist())):
        if start < stop:
            positions = np.arange(start, stop) if order is None else order[start:stop]
            first = int(ends[number] - sizes[number])
            yield Group(number, first, rows[positions] - first, positions)


class Stored:
    """What a root's shards hold of its samples, read at the places that their rows name. A copy in another process
    opens the shards by itself."""

    def __init__(self, mixture: Reader) -> None:
        # A reader of its own: this one never has the places of all samples.
        self._root = mixture.whole_root()
        self._ahead: dict[int, RawSample] = {}
        self._shards = {shard.path: (number, shard.bytes) for number, shard in enumerate(mixture.root_manifest.shards)}

    def of(self, row: dict[str, Any]) -> tuple[bytes, ...]:
        """The stored bytes of the images of a row; see `members`."""
        if not row["images"]:
            return ()
        return (self._ahead.get(row["root_row"]) or self.members([row])[0]).jpegs

    def members(self, rows: Sequence[dict[str, Any]]) -> list[RawSample]:
        """The undecoded members of rows of the index, of which `id`, `shard`, `json_offset`, `json_size`, `images` and
        the `root_row` are needed.

        Raises VlmixError if a shard is missing, truncated or another than the index says.
        """
        return self._root.members([self._place(row) for row in rows])

    def read_ahead(self, rows: Sequence[dict[str, Any]]) -> None:
        """Have the images of these rows at hand, if they are in a store, and nothing else. Raises as `members`."""
        if self._root.in_store:
            shown = [row for row in rows if row["images"]]
            self._ahead = {row["root_row"]: raw for row, raw in zip(shown, self.members(shown))}

    def _place(self, row: dict[str, Any]) -> Place:
        number, size = self._shards.get(row["shard"], (-1, 0))
        json_place = row["json_offset"], row["json_size"]
        places = [(image["offset"], image["size"]) for image in row["images"]]
        if number >= 0 and any(min(place) < 0 or sum(place) > size for place in (json_place, *places)):
            what = f"{self._root.root.name}: {SAMPLES_NAME} places {row['id']} outside its shard"
            raise VlmixError(f"{what}; `vlmix verify` lists all damage")
        return Place(number, row["root_row"], json_place, places)
