"""From a recipe to the exact list of samples: read the sources, find the images, pick. Writes nothing but its work."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.build.candidates import Candidates, Mask, strata
from vlmix.mixture.build.extract import CandidateReader, Converted, ConvertJob, convert, merged
from vlmix.mixture.build.recipe import Recipe
from vlmix.mixture.build.source import RawFolder, Source
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.dataset.tar import BLOCK
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.image_index import ImageFolder, ImageIndex
from vlmix.mixture.io.pool import Pool, Progress, silent
from vlmix.mixture.keyed import Indices
from vlmix.mixture.record import IMAGE_TOKEN
from vlmix.mixture.render import render

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What is known before any image is opened."""

    recipe: Recipe
    known: Mapping[str, Source]
    converted: dict[str, Converted]
    paths: list[list[Path]]
    """The files of candidates of each entry."""
    candidates: Candidates
    files: dict[str, list[Path]]
    """Image -> files that may be it; empty without images."""
    missing: Mask
    """[N]: candidates whose image was not found."""

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

    def imageless(self) -> Iterator[tuple[str, list[int]]]:
        """(name, positions that need an image) of each entry none of whose images is there, as where their folder was
        not named. A few such rows among text are rejects like any other."""
        for name in self.candidates.names:
            members = self.candidates.members(name)
            loose = members[self.candidates.containers[members] < 0]
            positions = [i for i in loose.tolist() if self.candidates.images[i]]
            if 10 * len(positions) > len(members) and self.missing[positions].all():
                yield name, positions


def prepare(
    recipe: Recipe,
    known: Mapping[str, Source],
    raw: Path,
    work: Path,
    pool: Pool,
    image_roots: list[Path] | None,
    progress: Progress = silent,
) -> Prepared:
    """Read every source into `work` and look up the images below `image_roots` (None: leave images alone)."""
    if not raw.is_dir():
        state = "is not a folder" if raw.exists() else "does not exist"
        raise VlmixError(f"{raw} {state}; it should hold one folder of official files per source")
    work.mkdir(parents=True, exist_ok=True)
    names = list(recipe.sources)
    jobs = {name: _jobs(number, name, recipe, known, raw, work) for number, name in enumerate(names)}
    every = [job for of_entry in jobs.values() for job in of_entry]
    done: dict[Path, Converted] = {}
    progress("reading sources", 0, len(every))
    for job, result in pool.map(convert, every):
        done[job.out] = result
        progress("reading sources", len(done), len(every))
    converted: dict[str, Converted] = {}
    tables: dict[str, list[pa.Table]] = {}
    for name, of_entry in jobs.items():
        parts = [done[job.out] for job in of_entry]
        converted[name] = merged(name, of_entry[0].source, raw, parts)
        before = accumulate((len(part.containers) for part in parts), initial=0)
        summaries = CandidateReader([job.out for job in of_entry]).summaries()
        tables[name] = [_renumbered(table, by) for table, by in zip(summaries, before)]
        for about in converted[name].about:
            _log.info(about)
        for note in converted[name].notes:
            _log.warning(note)
    paths = [[job.out for job in of_entry] for of_entry in jobs.values()]
    candidates = Candidates(recipe, tables)
    files: dict[str, list[Path]] = {}
    missing = np.zeros(len(candidates.ids), dtype=np.bool_)
    if image_roots is not None:
        aliases: dict[str, tuple[ImageFolder, ...]] = {}
        for entry in recipe.sources.values():
            aliases.update(known[entry.builder].images)
        index = ImageIndex(image_roots, aliases)
        own = {
            f"{name}/": ImageIndex([*map(Path, converted[name].image_roots), *image_roots], {})
            for name in names
            if converted[name].image_roots
        }
        loose = np.flatnonzero(candidates.containers < 0).tolist()
        wanted = dict.fromkeys(image for position in loose for image in candidates.images[position])
        for number, image in enumerate(wanted):
            prefix = image[: image.find("/") + 1]
            found = own[prefix].candidates(image.removeprefix(prefix)) if prefix in own else []
            files[image] = found or index.candidates(image)
            if number % 10_000 == 0:
                progress("finding images", number, len(wanted))
        progress("finding images", len(wanted), len(wanted))
        for position in loose:
            missing[position] = not all(files[image] for image in candidates.images[position])
    return Prepared(recipe, known, converted, paths, candidates, files, missing)


def _jobs(
    number: int, name: str, recipe: Recipe, known: Mapping[str, Source], raw: Path, work: Path
) -> list[ConvertJob]:
    """One for each part of an entry."""
    entry = recipe.sources[name]
    source = known[entry.builder]
    parts = source.split(RawFolder(raw, source), entry.options, name)
    common = name, entry, source, raw, recipe.seed, recipe.prompts, recipe.max_images
    outs = [
        work / (f"{number:03d}-{i:03d}.arrow" if len(parts) > 1 else f"{number:03d}.arrow") for i in range(len(parts))
    ]
    return [ConvertJob(*common, part, out) for part, out in zip(parts, outs)]


