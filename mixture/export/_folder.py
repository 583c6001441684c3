"""New folders, JSON lines and Parquet files that depend on the mixture alone."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors, write_parquet
from vlmix.mixture.io.staging import staging_folder

IMAGES = "images"
"""Folder of loose images."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes the name `out` when the block ends well. What a killed export left in `OUT.partial`
    is removed by the next one."""
    with staging_folder(out) as (partial, work), disk_errors(out):
        _empty(partial, work)
        try:
            yield partial
        except BaseException:
            _empty(partial, work)
            raise


def _empty(folder: Path, but: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and entry != but:
            shutil.rmtree(entry)
        elif entry != but:
            entry.unlink()


def json_text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def file_names(sources: Iterable[str]) -> dict[str, str]:
    """A file name for each source, without suffix."""
    names: dict[str, str] = {}
    for source in sources:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", source).lstrip(".") or "_"
        if name in names.values():
            raise VlmixError(f"sources {source!r} and another would both be called {name}; rename one in the recipe")
        names[source] = name
    return names


def write_tables(
    folder: Path, rows: Iterator[dict[str, Any]], total: int, per_file: int, schema: pa.Schema, per_group: int
) -> None:
    """`total` rows as `train-00000-of-00009.parquet` …, in row groups that a reader can hold with their images."""
    files = max(-(-total // per_file), 1)
    for number in range(files):
        mine = islice(rows, per_file)

        def batches(mine: Iterator[dict[str, Any]] = mine) -> Iterator[pa.RecordBatch]:
            while group := list(islice(mine, per_group)):
                yield pa.RecordBatch.from_pylist(group, schema)

        write_parquet(folder / f"train-{number:05d}-of-{files:05d}.parquet", batches(), schema)
