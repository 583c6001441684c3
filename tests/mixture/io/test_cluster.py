"""A real Ray cluster of two nodes on loopback addresses."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers import VLMIX, hashes, vlmix, vlmix_here
from tests.mixture.io.test_pool import check_contract
from tests.stores import BUCKET, Store
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.engines import start

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
NET = f"127.0.{1 + int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0')[2:])}"  # a cluster for each process of tests


class Node:
    """`ray start --block`, and the processes that it started."""

    def __init__(self, name: str, *options: str, before: tuple[str, ...] = (), **environment: str) -> None:
        command = [*before, *RAY, "start", "--block", f"--node-ip-address={NET}.{name}", "--num-cpus=1", *options]
        more = ("--object-store-memory=80000000", "--disable-usage-stats")
        self.address = f"{NET}.{name}"
        self.process = subprocess.Popen(
            [*command, *more],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )

    def all(self) -> list[int]:
        """Process ids, those of parents first."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for parent in found:
            found += [child for child, above in parents.items() if above == parent]
        return found

    def signal(self, number: int) -> None:
        for process in self.all():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def kill(self) -> None:
        self.signal(signal.SIGSTOP)  # or what is left starts others
        self.signal(signal.SIGKILL)
        self.process.wait()


class Cluster:
    def __init__(self, folder: Path) -> None:
        with socket.create_server((f"{NET}.2", 0)) as free:
            self.address = f"{NET}.2:{free.getsockname()[1]}"
        port = self.address.partition(":")[2]
        self.nodes = [Node("2", "--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")]
        self.wait()

    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.process.poll() is None]

    def join(self, **more: object) -> Node:
        self.nodes.append(Node(str(len(self.nodes) + 2), f"--address={self.address}", **more))  # type: ignore[arg-type]
        self.wait()
        return self.nodes[-1]

    def second(self) -> Node:
        """The node beside the head, a new one if it was killed."""
        return running[1] if len(running := self.running()) > 1 else self.join()

    def wait(self) -> None:
        """Until those that run are there."""
        addresses = {node.address for node in self.running()}
        code = f"""
import ray, time
ray.init("{self.address}", log_to_driver=False, logging_level="error")
while not {addresses} <= {{node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}}: time.sleep(0.2)
"""
        for _ in range(60):  # until the head listens
            try:
                socket.create_connection(tuple(self.address.split(":")), timeout=1).close()  # type: ignore[arg-type]
                break
            except OSError:
                time.sleep(0.5)
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def cluster(moto: Store) -> Iterator[Cluster]:
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="vlmix-ray-", dir="/tmp"))  # sockets have short names
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")  # nodes at loopback addresses
        moto.use(patch)  # on every node
        made = Cluster(folder)
        patch.setenv("RAY_ADDRESS", made.address)
        try:
            yield made
        finally:
            for node in reversed(made.nodes):
                if node.process.poll() is None:
                    node.kill()
            shutil.rmtree(folder)


ENGINES = ((vlmix, "ray"), (vlmix_here, "local"))
BUILD = ("build", "sample", "samples_per_shard=5", "--raw")


