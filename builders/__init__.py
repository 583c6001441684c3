"""What is known by name: training sources and evaluation sets, each read from its official files.

A module of `sources` that defines `SOURCE` is a builder, one of `benchmarks` that defines `BENCHMARKS` an evaluation
set. Other distributions add theirs under the entry point groups `vlmix.builders` and `vlmix.benchmarks`.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, TypeVar

from vlmix.mixture.benchmark.benchmark import Benchmark
from vlmix.mixture.build.source import Source
from vlmix.mixture.errors import VlmixError, nearest

Kind = TypeVar("Kind", Source, Benchmark)

_FIRST = [
    "vqav2",
    "gqa",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "pope",
    "mme",
    "mmbench",
    "mmbench-cn",
    "seed",
    "llava-bench",
    "mm-vet",
]


@cache
def known_sources() -> Mapping[str, Source]:
    """All builders by name, in alphabetical order. Raises VlmixError if two claim one name."""
    found = [module.SOURCE for module in _modules("sources") if hasattr(module, "SOURCE")]
    return _by_name(sorted([*found, *_added(Source, "vlmix.builders")], key=lambda source: source.name), "builders")


@cache
def known_benchmarks() -> Mapping[str, Benchmark]:
    """All evaluation sets by name: the twelve of LLaVA-1.5's tables in their order, then the others by name."""
    found = [one for module in _modules("benchmarks") for one in getattr(module, "BENCHMARKS", ())]
    order = {name: place for place, name in enumerate(_FIRST)}
    found = sorted([*found, *_added(Benchmark, "vlmix.benchmarks")], key=lambda b: (order.get(b.name, 99), b.name))
    return _by_name(found, "benchmarks")


def benchmark_named(name: str) -> Benchmark:
    """The evaluation set of this name. Raises VlmixError that names the nearest one."""
    if name not in known_benchmarks():
        raise VlmixError(f"there is no benchmark {name!r}{nearest(name, known_benchmarks())}")
    return known_benchmarks()[name]


def _modules(folder: str) -> list[Any]:
    package = import_module(f"{__name__}.{folder}")
    return [import_module(f"{package.__name__}.{info.name}") for info in iter_modules(package.__path__)]


def _added(kind: type[Kind], group: str) -> Iterable[Kind]:
    for point in entry_points(group=group):
        loaded = point.load()
        if not isinstance(loaded, kind):
            raise VlmixError(f"entry point {point.name} ({point.value}) is not a {kind.__module__}.{kind.__name__}")
        yield loaded


def _by_name(found: Iterable[Kind], what: str) -> dict[str, Kind]:
    named: dict[str, Kind] = {}
    for one in found:
        if one.name in named:
            raise VlmixError(f"two {what} are called {one.name!r}")
        named[one.name] = one
    return named
