"""Building a mixture folder: atomic, parallel, resumable, and the same bytes however it was run.

Work happens in `OUT.partial`, which becomes OUT when everything is there. A build that was killed leaves its finished
pieces in `OUT.partial/work`; the same command finds and keeps them.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from xxhash import xxh3_64_hexdigest

from vlmix.mixture.build.candidates import Candidates
from vlmix.mixture.build.copies import copy_placed
from vlmix.mixture.build.extract import CandidateReader
from vlmix.mixture.build.plan import Prepared, missing_rejects, prepare
from vlmix.mixture.build.recipe import Recipe
from vlmix.mixture.build.shard import Pick, ShardJob, image_fit, write_shard
from vlmix.mixture.build.source import Source
from vlmix.mixture.dataset.manifest import REJECTS_NAME, Counts, Manifest, SourceInfo
from vlmix.mixture.dataset.schema import SAMPLES, Reject, write_rejects
from vlmix.mixture.dataset.shards import ShardDone, arrange
from vlmix.mixture.dataset.writer import finalize, merge_counts, run_shards, write_index
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors
from vlmix.mixture.io.digests import file_digest, stamp
from vlmix.mixture.io.images import ImageInfo, libraries, probe
from vlmix.mixture.io.pool import Pool, Progress, silent
from vlmix.mixture.io.staging import staging_folder
from vlmix.mixture.keyed import Indices
from vlmix.mixture.version import VERSION

_log = logging.getLogger(__name__)

_CHUNK = 64  # images per task: a tenth of a second of work


def build(
    recipe: Recipe,
    known: Mapping[str, Source],
    raw: Path,
    out: Path,
    *,
    images: list[Path] | None = None,
    workers: int = 1,
    annotations_only: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Build the recipe's mixture into the new folder `out`.

    `images` are image roots searched before `raw`. With `annotations_only` no image is touched and no shard written.
    Raises VlmixError for bad input; what was finished until then is kept for the next run.
    """
    with staging_folder(out) as (partial, work), Pool(workers) as pool:
        roots = None if annotations_only else [*(images or []), raw]
        prepared = prepare(recipe, known, raw, work / "sources", pool, roots, progress)
        rejects = [r for c in prepared.converted.values() for r in c.rejects]
        facts: dict[str, ImageInfo] = {}
        if roots is None:
            picked = prepared.candidates.pick(~prepared.missing, ~prepared.missing)  # without images none is missing
        else:
            _check_images_exist(prepared, roots)
            picked = _pick_usable(prepared, facts, rejects, pool, work, progress)
            rejects += missing_rejects(prepared)
        prepared.candidates.check_unique(picked)
        for shortfall in prepared.candidates.shortfalls(picked):
            _log.warning(shortfall)
        if not len(picked):
            raise VlmixError(f"recipe {recipe.name}: no sample is left; `vlmix plan` shows what each source gives")
        done = _write_shards(prepared, picked, facts, partial, work, pool, annotations_only, progress)
        return _finish(prepared, done, rejects, partial, work, annotations_only)


def _check_images_exist(prepared: Prepared, roots: list[Path]) -> None:
    for name, positions in prepared.imageless():
        own = f" or with `image_root` in sources.{name}" if prepared.converted[name].image_roots else ""
        raise VlmixError(
            f"{name}: none of its {len(positions)} images is there, the first is "
            f"{prepared.candidates.images[positions[0]][0]}; looked below {' and '.join(map(str, roots))}; name the "
            f"image folder with --images{own}, or build with --annotations-only"
        )


def _pick_usable(
    prepared: Prepared,
    facts: dict[str, ImageInfo],
    rejects: list[Reject],
    pool: Pool,
    work: Path,
    progress: Progress,
) -> Indices:
    """Pick, examine the images of what was picked, replace what cannot be used, until all can. Fills `facts`."""
    candidates = prepared.candidates
    journal = _Journal(work / "images.jsonl")
    readers = [CandidateReader(path) for path in prepared.paths]
    judged: set[int] = set()
    offered = ~prepared.missing
    usable = offered.copy()
    while True:
        picked = candidates.pick(offered, usable)
        fresh = [i for i in picked.tolist() if candidates.images[i] and i not in judged]
        if not fresh:
            return picked
        placed = [i for i in fresh if candidates.containers[i] >= 0]
        loose = {image for i in fresh if candidates.containers[i] < 0 for image in candidates.images[i]}
        _probe_images(prepared, loose, facts, journal, pool, progress)
        copy_placed(prepared, placed, facts, work / "images", pool, progress)
        for position in fresh:
            judged.add(position)
            images = [facts[image] for image in candidates.images[position]]
            if problem := _unusable(images, candidates, position, readers):
                usable[position] = False
                rejects.append(candidates.reject(position, *problem))


def _unusable(
    images: list[ImageInfo], candidates: Candidates, position: int, readers: list[CandidateReader]
) -> tuple[int, str, str] | None:
    """The first of a candidate's images that cannot be used, and why, as (number, code, detail); None if all can."""
    for number, image in enumerate(images):
        if image.problem:
            return number, image.problem, f"{image.detail} ({Path(image.path).name})"
    entry, row = candidates.locate(position)
    conversation = readers[entry][row]
    for number, image in enumerate(images):
        if image_fit(conversation, number, image) is None:
            ref = conversation.images[number]
            detail = f"the file is {image.width}x{image.height}, the boxes were made on {ref.width}x{ref.height}"
            return number, "image_size", detail
    return None


