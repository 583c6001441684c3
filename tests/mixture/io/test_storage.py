"""Reading from stores, on real servers and behind a proxy that makes trouble."""

from pathlib import Path

import pytest

import vlmix
from tests.stores import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope="module")
def address(moto, mixture: Path) -> str:
    return moto.put_folder(mixture, "mixture")


def test_all_samples_are_those_on_disk_behind_a_store_in_trouble(proxy: Proxy, address: str, mixture: Path) -> None:
    here, there = vlmix.open(mixture), vlmix.open(address)
    assert [there[i] for i in range(20)] == [here[i] for i in range(20)]
    print(len(proxy.requests), proxy.requests[:5])
