"""Building a mixture folder: atomic, parallel, resumable, and the same bytes however it was run.

Work happens in `OUT.partial`, which becomes OUT when everything is there. A build that was killed leaves its finished
pieces in `OUT.partial/work`; the same command finds and keeps them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
from xxhash import xxh3_128

from vlmix.mixture.benchmark.benchmark import Benchmark
from vlmix.mixture.build.examine import Examined
from vlmix.mixture.build.overlaps import Comparing
from vlmix.mixture.build.plan import Prepared, missing_rejects, prepare
from vlmix.mixture.build.raw_copy import told_by_url
from vlmix.mixture.build.recipe import Recipe
from vlmix.mixture.build.shard import ShardJob, write_shard
from vlmix.mixture.build.source import Source
from vlmix.mixture.dataset.manifest import OVERLAPS_NAME, REJECTS_NAME, Counts, Manifest, SourceInfo
from vlmix.mixture.dataset.rejects import RejectRows, write_rejects
from vlmix.mixture.dataset.schema import SAMPLES
from vlmix.mixture.dataset.shards import ShardDone, lead_with_images
from vlmix.mixture.dataset.writer import finalize, merge_counts, run_shards
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.engines import EngineName, start
from vlmix.mixture.io.images import libraries
from vlmix.mixture.io.pool import Engine, Progress, silent
from vlmix.mixture.io.staging import HELD, Staging, staging_folder
from vlmix.mixture.io.storage import is_url
from vlmix.mixture.keyed import Indices, Ranks
from vlmix.mixture.overlaps import table
from vlmix.mixture.overlaps.fingerprints import versions
from vlmix.mixture.version import VERSION

_log = logging.getLogger(__name__)

Check = Literal["full", "header"]


def build(
    recipe: Recipe,
    known: Mapping[str, Source],
    raw: Path | str,
    out: Path | str,
    *,
    images: Sequence[Path | str] | None = None,
    work: Path | None = None,
    workers: int | None = None,
    engine: EngineName = "local",
    annotations_only: bool = False,
    check: Check = "full",
    benchmark: Callable[[str], Benchmark] | None = None,
    picture_id: Callable[[str], str] = str,
    progress: Progress = silent,
) -> Manifest:
    """Build the recipe's mixture into the new folder `out`: a path, or the URL of a store, for which what is not
    finished is kept in the folder `work`, by default `NAME.partial` here.

    `images` are image roots searched before `raw`; both may be URLs of stores. With `annotations_only` no image is
    touched and no shard written.
    With `check="header"` JPEGs are not decoded: one that is cut or damaged behind its header becomes a sample.
    `benchmark` finds the evaluation sets that a recipe's `decontaminate` names, `picture_id` says which picture of
    which dataset a path in LLaVA's layout is. `workers` and `engine` are those of `engines.start`.
    Raises VlmixError for bad input; what was finished until then is kept for the next run, on either engine.
    """
    roots = None if annotations_only else [*(images or []), raw]
    sees = [Path(each) for each in (raw, *(images or [])) if not is_url(each)]
    with (
        staging_folder(out, work) as staging,
        start(engine, workers, [staging.work / HELD, *sees]) as pool,
        told_by_url(raw, staging.work / "sources"),
    ):
        # A function of its own, with which its maps of files in `work` end: NFS cannot remove a folder of mapped ones.
        return _fill(staging, pool, recipe, known, raw, roots, check, benchmark, picture_id, progress)


def _fill(
    staging: Staging,
    pool: Engine,
    recipe: Recipe,
    known: Mapping[str, Source],
    raw: Path | str,
    roots: Sequence[Path | str] | None,
    check: Check,
    benchmark: Callable[[str], Benchmark] | None,
    picture_id: Callable[[str], str],
    progress: Progress,
) -> Manifest:
    """Everything that a mixture holds; `roots` of images, None: annotations alone."""
    partial, work, _ = staging
    prepared = prepare(recipe, known, raw, work / "sources", pool, roots, progress, sets=True)
    candidates, rejects, examined = prepared.candidates, RejectRows(), None
    if roots is not None:
        _check_images_exist(prepared, roots)
        examined = Examined(prepared, work, check == "full")
        for reject in missing_rejects(prepared):
            rejects.add(reject)
    offered = np.ones(len(candidates), dtype=np.bool_) if examined is None else examined.offered
    usable = offered.copy() if examined is None else examined.usable
    comparing = None
    if recipe.compares:
        comparing = Comparing(prepared, examined, work, benchmark, picture_id, pool, progress)
    if comparing is not None and recipe.drops:
        if examined is not None:
            examined.examine(np.flatnonzero(offered & candidates.wanted), rejects, pool, progress)
        comparing.drop(usable, rejects)
    picked = candidates.pick(offered, usable) if examined is None else examined.pick(rejects, pool, progress)
    candidates.check_unique(picked)
    for shortfall in candidates.shortfalls(picked):
        _log.warning(shortfall)
    if not len(picked):
        raise VlmixError(f"recipe {recipe.name}: no sample is left; `vlmix plan` shows what each source gives")
    order = _order(prepared, picked)
    (partial / OVERLAPS_NAME).unlink(missing_ok=True)  # of another recipe's run that was killed
    if comparing is not None:
        table.write(partial / OVERLAPS_NAME, comparing.overlaps(picked[order]))
    done = _write_shards(prepared, picked, order, examined, staging, pool, progress)
    return _finish(prepared, done, rejects, partial, roots is None, check)


def _check_images_exist(prepared: Prepared, roots: Sequence[Path | str]) -> None:
    for name, positions in prepared.imageless():
        own = f" or with `image_root` in sources.{name}" if prepared.converted[name].image_roots else ""
        first = prepared.candidates.images(int(positions[0]))[0]
        raise VlmixError(
            f"{name}: none of its {len(positions)} images is there, the first is {first}; looked below "
            f"{' and '.join(map(str, roots))}; name the "
            f"image folder with --images{own}, or build with --annotations-only"
        )


def _order(prepared: Prepared, picked: Indices) -> Indices:
    """[n] the mixture's order, as places in `picked`."""
    recipe, candidates = prepared.recipe, prepared.candidates
    order = np.arange(len(picked))
    if recipe.order == "shuffled":
        order = Ranks(candidates.ids, candidates.orders()).order(picked)
        order = np.searchsorted(picked, order)
    return lead_with_images(order, candidates.column("num_images")[picked] > 0, recipe.samples_per_shard)


