"""The scores of a sweep's runs on the questions that their own subsets show, and on the rest.

The overlaps are those of the sweep's whole mixture; a run has seen a question only if a sample of its subset overlaps.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import structs

from vlmix.mixture.io.digests import sha256
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.overlaps.scores import NAME, Parts, overlaps_of, within
from vlmix.train.evaluate.evaluate import Task
from vlmix.train.evaluate.overlaps import check, score_parts
from vlmix.train.sweep.folder import run_folder, subset_folder
from vlmix.train.sweep.report.aggregate import Result


class Seen:
    """What of a sweep's benchmarks is in its mixture."""

    def __init__(self, file: Path, mixture: str, tasks: Sequence[Task]) -> None:
        """Raises VlmixError for a file of another mixture, or one that is not with all benchmarks."""
        self._file, self._tasks = file, tasks
        self._overlaps, self._digest = overlaps_of(file, open_mixture(mixture)), sha256(file)
        for task in tasks:
            check(self._overlaps, task)

    def told(self, row: Result, out: Path) -> Result:
        """The row of a finished run with its scores by parts. Those that an earlier call left are read."""
        answers = run_folder(out, row.run) / "answers"
        found = {task.benchmark.name: _read(answers / task.benchmark.name / NAME) for task in self._tasks}
        if any(parts is None or parts.file != self._digest for parts in found.values()):
            mine = self._overlaps
            if row.ratio < 1:
                mine = within(mine, open_mixture(subset_folder(out, row.run)))
            found = {
                task.benchmark.name: score_parts(mine, task, answers / task.benchmark.name, self._file)
                for task in self._tasks
            }
        return structs.replace(row, seen=found)


def _read(path: Path) -> Parts | None:
    """None where it is not there, or was cut off or written by another vlmix: then it is made anew."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Parts)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
