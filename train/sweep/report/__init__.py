"""The report of a sweep: what models keep of their score when data is taken away, in numbers, a curve and a page.

Same rows and facts, same bytes, in whatever order the runs ended.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import write_bytes, write_text
from vlmix.train.sweep.report.comparisons import Summary, in_common, summarise
from vlmix.train.sweep.report.page import Drawing, page
from vlmix.train.sweep.report.plots import NARROW, WIDE, curve, require, scores
from vlmix.train.sweep.report.published import Published
from vlmix.train.sweep.report.tables import comparisons_csv, points_csv, points_latex, seen_csv
from vlmix.train.sweep.report.wording import comparison_table, notes, seen_table, table

NAME = "report.html"


def write(
    out: Path,
    title: str,
    summary: Summary,
    facts: dict[str, Any],
    note: str = "",
    published: Sequence[Published] = (),
) -> Path:
    """Writes `report.html`, its curve as `curve.png`, `.svg` and `.pdf`, and its tables as `table.csv`, `table.tex`,
    `comparisons.csv` and `seen.csv` into `out`, each whole or not at all, and gives the page's path.

    `facts` are shown in their order, nested ones under dotted names; they must hold no time, host or absolute path,
    as a page depends on nothing else but `summary`, `published` and the libraries' versions. `note` stands above
    picture and page. `published` are marks in the picture of relative scores.
    Raises VlmixError without rows, and without matplotlib or Jinja2.
    """
    if not summary.rows:
        raise VlmixError(f"{out}: there are no finished runs to report on yet; run the sweep first")
    require()
    points = summary.points
    main = Drawing(
        *(curve(points, published, "", sheet).inline(f"curve-{i}-") for i, sheet in enumerate((WIDE, NARROW)))
    )
    panels = [picture for sheet in (WIDE, NARROW) if (picture := scores(points, sheet))]
    each = Drawing(*(picture.inline(f"scores-{i}-") for i, picture in enumerate(panels))) if panels else None
    files = {f"curve.{kind}": data for kind, data in curve(points, published, note).files("png", "svg", "pdf").items()}
    texts = {
        "table.csv": points_csv(points),
        "table.tex": points_latex(points, list(notes(summary))),
        "comparisons.csv": comparisons_csv(points, summary.compared),
        "seen.csv": seen_csv(summary),
        NAME: page(title, summary, facts, main, each, note, published),
    }
    for name, data in files.items():
        write_bytes(out / name, data)
    for name, text in texts.items():
        write_text(out / name, text)
    return out / NAME


__all__ = ["comparison_table", "in_common", "require", "seen_table", "summarise", "table", "write"]
