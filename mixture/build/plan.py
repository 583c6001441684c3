"""From a recipe to the exact list of samples: read the sources, find the images, pick. Writes nothing but its work."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.build.candidates import Candidates, Mask
from vlmix.mixture.build.extract import (
    CandidateFiles,
    CandidateReader,
    Converted,
    ConvertJob,
    arrow_file,
    convert,
    merged,
    repeated_id,
)
from vlmix.mixture.build.loose import LooseImages
from vlmix.mixture.build.raw_copy import copy_of_raw, copy_raw, told_by_url
from vlmix.mixture.build.recipe import Recipe
from vlmix.mixture.build.source import RawFolder, Source, reject_source
from vlmix.mixture.dataset.rejects import RejectRows
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.dataset.tar import BLOCK
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.image_index import ImageFolder, ImageIndex
from vlmix.mixture.io.pool import Engine, Progress, silent
from vlmix.mixture.io.storage import is_url, place
from vlmix.mixture.keyed import Indices, distinct
from vlmix.mixture.record import IMAGE_TOKEN
from vlmix.mixture.render import render

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What is known before any image is opened."""

    recipe: Recipe
    known: Mapping[str, Source]
    converted: dict[str, Converted]
    candidates: Candidates
    loose: LooseImages | None
    """Where the images that are files of their own lie; None: images are left alone."""
    missing: Mask
    """[N]: candidates whose image was not found."""
    raw: Path
    """The folder of the official files, a copy where they are in a store."""

    def homes(self, source: str) -> tuple[str, str]:
        """(license, home page) of a dataset named in a sample's `source`: what the recipe's entry says, else what its
        builder says. Of a file of one's own nothing else is known."""
        for name, entry in self.recipe.sources.items():
            builder = self.known[entry.builder]
            if source == (name if builder.own else builder.name):
                defaults = ("unknown", "") if builder.own else (builder.license, builder.homepage)
                license = defaults[0] if entry.license is None else entry.license
                return license, defaults[1] if entry.homepage is None else entry.homepage
        if source in self.known:
            return self.known[source].license, self.known[source].homepage
        for builder in self.known.values():
            if source in builder.parts:
                return builder.parts[source]
        return "unknown", ""

    def rejects(self) -> Iterator[pa.RecordBatch]:
        """What was dropped while reading."""
        for path in self.candidates.parts:
            yield from arrow_file(CandidateFiles(path).rejects).to_batches()
        repeated = RejectRows()
        for position, part, row in zip(self.candidates.repeated, *self.candidates.locate(self.candidates.repeated)):
            name = self.candidates.names[int(self.candidates.entries(position.reshape(1))[0])]
            said = reject_source(self.known[self.recipe.sources[name].builder], name)
            repeated.add(repeated_id(said, CandidateReader(self.candidates.parts[int(part)])[int(row)]))
        yield from repeated.batches()

    def imageless(self) -> Iterator[tuple[str, Indices]]:
        """(name, positions that need an image) of each entry none of whose images is there, as where their folder was
        not named. A few such rows among text are rejects like any other."""
        candidates = self.candidates
        needing = (candidates.containers < 0) & (candidates.column("num_images") > 0)
        for name in candidates.names:
            members = candidates.members(name)
            positions = members[needing[members]]
            if 10 * len(positions) > len(members) and self.missing[positions].all():
                yield name, positions


def prepare(
    recipe: Recipe,
    known: Mapping[str, Source],
    raw: Path | str,
    work: Path,
    pool: Engine,
    image_roots: Sequence[Path | str] | None,
    progress: Progress = silent,
    *,
    sets: bool = False,
) -> Prepared:
    """Read every source into `work` and look up the images below `image_roots` (None: leave images alone). `raw` and
    `image_roots` may be URLs of stores: what is read of `raw` is copied into `work`, with `sets` the evaluation sets
    that the recipe names, too."""
    if is_url(raw):
        work.mkdir(parents=True, exist_ok=True)
        url, copy = str(place(raw)), copy_of_raw(work)
        copy_raw(url, recipe, known, copy, pool, progress, sets=sets)
        with told_by_url(raw, work):
            return _prepare(recipe, known, copy, url, work, pool, image_roots, progress)
    return _prepare(recipe, known, Path(raw), "", work, pool, image_roots, progress)