def _write_shards(
    prepared: Prepared,
    picked: Indices,
    order: Indices,
    examined: Examined | None,
    staging: Staging,
    pool: Engine,
    progress: Progress,
) -> list[ShardDone]:
    """Write the samples at `picked`, in `order`."""
    recipe, candidates = prepared.recipe, prepared.candidates
    seen, words = candidates.epoch_counts(picked), candidates.column("num_words")[picked]
    described = pa.schema([*SAMPLES, *candidates.schema]).serialize().to_pybytes()
    size = recipe.samples_per_shard

    def job(number: int) -> ShardJob:
        natural = order[number * size : (number + 1) * size]
        parts, rows = candidates.locate(picked[natural])
        used, part = np.unique(parts, return_inverse=True)
        return ShardJob(
            number=number,
            first=number * size,
            out=staging.folder,
            work=staging.work,
            store=staging.store,
            parts=[candidates.parts[each] for each in used],
            part=part,
            row=rows,
            natural_index=natural,
            repeat=seen[natural],
            num_words=words[natural],
            prompts=recipe.prompts,
            images=None if examined is None else examined.files(picked[natural]),
            schema=described,
        )

    texts = [converted.digest for converted in prepared.converted.values()]
    plan = xxh3_128(
        msgspec.msgpack.encode((VERSION, libraries(), recipe.resolved(), examined is None, texts)) + described
    )
    starts = range(0, len(order), size)
    for number in range(len(starts)):
        each = job(number)
        for column in (each.row, each.part, each.natural_index, each.repeat):
            plan.update(column.tobytes())
        plan.update(" ".join(part.name for part in each.parts).encode())
        if each.images is not None:
            plan.update(each.images.deciding())
    sizes = [len(order[start : start + size]) for start in starts]
    return run_shards(
        write_shard,
        job,
        sizes,
        plan.digest(),
        staging,
        pa.ipc.read_schema(pa.py_buffer(described)),
        pool,
        progress,
    )


def _finish(
    prepared: Prepared, done: list[ShardDone], rejects: RejectRows, partial: Path, annotations_only: bool, check: Check
) -> Manifest:
    recipe = prepared.recipe
    reasons = write_rejects(partial / REJECTS_NAME, [*prepared.rejects(), *rejects.batches()])
    counts = merge_counts(done)
    sources = {
        name: SourceInfo(license=license, homepage=homepage, counts=counts.get(name, Counts()))
        for name in prepared.candidates.labels()
        for license, homepage in [prepared.homes(name)]
    }
    manifest = Manifest(
        kind="annotations" if annotations_only else "mixture",
        name=recipe.name,
        seed=recipe.seed,
        recipe=recipe.resolved(),
        samples=sum(c.samples for c in counts.values()),
        sources=sources,
        libraries={**({} if annotations_only else libraries()), **(versions() if recipe.compares else {})},
        check="header" if check == "header" and not annotations_only else msgspec.UNSET,
        rejects=reasons,
        inputs={name: converted.inputs for name, converted in prepared.converted.items()},
        shards=[d.shard for d in done if d.shard is not None],
        checksums={},
    )
    return finalize(partial, manifest)
