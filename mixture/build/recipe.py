"""The recipe: which sources, how much of each, rendered and ordered how. Parsed strictly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from vlmix.mixture.build.source import Options, Source
from vlmix.mixture.errors import VlmixError, abridged, nearest
from vlmix.mixture.io import strict_yaml as strict
from vlmix.mixture.overlaps.fingerprints import NEAR
from vlmix.mixture.record import MAX_IMAGES
from vlmix.mixture.render import StyleName

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Bits = Annotated[int, Meta(ge=0, le=96)]
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


class Dedup(Struct, frozen=True, kw_only=True):
    """What happens to samples that say the same as another of the same pictures: reported, or dropped."""

    drop: list[Literal["bytes", "near", "text", "near_text"]] = []
    """Levels (docs/overlaps.md) by which all but one are dropped: `near` has `bytes` in it, and `near_text` all others.
    What is left is reported."""
    near: Bits = NEAR
    """Bits of 256 in which the fingerprints of near pictures may differ."""
    flipped: bool = False
    """A picture is near another's mirror, too."""


class Decontaminate(Struct, frozen=True, kw_only=True):
    """What happens to samples that show or ask what an evaluation set does: reported, or dropped."""

    benchmark: str
    """A name that `vlmix benchmarks` lists, or a YAML file of one's own."""
    data: str | None = None
    """The folder of its official files, or one with a folder of its name; relative to RAW."""
    images: list[str] = []
    """Image roots in LLaVA's layout, looked into before `data`; relative to RAW."""
    split: str = ""
    drop: list[Literal["id", "bytes", "near", "text"]] = []
    """Levels (docs/overlaps.md) by which samples are dropped; by the others they are reported."""
    near: Bits = NEAR
    flipped: bool = False
    """Its pictures are looked for in a mirror, too."""


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
    dedup: Dedup | None = None
    decontaminate: list[Decontaminate] = []
    sources: dict[str, Entry]

    @property
    def compares(self) -> bool:
        """Whether samples are compared with each other or with evaluation sets."""
        return self.dedup is not None or bool(self.decontaminate)

    @property
    def drops(self) -> bool:
        """Whether samples may be dropped for that."""
        return bool(self.dedup and self.dedup.drop) or any(each.drop for each in self.decontaminate)

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default written out, as it stands in the manifest. Of paths outside RAW only the
        name is kept, so that the mixture's bytes do not depend on the machine."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for entry in plain["sources"].values():
            for key, value in entry["options"].items():
                if isinstance(value, str):
                    entry["options"][key] = _portable(value)
        if self.dedup is None:
            del plain["dedup"]
        if not self.decontaminate:
            del plain["decontaminate"]
        for each in plain.get("decontaminate", ()):
            each["data"] = each["data"] and _portable(each["data"])
            each["benchmark"] = _portable(each["benchmark"])
            each["images"] = [_portable(root) for root in each["images"]]
        return plain


def _portable(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() else path


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
    if isinstance(dedup := plain.get("dedup"), dict):
        strict.check_keys(dedup, Dedup, f"{where}: dedup")
    for each in decontaminate if isinstance(decontaminate := plain.get("decontaminate"), list) else ():
        if isinstance(each, dict):
            strict.check_keys(each, Decontaminate, f"{where}: decontaminate")
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
    seen: set[tuple[str, str]] = set()
    for each in recipe.decontaminate:
        if (each.benchmark, each.split) in seen:
            raise VlmixError(f"{where}: decontaminate: {each.benchmark} {each.split}".rstrip() + " is there twice")
        seen.add((each.benchmark, each.split))
    if recipe.total and recipe.ratio:
        raise VlmixError(f"{where}: `total` and `ratio` exclude each other")
    if not recipe.stratify and not (recipe.total or recipe.ratio):
        raise VlmixError(f"{where}: `stratify: false` needs the mixture's `ratio` or `total`")
    if not recipe.stratify and any(entry.weight for entry in recipe.sources.values()):
        raise VlmixError(f"{where}: `weight` needs `stratify: true`")
