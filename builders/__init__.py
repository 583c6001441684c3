"""One module per source: official files in, conversations out.

A module that defines `SOURCE` is a builder. Other distributions add theirs under the entry point group
`vlmix.builders`, each pointing at such a `Source`.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from mixture.errors import VlmixError
from mixture.source import Source


@cache
def known() -> Mapping[str, Source]:
    """All builders by name, in alphabetical order. Raises VlmixError if two claim one name."""
    modules = [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__) if not info.ispkg]
    found = [module.SOURCE for module in modules if hasattr(module, "SOURCE")]
    for point in entry_points(group="vlmix.builders"):
        source = point.load()
        if not isinstance(source, Source):
            raise VlmixError(f"entry point {point.name} ({point.value}) is not a mixture.source.Source")
        found.append(source)
    sources: dict[str, Source] = {}
    for source in sorted(found, key=lambda source: source.name):
        if source.name in sources:
            raise VlmixError(f"two builders are called {source.name!r}")
        sources[source.name] = source
    return sources
