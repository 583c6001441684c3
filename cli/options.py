"""Options that several commands have."""

import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlmix.mixture.errors import VlmixError

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Those that this process may use: how many worker processes there are by default."""

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/([^/].*)")

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
StoreOutOpt = Annotated[str, typer.Option("--out", help="New folder, or its URL in a store: s3://BUCKET/mixture.")]
WorkOpt = Annotated[
    Path | None,
    typer.Option("--work", help="With an --out in a store: folder for what is not finished (default: NAME.partial)."),
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


def local_paths(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with an error for a URL where it takes a path of this machine, which would be a strange name."""

    @wraps(command)
    def checked(**given: Any) -> None:
        for name, value in given.items():
            for each in value if isinstance(value, list) else [value]:
                found = _URL.match(str(each))
                if found and isinstance(each, str) and name in ("out", "raw", "images", "mixture"):
                    raise VlmixError(f"{each}: a URL has two slashes: {found[1]}://{found[2]}")
                if found and isinstance(each, Path):
                    url = f"{found[1]}://{found[2]}"
                    raise VlmixError(f"{url}: `{name}` is a file or folder of this machine here, not a URL")
        command(**given)

    return checked


def tasks(engine: EngineName, workers: int | None) -> int | None:
    """The `workers` of `engines.start` when the option may be left out."""
    return CORES if workers is None and engine == "local" else workers
