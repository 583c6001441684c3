"""`vlmix compare`: two models or more on the same questions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from vlmix.cli import show
from vlmix.cli.lookup import benchmark_names
from vlmix.cli.options import AllowCodeOpt, JsonOpt
from vlmix.mixture.errors import VlmixError

if TYPE_CHECKING:
    from vlmix.mixture.benchmark.compare import Comparison, Run


class Pair(NamedTuple):
    """The names of two models, and how the second differs from the first."""

    first: str
    second: str
    comparison: "Comparison"


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B …",
            help="Answer files, folders of `vlmix evaluate`, runs of a sweep, or sweeps. The first is what the others "
            "are compared with; a sweep alone is compared within itself.",
        ),
    ],
    benchmark: Annotated[
        str,
        typer.Option(
            "--benchmark",
            help="For answer files: a name that `vlmix benchmarks` lists, or a YAML file.",
            autocompletion=benchmark_names,
        ),
    ] = "",
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="For answer files: official files, as in `vlmix score`.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="For answer files: official split.")] = "",
    judgements: Annotated[
        list[Path] | None,
        typer.Option("--judgements", help="For answer files of a judged benchmark: one file each, in their order."),
    ] = None,
    allow_code: AllowCodeOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Compare models question by question: differences with 95 % intervals, and how many questions would tell them."""
    from vlmix.train.sweep.folder import is_sweep

    paths = [Path(model) for model in models]
    for path in paths:
        if not path.exists():
            raise VlmixError(f"there is no {path}; name answer files, folders of `vlmix evaluate`, or sweeps")
    if all(map(is_sweep, paths)):
        pairs = _sweeps(paths)
    elif len(paths) < 2:
        raise typer.BadParameter("two models or more are needed; only a sweep is compared within itself")
    else:
        chosen = None
        if benchmark:
            from vlmix.builders import benchmark_named

            chosen = benchmark_named(benchmark, allow_code=allow_code)
        opinions: Sequence[Path | None] = judgements or [None] * len(paths)
        if len(opinions) != len(paths):
            raise typer.BadParameter(f"{len(paths)} models need {len(paths)} files with --judgements")
        scored = [_run(path, chosen, annotations, split, given) for path, given in zip(paths, opinions)]
        _check_rules(paths, [rules for _, rules in scored])
        pairs = _against_first([str(path) for path in paths], [run for run, _ in scored])
    if as_json:
        show.done("", [pair._asdict() for pair in pairs], as_json=True)
        return
    for pair in pairs:
        show.compared(*pair)


def _against_first(names: Sequence[str], runs: "Sequence[Run]") -> list[Pair]:
    from vlmix.mixture.benchmark.compare import compare as make

    return [Pair(names[0], name, make([runs[0]], [run])) for name, run in zip(names[1:], runs[1:])]


def _check_rules(paths: Sequence[Path], rules: Sequence[dict[str, int]]) -> None:
    """Raises VlmixError where models were scored by different rules."""
    for path, other in zip(paths[1:], rules[1:]):
        for name in sorted(other.keys() & rules[0].keys()):
            if other[name] != rules[0][name]:
                raise VlmixError(
                    f"{name}: {paths[0]} was scored by version {rules[0][name]} of its rules, {path} by version "
                    f"{other[name]}; score both again with one version of vlmix"
                )


def _run(
    path: Path, benchmark: Any, annotations: Path | None, split: str, judgements: Path | None
) -> "tuple[Run, dict[str, int]]":
    """What one model scored, and by which version of each benchmark's rules: answers are scored, what `vlmix evaluate`
    left is read."""
    from vlmix.mixture.benchmark.answers import read_answers
    from vlmix.mixture.benchmark.benchmark import REPORT_NAME
    from vlmix.mixture.benchmark.compare import Run
    from vlmix.mixture.benchmark.values import NAME, Values
    from vlmix.train.sweep.folder import is_sweep

    if path.is_file():
        if benchmark is None:
            raise typer.BadParameter(f"{path} is a file of answers: --benchmark says to which questions")
        answers = read_answers(path)
        opinions = None if judgements is None else benchmark.saved_judgements(answers, annotations, judgements)
        report, values = benchmark.scored(answers, annotations, split, opinions)
        if values is None:
            raise VlmixError(f"{report.benchmark} does not say what each question adds to its score; add tallies to it")
        return Run(0, {report.benchmark: values}), {report.benchmark: report.scorer_version}
    if is_sweep(path):
        raise VlmixError(f"{path} is a sweep, which compares with sweeps alone; name one of its runs, {path}/runs/…")
    folders = [path, *sorted(path.glob("*/")), *sorted(path.glob("answers/*/"))]
    files = {folder: folder / NAME for folder in folders if (folder / NAME).is_file()}
    if not files:
        scored = any((folder / REPORT_NAME).is_file() for folder in folders)
        remedy = (
            "evaluate it again with this version, which keeps the answers"
            if scored
            else "`vlmix evaluate` answers and scores benchmarks into a folder"
        )
        raise VlmixError(f"{path}: there are no scored questions ({NAME}); {remedy}")
    found: dict[str, Values] = {}
    rules = {}
    for folder, file in files.items():
        read = Values.read(file)
        name, version = _scored_as(folder)
        if name in found:
            raise VlmixError(
                f"{path}: several folders hold scores of {name}, one is {folder}; name the one that is meant"
            )
        found[name], rules[name] = read, version
    return Run(0, found), rules


def _scored_as(folder: Path) -> tuple[str, int]:
    """Benchmark and version of its rules, by the report of a folder."""
    import json

    from vlmix.mixture.benchmark.benchmark import REPORT_NAME

    try:
        report = json.loads((folder / REPORT_NAME).read_bytes())
        return str(report["benchmark"]), int(report["scorer_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VlmixError(
            f"{folder}: {REPORT_NAME} does not say what was scored ({error!r}); evaluate or score again"
        ) from None


def _sweeps(paths: Sequence[Path]) -> list[Pair]:
    """One sweep: its comparisons with controls. Several: the points that each shares with the first."""
    from vlmix.train.sweep.folder import read_rows, read_values, recorded_grid
    from vlmix.train.sweep.recipe import first_grid
    from vlmix.train.sweep.report import in_common, summarise
    from vlmix.train.sweep.report.wording import Namer

    opened = []
    for path in paths:
        rows = read_rows(path)
        if not rows:
            raise VlmixError(f"{path}: no run of this sweep is finished; run the sweep first")
        values = read_values(path, rows)
        opened.append((summarise(rows, values, first_grid(recorded_grid(path))), values))
    namers = [Namer(summary.points) for summary, _ in opened]
    if len(opened) == 1:
        (namer,), compared = namers, opened[0][0].compared
        if not compared:
            raise VlmixError(
                f"{paths[0]}: nothing to compare: the sweep has one selection and one recipe; name another sweep, too"
            )
        return [Pair(namer.point(each.control), namer.point(each.point), each.comparison) for each in compared]
    pairs = [
        Pair(f"{paths[0]}: {namers[0].point(each.control)}", f"{path}: {namer.point(each.point)}", each.comparison)
        for path, namer, sweep in zip(paths[1:], namers[1:], opened[1:])
        for each in in_common(*opened[0], *sweep)
    ]
    if not pairs:
        raise VlmixError(f"{' and '.join(map(str, paths))} share no recipe, selection and share; nothing to compare")
    return pairs
