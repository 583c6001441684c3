"""Mixtures written to object stores, through a proxy that makes trouble, against those written to disk."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import vlmix as door
from tests.helpers import VLMIX, hashes, vlmix, vlmix_here
from tests.stores import BUCKET, Proxy, Store
from vlmix.mixture.dataset.manifest import Shard
from vlmix.mixture.dataset.shards import ShardDone
from vlmix.mixture.dataset.writer import _check_store
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import storage, store_lock
from vlmix.mixture.io.storage import Remote
from vlmix.mixture.io.store_lock import Held

pytestmark = [pytest.mark.slow, pytest.mark.processes]
BUILD = ("build", "sample", "samples_per_shard=20", "--raw")


@pytest.fixture(scope="module")
def small(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature mixture in 42 shards, on disk. Read only."""
    out = tmp_path_factory.mktemp("local") / "mixture"
    assert vlmix(*BUILD, raw, "--out", out).returncode == 0
    return out


@pytest.fixture
def out(request: pytest.FixtureRequest, moto: Store) -> Iterator[str]:
    """A place in the bucket, emptied again."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    yield f"s3://{BUCKET}/{name}"
    for key in moto.objects(name):
        moto.client().delete_object(Bucket=BUCKET, Key=f"{name}/{key}")


def stored(store: Store, url: str) -> dict[str, str]:
    """As `hashes`, of a place in a store."""
    files = store.objects(url.removeprefix(f"s3://{BUCKET}/") + "/")
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


QUICK = """
from vlmix.mixture.io import store_lock
store_lock._LOOK, store_lock._SILENT = 0.5, 3.0
from vlmix.cli.main import main
main()
"""


def uploads(proxy: Proxy) -> list[str]:
    """The names of the shards that were sent."""
    return [
        line.split()[1].rpartition("/")[2] for line, _ in proxy.requests if line.startswith("PUT") and ".tar" in line
    ]


def test_the_bytes_are_those_of_a_build_on_disk_behind_a_store_in_trouble(
    proxy: Proxy, moto: Store, raw: Path, mixture: Path, out: str, tmp_path: Path
) -> None:
    proxy.set(fail=0.15, cut=0.15, seed=5)
    done = vlmix("build", "sample", "--raw", raw, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert proxy.troubled > 10
    assert stored(moto, out) == hashes(mixture)
    assert not moto.objects(f"{out.rpartition('/')[2]}.partial") and not list(tmp_path.iterdir())
    order = [line.split()[1] for line, _ in proxy.requests if line.startswith("PUT") and ".partial" not in line]
    assert order[-1].endswith("manifest.json") and "manifest.json" not in order[0]
    again = vlmix_here(*BUILD, raw, "--out", out, cwd=tmp_path)
    assert again.returncode == 1 and f"{out} exists already" in again.stderr and not list(tmp_path.iterdir())
    assert door.open(out).read(range(30)) == list(door.open(mixture)[:30])


def test_a_killed_build_continues_with_what_is_still_there(
    proxy: Proxy, moto: Store, raw: Path, small: Path, out: str, tmp_path: Path
) -> None:
    command = [*VLMIX, *map(str, (*BUILD, raw, "--out", out, "--work", tmp_path / "work", "--workers=2"))]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while len(list((tmp_path / "work" / "work").glob("*.done"))) < 12 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert "manifest.json" not in stored(moto, out)
    time.sleep(1.5)  # until its workers have noticed
    finished = sorted(path.stem.partition("-")[2] for path in (tmp_path / "work" / "work").glob("*.done"))
    forgotten, changed, *kept = finished
    client, key = moto.client(), out.rpartition("/")[2]
    client.delete_object(Bucket=BUCKET, Key=f"{key}/train/train-{forgotten}.tar")
    client.put_object(Bucket=BUCKET, Key=f"{key}/train/train-{changed}.tar", Body=b"another")
    client.put_object(Bucket=BUCKET, Key=f"{key}/train/train-000099.tar", Body=b"of another plan")
    proxy.set()
    done = vlmix(*BUILD, raw, "--out", out, "--work", tmp_path / "work")  # on its machine no minute is waited
    assert done.returncode == 0 and "looking whether" not in done.stderr, done.stderr
    assert stored(moto, out) == hashes(small)
    sent = uploads(proxy)
    assert len(kept) >= 10 and not {f"train-{name}.tar" for name in kept} & set(sent)
    assert {f"train-{forgotten}.tar", f"train-{changed}.tar"} <= set(sent)


def test_a_server_without_conditional_puts_is_told(
    rclone: Store, raw: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rclone.use(monkeypatch)
    url = f"s3://{BUCKET}/made"
    done = vlmix(*BUILD, raw, "--out", url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{url}: its store has no conditional puts; start no second command on it meanwhile" in done.stderr
    assert stored(rclone, url) == hashes(small)


def test_two_builds_of_one_place(proxy: Proxy, moto: Store, raw: Path, small: Path, out: str, tmp_path: Path) -> None:
    proxy.set(delay=0.05)
    first, second = (
        subprocess.Popen(
            [*VLMIX, *map(str, (*BUILD, raw, "--out", out, "--work", tmp_path / name))],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    )
    said = [process.communicate(timeout=200)[1] for process in (first, second)]
    states = sorted([first.returncode, second.returncode])
    assert states == [0, 1], said
    assert any("is being written by" in text or "exists already" in text for text in said), said
    assert stored(moto, out) == hashes(small)


class TestLock:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_lock, "_BEAT", 0.05)
        monkeypatch.setattr(store_lock, "_LOOK", 0.5)
        monkeypatch.setattr(store_lock, "_SILENT", 3.0)

    def test_a_holder_that_lives_keeps_it(self, proxy: Proxy, out: str) -> None:
        with store_lock.store_lock(Remote(out), Remote(out)) as held:
            with pytest.raises(VlmixError, match=rf"{out} is being written by process \d+ on "):
                store_lock.StoreLock(Remote(out), Remote(out)).acquire()
            held.check()
        assert not Remote(out).below()

    def test_of_many_who_find_a_silent_holder_one_takes_over(self, proxy: Proxy, out: str) -> None:
        stopped = store_lock.StoreLock(Remote(out), Remote(out))
        stopped.acquire()
        stopped._end.set()  # as a process that is stopped, or cut off, writes no sign of life
        stopped._thread.join()
        won, lost = list[store_lock.StoreLock](), list[str]()

        def take() -> None:
            lock = store_lock.StoreLock(Remote(out), Remote(out))
            try:
                lock.acquire()
                won.append(lock)
            except VlmixError as error:
                lost.append(str(error))

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(lost) == 3, lost
        won[0].held.check()
        with pytest.raises(VlmixError, match="another one took over while this one was stopped"):
            stopped.held.check()
        won[0].release()
        with pytest.raises(VlmixError, match="another one took over"):
            stopped.held.check()  # also when that one has ended
        stopped.release()
        assert not Remote(out).below()

    def test_who_is_back_from_a_stop_notices_and_writes_nothing(self, proxy: Proxy, out: str, tmp_path: Path) -> None:
        lock = store_lock.StoreLock(Remote(f"{out}.partial"), Remote(out))
        lock.acquire()
        (tmp_path / "a").write_bytes(b"a")
        lock.held.put("a", tmp_path / "a")
        locks = Remote(f"{out}.partial")
        locks.join("lock-000002").write(b"of the next holder")
        locks.join("lock-000001").remove()
        while lock._thread.is_alive():
            time.sleep(0.05)
        for name in locks.below():  # as that one does when it gives up
            locks.join(name).remove()
        third = store_lock.StoreLock(locks, Remote(out))  # which begins with number 1 again
        third.acquire()
        for write in (
            lambda held: held.put("b", tmp_path / "a"),
            lambda held: held.remove("a"),
        ):
            with pytest.raises(VlmixError, match="another one took over"):
                write(lock.held)
        lock.release()
        third.held.check()  # which nobody gives up but itself
        third.release()
        assert set(Remote(out).below()) == {"a"} and not locks.below()

    @pytest.mark.parametrize(
        ("request_", "act"),
        [
            (r"PUT \S*/b\b", lambda held, path: held.put("b", path)),
            (r"HEAD \S*/b\b", lambda held, path: held.put("b", path)),
            (r"DELETE \S*/a\b", lambda held, path: held.remove("a")),
        ],
        ids=["upload", "look at what was uploaded", "removal"],
    )
    def test_what_failed_is_not_sent_again_after_another_took_over(
        self, proxy: Proxy, out: str, tmp_path: Path, request_: str, act: Callable[[Held, Path], object]
    ) -> None:
        path, locks = tmp_path / "file", Remote(f"{out}.partial")
        path.write_bytes(b"mine")
        lock = store_lock.StoreLock(locks, Remote(out))
        lock.acquire()
        lock.held.put("a", path)
        said: list[str] = []

        def try_() -> None:
            try:
                act(lock.held, path)
            except VlmixError as error:
                said.append(str(error))

        proxy.set(fail=1.0, only=request_)
        thread = threading.Thread(target=try_)
        thread.start()
        while not proxy.troubled:
            time.sleep(0.01)
        locks.join("lock-000002").write(b"of the next holder")
        proxy.set()
        thread.join()
        assert len(said) == 1 and "another one took over" in said[0], said
        assert set(Remote(out).below()) == ({"a", "b"} if "HEAD" in request_ else {"a"})
        lock.release()

    def test_a_release_whose_answer_was_lost_is_one(
        self, proxy: Proxy, out: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        lock = store_lock.StoreLock(Remote(out), Remote(out))
        lock.acquire()
        lock._end.set()
        lock._thread.join()
        files = Remote(out)._connection()[0]
        remove, lost = files.rm_file, list[str]()

        def loses(path: str) -> None:
            remove(path)
            if "lock-" in path and not lost:
                lost.append(path)
                raise ConnectionResetError("no answer came")

        monkeypatch.setattr(files, "rm_file", loses)
        lock.release()
        assert lost and not Remote(out).below()
        assert "is given up" not in caplog.text

    def test_a_late_sign_of_life_brings_no_lock_back(self, proxy: Proxy, out: str) -> None:
        locks = Remote(f"{out}.partial")
        lock = store_lock.StoreLock(locks, Remote(out))
        lock.acquire()
        proxy.set(fail=1.0, only=r"PUT \S*\.partial/")
        while not proxy.troubled:
            time.sleep(0.01)
        for name in locks.below():  # as one that took over, and is done by now
            locks.join(name).remove()
        proxy.set()
        lock._thread.join()
        assert not store_lock.numbers_of(locks)
        with pytest.raises(VlmixError, match="another one took over"):
            lock.held.check()
        lock.release()

    def test_a_holder_that_has_ended_on_this_machine_is_not_waited_for(
        self, proxy: Proxy, out: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with subprocess.Popen(["true"]) as ended:
            pass
        lock = store_lock.StoreLock(Remote(out), Remote(out))
        lock._mine["pid"] = ended.pid
        lock.acquire()
        lock._end.set()
        monkeypatch.setattr(store_lock, "_SILENT", 1e9)
        with store_lock.store_lock(Remote(out), Remote(out)):
            pass

    def test_a_put_whose_answer_was_lost_is_ones_own(self, proxy: Proxy, out: str) -> None:
        proxy.set(cut=0.5, seed=2, only="PUT")
        for number in range(8):
            assert Remote(f"{out}/{number}").create(b"mine")
            assert not Remote(f"{out}/{number}").create(b"another")
        assert proxy.troubled


def test_a_store_that_forgets_or_changes_a_shard(proxy: Proxy, out: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"a shard")
    with store_lock.store_lock(Remote(f"{out}.partial"), Remote(out)) as held:
        facts = held.put("train/a.tar", path)
        done = ShardDone(Shard("train/a.tar", 1, facts.size, ""), {}, "", facts.etag)
        _check_store(held, [done])
        Remote(f"{out}/train/a.tar").write(b"another")
        with pytest.raises(
            VlmixError, match=r"train/a\.tar was changed since it was written; run the same command again"
        ):
            _check_store(held, [done])
        held.remove("train/a.tar")
        with pytest.raises(VlmixError, match=r"train/a\.tar is not in the store any more"):
            _check_store(held, [done])
        proxy.set(fail=1.0, status=404, only=r"HEAD .*b\.tar")
        with pytest.raises(VlmixError, match="the store took it and has it not"):
            held.put("b.tar", path)
        proxy.set()


def test_a_command_that_was_stopped_spoils_nothing_of_the_one_that_took_over(
    proxy: Proxy, moto: Store, raw: Path, mixture: Path, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z, another recipe's build of the same place, and `fg`."""
    monkeypatch.setattr(store_lock, "_LOOK", 0.5)
    monkeypatch.setattr(store_lock, "_SILENT", 3.0)
    proxy.set(delay=0.2)
    build = ["build", "sample", "--raw", raw, "--out", out, "--work"]
    first = [*VLMIX, *map(str, (*build, tmp_path / "one", "samples_per_shard=40", "seed=1"))]
    with subprocess.Popen(first, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            while len(uploads(proxy)) < 4 and process.poll() is None:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGSTOP)
            proxy.set()
            done = vlmix_here(*build, tmp_path / "two")
            assert done.returncode == 0 and "looking whether it still is" in done.stderr, done.stderr
            assert stored(moto, out) == hashes(mixture)
            os.killpg(process.pid, signal.SIGCONT)
            _, said = process.communicate(timeout=120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and "another one took over while this one was stopped" in said, said
    assert stored(moto, out) == hashes(mixture)


def test_a_manifest_that_was_on_its_way_when_its_command_was_stopped(
    proxy: Proxy, moto: Store, raw: Path, mixture: Path, out: str, tmp_path: Path
) -> None:
    """The store fails, Ctrl-Z, and `fg` while another recipe's build of the same place is sending its shards."""
    proxy.set(fail=1.0, only=r"PUT \S*manifest")
    build = ["build", "sample", "--raw", raw, "--out", out, "--work"]
    commands = [
        [*VLMIX, *map(str, (*build, tmp_path / "one", "seed=1"))],
        [sys.executable, "-c", QUICK, *map(str, (*build, tmp_path / "two"))],
    ]
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    try:
        first = start(commands[0])
        while not proxy.troubled and first.poll() is None:
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGSTOP)
        proxy.set(delay=0.1)
        second = start(commands[1])
        while len(uploads(proxy)) < 3 and second.poll() is None:
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGCONT)
        said = [process.communicate(timeout=200)[1] for process in (first, second)]
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (first.returncode, second.returncode) == (1, 0), said
    assert "another one took over while this one was stopped" in said[0], said
    assert stored(moto, out) == hashes(mixture)


