import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests.train.ranks_worker import CASES

ROOT = Path(__file__).parents[2]


def test_two_ranks_have_the_gradients_of_one_process_also_where_one_sees_no_image(
    mixture: Path, tmp_path: Path
) -> None:
    """Real processes over gloo: uneven answers, accumulation, a rank with text alone, an empty micro-batch."""
    done = tmp_path / "done"
    command = [sys.executable, "-m", "tests.train.ranks_worker", str(mixture), str(done)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # What torchrun tells its ranks.
    told = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | told | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    try:
        errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:  # one waits for ever for the other
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)[-4000:]
    assert done.read_text().split("\n") == list(CASES)
