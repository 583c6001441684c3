"""Subsets: prefixes of the keyed rank order, as a view that refers to the shards or with shards of their own."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
from msgspec import Struct

from mixture import manifest as manifests
from mixture.assembly import assembling, merge_counts, run_shards, seal, write_index
from mixture.errors import VlmixError, nearest
from mixture.files import sha256, write_parquet
from mixture.manifest import REJECTS_NAME, SAMPLES_NAME, Counts, Manifest, Parent
from mixture.pool import Pool, Progress, silent
from mixture.reader import Mixture
from mixture.reader import open as open_mixture
from mixture.samples import SAMPLES, TEXT_COLUMNS, VIEW, open_index, write_rejects
from mixture.sampling import Indices, choose, exact_share, keyed_order
from mixture.select import arrange, matching
from mixture.shards import Row, ShardDone, store_rows
from mixture.version import VERSION

_INDEX = [name for name in SAMPLES.names if name not in TEXT_COLUMNS]


class Selection(Struct, frozen=True, kw_only=True):
    """What to keep: first `where`, then each source in `sources` cut to a count (int) or share (float), then `ratio`
    or `total` of the rest, stratified by source unless told otherwise. `seed` None takes the mixture's."""

    ratio: float | None = None
    total: int | None = None
    sources: dict[str, int | float] = {}
    where: str | None = None
    stratify: bool = True
    seed: int | None = None


def select(frame: pl.DataFrame, selection: Selection, seed: int) -> Indices:
    """Row numbers (ascending) of the samples that `selection` keeps."""
    if selection.ratio is not None and selection.total is not None:
        raise VlmixError("ratio and total exclude each other")
    if selection.ratio is not None and not 0 < selection.ratio <= 1:
        raise VlmixError(f"ratio {selection.ratio}: it must be above 0 and at most 1")
    if selection.total is not None and selection.total < 1:
        raise VlmixError(f"total {selection.total}: at least 1")
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
        groups[name] = members[keyed_order([ids[i] for i in members.tolist()], seed)[:count]]
    kept = np.sort(np.concatenate([*groups.values(), np.empty(0, dtype=np.int64)]))
    if selection.ratio is None and selection.total is None:
        total = len(kept)
    else:
        total = selection.total or exact_share(selection.ratio or 0, len(kept))
    if total > len(kept):
        raise VlmixError(f"total {total} asks for more than the {len(kept)} samples there are")
    if total < len(kept):
        pools = _by_source(labels, kept) if selection.stratify else {"": kept}
        kept = choose(pools, ids, seed, total)
    if not len(kept):
        raise VlmixError("the selection keeps no sample; raise the ratio or loosen `where`")
    return kept


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
    whole = open_mixture(folder)
    seed = whole.manifest.seed if selection.seed is None else selection.seed
    index = index_of(whole)
    chosen = select(index, selection, seed)
    kept, index = whole.part(chosen), index[chosen]
    said = {**msgspec.to_builtins(msgspec.structs.replace(selection, seed=seed)), "of": whole.manifest.name}
    if materialize:
        return save_copy(kept, out, [said], workers=workers, progress=progress)
    return save_view(kept, out, [said], index)


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
