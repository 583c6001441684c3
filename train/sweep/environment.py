"""What a run ran on: machine, versions, date. Nothing that names the host or its user."""

import os
import platform
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from vlmix.mixture.version import VERSION


def now() -> str:
    """The date and time in UTC: `2026-11-28T19:45:02Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> str:
    """GPUs or the processor, with their number, and the system: `8 x NVIDIA H100 80GB HBM3, Linux x86_64`."""
    import torch

    gpus = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    parts = [f"{count} x {name}" for name, count in sorted(gpus.items())] or [f"{os.cpu_count()} x {_processor()}"]
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}"])


def versions() -> dict[str, str]:
    """Of what decides a score: vlmix, Python, torch and transformers."""
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {"vlmix": VERSION, "python": platform.python_version(), **libraries}


def _processor() -> str:
    """The model's name. Linux has it in a file, which says `model name` on x86 alone."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names else f"{platform.processor() or platform.machine()} CPU cores"
