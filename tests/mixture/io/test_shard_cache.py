"""Shards that a machine keeps, of a `file://` URL in place of a store."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vlmix
from vlmix.mixture.dataset import remote_shards
from vlmix.mixture.io import shard_cache
from vlmix.mixture.io.storage import Range


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """What was read from the store and not from the cache."""
    found: list[Range] = []
    read = remote_shards.read_ranges

    def counted(ranges: list[Range]) -> list[bytes]:
        found.extend(ranges)
        return read(ranges)

    monkeypatch.setattr(remote_shards, "read_ranges", counted)
    return found


def wait_for(done: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def shards_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*") if len(path.name) == 64}


def filled(mixture: Path, cache: Path) -> vlmix.Mixture:
    opened = vlmix.open(mixture.as_uri(), cache_dir=cache)
    opened.read(range(0, len(opened), 10))
    wait_for(lambda: len(shards_in(cache)) == len(opened.manifest.shards))
    return opened


def test_whole_shards_are_kept_and_read(mixture: Path, tmp_path: Path, asked: list[Range]) -> None:
    opened, here = filled(mixture, tmp_path / "cache"), list(vlmix.open(mixture))
    for shard in opened.manifest.shards:
        kept = (tmp_path / "cache" / shard.sha256).read_bytes()[: shard.bytes]
        assert hashlib.sha256(kept).hexdigest() == shard.sha256
    assert asked
    asked.clear()
    for reader in (opened, vlmix.open(mixture.as_uri(), cache_dir=tmp_path / "cache")):
        assert reader.read(range(len(reader))) == here
    assert not asked
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_the_environment_names_it(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMIX_SHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLMIX_SHARD_CACHE_BYTES", "2e9")
    opened = vlmix.open(mixture.as_uri())
    assert opened.cache is not None and opened.cache.most == 2_000_000_000
    opened.read([0])
    wait_for(lambda: shards_in(tmp_path / "cache"))
    for wrong in ("much", "-1", "inf"):
        monkeypatch.setenv("VLMIX_SHARD_CACHE_BYTES", wrong)
        with pytest.raises(vlmix.VlmixError, match="a number of bytes, such as 500e9"):
            vlmix.open(mixture.as_uri())


def test_damage_is_found_and_fetched_anew(
    mixture: Path, tmp_path: Path, asked: list[Range], caplog: pytest.LogCaptureFixture
) -> None:
    opened, here = filled(mixture, tmp_path / "cache"), vlmix.open(mixture)
    path = tmp_path / "cache" / opened.manifest.shards[0].sha256
    sound, at = path.read_bytes(), opened._place(7).json[0] + 3
    for damaged in (sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :], sound[:-1], b"", bytes(len(sound))):
        path.write_bytes(damaged)
        asked.clear()
        caplog.clear()
        assert opened.read([7]) == [here[7]]
        assert asked and "damaged" in caplog.text
        wait_for(path.exists)
        assert path.read_bytes() == sound


def test_the_least_recently_used_go_and_what_is_in_use_stays(mixture: Path, tmp_path: Path, asked: list[Range]) -> None:
    cache = tmp_path / "cache"
    opened = filled(mixture, cache)
    sizes = shards_in(cache)
    names = [shard.sha256 for shard in opened.manifest.shards]
    for age, name in enumerate(names):  # the first was used last
        os.utime(cache / name, (0, time.time() - 1000 - age))
    (cache / names[0]).unlink()
    most = sum(sizes.values()) - sizes[names[0]]  # room for all but one
    small = vlmix.open(mixture.as_uri(), cache_dir=cache, cache_bytes=most)
    small.read([0])
    wait_for((cache / names[0]).exists)
    gone = set(names) - set(shards_in(cache))
    assert names[-1] in gone and gone <= set(names[-2:])
    assert sum(shards_in(cache).values()) <= most
    # Now all are in use, and one more would only take the place of another.
    here, kept = list(vlmix.open(mixture)), set(shards_in(cache))
    for _ in range(3):
        assert small.read(range(len(small))) == here
    wait_for(lambda: small.cache is not None and small.cache._wanted.empty())
    assert set(shards_in(cache)) >= kept - gone and sum(shards_in(cache).values()) <= most


def test_a_shard_that_was_changed_is_not_kept_and_named(mixture: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(mixture, tmp_path / "mixture")
    shard = copy / "train/train-000000.tar"
    data = bytearray(shard.read_bytes())
    opened = vlmix.open(copy.as_uri(), cache_dir=tmp_path / "cache")
    place = opened._place(90).json
    data[place[0] + 2] ^= 1  # of another sample than the one that is read
    shard.write_bytes(data)
    opened.read([3])
    wait_for(lambda: opened.cache is not None and opened.cache._changed)
    with pytest.raises(vlmix.VlmixError, match=r"train-000000\.tar was changed .* another sha256"):
        opened.read([3])
    assert not shards_in(tmp_path / "cache") and not list((tmp_path / "cache").glob("*.partial"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_told_once_and_read_past(
    number: int, mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shard_cache.os, "fsync", full)
    opened = vlmix.open(mixture.as_uri(), cache_dir=tmp_path / "cache")
    here = list(vlmix.open(mixture))
    assert opened.read(range(len(here))) == here
    wait_for(lambda: "read from the store" in caplog.text)
    assert opened.read(range(len(here))) == here
    assert caplog.text.count("read from the store") == 1 and os.strerror(number) in caplog.text
    assert not shards_in(tmp_path / "cache") and not list((tmp_path / "cache").glob("*.partial"))


def test_a_folder_that_others_may_write_is_not_used(
    mixture: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    opened = vlmix.open(mixture.as_uri(), cache_dir=tmp_path / "cache")
    assert opened.read([0]) == [vlmix.open(mixture)[0]]
    wait_for(lambda: "others may write" in caplog.text)
    assert not list((tmp_path / "cache").iterdir())


def test_what_a_killed_process_left_goes(mixture: Path, tmp_path: Path) -> None:
    left = tmp_path / "cache" / ("0" * 64 + ".partial")
    left.parent.mkdir(mode=0o700)
    left.write_bytes(b"half")
    filled(mixture, tmp_path / "cache")
    assert not left.exists()
