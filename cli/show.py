"""What commands print: tables for people on stdout, JSON with --json, progress on stderr."""

import dataclasses
import os
import shlex
import sys
import time
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vlmix.mixture.errors import VlmixError, abridged, nearest
from vlmix.mixture.io.visible import visible, visible_json

if TYPE_CHECKING:
    from vlmix.builders.miniature import SampleReport
    from vlmix.builders.peek import Sight
    from vlmix.mixture.benchmark.benchmark import Benchmark
    from vlmix.mixture.benchmark.benchmark import Report as Score
    from vlmix.mixture.benchmark.compare import Comparison
    from vlmix.mixture.build.plan import PlanRow
    from vlmix.mixture.build.source import Source
    from vlmix.mixture.dataset.manifest import Manifest
    from vlmix.mixture.dataset.verify import Verified
    from vlmix.mixture.merge.merge import Merged
    from vlmix.mixture.mixture import Mixture
    from vlmix.mixture.overlaps.scores import Parts
    from vlmix.mixture.schedule.listing import Share
    from vlmix.mixture.schedule.schedule import Schedule
    from vlmix.mixture.selection.rankings import Report
    from vlmix.train.evaluate.evaluate import Unscored

# Into a pipe, tables keep their natural width. A closed stdout is None until `boundary` opens it.
out = Console(highlight=False, width=None if sys.stdout and sys.stdout.isatty() else 200)
_err = Console(stderr=True)
_LONGEST_LINE = 4000
_LONGEST_TURN = 4000


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A callback that draws one bar per stage on a terminal, and nothing elsewhere."""
    columns = (
        TextColumn("{task.description:>18}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(visible(stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def training(name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback for rows of metrics: a bar with the loss on a terminal, else a line every ten seconds."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    printed = time.monotonic()
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as bar:
        task = bar.add_task(f"{visible(name)}  preparing data and model", total=None)

        def update(row: dict[str, Any]) -> None:
            nonlocal printed
            text = f"{visible(name)}  loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            bar.update(task, completed=row["step"], total=row["of"], description=text)
            if not _err.is_terminal and (time.monotonic() - printed > 10 or row["step"] == row["of"]):
                printed = time.monotonic()
                note(f"{text}  step {row['step']:,}/{row['of']:,}")

        yield update


def has_bars() -> bool:
    """Whether progress is drawn, on a terminal; elsewhere lines stand for it."""
    return _err.is_terminal


def plain(text: str, style: str = "", *, lines: bool = True) -> Text:
    """Text as it is printed: no markup, and nothing that a terminal obeys but, with `lines`, line feeds and tabs."""
    return Text(visible(text, lines=lines), style=style)


def table_of(*columns: str) -> Table:
    """An empty table, whose headings may come from data."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        words = name in ("source", "reason", "first", "column", "taken for", "part")
        table.add_column(
            plain(name, lines=False), justify="left" if words else "right", overflow="fold", no_wrap=name != "first"
        )
    return table


def add(table: Table, *cells: str) -> None:
    """A row whose cells may come from data."""
    table.add_row(*(plain(cell, lines=False) for cell in cells))


def without_bars() -> None:
    """Keeps Hugging Face's libraries, before they are imported, from drawing bars of their own."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def note(text: str) -> None:
    """A line on stderr, above a progress bar."""
    _err.print(plain(text, lines=False), highlight=False, soft_wrap=True)


def line(text: str) -> None:
    """What a command says on stderr before it ends. File names and records' ids in it come from data."""
    if len(text) > _LONGEST_LINE:  # a name of megabytes in somebody's file
        text = f"{text[: _LONGEST_LINE // 2]} … {text[-_LONGEST_LINE // 2 :]}"
    print(f"vlmix: {visible(text, lines=True)}", file=sys.stderr)


def done(text: str, data: Any, as_json: bool) -> None:
    if as_json:
        _json(data)
    else:
        say(text)


def step(command: str) -> None:
    out.print(plain(f"\n$ {command}", "bold"))


