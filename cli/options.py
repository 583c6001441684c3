"""Options that several commands have."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Those that this process may use: how many worker processes there are by default."""

WorkersOpt = Annotated[int, typer.Option("--workers", help="Processes.", min=1)]
EngineName = Literal["local", "ray"]
EngineOpt = Annotated[
    EngineName,
    typer.Option("--engine", help="`local`: processes of this machine; `ray`: the Ray cluster at RAY_ADDRESS."),
]
TasksOpt = Annotated[
    int | None,
    typer.Option(
        "--workers", help="Processes (default: one per core); on Ray tasks handed out (default: two per CPU).", min=1
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AllowCodeOpt = Annotated[
    bool, typer.Option("--allow-code", help="Let a benchmark's YAML file name a function as its metric.")
]

EvalDataOpt = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder of the official files, or one with a folder per benchmark. YAML files need none."
    ),
]
EvalImagesOpt = Annotated[
    list[Path] | None, typer.Option("--images", help="Image root in LLaVA's layout, before --data. Repeatable.")
]


def tasks(engine: EngineName, workers: int | None) -> int | None:
    """The `workers` of `engines.start` when the option may be left out."""
    return CORES if workers is None and engine == "local" else workers
