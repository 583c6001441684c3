"""Which samples of each mixture are merged, how often they are seen, and the shards that they make.

Samples are rows of the index of the folder that holds the shards (a view's root); what is known of them are columns.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vlmix.mixture.blend import names_of
from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.manifest import REJECTS_NAME, Manifest
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import MOST_REPEATS, SAMPLES, open_index, source_columns
from vlmix.mixture.dataset.shards import lead_with_images
from vlmix.mixture.dataset.view import index_of
from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.filters import matching
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.fetch import fetch_sound
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.storage import Local, Location, Remote
from vlmix.mixture.keyed import Indices, apportion, exact_share, keyed_order, ranked
from vlmix.mixture.merge.recipe import Entry, MergeRecipe

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """A mixture that is merged: what it is called, how much of it is wanted, and the folders of its index and of that
    of its root, on this machine: of a store, copies."""

    name: str
    entry: Entry
    folder: Path
    root: Path
    shards_at: Location
    """The root where it lies."""
    manifest: Manifest
    root_manifest: Manifest
    manifest_bytes: int
    manifest_sha256: str
    groups: NDArray[np.int64]
    """[S] samples of each shard of the root; of annotations, of each row group."""

    def open(self) -> Reader:
        """A reader that keeps no column for longer than it is needed."""
        return Reader(Local(self.folder), self.manifest, Local(self.root), self.root_manifest, None)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the root's index."""
        return self.open().whole_root().column(name)


class Piece(NamedTuple):
    """A shard of the merged mixture: shard `group` of the root of `part`, or none and a new one; and its root rows."""

    part: int
    group: int | None
    rows: Indices | range


def open_parts(recipe: MergeRecipe, copies: Path, progress: Progress) -> list[Part]:
    """The recipe's mixtures; what is read of those in a store, shards excepted, is copied below `copies`. Raises
    VlmixError for one that is no mixture, whose index is damaged, or that does not go with the others."""
    parts = []
    for number, (name, (place, entry)) in enumerate(zip(names_of(list(recipe.mixtures)), recipe.mixtures.items())):
        progress("checking indexes", number, len(recipe.mixtures))
        reader = Reader.open(place)
        root = _checked(reader.root, reader.root_manifest, copies / str(number) / "root")
        is_view = reader.manifest.parent is not None
        folder = _checked(reader.folder, reader.manifest, copies / str(number) / "view") if is_view else root
        data = reader.folder.join(manifests.NAME).whole()
        parts.append(
            Part(
                name=name,
                entry=entry,
                folder=folder,
                root=root,
                shards_at=reader.root,
                manifest=reader.manifest,
                root_manifest=reader.root_manifest,
                manifest_bytes=len(data),
                manifest_sha256=hashlib.sha256(data).hexdigest(),
                groups=open_index(root / manifests.SAMPLES_NAME).group_rows,
            )
        )
    progress("checking indexes", len(parts), len(parts))
    _check_alike(parts, recipe)
    return parts


def _checked(where: Location, manifest: Manifest, copies: Path) -> Path:
    """A folder with the index and the rejects of `where`: itself, or of a store `copies`. They are compared with their
    checksums: what is merged gets new ones, which would hide damage."""
    folder = where.path if isinstance(where, Local) else copies
    for name in [*manifest.index, REJECTS_NAME]:
        path = folder / name
        if isinstance(where, Remote):
            if name in manifest.checksums:
                fetch_sound(where, name, path, manifest.checksums[name])
        elif name in manifest.checksums and (not path.is_file() or sha256(path) != manifest.checksums[name]):
            raise VlmixError(
                f"{path}: missing, or its bytes differ from the manifest's checksum; `vlmix verify {folder}` lists all "
                "damage"
            )
    return folder


def _check_alike(parts: list[Part], recipe: MergeRecipe) -> None:
    first = parts[0]
    for part in parts[1:]:
        kinds = {(p.root_manifest.kind == "annotations"): p for p in (first, part)}
        if len(kinds) == 2:
            raise VlmixError(
                f"{kinds[True].name} was built with --annotations-only and {kinds[False].name} has shards; build "
                f"{kinds[True].name} with its images, or merge annotations with each other"
            )
        one, other = (p.manifest.recipe["prompts"] for p in (first, part))
        if one != other and recipe.prompts != "mixed":
            raise VlmixError(
                f"{first.name} has prompts of the style {one} and {part.name} of {other}, so a model would learn two "
                "ways to ask for one format; build one of them again with the other's `prompts`, or allow it with "
                "prompts=mixed"
            )


