"""`vlmix evaluate`: a model's answers to benchmarks, and their scores."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from vlmix.cli import show
from vlmix.cli.lookup import benchmark_names
from vlmix.cli.options import AllowCodeOpt, EvalDataOpt, EvalImagesOpt, JsonOpt
from vlmix.cli.score import show_parts
from vlmix.cli.train import launch, launched


def evaluate(
    benchmark: Annotated[
        list[str],
        typer.Argument(
            help="Names that `vlmix benchmarks` lists, or YAML files of your own.", autocompletion=benchmark_names
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="A run's folder, a Hugging Face folder or a hub name.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for answers and reports. An interrupted run in this folder is resumed."),
    ],
    data: EvalDataOpt = None,
    images: EvalImagesOpt = None,
    split: Annotated[
        str, typer.Option("--split", help="Official split; `vlmix docs evaluation` has the defaults.")
    ] = "",
    batch: Annotated[int, typer.Option(help="Questions answered together.", min=1)] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens (0: as in LLaVA-1.5).", min=0)] = 0,
    overlaps: Annotated[
        Path | None,
        typer.Option(help="File of `vlmix overlaps`: the score on questions seen in training and on the rest, too."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Answer only the first questions, this many (0: all).", min=0)] = 0,
    nproc: Annotated[int, typer.Option(help="Processes on this machine, one per GPU.", min=1)] = 1,
    allow_code: AllowCodeOpt = False,
    as_json: JsonOpt = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no scores.")] = False,
) -> None:
    """Answer benchmarks with a model, and score the answers. If interrupted, run it again to resume."""
    from vlmix.builders import benchmarks_named

    chosen = benchmarks_named(benchmark, allow_code)
    if data is None and (official := [name for name, one in chosen.items() if one.own is None]):
        raise typer.BadParameter(f"--data is needed: {official[0]} is read from its official files")
    if nproc > 1 and not launched():
        flags = {"--allow-code": allow_code, "--json": as_json, "--quiet": quiet}
        more = ["--overlaps", str(overlaps)] if overlaps else []
        in_processes(nproc, benchmark, model, out, data, images or (), split, batch, max_new_tokens, limit, flags, more)
        return
    from vlmix.train.evaluate.evaluate import ANSWERS, Task, Unscored
    from vlmix.train.evaluate.evaluate import evaluate as run
    from vlmix.train.evaluate.overlaps import check, score_parts, seen_by

    tasks = [
        Task(
            benchmark=one,
            data=data,
            images=tuple(images or ()),
            split=split,
            batch_size=batch,
            max_new_tokens=max_new_tokens,
            limit=limit,
        )
        for one in chosen.values()
    ]
    is_main = not launched() or os.environ["RANK"] == "0"
    seen = None
    if overlaps is not None:
        seen, doubt = seen_by(overlaps, model)
        for task in tasks:
            check(seen, task)
        if doubt and is_main:
            show.note(f"warning: {doubt}")
    with show.progress() as progress:
        reports = run(model, tasks, out, progress)
    if not is_main:
        return
    parts = {
        task.benchmark.name: score_parts(seen, task, out / task.benchmark.name, overlaps)
        for task, report in zip(tasks, reports)
        if seen is not None and overlaps is not None and not isinstance(report, Unscored)
    }
    if not quiet:
        show.evaluated({name: out / name / ANSWERS for name in chosen}, reports, parts, as_json)
        for name, report in zip(chosen, reports):
            if name in parts and not as_json:
                assert not isinstance(report, Unscored)
                show_parts(report, parts[name], name)


def in_processes(
    nproc: int,
    benchmarks: Iterable[str],
    model: str,
    out: Path,
    data: Path | None,
    images: Iterable[Path],
    split: str,
    batch: int,
    max_new_tokens: int,
    limit: int,
    flags: Mapping[str, bool],
    more: Iterable[str] = (),
) -> None:
    """The command, with its options, in `nproc` processes, which share the questions of each benchmark."""
    arguments = [*benchmarks, "--model", model, "--out", str(out), "--split", split]
    arguments += ["--data", str(data)] if data else []
    arguments += ["--batch", str(batch), "--max-new-tokens", str(max_new_tokens), "--limit", str(limit)]
    arguments += [part for root in images for part in ("--images", str(root))]
    launch(nproc, ["evaluate", *arguments, *more, *(flag for flag, is_set in flags.items() if is_set)])
