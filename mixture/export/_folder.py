"""JSON and YAML files of an export."""

import json
from pathlib import Path
from typing import Any

import yaml

IMAGES = "images"
"""Folder of loose images."""


def json_text(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_yaml(path: Path, data: Any) -> None:
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
