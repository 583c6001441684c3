"""From the candidates of all sources to the samples of the mixture: present images, filters, exact counts, order."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.mixture.build.extract import CANDIDATES, CandidateFiles, arrow_file, read_rows
from vlmix.mixture.build.recipe import Recipe
from vlmix.mixture.build.source_columns import one_type
from vlmix.mixture.dataset.schema import Reject, filled, source_columns
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.filters import matching
from vlmix.mixture.keyed import HashOrder, Indices, Ranks, apportion, choose, exact_share, prefixes, repeats

Mask: TypeAlias = NDArray[np.bool_]
_FILTER_COLUMNS = ["id", "source", "image", "width", "height", "num_images", "num_rounds", "num_words"]


class Candidates:
    """The candidates of all entries, in recipe order, as columns: position i in a column is candidate i. Texts stay in
    their mapped files. Nothing in it changes; which candidates have an image, and a usable one, is said to `pick`."""

    def __init__(self, recipe: Recipe, paths: Mapping[str, Sequence[tuple[Path, int]]]) -> None:
        """`paths` are the parts of each entry: the file of its candidates, and how many containers it names."""
        self.recipe = recipe
        self.names = list(recipe.sources)
        self.parts = [path for name in self.names for path, _ in paths[name]]
        tables = {name: [read_rows(path) for path, _ in paths[name]] for name in self.names}
        every = [table for name in self.names for table in tables[name]]
        self.schema = pa.schema(_source_columns(tables))
        """The columns that the sources add, for the index."""
        self.own = {name: _own(tables[name]) for name in self.names}
        self._tables = tables
        self.table = pa.concat_tables([table.select(CANDIDATES.names) for table in every])
        self._part_starts = np.cumsum([0, *map(len, every)])
        sizes = [sum(map(len, tables[name])) for name in self.names]
        self.starts = dict(zip(self.names, np.cumsum([0, *sizes[:-1]]).tolist()))
        self.sizes = dict(zip(self.names, sizes))
        self.ids: pa.ChunkedArray = self.table["id"]
        before = [first for name in self.names for first in _sums([count for _, count in paths[name]])]
        self.containers = self._renumbered(before)
        """[N] number of the container, among those of its entry, that holds the images; -1: they are files."""
        self.datasets, self.sources = _encoded(self.table["source"])
        """The datasets by name, and [N] the number of each candidate's."""
        self._keys = [arrow_file(CandidateFiles(path).keys) for path in self.parts]
        self.ranks = Ranks(self.ids, self._key("rank"))
        self.boxed: Mask = self._key("boxed")
        """[N] whether a candidate has boxes."""
        self.image_paths = _flattened([self.table["images"]])
        """[M] the paths of all images, one candidate's after the other's."""
        self.image_bounds = np.append(0, np.cumsum(self.column("num_images"), dtype=np.int64))
        """[N + 1] where the images of a candidate begin among them, and those of the last one end."""
        self.repeated = self._repeated()
        """Positions (ascending) of candidates whose id an earlier one of their entry has."""
        self.wanted = self._where()
        self.wanted[self.repeated] = False

    def __len__(self) -> int:
        return len(self.ids)

    def orders(self) -> HashOrder:
        """[N] the hash by which a shuffled mixture is ordered, read anew."""
        return self._key("order")

    def image_hashes(self) -> HashOrder:
        """[M] a hash of the path of each image, read anew."""
        return np.asarray(_flattened([table["images"] for table in self._keys]).to_numpy())

    def _key(self, name: str) -> NDArray[Any]:
        return np.concatenate([table[name].to_numpy() for table in self._keys])

    def column(self, name: str) -> NDArray[Any]:
        """[N] a column of numbers."""
        return np.asarray(self.table[name].to_numpy())

    def entries(self, positions: Indices) -> Indices:
        """[n] the number of each candidate's entry."""
        return np.searchsorted(list(self.starts.values()), positions, side="right") - 1

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        """([n] number of each candidate's part, [n] its row there)."""
        parts = np.searchsorted(self._part_starts[1:], positions, side="right")
        return parts, positions - self._part_starts[parts]

    def images(self, position: int) -> list[str]:
        """The paths of a candidate's images."""
        return [str(path) for path in self.table["images"][position].as_py()]

    def image_numbers(self, positions: Indices) -> tuple[Indices, Indices]:
        """([m] the numbers of these candidates' images among all, [n] how many each has)."""
        firsts = self.image_bounds[positions]
        counts = self.image_bounds[positions + 1] - firsts
        return np.repeat(firsts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum()), counts

    def _renumbered(self, before: Sequence[int]) -> NDArray[np.int32]:
        """The column `container`, which counts those of a part, of which `before` are those of its entry's earlier
        parts."""
        numbers = self.column("container").copy()
        for first, start, end in zip(before, self._part_starts, self._part_starts[1:]):
            mine = numbers[start:end]
            mine[mine >= 0] += first
        return numbers

    def members(self, name: str) -> Indices:
        """Positions of one entry's candidates that pass its `where`."""
        start = self.starts[name]
        return np.asarray(np.flatnonzero(self.wanted[start : start + self.sizes[name]]) + start, dtype=np.int64)

    def reject(self, position: int, number: int, reason: str, detail: str) -> Reject:
        """A reject because of the image `number` of a candidate, which `detail` names if it has several."""
        images = self.images(position)
        if len(images) > 1:
            detail = f"{images[number]}: {detail}"
        source = self.datasets[self.sources[position]]
        return Reject(source=source, id=str(self.ids[position]), image=images[number], reason=reason, detail=detail)

    def _repeated(self) -> Indices:
        found = []
        for name in self.names:
            members = np.arange(self.starts[name], self.starts[name] + self.sizes[name])
            found += [again for _, again in self._twins(members)]
        return np.array(sorted(found), dtype=np.int64)

    def _twins(self, members: Indices) -> Iterator[tuple[int, int]]:
        """(first, another) of candidates of one id, among `members` (ascending)."""
        hashes = self.ranks.hashes[members]
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        before, seen = -2, dict[str, int]()
        for at in same.tolist():
            if at != before + 1:
                seen = {str(self.ids[int(members[order[at]])]): int(members[order[at]])}
            before, position = at, int(members[order[at + 1]])
            if (first := seen.setdefault(str(self.ids[position]), position)) != position:
                yield first, position

    def _where(self) -> NDArray[np.bool_]:
        wanted = np.ones(len(self), dtype=np.bool_)
        for name, entry in self.recipe.sources.items():
            if entry.where is None:
                continue
            start, size = self.starts[name], self.sizes[name]
            own = [field for field in self.schema if field.name in self.own[name]]
            schema = pa.schema([*map(CANDIDATES.field, _FILTER_COLUMNS), *own])
            frame = pl.from_arrow(pa.concat_tables([filled(table, schema) for table in self._tables[name]]))
            assert isinstance(frame, pl.DataFrame)
            wanted[start : start + size] = matching(frame, entry.where, f"sources.{name}: where")
        return wanted

    def labels(self) -> list[str]:
        """The datasets that the recipe's filters let through, in the order of their first conversation."""
        return list(dict.fromkeys(label for name in self.names for label in self._labels(name)))

    def _labels(self, name: str) -> list[str]:
        return list(self._strata(self.members(name)))

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
            dropped = ", are dropped as overlaps" if self.recipe.drops else ""
            raise VlmixError(
                f"sources.{name}: take {count} asks for more than the {len(members)} conversations there are"
                + (f" ({lost} of {self.sizes[name]} have no usable image{dropped} or fail `where`)" if lost else "")
                + "; lower `take`, add `repeat` to see them more often, or accept it with `allow_fewer: true`"
            )
        if not count:
            raise VlmixError(f"sources.{name}: ratio {entry.ratio} of {count_offered} conversations is none; raise it")
        return np.sort(self.ranks.order(members)[:count])

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
        return self.by_dataset(self.sources[positions], positions)

    def by_dataset(self, sources: NDArray[np.integer], positions: Indices) -> dict[str, Indices]:
        """`positions` by the dataset [n] that each is of, datasets in the order of their first one."""
        found, first = np.unique(sources, return_index=True)
        return {self.datasets[number]: positions[sources == number] for number in found[np.argsort(first)].tolist()}

    def epoch_counts(self, picked: Indices) -> NDArray[np.int32]:
        """[len(picked)] int32: how often each sample is seen in an epoch (`repeat`)."""
        counts = np.ones(len(picked), dtype=np.int32)
        for name, entry in self.recipe.sources.items():
            if entry.repeat != 1:
                start = self.starts[name]
                inside = (picked >= start) & (picked < start + self.sizes[name])
                counts[inside] = repeats(taken(self.ids, picked[inside]), entry.repeat, self.recipe.seed)
        return counts

    def check_unique(self, picked: Indices) -> None:
        """Raises VlmixError if two entries hold the same conversations: under the same id, or under the ids that two
        builders of one dataset give (the official JSON holds VQAv2 too)."""
        builders: dict[str, str] = {}
        for name in self.names:
            builder = self.recipe.sources[name].builder
            for label in self._labels(name):
                if builders.setdefault(label, builder) != builder:
                    raise VlmixError(
                        f"sources.{name}: {label} comes from the builders {builders[label]} and {builder}, so its "
                        "conversations would be seen twice; drop one, or narrow a collection with `only`"
                    )
        twins = list(self._twins(picked))
        if twins:
            first, again = min(twins, key=lambda pair: pair[1])
            one, two = (self.names[entry] for entry in self.entries(np.array([first, again])))
            raise VlmixError(
                f"sources {one!r} and {two!r} both hold {self.ids[again]}; make them disjoint (options "
                "such as `only`, or `where`), or keep one with `repeat`"
            )


def taken(column: pa.ChunkedArray, positions: Indices) -> pa.ChunkedArray:
    """Some values of a column, `positions` ascending. Arrow's own `take` copies a column of many pieces whole."""
    sizes = [len(chunk) for chunk in column.chunks]
    edges = np.searchsorted(positions, np.cumsum([0, *sizes]))
    starts = accumulate(sizes, initial=0)
    pieces = [
        chunk.take(pa.array(positions[low:high] - start))
        for chunk, start, low, high in zip(column.chunks, starts, edges, edges[1:])
        if low < high
    ]
    return pa.chunked_array(pieces, column.type)


def _sums(counts: Sequence[int]) -> list[int]:
    """The sum of those before each."""
    return list(accumulate(counts[:-1], initial=0))


def _encoded(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int32]]:
    """The distinct values of a column in the order of their first occurrence, and the number of each value's."""
    encoded = pc.dictionary_encode(column).unify_dictionaries()
    names = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
    return names, np.concatenate([np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in encoded.chunks)])


def _flattened(columns: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    type = columns[0].type.value_type
    return pa.chunked_array([chunk.flatten() for column in columns for chunk in column.chunks], type)


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
