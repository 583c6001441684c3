"""`vlmix train`: one process, several on this machine, or one of those that torchrun started."""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmix.cli import recipes, show
from vlmix.cli.lookup import recipe_names

if TYPE_CHECKING:
    from vlmix.train.config import Recipe

_TRAINED = {"lm": "LM", "vision_tower": "vision_tower", "connector": "connector"}


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or a name that `vlmix recipes` lists.",
            autocompletion=lambda: recipe_names(recipes.TRAIN),
        ),
    ],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="mixture=MIXTURE out=RUN optim.lr=1e-4 …")
    ] = None,
    nproc: Annotated[int, typer.Option(help="Processes on this machine, one per GPU.", min=1)] = 1,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let a benchmark's YAML file name a function as its metric.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: print what it will take, in memory and time.")
    ] = False,
    world: Annotated[int, typer.Option(help="--dry-run: processes on all machines; --nproc by default.", min=0)] = 0,
    gpu: Annotated[str, typer.Option(help="--dry-run: time on this GPU, such as A100, H100 or H200.")] = "",
    efficiency: Annotated[
        float, typer.Option(help="--dry-run: share of the GPU's peak that is reached.", min=0, max=1)
    ] = 0.0,
    sample: Annotated[
        int, typer.Option(help="--dry-run: samples whose texts are tokenized, in hash order; 0: all.", min=0)
    ] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the run's folder and its last metrics.")] = False,
) -> None:
    """Train a model on a mixture. If interrupted, run it again to resume."""
    show.without_bars()
    if not dry_run and (world or gpu or efficiency):
        raise typer.BadParameter("--world, --gpu and --efficiency are for --dry-run")
    if bool(gpu) != bool(efficiency):
        raise typer.BadParameter("--gpu and --efficiency go together: --gpu H100 --efficiency 0.35")
    if dry_run and launched():
        raise typer.BadParameter("--dry-run is one process; instead of torchrun, say --world N")
    parsed = load(recipe, changes)
    if dry_run:
        from vlmix.cli.forecast import forecast as print_forecast
        from vlmix.train.forecast import forecast

        print_forecast(forecast(parsed, world or nproc, gpu=gpu, efficiency=efficiency, sample=sample), as_json)
        return
    if nproc > 1 and not launched():
        launch(nproc, ["train", recipe, *(changes or []), *(["--allow-code"] if allow_code else [])])
    else:
        from vlmix.builders import benchmark_named
        from vlmix.train.run import train as run

        with reporting(parsed.name) as report:
            stopped = run(parsed, report, lambda name: benchmark_named(name, allow_code))
        if stopped:
            raise typer.Exit(128 + stopped)
    if not launched():
        _summary(parsed, as_json)


