"""Subsets: prefixes of the keyed rank order, or of a ranking, as a view that refers to the shards or with shards of
their own."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
from msgspec import Struct

from mixture import manifest as manifests
from mixture.assembly import assembling, merge_counts, run_shards, seal, write_index
from mixture.clusters import read_embeddings
from mixture.conditions import matching
from mixture.errors import VlmixError, nearest
from mixture.files import sha256, write_parquet
from mixture.listing import read_listing
from mixture.manifest import REJECTS_NAME, SAMPLES_NAME, Counts, Manifest, Parent
from mixture.pool import Pool, Progress, silent
from mixture.rankings import Priorities, Report, rank_clusters, rank_lengths
from mixture.reader import Mixture
from mixture.reader import open as open_mixture
from mixture.samples import SAMPLES, TEXT_COLUMNS, VIEW, columns_problem, open_index, write_rejects
from mixture.sampling import Indices, apportion, exact_share, prefixes
from mixture.select import arrange
from mixture.selection import follow, match
from mixture.shards import Row, ShardDone, store_rows
from mixture.version import VERSION

_INDEX = [name for name in SAMPLES.names if name not in TEXT_COLUMNS]


class Selection(Struct, frozen=True, kw_only=True):
    """What to keep: first `where`, then what a list in `by` names, then each source in `sources` cut to a count (int)
    or share (float), then `ratio` or `total` of the rest, stratified by source unless told otherwise. `seed` None
    takes the mixture's.

    `by` says who comes first: None, the keyed rank alone; a file (see `mixture.listing`); `"lengths"` or `"clusters"`
    (see `mixture.rankings`). A file with scores ranks by them, the highest first, or the lowest if `ascending`;
    samples without a score come last. `threshold` keeps the scores from there up, or down if `ascending`. A file
    without scores keeps the samples that it names. The scores are those in `column`, by default
    `score`. `"clusters"` reads the file `embeddings` and makes `clusters` of them, by default about the square root of
    their number.
    """

    ratio: float | None = None
    total: int | None = None
    sources: dict[str, int | float] = {}
    where: str | None = None
    stratify: bool = True
    seed: int | None = None
    by: str | None = None
    column: str | None = None
    ascending: bool = False
    threshold: float | None = None
    embeddings: str | None = None
    clusters: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A selection from a mixture: its part, the index of that (see `index_of`), the entry for the manifest, and the
    report of a selection `by` something."""

    part: Mixture
    index: pl.DataFrame
    entry: dict[str, Any]
    report: Report | None


def draw(mixture: Mixture, selection: Selection) -> Drawn:
    """Select from `mixture`; writes nothing.

    Raises VlmixError for a selection that asks for more than there is, or for nothing, and for a file that is damaged,
    of another form, or names no sample.
    """
    seed = mixture.manifest.seed if selection.seed is None else selection.seed
    index = index_of(mixture)
    _check_by(selection)
    if selection.by is None:
        kept, report = select(index, selection, seed), None
    else:
        kept, report = _select_by(mixture, index, selection, selection.by, seed)
    entry = {name: getattr(selection, name) for name in ("ratio", "total", "sources", "where", "stratify")}
    entry |= {"seed": seed, "of": mixture.manifest.name}
    if report is not None:
        said = {"by": report.by, "ascending": selection.ascending, "threshold": selection.threshold}
        if selection.embeddings is not None:
            said |= {"embeddings": Path(selection.embeddings).name, "clusters": selection.clusters}
        if selection.column is not None:
            said |= {"column": selection.column}
        entry |= {**said, **report.counts()}
    return Drawn(mixture.part(kept), index[kept], entry, report)


def _check_by(selection: Selection) -> None:
    """Raises VlmixError for options that go with another `by`, and for a ranking of which no amount is asked."""
    if selection.by in (None, "lengths", "clusters") and (selection.ascending or selection.threshold is not None):
        raise VlmixError("ascending and threshold go with a file of scores: name it with `by`")
    if selection.by in (None, "lengths", "clusters") and selection.column is not None:
        raise VlmixError("column goes with a file of scores: name it with `by`")
    if selection.by != "clusters" and (selection.embeddings is not None or selection.clusters is not None):
        raise VlmixError("embeddings and a number of clusters go with `by` clusters alone")
    if selection.by == "clusters" and selection.embeddings is None:
        raise VlmixError("clusters of what? name an embedding file: Parquet with the columns id and embedding")
    if selection.clusters is not None and selection.clusters < 1:
        raise VlmixError(f"{selection.clusters} clusters: at least 1")
    if selection.by in ("lengths", "clusters"):
        _check_amount(selection, selection.by)


