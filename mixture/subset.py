"""Subsets: prefixes of the keyed rank order, as a view that refers to the shards or with shards of their own."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from mixture import manifest as manifests
from mixture.assembly import assembling, merge_counts, run_shards, seal, write_index
from mixture.errors import VlmixError, nearest
from mixture.files import sha256, write_parquet
from mixture.manifest import SAMPLES_NAME, Manifest, Parent
from mixture.pool import Pool, Progress, silent
from mixture.samples import SAMPLES, TEXT_COLUMNS, VIEW
from mixture.sampling import Indices, choose, exact_share, keyed_order
from mixture.select import arrange, matching, strata
from mixture.shards import Counts, Row, ShardDone, store_rows
from mixture.store import Store
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
    labels: list[str] = frame["source"].to_list()
    groups = strata([labels[i] for i in kept], kept)
    for name, amount in selection.sources.items():
        if name not in groups:
            raise VlmixError(f"no sample of source {name!r} is there{nearest(name, groups)}")
        members = groups[name]
        if (isinstance(amount, float) and not 0 <= amount <= 1) or amount < 0:
            raise VlmixError(f"source {name}: {amount} is neither a count nor a share between 0 and 1")
        count = exact_share(amount, len(members)) if isinstance(amount, float) else amount
        if count > len(members):
            raise VlmixError(f"source {name}: {count} asks for more than its {len(members)} samples")
        groups[name] = members[keyed_order([ids[i] for i in members], seed)[:count]]
    kept = np.sort(np.concatenate([*groups.values(), np.empty(0, dtype=np.int64)]))
    if selection.ratio is None and selection.total is None:
        total = len(kept)
    else:
        total = selection.total or exact_share(selection.ratio or 0, len(kept))
    if total > len(kept):
        raise VlmixError(f"total {total} asks for more than the {len(kept)} samples there are")
    if total < len(kept):
        pools = strata([labels[i] for i in kept], kept) if selection.stratify else {"": kept}
        kept = choose(pools, ids, seed, total)
    if not len(kept):
        raise VlmixError("the selection keeps no sample; raise the ratio or loosen `where`")
    return kept


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
    store = Store(folder)
    columns = _INDEX if store.manifest.parent is None else [*_INDEX, "row"]
    frame = store.index(columns)
    if store.manifest.parent is None:
        frame = frame.with_columns(pl.arange(len(frame), eager=True, dtype=pl.Int64).alias("row"))
    seed = store.manifest.seed if selection.seed is None else selection.seed
    kept = frame[select(frame, selection, seed)]
    said = {**msgspec.to_builtins(msgspec.structs.replace(selection, seed=seed)), "of": store.manifest.name}
    with assembling(out) as (partial, work):
        base = msgspec.structs.replace(
            store.manifest,
            vlmix_version=VERSION,
            subset=[*store.manifest.subset, said],
            samples=len(kept),
            rejects={},
            shards=[],
            files={},
            parent=None,
        )
        if materialize:
            with Pool(workers) as pool:
                done = _copy(store, kept, partial, work, pool, progress)
            write_index(partial, work, done)
            counts = merge_counts(done)
            base = msgspec.structs.replace(
                base, kind=store.root_manifest.kind, shards=[d.shard for d in done if d.shard is not None]
            )
        else:
            table = kept.to_arrow().cast(VIEW)
            write_parquet(partial / SAMPLES_NAME, iter(table.combine_chunks().to_batches()), VIEW)
            counts = _counts(kept)
            target = os.path.relpath(store.root.absolute(), out.absolute())
            parent = Parent(Path(target).as_posix(), sha256(store.root / manifests.NAME))
            base = msgspec.structs.replace(base, kind="view", parent=parent)
        sources = {
            name: msgspec.structs.replace(info, counts=counts[name])
            for name, info in store.manifest.sources.items()
            if name in counts
        }
        return seal(partial, msgspec.structs.replace(base, sources=sources))


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
    store: Store, kept: pl.DataFrame, partial: Path, work: Path, pool: Pool, progress: Progress
) -> list[ShardDone]:
    size = int(store.manifest.recipe["samples_per_shard"])
    if store.manifest.recipe["order"] == "natural":
        kept = kept.sort("ordinal")
    ids = kept["id"].to_list()
    has_image = (kept["image"] != "").to_numpy()
    order = arrange(np.arange(len(kept)), ids, has_image, "natural", 0, size)
    rows = kept["row"].to_numpy()[order].tolist()
    jobs = [
        CopyJob(i // size, i, rows[i : i + size], store.root.absolute(), partial, work)
        for i in range(0, len(rows), size)
    ]
    plan = msgspec.msgpack.encode((VERSION, str(store.root), sha256(store.root / manifests.NAME), size, rows))
    return run_shards(copy_shard, jobs, plan, pool, progress)


def copy_shard(job: CopyJob) -> ShardDone:
    """Copy samples into a new shard, bytes untouched; runs in a worker."""
    store = Store(job.root)

    def rows() -> Iterator[Row]:
        for columns in read_rows(job.root, job.rows):
            shard = columns["shard"]
            text, image = b"", None
            if shard:
                text = store.read(shard, columns["json_offset"], columns["json_size"])
            if columns["image_size"]:
                image = store.read(shard, columns["image_offset"], columns["image_size"])
            yield Row(columns["source"], columns, text, image)

    return store_rows(rows(), job.number, job.first, job.out, job.work, with_tar=bool(store.manifest.shards))


def read_rows(root: Path, rows: list[int]) -> Iterator[dict[str, Any]]:
    """Whole rows of a root's samples.parquet in the order asked for, reading only the row groups that hold them."""
    file = pq.ParquetFile(root / SAMPLES_NAME)
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
