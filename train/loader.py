"""Steps of training as a dataset: one item is what one rank takes of one step, images decoded."""

import os
import signal
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.train.config import AspectRatio
from vlmix.train.images import CLIP_MEAN, decode, to_square

Item = TypeVar("Item")


@dataclass(frozen=True)
class StepBatch:
    """A rank's share of a step: positions [B], samples without their encoded images, and the images
    [B', 3, side, side] uint8 of those that have one, in the same order."""

    step: int
    positions: NDArray[np.int64]
    samples: list[Sample]
    images: torch.Tensor


class StepDataset(Dataset[StepBatch]):
    """The steps of a training, by number. The order is that of `order`; nothing is buffered or drawn here."""

    def __init__(
        self,
        mixture: Mixture,
        order: Schedule,
        *,
        rank: int = 0,
        world: int = 1,
        side: int = 336,
        fitting: AspectRatio = "pad",
        mean: tuple[float, float, float] = CLIP_MEAN,
    ) -> None:
        self.mixture, self.order = mixture, order
        self.rank, self.world = rank, world
        self.side, self.fitting, self.mean = side, fitting, mean

    def __getitem__(self, step: int) -> StepBatch:
        positions = self.order.rank_batch(step, self.rank, self.world)
        samples, images = [], []
        for position in positions.tolist():
            sample = self.mixture[position]
            if sample.jpeg is not None:
                images.append(to_square(decode(sample.jpeg), self.side, self.fitting, self.mean))
            samples.append(msgspec.structs.replace(sample, jpeg=None))
        pixels = torch.stack(images) if images else torch.empty((0, 3, self.side, self.side), dtype=torch.uint8)
        return StepBatch(step, positions, samples, pixels)


def make_loader(steps: "Dataset[Item]", start: int, end: int, workers: int = 2) -> "DataLoader[Item]":
    """The items from `start` to before `end`, in order, prepared by `workers` processes."""
    return DataLoader(
        steps,
        batch_size=None,
        sampler=range(start, end),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_alone,
    )


def _alone(worker: int) -> None:
    """A worker tokenizes as one thread, as others are busy with the next steps. A signal that ends the run reaches
    workers as well, from a terminal or a scheduler: they go on, for the step in progress needs them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
