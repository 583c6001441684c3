"""Mixtures become one, without the raw files: shards are linked or copied as they are, and their rows of the index
written anew. Only samples of shards that are not taken whole are written to new ones.

Atomic, resumable and the same bytes whatever the number of workers, as a build is; whether shards were linked or copied
changes no byte either.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.groups import Stored
from vlmix.mixture.dataset.manifest import REJECTS_NAME, SAMPLES_NAME, Counts, Input, Manifest, Shard, SourceInfo
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.rejects import write_rejects
from vlmix.mixture.dataset.schema import REJECTS, Index, SampleJson, filled, open_index
from vlmix.mixture.dataset.shards import (
    Members,
    ShardDone,
    ShardTask,
    keep_rows,
    moved,
    sample_key,
    shard_path,
    store_rows,
)
from vlmix.mixture.dataset.view import read_rejects, read_rows
from vlmix.mixture.dataset.writer import finalize, merge_counts, run_shards
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write, disk_errors
from vlmix.mixture.io.engines import EngineName, start
from vlmix.mixture.io.images import image_xxh3
from vlmix.mixture.io.pool import Engine, Progress, silent
from vlmix.mixture.io.staging import HELD, staging_folder
from vlmix.mixture.io.storage import Local, Location, Remote, locate
from vlmix.mixture.merge.parts import (
    Part,
    Piece,
    drop_duplicates,
    interleaved,
    keep,
    natural_places,
    open_parts,
    pieces_of,
    resolved,
    schema_of,
    seen,
)
from vlmix.mixture.merge.recipe import MergeRecipe
from vlmix.mixture.version import VERSION

_CHUNK = 2**24  # bytes of a shard that are copied at a time
_TOGETHER = 64  # samples that are read at a time


class Merged(NamedTuple):
    """What was made: the manifest, and how many shards were hard-linked, copied, and written anew."""

    manifest: Manifest
    linked: int
    copied: int
    written: int


def merge(
    recipe: MergeRecipe,
    out: Path,
    *,
    copy: bool = False,
    workers: int | None = None,
    engine: EngineName = "local",
    progress: Progress = silent,
) -> Merged:
    """Make the new mixture folder `out` of the recipe's mixtures.

    Shards are hard-linked where the file system allows it, else copied; with `copy` always copied. Raises VlmixError
    for mixtures that do not go together, for one that is damaged, and for more than there is; what was finished until
    then is kept for the next run.
    """
    places = [where.path for where in map(locate, recipe.mixtures) if isinstance(where, Local)]
    with (
        staging_folder(out) as staging,
        TemporaryDirectory(prefix="copies-", dir=staging.work) as copies,
        start(engine, workers, [staging.work / HELD, *(place / manifests.NAME for place in places)]) as pool,
    ):
        folder, work, _ = staging
        parts = open_parts(recipe, Path(copies), progress)
        schema, seed = schema_of(parts), parts[0].manifest.seed if recipe.seed is None else recipe.seed
        kept = keep(parts, recipe, seed)
        dropped = drop_duplicates(parts, kept, drop=recipe.duplicates == "drop")
        plain = resolved(recipe, parts, kept, seed)
        natural = natural_places(parts, kept)
        size = int(plain["samples_per_shard"])
        by_part = [list(pieces_of(*each, size)) for each in zip(range(len(parts)), parts, kept, natural)]
        pieces = list(chain(*by_part)) if plain["order"] == "natural" else interleaved(by_part)
        repeats = [seen(part, mask, seed) for part, mask in zip(parts, kept)]
        with_tar = bool(parts[0].root_manifest.shards)
        jobs = list(_jobs(parts, pieces, natural, repeats, schema, folder, work, with_tar))
        plan = msgspec.msgpack.encode((VERSION, plain, [part.manifest_sha256 for part in parts]))
        sizes = [len(job.natural) for job in jobs]
        done = run_shards(write_piece, jobs.__getitem__, sizes, plan, staging, schema, pool, progress)
        rejects = _write_rejects(parts, dropped, folder)
        shards = [shard for each, job in zip(done, jobs) if (shard := each.shard or job.shard)]
        placed = _place(jobs, copy, pool, progress)
        counts = merge_counts(done)
        manifest = Manifest(
            kind="mixture" if with_tar else "annotations",
            name=str(plain["name"]),
            seed=seed,
            recipe=plain,
            samples=sum(c.samples for c in counts.values()),
            sources=_sources(parts, counts),
            libraries=_libraries(parts),
            check="header" if any(part.root_manifest.check == "header" for part in parts) else msgspec.UNSET,
            rejects=rejects,
            inputs=_inputs(parts),
            shards=shards,
            checksums={},
        )
        manifest = finalize(folder, manifest)
    return Merged(manifest, sum(placed), len(placed) - sum(placed), len(shards) - len(placed))


class PieceJob(ShardTask, frozen=True):
    """A shard of the merged mixture: shard `group` of `root`, or none and a new one of its `rows`. Of each sample,
    `natural` is its place in the natural order, `repeat` how often it is seen."""

    root: Path
    """The folder of its index; `shards_at` is where its shards lie."""
    shards_at: Location
    digest: str
    """Of the root's manifest."""
    group: int | None
    source: str
    """Path in the root of a shard that is taken as it is, and the `shard` that it becomes; else "" and None."""
    shard: Shard | None
    rows: Any
    natural: Any
    repeat: Any
    schema: bytes
    with_tar: bool


