"""Pictures of the pages: files named by their bytes, so that a picture that several samples share is written once."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.images import decoded, image_xxh3
from vlmix.mixture.io.pool import Engine, Progress, silent
from vlmix.mixture.io.storage import StoreError

FOLDER = "pictures"
SIDE, QUALITY = 384, 45
"""Of a reduced picture: its longer side in pixels, and its JPEG quality. A photograph has about 13 KB."""
SMALL = 24_000
"""Bytes up to which a stored picture stands in the gallery itself."""
CHUNK = 32  # samples that a worker reads at a time


class Picture(Struct, frozen=True):
    """`full` and `thumb` are paths below the pages; both "" where there is nothing to show, and `problem` says why."""

    full: str = ""
    thumb: str = ""
    problem: str = ""


class Job(Struct, frozen=True):
    """Samples of one root, by row, whose pictures go below `out`: with `stored`, their stored bytes as well."""

    root: str
    """Its path or URL."""
    manifest: str
    """Its sha256."""
    rows: list[int]
    out: Path
    stored: bool


def write_pictures(
    root: Reader, rows: NDArray[np.int64], out: Path, stored: bool, pool: Engine, progress: Progress = silent
) -> dict[int, list[Picture]]:
    """Row of the root -> the pictures of its sample, which are files below `out` from now on."""
    (out / FOLDER).mkdir(exist_ok=True)
    place, manifest = root.root.name, root.manifest.sha256
    jobs = [Job(place, manifest, rows[at : at + CHUNK].tolist(), out, stored) for at in range(0, len(rows), CHUNK)]
    made: dict[int, list[Picture]] = {}
    progress("pictures", 0, len(rows))
    for _, done in pool.map(write_some, jobs):
        made |= done
        progress("pictures", len(made), len(rows))
    return made


def write_some(job: Job) -> dict[int, list[Picture]]:
    """What `write_pictures` gives, for one job; runs in a worker."""
    reader = _opened(job.root, job.manifest)
    try:
        raws = reader.raws(job.rows)
    except StoreError:
        raise
    except VlmixError:  # one by one then, as each says what is wrong with it
        return {row: _of_sample(reader, row, job) for row in job.rows}
    return {row: [_written(jpeg, job) for jpeg in raw.jpegs] for row, raw in zip(job.rows, raws)}


@lru_cache(maxsize=1)
def _opened(root: str, manifest: str) -> Reader:
    """A worker reads the places of all samples once: they are most of an index."""
    return Reader.open(root)


def _of_sample(reader: Reader, row: int, job: Job) -> list[Picture]:
    try:
        jpegs: Sequence[bytes] = reader.raw(row).jpegs
    except StoreError:
        raise
    except VlmixError as error:  # a shard that is missing or damaged costs its pictures, and its texts are still there
        count = int(reader.column("num_images")[row].as_py())
        # Pages are shared: they say where in the mixture, and not where that lies on this machine.
        said = str(error).replace(f"{reader.root.name}/", "").replace(reader.root.name, Path(reader.root.name).name)
        return [Picture(problem=said)] * count
    return [_written(jpeg, job) for jpeg in jpegs]


def _written(jpeg: bytes, job: Job) -> Picture:
    name = f"{FOLDER}/{image_xxh3(jpeg)}"
    full, thumb = f"{name}.jpg", f"{name}-small.jpg"
    small = job.stored and len(jpeg) <= SMALL
    try:
        image = decoded(jpeg, SIDE)
        if not small and not (job.out / thumb).exists():
            image.save(job.out / thumb, "JPEG", quality=QUALITY)
    except VlmixError as error:
        return Picture(problem=str(error))
    if not job.stored:
        return Picture(thumb, thumb)
    if not (job.out / full).exists():
        (job.out / full).write_bytes(jpeg)
    return Picture(full, full if small else thumb)


def stored_bytes(root: Reader, rows: NDArray[np.int64]) -> int:
    """Bytes of the stored pictures of the samples in these rows, each picture counted once."""
    counts, (hashes, sizes) = root.image_fields("xxh3", "size")
    chosen = np.zeros(len(counts), dtype=bool)
    chosen[rows] = True
    mine = np.repeat(chosen, counts)
    kept = pa.array(mine)
    return sum(dict(zip(hashes.filter(kept).to_pylist(), sizes.filter(kept).to_pylist())).values())
