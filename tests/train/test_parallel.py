import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests.train.nano import nano
from tests.train.ranks_worker import CASES, COPIES
from vlmix.mixture.errors import VlmixError
from vlmix.train.parallel import shard_size

ROOT = Path(__file__).parents[2]


def ranks(count: int, mixture: Path, done: Path) -> list[str]:
    """The cases that real processes over gloo went through."""
    command = [sys.executable, "-m", "tests.train.ranks_worker", str(mixture), str(done)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # What torchrun tells its ranks.
    told = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | told | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    try:
        errors = [rank.communicate(timeout=280)[1] for rank in started]
    finally:
        for rank in started:  # one waits for ever for the other
            rank.kill()
    assert [rank.returncode for rank in started] == [0] * count, "\n".join(errors)[-4000:]
    return done.read_text().split("\n")


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one_process_also_where_one_sees_no_image(
    mixture: Path, tmp_path: Path
) -> None:
    """Uneven answers, accumulation, a rank with text alone, an empty micro-batch."""
    assert ranks(2, mixture, tmp_path / "done") == list(CASES)


@pytest.mark.slow
def test_two_copies_on_four_ranks_train_as_one_process_and_resume_as_one_copy(mixture: Path, tmp_path: Path) -> None:
    """A 2 x 2 mesh: gradients, a step, and its checkpoint on other meshes."""
    assert ranks(4, mixture, tmp_path / "done") == list(COPIES)


def test_ranks_that_do_not_make_up_whole_copies_are_refused() -> None:
    assert [shard_size(nano(shard_size=size), 8) for size in (0, 1, 4, 8)] == [8, 1, 4, 8]
    for size in (3, 16):
        with pytest.raises(VlmixError, match=f"shard_size {size} does not divide the number of processes, 8"):
            shard_size(nano(shard_size=size), 8)
