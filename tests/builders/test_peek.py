import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import tables
from vlmix.builders.peek import peek

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
