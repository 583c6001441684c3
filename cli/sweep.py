"""`vlmix sweep` and `vlmix embed`: how much of a mixture, and which part, a model needs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmix.cli import recipes, show
from vlmix.cli.evaluate import in_processes
from vlmix.cli.lookup import benchmark_names, evaluation_set, recipe_names
from vlmix.cli.options import AllowCodeOpt, EvalDataOpt, EvalImagesOpt, JsonOpt
from vlmix.cli.train import launch

if TYPE_CHECKING:
    from vlmix.mixture.benchmark.benchmark import Report
    from vlmix.train.config import Recipe
    from vlmix.train.evaluate.evaluate import Task, Unscored
    from vlmix.train.sweep.recipe import Build, Sweep
    from vlmix.train.sweep.sweep import Backend


def sweep(
    sweep: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or a name that `vlmix recipes` lists.",
            autocompletion=lambda: recipe_names(recipes.SWEEP),
        ),
    ],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="seeds=[0,1,2] overrides.epochs=2 …")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the sweep. An interrupted run in this folder is resumed.")
    ] = Path("sweep"),
    jobs: Annotated[int, typer.Option(help="Runs at a time on this machine.", min=1)] = 1,
    nproc: Annotated[int, typer.Option(help="Processes of each run, one per GPU.", min=1)] = 1,
    allow_code: AllowCodeOpt = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the rows of all runs.")] = False,
) -> None:
    """Train and evaluate over nested subsets, seeds and recipes; table, curve and report. Run it
    again to resume; several machines that share the folder divide the runs."""
    show.without_bars()
    require()
    from vlmix.train.sweep.folder import read_values
    from vlmix.train.sweep.recipe import adds_random, first_grid, load
    from vlmix.train.sweep.report import comparison_table, seen_table, summarise, table, write
    from vlmix.train.sweep.report.published import published
    from vlmix.train.sweep.subsets import same_as_random
    from vlmix.train.sweep.sweep import Standing, left_out, run

    found = recipes.find(recipes.SWEEP, sweep)
    recipes.check_overrides(changes, "mixture")
    backend = _backend(nproc, allow_code)
    parsed = load(found, backend.benchmark, changes)
    inner = "VLMIX_SWEEP_WORKER" in os.environ
    if adds_random(parsed) and not inner:
        show.note("random is added to the selections: it is the control that the others are compared with")
    with show.progress() as progress:
        shown = -1

        def report_progress(what: str, done: int, total: int) -> None:
            nonlocal shown
            if done > shown and not inner and not show.has_bars():
                show.note(f"{done} of {total} runs{f', {what}' if what and done < total else ''}")
            shown = max(shown, done)
            progress("runs", done, total)

        if inner:
            _end_with_parent()
        if jobs > 1:
            standing = Standing(parsed, out)
            arguments = [sweep, *(changes or []), "--out", str(out), "--nproc", str(nproc)]
            arguments += ["--allow-code"] if allow_code else []
            _share(arguments, jobs, nproc, lambda: report_progress("", *standing.counts()))
        rows = run(parsed, out, backend, report_progress)
    if inner:
        return
    facts = _facts(parsed)
    if same := same_as_random(parsed, out):
        facts["equal to the random selection"] = ", ".join(same)
        show.note(f"warning: the subsets of these runs equal the random selection: {', '.join(same)}")
    values = read_values(out, rows)
    if skipped := left_out(parsed, rows, values):
        facts["left out"] = [f"{name}: {why}" for name, why in skipped.items()]
        show.note(
            f"{len(skipped)} runs are left out, as they cannot change which share is enough; the report names them"
        )
    summary = summarise(rows, values, first_grid(parsed.grid))
    report = write(out, parsed.name, summary, facts, parsed.note, published(parsed.published))
    if as_json:
        show.done("", rows, as_json=True)
        return
    show.rows(*table(summary.points))
    header, cells = seen_table(summary)
    if cells:
        show.rows(header, cells)
    if summary.compared:
        show.rows(*comparison_table(summary.points, summary.compared))
    show.done(f"report: {report}", None, as_json=False)


def require() -> None:
    """Fail where what a sweep needs is not installed, before hours are spent."""
    from vlmix.train.sweep.report import require as picture
    from vlmix.train.sweep.sweep import run  # noqa: F401

    picture()


def embed(
    vision_tower: Annotated[
        str,
        typer.Option("--vision-tower", help="A name as in a training recipe, or the folder of a run."),
    ],
    out: Annotated[Path, typer.Option("--out", help="New Parquet file with id and embedding.")],
    mixture: Annotated[str | None, typer.Argument(help="A mixture folder or a view.")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="Instead of a mixture: the questions of this benchmark, a name or a YAML file, NAME:SPLIT for another "
            "split.",
            autocompletion=benchmark_names,
        ),
    ] = None,
    data: EvalDataOpt = None,
    images: EvalImagesOpt = None,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 32,
    allow_code: AllowCodeOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Embed a mixture's images, or those of a benchmark's questions, with a vision tower, for
    `vlmix subsample --by clusters` and `vlmix overlaps --embeddings`."""
    if (mixture is None) == (benchmark is None):
        raise typer.BadParameter("name a mixture or a --benchmark, one of them")
    from vlmix.train.evaluate.embed import embed as run
    from vlmix.train.evaluate.embed import embed_questions

    if mixture is not None:
        with show.progress() as progress:
            rows = run(mixture, vision_tower, out, batch, progress)
        show.done(f"{out}: {rows:,} embeddings", {"out": str(out), "rows": rows}, as_json)
        return
    asked = evaluation_set(benchmark or "", data, images, allow_code)
    with show.progress() as progress:
        found = embed_questions(asked, vision_tower, out, batch, progress)
    left = ((found.not_found, "pictures that were not found"), (found.unreadable, "pictures that do not decode"))
    for count, why in left:
        if count:
            show.note(f"{count:,} questions have {why}, and no embedding")
    show.done(f"{out}: {found.rows:,} embeddings", {"out": str(out), **vars(found)}, as_json)


