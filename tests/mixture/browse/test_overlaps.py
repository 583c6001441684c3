"""Overlaps on the pages, against the rows of the file: beside samples, in groups, in numbers; hostile ids, views."""

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import polars as pl
import pyarrow as pa
import pytest

from tests.helpers import vlmix_here
from tests.mixture.browse.browser import Browser
from tests.mixture.browse.test_browse import BIDI, HANDLER, SCRIPT, Parsed, galleries, index, needs_browser, records
from vlmix.mixture.browse.overlaps import GROUPS_ON_A_PAGE, LINES, MEMBERS
from vlmix.mixture.browse.pages import Options, browse
from vlmix.mixture.browse.sides import sides_of
from vlmix.mixture.dataset.view import save_view
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.overlaps import table
from vlmix.mixture.overlaps.table import About, Checked, Overlaps

REASON = "3 of its pictures were not found <b>"
GROUPS = 120


def row(sample: dict[str, Any], other: str, level: str, distance: int | None = None, **more: Any) -> dict[str, Any]:
    asked = {"benchmark": "", "split": "", "image": None, "path": None, "other_path": "", "row": 0}
    own = {name: sample[name] for name in ("id", "source")}
    return asked | own | {"other": other, "level": level, "distance": distance} | more


def write(path: Path, mixture: Path, rows: list[dict[str, Any]]) -> Path:
    pope = Checked(
        benchmark="pope",
        split="test",
        levels=["id", "text"],
        unchecked={"bytes": REASON, "near": REASON},
        questions=["1"],
        pictures=1,
    )
    own = Checked(benchmark=HANDLER, split=BIDI, levels=["text"], questions=["1"])
    checked = [Checked(benchmark="", split="", levels=["bytes", "near", "text"]), pope, own]
    manifest = table.identity(open_mixture(mixture))
    about = About(format=table.FORMAT, mixture="sample", manifest=manifest, near=56, checked=checked)
    table.write(path, Overlaps(about, pa.Table.from_pylist(rows, table.SCHEMA)))
    return path


@pytest.fixture(scope="module")
def samples(mixture: Path) -> list[dict[str, Any]]:
    return index(mixture).select("id", "source").to_dicts()