def _prepare(
    recipe: Recipe,
    known: Mapping[str, Source],
    raw: Path,
    origin: str,
    work: Path,
    pool: Engine,
    image_roots: Sequence[Path | str] | None,
    progress: Progress,
) -> Prepared:
    if not raw.is_dir():
        state = "is not a folder" if raw.exists() else "does not exist"
        raise VlmixError(f"{raw} {state}; it should hold one folder of official files per source")
    work.mkdir(parents=True, exist_ok=True)
    jobs = {name: _jobs(number, name, recipe, known, raw, origin, work) for number, name in enumerate(recipe.sources)}
    converted = _convert_all(jobs, pool, progress)
    unsplit = {name: _whole(jobs[name][0]) for name, parts in converted.items() if None in parts or _clash(jobs[name])}
    if unsplit:
        jobs.update(unsplit)
        converted.update(_convert_all(unsplit, pool, progress))
    whole: dict[str, Converted] = {}
    paths: dict[str, list[tuple[Path, int]]] = {}
    for name, of_entry in jobs.items():
        parts = [part for part in converted[name] if part is not None]
        whole[name] = merged(name, of_entry[0].source, raw, parts)
        paths[name] = [(job.out, len(part.containers)) for job, part in zip(of_entry, parts)]
        for about in whole[name].about:
            _log.info(about)
        for note in whole[name].notes:
            _log.warning(note)
    candidates = Candidates(recipe, paths)
    if image_roots is None:
        return Prepared(recipe, known, whole, candidates, None, np.zeros(len(candidates), dtype=np.bool_), raw)
    aliases: dict[str, tuple[ImageFolder, ...]] = {}
    for entry in recipe.sources.values():
        aliases.update(known[entry.builder].images)
    own = {
        f"{name}/": ImageIndex([*entry.image_roots, *image_roots], {})
        for name, entry in whole.items()
        if entry.image_roots
    }
    loose = LooseImages(candidates, ImageIndex(image_roots, aliases), own, progress)
    return Prepared(recipe, known, whole, candidates, loose, loose.missing(), raw)


def _convert_all(
    jobs: Mapping[str, list[ConvertJob]], pool: Engine, progress: Progress
) -> dict[str, list[Converted | None]]:
    """What was read of each part of each entry; None: the part cannot be read by itself."""
    every = [job for of_entry in jobs.values() for job in of_entry]
    done: dict[Path, Converted | None] = {}
    progress("reading sources", 0, len(every))
    for job, result in pool.map(convert, every):
        done[job.out] = result
        progress("reading sources", len(done), len(every))
    return {name: [done[job.out] for job in of_entry] for name, of_entry in jobs.items()}


def _jobs(
    number: int, name: str, recipe: Recipe, known: Mapping[str, Source], raw: Path, origin: str, work: Path
) -> list[ConvertJob]:
    """One for each part of an entry."""
    entry = recipe.sources[name]
    source = known[entry.builder]
    parts = source.split(RawFolder(raw, source, origin=origin), entry.options, name)
    common = name, entry, source, raw, recipe.seed, recipe.prompts, recipe.max_images
    outs = [
        work / (f"{number:03d}-{i:03d}.arrow" if len(parts) > 1 else f"{number:03d}.arrow") for i in range(len(parts))
    ]
    return [ConvertJob(*common, part, out, origin) for part, out in zip(parts, outs)]


