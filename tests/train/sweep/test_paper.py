"""What a sweep leaves for a paper: pictures and tables as files, and a page that fits any window."""

import csv
import html
import io
import itertools
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from tests.helpers import vlmix_here
from tests.train.sweep.test_report import BOTH, HOSTILE, ladder, row, texts
from vlmix.mixture.benchmark.values import NAME as VALUES_NAME
from vlmix.mixture.benchmark.values import Values
from vlmix.mixture.errors import VlmixError
from vlmix.train.sweep import environment
from vlmix.train.sweep.recipe import first_grid
from vlmix.train.sweep.report import summarise, table, write
from vlmix.train.sweep.report.aggregate import aggregate
from vlmix.train.sweep.report.page import page
from vlmix.train.sweep.report.picture import DARK, LIGHT
from vlmix.train.sweep.report.plots import NARROW, WIDE, curve, scores
from vlmix.train.sweep.report.published import PUBLISHED, published
from vlmix.train.sweep.report.tables import comparisons_csv, latex, points_csv, points_latex

CURVES = [
    row(r, s, selection=how, scores={"gqa": 60 * r**0.1 + s, "pope": 80 * r**0.1 - s}, chance={"pope": 50.0})
    for r in (0.1, 0.2, 0.5, 1.0)
    for s in (0, 1, 2)
    for how in ("random", "lengths")
    if r < 1 or how == "random"
]


