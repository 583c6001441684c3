"""From the candidates of all sources to the samples of the mixture: present images, filters, exact counts, order."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vlmix.mixture.build.recipe import Recipe
from vlmix.mixture.build.source_columns import one_type
from vlmix.mixture.dataset.schema import Reject, source_columns
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.filters import matching
from vlmix.mixture.keyed import Indices, apportion, choose, exact_share, keyed_order, prefixes, ranked, repeats

Mask: TypeAlias = NDArray[np.bool_]
_FILTER_COLUMNS = ["id", "source", "image", "width", "height", "num_images", "num_rounds", "num_words"]


class Candidates:
    """The candidates of all entries, in recipe order, as columns: position i in a column is candidate i. Nothing in
    it changes; which candidates have an image, and a usable one, is said to `pick`."""

    def __init__(self, recipe: Recipe, tables: Mapping[str, Sequence[pa.Table]]) -> None:
        self.recipe = recipe
        self.names = list(recipe.sources)
        self.schema = pa.schema(_source_columns(tables))
        """The columns that the sources add, for the index."""
        self.own = {name: _own(tables[name]) for name in self.names}
        filled = [_filled(table, self.schema) for name in self.names for table in tables[name]]
        self.table = pa.concat_tables(filled)
        sizes = [sum(table.num_rows for table in tables[name]) for name in self.names]
        self.starts = dict(zip(self.names, np.cumsum([0, *sizes[:-1]]).tolist()))
        self.sizes = dict(zip(self.names, sizes))
        self.ids: list[str] = self.table["id"].to_pylist()
        self.images: list[list[str]] = self.table["images"].to_pylist()
        self.containers = self.table["container"].to_numpy()
        """[N] number of the container, among those of its entry, that holds the images; -1: they are files."""
        self.sources: list[str] = self.table["source"].to_pylist()
        self.ranks = ranked(self.ids, recipe.seed)
        self.wanted = self._where()

    def locate(self, position: int) -> tuple[int, int]:
        """(number of the entry, row in its candidates file) of a candidate."""
        starts = list(self.starts.values())
        entry = int(np.searchsorted(starts, position, side="right")) - 1
        return entry, position - starts[entry]

    def members(self, name: str) -> Indices:
        """Positions of one entry's candidates that pass its `where`."""
        start = self.starts[name]
        return np.asarray(np.flatnonzero(self.wanted[start : start + self.sizes[name]]) + start, dtype=np.int64)

    def reject(self, position: int, number: int, reason: str, detail: str) -> Reject:
        """A reject because of the image `number` of a candidate, which `detail` names if it has several."""
        images = self.images[position]
        if len(images) > 1:
            detail = f"{images[number]}: {detail}"
        return Reject(
            source=self.sources[position], id=self.ids[position], image=images[number], reason=reason, detail=detail
        )

    def _where(self) -> NDArray[np.bool_]:
        wanted = np.ones(len(self.ids), dtype=np.bool_)
        for name, entry in self.recipe.sources.items():
            if entry.where is None:
                continue
            start, size = self.starts[name], self.sizes[name]
            frame = pl.from_arrow(self.table.slice(start, size).select([*_FILTER_COLUMNS, *self.own[name]]))
            assert isinstance(frame, pl.DataFrame)
            wanted[start : start + size] = matching(frame, entry.where, f"sources.{name}: where")
        return wanted

    def labels(self) -> list[str]:
        """The datasets that the recipe's filters let through, in the order of their first conversation."""
        return list(dict.fromkeys(self.sources[i] for name in self.names for i in self.members(name).tolist()))

    def pick(self, offered: Mask, usable: Mask) -> Indices:
        """Positions (ascending) of the mixture's samples.

        `offered` [N]: candidates whose image exists, or that need none; every share is a share of these. `usable` [N]:
        those of them whose image is not known to be broken; a broken one is replaced by the next in hash order.
        Raises VlmixError where the recipe asks for more than there is.
        """
        recipe = self.recipe
        offers = np.concatenate(list(self._pools(offered, offered).values()))
        pools = self._pools(offered, usable)
        everything = np.concatenate(list(pools.values()))
        if recipe.total is None and recipe.ratio is None:
            return everything
        if recipe.total is not None and recipe.total > len(everything):
            if recipe.allow_fewer:
                return everything
            raise VlmixError(f"total {recipe.total} asks for more than the {len(everything)} conversations there are")
        if recipe.total is None:
            total = exact_share(recipe.ratio or 1, len(offers))
            if not recipe.stratify:
                return choose({"": everything}, self.ranks, min(total, len(everything)))
            shares = apportion(total, {name: len(members) for name, members in self._strata(offers).items()})
            return prefixes(self._strata(everything), self.ranks, shares)
        if not recipe.stratify:
            return choose({"": everything}, self.ranks, recipe.total)
        weights = {name: entry.weight for name, entry in recipe.sources.items() if entry.weight}
        if not weights:
            return choose(self._strata(everything), self.ranks, recipe.total)
        if missing := [name for name in recipe.sources if name not in weights]:
            raise VlmixError(f"sources.{missing[0]}: has no `weight` while others do; give every source one")
        return choose(pools, self.ranks, recipe.total, weights)

    def _pools(self, offered: Mask, usable: Mask) -> dict[str, Indices]:
        """What each entry gives. Raises one VlmixError that names all entries that ask for too much."""
        pools: dict[str, Indices] = {}
        problems = []
        for name in self.names:
            try:
                pools[name] = self._pool(name, offered, usable)
            except VlmixError as error:
                problems.append(str(error))
        if problems:
            raise VlmixError("\n".join(problems))
        return pools

    def _pool(self, name: str, offered: Mask, usable: Mask) -> Indices:
        """Positions (ascending) that an entry gives: its `take` or `ratio` of its usable members."""
        entry, members = self.recipe.sources[name], self.members(name)
        if not len(members):
            raise VlmixError(f"sources.{name}: no conversation passes where: {entry.where!r}")
        count_offered = int(offered[members].sum())
        members = members[usable[members]]
        if entry.take is None and entry.ratio is None:
            return members
        count = entry.take or exact_share(entry.ratio or 1, count_offered)
        if entry.take and count > len(members) and self.recipe.allow_fewer:
            return members
        if entry.take and count > len(members):
            lost = self.sizes[name] - len(members)
            raise VlmixError(
                f"sources.{name}: take {count} asks for more than the {len(members)} conversations there are"
                + (f" ({lost} of {self.sizes[name]} have no usable image or fail `where`)" if lost else "")
                + "; lower `take`, add `repeat` to see them more often, or accept it with `allow_fewer: true`"
            )
        if not count:
            raise VlmixError(f"sources.{name}: ratio {entry.ratio} of {count_offered} conversations is none; raise it")
        order = keyed_order([self.ids[i] for i in members.tolist()], self.recipe.seed)
        return np.sort(members[order[:count]])

    def shortfalls(self, picked: Indices) -> list[str]:
        """What `allow_fewer` accepted, in words."""
        recipe, notes = self.recipe, []
        for name, entry in recipe.sources.items():
            count = int(((picked >= self.starts[name]) & (picked < self.starts[name] + self.sizes[name])).sum())
            if recipe.allow_fewer and not (recipe.total or recipe.ratio) and count < (entry.take or 0):
                notes.append(f"sources.{name}: {count:,} of the {entry.take:,} that `take` asks for; there are no more")
        if recipe.allow_fewer and len(picked) < (recipe.total or 0):
            notes.append(f"{len(picked):,} of the {recipe.total:,} that `total` asks for; there are no more")
        return notes

    def _strata(self, positions: Indices) -> dict[str, Indices]:
        return strata([self.sources[i] for i in positions], positions)

    def epoch_counts(self, picked: Indices) -> NDArray[np.int32]:
        """[len(picked)] int32: how often each sample is seen in an epoch (`repeat`)."""
        counts = np.ones(len(picked), dtype=np.int32)
        for name, entry in self.recipe.sources.items():
            if entry.repeat != 1:
                start = self.starts[name]
                inside = (picked >= start) & (picked < start + self.sizes[name])
                counts[inside] = repeats([self.ids[i] for i in picked[inside]], entry.repeat, self.recipe.seed)
        return counts

    def check_unique(self, picked: Indices) -> None:
        """Raises VlmixError if two entries hold the same conversations: under the same id, or under the ids that two
        builders of one dataset give (the official JSON holds VQAv2 too)."""
        builders: dict[str, str] = {}
        for name in self.names:
            builder = self.recipe.sources[name].builder
            for label in dict.fromkeys(self.sources[i] for i in self.members(name).tolist()):
                if builders.setdefault(label, builder) != builder:
                    raise VlmixError(
                        f"sources.{name}: {label} comes from the builders {builders[label]} and {builder}, so its "
                        "conversations would be seen twice; drop one, or narrow a collection with `only`"
                    )
        seen: dict[str, int] = {}
        for position in picked.tolist():
            earlier = seen.setdefault(self.ids[position], position)
            if earlier != position:
                first, second = (self.names[self.locate(p)[0]] for p in (earlier, position))
                raise VlmixError(
                    f"sources {first!r} and {second!r} both hold {self.ids[position]}; make them disjoint (options "
                    "such as `only`, or `where`), or keep one with `repeat`"
                )


