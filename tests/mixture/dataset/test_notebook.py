"""What a notebook shows of a sample and of a mixture, and what a sample shows of itself in a terminal."""

import base64
import io
import random
import re
import sys
import types
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageShow

import vlmix
from vlmix.mixture.dataset.manifest import Counts
from vlmix.mixture.dataset.notebook import mixture_html
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.dataset.schema import Turn, turns
from vlmix.mixture.record import ImageRef

HOSTILE = (
    "</p></div><script>alert(1)</script><img src=x onerror=alert(1)> \" onload='alert(1)' [0.1, 0.2, 0.3, 0.4] "
    "&lt;b&gt; <!-- ]]> \u202eabc\u2066 \x00\x1b]0;t\x07 \udcff \u05e9\u05dc\u05d5\u05dd \U0001f600"
)
TAGS = {"div", "b", "img", "svg", "rect", "table", "thead", "tbody", "tfoot", "tr", "th", "td"}
ATTRIBUTES = {
    *("style", "dir", "src", "alt", "width", "height", "viewBox", "preserveAspectRatio", "aria-hidden", "colspan"),
    *("x", "y", "fill", "stroke", "stroke-width", "vector-effect"),
}


def stored(width: int = 40, height: int = 20, noise: bool = False) -> bytes:
    out = io.BytesIO()
    pixels = random.Random(0).randbytes(width * height * 3) if noise else b"\x40\x80\xc0" * width * height
    Image.frombytes("RGB", (width, height), pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


def made(texts: list[str], jpegs: list[bytes], path: str = "a.jpg", **fields: Any) -> Sample:
    images = [ImageRef(path, 40, 20)] * len(jpegs)
    first = {"image": path if jpegs else "", "width": 40 if jpegs else 0, "height": 20 if jpegs else 0}
    row = {"id": "x/1", "source": "x", "images": images, "conversations": turns(texts), "extra": "", **first, **fields}
    return Sample(jpegs=tuple(jpegs), **row)


def parsed(html: str) -> ET.Element:
    """The HTML as a tree, which an XML parser and Python's HTML parser see alike, and which holds nothing that acts."""
    tree = ET.fromstring(html)
    assert {node.tag for node in tree.iter()} <= TAGS
    assert {name for node in tree.iter() for name in node.attrib} <= ATTRIBUTES
    started: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: started.append(tag)  # type: ignore[method-assign]
    parser.feed(html)
    parser.close()
    assert started == [node.tag for node in tree.iter()]
    for image in tree.iter("img"):
        assert image.attrib["src"].startswith("data:image/jpeg;base64,") and image.attrib["alt"]
    return tree


def thumbnails(tree: ET.Element) -> list[Image.Image]:
    sources = [node.attrib["src"].partition(",")[2] for node in tree.iter("img")]
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in sources]


def words(tree: ET.Element) -> str:
    return "\n".join(tree.itertext())


def test_a_sample_is_short_in_text_and_whole_in_html(mixture: Path) -> None:
    opened = vlmix.open(mixture)
    sample = opened["refcoco/" + next(id for id in opened.column("id").to_pylist() if "refcoco" in id)[8:]]
    assert len(repr(sample)) < 250 and "\\x" not in repr(sample) and sample.id in repr(sample)
    picture = sample.image_pil()
    assert picture is not None and picture.size == (sample.width, sample.height)
    tree = parsed(sample._repr_html_())
    shown = ["".join(node.itertext()) for node in tree.iter("div") if node.get("dir") == "auto"]
    assert shown == [turn.value for turn in sample.conversations]
    (image,) = thumbnails(tree)
    assert image.format == "JPEG" and image.size == (sample.width, sample.height)
    assert f"{sample.id} · refcoco · " in words(tree)
    assert f"[0] {sample.image} {sample.width}x{sample.height}, {len(sample.jpegs[0]):,} bytes" in words(tree)


