"""Work over processes of this machine: bounded queues, progress, and no worker that outlives its parent."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, TypeVar

from vlmix.mixture.errors import VlmixError

Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, how many there are)."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


class Engine(Protocol):
    """What runs tasks. A task is a pure function's argument: its files appear by rename, and it may run twice."""

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """(task, result) pairs in the order of completion; `tasks` are drawn as they can be handed out, some at a time.
        The first exception ends the iteration: what a task raises, or VlmixError when workers are lost for good."""
        ...


class Pool:
    """`workers` processes, started when first needed and shared by all stages of a build; 1 means this process."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise VlmixError(f"{workers} workers: at least 1 is needed")
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """As `Engine.map`."""
        if self.workers == 1:
            for task in tasks:
                yield task, run(function, task)
            return
        if self._executor is None:
            # Spawned, not forked: a fork copies the locks of Arrow's and polars' threads.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, _start_worker, (os.getpid(),))
        pending: dict[Future[Result], Task] = {}
        queue = iter(tasks)
        try:
            while True:
                with _no_interrupt():
                    for task in islice(queue, 2 * self.workers - len(pending)):
                        pending[self._executor.submit(run, function, task)] = task
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool:
            raise VlmixError(
                "a worker process was killed, probably for lack of memory; run the same command again with fewer "
                "--workers, it resumes from here"
            ) from None
        finally:
            for future in pending:
                future.cancel()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        # Without waiting, its thread would meet closed pipes when the interpreter ends, and complain.
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


def run(function: Callable[[Task], Result], task: Task) -> Result:
    """A task's result, without the search for circles: records have none, and looking for them takes a sixth of the
    time of a task that makes many."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return function(task)
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Holds Ctrl-C back while processes start: they inherit the mask and never meet it half made."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def leave_with_parent() -> None:
        # A worker blocked on its queue never notices that the parent was killed.
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
