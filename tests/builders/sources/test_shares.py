"""A large file that several jobs read gives what one job reads of it, in the same order."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.helpers import dump
from vlmix.builders import known_sources
from vlmix.mixture.build.extract import conversations
from vlmix.mixture.build.source import RawFolder
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.io import json_pieces
from vlmix.mixture.io.json_pieces import Unsplit
from vlmix.mixture.record import Conversation

OPTIONS: dict[str, dict[str, Any]] = {
    "vg": {},
    "sharegpt": {},
    "llava_instruct": {},
    "lcs558k": {},
    "llava_json": {"path": "llava_v1_5_mix_sample.json", "recognize": True},
}
SIZES = {"vg": 20_000, "sharegpt": 5_000, "llava_instruct": 5_000, "lcs558k": 2_000, "llava_json": 5_000}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(json_pieces, "PIECE", 3_000)
    yield


def parts(name: str, raw: Path, **options: Any) -> tuple[int, list[Conversation], list[Reject], list[Path]]:
    """How many parts there are, and what they give one after the other."""
    source = known_sources()[name]
    chosen = msgspec.convert(options, source.options)
    found, rejects, hashed = [], [], []
    split = source.split(RawFolder(raw, source), chosen, name)
    for part in split:
        offered, folder, told = conversations(source, chosen, raw, part=part)
        found += offered
        rejects += told.rows
        hashed += [path for path in dict.fromkeys(folder.opened) if folder.hashes[path].result()]
    return len(split), found, sorted(rejects, key=repr), hashed


@pytest.mark.parametrize("name", OPTIONS)
def test_shares_give_what_the_whole_file_gives(raw: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, whole, rejects, hashed = parts(name, raw, **OPTIONS[name])
    monkeypatch.setattr(json_pieces, "SHARE", SIZES[name])
    several, found, told, again = parts(name, raw, **OPTIONS[name])
    assert one == 1 and several > 4
    assert found == whole and told == rejects
    assert again == hashed  # each file by one share alone


def test_rows_without_ids_are_numbered_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [
        {
            "conversations": [
                {"from": "human", "value": f"Q{n}"},
                {"from": "gpt" if n % 7 else "robot", "value": f"A{n}"},
            ]
        }
        for n in range(60)
    ]
    for path, text in {"a.json": json.dumps(rows), "a.jsonl": "\n".join(map(json.dumps, rows))}.items():
        (tmp_path / path).write_text(text)
        _, whole, rejects, _ = parts("llava_json", tmp_path, path=path)
        with monkeypatch.context() as patch:
            patch.setattr(json_pieces, "SHARE", 1_000)
            several, found, told, _ = parts("llava_json", tmp_path, path=path)
        assert several > 4 and found == whole and told == rejects


def test_a_share_of_a_damaged_file_is_not_read(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "SHARE", 20_000)
    shutil.copytree(raw / "vg", tmp_path / "vg")
    path = tmp_path / "vg/region_descriptions.json"
    images = json.loads(path.read_text())
    images[len(images) // 2]["regions"][0]["x"] = "left"
    dump(path, images)
    with pytest.raises(Unsplit):
        parts("vg", tmp_path)
