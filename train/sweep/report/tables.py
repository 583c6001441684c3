"""The tables of a report as files: CSV with plain numbers, LaTeX with the cells that the page shows."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from statistics import fmean
from typing import Any

from vlmix.mixture.benchmark.compare import Estimate
from vlmix.train.sweep.report.aggregate import PartSpread, Point, Spread, benchmarks, is_relative, part_spread
from vlmix.train.sweep.report.comparisons import Compared, Summary
from vlmix.train.sweep.report.wording import PARTS, Namer, printable, table, value

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"\textdagger{}",
    "–": "--",
    "[": "{[}",  # after a line's end it would begin an argument, as * would
    "*": "{*}",
    **{sign: f"\\{sign}" for sign in "$&#_%"},
}


def points_csv(points: list[Point]) -> str:
    """A line for each point. `NAME.mean`, `.low`, `.high`, `.seeds` and `.over` (what the interval is over) are those
    of the relative score and of each benchmark, `.chance` what guessing scores. Empty: unknown."""
    namer, names = Namer(points), benchmarks(points)
    relative = ["relative"] * is_relative(points)
    fields = ("mean", "low", "high", "seeds", "over", "chance")
    header = [*namer.keys, "selection", "share", "samples", "seeds"]
    header += [f"{name}.{field}" for name in [*relative, *names] for field in fields]
    lines = [
        [
            *(value(point.grid[key]) if key in point.grid else None for key in namer.keys),
            point.selection,
            point.ratio,
            point.samples,
            point.seeds,
            *(cell for _ in relative for cell in _spread(point.relative, point.relative_chance)),
            *(cell for name in names for cell in _spread(point.scores.get(name), point.chance.get(name))),
        ]
        for point in points
    ]
    return _csv(header, lines)


def comparisons_csv(points: list[Point], compared: Iterable[Compared]) -> str:
    """A line for each comparison and benchmark, in points, and one for the mean over benchmarks, in percent.

    `adjusted_p` is p for the benchmarks of one comparison together, that of the mean for all comparisons together.
    `needed` is how many questions would tell the difference in 8 of 10 cases; empty: no number would.
    """
    namer = Namer(points)
    lines: list[list[Any]] = []
    for each in compared:
        who = [namer.point(each.point), namer.point(each.control)]
        comparison = each.comparison
        for one in comparison.differences:
            numbers = [one.a, one.b, *_estimate(one.difference), one.adjusted, one.questions, one.needed]
            lines.append([*who, one.benchmark, "points", *numbers])
        if comparison.overall is not None:
            numbers = [None, None, *_estimate(comparison.overall), comparison.overall_adjusted, None, None]
            lines.append([*who, "overall", "percent", *numbers])
    header = ["compared", "with", "benchmark", "unit", "with_score", "compared_score", "difference", "low", "high", "p"]
    return _csv([*header, "adjusted_p", "questions", "needed"], lines)


def seen_csv(summary: Summary) -> str:
    """A line for each point, benchmark and part of its questions (see `wording.seen_table`), with the score and the
    mean number of questions over seeds. Without overlaps the header alone."""
    namer, lines = Namer(summary.points), list[list[Any]]()
    for name in benchmarks(summary.points):
        for point, group in zip(summary.points, summary.groups):
            if any(name in row.seen for row in group):
                asked = [row.questions[name] for row in group if name in row.questions]
                parts = {"all": PartSpread(point.scores.get(name), asked)}
                parts |= {part: part_spread(group, name, part) for part in PARTS}
                for part, (spread, questions) in parts.items():
                    who = [name, namer.point(point), part, fmean(questions) if questions else None]
                    lines.append([*who, *_spread(spread, None)[:-1]])
    return _csv(["benchmark", "subset", "part", "questions", "mean", "low", "high", "seeds", "over"], lines)


def points_latex(points: list[Point], notes: Sequence[str] = ()) -> str:
    """The score table as a `tabular` of booktabs. `notes` stand above it as comments."""
    header, rows = table(points)
    words = len(Namer(points).keys) + 1
    lines = [f"% {printable(note)}" for note in ("\\usepackage{booktabs}", *notes)]
    lines += [f"\\begin{{tabular}}{{{'l' * words}{'r' * (len(header) - words)}}}", r"\toprule", _latex_row(header)]
    lines += [r"\midrule", *map(_latex_row, rows), r"\bottomrule", r"\end{tabular}"]
    return "".join(f"{line}\n" for line in lines)


def latex(text: str) -> str:
    """Text in which nothing is a command."""
    return "".join(_LATEX.get(c, c) for c in printable(text))


def _latex_row(cells: Iterable[str]) -> str:
    return f"{' & '.join(map(latex, cells))} \\\\"


def _spread(spread: Spread | None, chance: float | None) -> list[Any]:
    if spread is None:
        return [None] * 5 + [chance]
    return [spread.mean, spread.low, spread.high, len(spread.by_seed), spread.over, chance]


def _estimate(estimate: Estimate) -> list[float]:
    return [estimate.value, estimate.low, estimate.high, estimate.p]


def _csv(header: list[str], lines: Iterable[Sequence[Any]]) -> str:
    """Equal names in the header get ~2, ~3 and so on."""
    times: dict[str, int] = {}
    unique = []
    for name in map(printable, header):
        times[name] = times.get(name, 0) + 1
        unique.append(name if times[name] == 1 else f"{name}~{times[name]}")
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(unique)
    writer.writerows([printable(cell) if isinstance(cell, str) else cell for cell in line] for line in lines)
    return text.getvalue()
