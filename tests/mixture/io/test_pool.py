"""What every engine does alike; `test_cluster.py` asks the same of Ray."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.cluster import Site, in_worker
from vlmix.mixture.io.engines import start
from vlmix.mixture.io.pool import Engine
from vlmix.mixture.selection.subset import parse_ratio


def check_contract(engine: Engine, at_once: int) -> None:
    """`at_once`: the most tasks that it may hold."""
    drawn, done = 0, 0

    def tasks() -> Iterator[int]:
        nonlocal drawn
        for number in range(20):
            drawn += 1
            assert drawn - done <= at_once
            yield number * number

    for task, result in engine.map(math.isqrt, tasks()):
        assert result * result == task
        done += 1
    assert done == 20
    assert list(engine.map(math.isqrt, [])) == []
    with pytest.raises(VlmixError, match="^ratio 'a lot': write"):
        list(engine.map(parse_ratio, ["10%", "a lot"]))
    with pytest.raises(ValueError, match="isqrt"):
        list(engine.map(math.isqrt, [4, -1]))
    assert sorted(engine.map(math.isqrt, [9, 4])) == [(4, 2), (9, 3)], "it goes on after an error"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.processes)])
def test_processes_of_this_machine(workers: int) -> None:
    with start("local", workers, []) as engine:
        check_contract(engine, 2 * workers)


def test_a_task_of_a_command_that_has_ended_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "held").write_text("another")
    for path in (tmp_path / "held", tmp_path / "gone"):
        site = Site("", "/", {}, [(str(path), "of the command's own")])
        with pytest.raises(VlmixError, match="another has begun"):
            in_worker(site, math.isqrt, 4)