def _check_amount(selection: Selection, by: str) -> None:
    if selection.ratio is None and selection.total is None and not selection.sources:
        raise VlmixError(f"by {by}: say how much to keep: a ratio, a total, or the amount of a source")


def _select_by(
    mixture: Mixture, index: pl.DataFrame, selection: Selection, by: str, seed: int
) -> tuple[Indices, Report]:
    """Row numbers (ascending) of `index` that a selection by something keeps, and what came of it."""
    offered = np.arange(len(index), dtype=np.int64)
    if selection.where is not None:
        offered = offered[matching(index, selection.where, "where")]
        if not len(offered):
            raise VlmixError("the selection keeps no sample; loosen `where`")
    frame = index[offered]
    if by == "lengths":
        ranking = rank_lengths(mixture.part(offered), frame, seed, stratify=selection.stratify)
    elif by == "clusters":
        embeddings = read_embeddings(Path(selection.embeddings or ""))
        count, stratify = selection.clusters, selection.stratify
        ranking = rank_clusters(embeddings, index, offered, seed, clusters=count, stratify=stratify)
    else:
        listing = read_listing(Path(by), selection.column)
        if listing.scored and selection.threshold is None:
            _check_amount(selection, listing.name)
        found = match(listing, mixture, seed, ascending=selection.ascending)
        ranking = follow(listing, found, offered, ascending=selection.ascending, threshold=selection.threshold)
    stays = np.flatnonzero(ranking.stays)
    if not len(stays):
        raise VlmixError(f"{Path(by).name}: no sample that is offered passes; loosen the threshold or `where`")
    plain = msgspec.structs.replace(selection, where=None)
    chosen = stays[select(frame[stays], plain, seed, ranking.priority[stays])]
    as_many = msgspec.structs.replace(plain, ratio=None, total=len(chosen))
    return offered[chosen], ranking.outcome(chosen, select(frame, as_many, seed))


def select(frame: pl.DataFrame, selection: Selection, seed: int, priority: Priorities | None = None) -> Indices:
    """Row numbers (ascending) of the samples that `selection` keeps, its `by` aside: of those that compete, the ones
    with the highest `priority` [N], equal ones in the keyed rank."""
    if selection.ratio is not None and selection.total is not None:
        raise VlmixError("ratio and total exclude each other")
    if selection.ratio is not None and not 0 < selection.ratio <= 1:
        raise VlmixError(f"ratio {selection.ratio}: it must be above 0 and at most 1")
    if selection.total is not None and selection.total < 1:
        raise VlmixError(f"total {selection.total}: at least 1")
    priority = np.zeros(len(frame)) if priority is None else priority
    kept = np.arange(len(frame), dtype=np.int64)
    if selection.where is not None:
        kept = kept[matching(frame, selection.where, "where")]
    ids: list[str] = frame["id"].to_list()
    labels = frame["source"].cast(pl.Categorical)
    groups = _by_source(labels, kept)
    for name, amount in selection.sources.items():
        if name not in groups:
            raise VlmixError(f"no sample of source {name!r} is there{nearest(name, groups)}")
        members = groups[name]
        if (isinstance(amount, float) and not 0 <= amount <= 1) or amount < 0:
            raise VlmixError(f"source {name}: {amount} is neither a count nor a share between 0 and 1")
        count = exact_share(amount, len(members)) if isinstance(amount, float) else amount
        if count > len(members):
            raise VlmixError(f"source {name}: {count} asks for more than its {len(members)} samples")
        groups[name] = _highest({name: members}, priority, ids, seed, {name: count})
    kept = np.sort(np.concatenate([*groups.values(), np.empty(0, dtype=np.int64)]))
    if selection.ratio is None and selection.total is None:
        total = len(kept)
    else:
        total = selection.total or exact_share(selection.ratio or 0, len(kept))
    if total > len(kept):
        raise VlmixError(f"total {total} asks for more than the {len(kept)} samples there are")
    if total < len(kept):
        pools = _by_source(labels, kept) if selection.stratify else {"": kept}
        shares = apportion(total, {name: len(members) for name, members in pools.items()})
        kept = _highest(pools, priority, ids, seed, shares)
    if not len(kept):
        raise VlmixError("the selection keeps no sample; raise the ratio or loosen `where`")
    return kept