def _clash(jobs: list[ConvertJob]) -> bool:
    """Whether two parts of an entry give the same ids, which its source would have numbered."""
    if len(jobs) == 1 or not jobs[0].source.numbers:
        return False
    ids = np.concatenate([arrow_file(CandidateFiles(job.out).keys)["rank"].to_numpy() for job in jobs])
    return not distinct(ids)


def _whole(part: ConvertJob) -> list[ConvertJob]:
    """The entry of a part, read in one piece."""
    out = part.out.with_name(f"{part.out.name.partition('-')[0]}.arrow")
    return [msgspec.structs.replace(part, part=None, out=out)]


class PlanRow(Struct, frozen=True, kw_only=True):
    """What a build would hold of one dataset. `missing` counts candidates that the recipe wants and whose image is not
    there; `bytes` is the size of the shards to within the length of ids and sizes in the text."""

    source: str
    samples: int
    samples_per_epoch: int
    rounds: int
    words: int
    images: int
    missing: int
    rejects: int
    bytes: int
    license: str
    tokens: int | None = None
    """Of all turns' texts, without image, template and special tokens; a box counts as one of two decimals."""


def plan(
    prepared: Prepared, tokens: Callable[[Sequence[str]], int] | None = None, progress: Progress = silent
) -> list[PlanRow]:
    """The composition that a build would have, dataset by dataset in recipe order; with `tokens`, which counts those of
    texts, in tokens too.

    A recipe entry none of whose images is there is planned from its annotations alone.
    """
    candidates = prepared.candidates
    if prepared.recipe.drops:
        _log.warning("what `dedup` and `decontaminate` drop is decided when pictures are read: a build may hold less")
    offered = ~prepared.missing
    for _, absent in prepared.imageless():
        offered[absent] = True
    picked = candidates.pick(offered, offered)
    candidates.check_unique(picked)
    for shortfall in candidates.shortfalls(picked):
        _log.warning(shortfall)
    seen = candidates.epoch_counts(picked)
    lost = np.bincount(candidates.sources[prepared.missing & candidates.wanted], minlength=len(candidates.datasets))
    rejects = Counter[str]()
    for batch in prepared.rejects():
        rejects.update({row["values"]: row["counts"] for row in batch["source"].value_counts().to_pylist()})
    rounds, words = candidates.column("num_rounds"), candidates.column("num_words")
    images, sizes = _stored_sizes(prepared, picked)
    counts = None if tokens is None else _tokens(prepared, picked, tokens, progress)
    groups = candidates.by_dataset(candidates.sources[picked], np.arange(len(picked)))
    return [
        PlanRow(
            source=source,
            samples=len(members),
            samples_per_epoch=int(seen[members].sum()),
            rounds=int(rounds[picked[members]].sum()),
            words=int(words[picked[members]].sum()),
            images=int(images[members].sum()),
            missing=int(lost[candidates.datasets.index(source)]),
            rejects=rejects[source],
            bytes=int(sizes[members].sum()),
            license=prepared.homes(source)[0],
            tokens=None if counts is None else int(counts[members].sum()),
        )
        for source in candidates.labels()
        for members in [groups.get(source, np.empty(0, dtype=np.int64))]
    ]


def _tokens(
    prepared: Prepared, picked: Indices, tokens: Callable[[Sequence[str]], int], progress: Progress
) -> NDArray[np.int64]:
    """[len(picked)] tokens of each sample's texts."""
    candidates = prepared.candidates
    readers = [CandidateReader(path) for path in candidates.parts]
    counts = np.zeros(len(picked), dtype=np.int64)
    for number, (part, row) in enumerate(zip(*candidates.locate(picked))):
        texts = render(readers[int(part)][int(row)], prepared.recipe.prompts, count_only=True)
        counts[number] = tokens([text.replace(IMAGE_TOKEN, "") for text in texts])
        if number % 1000 == 0:
            progress("counting tokens", number, len(picked))
    progress("counting tokens", len(picked), len(picked))
    return counts


