"""What trains when, for people who want to check."""

from typing import Literal

import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.schedule.packing import Lengths, Positions, waste
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.mixture.schedule.trees import Bin, Sharing, packed_bins


class Share(Struct, frozen=True, kw_only=True):
    """What one rank takes of one step. `length` is what is computed of it: what samples share counts once. `bins` are
    the ids bin by bin where shares are packed, `waste` the part of their room that holds nothing."""

    epoch: int
    step: int
    rank: int
    kind: Literal["image", "text"]
    ids: list[str]
    length: int
    bins: list[list[str]] = []
    waste: float = 0.0


def of_pictures(groups: NDArray[np.uint64], pictures: NDArray[np.int64]) -> Sharing:
    """What samples of the same pictures share: as much as these are long, whatever text is before them."""
    return Sharing(groups, pictures, np.zeros(len(groups), dtype=np.uint64))


def audit(
    ids: pa.ChunkedArray,
    order: Schedule,
    world: int,
    rank: int | None,
    epoch: int,
    start: int,
    steps: int,
    capacity: int | None = None,
    sharing: Sharing | None = None,
) -> list[Share]:
    """The shares of `steps` steps (0: to the end) of an epoch from step `start`, of all ranks or of one. `ids` [N]: of
    the samples; `sharing`: what of them is computed once, which needs a `capacity`."""
    if start >= order.steps_per_epoch:
        raise VlmixError(f"start {start}: an epoch has {order.steps_per_epoch} steps, from 0")
    end = min(start + steps, order.steps_per_epoch) if steps else order.steps_per_epoch
    listed = []
    for step in range(start, end):
        at = epoch * order.steps_per_epoch + step
        kind: Literal["image", "text"] = "image" if order.epoch(epoch).images[step] else "text"
        for number in range(world) if rank is None else (rank,):
            bins, lengths = _bins(order, at, number, world, capacity, sharing)
            positions = np.concatenate([*bins, np.empty(0, dtype=np.int64)])
            listed.append(
                Share(
                    epoch=epoch,
                    step=step,
                    rank=number,
                    kind=kind,
                    ids=ids.take(positions).to_pylist(),
                    length=sum(lengths),
                    bins=[ids.take(members).to_pylist() for members in bins] if capacity else [],
                    waste=waste(lengths, capacity) if capacity else 0.0,
                )
            )
    return listed


def _bins(
    order: Schedule, step: int, rank: int, world: int, capacity: int | None, sharing: Sharing | None
) -> tuple[list[Positions], list[int]]:
    """The samples of each bin, or of the one share, and the length that is computed of them."""
    if capacity and sharing:
        samples = order.shared_batch(step, rank, world)
        mine = packed_bins(samples, order.lengths[samples], sharing, world, capacity)[rank]
        return [each.positions for each in mine], [_computed(each, order.lengths, sharing) for each in mine]
    bins = order.packed_batch(step, rank, world, capacity) if capacity else [order.rank_batch(step, rank, world)]
    return bins, [int(order.lengths[members].sum()) for members in bins]


def _computed(members: Bin, lengths: Lengths, sharing: Sharing) -> int:
    """The length of a bin's samples, what those of a tree share counted once."""
    positions, sizes = members.positions, np.array(members.trees, dtype=np.int64)
    firsts = positions[np.cumsum(sizes) - sizes]
    return int(lengths[positions].sum() - ((sizes - 1) * sharing.trunks[firsts]).sum())
