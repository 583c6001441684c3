"""What machines do: disks that fail, file systems without locks or hard links, clocks that jump."""

import errno
import fcntl
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

import vlmix
from tests.helpers import hashes
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import export
from vlmix.mixture.io.pool import silent


def refuse(number: int) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


def made(raw: Path, out: Path) -> dict[str, str]:
    build(parse({"name": "x", "sources": {"okvqa": {}, "vqav2": {}}}, known_sources()), known_sources(), raw, out)
    return hashes(out)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_is_an_error_and_the_next_run_resumes(
    number: int, call: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(os, "fsync", refuse(number))
        else:
            patch.setattr(Path, "replace", refuse(number))
        with pytest.raises(VlmixError, match=re.escape(os.strerror(number))):
            made(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob(".*.tmp"))
    assert made(raw, tmp_path / "out") == made(raw, tmp_path / "straight")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_it_warns_and_works(
    number: int, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = made(raw, tmp_path / "straight")
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    assert made(raw, tmp_path / "out") == wanted
    assert "has no locks" in caplog.text


def test_without_hard_links_shards_are_copied(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(mixture, "wids", tmp_path / "linked", progress=silent)
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    export(mixture, "wids", tmp_path / "copied", progress=silent)
    assert hashes(tmp_path / "copied") == hashes(tmp_path / "linked")


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_clocks_that_jump_change_nothing(jump: int, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = made(raw, tmp_path / "straight")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    with monkeypatch.context() as patch:
        patch.setattr("vlmix.mixture.build.build._finish", lambda *_: (_ for _ in ()).throw(VlmixError("stopped")))
        with pytest.raises(VlmixError, match="stopped"):
            made(raw, tmp_path / "out")
    for path in (tmp_path / "out.partial").rglob("*"):
        os.utime(path, (now() + jump, now() + jump))
    assert made(raw, tmp_path / "out") == wanted
    assert verify(tmp_path / "out").problems == [] and len(vlmix.open(tmp_path / "out")) > 0


@pytest.mark.processes
def test_what_a_killed_export_left_is_removed_by_the_next(mixture: Path, tmp_path: Path) -> None:
    import signal
    import subprocess

    from tests.helpers import VLMIX

    out = tmp_path / "out.json"
    code = (
        "import os, signal; from pathlib import Path; from vlmix.mixture.io.atomic import atomic_write\n"
        f"with atomic_write(Path({str(out)!r})) as file: file.write(b'half'); file.flush(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([VLMIX[0], "-c", code], timeout=60)
    assert done.returncode == -signal.SIGKILL and len(list(tmp_path.glob(".out.json.*.tmp"))) == 1
    (tmp_path / f".out.json.another-host.{2**22 + 1}.tmp").touch()
    export(mixture, "llava-json", out, progress=silent)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f".out.json.another-host.{2**22 + 1}.tmp", "out.json"]


def test_the_error_of_a_read_only_disk_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmix.mixture.io.atomic import write_bytes

    monkeypatch.setattr(Path, "open", refuse(errno.EROFS))
    monkeypatch.setattr(Path, "unlink", refuse(errno.EROFS))
    with pytest.raises(VlmixError, match="cannot write: Read-only file system"):
        write_bytes(tmp_path / "x", b"")
