import math
import random
import shutil
import subprocess
from xml.etree import ElementTree

import msgspec
import pytest
from PIL import Image, ImageColor

from tests.mixture.benchmark.made import values_of
from vlmix.mixture.errors import VlmixError
from vlmix.train.sweep.report import require, summarise, table, write
from vlmix.train.sweep.report.aggregate import FULL, Result, Spread, aggregate, series, sub_score
from vlmix.train.sweep.report.page import Drawing, page
from vlmix.train.sweep.report.picture import LIGHT
from vlmix.train.sweep.report.plots import clean, curve, scores
from vlmix.train.sweep.report.wording import headline, notes, number, percent

HOSTILE = "<script>alert('1')</script> & \"$x_1$\"\x1b[31m\u202e"


def row(ratio=1.0, seed=0, selection="random", grid=None, **changes):
    given = {
        "run": f"{selection}-{ratio:g}-{seed}",
        "grid": grid or {},
        "selection": selection,
        "ratio": ratio,
        "seed": seed,
        "samples": round(1000 * ratio),
        "sources": {"vqav2": round(600 * ratio), "vg": round(400 * ratio)},
        "steps": 10,
        "loss": 1.25,
        "train_seconds": 12.5,
        "evaluate_seconds": 3.25,
        "scores": {"gqa": 60.0},
        "metrics": {"gqa": {"open": 40.0}},
        "questions": {"gqa": 100},
        "finished": "2026-11-28T19:45:02Z",
        "machine": "2 x A",
        "versions": {"torch": "2.9"},
        "mixture": "0123456789abcdef" * 4,
    }
    return Result(**given | changes)


def said(rows):
    return list(notes(summarise(rows)))


def at(points, ratio, selection="random"):
    (found,) = [point for point in points if point.ratio == ratio and point.selection in (selection, FULL)]
    return found


BOTH = [
    row(1.0, 0, scores={"gqa": 50.0, "pope": 80.0}),
    row(1.0, 1, scores={"gqa": 70.0, "pope": 80.0}),
    row(0.1, 0, scores={"gqa": 30.0, "pope": 60.0}),  # 30/60 and 60/80: 62.5 %
    row(0.1, 1, scores={"gqa": 36.0, "pope": 64.0}),  # 36/60 and 64/80: 70 %
]


T_OF_TWO_SEEDS = 12.706  # 0.975 quantile of Student's t with one degree of freedom


def test_scores_and_relative_scores_are_means_over_seeds_with_their_interval():
    point = at(aggregate(BOTH), 0.1)
    assert point.seeds == 2 and point.samples == 100
    assert point.scores["gqa"].mean == 33.0 and point.scores["gqa"].over == "seeds"
    assert point.scores["gqa"].half == pytest.approx(T_OF_TWO_SEEDS * 6 / 2, rel=1e-4)
    assert point.relative.by_seed == pytest.approx({0: 62.5, 1: 70.0})
    assert point.relative.mean == pytest.approx(66.25)
    assert point.relative.half == pytest.approx(T_OF_TWO_SEEDS * 7.5 / 2, rel=1e-4)


def test_the_full_mixture_is_100_percent_by_definition_and_its_seeds_are_seen():
    full = at(aggregate(BOTH), 1.0)
    assert full.selection == FULL
    assert full.relative.by_seed == pytest.approx({0: 100 * (50 / 60 + 1) / 2, 1: 100 * (70 / 60 + 1) / 2})
    assert full.relative.mean == pytest.approx(100) and full.relative.half == 0
    assert number(full.relative) == "100.0" and number(full.scores["gqa"]) == "60.0 ± 127.1†"