def _stored_sizes(prepared: Prepared, picked: Indices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """([n] images of each sample that are there, [n] bytes that it takes in a shard)."""
    candidates = prepared.candidates
    numbers, counts = candidates.image_numbers(picked)
    owners = np.repeat(np.arange(len(picked)), counts)
    sizes = np.repeat(_mean_bytes(prepared, picked), counts)
    if prepared.loose is not None:
        loose = prepared.loose.numbers[numbers]
        sizes = np.where(loose < 0, sizes, _file_sizes(prepared.loose, loose))

    def summed(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(np.diff(np.append(0, np.cumsum(values))[np.append(0, np.cumsum(counts))]))

    names = np.concatenate(
        [np.empty(0, np.int64), *(pc.utf8_length(c).to_numpy() for c in candidates.image_paths.chunks)]
    )
    lengths = names[numbers]
    first = np.zeros(len(picked), dtype=np.int64)
    first[counts > 0] = lengths[(np.cumsum(counts) - counts)[counts > 0]]
    # A sample's JSON, about: its texts, and the names of fields around them and around its images.
    rounds, characters = candidates.column("num_rounds")[picked], candidates.column("characters")[picked]
    texts = 120 + 56 * rounds + characters + first + summed(38 + lengths)
    return np.bincount(owners, sizes > 0, len(picked)).astype(np.int64), _in_tar(texts) + summed(_in_tar(sizes))


def _in_tar(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(np.where(sizes > 0, sizes + -sizes % BLOCK + BLOCK, 0))


def _mean_bytes(prepared: Prepared, picked: Indices) -> NDArray[np.int64]:
    """[n] bytes of the container of each sample for each image that is taken from it; 0 without a container."""
    candidates = prepared.candidates
    held, entries = candidates.column("num_images"), candidates.entries(picked)
    sizes = np.zeros(len(picked), dtype=np.int64)
    for entry, (name, converted) in enumerate(prepared.converted.items()):
        if not converted.containers:
            continue
        members = slice(candidates.starts[name], candidates.starts[name] + candidates.sizes[name])
        numbers = candidates.containers[members]
        images = np.bincount(numbers[numbers >= 0], held[members][numbers >= 0], len(converted.containers))
        files = np.array([Path(container.path).stat().st_size for container in converted.containers])
        mine = np.flatnonzero((entries == entry) & (candidates.containers[picked] >= 0))
        sizes[mine] = (files // np.maximum(images, 1).astype(np.int64))[candidates.containers[picked[mine]]]
    return sizes


def _file_sizes(loose: LooseImages, numbers: NDArray[np.int32]) -> NDArray[np.int64]:
    """[m] bytes of the likeliest file of each image; 0 for one that is not there, or not in a file of its own (-1)."""
    sizes = np.zeros(len(loose) + 1, dtype=np.int64)
    wanted = np.unique(numbers[numbers >= 0]).astype(np.int64)
    for block, paths in loose.paths(wanted[loose.location[wanted] >= 0]):
        listed = loose.stamps(block, paths)
        sizes[block] = [_size(path) if stamp is None else stamp.size for path, stamp in zip(paths, listed)]
    return np.asarray(sizes[numbers])


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (half a million times)
    except OSError:  # a link that leads nowhere; a build finds out and says so
        return 0


def missing_rejects(prepared: Prepared) -> Iterator[Reject]:
    """A reject for every conversation that the recipe wants and whose image was not found."""
    candidates, loose = prepared.candidates, prepared.loose
    assert loose is not None
    detail = "no file of that name, in any of its folders or with any image extension"
    for position in np.flatnonzero(prepared.missing & candidates.wanted):
        absent = loose.location[loose.numbers[candidates.image_numbers(position.reshape(1))[0]]] < 0
        yield candidates.reject(int(position), int(np.argmax(absent)), "image_missing", detail)