class _Journal:
    """What was found out about files, line by line with a checksum, so that a resumed build examines nothing twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, ImageInfo] = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                checksum, _, text = line.partition(b" ")
                if checksum == _checksum(text):  # else the last line of a killed run, or damage
                    facts = msgspec.json.decode(text, type=ImageInfo)
                    self.known[facts.path] = facts

    def recall(self, path: Path) -> ImageInfo | None:
        """What is known of a file that has not changed since."""
        facts = self.known.get(str(path))
        if facts is None:
            return None
        try:
            now = stamp(path)
            if now == facts.stamp:
                return facts
            same = facts.digest and now.size == facts.bytes and file_digest(path) == facts.digest
        except OSError:
            return None
        return msgspec.structs.replace(facts, stamp=now) if same else None

    def add(self, facts: list[ImageInfo]) -> None:
        with disk_errors(self._path), self._path.open("ab") as file:
            # Starts on a new line: a killed run may have left half of one.
            texts = [msgspec.json.encode(fact) for fact in facts]
            file.write(b"\n" + b"\n".join(_checksum(text) + b" " + text for text in texts) + b"\n")


def _checksum(text: bytes) -> bytes:
    return xxh3_64_hexdigest(text).encode()


def _probe_images(
    prepared: Prepared,
    images: set[str],
    facts: dict[str, ImageInfo],
    journal: _Journal,
    pool: Pool,
    progress: Progress,
) -> None:
    """Fill `facts` for `images`: of the files that may be an image, the first that is sound, else the first."""
    waiting = []
    for image in sorted(images - facts.keys()):
        known = [journal.recall(path) for path in prepared.files[image]]
        sound = next((f for f in known if f is not None and not f.problem), None)
        if sound is not None and None not in known[: known.index(sound)]:
            facts[image] = sound
        elif None not in known and known[0] is not None:
            facts[image] = known[0]
        else:
            waiting.append((image, prepared.files[image]))
    done, total = len(facts), len(facts) + len(waiting)
    progress("checking images", done, total)
    chunks = [waiting[i : i + _CHUNK] for i in range(0, len(waiting), _CHUNK)]
    for chunk, results in pool.map(probe_chunk, chunks):
        journal.add([f for tried in results for f in tried])
        for (image, _), tried in zip(chunk, results):
            facts[image] = tried[-1] if not tried[-1].problem else tried[0]
        done += len(chunk)
        progress("checking images", done, total)


def probe_chunk(chunk: list[tuple[str, list[Path]]]) -> list[list[ImageInfo]]:
    """Per image, the facts of its files up to the first sound one; runs in a worker."""
    results = []
    for _, paths in chunk:
        tried: list[ImageInfo] = []
        for path in paths:
            tried.append(probe(path))
            if not tried[-1].problem:
                break
        results.append(tried)
    return results


def _write_shards(
    prepared: Prepared,
    picked: Indices,
    facts: dict[str, ImageInfo],
    partial: Path,
    work: Path,
    pool: Pool,
    annotations_only: bool,
    progress: Progress,
) -> list[ShardDone]:
    recipe, candidates = prepared.recipe, prepared.candidates
    seen = candidates.epoch_counts(picked)
    has_image = np.array([bool(candidates.images[i]) for i in picked], dtype=np.bool_)
    schema = pa.schema([*SAMPLES, *candidates.schema])
    order = arrange(picked, candidates.ids, has_image, recipe.order, recipe.seed, recipe.samples_per_shard)
    picks = []
    for natural_index in order.tolist():
        position = int(picked[natural_index])
        entry, row = candidates.locate(position)
        images = tuple(facts[image] for image in candidates.images[position]) if facts else ()
        picks.append(Pick(entry, row, natural_index, int(seen[natural_index]), images))
    ids = [candidates.ids[int(picked[i])] for i in order]
    texts = [converted.digest for converted in prepared.converted.values()]
    # Of files their bytes count, which the digest stands for.
    same = [[msgspec.structs.replace(image, stamp=None) for image in pick.facts] for pick in picks]
    places = [(pick.entry, pick.row, pick.natural_index, pick.repeat) for pick in picks]
    plan = msgspec.msgpack.encode((VERSION, libraries(), recipe.resolved(), annotations_only, texts, ids, places, same))
    described = schema.serialize().to_pybytes()
    plan += described
    size = recipe.samples_per_shard
    jobs = [
        ShardJob(
            i // size,
            i,
            partial,
            work,
            picks[i : i + size],
            prepared.paths,
            recipe.prompts,
            not annotations_only,
            described,
        )
        for i in range(0, len(picks), size)
    ]
    done = run_shards(write_shard, jobs, plan, pool, progress)
    write_index(partial, work, done, schema)
    return done


def _finish(
    prepared: Prepared, done: list[ShardDone], rejects: list[Reject], partial: Path, work: Path, annotations_only: bool
) -> Manifest:
    recipe = prepared.recipe
    rejects = sorted(rejects, key=lambda r: (r.source, r.id, r.round, r.reason, r.detail))
    write_rejects(partial / REJECTS_NAME, rejects)
    counts = merge_counts(done)
    sources = {
        name: SourceInfo(license=license, homepage=homepage, counts=counts.get(name, Counts()))
        for name in prepared.candidates.labels()
        for license, homepage in [prepared.homes(name)]
    }
    reasons: dict[str, Counter[str]] = {}
    for reject in rejects:
        reasons.setdefault(reject.source, Counter())[reject.reason] += 1
    manifest = Manifest(
        kind="annotations" if annotations_only else "mixture",
        name=recipe.name,
        seed=recipe.seed,
        recipe=recipe.resolved(),
        samples=sum(c.samples for c in counts.values()),
        sources=sources,
        libraries={} if annotations_only else libraries(),
        rejects={source: dict(sorted(counter.items())) for source, counter in sorted(reasons.items())},
        inputs={name: converted.inputs for name, converted in prepared.converted.items()},
        shards=[d.shard for d in done if d.shard is not None],
        checksums={},
    )
    return finalize(partial, manifest)