def sources(known: "list[Source]", as_json: bool) -> None:
    if as_json:
        _json([_source(source) for source in known])
        return
    for source in known:
        out.print(plain(source.name, "bold"), plain(f" {source.title}; {', '.join(source.response_formats)}"))
        say(f"    files    {', '.join(file.name for file in source.files if not file.optional)}")
        say(f"    license  {source.license}\n    home     {source.homepage}")
    say("\n`vlmix sources NAME` shows a source's options and where its images are looked for.")


def source(source: "Source", as_json: bool) -> None:
    data = _source(source)
    if as_json:
        _json(data)
        return
    say(f"{source.title}\n  home     {source.homepage}\n  license  {source.license}")
    say(f"  formats  {', '.join(source.response_formats)}\n\nFiles, in RAW/{source.name}/")
    for file in data["files"]:
        say(f"  {file['name']}  ({file['holds']}{', optional' if file['optional'] else ''})")
    if data["images"]:
        say("\nImages, in RAW or --images")
        for folder, others in data["images"].items():
            say(f"  {folder}" + (f"  (also {', '.join(others)})" if others else ""))
    if data["options"]:
        say("\nOptions, in the recipe")
        for option in data["options"]:
            default = "(must be given)" if option["required"] else repr(option["default"])
            say(f"  {option['name']}: {default}\n      {option['description']}")


def _source(source: "Source") -> dict[str, Any]:
    hints = typing.get_type_hints(source.options, include_extras=True)
    options = []
    for field in msgspec.structs.fields(source.options):
        meta = [m for m in getattr(hints[field.name], "__metadata__", ()) if isinstance(m, msgspec.Meta)]
        default = None if field.default is msgspec.NODEFAULT else field.default
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else default
        description = meta[0].description if meta else ""
        options.append({"name": field.name, "required": field.required, "default": default, "description": description})
    return {
        "name": source.name,
        "title": source.title,
        "homepage": source.homepage,
        "license": source.license,
        "response_formats": source.response_formats,
        "files": msgspec.to_builtins(source.files),
        "images": {k: [f"{f.path}/{f.prefix}" if f.prefix else f.path for f in v] for k, v in source.images.items()},
        "options": options,
    }


def benchmarks(known: "list[Benchmark]", as_json: bool) -> None:
    if as_json:
        _json(
            [
                {"name": b.name, "title": b.title, "homepage": b.homepage, "splits": b.splits, "judge": b.needs_judge}
                | {"files": msgspec.to_builtins(b.files)}
                for b in known
            ]
        )
        return
    for one in known:
        judged = "; needs a judge" if one.needs_judge else ""
        out.print(plain(one.name, "bold"), plain(f" {one.title}{judged}"))
        say(f"    files    {', '.join(file.name for file in one.files if not file.optional)}")
        say(f"    splits   {', '.join(one.splits)}\n    home     {one.homepage}")


def recipes(titles: dict[str, dict[str, str]], as_json: bool) -> None:
    """`titles`: kind -> name -> what the recipe is."""
    if as_json:
        _json(titles)
        return
    commands = {"data": "vlmix plan, build", "train": "vlmix train", "sweep": "vlmix sweep"}
    for kind, named in titles.items():
        out.print(plain(f"{kind} recipes", "bold"), plain(f"({commands[kind]})", "dim"))
        for name, title in named.items():
            say(f"  {name:26}  {title}")
    say("\n`vlmix recipes NAME` prints one, to copy and change.")


def pages(titles: dict[str, str]) -> None:
    for name, title in titles.items():
        say(f"{name:18} {title}")
    say("\n`vlmix docs NAME` shows a page.")


def page(text: str) -> None:
    """Markdown, laid out and with a pager on a terminal, as it is elsewhere."""
    if not out.is_terminal:
        print(text, end="")
        return
    from rich.markdown import Markdown

    with out.pager(styles=True):
        out.print(Markdown(text))


def sample(raw: Path, report: "SampleReport", as_json: bool) -> None:
    if as_json:
        _json({**dataclasses.asdict(report), "root": str(raw)})
        return
    pictures, records = sum(report.images.values()), sum(report.records.values())
    say(
        f"{raw}: {pictures:,} images and {records:,} records in {len(report.records)} official files, "
        f"{_bytes(report.bytes)}; {len(report.dirt)} irregularities of the real releases among them"
    )


