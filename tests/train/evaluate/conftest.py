from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps. Read only."""
    pytest.importorskip("transformers")
    from tests.train.nano import nano
    from vlmix.train.run import train

    out = tmp_path_factory.mktemp("models") / "run"
    train(nano(mixture=str(mixture), out=str(out), max_steps=2))
    return out