def test_the_full_mixture_serves_every_selection_of_its_axes_and_no_other_axes():
    plain = {"mixture.prompts": "plain"}
    points = aggregate(
        [
            row(1.0, selection="random"),
            row(0.5, selection="lengths", scores={"gqa": 45.0}),
            row(0.5, grid=plain, scores={"gqa": 45.0}),
            row(0.5, selection="mine.parquet", scores={"gqa": 54.0}),
        ]
    )
    assert [(p.grid, p.selection, p.ratio, p.relative and p.relative.mean) for p in points] == [
        ({}, "lengths", 0.5, 75.0),
        ({}, "mine.parquet", 0.5, 90.0),
        ({}, FULL, 1.0, 100.0),
        (plain, "random", 0.5, None),
    ]
    assert [(line.grid, line.selection, [p.ratio for p in line.points]) for line in series(points)] == [
        ({}, "lengths", [0.5, 1.0]),
        ({}, "mine.parquet", [0.5, 1.0]),
        (plain, "random", [0.5]),
    ]


def test_axes_that_are_numbers_sort_by_value_and_words_after_them():
    values = [10, 9.5, "9", True, 2e-5, None]
    points = aggregate([row(grid={"optim.lr": value}) for value in values])
    assert [point.grid["optim.lr"] for point in points] == [2e-5, 9.5, 10, "9", None, True]


def test_one_seed_has_no_spread_and_says_so_everywhere():
    rows = [row(1.0, 0), row(1.0, 1), row(0.1, 0, scores={"gqa": 45.0})]
    points = aggregate(rows)
    assert at(points, 0.1).relative.half is None and at(points, 0.1).scores["gqa"].half is None
    header, cells = table(points)
    assert header == ["selection", "share", "samples", "seeds", "relative %", "gqa"]
    assert cells[0] == ["random", "10 %", "100", "1", "75.0 ± ?", "45.0 ± ?"]
    assert cells[1] == [FULL, "100 %", "1,000", "2", "100.0", "60.0 ± 0.0†"]
    assert headline(points)[0] == (
        "With 10 % of the samples the model keeps 75.0 % of the score of the full mixture "
        "(1 seed, so how much seeds differ is unknown)."
    )
    assert any(note.startswith("± ?: there is one seed") for note in said(rows))


def test_a_small_spread_is_not_written_as_none():
    points = aggregate([row(1.0, 0), row(1.0, 1, scores={"gqa": 60.01})])
    assert number(Spread(mean=60.0, low=59.993, high=60.007, by_seed={})) == "60.0 ± 0.007"
    assert table(points)[1][0][-1] == "60.0 ± 0.1†"


def test_without_a_full_run_scores_are_absolute():
    rows = [row(0.1), row(0.5, scores={"gqa": 70.0})]
    points = aggregate(rows)
    assert [point.relative for point in points] == [None, None]
    assert table(points)[0] == ["selection", "share", "samples", "seeds", "gqa"]
    assert headline(points) == ["No smaller share can be compared with the full mixture yet: the scores are absolute."]
    assert "There is no run on the full mixture yet, so nothing is relative to it." in said(rows)


def test_a_benchmark_in_which_the_full_mixture_scores_nothing_is_left_out_and_named():
    rows = [row(scores={"gqa": 60.0, "mme": 0.0}), row(0.5, scores={"gqa": 30.0, "mme": 5.0})]
    point = at(aggregate(rows), 0.5)
    assert point.left_out == ["mme"] and point.relative.mean == 50.0 and point.scores["mme"].mean == 5.0
    (note,) = [note for note in said(rows) if note.startswith("mme cannot be relative")]
    assert "the full mixture scores 0" in note
    only = aggregate([row(scores={"mme": 0.0}), row(0.5, scores={"mme": 5.0})])
    assert at(only, 0.5).relative is None and at(only, 1.0).relative is None


def test_a_run_that_lacks_a_benchmark_counts_where_it_has_scores_but_not_in_the_relative_score():
    rows = [*BOTH[:3], row(0.1, 1, scores={"pope": 64.0})]
    point = at(aggregate(rows), 0.1)
    assert point.relative.by_seed == pytest.approx({0: 62.5})
    assert table(aggregate(rows))[1][0] == [
        "random",
        "10 %",
        "100",
        "2",
        "62.5 ± ? (1 of 2)",
        "30.0 ± ? (1 of 2)",
        "62.0 ± 25.4†",
    ]
    shown = said(rows)
    assert "random-0.1-1 has no score in gqa yet." in shown
    assert any(note.startswith("random-0.1-1 does not count in the relative score") for note in shown)


