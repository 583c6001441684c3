"""The report as one HTML page."""

from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any

from vlmix.train.sweep.report import markup
from vlmix.train.sweep.report.aggregate import Point, Result, aggregate, benchmarks, grouped, is_relative, spread
from vlmix.train.sweep.report.markup import Markup
from vlmix.train.sweep.report.notes import notes
from vlmix.train.sweep.report.words import NOTHING, Namer, headline, number, percent, real, share, table, value

Picture = tuple[bytes, bytes]
"""The PNG for a light page and the one for a dark page."""


def page(title: str, rows: list[Result], facts: dict[str, Any], curve: Picture, scores: Picture | None) -> str:
    """The document, with the main picture and that of the single benchmarks. Whatever comes from the arguments is
    escaped."""
    points, groups = aggregate(rows), grouped(rows)
    first, *more = headline(points)
    caption = "Mean ± standard deviation over seeds"
    body = [
        markup.element("h1", title),
        Markup(f'<p class="lead">{markup.text(first)}</p>'),
        markup.bullets(more) if more else "",
        markup.figure(*curve, alt=_described(points), caption=_explained(points)),
        markup.element("h2", "Scores"),
        markup.table(caption, *table(points), words=len(Namer(points).keys) + 1),
    ]
    if scores:
        body.append(markup.figure(*scores, alt=_each_described(points), caption="Each benchmark on its own scale."))
    body += [markup.element("h2", "What the subsets are made of"), _composition(points, groups)]
    body += [markup.element("h2", "Runs"), _runs(points, groups), *_sub_scores(points, groups)]
    if facts:
        body += [markup.element("h2", "Facts"), _facts(facts)]
    if found := list(notes(rows)):
        body += [markup.element("h2", "Notes"), markup.bullets(found)]
    return markup.document(title, body)


def _explained(points: list[Point]) -> str:
    bars = "Error bars: standard deviation over seeds. Faint dots: the runs. Hollow marks: one seed, spread unknown."
    if not is_relative(points):
        return bars
    return (
        "Relative score: the mean over benchmarks of the score divided by the full mixture's (its mean over seeds, of "
        f"the same recipe). What guessing scores is not taken off. {bars}"
    )


def _described(points: list[Point]) -> str:
    if not is_relative(points):
        return _each_described(points)
    namer = Namer(points)
    told = (f"{namer.point(point)}: {percent(point.relative)}" for point in points if point.relative)
    return f"Chart of the score relative to the full mixture. {'; '.join(told)}."


def _each_described(points: list[Point]) -> str:
    namer = Namer(points)
    shown = "; ".join(namer.point(point) for point in points)
    return f"Charts of {', '.join(benchmarks(points)) or 'nothing yet'}, for {shown}. The table has the numbers."


def _composition(points: list[Point], groups: list[list[Result]]) -> Markup:
    """A bar and its numbers for each subset; axes that leave the subset as it is share a row."""
    namer = Namer(points)
    subsets: dict[tuple[str, float], list[tuple[str, list[Result]]]] = {}
    for point, group in zip(points, groups):
        subsets.setdefault((point.selection, point.ratio), []).append((namer.point(point), group))
    made: list[tuple[str, list[Result]]] = []
    for (select, ratio), members in subsets.items():
        same = all(_counts(group) == _counts(members[0][1]) for _, group in members)
        label = select if ratio == 1 else f"{select}, {share(ratio)}"
        made += [(label, members[0][1])] if same else members
    totals: dict[str, int] = {}
    for _, group in made:
        for row in group:
            for name, count in row.sources.items():
                totals[name] = totals.get(name, 0) + count
    names = sorted(totals, key=lambda name: (-totals[name], name))
    rows = []
    for label, group in made:
        means = [fmean(row.sources.get(name, 0) for row in group) for name in names]
        whole = sum(means) or 1.0
        parts = [(at, name, mean / whole) for at, (name, mean) in enumerate(zip(names, means)) if mean]
        rows.append([label, markup.bar(parts), f"{whole:,.0f}", *(_range(group, name) for name in names)])
    heads = [Markup(markup.swatch(at) + markup.text(name)) for at, name in enumerate(names)]
    caption = "Samples by source: mean over seeds, with the range where seeds differ"
    return markup.table(caption, ["subset", "shares of the sources", "samples", *heads], rows, words=2)


def _counts(group: list[Result]) -> dict[int, dict[str, int]]:
    return {row.seed: row.sources for row in group}


def _range(group: list[Result], name: str) -> str:
    counts = [row.sources.get(name, 0) for row in group]
    if min(counts) == max(counts):
        return f"{counts[0]:,}" if counts[0] else NOTHING
    return f"{fmean(counts):,.0f} ({min(counts):,} to {max(counts):,})"


def _runs(points: list[Point], groups: list[list[Result]]) -> Markup:
    namer, names = Namer(points), benchmarks(points)
    header = ["run", *namer.keys, "selection", "share", "seed", "samples", "steps", "loss", "train s", "evaluate s"]
    rows = [
        [
            row.run,
            *(value(row.grid[key]) if key in row.grid else NOTHING for key in namer.keys),
            point.selection,
            share(row.ratio),
            str(row.seed),
            f"{row.samples:,}",
            f"{row.steps:,}",
            real(row.loss, 4),
            real(row.train_seconds, 1),
            real(row.evaluate_seconds, 1),
            *(real(row.scores[name], 2) if name in row.scores else NOTHING for name in names),
        ]
        for point, group in zip(points, groups)
        for row in group
    ]
    caption = "Every run: last loss, wall clock of training and evaluation, scores"
    return markup.table(caption, [*header, *names], rows, words=len(namer.keys) + 2)


def _sub_scores(points: list[Point], groups: list[list[Result]]) -> Iterator[Markup]:
    """A table for each benchmark that has sub-scores, folded."""
    namer = Namer(points)
    for name in benchmarks(points):
        metrics = sorted({metric for group in groups for row in group for metric in row.metrics.get(name, {})})
        if metrics:
            header = ["sub-score", *(namer.point(point) for point in points)]
            rows = [[metric, *(_sub_score(group, name, metric) for group in groups)] for metric in metrics]
            asked = sorted({row.questions[name] for group in groups for row in group if name in row.questions})
            questions = f", {asked[0]:,} questions" if len(asked) == 1 else ""
            made = markup.table(f"{name}{questions}: mean ± standard deviation over seeds", header, rows)
            yield Markup(f"<details>{markup.element('summary', f'Sub-scores of {name}')}\n{made}</details>")


def _sub_score(group: list[Result], name: str, metric: str) -> str:
    return number(spread(group, lambda row: row.metrics.get(name, {}).get(metric)))


def _facts(facts: dict[str, Any]) -> Markup:
    rows = [[name, told] for name, told in _flat(facts)]
    return markup.table("What all runs have in common", ["fact", "value"], rows, words=2, kind="facts")


def _flat(facts: dict[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for name, fact in facts.items():
        if isinstance(fact, dict) and fact:
            yield from _flat(fact, f"{before}{name}.")
        elif isinstance(fact, (list, tuple)) and not any(isinstance(item, (dict, list, tuple)) for item in fact):
            yield before + name, ", ".join(value(item) for item in fact) or NOTHING
        else:
            yield before + name, NOTHING if fact is None else value(fact)