def _jobs(
    parts: Sequence[Part],
    pieces: Sequence[Piece],
    natural: Sequence[NDArray[np.int64]],
    repeats: Sequence[NDArray[np.int32]],
    schema: pa.Schema,
    out: Path,
    work: Path,
    with_tar: bool,
) -> Iterator[PieceJob]:
    first, described = 0, schema.serialize().to_pybytes()
    shifts = [part.root_manifest.key_shifts() for part in parts]
    for number, (owner, group, rows) in enumerate(pieces):
        part = parts[owner]
        which = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
        shard = part.root_manifest.shards[group] if with_tar and group is not None else None
        yield PieceJob(
            number=number,
            first=first,
            out=out,
            work=work,
            store=None,
            root=part.root,
            shards_at=part.shards_at,
            digest=part.root_manifest.sha256,
            group=group,
            source=shard.path if shard else "",
            shard=shard and _renamed(shard, number, rows[0] + shifts[owner][group or 0], first),
            rows=None if isinstance(rows, range) else rows,
            natural=natural[owner][which],
            repeat=repeats[owner][which],
            schema=described,
            with_tar=with_tar,
        )
        first += len(rows)


def _renamed(shard: Shard, number: int, first_key: int, first: int) -> Shard:
    """A shard as number `number` of a mixture, whose first sample is at position `first` there."""
    own = None if first_key == first else first_key
    return msgspec.structs.replace(shard, path=shard_path(number), first_key=own)


def write_piece(job: PieceJob) -> ShardDone:
    """Write a shard's rows of the index, and its tar if it is a new one; runs in a worker."""
    schema = pa.ipc.read_schema(pa.py_buffer(job.schema))
    if job.group is None:
        return _new_shard(job, schema)
    table = _index(job.root, job.digest).read_row_group(job.group)
    if table.num_rows != len(job.natural):
        what = f"has in row group {job.group} {table.num_rows} rows, the manifest says {len(job.natural)}"
        raise _damage(job.shards_at, SAMPLES_NAME, what)
    if job.with_tar:
        where = {"shard": pa.repeat(shard_path(job.number), table.num_rows)}
    else:
        where = {"key": pa.array([sample_key(job.first + row) for row in range(table.num_rows)])}
    (batch,) = _merged_rows(table, job, schema, where).combine_chunks().to_batches()
    return keep_rows(batch, job, None)


def _merged_rows(table: pa.Table, job: PieceJob, schema: pa.Schema, where: Mapping[str, pa.Array]) -> pa.Table:
    """Rows of a mixture's index as they are in the merged one of `schema`; `where` are columns that say where."""
    table = filled(table, schema)
    for name, column in {"natural_index": pa.array(job.natural), "repeat": pa.array(job.repeat), **where}.items():
        table = table.set_column(schema.get_field_index(name), schema.field(name), column)
    return table


def _new_shard(job: PieceJob, schema: pa.Schema) -> ShardDone:
    """A shard of samples from others, whose bytes are compared with the index: in their new place nobody could any
    more."""
    table = _merged_rows(read_rows(job.root, job.rows), job, schema, {})

    def samples() -> Iterator[Members]:
        for first in range(0, table.num_rows, _TOGETHER):
            rows = table.slice(first, _TOGETHER).to_pylist()
            yield from _members(job, rows, job.rows[first:]) if job.with_tar else [Members(b"", ())] * len(rows)

    return store_rows(samples(), partial(moved, table), job, schema, with_tar=job.with_tar)


@lru_cache(maxsize=64)
def _index(root: Path, _: str) -> Index:
    """Kept open, as reading a footer takes longer than reading a row group; for the mixture with that checksum."""
    return open_index(root / SAMPLES_NAME)


@lru_cache(maxsize=1)
def _stored(place: str, _: str) -> Stored:
    """Kept with the shards that it has open; of the mixture with that checksum."""
    return Stored(Reader.open(place))


def _members(job: PieceJob, rows: Sequence[dict[str, Any]], numbers: Sequence[int]) -> Iterator[Members]:
    """The members of samples by their rows of the index, whose numbers in the root these are."""
    stored = _stored(job.shards_at.name, job.digest)
    found = stored.members([{**row, "root_row": int(number)} for row, number in zip(rows, numbers)])
    for columns, raw in zip(rows, found):
        if [image["xxh3"] for image in columns["images"]] != list(map(image_xxh3, raw.jpegs)):
            raise _damage(job.shards_at, columns["shard"], f"has other images for {columns['id']} than the index")
        if not _same(raw.json, columns):
            raise _damage(job.shards_at, columns["shard"], f"has another text for {columns['id']} than the index")
        yield Members(raw.json, raw.jpegs)