def schema_of(parts: Sequence[Part]) -> pa.Schema:
    """The merged index: the columns that any mixture's sources added stand in it for all. Raises VlmixError for one of
    two types."""
    added: dict[str, tuple[Part, pa.DataType]] = {}
    for part in parts:
        for field in source_columns(open_index(part.root / manifests.SAMPLES_NAME).schema_arrow):
            earlier, kind = added.setdefault(field.name, (part, field.type))
            if {kind, field.type} == {pa.int64(), pa.float64()}:
                added[field.name] = earlier, pa.float64()
            elif kind != field.type:
                raise VlmixError(
                    f"the column {field.name!r} holds {kind} in {earlier.name} and {field.type} in {part.name}; build "
                    f"one of them again with another name for it, `columns: {{NEW: {field.name}}}`"
                )
    return pa.schema([*SAMPLES, *(pa.field(name, kind) for name, (_, kind) in added.items())])


def keep(parts: Sequence[Part], recipe: MergeRecipe, seed: int) -> list[Mask]:
    """Of each part, [root rows] whether a sample is merged. Raises VlmixError for more than there is, or none."""
    pools = [_pool(part, seed) for part in parts]
    if recipe.total is not None:
        sizes = {part.name: float(part.entry.weight or len(pool)) for part, pool in zip(parts, pools)}
        shares = apportion(recipe.total, sizes)
        for number, (part, pool) in enumerate(zip(parts, pools)):
            if shares[part.name] > len(pool):
                raise VlmixError(
                    f"total {recipe.total:,}: {part.name} would give {shares[part.name]:,} samples, it has "
                    f"{len(pool):,}; lower the total or its weight"
                )
            pools[number] = _first(part, pool, shares[part.name], seed)
    kept = []
    for part, pool in zip(parts, pools):
        if not len(pool):
            raise VlmixError(f"{part.name}: no sample of it is left; raise its share, or leave it out")
        mask = np.zeros(part.root_manifest.samples, dtype=np.bool_)
        mask[part.open().rows[pool]] = True
        kept.append(mask)
    return kept


def _pool(part: Part, seed: int) -> Indices:
    """Positions (ascending) in a mixture of what its `where`, `take` and `ratio` leave."""
    entry, members = part.entry, np.arange(part.manifest.samples, dtype=np.int64)
    if entry.where is not None:
        passing = matching(index_of(part.open(), images=False), entry.where, f"{part.name}: where")
        members = members[passing]
        if not len(members):
            raise VlmixError(f"{part.name}: no sample passes where: {abridged(entry.where)!r}; loosen it")
    if entry.take is None and entry.ratio is None:
        return members
    count = entry.take or exact_share(entry.ratio or 1, len(members))
    if count > len(members):
        raise VlmixError(
            f"{part.name}: take {count:,} asks for more than the {len(members):,} samples there are; lower it, or give "
            "a `repeat` to see them more often"
        )
    return _first(part, members, count, seed)


def _first(part: Part, members: Indices, count: int, seed: int) -> Indices:
    """The positions (ascending) of the first `count` of `members` in hash order."""
    if count == len(members):
        return members
    return np.sort(ranked(part.open().column("id"), seed).order(members)[:count])


def drop_duplicates(parts: Sequence[Part], kept: list[Mask], *, drop: bool) -> pl.DataFrame:
    """Take samples whose id an earlier mixture has out of `kept`; they come back as rejects. Raises VlmixError if there
    are any and they are not to be dropped."""
    rows = [np.flatnonzero(mask) for mask in kept]
    hashes = np.concatenate([_hashes(part)[mine] for part, mine in zip(parts, rows)])
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    suspects = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
    starts = np.cumsum([0, *map(len, rows)])
    frames = []
    for number, part in enumerate(parts):
        inside = suspects[(suspects >= starts[number]) & (suspects < starts[number + 1])] - starts[number]
        mine = pa.array(rows[number][inside])
        columns = {name: pl.Series(name, part.column(name).take(mine), pl.String) for name in ("id", "source", "image")}
        frames.append(pl.DataFrame({"part": np.full(len(mine), number), "row": rows[number][inside], **columns}))
    frame = pl.concat(frames)
    twice = frame.with_columns(first=pl.col("part").first().over("id"), again=~pl.col("id").is_first_distinct())
    twice = twice.filter("again")
    names = [part.name for part in parts]
    if len(twice) and not drop:
        one, other, id = names[twice["first"][0]], names[twice["part"][0]], abridged(twice["id"][0])
        more = f" and {len(twice) - 1:,} more" if len(twice) > 1 else ""
        raise VlmixError(
            f"{one} and {other} both hold {id}{more}; leave it out of one of them with `where`, or keep the first "
            "mixture's and list the others as rejects with duplicates=drop"
        )
    for number, mask in enumerate(kept):
        mask[twice.filter(pl.col("part") == number)["row"].to_numpy()] = False
        if not mask.any():
            raise VlmixError(f"{names[number]}: all of its samples are in the mixtures before it; leave it out")
    detail = pl.lit("also in ") + pl.col("first").replace_strict(dict(enumerate(names)), return_dtype=pl.String)
    return twice.select(
        "source", "id", pl.lit(-1, pl.Int32).alias("round"), "image", reason=pl.lit("duplicate_sample"),
        detail=detail, record=pl.lit(""),
    )  # fmt: skip


