"""Options that several commands have."""

import os
from typing import Annotated

import typer

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Those that this process may use: how many worker processes there are by default."""

WorkersOpt = Annotated[int, typer.Option("--workers", help="Processes.", min=1)]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AllowCodeOpt = Annotated[
    bool, typer.Option("--allow-code", help="Let a benchmark's YAML file name a function as its metric.")
]
