"""Parts of a mixture as folders: views, which refer to another folder's shards, and copies with shards of their own."""

import hashlib
import os
import posixpath
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
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
    check_index,
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
from vlmix.mixture.io.fetch import fetch_sound
from vlmix.mixture.io.pool import Progress, silent
from vlmix.mixture.io.staging import HELD, staging_folder
from vlmix.mixture.io.storage import Local, Location, Remote, new_store
from vlmix.mixture.version import VERSION

_TOGETHER = 64  # samples that are read at once
_COUNTED = ["source", "repeat", "num_rounds", "num_words", "num_images"]


def save_view(mixture: Reader, out: Path | str, subset: list[dict[str, Any]], *, work: Path | None = None) -> Manifest:
    """Write a part of a mixture as the view `out`, a path or a URL; `subset` says how it was chosen, `work` is that of
    `staging_folder`."""
    root, counts = _root_from(mixture, out), dict[str, Counts]()
    with staging_folder(out, work) as (partial, _, _):
        schema = with_columns(VIEW, index_schema(mixture))
        names = [SAMPLES_NAME]
        if len(mixture) > PART_ROWS:
            names = [f"{SAMPLES_NAME}/{part_name(i)}" for i in range(-(-len(mixture) // PART_ROWS))]
        for name, start in zip(names, range(0, len(mixture), PART_ROWS)):
            table = _own_rows(mixture, start, min(start + PART_ROWS, len(mixture)), schema)
            for source, more in counts_of(pl.DataFrame(table.select(_COUNTED))).items():
                counts[source] = counts.get(source, Counts()) + more
            write_parquet(partial / name, iter(table.combine_chunks().to_batches()), schema)
        parent = Parent(root, _manifest_digest(mixture))
        return finalize(partial, _derived(mixture, subset, counts, kind="view", parent=parent))


def _root_from(mixture: Reader, out: Path | str) -> str:
    """Where a mixture's root is, seen from a view `out`: a path relative to it, or the URL of a store. A view in a
    store has its root in the same one: else whoever reads it could be led anywhere."""
    root, store = mixture.root, new_store(out)
    if store is None:
        if isinstance(root, Remote):
            return root.url
        return Path(os.path.relpath(root.path.resolve(), Path(out).resolve())).as_posix()
    (scheme, _, host), (its, _, where) = store.url.partition("://"), root.name.partition("://")
    if not isinstance(root, Remote) or (scheme, host.partition("/")[0]) != (its, where.partition("/")[0]):
        raise VlmixError(
            f"{store.url}: a view in a store needs its root, {root.name}, in the same bucket; make a copy instead: "
            "`--materialize`"
        )
    return posixpath.relpath(f"/{where}", f"/{host}")


def _manifest_digest(mixture: Reader) -> str:
    """sha256 of the root's manifest."""
    return hashlib.sha256(mixture.root.join(manifests.NAME).whole()).hexdigest()


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
def replacing_view(folder: Path | str) -> Iterator[None]:
    """Moves the view `folder` aside, and back if the block fails; nothing where nothing is. Raises VlmixError for a
    folder of anything else, and for the URL of a store, where nothing can be moved aside."""
    if new_store(folder):
        raise VlmixError(f"{folder}: nothing in a store is replaced; remove it, or choose another --out")
    folder = Path(folder)
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
    out: Path | str,
    subset: list[dict[str, Any]],
    *,
    work: Path | None = None,
    workers: int | None = None,
    engine: EngineName = "local",
    progress: Progress = silent,
) -> Manifest:
    """Write a part of a mixture as the mixture `out`, a path or a URL, with shards of its own; `work` is that of
    `staging_folder`."""
    size, root = int(mixture.manifest.recipe["samples_per_shard"]), mixture.root
    seen = [root.path.absolute() / manifests.NAME] if isinstance(root, Local) else []
    with staging_folder(out, work) as staging, start(engine, workers, [staging.work / HELD, *seen]) as pool:
        has_image, rows = pc.not_equal(mixture.column("image"), "").to_numpy(), mixture.rows
        if mixture.manifest.recipe["order"] == "natural":
            order = np.argsort(mixture.column("natural_index").to_numpy(), kind="stable")
            has_image, rows = has_image[order], rows[order]
        rows = rows[lead_with_images(np.arange(len(rows)), has_image, size)]
        index = _local_index(mixture, staging.work)
        schema = Index(index).schema_arrow

        def job(number: int) -> CopyJob:
            first = number * size
            mine = rows[first : first + size]
            return CopyJob(
                number=number,
                first=first,
                out=staging.folder,
                work=staging.work,
                store=staging.store,
                rows=mine,
                root=root,
                index=index,
            )

        sizes = [len(rows[start : start + size]) for start in range(0, len(rows), size)]
        plan = msgspec.msgpack.encode((VERSION, root.name, _manifest_digest(mixture), size, rows.tobytes()))
        done = run_shards(copy_shard, job, sizes, plan, staging, schema, pool, progress)
        write_rejects(staging.folder / REJECTS_NAME, [])
        shards = [d.shard for d in done if d.shard is not None]
        kind = mixture.root_manifest.kind
        return finalize(staging.folder, _derived(mixture, subset, merge_counts(done), kind=kind, shards=shards))


def _local_index(mixture: Reader, work: Path) -> list[Local]:
    """The files of the root's index, those of a store fetched, as each shard reads rows all over them."""
    found, root, checksums = list[Local](), mixture.root, mixture.root_manifest.checksums
    for name in mixture.root_manifest.index:
        path = work / "root" / name
        if isinstance(root, Local):
            path = root.path / name
        elif not path.exists() or sha256(path) != checksums.get(name):
            fetch_sound(root, name, path, checksums.get(name))
        found.append(Local(path))
    check_index(Index(found), mixture.root.join(SAMPLES_NAME).name)
    return found


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
    """A shard to copy: rows of the root's samples.parquet, ascending but for the first image samples; the root, and
    the files of its index on disk."""

    rows: NDArray[np.int64]
    root: Location
    index: list[Local]


def copy_shard(job: CopyJob) -> ShardDone:
    """Copy samples into a new shard, bytes untouched; runs in a worker."""
    root, index = Reader.at(job.root), Index(job.index)
    with_tar, table = bool(root.manifest.shards), read_rows(index, job.rows)

    def samples() -> Iterator[Members]:
        named = table.select(["id", "shard", "json_offset", "json_size", "images"]).to_pylist()
        if not with_tar:
            yield from repeat(Members(b"", ()), len(named))
            return
        stored = Stored(root)
        for columns, row in zip(named, job.rows.tolist()):
            columns["root_row"] = row
        for first in range(0, len(named), _TOGETHER):
            yield from (Members(raw.json, raw.jpegs) for raw in stored.members(named[first : first + _TOGETHER]))

    return store_rows(samples(), partial(moved, table), job, index.schema_arrow, with_tar=with_tar)


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
