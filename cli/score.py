"""`vlmix score`: a file of answers against official labels, or made ready for a test server."""

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
    from vlmix.mixture.overlaps.scores import Parts


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
        from vlmix.mixture.overlaps import scores, table

        read = table.read(overlaps)
        parts = scores.scores(chosen, given, annotations, split, read, opinions)
        asked, known = report.answered + report.missing, len(read.checked(chosen.name, split).questions)
        if asked != known:
            show.note(f"{overlaps} knows {known:,} questions and {asked:,} were scored; make it anew with these files")
        if as_json:
            show.done("", show.with_parts(report, parts), as_json=True)
            return
        show.scored(chosen, report)
        show_parts(report, parts)
    if written:
        show.done(written, None, as_json=False)


def show_parts(report: "Report", parts: "Parts", name: str = "questions") -> None:
    """The score on all questions, on those seen in training, and on the rest, and what was not compared."""
    table = show.table_of(name, "number", "answered", "score", "95 % interval")
    whole = f"{report.answered + report.missing:,}", f"{report.answered:,}", f"{report.score:,.2f}"
    show.add(table, "all", *whole, show.within(report.interval))
    for part, one in parts.by_name().items():
        shown = f"clean by {', '.join(parts.checked.levels)}" if part == "clean" else part.replace("_", " ")
        if one is None:
            show.add(table, shown, "0", "", "", "")
        else:
            score = "-" if one.score is None else f"{one.score:,.2f}"
            show.add(table, shown, f"{one.questions:,}", f"{one.answered:,}", score, show.within(one.interval))
    show.out.print(table)
    show_unchecked(parts.checked)


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