def sight(sight: "Sight", recipe: Path | None, as_json: bool) -> None:
    """What `peek` saw, and what to type next."""
    if as_json:
        _json(msgspec.to_builtins(sight))
        return
    files = sight.files[0] if len(sight.files) == 1 else f"{len(sight.files)} files, the first {sight.files[0]}"
    rows = "" if sight.rows is None else f", {sight.rows:,} rows"
    said = ", ".join(f"{role} in `{column}`" for role, column in sight.fields.items())
    say(f"{files}: {sight.kind}{rows}; form {sight.form} ({said})")
    table = table_of("column", "taken for")
    for name, kind in sight.columns.items():
        add(table, name, kind)
    out.print(table)
    for sample in sight.samples:
        out.print(plain(f"\n{sample['id']}", "dim"))
        for image in sample["images"]:
            say(f"   image: {image}")
        for number, text in enumerate(sample["texts"]):
            say(f"{('human', 'gpt')[number % 2]:>8}: {abridged(text, 300)}")
    counts = ", ".join(f"{count:,} with {number} image{'s' * (number != 1)}" for number, count in sight.images.items())
    say(f"\n{sight.usable:,} of the {sight.looked_at:,} rows looked at would be samples{': ' * bool(counts)}{counts}")
    for reason, (count, first) in sight.rejects.items():
        say(f"   dropped: {count:,} {reason}, as {abridged(first, 200)}")
    for note in sight.notes:
        say(f"   note: {note}")
    if recipe is None:
        say(f"a recipe to start from: vlmix peek {shlex.quote(sight.path)} --recipe mine.yaml")
    else:
        say(f"{recipe}: written. Next: vlmix plan {recipe} --raw .    vlmix build {recipe} --raw . --out mixture")


def plan(name: str, rows: "list[PlanRow]", about: list[str], as_json: bool) -> None:
    if as_json:
        _json({"name": name, "sources": msgspec.to_builtins(rows), "about": about})
        return
    for line in about:
        say(line)
    repeated = any(row.samples_per_epoch != row.samples for row in rows)
    columns = ["samples", "samples_per_epoch", "rounds", "words", "images", "missing", "rejects"]
    headings = ["samples", "per epoch", "rounds", "words", "images", "no image", "rejects"]
    if not repeated:
        del columns[1], headings[1]
    if all(row.tokens is not None for row in rows):
        columns.insert(columns.index("words") + 1, "tokens")
        headings.insert(headings.index("words") + 1, "tokens")
    table = table_of("source", *headings, "size")
    for row in rows:
        counts = (f"{getattr(row, column):,}" for column in columns)
        add(table, row.source, *counts, _bytes(row.bytes))
    total = (f"{sum(getattr(row, column) for row in rows):,}" for column in columns)
    table.add_section()
    add(table, "total", *total, _bytes(sum(row.bytes for row in rows)))
    out.print(table)


