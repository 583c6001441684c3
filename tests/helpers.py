"""What several tests need: small raw files, rows as text, folders as hashes."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from vlmix.builders import known_sources
from vlmix.mixture.build.extract import conversations
from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.record import Conversation
from vlmix.mixture.render import render

VLMIX = [sys.executable, "-c", "from vlmix.cli.main import main; main()"]


def dump(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def read(name: str, raw: Path, seed: int = 0, **options: Any) -> tuple[list[Conversation], list[Reject]]:
    """All conversations and rejects of a builder over `raw`."""
    source = known_sources()[name]
    offered, _, rejects = conversations(source, msgspec.convert(options, source.options), raw, seed)
    return list(offered), rejects.rows


def rows(found: list[Conversation], style: Any = "llava") -> list[list[str]]:
    return [render(conversation, style) for conversation in found]


def reasons(rejects: list[Reject]) -> set[str]:
    return {reject.reason for reject in rejects}


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below a folder."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def vlmix(*arguments: object, **popen: Any) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    environment = {**os.environ, "COLUMNS": "200", **popen.pop("env", {})}
    limit = popen.pop("timeout", 240)
    return subprocess.run(
        [*VLMIX, *map(str, arguments)], capture_output=True, text=True, timeout=limit, env=environment, **popen
    )


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda plain: None) -> None:
    """Write the manifest anew, with true checksums, as somebody would who forges a mixture."""
    plain = json.loads((folder / "manifest.json").read_text())
    plain["checksums"] = {name: sha256(folder / name) for name in plain["checksums"]}
    change(plain)
    for shard in plain["shards"]:
        path = folder / shard["path"]
        shard["sha256"], shard["bytes"] = sha256(path), path.stat().st_size
    forge(folder, plain)


def forge(folder: Path, plain: dict[str, Any]) -> None:
    """Write a manifest of any content, sealed."""
    text = json.dumps({**plain, "sha256": "0" * 64}, indent=1) + "\n"
    (folder / "manifest.json").write_bytes(manifests._sealed(text.encode()))
