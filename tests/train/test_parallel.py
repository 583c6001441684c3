import os
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
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.train.ranks_worker", str(mixture), str(done)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment
    )
    assert found.returncode == 0, found.stderr[-4000:]
    assert done.read_text().split("\n") == list(CASES)
