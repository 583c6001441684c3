import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import vlmix
from tests.builders import tables
from vlmix.builders import known_sources
from vlmix.builders.peek import peek
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse

QUESTION = {"question": "What?", "answer": "That."}


def written(folder: Path, *rows: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_every_row_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(tables.picture(1))
    images = ["a.jpg", "none.jpg", "https://example.org/a.jpg", None, ["a.jpg", None]]
    rows = [{**QUESTION, "image": image} for image in images]
    sight = peek(written(tmp_path, *rows, {**QUESTION, "question": "<image>"}, {**QUESTION, "answer": ""}))
    assert (sight.looked_at, sight.usable) == (7, 2)
    assert {reason: times for reason, (times, _) in sight.rejects.items()} == {
        "image_missing": 1, "image_url": 1, "bad_image": 1, "image_token": 1, "empty_text": 1, "no_rounds": 1
    }  # fmt: skip


@pytest.mark.parametrize("rows", [3, 0])
def test_no_more_rows_are_read_than_asked_for_though_none_is_usable(rows: int, tmp_path: Path) -> None:
    path = written(tmp_path, *({**QUESTION, "image": "https://example.org/a.jpg"} for _ in range(9)))
    assert peek(path, rows=rows).looked_at == (rows or 9)


def test_a_reserved_name_gets_one_that_is_free(tmp_path: Path) -> None:
    sight = peek(written(tmp_path, {**QUESTION, "width": 1, "row_width": 2}))
    assert sight.recipe["sources"]["rows"]["columns"] == {"row_width1": "width"}
    assert sight.samples[0]["columns"] == {"row_width": 2, "row_width1": 1}


@pytest.mark.parametrize("path", ["docs", "saved", "csv/questions.csv", "shard-000000.tar"])
def test_its_recipe_builds_what_it_says(path: str, tmp_path: Path) -> None:
    tables.write_texts(tmp_path / "docs")
    tables.write_saved(tmp_path / "saved")
    tables.write_csv(tmp_path / "csv")
    tables.write_tar(tmp_path / "shard-000000.tar")
    sight = peek(str(tmp_path / path))
    build(parse(sight.recipe, known_sources()), known_sources(), tmp_path, tmp_path / "out", workers=1)
    opened = vlmix.open(tmp_path / "out")
    assert len(opened) == sight.usable == sight.looked_at
    assert Counter(opened.column("num_images").to_pylist()) == sight.images
