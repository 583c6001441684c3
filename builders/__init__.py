"""What is known by name: training sources and evaluation sets, each read from its official files.

A module of `sources` that defines `SOURCE` is a builder, one of `benchmarks` that defines `BENCHMARKS` an evaluation
set. Other distributions add theirs under the entry point groups `vlmix.builders` and `vlmix.benchmarks`; a YAML file
makes an evaluation set, too (`own`).
"""

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from vlmix.builders.own.benchmark import read as own_benchmark
from vlmix.mixture.benchmark.benchmark import Benchmark
from vlmix.mixture.build.source import Source
from vlmix.mixture.errors import VlmixError, abridged, nearest

Kind = TypeVar("Kind", Source, Benchmark)
_log = logging.getLogger(__name__)

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
    """All builders by name, in alphabetical order."""
    found = [module.SOURCE for module in _modules("sources") if hasattr(module, "SOURCE")]
    named = _with_added(found, Source, "vlmix.builders")
    return dict(sorted(named.items()))


@cache
def known_benchmarks() -> Mapping[str, Benchmark]:
    """All evaluation sets by name: the twelve of LLaVA-1.5's tables in their order, then the others by name."""
    found = [one for module in _modules("benchmarks") for one in getattr(module, "BENCHMARKS", ())]
    order = {name: place for place, name in enumerate(_FIRST)}
    named = _with_added(found, Benchmark, "vlmix.benchmarks")
    return dict(sorted(named.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def benchmark_named(name: str, allow_code: bool = False) -> Benchmark:
    """The evaluation set of this name, or the one that a YAML file of this path defines (docs/add_a_benchmark.md);
    `allow_code` lets such a file name a function as its metric. Raises VlmixError that names the nearest one."""
    known = known_benchmarks()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise VlmixError(f"there is no benchmark {name!r}{nearest(name, known)}; or name a YAML file of your own")
    own = own_benchmark(path, allow_code)
    if own.name in known:
        raise VlmixError(f"{name}: name: {own.name} is the name of a benchmark of vlmix; take another")
    return own


def benchmarks_named(names: Iterable[str], allow_code: bool = False) -> dict[str, Benchmark]:
    """Evaluation sets by their own names, in this order. Raises VlmixError where two files give theirs one name."""
    found: dict[str, Benchmark] = {}
    for name in names:
        one = benchmark_named(name, allow_code)
        if one.name in found and one.own != found[one.name].own:
            raise VlmixError(
                f"{name}: name: another benchmark is called {one.name}, too; give one of them another name"
            )
        found[one.name] = one
    return found


def _modules(folder: str) -> list[Any]:
    package = import_module(f"{__name__}.{folder}")
    return [import_module(f"{package.__name__}.{info.name}") for info in iter_modules(package.__path__)]


def _with_added(found: Iterable[Kind], kind: type[Kind], group: str) -> dict[str, Kind]:
    """By name: `found` and what the entry points of `group` add. One that is broken is a warning, so that everything
    else works without it."""
    named = {one.name: one for one in found}
    for point in entry_points(group=group):
        try:
            loaded = point.load()
            if not isinstance(loaded, kind):
                raise TypeError(f"not a {kind.__module__}.{kind.__name__}")
            if loaded.name in named:
                raise ValueError(f"{loaded.name!r} exists already")
        except (Exception, SystemExit) as error:
            what = f"{abridged(str(error), 300)} ({type(error).__name__})"
            _log.warning("entry point %s (%s) of %s is left out: %s", point.name, point.value, group, what)
        else:
            named[loaded.name] = loaded
    return named
