"""Parts of a mixture as folders: views, which refer to another folder's shards, and copies with shards of their own."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.groups import Stored, groups_of
from vlmix.mixture.dataset.index_checks import counts_of
from vlmix.mixture.dataset.manifest import REJECTS_NAME, SAMPLES_NAME, Counts, Manifest, Parent
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.rejects import write_rejects
from vlmix.mixture.dataset.schema import (
    PART_ROWS,
    TEXT_COLUMNS,
    VIEW,
    Index,
    columns_problem,
    open_index,
    part_name,
    with_columns,
)
from vlmix.mixture.dataset.shards import Members, ShardDone, ShardTask, lead_with_images, moved, store_rows
from vlmix.mixture.dataset.writer import finalize, merge_counts, run_shards
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import write_parquet
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.engines import EngineName, start
from vlmix.mixture.io.pool import Progress, silent
from vlmix.mixture.io.staging import HELD, staging_folder
from vlmix.mixture.io.storage import Local
from vlmix.mixture.version import VERSION

_COUNTED = ["source", "repeat", "num_rounds", "num_words", "num_images"]


def save_view(mixture: Reader, out: Path, subset: list[dict[str, Any]]) -> Manifest:
    """Write a part of a mixture as the view `out`; `subset` says how it was chosen."""
    root, counts = mixture.local_root.absolute(), dict[str, Counts]()
    with staging_folder(out) as (partial, _):
        schema = with_columns(VIEW, index_schema(mixture))
        names = [SAMPLES_NAME]
        if len(mixture) > PART_ROWS:
            names = [f"{SAMPLES_NAME}/{part_name(i)}" for i in range(-(-len(mixture) // PART_ROWS))]
        for name, start in zip(names, range(0, len(mixture), PART_ROWS)):
            table = _own_rows(mixture, start, min(start + PART_ROWS, len(mixture)), schema)
            for source, more in counts_of(pl.DataFrame(table.select(_COUNTED))).items():
                counts[source] = counts.get(source, Counts()) + more
            write_parquet(partial / name, iter(table.combine_chunks().to_batches()), schema)
        relative = Path(os.path.relpath(root.resolve(), out.resolve())).as_posix()
        parent = Parent(relative, sha256(root / manifests.NAME))
        return finalize(partial, _derived(mixture, subset, counts, kind="view", parent=parent))


def _own_rows(mixture: Reader, start: int, stop: int, schema: pa.Schema) -> pa.Table:
    """The columns of a view's index for the samples from position `start` to `stop`."""
    index = mixture.own_index()
    rows = np.arange(start, stop) if mixture.positions is None else mixture.positions[start:stop]
    names, parts, order = [name for name in schema.names if name != "root_row"], [], []
    for group in groups_of(rows, index.group_rows):
        table = index.read_row_group(group.number, names)
        if problem := columns_problem(table):
            raise VlmixError(f"{mixture.folder.name}: {SAMPLES_NAME}: {problem}; `vlmix verify` lists all damage")
        parts.append(table.take(group.rows))
        order.append(group.positions)
    back, table = np.argsort(np.concatenate(order)), pa.concat_tables(parts)
    table = table if (back[1:] > back[:-1]).all() else table.take(back)
    return table.append_column("root_row", pa.array(mixture.rows[start:stop])).select(schema.names).cast(schema)


@contextmanager
def replacing_view(folder: Path) -> Iterator[None]:
    """Moves the view `folder` aside, and back if the block fails; nothing where nothing is. Raises VlmixError for a
    folder of anything else."""
    if not folder.exists():
        yield
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    own = {manifests.NAME, SAMPLES_NAME, REJECTS_NAME, manifests.CARD_NAME}
    if manifests.NAME not in names or manifests.read(Local(folder)).parent is None or names - own:
        raise VlmixError(f"{folder} is not a view, and only views are replaced; remove it or choose another --out")
    aside = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    try:
        yield
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


def save_copy(
    mixture: Reader,
    out: Path,
    subset: list[dict[str, Any]],
    *,
    workers: int | None = None,
    engine: EngineName = "local",
    progress: Progress = silent,
) -> Manifest:
    """Write a part of a mixture as the mixture `out`, with shards of its own."""
    size, root = int(mixture.manifest.recipe["samples_per_shard"]), mixture.local_root.absolute()
    seen = root / manifests.NAME
    with staging_folder(out) as (partial, work), start(engine, workers, [work / HELD, seen]) as pool:
        has_image, rows = pc.not_equal(mixture.column("image"), "").to_numpy(), mixture.rows
        if mixture.manifest.recipe["order"] == "natural":
            order = np.argsort(mixture.column("natural_index").to_numpy(), kind="stable")
            has_image, rows = has_image[order], rows[order]
        rows = rows[lead_with_images(np.arange(len(rows)), has_image, size)]
        schema = open_index(root / SAMPLES_NAME).schema_arrow

        def job(number: int) -> CopyJob:
            first = number * size
            return CopyJob(number, first, partial, work, rows[first : first + size], root)

        sizes = [len(rows[start : start + size]) for start in range(0, len(rows), size)]
        plan = msgspec.msgpack.encode((VERSION, str(root), sha256(root / manifests.NAME), size, rows.tobytes()))
        done = run_shards(copy_shard, job, sizes, plan, partial, work, schema, pool, progress)
        write_rejects(partial / REJECTS_NAME, [])
        shards = [d.shard for d in done if d.shard is not None]
        kind = mixture.root_manifest.kind
        return finalize(partial, _derived(mixture, subset, merge_counts(done), kind=kind, shards=shards))