def _renumbered(table: pa.Table, by: int) -> pa.Table:
    """The rows of a part, whose containers follow `by` others."""
    if not by:
        return table
    at = table.column_names.index("container")
    numbers = pc.if_else(pc.greater_equal(table["container"], 0), pc.add(table["container"], by), -1)
    return table.set_column(at, "container", numbers.cast(pa.int32()))


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
    offered = ~prepared.missing
    for _, absent in prepared.imageless():
        offered[absent] = True
    picked = candidates.pick(offered, offered)
    candidates.check_unique(picked)
    for shortfall in candidates.shortfalls(picked):
        _log.warning(shortfall)
    seen = candidates.epoch_counts(picked)
    rejects = [r for c in prepared.converted.values() for r in c.rejects]
    rows = []
    wanted_lost = np.flatnonzero(prepared.missing & candidates.wanted).tolist()
    rounds, words, characters = (
        candidates.table[column].to_numpy() for column in ("num_rounds", "num_words", "characters")
    )
    means = _mean_bytes(prepared)
    counts = None if tokens is None else _tokens(prepared, picked, tokens, progress)
    groups = strata([candidates.sources[i] for i in picked], np.arange(len(picked)))
    for source in candidates.labels():
        members = groups.get(source, np.empty(0, dtype=np.int64))
        positions = picked[members]
        sizes = [size for position in positions.tolist() for size in _sizes(prepared, position, means)]
        listed = zip((candidates.images[i] for i in positions), rounds[positions], characters[positions])
        texts = [_json_size(images, int(turns), int(length)) for images, turns, length in listed]
        rows.append(
            PlanRow(
                source=source,
                samples=len(members),
                samples_per_epoch=int(seen[members].sum()),
                rounds=int(rounds[positions].sum()),
                words=int(words[positions].sum()),
                images=len(sizes) - sizes.count(0),
                missing=sum(candidates.sources[i] == source for i in wanted_lost),
                rejects=sum(r.source == source for r in rejects),
                bytes=sum(s + -s % BLOCK + BLOCK for s in (*sizes, *texts) if s),
                license=prepared.homes(source)[0],
                tokens=None if counts is None else int(counts[members].sum()),
            )
        )
    return rows


def _tokens(
    prepared: Prepared, picked: Indices, tokens: Callable[[Sequence[str]], int], progress: Progress
) -> NDArray[np.int64]:
    """[len(picked)] tokens of each sample's texts."""
    readers = [CandidateReader(path) for path in prepared.paths]
    counts = np.zeros(len(picked), dtype=np.int64)
    for number, position in enumerate(picked.tolist()):
        entry, row = prepared.candidates.locate(position)
        texts = render(readers[entry][row], prepared.recipe.prompts, count_only=True)
        counts[number] = tokens([text.replace(IMAGE_TOKEN, "") for text in texts])
        if number % 1000 == 0:
            progress("counting tokens", number, len(picked))
    progress("counting tokens", len(picked), len(picked))
    return counts


def _json_size(images: Sequence[str], rounds: int, characters: int) -> int:
    """Bytes of a sample's JSON, about: its texts, and the names of fields around them and around its images."""
    return 120 + 56 * rounds + characters + len("".join(images[:1])) + sum(38 + len(image) for image in images)


def _mean_bytes(prepared: Prepared) -> dict[tuple[str, int], int]:
    """(entry, number of its container) -> bytes of the file for each image that is taken from it."""
    candidates, means = prepared.candidates, {}
    counts = candidates.table["num_images"].to_numpy()
    for name, converted in prepared.converted.items():
        members = slice(candidates.starts[name], candidates.starts[name] + candidates.sizes[name])
        numbers = candidates.containers[members]
        inside = numbers >= 0
        images = np.bincount(numbers[inside], counts[members][inside], len(converted.containers))
        for number, container in enumerate(converted.containers):
            means[name, number] = int(Path(container.path).stat().st_size // max(images[number], 1))
    return means


def _sizes(prepared: Prepared, position: int, means: Mapping[tuple[str, int], int]) -> list[int]:
    """Bytes of each image of a candidate, of those in containers on average; 0 for one that is not there."""
    candidates = prepared.candidates
    if (number := int(candidates.containers[position])) >= 0:
        name = candidates.names[candidates.locate(position)[0]]
        return [means[name, number]] * len(candidates.images[position])
    sizes = []
    for image in candidates.images[position]:
        files = prepared.files.get(image)
        try:
            sizes.append(files[0].stat().st_size if files else 0)
        except OSError:  # a link that leads nowhere; a build finds out and says so
            sizes.append(0)
    return sizes


def missing_rejects(prepared: Prepared) -> Iterator[Reject]:
    """A reject for every conversation that the recipe wants and whose image was not found."""
    candidates = prepared.candidates
    for position in np.flatnonzero(prepared.missing & candidates.wanted).tolist():
        detail = "no file of that name, in any of its folders or with any image extension"
        first = next(n for n, image in enumerate(candidates.images[position]) if not prepared.files[image])
        yield candidates.reject(position, first, "image_missing", detail)
