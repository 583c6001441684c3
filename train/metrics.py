"""Run metrics: one JSON line for every logged step."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors, write_text
from vlmix.train.loggers import Logger

NAME = "metrics.jsonl"


class Metrics:
    """`RUN/metrics.jsonl`, appended to, and the same numbers for loggers. A run that resumes from step k begins by
    taking out what came after k."""

    def __init__(self, folder: Path, step: int, loggers: Sequence[Logger] = ()) -> None:
        self.path, self._loggers = folder / NAME, loggers
        rows = [row for row in read(folder) if row["step"] <= step] if self.path.exists() else []
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        with disk_errors(self.path):
            self._file = self.path.open("a", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Append a row. Raises VlmixError where the disk is full."""
        with disk_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._pass_on(row, row["step"])

    def amend(self, step: int, facts: dict[str, Any]) -> None:
        """Add facts to the row of a step, which is the last one."""
        rows = read(self.path.parent)
        if not rows or rows[-1]["step"] != step:
            raise VlmixError(f"{self.path}: its last row is not of step {step}, which its checkpoint is of")
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in [*rows[:-1], rows[-1] | facts]))
        with disk_errors(self.path):
            self._file.close()
            self._file = self.path.open("a", encoding="utf-8")
            self._pass_on(facts, step)

    def close(self) -> None:
        self._file.close()
        for logger in self._loggers:
            logger.close()

    def _pass_on(self, facts: dict[str, Any], step: int) -> None:
        for logger in self._loggers:
            logger.add(dict(_flat(facts)), step)


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics. A last line that a killed run left half written is not one."""
    path = folder / NAME
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror}; is {folder} a training run?") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [msgspec.json.decode(line)] if line else []
        except msgspec.DecodeError as error:
            if number < len(lines):
                raise VlmixError(f"{path}: line {number}: {error}") from None
    return rows


def _flat(row: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for key, value in row.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append((prefix + key, float(value)))
    return found
