"""What is merged, and how much of each: mixtures by their places, or a recipe of them. Parsed strictly."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.io import strict_yaml as strict

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]


class Entry(Struct, frozen=True, kw_only=True):
    """How much of a mixture is merged; each key as for the sources of a data recipe."""

    take: Count | None = None
    """Exact number of samples."""
    ratio: Share | None = None
    """Exact share of the samples, halves rounded up."""
    repeat: Annotated[float, Meta(ge=1, le=1000)] = 1
    """How often an epoch goes through the mixture, times what its samples are seen already; fractions are exact."""
    weight: Positive | None = None
    """Share of the `total`, relative to the other weights; its size by default."""
    where: str | None = None
    """SQL condition over the columns of samples.parquet."""


class MergeRecipe(Struct, frozen=True, kw_only=True):
    """A parsed recipe of a merge."""

    mixtures: dict[str, Entry]
    """Place of a mixture -> how much of it, in their order."""
    name: str | None = None
    """Name of the merged mixture; by default theirs, with a plus between them."""
    seed: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    """Seed of the shares, and of a training; the first mixture's by default."""
    total: Count | None = None
    """Number of samples in all."""
    duplicates: Literal["error", "drop"] = "error"
    """What samples of one id in several mixtures are: an error, or rejects, of which the first mixture's stays."""
    prompts: Literal["mixed"] | None = None
    """Lets mixtures of several prompt styles be one."""


def typed(arguments: Sequence[str]) -> MergeRecipe:
    """The recipe that somebody types: what `load` takes, a mapping as YAML, then changes `key=value`."""
    changes = [text for text in arguments if re.match(r"[a-z]\w*(\.[^/=]*)?=", text) and not Path(text).exists()]
    named = [text for text in arguments if text not in changes]
    if len(named) == 1 and named[0].startswith("{"):
        mapping = strict.value(named[0], "merge")
        if not isinstance(mapping, dict):
            raise VlmixError(f"merge: {abridged(named[0])} is no mapping of mixtures")
        return load(mapping, changes)
    return load(named, changes)


def load(mixtures: Sequence[str | Path] | Mapping[str, Any], changes: Sequence[str] = ()) -> MergeRecipe:
    """The recipe of places, of how much of each (`{mix665k: {}, mine: {ratio: 0.1}}`), or of a YAML file, with changes
    `key=value` applied."""
    named = list(map(str, mixtures))
    if len(named) == 1 and named[0].endswith((".yaml", ".yml")) and not isinstance(mixtures, Mapping):
        return parse(strict.load(Path(named[0]), [*changes]), strict.label(Path(named[0]), [*changes]))
    for place in named:
        if named.count(place) > 1:
            raise VlmixError(f"merge: {place} is named twice; name it once, with `{{{place}: {{repeat: 2}}}}`")
    data = {"mixtures": dict(mixtures) if isinstance(mixtures, Mapping) else {place: {} for place in named}}
    for change in changes:
        strict.override(data, change)
    return parse(data, "merge")


def parse(data: Any, where: str = "merge") -> MergeRecipe:
    """A recipe from plain data, where a number for a mixture is its `weight`. Every error names the key."""
    if not isinstance(data, dict):
        raise VlmixError(f"{where}: a recipe is a mapping with `mixtures`, this is {type(data).__name__}")
    strict.check_keys(data, MergeRecipe, where)
    mixtures = data.get("mixtures")
    if not isinstance(mixtures, Mapping) or not mixtures:
        raise VlmixError(f"{where}: `mixtures` must map places of mixtures to how much of each, `{{}}` for all of it")
    entries = {str(place): _entry(entry, f"{where}: {abridged(str(place))}") for place, entry in mixtures.items()}
    recipe: MergeRecipe = strict.convert({**data, "mixtures": entries}, MergeRecipe, where)
    if len(entries) < 2:
        raise VlmixError(f"{where}: name at least two mixtures; `vlmix subsample` takes a part of one")
    weighted = [place for place, entry in recipe.mixtures.items() if entry.weight is not None]
    if weighted and recipe.total is None:
        raise VlmixError(
            f"{where}: {weighted[0]}: `weight` needs total=N, how many samples there are in all; for one mixture to be "
            "seen more often than another give {repeat: N}, and for training on shares without merging "
            "`mixture={a: 0.8, b: 0.2}` in a training recipe"
        )
    for place, entry in recipe.mixtures.items():
        if entry.take and entry.ratio:
            raise VlmixError(f"{where}: {place}: `take` and `ratio` exclude each other")
        if weighted and entry.weight is None:
            raise VlmixError(f"{where}: {place}: has no `weight` while others do; give every mixture one")
    return recipe


def _entry(data: Any, where: str) -> Entry:
    if isinstance(data, int | float) and not isinstance(data, bool):
        data = {"weight": data}
    if not isinstance(data, Mapping | None):
        raise VlmixError(f"{where}: expected a weight or a mapping such as {{ratio: 0.5}}, got {abridged(repr(data))}")
    plain = dict(data or {})
    strict.check_keys(plain, Entry, where)
    entry: Entry = strict.convert(plain, Entry, where)
    return entry