def _highest(
    pools: Mapping[str, Indices], priority: Priorities, ids: list[str], seed: int, shares: Mapping[str, int]
) -> Indices:
    """Positions (ascending) of the `shares[name]` members of each pool with the highest priority. Where the last ones
    are equal, they are a prefix of the keyed rank."""
    sure, equal, left = [], {}, {}
    for name, members in pools.items():
        if count := shares[name]:
            mine = priority[members]
            last = np.partition(mine, len(mine) - count)[len(mine) - count]
            sure.append(members[mine > last])
            equal[name], left[name] = members[mine == last], count - len(sure[-1])
    return np.sort(np.concatenate([*sure, prefixes(equal, ids, seed, left)]))


def _by_source(labels: pl.Series, positions: Indices) -> dict[str, Indices]:
    """`positions` grouped by their categorical label, labels in the order of their first occurrence."""
    mine = labels.gather(positions)
    codes = mine.to_physical().to_numpy()
    firsts = mine.is_first_distinct().arg_true().to_list()
    return {mine[first]: positions[codes == codes[first]] for first in firsts}


def subsample(
    folder: Path,
    out: Path,
    selection: Selection,
    *,
    materialize: bool = False,
    workers: int = 1,
    progress: Progress = silent,
) -> Manifest:
    """Make the new folder `out` with the samples of the mixture or view `folder` that `selection` keeps.

    A view holds no shards: its index refers to the root's. Raises VlmixError for a selection that asks for more than
    there is, or for nothing.
    """
    return save(draw(open_mixture(folder), selection), out, materialize=materialize, workers=workers, progress=progress)


def save(
    drawn: Drawn, out: Path, *, materialize: bool = False, workers: int = 1, progress: Progress = silent
) -> Manifest:
    """Make the new folder `out` of what was drawn: a view, or with `materialize` shards of its own."""
    if materialize:
        return save_copy(drawn.part, out, [drawn.entry], workers=workers, progress=progress)
    return save_view(drawn.part, out, [drawn.entry], drawn.index)


def save_view(mixture: Mixture, out: Path, subset: list[dict[str, Any]], index: pl.DataFrame | None = None) -> Manifest:
    """Write a part of a mixture as the view `out`; `subset` says how it was chosen, `index` is its `index_of`."""
    index, root = index_of(mixture) if index is None else index, mixture.local_root.absolute()
    with assembling(out) as (partial, _):
        table = index.to_arrow().cast(VIEW)
        write_parquet(partial / SAMPLES_NAME, iter(table.combine_chunks().to_batches()), VIEW)
        relative = Path(os.path.relpath(root.resolve(), out.resolve())).as_posix()
        parent = Parent(relative, sha256(root / manifests.NAME))
        return seal(partial, _derived(mixture, subset, _counts(index), kind="view", parent=parent))


def save_copy(
    mixture: Mixture, out: Path, subset: list[dict[str, Any]], *, workers: int = 1, progress: Progress = silent
) -> Manifest:
    """Write a part of a mixture as the mixture `out`, with shards of its own."""
    with assembling(out) as (partial, work), Pool(workers) as pool:
        done = _copy(mixture, index_of(mixture), partial, work, pool, progress)
        write_index(partial, work, done)
        write_rejects(partial / REJECTS_NAME, [])
        shards = [d.shard for d in done if d.shard is not None]
        kind = mixture.root_manifest.kind
        return seal(partial, _derived(mixture, subset, merge_counts(done), kind=kind, shards=shards))


def _derived(mixture: Mixture, subset: list[dict[str, Any]], counts: dict[str, Counts], **changed: Any) -> Manifest:
    """The manifest of a part of `mixture`."""
    if not subset and mixture.positions is not None:
        subset = [{"of": mixture.manifest.name, "samples": len(mixture)}]  # a part that a program chose
    sources = {
        name: msgspec.structs.replace(info, counts=counts[name])
        for name, info in mixture.manifest.sources.items()
        if name in counts
    }
    plain: dict[str, Any] = {"rejects": {}, "shards": [], "files": {}, "parent": None}
    return msgspec.structs.replace(
        mixture.manifest,
        **{
            **plain,
            "vlmix_version": VERSION,
            "subset": [*mixture.manifest.subset, *subset],
            "samples": len(mixture),
            "sources": sources,
            **changed,
        },
    )