def _derived(mixture: Reader, subset: list[dict[str, Any]], counts: dict[str, Counts], **changed: Any) -> Manifest:
    """The manifest of a part of `mixture`."""
    if not subset and mixture.positions is not None:
        subset = [{"of": mixture.manifest.name, "samples": len(mixture)}]  # a part that a program chose
    sources = {
        name: msgspec.structs.replace(info, counts=counts[name])
        for name, info in mixture.manifest.sources.items()
        if name in counts
    }
    return msgspec.structs.replace(
        mixture.manifest,
        vlmix_version=VERSION,
        selections=[*mixture.manifest.selections, *subset],
        samples=len(mixture),
        sources=sources,
        **{"rejects": {}, "shards": [], "checksums": {}, "parent": None, **changed},
    )


def index_schema(mixture: Reader) -> pa.Schema:
    """The columns of a mixture's or a view's own index. Raises VlmixError if it is missing or damaged."""
    return mixture.own_index().schema_arrow


def index_of(mixture: Reader, *, images: bool = True) -> pl.DataFrame:
    """The index of a part without its texts, with `root_row`. The list of `images`, most of an index, may be left
    out."""
    left_out = {*TEXT_COLUMNS, "root_row", *([] if images else ["images"])}
    frame = _read(mixture, mixture.samples.select([n for n in index_schema(mixture).names if n not in left_out]))
    return frame.with_columns(pl.Series("root_row", mixture.rows, dtype=pl.Int64))


def _read(mixture: Reader, columns: pl.LazyFrame) -> pl.DataFrame:
    try:
        frame = columns.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _damaged(mixture, error) from None
    if problem := columns_problem(frame.to_arrow()):
        raise VlmixError(f"{mixture.folder.name}: {SAMPLES_NAME}: {problem}; `vlmix verify` lists all damage")
    return frame


def _damaged(mixture: Reader, error: BaseException) -> VlmixError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return VlmixError(f"{mixture.folder.name}: {SAMPLES_NAME}: {first}; `vlmix verify` lists all damage")


def read_rejects(mixture: Reader) -> pl.DataFrame | None:
    """The rejects of the folder that a mixture or view comes from, None if it lists none (a copy of another one).
    Raises VlmixError for a damaged list."""
    where = mixture.root.join(REJECTS_NAME)
    try:
        return pl.read_parquet(where.path if isinstance(where, Local) else where.whole())
    except FileNotFoundError:
        return None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise VlmixError(f"{where.name}: {str(error).splitlines()[0]}; the file is damaged") from None


def ids_like(mixture: Reader, id: str, most: int = 5) -> list[str]:
    """The first ids that somebody may mean who writes an `id` that is not there: of the same record, or with a source
    before it."""
    stem = id.partition("#")[0]
    known = mixture.column("id")
    alike = pc.or_(pc.starts_with(known, stem), pc.ends_with(known, f"/{id}"))
    return list(known.take(pc.indices_nonzero(alike)[:most]).to_pylist())


class CopyJob(ShardTask, frozen=True):
    """A shard to copy: rows of the root's samples.parquet, ascending but for the first image samples."""

    rows: NDArray[np.int64]
    root: Path


def copy_shard(job: CopyJob) -> ShardDone:
    """Copy samples into a new shard, bytes untouched; runs in a worker."""
    root = Reader.open(job.root)
    with_tar, schema = bool(root.manifest.shards), open_index(job.root / SAMPLES_NAME).schema_arrow
    table, stored = read_rows(job.root, job.rows), Stored(root)

    def samples() -> Iterator[Members]:
        named = table.select(["id", "shard", "json_offset", "json_size", "images"]).to_pylist()
        for row, columns in zip(job.rows.tolist(), named):
            raw = stored.members({**columns, "root_row": row}) if with_tar else None
            yield Members(raw.json if raw else b"", raw.jpegs if raw else ())

    return store_rows(samples(), partial(moved, table), job, schema, with_tar=with_tar)


def read_rows(root: Path | Index, rows: Sequence[int] | NDArray[np.int64]) -> pa.Table:
    """Whole rows of a root's samples.parquet in the order asked for, reading only the row groups that hold them."""
    file = open_index(root / SAMPLES_NAME) if isinstance(root, Path) else root
    ends = np.cumsum(file.group_rows)
    wanted = np.asarray(rows, dtype=np.int64)
    order = np.argsort(wanted, kind="stable")
    ordered = wanted[order]
    groups = np.searchsorted(ends, ordered, side="right")
    parts = [
        file.read_row_group(group).take(ordered[groups == group] - (ends[group] - file.group_rows[group]))
        for group in np.unique(groups).tolist()
    ]
    return pa.concat_tables(parts).take(np.argsort(order))
