"""Mixtures in object stores, read through a proxy that makes trouble, against the same mixture on disk."""

import io
import pickle
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import vlmix
from tests.helpers import vlmix_here
from tests.stores import BUCKET, Proxy, Store, proxy_for
from vlmix.mixture.io import storage

pytestmark = [pytest.mark.slow, pytest.mark.processes]
TAR = r"\.tar"


@pytest.fixture(scope="module")
def address(moto: Store, mixture: Path) -> str:
    return moto.put_folder(mixture, "mixture")


@pytest.fixture
def own(moto: Store, mixture: Path) -> Iterator[str]:
    """One that a test may damage."""
    yield moto.put_folder(mixture, "damaged")
    for key in moto.objects("damaged"):
        moto.client().delete_object(Bucket=BUCKET, Key=f"damaged/{key}")


def tar_requests(proxy: Proxy) -> list[str]:
    return [range for line, range in proxy.requests if line.startswith("GET") and ".tar" in line]


def test_the_samples_are_those_on_disk_behind_a_store_in_trouble(
    proxy: Proxy, address: str, mixture: Path, tmp_path: Path, moto: Store
) -> None:
    proxy.set(fail=0.15, cut=0.15, seed=3)
    here, there = vlmix.open(mixture), vlmix.open(address)
    order = np.random.default_rng(0).permutation(len(here))
    for batch in np.array_split(order[:420], 7):
        assert there.read(batch) == [here[position] for position in batch.tolist()]
    assert proxy.troubled > 20
    here.subset(ratio=0.1).save(mixture.with_name("tenth"), overwrite=True)
    view = moto.put_folder(mixture.with_name("tenth"), "tenth")
    assert list(vlmix.open(view)) == list(here.subset(ratio=0.1))
    both = {str(mixture): 0.5, str(mixture.with_name("tenth")): 0.5}
    mixed = vlmix.blend({address: 0.5, view: 0.5}).read([900, 3, 900])
    assert mixed == [vlmix.blend(both)[position] for position in (900, 3, 900)]


def test_a_server_without_conditional_puts_reads_alike(
    rclone: Store, mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = rclone.put_folder(mixture, "mixture")
    rclone.use(monkeypatch)
    positions = list(range(0, 840, 7))
    assert vlmix.open(url).read(positions) == [vlmix.open(mixture)[position] for position in positions]


def test_neighbours_are_one_request_and_no_sample_is_asked_for_twice(proxy: Proxy, address: str, mixture: Path) -> None:
    there, here = vlmix.open(address), vlmix.open(mixture)
    there.read([0])
    listings = [line for line, _ in proxy.requests if "list-type" in line]
    assert len(listings) == 1  # sizes of all shards, also of those that are read later
    proxy.set()
    assert there.read(range(20, 50)) == list(here[20:50])
    assert there.read([700, 701, 700]) == [here[700], here[701], here[700]]
    assert len(tar_requests(proxy)) == len(proxy.requests) == 2


@pytest.mark.parametrize(
    "what", [["--limit", "3", "--where", "num_images = 1"], ["--id", "gqa/2317133"], ["--rejects"]]
)
def test_inspect_shows_the_same(proxy: Proxy, address: str, mixture: Path, what: list[str]) -> None:
    here, there = (vlmix_here("inspect", place, *what, "--json") for place in (mixture, address))
    assert there.returncode == 0 and there.stdout == here.stdout, there.stderr


def test_forked_and_spawned_processes_read(proxy: Proxy, address: str, mixture: Path) -> None:
    there, here = vlmix.open(address), vlmix.open(mixture)
    assert there[5] == here[5]  # the parent's connections are not the children's
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, get_context(method)) as pool:
            assert pool.submit(there.read, [5, 400]).result() == [here[5], here[400]]


def test_what_stays_down_is_an_error_that_names_the_shard(
    proxy: Proxy, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.001)
    there = vlmix.open(address)
    there.read([0])
    proxy.set(fail=1.0, only=TAR)
    with pytest.raises(vlmix.VlmixError, match=r"s3://bucket/mixture/train/train-000001\.tar: .*tried 8 times"):
        there.read([150])


