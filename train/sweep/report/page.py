"""The report as one HTML page: no script, nothing fetched, well-formed as XML, light or dark as the reader's system is,
wide or narrow as the window. `report.html.j2` is its text; Jinja2 escapes what comes from the runs."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from vlmix.mixture.benchmark.wording import difference_table
from vlmix.train.sweep.report.aggregate import (
    Point,
    Result,
    benchmarks,
    is_relative,
    sub_score,
)
from vlmix.train.sweep.report.comparisons import Compared, Summary
from vlmix.train.sweep.report.picture import DARK, LIGHT
from vlmix.train.sweep.report.published import CAVEAT, Published
from vlmix.train.sweep.report.wording import (
    NOTHING,
    Namer,
    compared_headline,
    comparison_table,
    headline,
    notes,
    number,
    percent,
    printable,
    real,
    seen_table,
    share,
    table,
    value,
)


class Drawing(NamedTuple):
    """One picture as `<svg>` elements (see `Picture.inline`)."""

    wide: str
    narrow: str
    """For windows of up to 860 pixels."""


class Table(NamedTuple):
    """`text_columns` from the left are words, the others numbers; the first cell heads its row. A cell that is a list
    of (source number, name, share) is drawn as a bar."""

    caption: str
    header: list[str]
    rows: list[list[Any]]
    text_columns: int = 1


def page(
    title: str,
    summary: Summary,
    facts: dict[str, Any],
    curve: Drawing,
    scores: Drawing | None,
    note: str = "",
    published: Sequence[Published] = (),
) -> str:
    """The document, with the main picture and that of the single benchmarks."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    rows, points, groups, compared = summary
    environment = Environment(
        loader=PackageLoader("vlmix.train.sweep.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda item: printable(item) if type(item) is str else item,  # markup stays as it is
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        note=note,
        headline=[*headline(points), *compared_headline(points, compared)],
        relative=is_relative(points),
        light=LIGHT.names(),
        dark=DARK.names(),
        curve=Drawing(*map(Markup, curve)),
        described=_described(points) if is_relative(points) else _each_described(points),
        scores=Drawing(*map(Markup, scores)) if scores else None,
        each_described=_each_described(points),
        guessing=any(point.chance for point in points),
        published=_published(published) if published else None,
        caveat=CAVEAT,
        score_table=Table("Mean ± half of the 95 % interval", *table(points), len(Namer(points).keys) + 1),
        seen=Table("Score, and in brackets the number of questions", *seen_table(summary), 2),
        comparisons=Table("Overall, mean over benchmarks in percent", *comparison_table(points, compared), 2),
        differences=_differences(points, compared),
        composition=_composition(points, groups),
        runs=_runs(points, groups),
        sub_scores=_sub_scores(rows, points, groups),
        facts=_facts(facts, rows),
        notes=list(notes(summary)),
    )


def _described(points: list[Point]) -> str:
    namer = Namer(points)
    shown = (f"{namer.point(point)}: {percent(point.relative)}" for point in points if point.relative)
    return f"Chart of the score relative to the full mixture. {'; '.join(shown)}."


def _each_described(points: list[Point]) -> str:
    shown = "; ".join(Namer(points).point(point) for point in points)
    return f"Charts of {', '.join(benchmarks(points)) or 'nothing yet'}, for {shown}. The table has the numbers."


def _composition(points: list[Point], groups: list[list[Result]]) -> Table:
    """A bar and its numbers for each subset; grids that leave the subset as it is share a row."""
    namer = Namer(points)
    by_subset: dict[tuple[str, float], list[tuple[str, list[Result]]]] = {}
    for point, group in zip(points, groups):
        by_subset.setdefault((point.selection, point.ratio), []).append((namer.point(point), group))
    subsets: list[tuple[str, list[Result]]] = []
    for (selection, ratio), members in by_subset.items():
        sources = [{row.seed: row.sources for row in group} for _, group in members]
        label = selection if ratio == 1 else f"{selection}, {share(ratio)}"
        subsets += [(label, members[0][1])] if all(each == sources[0] for each in sources) else members
    totals: dict[str, int] = {}
    for row in (row for _, group in subsets for row in group):
        for name, count in row.sources.items():
            totals[name] = totals.get(name, 0) + count
    names = sorted(totals, key=lambda name: (-totals[name], name))
    rows = []
    for label, group in subsets:
        means = [fmean(row.sources.get(name, 0) for row in group) for name in names]
        total = sum(means) or 1.0
        bar = [(at, name, mean / total) for at, (name, mean) in enumerate(zip(names, means)) if mean]
        rows.append([label, bar, f"{total:,.0f}", *(_range(group, name) for name in names)])
    caption = "Samples by source: mean over seeds, with the range where seeds differ"
    return Table(caption, ["subset", "shares of the sources", "samples", *names], rows, 2)


def _range(group: list[Result], name: str) -> str:
    counts = [row.sources.get(name, 0) for row in group]
    if min(counts) == max(counts):
        return f"{counts[0]:,}" if counts[0] else NOTHING
    return f"{fmean(counts):,.0f} ({min(counts):,} to {max(counts):,})"


def _runs(points: list[Point], groups: list[list[Result]]) -> Table:
    keys, names = Namer(points).keys, benchmarks(points)
    header = ["run", *keys, "selection", "share", "seed", "samples", "steps", "loss", "train s", "evaluate s", *names]
    rows = [
        [
            row.run,
            *(value(row.grid[key]) if key in row.grid else NOTHING for key in keys),
            point.selection,
            share(row.ratio),
            str(row.seed),
            f"{row.samples:,}",
            f"{row.steps:,}",
            real(row.loss, 4),
            real(row.train_seconds, 1),
            real(row.evaluate_seconds, 1),
            *(_score(row, name) for name in names),
        ]
        for point, group in zip(points, groups)
        for row in group
    ]
    caption = (
        "Every run: last loss, wall clock of training and evaluation, scores ± half of the interval over questions"
    )
    return Table(caption, header, rows, len(keys) + 2)


def _score(row: Result, benchmark: str) -> str:
    if benchmark not in row.scores:
        return NOTHING
    half = row.halves.get(benchmark, {}).get("")
    return real(row.scores[benchmark], 2) + ("" if half is None else f" ± {half:.2f}")


def _sub_scores(rows: list[Result], points: list[Point], groups: list[list[Result]]) -> dict[str, Table]:
    """A table for each benchmark that has sub-scores."""
    header = ["sub-score", *map(Namer(points).point, points)]
    tables = {}
    for name in benchmarks(points):
        metrics = sorted({metric for row in rows for metric in row.metrics.get(name, {})})
        if metrics:
            asked = {row.questions[name] for row in rows if name in row.questions}
            questions = f", {min(asked):,} questions" if len(asked) == 1 else ""
            cells = [[metric, *(number(sub_score(group, name, metric)) for group in groups)] for metric in metrics]
            tables[name] = Table(f"{name}{questions}: mean ± half of the 95 % interval", header, cells)
    return tables


def _differences(points: list[Point], compared: list[Compared]) -> dict[str, Table]:
    """A table for each comparison: benchmark by benchmark."""
    namer = Namer(points)
    return {
        f"{namer.point(each.point)} against {namer.point(each.control)}": Table(
            "By benchmark", *difference_table(each.comparison)
        )
        for each in compared
    }


def _published(published: Sequence[Published]) -> Table:
    rows = [
        [each.name, share(each.ratio), f"{'> ' if each.above else ''}{each.relative:.1f}", each.source, each.certainty]
        for each in published
    ]
    header = ["method", "share", "relative %", "source", "how sure the number is"]
    return Table("Published for parts of LLaVA-1.5's 665K mixture", header, rows, len(header))


def _facts(given: dict[str, Any], rows: list[Result]) -> Table:
    """What the sweep says of itself, and what its runs say of where they ran."""
    days = sorted({row.finished[:10] for row in rows})
    runs = {
        "finished": " to ".join(sorted({days[0], days[-1]})),
        "machine": "; ".join(sorted({row.machine for row in rows})),
        **{
            name: ", ".join(sorted({row.versions[name] for row in rows if name in row.versions}))
            for name in sorted({name for row in rows for name in row.versions})
        },
        "manifest of the mixture, SHA-256": ", ".join(sorted({row.mixture[:16] for row in rows})),
    }
    facts = given | {f"runs.{name}": fact for name, fact in runs.items()}
    return Table("The sweep, and what its runs ran on", ["fact", "value"], list(_flat(facts)), 2)


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterable[list[str]]:
    for name, fact in facts.items():
        if isinstance(fact, dict) and fact:
            yield from _flat(fact, f"{prefix}{name}.")
        elif isinstance(fact, (list, tuple)) and not any(isinstance(item, (dict, list, tuple)) for item in fact):
            yield [prefix + name, ", ".join(value(item) for item in fact) or NOTHING]
        else:
            yield [prefix + name, NOTHING if fact is None else value(fact)]