def _backend(nproc: int, allow_code: bool = False) -> "Backend":
    from vlmix.builders import benchmark_named
    from vlmix.train.sweep.sweep import Backend

    return Backend(
        build=_build,
        train=lambda recipe: _train(recipe, nproc, allow_code),
        evaluate=lambda model, tasks, out: _evaluate(model, tasks, out, nproc, allow_code),
        recipe=_plain,
        benchmark=lambda name: benchmark_named(name, allow_code),
    )


def _build(wanted: "Build", changes: dict[str, Any], out: Path) -> None:
    import json

    from vlmix.builders import benchmark_named, known_sources
    from vlmix.builders.layout import picture_id
    from vlmix.mixture.build.build import build
    from vlmix.mixture.build.recipe import load

    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    recipe = load(recipes.find(recipes.DATA, wanted.recipe), known_sources(), overrides)
    build(
        recipe,
        known_sources(),
        Path(wanted.raw),
        out,
        images=[Path(root) for root in wanted.images],
        benchmark=benchmark_named,
        picture_id=picture_id,
    )


def _train(recipe: "Recipe", nproc: int, allow_code: bool) -> int:
    if nproc == 1:
        from vlmix.builders import benchmark_named
        from vlmix.train.run import train

        return train(recipe, benchmark=lambda name: benchmark_named(name, allow_code))
    import yaml

    file = Path(recipe.out).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe.resolved(), sort_keys=False))
    launch(nproc, ["train", str(file), *(["--allow-code"] if allow_code else [])])
    return 0


def _evaluate(model: str, tasks: "list[Task]", out: Path, nproc: int, allow_code: bool) -> "list[Report | Unscored]":
    from vlmix.train.evaluate.evaluate import evaluate

    if nproc > 1:  # the answers, by several processes for each benchmark; then scored here
        for task in tasks:
            own = task.benchmark.own
            in_processes(
                nproc,
                [task.benchmark.name if own is None else str(own.recipe)],
                model,
                out,
                task.data,
                task.images,
                task.split,
                task.batch_size,
                task.max_new_tokens,
                task.limit,
                {"--allow-code": allow_code, "--quiet": True},
            )
    return evaluate(model, tasks, out)


def _plain(name: str) -> Any:
    from vlmix.mixture.io import strict_yaml as strict

    return strict.load(recipes.find(recipes.TRAIN, name))


def _facts(parsed: "Sweep") -> dict[str, Any]:
    from vlmix.mixture.version import VERSION
    from vlmix.train.sweep.recipe import adds_random, choices, described

    every = {choice.name: described(choice, _bare) for choice in choices(parsed)}
    selections = {name: text for name, text in every.items() if text != f"by: {name}"}
    return {
        "training recipe": Path(parsed.recipe).stem,
        "overrides": ", ".join(f"{key}={_bare(value)}" for key, value in parsed.overrides.items()) or "none",
        "mixture": Path(parsed.mixture or (parsed.build.recipe if parsed.build else "")).stem,
        "seeds": ", ".join(str(seed) for seed in parsed.seeds),
        **({"selections": selections} if selections else {}),
        **({"control": "random, which is added where a sweep leaves it out"} if adds_random(parsed) else {}),
        "subsets are trained for": f"the same number of {parsed.budget}",
        "benchmarks": ", ".join(
            f"{name} (the first {exam.limit:,} questions)" if exam.limit else name
            for name, exam in parsed.evaluate.items()
        ),
        **({"overlaps": Path(parsed.overlaps).name} if parsed.overlaps else {}),
        "reported by": f"vlmix {VERSION}",
    }


def _bare(value: Any) -> Any:
    """A value without the folders of a path, which belong to one machine."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _end_with_parent() -> None:
    """Linux: a worker ends when the process that started it does, however that ends."""
    if sys.platform == "linux":
        import ctypes

        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _share(arguments: list[str], workers: int, nproc: int, look: Callable[[], None]) -> None:
    """Let processes of their own do the runs, each with its share of cores and GPUs."""
    import torch

    gpus = torch.cuda.device_count()
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    command = [sys.executable, "-P", "-m", "vlmix.cli.main", "sweep", *arguments]
    started: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        for number in range(workers):
            mine = {"VLMIX_SWEEP_WORKER": str(number), "OMP_NUM_THREADS": threads}
            if gpus:
                mine["CUDA_VISIBLE_DEVICES"] = ",".join(str((number * nproc + i) % gpus) for i in range(nproc))
            started.append(subprocess.Popen(command, env={**os.environ, **mine}))
        while any(process.poll() is None for process in started):
            if any(process.poll() for process in started):
                break
            look()
            time.sleep(0.2)
        if failed := [process.returncode for process in started if process.poll()]:
            raise typer.Exit(failed[0] if failed[0] > 0 else 128 - failed[0])
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            process.wait()
        signal.signal(signal.SIGTERM, before)