def test_a_benchmark_that_no_full_run_has_stays_out_of_the_relative_score():
    rows = [row(), row(0.5, scores={"gqa": 30.0, "pope": 80.0})]
    assert at(aggregate(rows), 0.5).relative.mean == 50.0
    assert "random-0.5-0: no run on the full mixture has pope, which is left out of the relative score." in notes(
        summarise(rows)
    )


def test_a_score_that_is_not_a_number_counts_as_missing(tmp_path):
    rows = [row(), row(0.5, loss=math.nan, scores={"gqa": math.nan})]
    point = at(aggregate(rows), 0.5)
    assert point.scores == {} and point.relative is None
    shown = said(rows)
    assert "random-0.5-0: the score in gqa is not a number and counts as missing." in shown
    assert "random-0.5-0: the last loss is not a number; the training diverged." in shown
    assert write(tmp_path, "diverged", summarise(rows), {}).read_text().count("not a number") >= 4


def test_runs_of_one_point_and_seed_count_once():
    rows = [row(0.5, 0, scores={"gqa": 10.0}), row(0.5, 0, run="again", scores={"gqa": 20.0}), row(0.5, 1), row(1.0)]
    point = at(aggregate(rows), 0.5)
    assert point.seeds == 2 and point.scores["gqa"].by_seed == {0: 15.0, 1: 60.0}
    assert any(note.startswith("again and random-0.5-0 are runs of one point and one seed") for note in said(rows))


def test_runs_that_were_asked_other_numbers_of_questions_are_told():
    rows = [row(), row(0.5, questions={"gqa": 12578})]
    assert any(
        note.startswith("gqa: runs were asked different numbers of questions (100 and 12,578)") for note in said(rows)
    )


def test_the_headline_names_the_smallest_share_that_keeps_98_percent():
    rows = [
        row(ratio, seed, scores={"gqa": score}) for seed in (0, 1) for ratio, score in ((0.1, 30), (0.3, 59), (1, 60))
    ]
    assert headline(aggregate(rows)) == [
        "With 10 % of the samples the model keeps 50.0 ± 0.0† % of the score of the full mixture (2 seeds).",
        "The smallest share measured that keeps 98 %: 30 % of the samples (98.3 ± 0.0† %).",
    ]


def test_the_headline_tells_selections_and_axes_apart():
    rows = [row(), row(0.1, scores={"gqa": 30.0}), row(0.1, selection="lengths", scores={"gqa": 59.0})]
    assert headline(aggregate(rows))[1:] == [
        "With 10 % of the samples, chosen by lengths, the model keeps 98.3 % of the score of the full mixture "
        "(1 seed, so how much seeds differ is unknown).",
        "The smallest share measured that keeps 98 %: random: none; lengths: 10 % of the samples "
        "(98.3 %; its interval reaches below 98 %).",
    ]
    both = [msgspec.structs.replace(r, grid={"mixture.prompts": p}) for r in rows[:2] for p in ("llava", "plain")]
    assert [sentence[:19] for sentence in headline(aggregate(both))[:2]] == [
        "prompts=llava: with",
        "prompts=plain: with",
    ]


def ladder():
    steps = [("linear", "plain", 50.0), ("mlp", "plain", 55.0), ("mlp", "llava", 60.0)]
    return [
        row(1.0, seed, grid={"model.connector": c, "mixture.prompts": p}, scores={"gqa": s + seed, "pope": s})
        for c, p, s in steps
        for seed in (0, 1)
    ]


