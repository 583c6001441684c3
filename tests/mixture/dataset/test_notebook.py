"""What a notebook shows of a sample and of a mixture."""

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlmix
from vlmix.mixture.dataset.notebook import mixture_html, sample_html
from vlmix.mixture.dataset.schema import turns
from vlmix.mixture.record import ImageRef

HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(1)> [0.1, 0.2, 0.3, 0.4]"


def test_a_sample_is_short_in_text_and_whole_in_html(mixture: Path) -> None:
    opened = vlmix.open(mixture)
    sample = opened["refcoco/" + next(id for id in opened.column("id").to_pylist() if "refcoco" in id)[8:]]
    assert len(repr(sample)) < 250 and "\\x" not in repr(sample) and sample.id in repr(sample)
    picture = sample.image_pil()
    assert picture is not None and picture.size == (sample.width, sample.height)
    tree = ET.fromstring(sample._repr_html_().replace("<br>", "<br/>"))
    assert len(tree.findall(".//p")) == 1 + len(sample.conversations)
    (image,) = tree.findall(".//image")
    assert image.attrib["href"].startswith("data:image/jpeg;base64,")


def test_boxes_lie_where_the_official_annotations_have_them(mixture: Path) -> None:
    """The index holds the boxes in pixels, as they were annotated; the page reads them from the texts."""
    opened = vlmix.open(mixture)
    boxes = pq.read_table(mixture / "samples.parquet", columns=["id", "boxes"]).to_pylist()
    row = next(row for row in boxes if row["id"].startswith("refcoco/") and row["boxes"])
    sample = opened[row["id"]]
    tree = ET.fromstring(sample._repr_html_().replace("<br>", "<br/>"))
    drawn = [[float(rect.attrib[key]) for key in ("x", "y", "width", "height")] for rect in tree.findall(".//rect")]
    step = max(sample.width, sample.height) / 100  # two decimals
    for box in row["boxes"]:
        wanted = [box["x1"], box["y1"], box["x2"] - box["x1"], box["y2"] - box["y1"]]
        assert any(np.allclose(wanted, rect, atol=1.2 * step) for rect in drawn), (wanted, drawn)


def test_texts_from_data_are_escaped() -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 2)).save(data, "PNG")
    for html in (
        sample_html(HOSTILE, turns([HOSTILE, HOSTILE]), (data.getvalue(),), [ImageRef(HOSTILE, 4, 2)]),
        mixture_html(HOSTILE, {HOSTILE: 1}),
    ):
        ET.fromstring(f"<div>{html}</div>")
        assert not re.search(r"<(script|img)", html)


def test_every_image_is_shown_and_boxes_are_drawn_where_there_is_one() -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 2)).save(data, "PNG")
    for count, drawn in ((0, 0), (1, 1), (3, 0)):
        html = sample_html(
            "x", turns(["Where?", "[0.10, 0.20, 0.30, 0.40]"]), [data.getvalue()] * count, [ImageRef("a", 4, 2)] * count
        )
        tree = ET.fromstring(html)
        assert len(tree.findall(".//image")) == count and len(tree.findall(".//rect")) == drawn
        assert "[0.10, 0.20, 0.30, 0.40]" in html


def test_a_mixture_is_indexed_by_id_positions_and_masks(mixture: Path) -> None:
    opened = vlmix.open(mixture)
    ids = opened.column("id").to_pylist()
    assert opened[ids[7]].id == ids[7] == opened[np.int64(7)].id
    for part in (opened[[5, 2]], opened[np.array([5, 2])], opened[[ids[5], ids[2]]]):
        assert part.column("id").to_pylist() == [ids[5], ids[2]]
    gqa = opened[opened.column("source").to_numpy() == "gqa"]
    assert gqa.sources == {"gqa": len(gqa)} and opened.sources["gqa"] == len(gqa)
    assert sum(opened.sources.values()) == len(opened) and list(opened.sources) == list(opened.manifest.sources)
    assert str(len(gqa)) in gqa._repr_html_()
    for wrong in ("nothing", len(opened), [len(opened)]):
        with pytest.raises((KeyError, IndexError)):
            opened[wrong]
    assert len(opened[[]]) == 0
    for wrong in (None, 1.5, [0.5], {"a": 1}, [[1]]):
        with pytest.raises(TypeError, match="expected a position, an id, a slice"):
            opened[wrong]