def test_boxes_lie_where_the_official_annotations_have_them(mixture: Path) -> None:
    """The index holds the boxes in pixels, as they were annotated; the page reads them from the texts."""
    opened = vlmix.open(mixture)
    boxes = pq.read_table(mixture / "samples.parquet", columns=["id", "boxes"]).to_pylist()
    row = next(row for row in boxes if row["id"].startswith("refcoco/") and row["boxes"])
    sample = opened[row["id"]]
    tree = parsed(sample._repr_html_())
    (drawing,) = tree.iter("svg")
    assert drawing.attrib["viewBox"] == f"0 0 {sample.width} {sample.height}"
    drawn = [[float(rect.attrib[key]) for key in ("x", "y", "width", "height")] for rect in tree.iter("rect")]
    step = max(sample.width, sample.height) / 100  # two decimals
    for box in row["boxes"]:
        wanted = [box["x1"], box["y1"], box["x2"] - box["x1"], box["y2"] - box["y1"]]
        assert any(np.allclose(wanted, rect, atol=1.2 * step) for rect in drawn), (wanted, drawn)


def test_texts_from_data_are_escaped() -> None:
    sample = made([HOSTILE, HOSTILE], [stored()], HOSTILE, id=HOSTILE, source=HOSTILE)
    hostile = made([HOSTILE], [b"no image"], HOSTILE, conversations=[Turn(HOSTILE, HOSTILE)])
    pages = [sample._repr_html_(), hostile._repr_html_(), mixture_html(HOSTILE, HOSTILE, {HOSTILE: Counts(samples=1)})]
    for html in pages:
        shown = words(parsed(html))
        assert "<script>alert(1)</script><img src=x onerror=alert(1)>" in shown
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e\u2066\ud800-\udfff]", html)
    turn = next(node for node in parsed(pages[0]).iter("div") if node.get("dir") == "auto")
    shown = "".join(turn.itertext())
    assert r"\u202eabc\u2066 \x00\x1b]0;t\x07 \udcff" in shown and shown.endswith("\u05e9\u05dc\u05d5\u05dd \U0001f600")


def test_every_image_is_shown_and_boxes_are_drawn_where_there_is_one() -> None:
    for count, drawn in ((0, 0), (1, 1), (3, 0)):
        html = made(["Where?", "[0.10, 0.20, 0.30, 0.40]"], [stored()] * count)._repr_html_()
        tree = parsed(html)
        assert len(thumbnails(tree)) == count and len(list(tree.iter("rect"))) == drawn
        assert "[0.10, 0.20, 0.30, 0.40]" in words(tree)
    backwards = made(["Where?", "[0.90, 0.90, 0.10, 0.10], or [1.0, 0.2, 1.5, 0.4]"], [stored()])
    assert not list(parsed(backwards._repr_html_()).iter("rect"))


def test_however_large_a_sample_is_the_page_is_small_and_says_what_it_leaves_out() -> None:
    photographs = made(["<image>\n" * 64, "Yes"], [stored(1500, 1000, noise=True)] * 64)
    html = photographs._repr_html_()
    images = thumbnails(parsed(html))
    assert len(images) == 16 and all(max(image.size) <= 336 for image in images)
    assert "… 48 more images" in html and len(html) < 2**21 < 64 * len(photographs.jpegs[0])

    html = made(["x" * 1_000_000, "Yes"], [])._repr_html_()
    assert len(html) < 10_000 and "… 996,000 more characters" in html and "Yes" in html
    html = made(["Look.", *["\u202e" * 50_000] * 50], [])._repr_html_()
    assert len(html) < 300_000 and "… 40 more turns" in html
    html = made(["x"] * 10_000, [], id="i" * 1_000_000, source="\0" * 1_000_000)._repr_html_()
    assert len(html) < 40_000 and "… 9,900 more turns" in html
    html = mixture_html("m", "here", {f"s{number}": Counts(samples=1) for number in range(5000)})
    assert len(html) < 40_000 and "… 4,900 more sources" in html and ">5,000<" in html


def test_what_does_not_decode_is_a_note() -> None:
    sample = made(["Which?", "[0.10, 0.20, 0.30, 0.40]"], [stored(), stored(400, 300)[:700], b"", stored()])
    tree = parsed(sample._repr_html_())
    assert len(thumbnails(tree)) == 2
    assert re.search(r"\[1\] a.jpg .*: does not decode: .*truncated", words(tree))
    assert "[2] a.jpg 40x20, 0 bytes: does not decode: " in words(tree)
    sizeless = made(["Which?", "[0.10, 0.20, 0.30, 0.40]"], [stored()], images=[ImageRef("a.jpg")])
    assert len(thumbnails(parsed(sizeless._repr_html_()))) == 1