def export_model(
    run: Annotated[Path, typer.Argument(help="The folder of a training run.")],
    step: Annotated[int | None, typer.Option(help="The checkpoint of this step; the last one by default.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best checkpoint, by the recipe's checkpoint.best.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder of the model; RUN/exports/step-… by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a checkpoint of a run as a Hugging Face folder."""
    if best and step is not None:
        raise typer.BadParameter("--step and --best name two checkpoints; take one")
    show.without_bars()
    from vlmix.train.run import export_model as write

    written = write(run, step, best, out)
    show.done(f"wrote {written}", {"out": str(written)}, as_json)


def load(name: str, changes: list[str] | None) -> "Recipe":
    """The training recipe `name` with changes."""
    from vlmix.train.config import load as load_recipe

    recipes.check_overrides(changes, "mixture")
    return load_recipe(recipes.find(recipes.TRAIN, name), changes)


def launched() -> bool:
    """Whether this process is a rank. (RANK alone may be what a cluster numbers its machines with.)"""
    return "LOCAL_RANK" in os.environ


def launch(nproc: int, arguments: list[str]) -> None:
    """Run a command of vlmix as `nproc` ranks, by torchrun's agent, to the end. Raises typer.Exit with the status of
    the first rank that fails, or with 128 and the number of the signal."""
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Saving a large model takes longer than the half minute after which the agent would kill the ranks. (torch 2.11
    # does not know this.)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        run_id=uuid.uuid4().hex,
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "vlmix.cli.main", *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise typer.Exit(code if code > 0 else 128 - code) from error
    except SignalException as error:
        raise typer.Exit(128 + int(error.sigval)) from error


@contextmanager
def reporting(name: str):  # type: ignore[no-untyped-def]
    """Shows the events of a run: its data, a bar with the loss, and what needs attention."""
    with show.training(name) as progress:
        yield _reporter(progress)


def _reporter(progress: Callable[[dict[str, Any]], None]) -> Callable[[str, dict[str, Any]], None]:
    def report(event: str, facts: dict[str, Any]) -> None:
        if event == "data":
            show.note(
                f"{facts['mixture']}: {facts['samples']:,} samples, {facts['tokens']:,} tokens, "
                f"{facts['target_tokens']:,} of them target tokens; {facts['steps']:,} steps"
            )
            for mixture in facts.get("mixtures", []):
                _share(mixture, facts["steps"])
            for common in facts.get("common", []):
                show.note(
                    f"{' and '.join(common['names'])} have {common['samples']:,} samples in common, which are trained "
                    "on as samples of both"
                )
            if facts["skipped_samples"]:
                show.note(
                    f"{facts['skipped_samples']:,} samples are skipped: their images do not fit into batch.max_length; "
                    "the run folder's skipped.jsonl lists them"
                )
            if facts["cut_samples"]:
                show.note(f"samples longer than batch.max_length, which are cut: {facts['cut_samples']:,}")
            if facts["untrained_samples"]:
                show.note(f"samples without target tokens, of empty or cut answers: {facts['untrained_samples']:,}")
        elif event == "model":
            parts = (
                f"{_TRAINED[part]} {'/'.join(f'{_millions(n)} {what}' for what, n in counts.items() if n)}"
                for part, counts in sorted(facts.items())
            )
            show.note("; ".join(parts))
        elif event == "resumed":
            show.note(f"resumes from step {facts['step']}")
        elif event == "seen":
            show.note(
                f"{facts['samples']:,} of the {facts['of']:,} samples of {facts['mixture']} show a picture, or without "
                "one have texts, that are trained on"
            )
        elif event == "step":
            progress(facts)
        elif event == "measured":
            _measured(facts)
        elif event == "unreadable":
            show.note(f"images that did not decode: {', '.join(facts['samples'][:5])}")
        elif event == "stopped":
            show.note(f"stopped after step {facts['step']} of {facts['of']}; run the same command again to resume")
        elif event == "wandb":
            _wandb(facts)
        elif event in ("profiled", "done"):
            show.note(f"wrote {facts['out']}")

    return report


def _wandb(facts: dict[str, Any]) -> None:
    if facts["why"]:
        show.note(f"wandb: {facts['why']}; what it has not got is sent later by `wandb sync {facts['out']}`")
    else:
        show.note(f"wandb: {facts['url'] or facts['out']}")


def _share(mixture: dict[str, Any], steps: int) -> None:
    if not mixture["trained_samples"]:
        show.note(f"{mixture['name']}: none of its samples comes in {steps:,} steps; raise its weight")
        return
    share = f"weight {mixture['weight']:g}" if "weight" in mixture else f"repeat {mixture['repeat']:g}"
    show.note(
        f"{mixture['name']}: {share}, {mixture['samples']:,} samples, {mixture['trained_samples']:,} are trained on: "
        f"{mixture['epochs']:,.2f} epochs"
    )


def _measured(facts: dict[str, Any]) -> None:
    if (loss := facts.get("validation")) is not None:
        show.note(f"step {facts['step']:,}: validation loss {_within(loss, 'loss', 3)}, {loss['samples']:,} samples")
    for name, score in facts.get("evaluate", {}).items():
        show.note(f"step {facts['step']:,}: {name} {_within(score, 'score', 2)}, {score['questions']:,} questions")


def _within(facts: dict[str, Any], name: str, digits: int) -> str:
    value = f"{facts[name]:.{digits}f}"
    return value if "low" not in facts else f"{value} [{facts['low']:.{digits}f}, {facts['high']:.{digits}f}]"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.{1 if count > 1e6 else 2}f}M"


def _summary(recipe: "Recipe", as_json: bool) -> None:
    from vlmix.train.metrics import read
    from vlmix.train.run import folder_of

    folder = Path(folder_of(recipe))
    last = next(reversed(read(folder)), None)
    text = f"{folder}: finished before"
    if last:
        text = f"{folder}: step {last['step']}, loss {last['loss']:.3f}, {last['tokens_per_second']:,.0f} tokens/s"
    show.done(text, {"out": str(folder), "last": last}, as_json)
