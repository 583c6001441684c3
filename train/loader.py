"""The loader of steps: worker processes prepare them in order, and of a mixture in a store, read one step ahead."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vlmix.mixture.blend import Samples

Item = TypeVar("Item", covariant=True)


class SampleSteps(Dataset[Item], Generic[Item]):
    """Item k is what `item` makes of what `read(k)` reads from `mixture`."""

    mixture: Samples

    def read(self, step: int) -> Any:
        raise NotImplementedError

    def item(self, step: int, read: Callable[[], Any]) -> Item:
        """`read` gives what `self.read(step)` does, or raises what it does."""
        raise NotImplementedError

    def __getitem__(self, step: int) -> Item:
        return self.item(step, lambda: self.read(step))


class _Ahead(Dataset[Item]):
    """The items of steps, of which a process takes every `stride`-th before `end`: while one is prepared, a thread
    reads the samples of the next one. What the schedule will ask for is known, so nothing else is read."""

    def __init__(self, steps: SampleSteps[Item], end: int, stride: int) -> None:
        self.steps, self.end, self.stride = steps, end, stride
        self._next: tuple[int, Future[Any]] | None = None

    def __getitem__(self, step: int) -> Item:
        return self.steps.item(step, lambda: self._taken(step))

    def _taken(self, step: int) -> Any:
        number, reading = self._next or self._begun(step)
        if number != step:
            wait([reading])  # one reads at a time
            number, reading = self._begun(step)
        self._next = None
        found = reading.result()
        if step + self.stride < self.end:
            self._next = self._begun(step + self.stride)
        return found

    def _begun(self, step: int) -> tuple[int, Future[Any]]:
        future: Future[Any] = Future()

        def read() -> None:
            try:
                future.set_result(self.steps.read(step))
            except BaseException as error:  # raised where the result is asked for
                future.set_exception(error)

        # No pool: a process that ends would wait for its threads, and they for a store.
        threading.Thread(target=read, daemon=True).start()
        return step, future


def make_loader(steps: "Dataset[Item]", start: int, end: int, workers: int = 2) -> "DataLoader[Item]":
    """The items from `start` to before `end`, in order, prepared by `workers` processes."""
    if isinstance(steps, SampleSteps) and steps.mixture.in_store:
        steps = _Ahead(steps, end, max(workers, 1))
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