def test_what_a_killed_run_of_another_recipe_left_is_not_part_of_a_mixture(
    proxy: Proxy, moto: Store, raw: Path, mixture: Path, out: str, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "overlaps.parquet").write_bytes(b"of a run with dedup")
    Remote(f"{out}.partial/unfinished").write(b"")
    for name in ("overlaps.parquet", "samples.parquet/part-00000.parquet", "train/train-000099.tar"):
        Remote(f"{out}/{name}").write(b"of another run")
    done = vlmix_here("build", "sample", "--raw", raw, "--out", out, "--work", work)
    assert done.returncode == 0, done.stderr
    assert stored(moto, out) == hashes(mixture)


@pytest.mark.parametrize("detour", ["//", "/./", "/up/../"])
def test_a_place_with_a_detour_is_that_place(
    proxy: Proxy, moto: Store, mixture: Path, out: str, tmp_path: Path, detour: str
) -> None:
    url = f"{out}{detour}copy/"
    done = vlmix_here("subsample", mixture, "--ratio=10%", "--materialize", "--out", url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert vlmix_here("verify", url).returncode == 0
    assert vlmix_here("verify", f"{out}/copy").returncode == 0


def test_a_large_file_is_sent_in_parts_that_appear_together(
    proxy: Proxy, moto: Store, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 2**19)  # 128 MiB
    Remote(f"{out}/large").put(path)
    assert sum(line.startswith("PUT") and "partNumber" in line for line, _ in proxy.requests) > 1
    assert moto.objects(out.rpartition("/")[2])["large"] == path.read_bytes()
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.001)
    proxy.set(fail=1.0, only="partNumber=2")
    with pytest.raises(VlmixError, match="torn"):
        Remote(f"{out}/torn").put(path)
    assert "torn" not in moto.objects(out.rpartition("/")[2])


