"""The loader of steps: worker processes prepare them in order."""

import os
import signal
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Item = TypeVar("Item")


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
    workers as well, from a terminal or a scheduler: they continue, as the step in progress needs them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