def _own(tables: Sequence[pa.Table]) -> list[str]:
    return list(dict.fromkeys(field.name for table in tables for field in source_columns(table.schema)))


def _source_columns(tables: Mapping[str, Sequence[pa.Table]]) -> list[pa.Field]:
    types: dict[str, list[pa.DataType]] = {}
    for name, parts in tables.items():
        for field in (field for part in parts for field in source_columns(part.schema)):
            types.setdefault(field.name, []).append(field.type)
            one_type(name, field.name, types[field.name])
    unified = {name: one_type("", name, found) for name, found in types.items()}
    return [pa.field(name, pa.string() if type == pa.null() else type) for name, type in unified.items()]


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with all columns of `schema`, null where it has none."""
    for field in schema:
        there = field.name in table.column_names
        column = table[field.name].cast(field.type) if there else pa.nulls(table.num_rows, field.type)
        table = (table.drop_columns([field.name]) if there else table).append_column(field, column)
    return table


def strata(labels: Sequence[str], positions: Indices) -> dict[str, Indices]:
    """`positions` grouped by label, labels in the order of their first occurrence."""
    groups: dict[str, list[int]] = {}
    for label, position in zip(labels, positions.tolist()):
        groups.setdefault(label, []).append(position)
    return {label: np.asarray(members, dtype=np.int64) for label, members in groups.items()}
