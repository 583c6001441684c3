"""`vlmix score`: a file of answers against official labels, or made ready for a test server."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmix.cli import show
from vlmix.cli.lookup import benchmark_names
from vlmix.cli.options import AllowCodeOpt, JsonOpt
from vlmix.cli.overlaps import show_unchecked

if TYPE_CHECKING:
    from vlmix.mixture.benchmark.answers import Answers
    from vlmix.mixture.benchmark.benchmark import Benchmark, Report
    from vlmix.mixture.benchmark.judge import Judgements
    from vlmix.mixture.overlaps.table import Checked


def score_command(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="A name that `vlmix benchmarks` lists, or a YAML file of your own.", autocompletion=benchmark_names
        ),
    ],
    answers: Annotated[
        Path, typer.Option("--answers", help="JSONL with question_id, prompt and text, or a server's JSON list.")
    ],
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="Folder of the official files, or the file with the labels.")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option("--questions", help="For --submission: the official question files, if not in --annotations."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Official split; `vlmix docs evaluation` has the defaults.")
    ] = "",
    submission: Annotated[
        Path | None, typer.Option("--submission", help="Write the file that the test server takes.")
    ] = None,
    judge: Annotated[
        str, typer.Option("--judge", help="Base URL of an OpenAI-compatible endpoint; key in VLMIX_JUDGE_KEY.")
    ] = "",
    judge_model: Annotated[str, typer.Option("--judge-model", help="The judge's name there.")] = "",
    judgements: Annotated[
        Path | None,
        typer.Option("--judgements", help="Judgements file: appended to with --judge, otherwise scored as is."),
    ] = None,
    overlaps: Annotated[
        Path | None,
        typer.Option(help="File of `vlmix overlaps`: the score on questions seen in training and on the rest, too."),
    ] = None,
    allow_code: AllowCodeOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Score a file of answers by a benchmark's official rule; `vlmix docs evaluation` lists files and splits."""
    from vlmix.builders import benchmark_named
    from vlmix.mixture.benchmark.answers import read_answers

    chosen = benchmark_named(benchmark, allow_code)
    if chosen.own is None and annotations is None and submission is None:
        files = "; ".join(f"{file.name}: {file.holds}" for file in chosen.files)
        raise typer.BadParameter(f"--annotations or --submission is needed; {benchmark} reads {files}")
    source = questions or annotations
    if submission is not None and source is None and chosen.own is None:
        raise typer.BadParameter("--submission needs --questions, the official question files")
    given = read_answers(answers)
    written = ""
    if submission is not None:
        written = chosen.submission(given, source, submission, split)
    if annotations is None and chosen.own is None:
        show.done(written, {"submission": str(submission), "holds": written}, as_json)
        return
    opinions = None
    if chosen.needs_judge and annotations is not None:
        opinions = _judgements(chosen, given, annotations, judge, judge_model, judgements)
    report = chosen.score(given, annotations, split, opinions)
    if overlaps is None:
        if as_json:
            show.done("", report, as_json=True)
            return
        show.scored(chosen, report)
    else:
        parts, checked = _parts(chosen, given, annotations, split, opinions, overlaps)
        if as_json:
            show.done("", {"all": report, **parts, "unchecked": checked.unchecked}, as_json=True)
            return
        show.scored(chosen, report)
        _show_parts({"all": report, **parts}, checked)
    if written:
        show.done(written, None, as_json=False)


def _parts(
    benchmark: "Benchmark",
    answers: "Answers",
    annotations: Path | None,
    split: str,
    opinions: "Judgements | None",
    overlaps: Path,
) -> "tuple[dict[str, Report | None], Checked]":
    """The scores on the questions whose picture, or text, training has seen, and on the rest, None where there is none;
    and what was compared. Which row answers which question is the benchmark's to say."""
    from vlmix.mixture.benchmark.answers import Answers
    from vlmix.mixture.overlaps import table

    read = table.read(overlaps)
    checked = read.checked(benchmark.name, split)

    def score(ids: frozenset[str]) -> "Report | None":
        if not ids:
            return None
        return benchmark.score(Answers(answers.rows, answers.path, asked=ids), annotations, split, opinions)

    pictures, texts = (read.seen(benchmark.name, split, levels) for levels in (table.PICTURES, ("text",)))
    clean = frozenset(checked.questions) - pictures - texts
    return {"picture_seen": score(pictures), "text_seen": score(texts), "clean": score(clean)}, checked


def _show_parts(parts: "Mapping[str, Report | None]", checked: "Checked") -> None:
    """The score on all questions, on those seen in training, and on the rest."""
    table = show.table_of("questions", "answered", "score", "95 % interval")
    for name, one in parts.items():
        shown = f"clean by {', '.join(checked.levels)}" if name == "clean" else name.replace("_", " ")
        if one is None:
            show.add(table, shown, "0", "", "")
            continue
        within = "" if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}"
        show.add(table, shown, f"{one.answered:,}", f"{one.score:.2f}", within)
    show.out.print(table)
    show_unchecked(checked)


def _judgements(
    benchmark: "Benchmark", answers: "Answers", data: Path, url: str, model: str, file: Path | None
) -> "Judgements | None":
    from vlmix.mixture.benchmark.judge import Endpoint, key_from_environment

    if not url:
        return None if file is None else benchmark.saved_judgements(answers, data, file)
    assert answers.path is not None
    file = file or answers.path.with_suffix(".judgements.jsonl")
    with show.progress() as progress:
        return benchmark.judge(answers, data, Endpoint(url, model, key_from_environment()), file, progress)
