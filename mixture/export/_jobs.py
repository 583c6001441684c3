"""Files of an export, made by workers: Parquet files, a job each, and files of JSON, a job for each row group, whose
texts are put one behind the other in order. The bytes depend on the mixture alone."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from vlmix.mixture.dataset.groups import Stored
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export._rows import LooseImages, Part, parts, plain, row_count
from vlmix.mixture.io.atomic import write_parquet
from vlmix.mixture.io.pool import Pool, Progress

Row = dict[str, Any]


class Entry(NamedTuple):
    """A sample in a file: which file (""; the only one), its text, and how often it stands there."""

    file: str
    text: str
    times: int


@dataclass(frozen=True)
class _TableJob:
    path: Path
    parts: list[Part]
    skip: int
    """Rows, repeats counted, of the first part that are in files before."""
    count: int
    converted: Callable[[Row], Row]
    schema: pa.Schema
    per_group: int


def write_tables(
    folder: Path,
    mixture: Reader,
    progress: Progress,
    workers: int,
    converted: Callable[[Row], Row],
    schema: pa.Schema,
    per_file: int | None = None,
    per_group: int = 100,
) -> int:
    """The samples, `converted` and as often as their `repeat` says, as `train-00000-of-00009.parquet` …, by default of
    `samples_per_shard` rows, in row groups that a reader can hold with their images; returns the number of rows.
    `converted` goes to the workers, so it is a function of a module or an object of one; what it has as `pictures`
    (`Stored`) or `images` (`LooseImages`) is read ahead from a store."""
    total, per_file = row_count(mixture), per_file or int(mixture.manifest.recipe["samples_per_shard"])
    files = max(-(-total // per_file), 1)

    def jobs() -> Iterator[_TableJob]:
        ahead = parts(mixture)
        held: list[Part] = []
        skip = 0
        for number in range(files):
            count = min(per_file, total - number * per_file)
            while sum(part.repeats for part in held) < skip + count:
                held.append(next(ahead))
            path = folder / f"train-{number:05d}-of-{files:05d}.parquet"
            yield _TableJob(path, list(held), skip, count, converted, schema, per_group)
            skip += count
            while held and skip >= held[0].repeats:
                skip -= held.pop(0).repeats

    done = 0
    with Pool(min(workers, files)) as pool:
        for job, _ in pool.map(_write_table, jobs()):
            progress("exporting", done, total)
            done += job.count
    progress("exporting", total, total)
    return total


def _stored(converter: object) -> Stored | None:
    """What makes rows of samples, and reads images for that."""
    images = getattr(converter, "images", None)
    return getattr(converter, "pictures", images.pictures if isinstance(images, LooseImages) else None)


def _write_table(job: _TableJob) -> None:
    def repeated() -> Iterator[Row]:
        first = job.parts[0].table()
        ends = np.cumsum(first["repeat"].to_numpy())
        inside = int(np.searchsorted(ends, job.skip, side="right"))
        left = job.skip - int(ends[inside - 1] if inside else 0)
        tables = (part.table() for part in job.parts[1:])
        for table in chain([first.slice(inside)], tables):
            for row in plain(table, _stored(job.converted)):
                new = job.converted(row)
                yield from [new] * (row["repeat"] - left)
                left = 0

    def batches() -> Iterator[pa.RecordBatch]:
        of_file = islice(repeated(), job.count)
        while group := list(islice(of_file, job.per_group)):
            yield pa.RecordBatch.from_pylist(group, job.schema)

    write_parquet(job.path, batches(), job.schema)


@dataclass(frozen=True)
class _TextJob:
    number: int
    part: Part
    entry: Callable[[Row], Entry | None]
    separator: str


def texts_in_order(
    mixture: Reader, progress: Progress, workers: int, entry: Callable[[Row], Entry | None], separator: str
) -> Iterator[tuple[str, bytes, int]]:
    """(file, bytes to append to it, entries in these) of all samples, in order; None leaves a sample out. `entry` goes
    to the workers, so it is a function of a module or an object of one, whose images are read ahead as in
    `write_tables`."""
    done, count, total = {}, 0, len(mixture)
    jobs = (_TextJob(number, part, entry, separator) for number, part in enumerate(parts(mixture)))
    following, groups = 0, mixture.root_index().num_row_groups
    with Pool(min(workers, groups)) as pool:
        for job, texts in pool.map(_texts, jobs):
            progress("exporting", count, total)
            count += len(job.part.rows)
            done[job.number] = texts
            while following in done:
                yield from done.pop(following)
                following += 1
    progress("exporting", total, total)


def _texts(job: _TextJob) -> list[tuple[str, bytes, int]]:
    found: dict[str, list[str]] = {}
    for row in plain(job.part.table(), _stored(job.entry)):
        if entry := job.entry(row):
            found.setdefault(entry.file, []).extend([entry.text] * entry.times)
    return [(file, job.separator.join(texts).encode(), len(texts)) for file, texts in found.items()]


def write_sources(
    folder: Path,
    mixture: Reader,
    progress: Progress,
    workers: int,
    suffix: str,
    entry: Callable[[Row], Entry],
    start: str = "",
    separator: str = "",
    end: str = "",
) -> tuple[dict[str, str], Counter[str]]:
    """A file for each source that has samples: `start`, its entries with `separator` between them, `end`.

    Returns source -> name of its file, and source -> number of entries. Raises VlmixError where two sources would have
    the same name.
    """
    names: dict[str, str] = {}
    for source in mixture.manifest.sources:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", source).lstrip(".") or "_"
        if name in names.values():
            raise VlmixError(f"sources {source!r} and another would both be called {name}; rename one in the recipe")
        names[source] = name
    files: dict[str, BinaryIO] = {}
    entries: Counter[str] = Counter()
    with ExitStack() as stack:
        for source, text, count in texts_in_order(mixture, progress, workers, entry, separator):
            if source not in files:
                files[source] = stack.enter_context((folder / f"{names[source]}{suffix}").open("wb"))
            files[source].write((separator if entries[source] else start).encode() + text)
            entries[source] += count
        for file in files.values():
            file.write(end.encode())
    return {source: f"{name}{suffix}" for source, name in names.items() if source in files}, entries
