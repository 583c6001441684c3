import os
from pathlib import Path

import pytest
from hypothesis import settings

from vlmix.builders import known_sources
from vlmix.builders.miniature import write_sample
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import load

pytest_plugins = ["tests.stores"]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, and threads that share a core wait for each other

settings.register_profile("vlmix", deadline=None)  # a busy machine is no defect
settings.load_profile("vlmix")


@pytest.fixture(scope="session")
def real() -> Path:
    """Real records and photographs of the sources, where there are any."""
    folder = Path(os.environ.get("VLMIX_REALDATA", Path(__file__).parents[2] / "shared" / "realdata"))
    if not folder.is_dir():
        pytest.skip("no real samples here; VLMIX_REALDATA names their folder")
    return folder


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature releases. Read only."""
    folder = tmp_path_factory.mktemp("releases") / "raw"
    write_sample(folder)
    return folder


@pytest.fixture(scope="session")
def recipes() -> Path:
    return Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="session")
def mixture(raw: Path, recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample recipe, built. Read only."""
    out = tmp_path_factory.mktemp("built") / "mixture"
    build(load(recipes / "sample.yaml", known_sources()), known_sources(), raw, out)
    return out
