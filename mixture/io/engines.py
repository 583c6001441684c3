"""Where tasks run. Files, bytes and order are the same whichever does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlmix.mixture.io.cluster import RayPool
from vlmix.mixture.io.pool import Pool

EngineName = Literal["local", "ray"]
"""`local`: processes of this machine; `ray`: the Ray cluster that RAY_ADDRESS names."""


def start(name: EngineName, workers: int | None, sees: Sequence[Path]) -> Pool | RayPool:
    """The engine, to be entered. `workers` are processes (None: this one alone), on Ray tasks that are handed out at a
    time (None: two for each CPU of the cluster). `sees` are files and folders that workers must find as they are here;
    the first, if there are any, is a file that lasts as long as the work."""
    return RayPool(workers, sees) if name == "ray" else Pool(1 if workers is None else workers)
