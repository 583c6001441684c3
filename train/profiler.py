"""A trace of a few steps by torch's profiler, for chrome://tracing or ui.perfetto.dev."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from vlmix.mixture.io.atomic import disk_errors

FOLDER = "profile"


class Profiler:
    """Traces the steps `first` to `last`, counted from 1, each under its name (`step 5`). Without them it does
    nothing."""

    def __init__(self, folder: Path, steps: Sequence[int] | None) -> None:
        self.folder = folder / FOLDER
        self.first, self.last = steps or (0, 0)
        self._running: profile | None = None
        self._began = 0

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step."""
        if not self.first <= number <= self.last:
            yield
            return
        if self._running is None:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._running, self._began = profile(activities=kinds), number
            self._running.start()
        with record_function(f"step {number}"):
            yield

    def write(self, number: int) -> Path | None:
        """Ends the trace with this step, if there is one: `RUN/profile/steps-FIRST-LAST.json.gz`. Raises VlmixError
        where it cannot be written."""
        if self._running is None:
            return None
        self._running.stop()
        path = self.folder / f"steps-{self._began}-{number}.json.gz"
        with disk_errors(path):
            self.folder.mkdir(exist_ok=True)
            self._running.export_chrome_trace(str(path))
        self._running = None
        return path
