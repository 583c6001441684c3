"""What several tests need: small raw files, rows as text, folders as hashes."""

import ast
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlmix.builders import known_sources
from vlmix.builders.layout import COCO
from vlmix.cli.main import main
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Question
from vlmix.mixture.build.extract import conversations
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.record import Conversation, ImageRef, Round
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


SIZES = ((40, 30), (60, 80), (33, 33), (90, 20), (24, 48))
"""Of five images that are told apart by their size."""


def write_images(folder: Path, name: str, count: int = len(SIZES)) -> list[str]:
    """`count` JPEGs below `folder`, each with pixels of its own, and their paths `name/0.jpg`, …"""
    paths = [f"{name}/{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:3])
        color = (seed >> 16, seed >> 8 & 255, seed & 255)
        Image.new("RGB", SIZES[number], color).save(folder / path, comment=path.encode())
    return paths


def _boxed(raw: RawFolder, options: Options, seed: int, reject: Rejects) -> Iterator[Conversation]:
    for number in range(4):
        images = tuple(ImageRef(f"boxed/{number}/{i}.jpg", *size) for i, size in enumerate(SIZES[: 2 + number]))
        rounds = tuple(
            Round(f"thing {i}", "", "grounding", boxes=((4, 5, 14, 17),), box_images=(i,)) for i in range(len(images))
        )
        yield Conversation(id=f"boxed/{number}", source="boxed", rounds=rounds, images=images)


BOXED = Source(
    name="boxed",
    title="Boxes in several images",
    homepage="https://example.org",
    license="CC0",
    response_formats=("grounding",),
    files=(),
    read=_boxed,
)
"""Conversation `boxed/N` has N + 2 images, whose files `write_boxed` writes, and a question about a box in each."""


def write_boxed(folder: Path) -> Path:
    for number in range(4):
        write_images(folder, f"boxed/{number}", 2 + number)
    return folder


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
    """The real command in a process of its own, which takes a second, and with torch four."""
    environment = {**os.environ, "COLUMNS": "200", **popen.pop("env", {})}
    limit = popen.pop("timeout", 240)
    return subprocess.run(
        [*VLMIX, *map(str, arguments)], capture_output=True, text=True, timeout=limit, env=environment, **popen
    )


def vlmix_here(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what a command says and does."""
    out, err, command = io.StringIO(), io.StringIO(), ["vlmix", *map(str, arguments)]
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with mock.patch.object(sys, "argv", command), contextlib.chdir(cwd or Path.cwd()), streams[0], streams[1]:
        try:
            main()
        except SystemExit as ended:
            return subprocess.CompletedProcess(command, int(ended.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("a command ends with its status")


def vlmix_each(*commands: list[str], cwd: Path, env: dict[str, str]) -> list[subprocess.CompletedProcess[str]]:
    """Commands one after the other, all in one process of its own."""
    script = f"from tests.helpers import vlmix_here\nfor each in {commands}: print(vars(vlmix_here(*each)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, cwd=cwd, env=os.environ | env
    )
    found = [subprocess.CompletedProcess(**ast.literal_eval(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(commands), done.stderr
    return found


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


def split_index(folder: Path, rows: int) -> list[str]:
    """Make parts of an index that is one file, each of as many whole row groups as fit in `rows`; their names."""
    path = folder / "samples.parquet"
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
    parts: list[list[pa.Table]] = []
    for group in groups:
        if not parts or sum(map(len, parts[-1])) + len(group) > rows:
            parts.append([])
        parts[-1].append(group)
    path.unlink()
    path.mkdir()
    names = [f"samples.parquet/part-{number:05d}.parquet" for number in range(len(parts))]
    for name, tables in zip(names, parts):
        with pq.ParquetWriter(folder / name, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=len(table))
    plain = json.loads((folder / "manifest.json").read_text())
    del plain["checksums"]["samples.parquet"]
    plain["checksums"] |= {name: sha256(folder / name) for name in names}
    forge(folder, plain)
    return names


def planted_benchmark(name: str, questions: list[Question], labels: Labels | None) -> Benchmark:
    """A benchmark of these questions, which is compared with and never scored."""
    return Benchmark(
        name=name,
        title="",
        metric="",
        homepage="",
        files=(),
        splits=(),
        images=COCO,
        read_labels=None if labels is None else lambda files, split: labels,
        read_questions=lambda files, split: questions,
        score_answers=lambda *_: None,
    )