def _hashes(part: Part) -> NDArray[np.uint64]:
    """[root rows] uint64: the same number for the same id, seldom for others."""
    chunks = part.column("id").chunks
    return np.concatenate([pl.Series(chunk).hash(0).to_numpy() for chunk in chunks])


def seen(part: Part, kept: Mask, seed: int) -> NDArray[np.int32]:
    """[root rows] int32: how often a sample is seen in an epoch, its mixture's own count times `repeat`.

    The sum over the kept ones is exactly `repeat` times what it was: every pass counts alone, the whole part goes to
    all, and the rest to those of the first samples in hash order.
    """
    counts: NDArray[np.int32] = part.column("repeat").to_numpy().astype(np.int32)
    if part.entry.repeat == 1:
        return counts
    rows, whole = np.flatnonzero(kept), int(part.entry.repeat)
    rows = rows[keyed_order(part.column("id").take(pa.array(rows)), seed, "repeat")]
    mine = counts[rows].astype(np.int64)
    left = exact_share(part.entry.repeat, int(mine.sum())) - whole * int(mine.sum())
    more = np.clip(left - (np.cumsum(mine) - mine), 0, mine)
    if (most := int((whole * mine + more).max())) > MOST_REPEATS:
        raise VlmixError(f"{part.name}: a sample would be seen {most:,} times per epoch, at most {MOST_REPEATS:,}")
    counts[rows] = whole * mine + more
    return counts


def pieces_of(number: int, part: Part, kept: Mask, natural: NDArray[np.int64], size: int) -> Iterator[Piece]:
    """The shards that a part gives, in its order: its own where every sample is taken, and of the samples in between
    new ones of up to `size`. A new shard begins with five image samples, if it has so many."""
    images = part.column("num_images").to_numpy() > 0

    def new(rows: Indices) -> Piece:
        return Piece(number, None, rows[lead_with_images(np.arange(len(rows)), images[rows], len(rows))])

    gathered = np.empty(0, dtype=np.int64)
    ends = np.cumsum(part.groups)
    for group, (start, end) in enumerate(zip((ends - part.groups).tolist(), ends.tolist())):
        inside = np.flatnonzero(kept[start:end]) + start
        whole = len(inside) == end - start
        if part.manifest.recipe["order"] == "natural":
            inside = inside[np.argsort(natural[inside])]  # without the images that lead the old shard
        gathered = gathered if whole else np.concatenate([gathered, inside])
        while len(gathered) >= size or (whole and len(gathered)):
            yield new(gathered[:size])
            gathered = gathered[size:]
        if whole:
            yield Piece(number, group, range(start, end))
    if len(gathered):
        yield new(gathered)


def interleaved(pieces: Sequence[Sequence[Piece]]) -> list[Piece]:
    """The shards of all parts so that any stretch has each part's share of them."""
    places = [(Fraction(2 * j + 1, len(mine)), k, j) for k, mine in enumerate(pieces) for j in range(len(mine))]
    return [pieces[k][j] for _, k, j in sorted(places)]


def natural_places(parts: Sequence[Part], kept: Sequence[Mask]) -> list[NDArray[np.int64]]:
    """Of each part, [root rows] int64: a kept sample's place in the merged natural order, which goes through the parts
    one after the other."""
    places, start = [], 0
    for part, mask in zip(parts, kept):
        natural = part.column("natural_index").to_numpy()
        order = np.flatnonzero(mask)
        order = order[np.argsort(natural[order], kind="stable")]
        mine = np.full(len(mask), -1, dtype=np.int64)
        mine[order] = np.arange(start, start + len(order))
        start += len(order)
        places.append(mine)
    return places


def resolved(recipe: MergeRecipe, parts: Sequence[Part], kept: Sequence[Mask], seed: int) -> dict[str, Any]:
    """The recipe as it stands in the manifest, with the mixtures' own recipes and no place of this machine."""
    natural = all(part.manifest.recipe["order"] == "natural" for part in parts)
    styles = {part.manifest.recipe["prompts"] for part in parts}
    return {
        "name": recipe.name or "+".join(part.manifest.name for part in parts),
        "seed": seed,
        "prompts": styles.pop() if len(styles) == 1 else "mixed",
        "order": "natural" if natural else "shuffled",
        "total": recipe.total,
        "samples_per_shard": int(parts[0].manifest.recipe["samples_per_shard"]),
        "duplicates": recipe.duplicates,
        "mixtures": {
            part.name: {
                **{name: getattr(part.entry, name) for name in Entry.__struct_fields__},
                "samples": int(mask.sum()),
                "vlmix_version": part.manifest.vlmix_version,
                "selections": part.manifest.selections,
                "recipe": part.manifest.recipe,
            }
            for part, mask in zip(parts, kept)
        },
    }
