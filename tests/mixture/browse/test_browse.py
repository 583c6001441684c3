"""Pages: what they say, against the index; hostile texts, damage, bounds; and what a browser does with them."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tests.helpers import hashes, vlmix_here
from tests.mixture.browse.browser import CHROMIUM, Browser
from vlmix.builders import known_sources
from vlmix.mixture.browse.cards import SEARCHED, script_json
from vlmix.mixture.browse.facts import Facts, histograms
from vlmix.mixture.browse.pages import Options, browse
from vlmix.mixture.browse.sides import sides_of
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.build.source import Options as SourceOptions
from vlmix.mixture.build.source import RawFolder, Rejects, Source
from vlmix.mixture.dataset.view import save_view
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.record import Conversation, ImageRef, Round

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")

SCRIPT = "</script><script>window.hacked = 1</script>"
HANDLER = '"><img src=x onerror="window.hacked = 1">'
BIDI = "a\u202eb\u2066c\u2028d"
LONG = "a word " * 150_000 + "the end"
TEXTS = (SCRIPT, HANDLER, BIDI, "\x1b[31m red\x07", "👩‍👩‍👧 🇩🇪 مرحبا שלום", "{{ 7 * 7 }} {% x %} <!-- ", LONG)
NAME = '<b onclick=alert(1)>source & "co" \''


def _hostile(raw: RawFolder, options: SourceOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    for number, text in enumerate(TEXTS):
        yield Conversation(
            id=f"{NAME}/{number}{text[:60]}",
            source="hostile",
            rounds=(Round(text, f"{text[:3000]} {number}", "short_answer"),),
            images=(ImageRef(f"p/{number}.jpg", 40, 30),) if number % 2 else (),
            columns={"rating": float(number), "kind": text[:50], "story": text},
        )
    many = tuple(ImageRef(f"p/{number}.jpg", 40, 30) for number in range(64))
    yield Conversation(
        id="hostile/many",
        source="hostile",
        rounds=(Round("Which?", "That one.", "grounding", boxes=((4, 5, 14, 17),), box_images=(63,)),),
        images=many,
        columns={"rating": float("nan"), "kind": None, "story": None},
    )


HOSTILE = Source(
    name="hostile",
    title=SCRIPT,
    homepage="javascript:alert(1)",
    license=HANDLER,
    response_formats=("grounding", "short_answer"),
    files=(),
    read=_hostile,
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture of the texts above, with one picture whose bytes in the shard are no picture any more."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "raw/p").mkdir(parents=True)
    for number in range(64):
        Image.new("RGB", (40, 30), (4 * number, 90, 20)).save(folder / f"raw/p/{number}.jpg")
    known = {**known_sources(), "hostile": HOSTILE}
    recipe = {"name": SCRIPT, "sources": {NAME: {"builder": "hostile"}}}
    build(parse(recipe, known, "test"), known, folder / "raw", folder / "mixture", images=[folder / "raw"])
    broken = index(folder / "mixture").filter(pl.col("id").str.contains("onerror")).to_dicts()[0]
    with (folder / "mixture" / broken["shard"]).open("r+b") as shard:
        shard.seek(broken["images"][0]["offset"])
        shard.write(b"\0" * broken["images"][0]["size"])
    return folder / "mixture"


@pytest.fixture(scope="module")
def pages(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("whole") / "pages", mixture)


@pytest.fixture(scope="module")
def hostile_pages(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("hostile") / "pages", hostile)


@pytest.fixture(scope="module")
def tenth(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    shutil.copytree(mixture, folder / "mixture")
    save_view(open_mixture(folder / "mixture").subset(ratio=0.1), folder / "tenth", [{"ratio": 0.1, "of": "sample"}])
    return folder


def written(out: Path, *mixtures: Path, **options: Any) -> Path:
    browse(sides_of([open_mixture(one) for one in mixtures]), out, Options(**options))
    return out


def index(mixture: Path) -> pl.DataFrame:
    return pl.read_parquet(mixture / "samples.parquet")


class Parsed(HTMLParser):
    """The elements, links and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("span", "b", "bdi", "code"):
            self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def records(gallery: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="records">(.*?)</script>', gallery.read_text(), re.DOTALL)
    assert found
    return list(json.loads(found[1]))


def galleries(pages: Path) -> list[Path]:
    return sorted((pages / "gallery").iterdir())


def test_the_first_page_counts_what_the_index_holds(pages: Path, mixture: Path) -> None:
    frame, text = index(mixture), Parsed(pages / "index.html").text
    sums = (len(frame), frame["source"].n_unique(), frame["num_rounds"].sum(), frame["num_words"].sum())
    assert "{:,} samples of {:,} sources, {:,} rounds, {:,} words".format(*sums) in text
    for name, count in frame["source"].value_counts().rows():
        share = f"{100 * count / len(frame):.1f} %"
        assert re.search(rf"{name} {count} {share}", text), name
    answers = Counter(
        turn["value"].strip() for turns in frame["conversations"] for turn in turns if turn["from"] == "gpt"
    )
    for answer, count in answers.most_common(8):
        assert f"{answer} {count:,}" in text
    rejects = pl.read_parquet(mixture / "rejects.parquet")
    for row in rejects.rows(named=True):
        assert row["reason"] in text and row["id"] in text
    most = max(frame["boxes"].list.len())
    first = frame.filter(pl.col("boxes").list.len() == most)["id"]
    assert f"most boxes {first[0]} {most} boxes" in text
    assert len(first) > 5 and f"{len(first)} samples have {most} boxes, as many as any" in text


def test_galleries_hold_the_first_samples_in_hash_order_and_nest(mixture: Path, tmp_path: Path) -> None:
    few, more = (
        {
            r["text"].partition("\n")[0]
            for page in galleries(written(tmp_path / str(n), mixture, samples=n))
            for r in records(page)
        }
        for n in (3, 10)
    )
    assert few < more
    whole = open_mixture(mixture)
    for name in whole.sources:
        first = whole.subset(where=f"source = '{name}'", total=3).column("id").to_pylist()
        assert set(first) <= few


def test_every_link_and_picture_is_there_and_nothing_comes_from_elsewhere(
    pages: Path, tenth: Path, tmp_path: Path
) -> None:
    for folder in (pages, written(tmp_path / "both", tenth / "tenth", samples=5)):
        for page in folder.rglob("*.html"):
            for tag, attributes in Parsed(page).tags:
                for name in ("href", "src"):
                    value = attributes.get(name)
                    if value is None or value.startswith(("#", "data:,")):
                        continue
                    if value.startswith("http"):
                        assert tag == "a" and page.name == "index.html"
                    else:
                        assert (page.parent / value).is_file(), (page, value)
        assert not re.search(r"https?://|//[a-z]", (folder / "browse.css").read_text())
        assert not re.search(r"https?://|fetch\(|import\b|innerHTML", (folder / "browse.js").read_text())


def test_pictures_are_the_stored_bytes_and_boxes_lie_in_their_pixels(pages: Path, mixture: Path) -> None:
    opened, frame = open_mixture(mixture), index(mixture)
    row = frame.filter(pl.col("source") == "vg").to_dicts()[0]
    page = next(path for path in (pages / "samples").iterdir() if row["id"] in path.read_text())
    tags = Parsed(page).tags
    image = next(attributes for tag, attributes in tags if tag == "img")
    assert (page.parent / str(image["src"])).read_bytes() == opened[row["id"]].jpeg
    view = next(attributes for tag, attributes in tags if tag == "svg")
    assert view["viewbox"] == f"0 0 {row['width']} {row['height']}"
    drawn = [tuple(float(a[k] or 0) for k in ("x", "y", "width", "height")) for tag, a in tags if tag == "rect"]
    assert drawn == [(box["x1"], box["y1"], box["x2"] - box["x1"], box["y2"] - box["y1"]) for box in row["boxes"]]
    rounds = [attributes["data-round"] for tag, attributes in tags if tag == "g"]
    assert rounds == [str(box["round"]) for box in row["boxes"]]


def test_boxes_in_text_alone_are_drawn_too(raw: Path, tmp_path: Path) -> None:
    """A mixture written as LLaVA's JSON and built from that has boxes in its texts alone."""
    from vlmix.mixture.export.llava import llava_json

    known, boxed = known_sources(), {"name": "vg", "sources": {"vg": {"take": 5}}}
    build(parse(boxed, known, "test"), known, raw, tmp_path / "first")
    (tmp_path / "raw/llava_json").mkdir(parents=True)
    llava_json(tmp_path / "first", tmp_path / "raw/llava_json/rows.json", tmp_path / "raw/llava_json/images")
    again = {"name": "again", "sources": {"llava_json": {"path": "rows.json"}}}
    build(
        parse(again, known, "test"),
        known,
        tmp_path / "raw",
        tmp_path / "again",
        images=[tmp_path / "raw/llava_json/images"],
    )
    assert not index(tmp_path / "again")["boxes"].list.len().sum()
    pages = written(tmp_path / "pages", tmp_path / "again")
    assert "most boxes" in Parsed(pages / "index.html").text
    first = {row["conversations"][1]["value"]: row for row in index(tmp_path / "first").to_dicts()}
    for page in (pages / "samples").iterdir():
        parsed = Parsed(page)
        row = next(
            r
            for r in first.values()
            if r["conversations"][-1]["value"] in parsed.text
            and r["conversations"][0]["value"].split("\n")[1] in parsed.text
        )
        drawn = [
            tuple(float(a[k] or 0) for k in ("x", "y", "width", "height")) for tag, a in parsed.tags if tag == "rect"
        ]
        assert len(drawn) == len(row["boxes"]) == 10
        most = 0.011 * max(row["width"], row["height"])  # text has two digits
        for (x, y, width, height), box in zip(drawn, row["boxes"]):
            true = (box["x1"], box["y1"], box["x2"] - box["x1"], box["y2"] - box["y1"])
            assert all(abs(a - b) <= most for a, b in zip((x, y, width, height), true))


def test_a_view_stands_beside_what_it_left(tenth: Path, tmp_path: Path) -> None:
    pages = written(tmp_path / "pages", tenth / "tenth")
    text = Parsed(pages / "index.html").text
    frame, taken = index(tenth / "mixture"), index(tenth / "tenth")
    left = frame.filter(~pl.col("id").is_in(taken["id"].to_list()))
    assert f"selected: tenth: {len(taken)} samples" in text and f"left out: {len(left)} samples" in text
    for name, total in frame["source"].value_counts().rows():
        own, rest = ((part["source"] == name).sum() for part in (taken, left))
        assert re.search(rf"{name} {total} {own} [\d.]+ % [\d.,-]+ {rest} {100 * rest / total:.1f} %", text), name
    found = [
        {r["text"].partition("\n")[0] for p in galleries(pages) if p.name.startswith(side) for r in records(p)}
        for side in "01"
    ]
    assert found[0] == set(taken["id"]) and not found[0] & found[1] and found[1] <= set(left["id"])
    assert hashes(written(tmp_path / "named", tenth / "mixture", tenth / "tenth")) == hashes(pages)


def test_two_mixtures_stand_side_by_side(mixture: Path, hostile: Path, tenth: Path, tmp_path: Path) -> None:
    text = Parsed(written(tmp_path / "a", mixture, hostile, samples=2) / "index.html").text
    assert (
        "0 ids are both in mixture (A) and in mixture (B)" in text and "mixture (A)" in text and "mixture (B)" in text
    )
    whole = open_mixture(tenth / "mixture")
    save_view(whole.subset(total=100), tmp_path / "other", [])
    both = sides_of([open_mixture(tenth / "tenth"), open_mixture(tmp_path / "other")])
    browse(both, tmp_path / "b", Options(samples=2))
    common = len(set(index(tenth / "tenth")["id"]) & set(index(tmp_path / "other")["id"]))
    assert f"{common} ids are both in tenth and in other" in Parsed(tmp_path / "b/index.html").text


def test_a_sweep_shows_its_selections_at_one_share(tenth: Path, tmp_path: Path) -> None:
    whole, runs = open_mixture(tenth / "mixture"), tenth / "sweep/runs"
    parts = {
        ("random", 0.1): whole.subset(ratio=0.1),
        ("lengths", 0.1): whole.subset(ratio=0.1, by="lengths"),
        ("random", 0.3): whole.subset(ratio=0.3),
    }
    for (name, share), part in parts.items():
        run = runs / f"{name}-{share}"
        run.mkdir(parents=True)
        save_view(part, run / "subset", [])
        row = {"run": run.name, "grid": {}, "selection": name, "ratio": share, "seed": 0, "samples": len(part)}
        row |= {"sources": {}, "steps": 1, "loss": 1.0, "train_seconds": 1.0, "evaluate_seconds": 1.0, "scores": {}}
        row |= {"metrics": {}, "questions": {}, "finished": "", "machine": "", "versions": {}, "mixture": ""}
        (run / "result.json").write_text(json.dumps(row))
    (tenth / "sweep/sweep.json").write_text(json.dumps({"mixture": "mixture"}))
    assert (
        vlmix_here("browse", tenth / "sweep", "--samples", 1, "--out", tmp_path / "pages", "--workers", 1).returncode
        == 0
    )
    text = Parsed(tmp_path / "pages/index.html").text
    one, two = (set(parts[name, 0.1].column("id").to_pylist()) for name in ("random", "lengths"))
    left = len(whole) - len(one | two)
    assert f"random 10 %: {len(one)} samples" in text and f"left out: {left} samples" in text
    assert f"{len(one & two)} ids are both in random 10 % and in lengths 10 %" in text
    done = vlmix_here("browse", tenth / "sweep", "--share", "20%", "--out", tmp_path / "more", "--workers", 1)
    assert done.returncode == 1 and "the sweep has 0.1, 0.3" in done.stderr
    (runs / "random-0.1/result.json").write_text("{")
    done = vlmix_here("browse", tenth / "sweep", "--out", tmp_path / "more", "--workers", 1)
    assert done.returncode == 1 and "random-0.1/result.json: " in done.stderr and "remove it" in done.stderr


def test_a_gallery_is_ordered_by_what_tells_its_samples_apart(mixture: Path, tmp_path: Path) -> None:
    found = set()
    for page in galleries(written(tmp_path / "pages", mixture, samples=20)):
        menu = re.search(r'<select name="order".*?</select>', page.read_text(), re.DOTALL)
        assert menu is not None
        offered = set(re.findall(r'<option value="(\w+)"', menu[0]))
        assert offered == {
            key for key in ("boxes", "words", "rounds", "pictures") if len({r[key] for r in records(page)}) > 1
        }
        found |= {("boxes", "boxes" in offered)}
    assert len(found) == 2, "some galleries have boxes, others have none"


def test_ids_and_conditions_choose_the_pages(mixture: Path, tmp_path: Path) -> None:
    ids = index(mixture)["id"].to_list()[5:7]
    pages = written(tmp_path / "ids", mixture, ids=ids)
    assert {r["text"].partition("\n")[0] for page in galleries(pages) for r in records(page)} == set(ids)
    pages = written(tmp_path / "where", mixture, where="num_rounds > 10")
    assert all(r["rounds"] > 10 for page in galleries(pages) for r in records(page))
    with pytest.raises(VlmixError, match="no sample has the id 'vqav2/nothing'; ids are like"):
        written(tmp_path / "x", mixture, ids=["vqav2/nothing"])
    with pytest.raises(VlmixError, match="no sample matches"):
        written(tmp_path / "x", mixture, where="num_rounds > 1000")
    with pytest.raises(VlmixError, match="at most"):
        sides_of([open_mixture(mixture)] * 9)
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.partial").exists()


def test_a_folder_that_is_not_empty_is_refused(mixture: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("kept")
    with pytest.raises(VlmixError, match="exists already"):
        written(tmp_path / "mine", mixture)
    assert (tmp_path / "mine/file").read_text() == "kept"
    (tmp_path / "empty").mkdir()
    written(tmp_path / "empty", mixture, samples=1)
    assert (tmp_path / "empty/index.html").is_file()


def test_pages_are_the_same_whatever_the_number_of_processes(mixture: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        browse(sides_of([open_mixture(mixture)]), tmp_path / str(workers), Options(samples=20), workers=workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def test_reduced_pictures_are_small_and_boxes_stay_in_stored_pixels(tmp_path: Path, raw: Path) -> None:
    Image.effect_noise((1600, 900), 60).convert("RGB").save(tmp_path / "big.jpg", quality=95)
    rows = [
        {
            "id": "1",
            "image": "big.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "[0.25, 0.3, 0.5, 0.5] and [0.9, 0.9, 0.1, 0.1]"},
            ],
        }
    ]
    (tmp_path / "raw/llava_json").mkdir(parents=True)
    (tmp_path / "raw/llava_json/rows.json").write_text(json.dumps(rows))
    known = known_sources()
    recipe = parse({"name": "big", "sources": {"llava_json": {"path": "rows.json"}}}, known, "test")
    build(recipe, known, tmp_path / "raw", tmp_path / "mixture", images=[tmp_path])
    for how, size in (("reduced", (384, 216)), ("stored", (1600, 900))):
        pages = written(tmp_path / how, tmp_path / "mixture", pictures=how)
        page = Parsed(next((pages / "samples").iterdir()))
        tags = page.tags
        assert "2 boxes" in page.text and "2 boxes" in Parsed(pages / "index.html").text
        assert sum(tag == "rect" for tag, _ in tags) == 1  # the other one ends before it begins
        image = next(a for tag, a in tags if tag == "img")
        with Image.open(pages / "samples" / str(image["src"])) as found:
            assert found.size == size
        assert (image["width"], image["height"]) == ("1600", "900")
        assert next(a for tag, a in tags if tag == "svg")["viewbox"] == "0 0 1600 900"
        box = next(a for tag, a in tags if tag == "rect")  # 350 rows of padding above
        assert [box[k] for k in ("x", "y", "width", "height")] == ["400.0", "130.0", "400.0", "320.0"]


def test_a_shard_that_is_gone_costs_pictures_alone_and_tells_nothing_of_the_machine(
    tenth: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tenth / "mixture", folder)
    for shard in folder.glob("train/*.tar"):
        shard.unlink()
    pages = [page.read_text() for page in written(tmp_path / "pages", folder, samples=2).rglob("*.html")]
    assert any("missing" in page for page in pages)
    assert not any(str(tmp_path) in page for page in pages)


def test_annotations_alone_have_pages(raw: Path, tmp_path: Path) -> None:
    known = known_sources()
    recipe = parse({"name": "gqa", "sources": {"gqa": {}}}, known, "test")
    build(recipe, known, raw, tmp_path / "mixture", annotations_only=True)
    pages = written(tmp_path / "pages", tmp_path / "mixture")
    assert "no shards" in Parsed(galleries(pages)[0]).text
    assert not (pages / "pictures").exists()


def test_the_command_says_what_it_wrote_and_what_is_wrong(tenth: Path, tmp_path: Path) -> None:
    done = vlmix_here("browse", tenth / "tenth", "--out", tmp_path / "pages", "--samples", 2, "--json", "--workers", 1)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bytes"] == sum(p.stat().st_size for p in (tmp_path / "pages").rglob("*") if p.is_file())
    shutil.copytree(tenth / "tenth", tmp_path / "orphan")
    done = vlmix_here("browse", tmp_path / "orphan", "--out", tmp_path / "more", "--workers", 1)
    assert done.returncode == 1 and "which is gone" in done.stderr and done.stderr.count("\n") == 1
    done = vlmix_here("browse", tmp_path / "nothing", "--out", tmp_path / "more", "--workers", 1)
    assert done.returncode == 1 and "is not a mixture" in done.stderr and done.stderr.count("\n") == 1


def test_histograms_count_each_value_once_however_far_apart_they_are() -> None:
    for values in ([1e307 * (at - 10) for at in range(20)], [2**60 + at for at in range(20)]):
        numbers = {
            name: np.ones(20, dtype=np.int64) for name in ("rounds", "words", "pictures", "picture side", "boxes")
        }
        facts = Facts(sources=[], samples=20, numbers=numbers, columns={"far": pl.Series(values)})
        drawn = next(each for each in histograms([facts]) if each.title == "far")
        assert sum(drawn.counts[0]) == 20 and len(drawn.labels) == len(drawn.counts[0])


def test_data_in_a_script_element_cannot_end_it() -> None:
    text = script_json({"a": "</script><!--<script>&\u2028\ud800", "b": [float("nan"), 1.5]})
    assert not re.search(r"[<>&\u2028]", text) and text.isascii()
    assert json.loads(text)["b"] == [None, 1.5]


def test_hostile_texts_stay_text(hostile_pages: Path) -> None:
    allowed = {"browse.js", "../browse.js"}
    for page in hostile_pages.rglob("*.html"):
        parsed, text = Parsed(page), page.read_text()
        for tag, attributes in parsed.tags:
            assert not any(name.startswith("on") or name in ("style", "srcdoc") for name in attributes), (page, tag)
            assert not str(attributes.get("href", "")).startswith("javascript")
            if tag == "script":
                assert attributes.get("src") in allowed or attributes.get("type") == "application/json"
            if tag == "img":
                assert str(attributes["src"]).endswith(".jpg")
        assert not re.search("[\0-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text), page
        assert "49" not in re.findall(r"\{\{.*?\}\}", text)
    texts = [Parsed(page).text for page in (hostile_pages / "samples").iterdir()]
    for expected in (
        SCRIPT,
        HANDLER,
        r"a\u202eb\u2066c\u2028d",
        r"\x1b[31m red\x07",
        "👩‍👩‍👧 🇩🇪 مرحبا שלום",
        "{{ 7 * 7 }}",
    ):
        assert any(expected in text for text in texts), expected
    assert any(re.search(r"show all 1,050,\d{3} characters", text) for text in texts)
    assert all(path.stat().st_size < 600_000 for path in hostile_pages.rglob("*") if path.is_file())
    assert sum(len(record["text"]) for record in records(galleries(hostile_pages)[0])) < 4 * SEARCHED
    assert any("No picture: " in text for text in texts)  # the one whose bytes are zeros
    many = next(page for page in (hostile_pages / "samples").iterdir() if "hostile/many" in page.read_text())
    tags = Parsed(many).tags
    assert sum(tag == "img" for tag, _ in tags) == 64 and sum(tag == "svg" for tag, _ in tags) == 1


@needs_browser
def test_a_browser_runs_nothing_from_data_and_has_nothing_to_complain_of(browser: Browser, hostile_pages: Path) -> None:
    browser.said.clear()
    for page in sorted(hostile_pages.rglob("*.html")):
        for width in (1200, 360):
            browser.open(page.as_uri(), width)
            assert browser.js("window.hacked") is None
            assert browser.js("document.documentElement.scrollWidth") <= width, (page, width)
    assert browser.said == []


@needs_browser
@pytest.mark.parametrize("width", [1200, 360])
def test_pages_fit_and_load(browser: Browser, pages: Path, tenth: Path, tmp_path: Path, width: int) -> None:
    both = written(tmp_path / "both", tenth / "tenth", samples=5)
    browser.said.clear()
    some = [*galleries(pages)[::3], *sorted((pages / "samples").iterdir())[::200]]
    for page in (pages / "index.html", both / "index.html", *galleries(both)[::5], *some):
        browser.open(page.as_uri(), width, dark=width < 1000)
        assert browser.js("document.documentElement.scrollWidth") <= width, page
        lines = "(r => (r.selectNodeContents(t), new Set([...r.getClientRects()].map(x => x.top)).size))"
        labels = f"[...document.querySelectorAll('.histogram tbody th')].map(t => {lines}(document.createRange()))"
        assert all(count == 1 for count in browser.js(labels)), page
        ground = browser.js("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (width > 1000)
        browser.js("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        each = "[...document.images].map(i => i.decode().then(() => 0, () => 1))"
        broken = f"Promise.all({each}).then(a => a.filter(x => x).length)"
        assert browser.js(broken) == 0
        assert browser.js("[...document.images].every(i => i.hasAttribute('alt'))")
    assert browser.said == []


@needs_browser
def test_filters_search_order_and_keys(browser: Browser, pages: Path) -> None:
    gallery = next(page for page in galleries(pages) if "aokvqa" not in page.name and "gqa" in page.name)
    mine = records(gallery)
    shown = "[...document.querySelectorAll('#cards li:not([hidden]) a')].map(a => a.getAttribute('href'))"
    browser.said.clear()
    browser.open(gallery.as_uri())
    everything = browser.js(shown)
    assert len(everything) == len(mine)
    browser.key("/")
    browser.type("TREE")
    expected = [href for href, record in zip(everything, mine) if "tree" in record["text"].lower()]
    assert 0 < len(expected) < len(mine)
    assert browser.js(shown) == expected
    assert browser.js("document.getElementById('shown').textContent") == f"{len(expected)} shown"
    assert browser.js("location.hash") == "#q=TREE"
    most = sorted(r["rounds"] for r in mine)[len(mine) // 2]
    browser.open(f"{gallery.as_uri()}#q={quote('tree')}&rounds.most={most}&order=words")
    linked = [
        (-r["words"], at, h)
        for at, (h, r) in enumerate(zip(everything, mine))
        if "tree" in r["text"].lower() and r["rounds"] <= most
    ]
    assert browser.js(shown) == [href for _, _, href in sorted(linked)]
    browser.click("button[type=reset]")
    browser.js("new Promise(done => setTimeout(done, 20))")
    assert browser.js(shown) == everything
    browser.js("document.activeElement.blur()")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    assert browser.js("document.activeElement.getAttribute('href')") == everything[1]
    browser.key("Enter")
    browser.loaded((gallery.parent / everything[1]).resolve().as_uri())
    browser.key("ArrowLeft")
    browser.loaded((gallery.parent / everything[0]).resolve().as_uri())
    browser.key("g")
    browser.loaded(gallery.as_uri())
    assert browser.said == []


@needs_browser
def test_boxes_are_drawn_in_the_colour_of_their_round(browser: Browser, pages: Path, mixture: Path) -> None:
    row = index(mixture).filter(pl.col("source") == "vg").to_dicts()[0]
    page = next(path for path in (pages / "samples").iterdir() if row["id"] in path.read_text())
    browser.said.clear()
    browser.open(page.as_uri())
    boxes = "document.querySelectorAll('.frame g')"
    stroke = "getComputedStyle(g.querySelector('rect')).stroke"
    colors = browser.js(f"[...{boxes}].map(g => [g.dataset.round, {stroke}])")
    edge = "getComputedStyle(r).borderLeftColor"
    of_rounds = dict(
        browser.js(f"[...document.querySelectorAll('.rounds .boxed')].map(r => [r.dataset.round, {edge}])")
    )
    assert len(colors) == len(row["boxes"]) and all(of_rounds[number] == color for number, color in colors)
    place = "(r => [r.x, r.y, r.width, r.height])(document.querySelector(s).getBoundingClientRect())"
    frame, first = browser.js(f"['.frame img', '.frame rect'].map(s => {place})")
    box, scale = row["boxes"][0], frame[2] / row["width"]
    expected = (
        frame[0] + scale * box["x1"],
        frame[1] + scale * box["y1"],
        scale * (box["x2"] - box["x1"]),
        scale * (box["y2"] - box["y1"]),
    )
    assert all(abs(a - b) < 3 for a, b in zip(first, expected))  # a stroke is three pixels wide
    browser.click("[data-copy]")
    browser.js("new Promise(done => setTimeout(done, 50))")
    assert browser.js("getSelection().toString()") == row["id"]
    assert browser.js("document.querySelector('[data-copy]').textContent") in ("copied", "selected")
    assert browser.said == []