@pytest.fixture(scope="module")
def file(mixture: Path, samples: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group of twenty, many of two, a sample that shows the picture of thirty questions, and hostile ids."""
    one, kept, shown, asked = samples[0], samples[1], samples[2], samples[3]
    rows = [row(one, kept["id"], "near", 12)]
    rows += [row(each, samples[10]["id"], "bytes") for each in samples[11:30]]
    pairs = samples[-2 * GROUPS :]
    rows += [row(each, other["id"], "text") for each, other in zip(pairs[::2], pairs[1::2])]
    pope: dict[str, Any] = {"benchmark": "pope", "split": "test", "image": 0}
    for number in range(3 * LINES):
        rows += [row(shown, f"q{number}", "near", number + 3, **pope), row(shown, f"q{number}", "bytes", **pope)]
    rows += [row(shown, "q0", "id", **pope), row(asked, "q0", "text", **pope | {"image": None})]
    rows += [row(asked, text, "text", benchmark=HANDLER, split=BIDI) for text in (SCRIPT, HANDLER, BIDI)]
    return write(tmp_path_factory.mktemp("overlaps") / "found.parquet", mixture, rows)


@pytest.fixture(scope="module")
def pages(mixture: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("pages") / "pages", mixture, overlaps=file)


def written(out: Path, *mixtures: Path, overlaps: Path | None = None, samples: int = 10) -> Path:
    browse(sides_of([open_mixture(one) for one in mixtures]), out, Options(samples=samples), overlaps=overlaps)
    return out


def page_of(pages: Path, id: str) -> Path:
    return next(page for page in (pages / "samples").iterdir() if f'<code id="id">{id}</code>' in page.read_text())


def targets(page: Path) -> list[tuple[str, str]]:
    links = [str(attributes["href"]) for tag, attributes in Parsed(page).tags if tag == "a"]
    return [(path, fragment) for path, _, fragment in (link.partition("#") for link in links)]


def test_a_sample_says_what_it_overlaps_with(pages: Path, file: Path, samples: list[dict[str, Any]]) -> None:
    one, kept, shown, asked = (each["id"] for each in samples[:4])
    page = page_of(pages, one)
    assert f"duplicate of {kept} (near 12 bits)" in Parsed(page).text
    assert page_of(pages, kept).name in {Path(path).name for path, _ in targets(page)}
    assert f"stays for its duplicate {one} (near 12 bits)" in Parsed(page_of(pages, kept)).text
    text = Parsed(page_of(pages, shown)).text
    places = [text.index("shows the picture of question q0 of pope test (id, bytes, near 3 bits)")]
    places += [text.index(f"of question q{n} of pope test (bytes, near {n + 3} bits)") for n in range(1, LINES)]
    assert places == sorted(places)
    assert text.count(" of pope test (") == LINES and f"and {2 * LINES} more questions of pope test" in text
    assert "asks the same as question q0 of pope test (text)" in Parsed(page_of(pages, asked)).text
    involved = {each[name] for each in pl.read_parquet(file).to_dicts() for name in ("id", "other")}
    texts = [Parsed(page).text for page in (pages / "samples").iterdir()]
    with_some = {text.partition(" ")[0] for text in texts if "Overlaps" in text}
    assert with_some == {id for text in texts if (id := text.partition(" ")[0]) in involved} and len(with_some) < len(
        texts
    )


def test_every_link_leads_to_what_it_names(pages: Path) -> None:
    fragments = 0
    anchors = {page: {a.get("id") for _, a in Parsed(page).tags} for page in pages.rglob("*.html")}
    held = {page: {value for record in records(page) for value in record["overlap"]} for page in galleries(pages)}
    for page in anchors:
        for path, fragment in targets(page):
            if path.startswith("https:"):
                continue
            target = (page.parent / path).resolve() if path else page
            assert target in anchors, (page, path)
            if "overlap=" in fragment:
                [value] = parse_qs(fragment)["overlap"]
                assert value in held[target]
                fragments += 1
            elif fragment:
                assert fragment in anchors[target], (page, fragment)
    assert fragments


def test_groups_are_listed_largest_first_on_pages(pages: Path, samples: list[dict[str, Any]]) -> None:
    files = sorted((pages / "groups").iterdir())
    texts = [Parsed(page).text for page in files]
    assert len(files) == -(-(GROUPS + 2) // GROUPS_ON_A_PAGE)
    numbers = [int(n) for page in files for n in re.findall(r'id="group-(\d+)"', page.read_text())]
    assert numbers == list(range(1, GROUPS + 3))
    first = texts[0].partition(" 2. ")[0]
    assert "1. 20 samples" in first and f"and {19 - MEMBERS} more" in first
    assert [each["id"] in first for each in samples[10:30]] == [True] * (1 + MEMBERS) + [False] * (19 - MEMBERS)
    pairs = samples[-2 * GROUPS :]
    for each, other in zip(pairs[::2], pairs[1::2]):
        [place] = [text for text in texts if re.search(rf"{each['id']}(?![\w/#.-])", text)]
        assert re.search(rf"{other['id']} of {other['source']} stays .*?{each['id']}", place)
    with_page = [sum(tag == "a" and "samples/" in str(a.get("href")) for tag, a in Parsed(page).tags) for page in files]
    assert with_page[0] >= 10 * 2 + MEMBERS - 1, "the first ten groups have pages"


def test_numbers_are_those_of_the_file_and_what_was_not_compared_is_named(pages: Path, file: Path) -> None:
    frame, parsed = pl.read_parquet(file), Parsed(pages / "index.html")
    section = parsed.text.partition("of duplicates in ")[2].partition(" Rejects ")[0]
    for (source,), part in frame.filter(pl.col("benchmark") == "").group_by("source"):
        counts = [part.filter(pl.col("level") == level)["id"].n_unique() for level in ("bytes", "near", "text")]
        assert "{} {} {} {} {}".format(source, part["id"].n_unique(), *counts) in section
    shown = frame.filter((pl.col("benchmark") == "pope") & (pl.col("level") == "bytes"))
    assert f"Not compared by near: {REASON}" in section and f"({shown['other'].n_unique()})" in section
    part = frame.filter((pl.col("benchmark") == "pope") & (pl.col("source") == shown["source"][0]))
    assert f"{shown['source'][0]} {part['id'].n_unique()} {part['other'].n_unique()} " in section


def test_a_gallery_filters_by_set_and_level(pages: Path, file: Path) -> None:
    expected: dict[str, set[str]] = {}
    for each in pl.read_parquet(file).filter(pl.col("benchmark").is_in(["", "pope"])).to_dicts():
        name = "pope test" if each["benchmark"] else "duplicates"
        expected.setdefault(each["id"], set()).update((name, f"{name}, by {each['level']}"))
        if not each["benchmark"]:
            expected.setdefault(each["other"], set()).add("has duplicates")
    for gallery in galleries(pages):
        for record in records(gallery):
            values = [value for value in record["overlap"] if value.startswith(("pope", "duplicates", "has"))]
            assert len(values) == len(set(values))
            assert set(values) == expected.get(record["text"].partition("\n")[0], set())


def test_ids_of_questions_stay_text(pages: Path) -> None:
    for page in pages.rglob("*.html"):
        for tag, attributes in Parsed(page).tags:
            assert not any(name.startswith("on") for name in attributes), (page, tag)
            assert tag != "script" or attributes.get("type") == "application/json" or "src" in attributes
        assert not re.search("[\0-\x08\x0b-\x1f\u2028\u202a-\u202e\u2066-\u2069]", page.read_text()), page
    assert any(
        SCRIPT in text and r"a\u202eb" in text for text in (Parsed(p).text for p in (pages / "samples").iterdir())
    )


def test_a_view_shows_the_overlaps_of_its_root_and_its_own(
    mixture: Path, samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(mixture, tmp_path / "mixture")
    whole = open_mixture(tmp_path / "mixture")
    ids = whole.column("id").to_pylist()
    save_view(whole.select(whole.subset(ratio=0.3).rows), tmp_path / "view", [{"ratio": 0.3, "of": "sample"}])
    mine = open_mixture(tmp_path / "view").column("id").to_pylist()
    of_id = {each["id"]: each for each in samples}
    outside = next(id for id in ids if id not in mine)
    of_root = write(tmp_path / "root.parquet", tmp_path / "mixture", [row(of_id[mine[-1]], outside, "bytes")])
    of_view = write(tmp_path / "view.parquet", tmp_path / "view", [row(of_id[mine[-1]], mine[-2], "bytes")])
    for name, file, kept in (("a", of_root, outside), ("b", of_view, mine[-2])):
        pages = written(tmp_path / name, tmp_path / "view", overlaps=file, samples=2)
        assert f"duplicate of {kept} (bytes)" in Parsed(page_of(pages, mine[-1])).text
        assert page_of(pages, kept).is_file()
        text = Parsed(pages / "index.html").text
        assert "duplicates: selected: view" in text
        assert ("duplicates: left out" in text) == (file == of_root)
        assert ("not all compared: left out" in text) == (file == of_view)
    shutil.copy(of_root, tmp_path / "mixture/overlaps.parquet")
    pages = written(tmp_path / "c", tmp_path / "mixture", samples=2)
    assert f"duplicate of {outside} (bytes)" in Parsed(page_of(pages, mine[-1])).text
    with pytest.raises(VlmixError, match="is of sample as it was built then, not of"):
        written(tmp_path / "d", tmp_path / "mixture", overlaps=of_view)
    assert not (tmp_path / "d").exists()
    lost = write(tmp_path / "lost.parquet", tmp_path / "mixture", [row(of_id[mine[0]], "nobody", "bytes")])
    done = vlmix_here("browse", tmp_path / "mixture", "--overlaps", lost, "--out", tmp_path / "d", "--workers", 1)
    assert done.returncode == 1 and "write it anew with `vlmix overlaps`" in done.stderr


@needs_browser
@pytest.mark.parametrize("width", [1200, 360])
def test_a_browser_filters_by_overlaps_and_runs_nothing(browser: Browser, pages: Path, width: int) -> None:
    browser.said.clear()
    links = [(path, fragment) for path, fragment in targets(pages / "index.html") if "overlap=" in fragment]
    for path, fragment in links[::4]:
        [value] = parse_qs(fragment)["overlap"]
        browser.open(f"{(pages / path).as_uri()}#{fragment}", width)
        expected = sum(value in record["overlap"] for record in records(pages / path))
        assert browser.js("document.querySelectorAll('#cards li:not([hidden])').length") == expected > 0
    hostile = [page for page in (pages / "samples").iterdir() if "window.hacked" in page.read_text()]
    assert hostile
    for page in (*hostile, *galleries(pages)[:2], *(pages / "groups").iterdir(), pages / "index.html"):
        browser.open(page.as_uri(), width)
        assert browser.js("window.hacked") is None
        assert browser.js("document.documentElement.scrollWidth") <= width, page
    assert browser.said == []