@pytest.fixture(scope="module")
def small(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature mixture in many shards, as one process builds it. Read only."""
    out = tmp_path_factory.mktemp("local") / "mixture"
    assert vlmix(*BUILD, raw, "--out", out, "--workers=1").returncode == 0
    return out


def begin(*command: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*VLMIX, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/tmp"
    )


def until_there(process: "subprocess.Popen[str]", path: Path) -> None:
    while process.poll() is None and not path.exists():
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()


def test_a_node_that_is_lost_while_it_writes_is_made_up_for(
    cluster: Cluster, raw: Path, small: Path, tmp_path: Path
) -> None:
    victim, out, train = cluster.second(), tmp_path / "mixture", tmp_path / "mixture.partial" / "train"
    process = begin(*BUILD, raw, "--out", out, "--engine=ray")
    until_there(process, train)
    torn: list[str] = []
    while not torn:
        assert process.poll() is None, process.communicate()
        victim.signal(signal.SIGSTOP)
        mine = tuple(f".{pid}.tmp" for pid in victim.all())
        torn = [path.name for path in train.iterdir() if path.name.endswith(mine)]
        if not torn:
            victim.signal(signal.SIGCONT)
            time.sleep(0.003)
    victim.kill()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "raylet" not in output
    assert hashes(out) == hashes(small)
    assert list(tmp_path.iterdir()) == [out]


def test_a_store_gets_the_same_bytes_though_a_node_is_lost(
    cluster: Cluster, moto: Store, raw: Path, small: Path, tmp_path: Path
) -> None:
    victim, url, work = cluster.second(), f"s3://{BUCKET}/cluster/mixture", tmp_path / "work"
    process = begin(*BUILD, raw, "--out", url, "--work", work, "--engine=ray")
    until_there(process, work / "work" / "rows-000020.done")
    victim.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    made = {name: hashlib.sha256(data).hexdigest() for name, data in moto.objects("cluster/mixture/").items()}
    assert made == hashes(small) and not list(tmp_path.iterdir())
    tenth = ("subsample", url, "--ratio=10%", "--materialize", "--out", f"s3://{BUCKET}/cluster/tenth", "--work", work)
    cluster.second()
    done = vlmix(*tenth, "--engine=ray")
    assert done.returncode == 0, done.stderr
    assert vlmix("subsample", small, "--ratio=10%", "--materialize", "--out", tmp_path / "tenth").returncode == 0
    made = {name: hashlib.sha256(data).hexdigest() for name, data in moto.objects("cluster/tenth/").items()}
    assert made == hashes(tmp_path / "tenth")


@pytest.mark.parametrize(("first", "then"), [("ray", "local"), ("local", "ray")])
def test_one_engine_finishes_what_the_other_began(
    cluster: Cluster, raw: Path, small: Path, tmp_path: Path, first: str, then: str
) -> None:
    cluster.second()
    out, train = tmp_path / "mixture", tmp_path / "mixture.partial" / "train"
    process = begin(*BUILD, raw, "--out", out, f"--engine={first}")
    until_there(process, train / "train-000020.tar")
    process.kill()
    process.communicate()
    time.sleep(2)  # until its workers have noticed
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "mixture.partial" / "work").glob("*.done")}
    assert 10 < len(made) < 168
    kept = {name.replace("rows-", "train-").replace(".done", ".tar") for name in made}
    before = {name: (train / name).stat().st_mtime_ns for name in kept}
    done = vlmix(*BUILD, raw, "--out", out, f"--engine={then}")
    assert done.returncode == 0, done.stderr
    assert hashes(out) == hashes(small)
    assert {name: (out / "train" / name).stat().st_mtime_ns for name in kept} == before, "they were not made again"


def test_an_interrupted_build_leaves_no_worker_behind(cluster: Cluster, raw: Path, small: Path, tmp_path: Path) -> None:
    cluster.second()
    out, partial = tmp_path / "mixture", tmp_path / "mixture.partial"
    process = begin(*BUILD, raw, "--out", out, "--engine=ray")
    until_there(process, partial / "train" / "train-000010.tar")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.endswith("vlmix: interrupted; run the same command again to resume\n")
    left = hashes(partial)
    assert not [name for name in left if name.endswith((".tmp", "/held"))]
    time.sleep(1)
    assert hashes(partial) == left
    assert vlmix(*BUILD, raw, "--out", out, "--engine=ray", "--workers=2").returncode == 0
    assert hashes(out) == hashes(small)


def test_verify_subsample_and_merge(cluster: Cluster, small: Path, tmp_path: Path) -> None:
    cluster.second()
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    (copy / "train" / "train-000007.tar").write_bytes(b"torn")
    checks = [run("verify", copy, f"--engine={engine}", "--json") for run, engine in ENGINES]
    assert checks[0].stdout == checks[1].stdout and "train-000007" in checks[0].stdout
    assert [check.returncode for check in checks] == [1, 1]
    assert vlmix("verify", small, "--engine=ray").returncode == 0
    select = ("subsample", small, "--ratio=30%", "--materialize", "--out")
    for run, engine in ENGINES:
        assert run(*select, tmp_path / engine, f"--engine={engine}").returncode == 0
        two = (tmp_path / "ray", small, "name=both", "duplicates=drop")
        assert run("merge", *two, "--out", tmp_path / f"{engine}-both", f"--engine={engine}").returncode == 0
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "local")
    assert hashes(tmp_path / "ray-both") == hashes(tmp_path / "local-both")


def test_what_is_wrong_with_the_input_is_said_once(cluster: Cluster, raw: Path, tmp_path: Path) -> None:
    bad = tmp_path / "raw"
    shutil.copytree(raw, bad)
    (bad / "llava_instruct" / "llava_instruct_150k.json").write_text('[{"id":')
    ray, local = (run(*BUILD, bad, "--out", tmp_path / "out", f"--engine={engine}") for run, engine in ENGINES)
    assert ray.returncode == local.returncode == 1 and "the file is damaged" in local.stderr
    told = [
        line for line in ray.stderr.splitlines(keepends=True) if "(raylet)" not in line
    ]  # of an earlier test's node
    assert told == [local.stderr]


def test_the_contract(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held").write_text("this one")
    monkeypatch.chdir(tmp_path)
    with start("ray", 3, [Path("held")]) as engine:
        check_contract(engine, 3)
        with pytest.raises(VlmixError, match="lost with its worker 4 times"):
            list(engine.map(os._exit, [1]))


@pytest.mark.parametrize("missing", [True, False])
def test_a_node_with_another_vlmix(cluster: Cluster, small: Path, tmp_path: Path, missing: bool) -> None:
    if not missing:
        shutil.copytree(ROOT / "vlmix", tmp_path / "vlmix")  # the rooms, too, to which it links
        with (tmp_path / "vlmix" / "mixture" / "hashing.py").open("a") as code:
            code.write("\n")
    else:
        (tmp_path / "vlmix").mkdir()
        (tmp_path / "vlmix" / "__init__.py").touch()
    node = cluster.join(PYTHONPATH=str(tmp_path))
    done = vlmix("verify", small, "--engine=ray", cwd="/")  # Ray lets workers import from the command's folder, too
    node.kill()
    problem = "of the Ray cluster runs no task of vlmix: " if missing else "has vlmix code "
    assert done.returncode == 1 and f"vlmix: node {node.address} {problem}" in done.stderr


def test_a_node_that_does_not_share_the_files(cluster: Cluster, raw: Path, tmp_path: Path) -> None:
    hide = (
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs none {raw} && exec "$@"',
        "sh",
    )
    if shutil.which("unshare") is None or subprocess.run([*hide, "true"], capture_output=True).returncode:
        pytest.skip("no mount of its own for a process here")
    node = cluster.join(before=hide)
    done = vlmix(*BUILD, raw, "--out", tmp_path / "out", "--engine=ray")
    node.kill()
    assert done.returncode == 1 and f"vlmix: node {node.address}: {raw} is not what it is" in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_cluster(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        there, gone = silent.getsockname()[1], closed.getsockname()[1]
        closed.close()
        for address, problem in (
            (f"127.0.0.1:{there}", "timed out"),
            (f"127.0.0.1:{gone}", "Connection refused"),
            ("nonsense", "Invalid address"),
            ("ray://127.0.0.1:1", "run the command on a node"),
        ):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(VlmixError, match=problem), start("ray", None, [small / "manifest.json"]):
                pass
