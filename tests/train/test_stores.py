"""Training on a mixture in a store that is in trouble, as on disk."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import yaml

import vlmix as door
from tests.helpers import hashes, vlmix
from tests.stores import Proxy, Store
from tests.train.nano import NANO
from vlmix.mixture.dataset.reader import Sample
from vlmix.torch import StepDataset, make_loader
from vlmix.train.metrics import read

pytestmark = [pytest.mark.slow, pytest.mark.processes]
TIMES = ("tokens_per_second", "step_seconds", "data_wait", "tflops", "mfu")


def ids(samples: list[Sample]) -> list[str]:
    return [sample.id for sample in samples]


@pytest.fixture(scope="module")
def address(moto: Store, mixture: Path) -> str:
    return moto.put_folder(mixture, "trained")


def test_two_processes_train_as_on_disk(proxy: Proxy, address: str, mixture: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "nano.yaml"
    recipe.write_text(yaml.safe_dump({**NANO, "max_steps": 4, "loader_workers": 2}))
    proxy.set(fail=0.1, cut=0.1, seed=1)
    cache = {"VLMIX_SHARD_CACHE": str(tmp_path / "cache")}
    for name, where in (("disk", str(mixture)), ("store", address)):
        done = vlmix("train", recipe, f"mixture={where}", f"out={tmp_path / name}", "--nproc", "2", "--json", env=cache)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout)["last"]["step"] == 4
    assert proxy.troubled > 5
    there, here = (
        [{key: value for key, value in row.items() if key not in TIMES} for row in read(tmp_path / name)]
        for name in ("store", "disk")
    )
    assert there == here
    models = [hashes(tmp_path / name / "model")["model.safetensors"] for name in ("store", "disk")]
    assert models[0] == models[1]
    assert list((tmp_path / "cache").glob("?" * 64))  # both ways of reading were taken


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_read_ahead_is_what_the_schedule_asks_for(
    proxy: Proxy, address: str, mixture: Path, workers: int
) -> None:
    proxy.set(delay=0.01)
    there = door.open(address)
    schedule = there.schedule(16)
    steps = StepDataset(there, schedule, ids)
    wanted = [
        ids([door.open(mixture)[position] for position in schedule.rank_batch(step, 0, 1).tolist()])
        for step in range(3, 9)
    ]
    there.read([0])
    proxy.set(delay=0.01)
    assert list(make_loader(steps, 3, 9, workers=workers)) == wanted
    ahead = [request for request in proxy.requests if request[1]]
    proxy.set()
    for step in range(3, 9):
        steps.read(step)
    assert sorted(ahead) == sorted(request for request in proxy.requests if request[1])
    # Steps in another order, as a sampler of one's own may ask for them.
    loader = make_loader(steps, 3, 9, workers=0)
    assert [loader.dataset[step] for step in (5, 3, 4, 8)] == [wanted[step - 3] for step in (5, 3, 4, 8)]
