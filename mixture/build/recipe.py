"""The recipe: which sources, how much of each, rendered and ordered how. Parsed strictly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from vlmix.mixture.build.source import Options, Source
from vlmix.mixture.errors import VlmixError, abridged, nearest
from vlmix.mixture.io import strict_yaml as strict
from vlmix.mixture.record import MAX_IMAGES
from vlmix.mixture.render import StyleName

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]


class Entry(Struct, frozen=True, kw_only=True):
    """One source of a recipe. The builder's own options stand beside these keys in the YAML."""

    builder: str
    """Name of the builder; the entry's own name by default."""
    take: Count | None = None
    """Exact number of conversations."""
    ratio: Share | None = None
    """Exact share of the conversations, halves rounded up."""
    repeat: Annotated[float, Meta(ge=1, le=1000)] = 1
    """How often each conversation is seen in an epoch, on average; fractions are exact."""
    weight: Positive | None = None
    """Share of the mixture's `total`, relative to the other weights; its size by default."""
    where: str | None = None
    """SQL condition over sample columns: `num_rounds <= 10 AND source = 'vqav2'`."""
    license: str | None = None
    """License of the entry's own samples on the card and in the manifest; by default the builder's."""
    homepage: str | None = None
    """Home page of the entry's own samples; by default the builder's."""
    options: Options


class Recipe(Struct, frozen=True, kw_only=True):
    """A parsed recipe."""

    name: str
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 0
    prompts: StyleName = "llava"
    order: Literal["shuffled", "natural"] = "shuffled"
    stratify: bool = True
    """Whether `ratio` and `total` keep the proportions of the sources."""
    ratio: Share | None = None
    total: Count | None = None
    allow_fewer: bool = False
    """Where a `take` or the `total` asks for more than there is: use all there is, instead of an error."""
    max_images: Count = MAX_IMAGES
    """Images of a conversation at most; those with more are rejected."""
    samples_per_shard: Annotated[int, Meta(ge=5)] = 5000
    sources: dict[str, Entry]

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default written out, as it stands in the manifest. Of paths outside RAW only the
        name is kept, so that the mixture's bytes do not depend on the machine."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for entry in plain["sources"].values():
            for key, value in entry["options"].items():
                if isinstance(value, str) and Path(value).is_absolute():
                    entry["options"][key] = Path(value).name
        return plain


def load(path: Path, known: Mapping[str, Source], overrides: list[str] | None = None) -> Recipe:
    """The recipe in the YAML file at `path`, with `key=value` overrides (`sources.vqav2.take=100`) applied."""
    return parse(strict.load(path, overrides), known, strict.label(path, overrides))


def parse(data: Any, known: Mapping[str, Source], where: str = "recipe") -> Recipe:
    """A recipe from plain data. Every error names the key and, for an unknown one, the nearest known."""
    if not isinstance(data, dict):
        raise VlmixError(f"{where}: a recipe is a mapping with `name` and `sources`, this is {type(data).__name__}")
    strict.check_keys(data, Recipe, where)
    sources = data.get("sources")
    if not isinstance(sources, dict) or not sources:
        raise VlmixError(f"{where}: `sources` must map at least one source to its options, as in `vqav2: {{}}`")
    entries = {str(name): _entry(str(name), entry, known, where) for name, entry in sources.items()}
    plain = {key: value for key, value in data.items() if key != "sources"}
    recipe: Recipe = strict.convert({**plain, "sources": {}}, Recipe, where)
    recipe = msgspec.structs.replace(recipe, sources=entries)
    _check_plan(recipe, known, where)
    return recipe


def _entry(name: str, data: Any, known: Mapping[str, Source], where: str) -> Entry:
    where = f"{where}: sources.{abridged(name)}"
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise VlmixError(f"{where}: expected a mapping such as `{{take: 1000}}`, got {data!r}")
    builder = data.get("builder", name)
    if not isinstance(builder, str) or builder not in known:
        raise VlmixError(f"{where}: there is no builder {abridged(repr(builder))}{nearest(str(builder), known)}")
    if not name or "/" in name:
        raise VlmixError(f"{where}: a source's name may not be empty or hold a slash")
    source = known[builder]
    taken = {label for other in known.values() if other is not source for label in (other.name, *other.parts)}
    if source.own and name in taken | source.parts.keys():
        raise VlmixError(
            f"{where}: {name} is the name of another dataset, whose license this file would get; rename it"
        )
    own = set(Entry.__struct_fields__) - {"options"}
    options = source.options.__struct_fields__
    for key in data:
        if key not in own and key not in options:
            raise VlmixError(f"{where}: unknown key {abridged(str(key))!r}{nearest(str(key), [*own, *options])}")
    parsed = strict.convert({k: v for k, v in data.items() if k in options}, source.options, where)
    plain = {k: v for k, v in data.items() if k in own}
    entry: Entry = strict.convert({**plain, "builder": builder, "options": {}}, Entry, where)
    return msgspec.structs.replace(entry, options=parsed)


def _check_plan(recipe: Recipe, known: Mapping[str, Source], where: str) -> None:
    leaves: dict[Any, str] = {}
    homes: dict[str, tuple[str | None, str | None]] = {}
    for name, entry in recipe.sources.items():
        if entry.take and entry.ratio:
            raise VlmixError(f"{where}: sources.{name}: `take` and `ratio` exclude each other")
        if entry.weight and not recipe.total:
            raise VlmixError(f"{where}: sources.{name}: `weight` needs the mixture's `total`")
        said = entry.license, entry.homepage
        if not known[entry.builder].own and homes.setdefault(entry.builder, said) != said:
            raise VlmixError(
                f"{where}: sources.{name}: entries of the builder {entry.builder} share one source; give each the same "
                "`license` and `homepage`"
            )
        leaf = (entry.builder, repr(entry.options))
        if leaf in leaves:
            raise VlmixError(
                f"{where}: sources.{leaves[leaf]} and sources.{name} read the same files and would give every "
                f"conversation twice; use one of them, with `repeat` if it should weigh more"
            )
        leaves[leaf] = name
    if recipe.total and recipe.ratio:
        raise VlmixError(f"{where}: `total` and `ratio` exclude each other")
    if not recipe.stratify and not (recipe.total or recipe.ratio):
        raise VlmixError(f"{where}: `stratify: false` needs the mixture's `ratio` or `total`")
    if not recipe.stratify and any(entry.weight for entry in recipe.sources.values()):
        raise VlmixError(f"{where}: `weight` needs `stratify: true`")