def test_recipes_on_the_full_mixture_alone_are_compared_by_their_scores():
    points = aggregate(ladder())
    header, cells = table(points)
    assert header == ["mixture.prompts", "model.connector", "selection", "share", "samples", "seeds", "gqa", "pope"]
    assert [line[:2] for line in cells] == [["llava", "mlp"], ["plain", "linear"], ["plain", "mlp"]]
    assert headline(points) == [
        "3 variants on the full mixture: prompts=llava, connector=mlp is highest in gqa and pope."
    ]
    assert scores(points) is None


def size(png):
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_the_picture_of_recipes_grows_with_their_number():
    points = aggregate(ladder())
    assert size(curve(points).files("png")["png"])[1] > size(curve(points[:1]).files("png")["png"])[1]


def chunks(png):
    found, place = [], 8
    while place < len(png):
        found.append(png[place + 4 : place + 8])
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return set(found)


def test_the_picture_holds_pixels_and_no_metadata():
    assert chunks(curve(aggregate(BOTH)).files("png")["png"]) <= {b"IHDR", b"IDAT", b"IEND", b"pHYs", b"PLTE"}


def test_the_picture_ignores_settings_of_the_user_and_leaves_them():
    import matplotlib

    points = aggregate(BOTH)
    plain = curve(points).files("png")["png"]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        assert curve(points).files("png")["png"] == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_equal_rows_in_another_order_give_equal_bytes(tmp_path):
    rows = [
        row(r, s, selection=how, scores={"gqa": 50 * r + s + 0.1})
        for r in (0.1, 1.0)
        for s in (0, 1, 2)
        for how in ("random", "lengths")
    ]
    other = random.Random(0).sample(rows, len(rows))
    other = [msgspec.structs.replace(r, sources=dict(reversed(r.sources.items()))) for r in other]
    for name, given in (("a", rows), ("b", other)):
        write(tmp_path / name, "order", summarise(given), {"steps": "same"})
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    curves = ["curve.pdf", "curve.png", "curve.svg"]
    assert names == ["comparisons.csv", *curves, "report.html", "seen.csv", "table.csv", "table.tex"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert str(tmp_path) not in (tmp_path / "a" / "report.html").read_text()


def parsed(rows, title="a sweep", facts=None):
    return ElementTree.fromstring(page(title, summarise(rows), facts or {}, Drawing("<svg />", "<svg />"), None))


def texts(root, tag):
    return ["".join(found.itertext()) for found in root.iter(tag)]


def test_the_page_stands_alone_with_picture_and_tables(tmp_path):
    text = write(
        tmp_path, "Half the data", summarise(BOTH), {"recipe": "tiny.yaml", "versions": {"torch": "2.13"}}
    ).read_text()
    root = ElementTree.fromstring(text)
    assert texts(root, "h1") == ["Half the data"]
    assert (
        "With 10 % of the samples the model keeps 66.2 ± 47.6† % of the score of the full mixture (2 seeds)."
        in texts(root, "p")
    )
    images = [found for found in root.iter("div") if found.find("svg") is not None]
    assert len(images) == 4 and {image.get("role") for image in images} == {"img"}  # two pictures, wide and narrow
    assert "random, 10 %: 66.2 ± 47.6† %" in images[0].get("aria-label")
    links = [found.get(name) for found in root.iter() for name in ("src", "srcset", "href") if found.get(name)]
    assert links and all(link.startswith("#") for link in links)
    assert not list(root.iter("script")) and "http://" not in text and "https://" not in text
    assert text.count("url(") == text.count("url(#")
    assert len(list(root.iter("table"))) == 5  # scores, subsets, runs, sub-scores, facts
    assert all(head.get("scope") in ("col", "row") for head in root.iter("th"))
    cells = texts(root, "td")
    assert (
        "66.2 ± 47.6†" in cells and "12.5" in cells and "1.2500" in cells and "tiny.yaml" in cells and "2.13" in cells
    )
    assert "versions.torch" in texts(root, "th") and "random-0.1-1" in texts(root, "th")


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
def test_a_browser_shows_the_picture_and_the_bars(tmp_path):
    report = write(
        tmp_path / "report",
        "in a browser",
        summarise([*BOTH, row(0.1, selection="lengths", scores=BOTH[2].scores)]),
        {},
    )
    shot, profile = tmp_path / "shot.png", tmp_path / "profile"
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1800"]
    command += [f"--user-data-dir={profile}", f"--screenshot={shot}", report.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(shot) as picture:
        seen = {colour: count for count, colour in picture.convert("RGB").getcolors(2**24)}
    assert seen.get(ImageColor.getrgb(LIGHT.series[1]), 0) > 100  # the second line of the curve
    assert seen.get((0xE6, 0x9F, 0x00), 0) > 300  # the smaller source in the bars


def test_hostile_names_are_text_wherever_they_stand(tmp_path):
    rows = [
        row(
            r,
            run=HOSTILE,
            selection=HOSTILE,
            grid={HOSTILE: HOSTILE},
            sources={HOSTILE: 5},
            scores={HOSTILE: 5.0},
            metrics={HOSTILE: {HOSTILE: 1.0}},
            questions={HOSTILE: 1},
        )
        for r in (0.5, 1.0)
    ] + [row(grid={HOSTILE: "other"})]
    text = write(
        tmp_path, HOSTILE, summarise(rows), {HOSTILE: [HOSTILE], "more": {HOSTILE: {"deep": HOSTILE}}}
    ).read_text()
    root = ElementTree.fromstring(text)
    assert not list(root.iter("script")) and "\x1b" not in text and "\u202e" not in text
    shown = "<script>alert('1')</script> & \"$x_1$\" [31m "
    assert texts(root, "h1") == [shown]
    assert shown in texts(root, "th") and shown in texts(root, "td")


@pytest.mark.parametrize("name", ["_hidden", "$\\frac{", "", "a" * 300, "x\ny\x00", "混合物"])
def test_any_name_can_be_drawn(name):
    assert "\n" not in clean(name, 400) and clean(name)[0] != "_" and len(clean(name)) <= 90
    rows = [row(r, selection=name, grid={"a": name}, scores={name: 5.0}) for r in (0.5, 1.0)] + [row(grid={"a": "b"})]
    size(curve(aggregate(rows)).files("png")["png"])


def test_the_composition_shows_each_subset_once_and_the_range_where_seeds_differ():
    rows = [
        row(r, s, grid={"optim.lr": lr}, sources={"vqav2": round(600 * r) + s, "vg": round(400 * r)})
        for r in (0.5, 1.0)
        for s in (0, 2)
        for lr in (0.1, 0.2)
    ]
    root = parsed(rows)
    (body,) = [t for t in root.iter("table") if "".join(t.find("caption").itertext()).startswith("Samples by source")]
    lines = [[("".join(cell.itertext())) for cell in line] for line in body.find("tbody")]
    assert lines == [
        ["random, 50 %", "", "501", "301 (300 to 302)", "200"],
        [FULL, "", "1,001", "601 (600 to 602)", "400"],
    ]
    bar = body.find(".//div[@role='img']")
    assert bar.get("aria-label") == "vqav2 60.1 %, vg 39.9 %"
    assert [part.get("style") for part in bar] == ["flex-grow:0.60080", "flex-grow:0.39920"]


def test_a_source_keeps_its_colour_in_subsets_that_lack_another():
    rows = [row(), row(0.5, selection="mine.txt", sources={"vg": 500})]
    root = parsed(rows)
    colours = {part.get("title"): set() for part in root.iter("span") if part.get("title")}
    for part in root.iter("span"):
        if part.get("title"):
            colours[part.get("title")].add(part.get("class"))
    assert colours == {"vqav2": {"s1"}, "vg": {"s0"}}


def test_subsets_that_depend_on_the_axes_are_shown_for_each():
    rows = [row(grid={"mixture.total": n}, sources={"vg": n}) for n in (10, 20)]
    heads = texts(parsed(rows), "th")
    assert "total=10, full mixture" in heads and "total=20, full mixture" in heads


def test_shares_below_ten_percent_and_many_of_them_are_drawn():
    shares = [0.001, 0.0011, 0.01, 0.1, 0.11, 0.5, 1.0]
    size(curve(aggregate([row(ratio, scores={"gqa": 60 * ratio}) for ratio in shares])).files("png")["png"])


def test_runs_without_any_score_are_listed(tmp_path):
    rows = [row(0.5, scores={}, metrics={}), row(1.0, scores={}, metrics={})]
    text = write(tmp_path, "early", summarise(rows), {}).read_text()
    assert "No run has been evaluated yet." in text and "random-0.5-0" in text
    ElementTree.fromstring(text)


def test_a_report_without_runs_is_refused(tmp_path):
    with pytest.raises(VlmixError, match="no finished runs"):
        write(tmp_path, "none", summarise([]), {})
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_remedy_is_told_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    for call in (require, lambda: write(tmp_path, "bare", summarise(BOTH), {})):
        with pytest.raises(VlmixError, match=r"pip install 'jinja2>=3.1' 'matplotlib>=3"):
            call()
    assert not list(tmp_path.iterdir())
    assert table(aggregate(BOTH))[1][0][4] == "66.2 ± 47.6†"


def test_rows_survive_the_way_through_json():
    rows = [*BOTH, row(0.5, loss=math.nan, scores={"gqa": math.nan}, metrics={"gqa": {"open": math.inf}})]
    back = msgspec.json.decode(msgspec.json.encode(rows), type=list[Result])
    assert aggregate(back) == aggregate(rows) and said(back) == said(rows)
    assert parsed(back) is not None


def test_sub_scores_and_single_runs_have_their_interval():
    """Half widths of two runs over questions are 3 and 5; seeds add t x sd / sqrt(n)."""
    rows = [
        row(0.5, seed, metrics={"gqa": {"open": 40.0 + seed}}, halves={"gqa": {"open": 3.0 + 2 * seed, "": 1.5}})
        for seed in (0, 1)
    ]
    both = sub_score(rows, "gqa", "open")
    assert both.half == pytest.approx((4.0**2 + (T_OF_TWO_SEEDS * 0.5) ** 2) ** 0.5, rel=1e-4)
    assert both.over == "questions and seeds"
    alone = sub_score(rows[:1], "gqa", "open")
    assert (alone.low, alone.high, alone.over) == (37.0, 43.0, "questions")
    assert sub_score([row()], "gqa", "open").over == "", "results of older versions have no half widths"
    cells = texts(parsed(rows), "td")
    assert "60.00 ± 1.50" in cells and number(both) in cells


def test_the_headline_says_what_intervals_leave_open():
    values = {
        f"random-{ratio:g}-{seed}": {"gqa": values_of([1.0] * right + [0.0] * (400 - right))}
        for ratio, right in ((0.1, 100), (0.3, 230), (1.0, 240))
        for seed in (0, 1, 2)
    }
    rows = [
        row(ratio, seed, scores={"gqa": values[f"random-{ratio:g}-{seed}"]["gqa"].score()})
        for ratio in (0.1, 0.3, 1.0)
        for seed in (0, 1, 2)
    ]
    sentence = headline(aggregate(rows, values))[-1]
    assert sentence.startswith("No smaller share that was measured keeps 98 %")
    assert "By its interval it may be so of random, 30 % (95.8 ± " in sentence and "10 %" not in sentence


def test_an_interval_that_reaches_further_to_one_side_is_written_with_its_ends():
    lopsided = Spread(mean=2.0, low=0.0, high=9.1, by_seed={0: 2.0}, over="questions")
    assert number(lopsided) == "2.0 [0.0, 9.1]*" and percent(lopsided) == "2.0 [0.0, 9.1]* %"
    assert number(Spread(mean=2.0, low=0.0, high=4.1, by_seed={})) == "2.0 ± 2.0", "a bit"