def hostile():
    names = {"scores": {HOSTILE: 5.0}, "metrics": {HOSTILE: {HOSTILE: 1.0}}, "chance": {HOSTILE: 1.0}}
    return [
        row(r, run=HOSTILE, selection=HOSTILE, grid={HOSTILE: HOSTILE}, sources={HOSTILE: 5}, **names)
        for r in (0.5, 1.0)
    ] + [row(grid={HOSTILE: "other"})]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder of a report."""
    return write(tmp_path_factory.mktemp("here"), "x", summarise(CURVES), {}, "a note", published(True)).parent


def test_another_process_on_another_day_writes_the_same_bytes(here, tmp_path):
    script = (
        "import sys, msgspec; from pathlib import Path; from vlmix.train.sweep.report import summarise, write\n"
        "from vlmix.train.sweep.report.aggregate import Result\n"
        "from vlmix.train.sweep.report.published import published\n"
        "rows = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Result])\n"
        "write(Path(sys.argv[1]), 'x', summarise(rows), {}, 'a note', published(True))"
    )
    other = {**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1000000000", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", script, str(tmp_path / "there")]
    subprocess.run(command, input=msgspec.json.encode(CURVES), check=True, env=other)
    for file in here.iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes(), file.name


def test_the_pdf_embeds_truetype_and_no_date():
    pdf = curve(aggregate(CURVES), published(True), "混合物").files("pdf")["pdf"]
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf
    assert b"/Type3" not in pdf and b"Date" not in pdf and b"/Producer" not in pdf


def test_the_svg_file_needs_no_font_and_has_the_figure_s_size():
    root = ElementTree.fromstring(curve(aggregate(hostile())).files("svg")["svg"])
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "path" in tags and not tags & {"text", "script", "image", "date"}
    assert root.get("viewBox") == f"0 0 {72 * WIDE.curve[0]:g} {72 * WIDE.curve[1]:g}"


def svgs(root):
    return list(root.iter("svg"))


def test_drawings_of_a_page_have_ids_of_their_own_and_no_colours_of_their_own(here):
    text = (here / "report.html").read_text()
    root = ElementTree.fromstring(text)
    assert len(svgs(root)) == 4  # curve and benchmarks, wide and narrow
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 10
    used = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert used and set(used) <= set(ids)
    drawn = "".join(ElementTree.tostring(svg, encoding="unicode") for svg in svgs(root))
    assert not re.search(r"(?:fill|stroke): (?!none|var\()", drawn)
    variables = set(re.findall(r"var\(--([^)]+)\)", drawn))
    for theme in (LIGHT, DARK):
        assert variables <= set(theme.names())
        assert all(f"--{name}: {color};" in text for name, color in theme.names().items())
    assert "font-family" not in drawn and "<style" not in drawn


def test_hostile_names_in_a_drawing_are_text(tmp_path):
    root = ElementTree.fromstring(write(tmp_path, HOSTILE, summarise(hostile()), {}, "", published(True)).read_text())
    drawn = [text for svg in svgs(root) for text in texts(svg, "text")]
    assert any("<script>alert('1')</script> &" in text for text in drawn)
    assert not list(root.iter("script"))
    for svg in svgs(root):
        assert {element.tag for element in svg.iter()} <= {
            "svg",
            "g",
            "defs",
            "path",
            "use",
            "text",
            "clipPath",
            "rect",
        }


BROWSER = pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
MEASURE = """<!doctype html><body style="margin:0">
<iframe id="page" src="{page}" style="border:0;width:{width}px;height:900px"></iframe><pre id="found"></pre><script>
document.getElementById("page").onload = event => {{
  const page = event.target.contentDocument, sizes = [], outside = [];
  for (const svg of page.querySelectorAll("svg")) {{
    const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
    if (!frame.width) continue;
    for (const text of svg.querySelectorAll("text")) {{
      const box = text.getBoundingClientRect();
      sizes.push(parseFloat(page.defaultView.getComputedStyle(text).fontSize) * scale);
      if (box.left < frame.left - 1 || box.right > frame.right + 1) outside.push(text.textContent);
    }}
  }}
  const shown = [...page.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width).length;
  document.getElementById("found").textContent = JSON.stringify(
    {{width: page.documentElement.scrollWidth, text: Math.min(...sizes), outside, shown}});
}};
</script>"""


def chromium(tmp_path, *arguments):
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout


def measured(tmp_path, report, width):
    """What a browser says of a page in a window of so many pixels."""
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(page=report.as_uri(), width=width))
    dom = chromium(tmp_path, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    return msgspec.json.decode(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)[1]))


@BROWSER
@pytest.mark.slow
@pytest.mark.parametrize("rows", [CURVES, ladder(), hostile()], ids=["curves", "ladder", "hostile"])
def test_a_page_fits_windows_of_360_pixels_and_wider(tmp_path, rows):
    facts = {"overrides": "a-long-word" * 30}
    report = write(tmp_path / "report", "a title of " + "one" * 40, summarise(rows), facts, "", published(True))
    drawings = len(svgs(ElementTree.fromstring(report.read_text()))) // 2
    for width in (360, 600, 861, 1200):
        found = measured(tmp_path, report, width)
        assert found["width"] == width and found["shown"] == drawings, width
        assert found["text"] >= 9 and found["outside"] == [], width


@BROWSER
@pytest.mark.slow
def test_the_measure_finds_what_does_not_fit(tmp_path):
    report = write(tmp_path / "report", "x", summarise(CURVES), {})
    report.write_text(report.read_text().replace("</main>", '<p style="width: 500px">wide</p></main>'))
    assert measured(tmp_path, report, 360)["width"] > 360


@BROWSER
@pytest.mark.slow
def test_one_drawing_serves_light_and_dark_pages(tmp_path):
    report = write(tmp_path / "report", "x", summarise(CURVES), {})
    for theme, scheme in ((LIGHT, 1), (DARK, 0)):
        shot = tmp_path / "shot.png"
        setting = f"--blink-settings=preferredColorScheme={scheme}"
        chromium(tmp_path, setting, "--window-size=1200,1000", f"--screenshot={shot}", report.as_uri())
        with Image.open(shot) as picture:
            seen = {color: count for count, color in picture.convert("RGB").getcolors(2**24)}
        assert max(seen, key=seen.get) == ImageColor.getrgb(theme.ground)
        assert all(seen.get(ImageColor.getrgb(color), 0) > 100 for color in theme.series[:2])


def values(seed, share):
    """Answers to 40 questions, of which a share is right."""
    right = np.random.default_rng(seed).random(40) < share
    ids = [str(number) for number in range(40)]
    columns = {"question": ids, "cluster": ids, "group": [""] * 40, "value": right * 1.0, "weight": np.ones(40)}
    return Values(pa.table({**columns, "answered": [True] * 40}))


def answered():
    """Rows of two selections at one share, and what their questions add."""
    rows, known = [], {}
    for how, ratio, share in (("random", 0.5, 0.4), ('worst, of "all"', 0.5, 0.9), ("random", 1.0, 0.8)):
        for seed in (0, 1):
            each = values(seed + round(100 * share), share)
            one = row(ratio, seed, selection=how, scores={"gqa": 100 * float(np.mean(each.table["value"]))})
            rows.append(one)
            known[one.run] = {"gqa": each}
    return rows, known


def test_the_csv_of_points_is_plain_numbers():
    rows, known = answered()
    rows = [msgspec.structs.replace(each, chance={"gqa": 25.0}) for each in rows]
    points = aggregate(rows, known)
    frame = pl.read_csv(io.StringIO(points_csv(points)))
    assert frame["selection"].to_list() == [point.selection for point in points]
    assert frame["share"].to_list() == [0.5, 0.5, 1.0] and frame["samples"].to_list() == [500, 500, 1000]
    assert frame["seeds"].to_list() == frame["gqa.seeds"].to_list() == [2, 2, 2]
    for name, spreads in (("gqa", [p.scores["gqa"] for p in points]), ("relative", [p.relative for p in points])):
        for field in ("mean", "low", "high", "over"):
            assert frame[f"{name}.{field}"].to_list() == [getattr(spread, field) for spread in spreads]
    assert frame["gqa.chance"].to_list() == [25.0] * 3
    full = frame["gqa.mean"][2]
    assert frame["relative.chance"].to_list() == pytest.approx([100 * 25 / full] * 3)


def test_the_csv_of_comparisons_has_a_line_for_each_benchmark_and_one_overall():
    rows, known = answered()
    _, points, _, compared = summarise(rows, known)
    frame = pl.read_csv(io.StringIO(comparisons_csv(points, compared)))
    assert (
        frame["compared"].to_list() == ['worst, of "all", 50 %'] * 2 and frame["with"].to_list() == ["random, 50 %"] * 2
    )
    assert frame["benchmark"].to_list() == ["gqa", "overall"] and frame["unit"].to_list() == ["points", "percent"]
    means = {point.selection: point.scores["gqa"].mean for point in points}
    first, overall = frame.to_dicts()
    assert first["difference"] == pytest.approx(means['worst, of "all"'] - means["random"])
    assert overall["difference"] == pytest.approx(100 * (means['worst, of "all"'] / means["random"] - 1))
    assert first["low"] < first["difference"] < first["high"] and first["questions"] == 40
    estimate = compared[0].comparison.differences[0]
    assert (first["p"], first["needed"]) == (estimate.difference.p, estimate.needed)
    assert (overall["adjusted_p"], overall["needed"]) == (compared[0].comparison.overall_adjusted, None)


def test_every_recipe_is_compared_with_the_first_that_the_grid_names(tmp_path):
    grid = {"optim.lr": [3e-3, 1e-3, 2e-3], "size": {"small": {"x": 1}, "large": {"x": 2}}}
    rows, known = [], {}
    for number, (lr, size) in enumerate(itertools.product(*grid.values())):
        rows.append(row(grid={"optim.lr": lr, "size": size}, run=f"run{number}", scores={"gqa": 50.0}))
        known[f"run{number}"] = {"gqa": values(number, 0.5)}
        home = tmp_path / "runs" / f"run{number}"
        (home / "answers" / "gqa").mkdir(parents=True)
        known[f"run{number}"]["gqa"].write(home / "answers" / "gqa" / VALUES_NAME)
        (home / "result.json").write_bytes(msgspec.json.encode(rows[-1]))
    (tmp_path / "sweep.json").write_text(json.dumps({"grid": grid}))
    write(tmp_path, "x", summarise(rows, known, first_grid(grid)), {})
    compared = pl.read_csv(tmp_path / "comparisons.csv")
    assert set(compared["with"]) == {"lr=0.003, size=small, full mixture"} and len(set(compared["compared"])) == 5
    shown = vlmix_here("compare", tmp_path).stdout
    assert " ".join(shown.split()).count("compared with lr=0.003, size=small, full mixture") == 5


def test_without_comparisons_the_file_has_its_header_alone():
    (header,) = csv.reader(io.StringIO(comparisons_csv(aggregate(BOTH), [])))
    assert header[:3] == ["compared", "with", "benchmark"]


def test_hostile_names_survive_the_way_through_csv_and_double_ones_are_told_apart():
    shown = "<script>alert('1')</script> & \"$x_1$\" [31m "
    read = pyarrow.csv.read_csv(io.BytesIO(points_csv(aggregate(hostile())).encode()))
    assert read.column_names[0] == shown and f"{shown}.mean" in read.column_names
    assert shown in read[shown].to_pylist() and shown in read["selection"].to_pylist()
    twice = points_csv(aggregate([row(grid={"share": 1}), row(grid={"share": 2})]))
    assert next(csv.reader(io.StringIO(twice)))[:4] == ["share", "selection", "share~2", "samples"]


COMMANDS = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">"}
COMMANDS |= {"textbar": "|", "textdagger": "†"}
TOKEN = re.compile(r"\\([A-Za-z]+)\{\}|\\([{}$&#_%])|(\$\\pm\$)|\{([\[*])\}|(--)|([^\\{}$&#_%~^<>|])")


def read_latex(text):
    """The characters that LaTeX would set; fails at a character that means something to it."""
    shown, place = "", 0
    while place < len(text):
        found = TOKEN.match(text, place)
        assert found, text[place:]
        command, escaped, plus, guarded, dash, plain = found.groups()
        shown += COMMANDS[command] if command else escaped or (plus and "±") or guarded or (dash and "–") or plain
        place = found.end()
    return shown


@pytest.mark.parametrize("name", [HOSTILE, "[1] *", "\\input{x}", "a_b^c~d|e%f#g", "50 % & ±", "$\\frac{"])
def test_names_in_latex_are_text(name):
    assert read_latex(latex(name)) == "".join(c if c.isprintable() else " " for c in name)


def test_the_latex_table_has_the_cells_of_the_page():
    for rows in (CURVES, hostile(), ladder()):
        points = aggregate(rows)
        header, cells = table(points)
        text = points_latex(points, ["a note\n\\end{document}"])
        comments, lines = text.splitlines()[:2], text.splitlines()[2:]
        assert comments == ["% \\usepackage{booktabs}", "% a note \\end{document}"]
        begin = re.fullmatch(r"\\begin\{tabular\}\{(l+r+)\}", lines[0])
        assert len(begin[1]) == len(header)
        body = [line.removesuffix(" \\\\") for line in lines if line.endswith(" \\\\")]
        plain = [["".join(c if c.isprintable() else " " for c in cell) for cell in line] for line in [header, *cells]]
        assert [[read_latex(cell) for cell in line.split(" & ")] for line in body] == plain
        rest = [line for line in lines[1:] if not line.endswith(" \\\\")]
        assert rest == ["\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}"]


def drawn(picture):
    figure = Figure(figsize=picture[:2])
    picture.draw(figure)
    return figure


def test_wide_intervals_leave_the_points_apart():
    rows = [row(r, s, scores={"gqa": 60 * r**0.05 + s}) for r in (0.5, 1.0) for s in (0, 1)]
    points = aggregate(rows)
    spread = points[0].relative
    assert spread.high - spread.low > 15  # of two seeds a point apart
    (ax,) = drawn(curve(points)).axes
    low, high = ax.get_ylim()
    dots = [100, *(run for point in points for run in point.relative.by_seed.values())]
    assert low < min(dots) and high > max(dots) and high - low < 12
    arrows = [line.get_marker() for line in ax.lines if line.get_marker() in "v^"]
    assert sorted(arrows) == ["^", "v"] and spread.low < low and spread.high > high


def test_no_axis_goes_below_0_where_no_score_is():
    rows = [row(r, s, scores={"gqa": 2 * r * s}) for r in (0.5, 1.0) for s in (0, 1, 2)]
    points = aggregate(rows)
    assert points[0].scores["gqa"].low < 0
    for picture in (curve(points), curve(points, sheet=NARROW)):
        assert [ax.get_ylim()[0] for ax in drawn(picture).axes] == [0]


def dashed(ax):
    return [line.get_ydata()[0] for line in ax.lines if line.is_dashed() and line.get_xdata()[:2] == [0, 1]]


def test_chance_is_a_dashed_line_in_the_panels_that_know_it():
    rows = [
        row(r, s, scores={"gqa": 30 * r + s, "pope": 60 * r + 25}, chance={"pope": 50.0})
        for r in (0.3, 1.0)
        for s in (0, 1)
    ]
    points = aggregate(rows)
    gqa, pope = drawn(scores(points)).axes
    assert dashed(pope) == [50.0] and dashed(gqa) == []
    (ax,) = drawn(curve(points)).axes
    assert dashed(ax) == []  # gqa's is not known
    assert table(points)[1][-1] == ["guessing", "–", "–", "–", "–", "–", "50.0"]


def test_relative_chance_is_the_mean_over_benchmarks_of_what_guessing_keeps():
    rows = [row(r, 0, scores={"gqa": 50 * r, "pope": 80 * r}, chance={"gqa": 25.0, "pope": 40.0}) for r in (0.3, 1.0)]
    points = aggregate(rows)
    assert {point.relative_chance for point in points} == {50.0}
    (ax,) = drawn(curve(points)).axes
    assert dashed(ax) == [50.0]
    legend = [text.get_text() for legend in ax.figure.legends for text in legend.get_texts()]
    assert "guessing: 50.0 %" in legend
    assert table(points)[1][-1] == ["guessing", "–", "–", "–", "50.0", "25.0", "40.0"]


def test_chance_far_below_the_scores_is_named_at_the_edge():
    rows = [row(r, scores={"gqa": 90 + r}, chance={"gqa": 25.0}) for r in (0.3, 1.0)]
    (ax,) = drawn(curve(aggregate(rows))).axes
    assert dashed(ax) == [] and ax.get_ylim()[0] > 80
    assert "↓ guessing: 27.5" in [text.get_text() for text in ax.texts]


def test_runs_that_say_different_things_of_guessing_have_no_line():
    rows = [row(r, scores={"gqa": 50.0}, chance={"gqa": chance}) for r, chance in ((0.3, 25.0), (1.0, 30.0))]
    assert table(aggregate(rows))[1][-1][0] == "full mixture"


def test_published_scores_are_marks_in_the_relative_picture_alone():
    points = aggregate(CURVES)

    def marks(picture):
        return [
            (line.get_xdata()[0], line.get_ydata()[0])
            for ax in drawn(picture).axes
            for line in ax.lines
            if line.get_marker() == "_" and to_hex(line.get_color()) == LIGHT.muted
        ]

    assert marks(curve(points)) == [] == marks(scores(points))
    for sheet in (WIDE, NARROW):
        assert sorted(marks(curve(points, published(True), "", sheet))) == sorted(
            (p.ratio, p.relative) for p in PUBLISHED
        )
        low, high = drawn(curve(points, published(["ICONS"]), "", sheet)).axes[0].get_ylim()
        assert low < 98.6 < high
    words = [text.get_text() for text in drawn(curve(points, published(True))).axes[0].texts]
    assert {"ICONS", "OFA", "COINCIDE", "XMAS", "random", "> random"} <= set(words)


def test_published_scores_have_their_sources_in_the_page():
    summary, drawing = summarise(CURVES), ("<svg />", "<svg />")
    root = ElementTree.fromstring(page("x", summary, {}, drawing, None, "", published(["random", "ICONS"])))
    cells = texts(root, "td")
    assert "arXiv 2501.00654" in cells and "> 98.0" in cells and "stated in the abstract" in cells
    assert not any("2605.26761" in cell for cell in cells)
    assert any("no comparison" in text for text in texts(root, "p"))
    plain = page("x", summary, {}, drawing, None)
    assert "Published" not in plain and "arXiv" not in plain


def test_published_scores_are_chosen_by_name():
    assert published(False) == [] and published(()) == [] and published(True) == list(PUBLISHED)
    assert [each.relative for each in published(["random"])] == [95.8, 98.0]
    with pytest.raises(VlmixError, match="there is no score of 'icons'; did you mean 'ICONS'"):
        published(["icons"])
    assert all(each.source and each.certainty and 0 < each.ratio < 1 for each in PUBLISHED)


def test_the_page_on_sweeps_lists_the_published_scores_of_the_code():
    told = []
    for line in (Path(__file__).parents[3] / "docs/sweeps.md").read_text().splitlines():
        if " arXiv " in line and line.startswith("| `"):
            name, ratio, relative, source, _ = (cell.strip() for cell in line.strip("|").split("|"))
            number = float(relative.removeprefix("> "))
            told.append((name.strip("`"), float(ratio.removesuffix(" %")) / 100, number, source, relative[0] == ">"))
    coded = [(each.name, each.ratio, each.relative, each.source, each.above) for each in PUBLISHED]
    assert sorted(told) == sorted(coded)


def facts_of(rows, given=None):
    root = ElementTree.fromstring(page("x", summarise(rows), given or {}, ("<svg />", "<svg />"), None))
    tables = {"".join(each.find("caption").itertext()): each for each in root.iter("table")}
    (found,) = [each for caption, each in tables.items() if caption.startswith("The sweep, and what")]
    return dict(["".join(c.itertext()) for c in line] for line in found.find("tbody"))


def test_facts_come_from_the_runs():
    runs = [("2026-11-27T23:59:59Z", "2 x A"), ("2026-11-28T00:00:00Z", "8 x B"), ("2026-11-28T09:00:00Z", "2 x A")]
    rows = [
        row(1.0, n, finished=day, machine=name, versions={"torch": f"2.{n % 2}"}, mixture="0123456789abcdef" * 4)
        for n, (day, name) in enumerate(runs)
    ]
    assert facts_of(rows, {"seeds": "0"}) == {
        "seeds": "0",
        "runs.finished": "2026-11-27 to 2026-11-28",
        "runs.machine": "2 x A; 8 x B",
        "runs.torch": "2.0, 2.1",
        "runs.manifest of the mixture, SHA-256": "0123456789abcdef",
    }
    assert facts_of(rows[:1])["runs.finished"] == "2026-11-27"


def test_a_run_knows_its_machine_and_does_not_name_it():
    machine = environment.machine()
    assert f"{os.cpu_count()} x " in machine or " x NVIDIA" in machine
    assert platform.system() in machine and socket.gethostname() not in machine
    assert environment.versions()["torch"] == version("torch")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", environment.now())
    assert str(Path.home()) not in machine
