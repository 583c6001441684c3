"""Tasks on the nodes of a Ray cluster that share a file system.

The parent hands out tasks and reads files that appear by rename, so a task that is repeated on another node writes the
same bytes twice. It alone decides their order, and alone holds locks.
"""

import importlib.metadata
import logging
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from msgspec import Struct
from xxhash import xxh3_128

from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.extras import missing
from vlmix.mixture.io.digests import file_digest
from vlmix.mixture.io.images import libraries
from vlmix.mixture.io.pool import Result, Task, run

ADDRESS = "RAY_ADDRESS"
"""Environment variable: HOST:PORT of the cluster, or "auto", the default: the one that this machine is a node of."""
_TRIES = 3  # of a task after its first one, when it is lost with its worker
_WAIT, _ANSWER, _LOOK, _STOP = 5, 120, 10, 60  # seconds until: no cluster, no node, a look at the nodes, giving up


class Site(Struct, frozen=True):
    """What a worker must find: the parent's working folder, environment, and files and folders by their digests. The
    first of these is looked at again before each task: when it changes, the parent has ended."""

    id: str
    folder: str
    environment: dict[str, str]
    sees: list[tuple[str, str]]


class RayPool:
    """The CPUs of a Ray cluster. `limit` tasks are handed out at a time, None: two for each CPU.

    `sees` are files and folders that every node must have as they are here. Lost workers and nodes are made up for by
    the others; what a task raises is final. Raises VlmixError where there is no cluster, or a node cannot do the work.
    """

    def __init__(self, limit: int | None, sees: Sequence[Path]) -> None:
        try:
            import ray
            import ray.exceptions
        except ModuleNotFoundError:
            raise missing("ray", "--engine ray") from None
        self._ray, self._sees, self._limit = ray, sees, limit or 0
        self._running: set[Any] = set()
        self._stack = ExitStack()

    def __enter__(self) -> "RayPool":
        ray = self._ray
        try:
            if not ray.is_initialized():  # else it is the caller's own connection
                self._stack.enter_context(redirect_stdout(sys.stderr))  # Ray tells there which nodes were lost
                self._stack.callback(ray.shutdown)
                self._connect()
            self._site = Site(uuid4().hex, str(Path.cwd()), _environment(), [(str(p), _look(p)) for p in self._sees])
            self._task = ray.remote(num_cpus=1, max_retries=_TRIES)(in_worker)
            self._check_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            self._stop(self._running)

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """As `Engine.map`."""
        ray, queue = self._ray, iter(tasks)
        running: dict[Any, Task] = {}
        try:
            while True:
                for task in islice(queue, self._limit - len(running)):
                    reference = self._task.remote(self._site, function, task)
                    running[reference] = task
                    self._running.add(reference)
                if not running:
                    return
                ready, _ = ray.wait(list(running), timeout=_LOOK)
                if not ready and not _cpus(ray):
                    raise VlmixError("no node of the Ray cluster is left; start one and run the same command again")
                for reference in ready:
                    self._running.discard(reference)
                    yield running.pop(reference), self._result(reference)
        finally:
            self._stop(set(running))

    def _connect(self) -> None:
        address = os.environ.get(ADDRESS) or "auto"
        if address.startswith("ray://"):
            raise VlmixError(f"{ADDRESS}={address}: run the command on a node of the cluster, with HOST:PORT or auto")
        host, _, port = address.rpartition(":")
        try:
            if host:
                _check_answers(host, int(port))
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError) as error:
            first = abridged(str(error).strip().partition("\n")[0], 300)
            remedy = f"start it with `ray start`, or set {ADDRESS} to HOST:PORT of one that runs"
            raise VlmixError(f"no Ray cluster at {address}: {first}; {remedy}") from None
        except RuntimeError as error:  # another version of Ray or Python
            raise VlmixError(f"the Ray cluster at {address}: {abridged(' '.join(str(error).split()), 500)}") from None

    def _check_nodes(self) -> None:
        """A task on every node that looks at its site."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = self._ray
        cpus = _cpus(ray)
        if not cpus:
            raise VlmixError("the Ray cluster has no node with CPUs for tasks; start one")
        self._limit = self._limit or 2 * cpus
        asked = {}
        for node in ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                probe = self._task.options(num_cpus=0, scheduling_strategy=here)
                asked[probe.remote(self._site, None, None)] = node["NodeManagerAddress"]
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER)
        for reference in answered:
            self._check_answer(reference, asked[reference])
        if silent:
            nodes = ", ".join(asked[reference] for reference in silent)
            raise VlmixError(f"nodes of the Ray cluster do not answer: {nodes}; stop or restart them")

    def _check_answer(self, reference: Any, node: str) -> None:
        errors = self._ray.exceptions
        try:
            self._ray.get(reference)
        except (errors.TaskUnschedulableError, errors.NodeDiedError):  # it was lost just now
            pass
        except errors.RayError as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, VlmixError):
                raise cause from error
            raise VlmixError(
                f"node {node} of the Ray cluster runs no task of vlmix: {_last_line(cause)}; install vlmix on every "
                "node, and start Ray there from that environment"
            ) from error

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise VlmixError(
                f"a task was lost with its worker {1 + _TRIES} times, probably for lack of memory; run the same "
                "command again on larger nodes, or with fewer CPUs on each, it resumes from here. "
                f"Ray: {_last_line(error)}"
            ) from error

    def _stop(self, references: set[Any]) -> None:
        """End tasks, and wait until they have: what they were writing is gone then."""
        if references and self._ray.is_initialized():
            for reference in references:
                self._ray.cancel(reference)
            self._ray.wait(list(references), num_returns=len(references), timeout=_STOP)
        self._running -= references


def _check_answers(host: str, port: int) -> None:
    """Raises OSError if no server of gRPC answers there. Ray itself would try for two minutes."""
    with socket.create_connection((host, port), timeout=_WAIT) as connection:
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
            if connection.recv(9)[3:4] != b"\4":  # the settings that HTTP/2 begins with (RFC 9113, 3.4)
                raise OSError("what answers is not Ray")


def _last_line(error: BaseException) -> str:
    """Which names the error where Ray gives a whole traceback."""
    return abridged(str(error).strip().rpartition("\n")[2], 300)


def _cpus(ray: Any) -> int:
    return int(ray.cluster_resources().get("CPU", 0))


def in_worker(site: Site, function: Callable[[Task], Result] | None, task: Task) -> Result | None:
    """Run a task in a worker; None: only look whether this node has what the site needs. Raises VlmixError if not."""
    if site.id != _settled[0]:
        _settle(site)
        _settled[0] = site.id
    path, digest = site.sees[0] if site.sees else ("", "")
    if path and _look(Path(path)) != digest:
        raise VlmixError(f"{path}: changed, or gone: the command that this task is of has ended, or another has begun")
    return None if function is None else run(function, task)


_settled = [""]
"""The site whose node this process has looked at."""


def _settle(site: Site) -> None:
    mine = _environment()
    for name, version in site.environment.items():
        if mine.get(name) != version:
            raise VlmixError(
                f"node {_node()} has {name} {mine.get(name)}, the machine of the command has {version}; install the "
                "same on every node and restart Ray there"
            )
    if Path(site.folder).is_dir():
        os.chdir(site.folder)  # what relative paths are relative to
    for path, digest in site.sees:
        found = _look(Path(path))
        if found != digest:
            state = "is not what it is" if found else "is not there as"
            raise VlmixError(
                f"node {_node()}: {Path(site.folder, path)} {state} on the machine of the command; a Ray cluster needs "
                "a file system that all nodes share, at the same path"
            )


def _node() -> str:
    """The address of this worker's node."""
    import ray

    mine = ray.get_runtime_context().get_node_id()
    return next((str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == mine), mine)


def _look(path: Path) -> str:
    """A digest of a file's bytes, or of the names in a folder and in its folders; "" where there is neither."""
    try:
        if not path.is_dir():
            return file_digest(path)
        return xxh3_128(repr([(entry.name, _names(entry)) for entry in sorted(path.iterdir())]).encode()).hexdigest()
    except OSError:
        return ""


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 (of thousands)
    except OSError:  # a file
        return []


def _environment() -> dict[str, str]:
    """Name -> version of what decides bytes; vlmix by its code, as a working tree has no version."""
    code, root = xxh3_128(), Path(__file__).parents[1]
    for path in sorted([*root.rglob("*.py"), *(root.parent / "builders").rglob("*.py")]):
        code.update(path.read_bytes())
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "pyarrow")}
    return {"Python": platform.python_version(), **packages, **libraries(), "vlmix code": code.hexdigest()[:12]}