def _same(text: bytes, columns: dict[str, Any]) -> bool:
    try:
        return msgspec.json.decode(text, type=SampleJson) == msgspec.convert(columns, SampleJson)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _damage(root: Location, name: str, what: str) -> VlmixError:
    return VlmixError(f"{root.join(name).name} {what}; `vlmix verify {root.name}` lists all damage")


class PlaceJob(Struct, frozen=True):
    """The shard `source` of `root` to link, or with `copy` to copy, into `out` as `shard`."""

    root: Location
    source: str
    shard: Shard
    out: Path
    copy: bool


def _place(jobs: Sequence[PieceJob], copy: bool, pool: Engine, progress: Progress) -> list[bool]:
    """Link or copy the shards that are taken as they are; whether each was linked."""
    tasks = [PlaceJob(job.shards_at, job.source, job.shard, job.out, copy) for job in jobs if job.shard]
    linked = []
    for _, was_linked in pool.map(place_shard, tasks):
        linked.append(was_linked)
        progress("placing shards", len(linked), len(tasks))
    return linked


def place_shard(job: PlaceJob) -> bool:
    """Put a shard in its place, if an earlier run has not; True if it is a hard link. Runs in a worker."""
    where, target = job.root.join(job.source), job.out / job.shard.path
    try:
        size = where.size()
    except FileNotFoundError:
        raise _damage(job.root, job.source, "is missing") from None
    if size != job.shard.bytes:
        raise _damage(job.root, job.source, f"has {size} bytes, the manifest says {job.shard.bytes}")
    source = where.path.resolve() if isinstance(where, Local) else None  # a link to a link would lead nowhere
    if target.exists():
        if linked := source is not None and target.samefile(source):
            if not job.copy:
                return True
            target.unlink()
        elif target.stat().st_size == size:
            return linked
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if source is not None and not job.copy:
        try:
            os.link(source, target)
            return True
        except OSError:  # another file system, or one without hard links, or a file of somebody else
            pass
    digest = hashlib.sha256()
    with atomic_write(target) as file:
        for data in _pieces(job, where, size):
            digest.update(data)
            file.write(data)
        if digest.hexdigest() != job.shard.sha256:
            raise _damage(job.root, job.source, "differs from the manifest's checksum")
    return False


def _pieces(job: PlaceJob, where: Location, size: int) -> Iterator[bytes]:
    try:
        if isinstance(where, Remote):
            yield from where.pieces(size)
        else:
            yield from (where.range(offset, _CHUNK) for offset in range(0, size, _CHUNK))
    except FileNotFoundError:
        raise _damage(job.root, job.source, "is missing") from None


def _write_rejects(parts: Sequence[Part], dropped: pl.DataFrame, out: Path) -> dict[str, dict[str, int]]:
    """rejects.parquet: those of all mixtures (views have none), each once, and the duplicates; their counts."""
    frames = [dropped.select(REJECTS.names)]
    for part in parts:
        if part.manifest.kind != "view" and (own := read_rejects(part.open())) is not None:
            frames.append(own.select(REJECTS.names))
    # In an order of all columns first: `write_rejects` leaves rows that are equal in its own as they come.
    rows = pl.concat(frames).unique().sort(REJECTS.names).to_arrow().cast(REJECTS)
    return write_rejects(out / REJECTS_NAME, rows.to_batches())


def _sources(parts: Sequence[Part], counts: Mapping[str, Counts]) -> dict[str, SourceInfo]:
    """The sources of all mixtures; one that has several licenses keeps them all."""
    found: dict[str, list[SourceInfo]] = {}
    for part in parts:
        for name, info in part.manifest.sources.items():
            found.setdefault(name, []).append(info)
    return {
        name: SourceInfo(
            license="; ".join(dict.fromkeys(info.license for info in infos)),
            homepage=next((info.homepage for info in infos if info.homepage), ""),
            counts=counts[name],
        )
        for name, infos in found.items()
        if name in counts
    }


def _libraries(parts: Sequence[Part]) -> dict[str, str]:
    """Library -> its version, or versions where mixtures were built with several."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for library, version in part.manifest.libraries.items():
            found.setdefault(library, []).append(version)
    return {library: ", ".join(dict.fromkeys(versions)) for library, versions in found.items()}


def _inputs(parts: Sequence[Part]) -> dict[str, list[Input]]:
    """The manifest of each mixture, which has the checksums of its other files, and the raw files that it was made of,
    below the mixture's name."""
    found = {}
    for part in parts:
        found[part.name] = [Input(f"{part.name}/{manifests.NAME}", part.manifest_bytes, part.manifest_sha256)]
        found |= {f"{part.name}/{entry}": inputs for entry, inputs in part.manifest.inputs.items()}
    return found