def test_a_mixture_shows_what_its_sources_give_without_its_shards(mixture: Path, tmp_path: Path) -> None:
    def table(html: str) -> list[list[str]]:
        return [
            ["".join(cell.itertext()).replace("\N{NO-BREAK SPACE}", " ") for cell in row]
            for row in parsed(html).iter("tr")
        ]

    index = pl.read_parquet(mixture / "samples.parquet")
    opened = vlmix.open(mixture)
    opened.subset(ratio=0.5).save(tmp_path / "view")
    (tmp_path / "bare").mkdir()
    for name in ("manifest.json", "samples.parquet"):
        (tmp_path / "bare" / name).symlink_to(mixture / name)
    first, view = opened[3:200], vlmix.open(tmp_path / "view")
    for part, frame in (
        (opened, index),
        (vlmix.open(tmp_path / "bare"), index),
        (first, index[3:200]),
        (view, index.filter(pl.col("id").is_in(view.column("id").to_pylist()))),
    ):
        header, *rows, total = table(part._repr_html_())
        assert header == ["source", "samples", "share", "rounds", "words", "images"]
        for name, samples, share, *sums in rows:
            mine = frame.filter(source=name)
            assert samples == f"{len(mine):,}" and share == f"{100 * len(mine) / len(frame):.1f} %"
            wanted = mine.select("num_rounds", "num_words", "num_images").cast(pl.Int64).sum().row(0)
            assert sums == [f"{number:,}" for number in wanted]
        assert [row[0] for row in rows] == list(part.sources) and total[:3] == ["total", f"{len(frame):,}", "100.0 %"]
    shards = sum(path.stat().st_size for path in mixture.glob("train/*.tar"))
    assert f"{len(opened.manifest.shards)} shards, {shards / 1e6:.1f} MB" in opened._repr_html_()
    assert str(mixture) in opened._repr_html_() and "a part of its" in first._repr_html_()
    assert "a view of" in view._repr_html_()
    assert table(opened[[]]._repr_html_())[1:] == [["total", "0", "0.0 %", "0", "0", "0"]]


def test_show_prints_the_rounds_and_opens_the_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    windows: list[tuple[int, int]] = []

    class Viewer(ImageShow.Viewer):
        def show(self, image: Image.Image, **options: Any) -> bool:
            windows.append(image.size)
            return True

    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()])
    monkeypatch.setenv("DISPLAY", ":0")
    made(["Which?", "This", HOSTILE, "x" * 5000], [stored(), b"no", *[stored()] * 4]).show()
    text = capsys.readouterr().out
    assert windows == [(40, 20)] * 3
    assert "[0]\n human: Which?\n   gpt: This\n\n[1]\n human: </p>" in text and "… 1,000 more characters" in text
    assert "[1] does not decode: " in text and "… 2 more images" in text and r"\u202e" in text and "\x1b" not in text
    monkeypatch.setattr(ImageShow, "_viewers", [])
    made(["Which?", "This"], [stored()]).show()
    assert "no viewer" in capsys.readouterr().out
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    made(["Which?", "This"], [stored()]).show()
    assert "no screen" in capsys.readouterr().out


def test_show_leaves_a_terminals_encoding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    made(["Which \U0001f600?", "caf\u00e9"], []).show()
    out.flush()
    assert b"Which \\U0001f600?" in out.buffer.getvalue() and b"caf\xe9" in out.buffer.getvalue()


@pytest.mark.parametrize("kernel", [True, False])
def test_show_in_a_notebook_displays_the_sample(
    kernel: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Sample] = []
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    shell = types.SimpleNamespace(kernel=object()) if kernel else types.SimpleNamespace()
    monkeypatch.setattr(ipython, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr(display, "display", shown.append, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    sample = made(["Which?", "This"], [])
    sample.show()
    assert shown == [sample] * kernel and ("Which?" in capsys.readouterr().out) is not kernel


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
