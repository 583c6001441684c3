import json
from pathlib import Path

import polars as pl
import pytest

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import llava_json
from vlmix.mixture.selection.subset import Selection, subsample


def test_built_samples_become_llavas_rows(mixture: Path, tmp_path: Path) -> None:
    count = llava_json(mixture, tmp_path / "out.json", tmp_path / "images")
    rows = json.loads((tmp_path / "out.json").read_text())
    frame = pl.read_parquet(mixture / "samples.parquet")
    assert len(rows) == count == len(frame)
    for row, sample in zip(rows, frame.to_dicts(), strict=True):
        assert row["conversations"] == sample["conversations"]
        if sample["source"] == "gqa":
            assert isinstance(row["id"], int)
        if sample["source"] == "sharegpt":
            assert list(row) == ["id", "model", "conversations"] and row["model"] == ""
        else:
            assert list(row) == ["id", "image", "conversations"] and row["image"] == sample["image"]
            assert Path(row["image"]).stem in str(row["id"]) or sample["source"] == "vg"
            assert (tmp_path / "images" / row["image"]).stat().st_size == sample["images"][0]["size"]
        if sample["source"] == "vg":
            assert row["image"] == f"vg/{row['id']}.jpg"
        if sample["source"] == "aokvqa":
            assert len(row["id"]) == 12


def test_views_are_exported_with_their_texts(mixture: Path, tmp_path: Path) -> None:
    subsample(mixture, tmp_path / "view", Selection(ratio=0.1))
    assert llava_json(tmp_path / "view", tmp_path / "out.json") == 84
    ids = pl.read_parquet(tmp_path / "view/samples.parquet")["id"].to_list()
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [str(row["id"]) for row in rows] == [id.partition("/")[2].partition("#")[0] for id in ids]


def test_an_existing_file_is_not_overwritten(mixture: Path, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(VlmixError, match="exists already"):
        llava_json(mixture, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "mine"