def manifest(folder: Path | str, manifest: "Manifest", as_json: bool) -> None:
    if as_json:
        _json(msgspec.to_builtins(manifest))
        return
    total = manifest.total
    repeated = ["per epoch"] if total.samples_per_epoch != total.samples else []
    table = table_of("source", "samples", "share", *repeated, "rounds", "words", "images", "rejects")
    rejects = {name: sum(reasons.values()) for name, reasons in manifest.rejects.items()}
    rows = [(name, info.counts) for name, info in manifest.sources.items()]
    for name, c in [*rows, ("total", total)]:
        if name == "total":
            table.add_section()
        dropped = sum(rejects.values()) if name == "total" else rejects.get(name, 0)
        numbers = (
            f"{n:,}" for n in ([c.samples_per_epoch] if repeated else []) + [c.rounds, c.words, c.images, dropped]
        )
        add(table, name, f"{c.samples:,}", f"{100 * c.samples / total.samples:.1f} %", *numbers)
    out.print(table)
    reasons: Counter[str] = sum(map(Counter, manifest.rejects.values()), Counter())
    if reasons:
        say("rejects: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()))
    size = sum(shard.bytes for shard in manifest.shards)
    where = f"a view of {manifest.parent.path}" if manifest.parent else f"{len(manifest.shards)} shards, {_bytes(size)}"
    say(f"{folder}: {manifest.name}, {manifest.samples:,} samples, {where}")


def merged(folder: Path | str, made: "Merged", as_json: bool) -> None:
    """A merged mixture's composition, and where its shards came from."""
    counts = {"linked": made.linked, "copied": made.copied, "written": made.written}
    if as_json:
        _json({**msgspec.to_builtins(made.manifest), "placed": counts})
        return
    manifest(folder, made.manifest, False)
    if made.manifest.shards:
        how = {"linked": "hard-linked", "copied": "copied", "written": "written anew"}
        say("shards: " + ", ".join(f"{count:,} {how[name]}" for name, count in counts.items() if count))


def subset(folder: Path | str, made: "Manifest", report: "Report | None", as_json: bool) -> None:
    """A subset's composition, and what came of following something."""
    if report is None:
        manifest(folder, made, as_json)
        return
    if as_json:
        _json({**msgspec.to_builtins(made), "report": msgspec.to_builtins(report)})
        return
    manifest(folder, made, False)
    if report.rows:
        matched = ", ".join(f"{count:,} by {name.replace('_', ' ')}" for name, count in report.matched_by.items())
        of = "embeddings" if report.by == "clusters" else "rows"
        say(f"by {report.by}: {report.rows:,} {of}, matched {matched}")
        _some("rows without a matching sample", report.unmatched, report.unmatched_first)
        _some("duplicate rows", report.duplicates, [])
        _some("ambiguous rows: several samples have their id", report.ambiguous, report.ambiguous_first)
    else:
        say(f"by {report.by}")
    _some(f"samples in {report.nonempty_clusters:,} clusters", report.nonempty_clusters and report.matched, [])
    lacking = "an embedding" if report.nonempty_clusters else "a score"
    _some(f"samples without {lacking}, {report.unscored_kept:,} of them kept", report.unscored, [])
    _some(f"samples repeat a text or an image, {report.repeated_kept:,} of them kept", report.repeated, [])
    say(f"  {100 * report.random_overlap:.1f} % of the {report.kept:,} are also in a random subset of the same size")


def _some(what: str, count: int, first: list[str]) -> None:
    if count:
        names = f": {visible(', '.join(first))}{', …' if len(first) < count else ''}" if first else ""
        say(f"  {count:,} {what}{names}")


def one(mixture: "Mixture", id: str, as_json: bool) -> None:
    from vlmix.mixture.dataset.view import ids_like, read_rows

    try:
        position = mixture.index_of(id)
    except KeyError:
        alike = ids_like(mixture, id)
        raise VlmixError(
            f"{mixture.folder.name} has no sample {id!r}" + (nearest(id, alike) if alike else "")
        ) from None
    (row,) = read_rows(mixture.root_index(), mixture.rows[[position]]).to_pylist()
    if as_json:
        _json(row)
        return
    _sample(row)


def samples(mixture: "Mixture", sources: list[str], where: str | None, limit: int, offset: int, as_json: bool) -> None:
    """The samples of these sources, or of all, that match a condition: `limit` of them after the first `offset`. On a
    terminal they go through its pager."""
    from vlmix.mixture.dataset.view import index_of, read_rows
    from vlmix.mixture.filters import matching

    for name in sources:
        if name not in mixture.sources:
            raise VlmixError(f"{mixture.folder.name} has no source {name!r}{nearest(name, mixture.sources)}")
    chosen = np.isin(mixture.column("source").to_numpy(), sources) if sources else np.ones(len(mixture), dtype=bool)
    if where is not None:
        chosen &= matching(index_of(mixture, images=False), where, "where")
    positions = np.flatnonzero(chosen)
    of = f" of {' and '.join(sources)}" if sources else ""
    if not len(positions):
        raise VlmixError(f"{mixture.folder.name}: no sample{of} matches `where` {abridged(where or '')!r}; loosen it")
    if offset >= len(positions):
        raise VlmixError(f"--offset {offset}: there are only {len(positions):,} such samples{of}")
    shown = positions[offset : offset + limit]
    rows = read_rows(mixture.root_index(), mixture.rows[shown]).to_pylist()
    if as_json:
        _json(rows)
        return
    matched = "" if where is None else f" that match {abridged(where)}"
    with _paged():
        for number, row in enumerate(rows, offset + 1):
            say(f"── {number:,} of {len(positions):,} ──")
            _sample(row, _LONGEST_TURN)
            say("")
        end = offset + len(shown)
        more = f"; --offset {end} shows the next" if end < len(positions) else ""
        say(f"{offset + 1:,} to {end:,} of {len(positions):,} samples{of}{matched}{more}")


@contextmanager
def _paged() -> Iterator[None]:
    """Sends what is printed through the user's pager if stdout is a terminal."""
    if not out.is_terminal:
        yield
        return
    os.environ.setdefault("LESS", "FRX")  # as git does: what fits on one screen is simply printed
    with out.pager():
        yield


def _sample(row: dict[str, Any], longest: int | None = None) -> None:
    """A row of samples.parquet; of each turn the first `longest` characters."""

    def say(text: str, style: str = "", *, lines: bool = True) -> None:
        out.print(plain(text, style, lines=lines), soft_wrap=not out.is_terminal)  # in a pipe, lines are as stored

    for name in ("id", "source", "shard", "key"):
        say(f"{name:>13}  {row[name]}", lines=False)
    for image in row["images"]:
        about = f"{image['width']}x{image['height']}, {image['size']:,} bytes, {image['xxh3']}, {image['transform']}"
        say(f"{'image':>13}  {image['path']} {about}", lines=False)
    for number, turn in enumerate(row["conversations"]):
        if number % 2 == 0:
            say(f"\n[{number // 2}] {row['response_formats'][number // 2]}", "dim")
        text = turn["value"][:longest]
        say(f"{turn['from']:>6}: {text}")
        if cut := len(turn["value"]) - len(text):
            say(f"        … {cut:,} more characters; --id shows all")
    for box in row["boxes"]:
        of = f" in image {box['image']}" if box["image"] else ""
        say(f"   box of [{box['round']}]{of}: {box['x1']:g}, {box['y1']:g}, {box['x2']:g}, {box['y2']:g} pixels")


def batches(order: "Schedule", rows: "list[Share]", as_json: bool) -> None:
    if as_json:
        _json({"steps_per_epoch": order.steps_per_epoch, "shares": msgspec.to_builtins(rows)})
        return
    table = table_of("step", "rank", "samples", "length", *(["bins", "waste"] if rows[0].bins else []), "first")
    for row in rows:
        packed = [str(len(row.bins)), f"{100 * row.waste:.1f} %"] if rows[0].bins else []
        ids = ", ".join(row.ids[:3]) + (", …" if len(row.ids) > 3 else "")
        add(table, str(row.step), str(row.rank), str(len(row.ids)), f"{row.length:,}", *packed, f"{row.kind}: {ids}")
    out.print(table)
    say(f"{order.steps_per_epoch:,} steps per epoch; --json lists every id")


def rejects(mixture: "Mixture", as_json: bool) -> None:
    import polars as pl

    from vlmix.mixture.dataset.manifest import REJECTS_NAME
    from vlmix.mixture.dataset.view import read_rejects

    if (frame := read_rejects(mixture)) is None:
        path = mixture.root.join(REJECTS_NAME).name
        raise VlmixError(f"{path} is missing: this mixture was copied from another one, which has it")
    if as_json:
        _json(frame.to_dicts())
        return
    table = table_of("source", "reason", "count", "first")
    grouped = frame.group_by("source", "reason", maintain_order=True).agg(pl.len(), pl.first("id"), pl.first("detail"))
    for name, reason, count, id_, detail in grouped.sort("source", "reason").rows():
        add(table, name, reason, f"{count:,}", f"{id_}: {detail}")
    out.print(table)


def verified(folder: Path | str, report: "Verified", as_json: bool) -> None:
    if as_json:
        _json(msgspec.to_builtins(report))
        return
    for problem in report.problems:
        out.print(plain(problem, lines=False))
    state = f"{len(report.problems)} problems" if report.problems else "sound"
    say(f"{folder}: {report.samples:,} samples, {report.shards} shards, {_bytes(report.bytes)}: {state}")


def scored(benchmark: "Benchmark", report: "Score") -> None:
    """A score with its sub-scores and intervals, what was answered, and notes."""
    table = table_of(f"{benchmark.title}, {report.split}", "score", "95 % interval")
    table.columns[0].justify = table.columns[2].justify = "left"
    table.columns[0].no_wrap = False
    main = (benchmark.metric, f"{report.score:.2f}", within(report.interval))
    table.add_row(*(plain(cell, "bold", lines=False) for cell in main))
    for name, value in report.metrics.items():
        add(table, name, f"{value:.2f}", within(report.intervals.get(name)))
    out.print(table)
    counts = {"missing": report.missing, "duplicate": report.duplicates, "unknown": report.unknown}
    said = [f"{report.answered:,} questions answered", *(f"{n:,} {name}" for name, n in counts.items() if n)]
    say(", ".join(said))
    if report.interval:
        say(f"  {how(report)}")
    if report.chance is not None:
        say(f"  guessing scores {report.chance:,.2f}")
    for note in report.notes:
        say(f"  {note}")


def within(interval: "tuple[float, float] | None") -> str:
    """`[58.00, 64.40]`."""
    return "" if interval is None else f"[{interval[0]:,.2f}, {interval[1]:,.2f}]"


def how(report: "Score") -> str:
    """How the interval of a score was made."""
    method = {
        "exact": "exact (Clopper-Pearson)",
        "effective": "exact (Korn-Graubard), as few answers are right or few are wrong",
        "bootstrap": "bootstrap",
        "normal": "normal, the bootstrap's limit",
    }[report.interval_method]
    return f"interval over {report.clusters:,} images or questions that stand alone: {method}"


def compared(first: str, second: str, comparison: "Comparison") -> None:
    """How the second of two models differs from the first (see `benchmark.wording`)."""
    from vlmix.mixture.benchmark.wording import difference_table, notes

    say(f"{second}, compared with {first}")
    rows(*difference_table(comparison))
    for text in notes(comparison):
        say(f"  {text}")


def evaluated(
    answers: dict[str, Path], reports: "list[Score | Unscored]", parts: "dict[str, Parts]", as_json: bool
) -> None:
    """Scores by benchmark, with where the answers lie; as JSON with those of `parts`, where there are any."""
    from vlmix.train.evaluate.evaluate import Unscored

    if as_json:
        _json(
            {
                name: report if isinstance(report, Unscored) or name not in parts else with_parts(report, parts[name])
                for name, report in zip(answers, reports)
            }
        )
        return
    table = table_of("benchmark", "score", "95 % interval", "guessing", "answered", "missing")
    for name, report in zip(answers, reports):
        if isinstance(report, Unscored):
            add(table, name, "-", "", "", "", "")
        else:
            guessing = "" if report.chance is None else f"{report.chance:,.2f}"
            cells = (f"{report.score:,.2f}", within(report.interval), guessing)
            add(table, name, *cells, f"{report.answered:,}", f"{report.missing:,}")
    out.print(table)
    for name, report in zip(answers, reports):
        if isinstance(report, Unscored):
            say(f"{name} has answers, {answers[name]}, and no score: {report.why}")


def with_parts(report: "Score", parts: "Parts") -> dict[str, Any]:
    """A score and those of its parts, as --json prints them."""
    return {"all": report, **parts.by_name(), "unchecked": parts.checked.unchecked}


def rows(header: list[str], cells: list[list[str]]) -> None:
    """A table of text."""
    table = table_of(*header)
    for row in cells:
        add(table, *row)
    out.print(table)


def licenses(manifest: "Manifest", as_json: bool) -> None:
    """License -> the sources that have it."""
    by_text: dict[str, list[str]] = {}
    for name, info in manifest.sources.items():
        by_text.setdefault(info.license, []).append(name)
    if as_json:
        _json(by_text)
        return
    for license, names in by_text.items():
        out.print(plain(f"{', '.join(names)}: {license}", lines=False))


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def say(text: str) -> None:
    out.print(plain(text))


def _json(data: Any) -> None:
    sys.stdout.write(visible_json(msgspec.json.format(msgspec.json.encode(data), indent=2).decode()) + "\n")
