"""The report of a sweep: what models keep of their score when data is taken away, in numbers, a curve and a page.

Same rows and facts, same bytes, in whatever order the runs ended.
"""

from pathlib import Path
from typing import Any

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write, write_text
from vlmix.train.sweep.report.aggregate import (
    Point,
    Result,
    RunValues,
    Series,
    Spread,
    aggregate,
    ordered,
    series,
)
from vlmix.train.sweep.report.comparisons import Compared, comparisons
from vlmix.train.sweep.report.page import page
from vlmix.train.sweep.report.plots import DARK, LIGHT, curve, require, scores
from vlmix.train.sweep.report.wording import comparison_table, headline, table

CURVE_NAME = "curve.png"
REPORT_NAME = "report.html"


def write(
    out: Path, title: str, rows: list[Result], facts: dict[str, Any], note: str = "", values: RunValues | None = None
) -> Path:
    """Writes `curve.png` and `report.html` into `out`, each whole or not at all, and gives the page's path.

    `values` are what each question adds to the scores of each run; without them intervals are over seeds alone, and
    nothing is compared.

    `facts` are shown in their order, nested ones under dotted names; they must hold no time, host or absolute path,
    as a page depends on nothing else but `rows`, `values` and the libraries' versions. `note` stands above picture and
    page.
    Raises VlmixError without rows, and without matplotlib or Jinja2.
    """
    if not rows:
        raise VlmixError(f"{out}: there are no finished runs to report on yet; run the sweep first")
    require()
    points = aggregate(rows, values)
    light = curve(points, LIGHT, note)
    each_light, each_dark = scores(points, LIGHT), scores(points, DARK)
    each = (each_light, each_dark) if each_light and each_dark else None
    text = page(title, ordered(rows), facts, (light, curve(points, DARK, note)), each, note, values)
    with atomic_write(out / CURVE_NAME) as file:
        file.write(light)
    write_text(out / REPORT_NAME, text)
    return out / REPORT_NAME


__all__ = [
    "CURVE_NAME",
    "REPORT_NAME",
    "Compared",
    "Point",
    "Result",
    "RunValues",
    "Series",
    "Spread",
    "aggregate",
    "comparison_table",
    "comparisons",
    "headline",
    "require",
    "series",
    "table",
    "write",
]
