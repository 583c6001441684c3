"""What a machine computes once: found by everybody, and never needed."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vlmix.mixture.io import node_cache
from vlmix.mixture.io.node_cache import Arrays, once_per_node


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Made:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Arrays:
        self.times += 1
        return {"numbers": np.arange(1000), "none": np.empty((0, 2), np.uint32)}


def sound(found: Arrays) -> bool:
    return found["numbers"].tolist() == list(range(1000)) and found["none"].shape == (0, 2)


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_it_is_computed_once_and_mapped(cache: Path) -> None:
    make = Made()
    assert all(sound(once_per_node(["a", 1], make)) for _ in range(3)) and make.times == 1
    assert sound(once_per_node(["a", 2], make)) and make.times == 2
    found = once_per_node(["a", 1], make)["numbers"]
    assert isinstance(found.base, np.memmap) and not found.flags.writeable
    assert cache.stat().st_mode & 0o777 == 0o700


def test_those_who_ask_at_once_wait_for_the_first(cache: Path) -> None:
    make, started = Made(), threading.Barrier(4)

    def ask() -> None:
        started.wait()
        assert sound(once_per_node("a", make))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.times == 1


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 8),
    "gone": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "no array": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", ["numbers.npy", "sizes.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_computed_anew(cache: Path, damage: str, name: str) -> None:
    make = Made()
    once_per_node("a", make)
    DAMAGE[damage](next(cache.glob(f"*/{name}")))
    assert sound(once_per_node("a", make)) and make.times == 2
    assert sound(once_per_node("a", make)) and make.times == 2


def test_what_a_killed_process_left_is_removed(cache: Path) -> None:
    make = Made()
    once_per_node("a", make)
    entry = next(path for path in cache.iterdir() if path.is_dir())
    left = entry.rename(entry.with_name(f"{entry.name}.abc.partial"))
    assert sound(once_per_node("a", make)) and make.times == 2 and not left.exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_leaves_the_arrays_in_memory(
    cache: Path, error: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def save(path: Path, *_: object, **more: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(node_cache.np, "save", save)
    make = Made()
    assert sound(once_per_node("a", make)) and make.times == 1
    assert not files(cache) and os.strerror(error) in caplog.text


def open_to_others(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)


def of_somebody_else(cache: Path) -> None:
    cache.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    os.chown(cache, 12345, 12345)


@pytest.mark.parametrize("folder", [open_to_others, of_somebody_else, lambda cache: cache.write_text("a file")])
def test_a_folder_that_others_may_write_is_not_used(
    cache: Path, folder: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    folder(cache)
    make = Made()
    assert sound(once_per_node("a", make)) and sound(once_per_node("a", make)) and make.times == 2
    assert "keeps its own copy in memory" in caplog.text and not (cache.is_dir() and files(cache))


def test_a_link_below_the_temporary_folder_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLMIX_CACHE", raising=False)
    monkeypatch.setattr(node_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"vlmix-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    make = Made()
    assert sound(once_per_node("a", make)) and not list((tmp_path / "elsewhere").iterdir())


def test_the_oldest_entries_go_when_all_are_too_large(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cache, "_MOST_BYTES", 20_000)
    make = Made()
    once_per_node(0, make)
    first = next(path for path in cache.iterdir() if path.is_dir())
    once_per_node(1, make)
    os.utime(first, (1, 1))
    once_per_node(2, make)
    assert make.times == 3 and not first.exists() and len(files(cache)) == 2 * 3
    assert sound(once_per_node(1, make)) and make.times == 3
    assert sound(once_per_node(0, make)) and make.times == 4


@pytest.mark.parametrize("error", [ValueError("no such sample"), OSError(errno.EIO, "no such sample")])
def test_errors_of_the_computation_are_its_own(cache: Path, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    times = 0

    def fail() -> Arrays:
        nonlocal times
        times += 1
        raise error

    for _ in range(2):
        with pytest.raises(type(error), match="no such sample"):
            once_per_node("a", fail)
    assert times == 2 and not files(cache) and not caplog.text