def test_no_permission_to_write(
    proxy: Proxy, moto: Store, raw: Path, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.set(fail=1.0, status=403, only="^PUT")
    done = vlmix_here(*BUILD, raw, "--out", out, cwd=tmp_path)
    assert done.returncode == 1 and "the store refuses" in done.stderr and "may read (or write)" in done.stderr
    assert len([line for line, _ in proxy.requests if line.startswith("PUT")]) == 1
    assert not list(tmp_path.iterdir()) and not moto.objects(out.rpartition("/")[2])
    proxy.set()
    done = vlmix_here(*BUILD, raw, "--out", "s3://no-such-bucket/mixture", cwd=tmp_path)
    assert done.returncode == 1 and "there is no such bucket; create it first" in done.stderr


def test_what_is_there_is_left_alone(proxy: Proxy, moto: Store, raw: Path, out: str, tmp_path: Path) -> None:
    Remote(f"{out}/notes.txt").write(b"mine")
    done = vlmix_here(*BUILD, raw, "--out", f"{out}/notes.txt", cwd=tmp_path)
    assert done.returncode == 1 and f"{out}/notes.txt is a file; choose another --out" in done.stderr
    done = vlmix_here(*BUILD, raw, "--out", out, cwd=tmp_path)
    assert done.returncode == 1 and f"{out} holds notes.txt, which no unfinished command left" in done.stderr
    assert moto.objects(out.rpartition("/")[2]) == {"notes.txt": b"mine"} and not list(tmp_path.iterdir())


def test_a_bad_record_ends_it_and_nothing_is_held(
    proxy: Proxy, moto: Store, raw: Path, out: str, tmp_path: Path
) -> None:
    done = vlmix_here(*BUILD, raw / "gqa", "--out", out, "--work", tmp_path / "work")
    assert done.returncode == 1 and "did you mean" in done.stderr
    assert set(moto.objects(f"{out.rpartition('/')[2]}.partial")) == {"unfinished"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("merge", "M", "M", "--out", "s3://b/m"),
            "s3://b/m: `out` is a file or folder of this machine here, not a URL",
        ),
        (("subsample", "M", "--ratio=0.5", "--out", "half", "--work", "w"), "a work folder is for an --out in a store"),
        (("subsample", "M", "--ratio=0.5", "--out", "s3://b/m", "--force"), "nothing in a store is replaced"),
        (("subsample", "M", "--ratio=0.5", "--out", "s3://b/m"), "a view in a store needs its root"),
        (("subsample", "M", "--ratio=0.5", "--out", "ftp://h/m", "--materialize"), "nothing is written there"),
        (("subsample", "M", "--ratio=0.5", "--out", "s3://b/", "--materialize"), "name one: s3://b/mixture"),
        (("subsample", "M", "--ratio=0.5", "--out", "s3://", "--materialize"), "name one: s3://BUCKET/mixture"),
        (("subsample", "M", "--ratio=0.5", "--out", "s3://b/../c", "--materialize"), "leaves its host or bucket"),
        (
            ("subsample", "M", "--ratio=0.5", "--out", "s3:///b/m", "--materialize"),
            "two slashes come before it: s3://b/m",
        ),
        (("subsample", "M", "--ratio=0.5", "--out", "s3:/b/m", "--materialize"), "a URL has two slashes: s3://b/m"),
    ],
)
def test_mistakes(proxy: Proxy, mixture: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = vlmix_here(*(str(mixture) if each == "M" else each for each in arguments), cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_subsets_of_a_mixture_in_a_store(proxy: Proxy, moto: Store, mixture: Path, out: str, tmp_path: Path) -> None:
    root = moto.put_folder(mixture, out.rpartition("/")[2] + "/root")
    proxy.set(fail=0.05, cut=0.05, seed=1)
    tenth = ("--ratio=10%", "--out")
    assert vlmix_here("subsample", mixture, *tenth, tmp_path / "view").returncode == 0
    expected = list(door.open(tmp_path / "view"))
    for place in (f"{out}/view", str(tmp_path / "of-a-store")):
        done = vlmix_here("subsample", root, *tenth, place, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert list(door.open(place)) == expected
    assert vlmix_here("subsample", f"{out}/view", "--ratio=50%", "--out", f"{out}/half", cwd=tmp_path).returncode == 0
    assert len(door.open(f"{out}/half")) == len(expected) // 2
    assert vlmix_here("subsample", mixture, *tenth, tmp_path / "copy", "--materialize").returncode == 0
    for source, place in ((root, f"{out}/copy"), (mixture, f"{out}/sent"), (root, str(tmp_path / "fetched"))):
        done = vlmix_here("subsample", source, *tenth, place, "--materialize", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        made = stored(moto, place) if "://" in place else hashes(Path(place))
        assert made == hashes(tmp_path / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"view", "of-a-store", "copy", "fetched"}
