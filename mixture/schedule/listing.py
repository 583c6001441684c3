"""What trains when, for people who want to check."""

from typing import Literal

import numpy as np
import pyarrow as pa
from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.schedule.packing import waste
from vlmix.mixture.schedule.schedule import Schedule


class Share(Struct, frozen=True, kw_only=True):
    """What one rank takes of one step. `bins` are the ids bin by bin where shares are packed, `waste` the part of their
    room that holds nothing."""

    epoch: int
    step: int
    rank: int
    kind: Literal["image", "text"]
    ids: list[str]
    length: int
    bins: list[list[str]] = []
    waste: float = 0.0


def audit(
    ids: pa.ChunkedArray,
    order: Schedule,
    world: int,
    rank: int | None,
    epoch: int,
    start: int,
    steps: int,
    capacity: int | None = None,
) -> list[Share]:
    """The shares of `steps` steps (0: to the end) of an epoch from step `start`, of all ranks or of one. `ids` [N]: of
    the samples."""
    if start >= order.steps_per_epoch:
        raise VlmixError(f"start {start}: an epoch has {order.steps_per_epoch} steps, from 0")
    end = min(start + steps, order.steps_per_epoch) if steps else order.steps_per_epoch
    listed = []
    for step in range(start, end):
        at = epoch * order.steps_per_epoch + step
        kind: Literal["image", "text"] = "image" if order.epoch(epoch).images[step] else "text"
        for number in range(world) if rank is None else (rank,):
            bins = (
                order.packed_batch(at, number, world, capacity) if capacity else [order.rank_batch(at, number, world)]
            )
            positions = np.concatenate([*bins, np.empty(0, dtype=np.int64)])
            listed.append(
                Share(
                    epoch=epoch,
                    step=step,
                    rank=number,
                    kind=kind,
                    ids=ids.take(positions).to_pylist(),
                    length=int(order.lengths[positions].sum()),
                    bins=[ids.take(members).to_pylist() for members in bins] if capacity else [],
                    waste=waste(bins, order.lengths, capacity) if capacity else 0.0,
                )
            )
    return listed
