"""What the measurements share: contenders in processes of their own, the machine's facts, and a table.

A script is its own worker: called with `--contender NAME` it runs that contender alone and prints what it found as one
JSON line. Modules are imported inside the contenders, so that each process holds only what its contender needs.
"""

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MB = 1_000_000
_POLL = 0.01  # seconds between two looks at a contender's memory

Facts = dict[str, Any]
"""What a contender reports: `seconds`, `cpu`, and whatever else its script shows."""
Contender = Callable[[argparse.Namespace], Facts]


@dataclass
class Measured:
    """One contender over all its runs.

    `seconds` is the best run, `worst` the slowest, `cpu` the least processor time of a run, which a busy machine
    disturbs less. `peak` is the largest resident set (`ru_maxrss`), which counts
    pages of mapped input files although the kernel may drop them at any time. `anon` is the largest `RssAnon` seen,
    the memory that had to be there; None where /proc does not say. Both are bytes, whole process, and the smallest
    over the runs.
    """

    seconds: float = float("inf")
    worst: float = 0.0
    cpu: float = float("inf")
    peak: int = sys.maxsize
    anon: int | None = None
    facts: Facts = field(default_factory=dict)

    def add(self, facts: Facts, peak: int, anon: int | None) -> None:
        if facts["seconds"] < self.seconds:
            self.seconds, self.facts = facts["seconds"], facts
        self.cpu = min(self.cpu, facts["cpu"])
        self.worst = max(self.worst, facts["seconds"])
        self.peak = min(self.peak, peak)
        if anon is not None:
            self.anon = anon if self.anon is None else min(self.anon, anon)


def parser(description: str | None, repeat: int) -> argparse.ArgumentParser:
    """The arguments that every measurement takes."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--scale", type=float, default=1.0, help="share of the true size (default 1.0)")
    made.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    made.add_argument("--repeat", type=int, default=repeat, help=f"runs of each contender (default {repeat})")
    made.add_argument("--contender", help=argparse.SUPPRESS)
    return made


def perform(args: argparse.Namespace, contenders: Mapping[str, Contender]) -> bool:
    """In a contender's process: run it, print its facts, and return True."""
    if args.contender is None:
        return False
    print(json.dumps(contenders[args.contender](args)), flush=True)
    return True


@contextmanager
def work_folder(args: argparse.Namespace, parent: Path | None = None) -> Iterator[Path]:
    """A folder below `--work` (else `parent`, else the system's temporary one) that is gone at the end."""
    parent = args.work or parent
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vlmix-perf-", dir=parent) as folder:
        yield Path(folder)


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def facts(self, **more: Any) -> Facts:
        """`seconds` and `cpu` until now, and `more`."""
        return {"seconds": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu, **more}


def warm_arrow() -> None:
    """pyarrow imports pandas, where that is installed, when it first converts a list; no import is to be timed."""
    import pyarrow as pa

    pa.array([0])


def run(name: str, work: Path, *options: str) -> tuple[Facts, int, int | None]:
    """Contender `name` of the running script in a process of its own: (facts, peak bytes, peak anonymous bytes)."""
    return execute([sys.executable, sys.argv[0], "--contender", name, "--work", str(work), *options])


def execute(command: Sequence[str], *, facts: bool = True) -> tuple[Facts, int, int | None]:
    """Run `command` and watch its memory. With `facts` its last line is the JSON of a contender, else only its wall
    time is taken, process start included. Raises SystemExit if it fails."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output)
        anon, done, status, usage = None, 0, 0, None
        while not done:
            anon = _anonymous(process.pid, anon)
            time.sleep(_POLL if facts else _POLL / 10)
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        output.seek(0)
        assert usage is not None
        timed = {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime}
        found = json.loads(output.read().splitlines()[-1]) if facts else timed
    return found, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), anon


def _anonymous(pid: int, seen: int | None) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return seen
    for line in text.splitlines():
        if line.startswith("RssAnon:"):
            return max(seen or 0, 1024 * int(line.split()[1]))
    return seen


def watched(command: Sequence[str]) -> Facts:
    """Run `command` and watch it with all its descendants: `seconds`, `cpu`, the largest sums of `pss` (shared pages
    counted once, mapped files included) and of `anon` (its part that has to be there), in bytes; and its `output`.
    Raises SystemExit if it fails."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output)
        most, done, status, usage = {"Pss:": 0, "Pss_Anon:": 0}, 0, 0, None
        while not done:
            sums = _tree_memory(process.pid)
            most = {name: max(most[name], sums[name]) for name in most}
            time.sleep(10 * _POLL)
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        output.seek(0)
        assert usage is not None
        cpu = usage.ru_utime + usage.ru_stime
        return {
            "seconds": seconds,
            "cpu": cpu,
            "pss": most["Pss:"],
            "anon": most["Pss_Anon:"],
            "output": output.read(),
        }


def _tree_memory(root: int) -> dict[str, int]:
    """Bytes of `Pss:` and `Pss_Anon:` of a process and its descendants; processes that end meanwhile do not count."""
    sums, waiting = {"Pss:": 0, "Pss_Anon:": 0}, [root]
    while waiting:
        pid = waiting.pop()
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                name, size, *_ = line.split()
                if name in sums:
                    sums[name] += 1024 * int(size)
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return sums


def alternate(
    names: Sequence[str], repeat: int, measure: Callable[[str], tuple[Facts, int, int | None]]
) -> dict[str, Measured]:
    """Every contender `repeat` times, alternating, so that a change in the machine's load meets them all."""
    measured = {name: Measured() for name in names}
    for turn in range(repeat):
        for name in names:
            print(f"run {turn + 1} of {repeat}: {name}", file=sys.stderr, flush=True)
            measured[name].add(*measure(name))
    return measured


def machine(*packages: str) -> str:
    """One line: processor, cores, load, Python and the versions of `packages`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [_processor(), f"{cores} cores", f"load {os.getloadavg()[0]:.1f}", f"Python {platform.python_version()}"]
    for name in packages:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} absent")
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        ).rstrip()
        for line in lines
    )


def spread(found: Measured) -> list[str]:
    """The cells under `TIMES`."""
    return [f"{found.seconds:.2f} .. {found.worst:.2f}", f"{found.cpu:.2f}"]


TIMES = ("seconds", "cpu")


def megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / MB:,.0f} MB"


def photographs(count: int, rng: Any) -> list[bytes]:
    """JPEGs of 640x480 as large and as hard to decode as photographs, generated by numpy's generator `rng`."""
    import numpy as np
    from PIL import Image

    encoded = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((640, 480), 3)
        noisy = np.asarray(coarse).astype(int) + rng.integers(-14, 15, (480, 640, 1))
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
        encoded.append(out.getvalue())
    return encoded
