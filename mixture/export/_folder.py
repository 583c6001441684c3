"""New folders and their JSON and YAML files."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from vlmix.mixture.io.atomic import disk_errors
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


def write_yaml(path: Path, data: Any) -> None:
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