def index_of(mixture: Mixture) -> pl.DataFrame:
    """The index of a part without its texts, with `row`."""
    frame = mixture.samples.select(_INDEX).collect()
    if problem := columns_problem(frame.to_arrow()):
        raise VlmixError(f"{mixture.folder.name}: {SAMPLES_NAME}: {problem}; `vlmix verify` lists all damage")
    return frame.with_columns(pl.Series("row", mixture.rows, dtype=pl.Int64))


def _counts(frame: pl.DataFrame) -> dict[str, Counts]:
    table = frame.group_by("source").agg(
        pl.len().alias("samples"),
        pl.col("repeat").sum().alias("seen"),
        pl.col("exchanges").sum(),
        pl.col("words").sum(),
        (pl.col("image") != "").sum().alias("images"),
    )
    return {row.pop("source"): Counts(**row) for row in table.to_dicts()}


class CopyJob(Struct, frozen=True):
    """A shard to copy: rows of the root's samples.parquet, ascending but for the first image samples."""

    number: int
    first: int
    rows: list[int]
    root: Path
    out: Path
    work: Path


def _copy(
    mixture: Mixture, kept: pl.DataFrame, partial: Path, work: Path, pool: Pool, progress: Progress
) -> list[ShardDone]:
    size, root = int(mixture.manifest.recipe["samples_per_shard"]), mixture.local_root.absolute()
    if mixture.manifest.recipe["order"] == "natural":
        kept = kept.sort("ordinal")
    ids = kept["id"].to_list()
    has_image = (kept["image"] != "").to_numpy()
    order = arrange(np.arange(len(kept)), ids, has_image, "natural", 0, size)
    rows = kept["row"].to_numpy()[order].tolist()
    jobs = [CopyJob(i // size, i, rows[i : i + size], root, partial, work) for i in range(0, len(rows), size)]
    plan = msgspec.msgpack.encode((VERSION, str(root), sha256(root / manifests.NAME), size, rows))
    return run_shards(copy_shard, jobs, plan, pool, progress)


def copy_shard(job: CopyJob) -> ShardDone:
    """Copy samples into a new shard, bytes untouched; runs in a worker."""
    root = open_mixture(job.root)
    with_tar = bool(root.manifest.shards)

    def rows() -> Iterator[Row]:
        for row, columns in zip(job.rows, read_rows(job.root, job.rows)):
            raw = root.raw(row) if with_tar else None
            yield Row(columns["source"], columns, raw.json if raw else b"", raw.jpeg if raw else None)

    return store_rows(rows(), job.number, job.first, job.out, job.work, with_tar=with_tar)


def read_rows(root: Path, rows: list[int]) -> Iterator[dict[str, Any]]:
    """Whole rows of a root's samples.parquet in the order asked for, reading only the row groups that hold them."""
    file = open_index(root / SAMPLES_NAME)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    wanted = np.asarray(rows, dtype=np.int64)
    groups = np.searchsorted(ends, wanted, side="right")
    found: dict[int, dict[str, Any]] = {}
    for group in np.unique(groups).tolist():
        mine = np.sort(wanted[groups == group])
        table: pa.Table = file.read_row_group(group).take(mine - (ends[group] - sizes[group]))
        found.update(zip(mine.tolist(), table.to_pylist()))
    for row in rows:
        yield found.pop(row)


def parse_amounts(texts: list[str]) -> Mapping[str, int | float]:
    """`vqav2=1000`, `gqa=0.1`, `ocrvqa=12.5%` as source -> count (int) or share (float)."""
    amounts: dict[str, int | float] = {}
    for text in texts:
        name, equals, amount = text.partition("=")
        try:
            if not (name and equals):
                raise ValueError
            if amount.endswith("%"):
                amounts[name] = float(amount[:-1]) / 100
            else:
                amounts[name] = float(amount) if "." in amount else int(amount)
        except ValueError:
            raise VlmixError(f"source {text!r}: write NAME=1000, NAME=0.1 or NAME=10%") from None
    return amounts