@pytest.mark.parametrize("status", [403])
def test_no_permission_is_said_at_once(proxy: Proxy, address: str, status: int) -> None:
    there = vlmix.open(address)
    there.read([0])
    proxy.set(fail=1.0, status=status)
    with pytest.raises(vlmix.VlmixError, match=r"train-000001\.tar: the store refuses: .*check its credentials"):
        there.read([150])
    assert len(tar_requests(proxy)) == 1
    with pytest.raises(vlmix.VlmixError, match="s3://bucket/mixture/manifest.json: the store refuses"):
        vlmix.open(address)


def test_a_clock_that_is_wrong_is_said(proxy: Proxy, address: str) -> None:
    said = "The difference between the request time and the current time is too large."
    proxy.set(fail=1.0, status=403, message=said, only="^GET")
    with pytest.raises(vlmix.VlmixError, match="the store refuses: .*set the clock of this machine"):
        vlmix.open(address)
    assert proxy.troubled == 1


def test_a_store_that_permits_reading_and_not_listing_is_read(proxy: Proxy, address: str, mixture: Path) -> None:
    proxy.set(fail=1.0, status=403, only="list-type")
    there = vlmix.open(address)
    assert there.read([3, 300]) == [vlmix.open(mixture)[position] for position in (3, 300)]
    assert proxy.troubled and len(tar_requests(proxy)) == 2
    assert not [line for line, _ in proxy.requests if line.startswith("HEAD") and ".tar" in line]
    proxy.set(fail=1.0, status=404, only="list-type|000002")
    with pytest.raises(vlmix.VlmixError, match=r"train-000002\.tar is missing"):
        there.read([250])


def test_a_shard_that_a_store_lists_and_does_not_give_is_named(proxy: Proxy, address: str) -> None:
    proxy.set(fail=1.0, status=404, only="GET .*000002")
    with pytest.raises(vlmix.VlmixError, match=r"train-000002\.tar is missing, though the store lists it"):
        vlmix.open(address).read([250])


def test_no_or_wrong_credentials_are_said_at_once(rclone: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy_for(rclone) as proxy:
        proxy.store.use(monkeypatch)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(vlmix.VlmixError, match="the store refuses: .*check its credentials"):
            vlmix.open(f"s3://{BUCKET}/mixture")
        assert len(proxy.requests) == 1
        proxy.store.use(monkeypatch)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(vlmix.VlmixError, match="the store refuses: .*check its credentials"):
            vlmix.open(f"s3://{BUCKET}/mixture")
        assert len(proxy.requests) == 1


def test_a_shard_that_was_changed_is_named(proxy: Proxy, own: str, moto: Store, mixture: Path) -> None:
    shard = "train/train-000001.tar"
    key, whole = f"damaged/{shard}", (mixture / shard).read_bytes()
    opened = vlmix.open(own)
    opened.read([150])
    copy = pickle.dumps(opened)

    def put(data: bytes) -> None:
        moto.client().put_object(Bucket=BUCKET, Key=key, Body=data)

    put(whole[:-10240])
    with pytest.raises(vlmix.VlmixError, match=rf"{shard} has {len(whole) - 10240} bytes, the manifest says"):
        vlmix.open(own).read([150])
    # Another shard of the same length, under a reader that has looked at it already.
    put(moved(whole))
    with pytest.raises(vlmix.VlmixError, match=rf"{shard} was changed while it was read: its ETag"):
        opened.read([150])
    with pytest.raises(vlmix.VlmixError, match=rf"{shard} was changed while it was read: its ETag"):
        pickle.loads(copy).read([151])
    with pytest.raises(vlmix.VlmixError, match=rf"{shard} was changed since the index was made: 0\d+\..* is elsewhere"):
        vlmix.open(own).read([150])
    moto.client().delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(vlmix.VlmixError, match=rf"{shard} is missing"):
        vlmix.open(own).read([150])


def moved(shard: bytes) -> bytes:
    """The members of a tar in the opposite order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(shard)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in reversed(old.getmembers()):
            new.addfile(member, old.extractfile(member))
    assert len(out.getvalue()) == len(shard)
    return out.getvalue()
