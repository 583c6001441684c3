"""Images inside containers: copied out once, in the order in which their container holds them, and judged on the way.

Shards take samples in another order, in which a container could only be read over and over.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from xxhash import xxh3_128_hexdigest

from vlmix.mixture.build.plan import Prepared
from vlmix.mixture.io.atomic import atomic_write, write_bytes
from vlmix.mixture.io.digests import Stamp, stamp
from vlmix.mixture.io.images import ImageInfo, probe_bytes
from vlmix.mixture.io.pool import Pool, Progress
from vlmix.mixture.io.rows.containers import Container, pieces, read_images


class CopyJob(Struct, frozen=True):
    """Rows of a container to copy the images of, and how many images each has."""

    number: int
    container: Container
    stamp: Stamp
    places: list[int]
    counts: list[int]
    out: Path


def copy_placed(
    prepared: Prepared,
    positions: Sequence[int],
    facts: dict[str, ImageInfo],
    out: Path,
    pool: Pool,
    progress: Progress,
) -> None:
    """Fill `facts` for the images of candidates whose images lie in containers. What an earlier run has copied into
    `out` is taken as it is."""
    if not positions:
        return
    out.mkdir(exist_ok=True)
    candidates = prepared.candidates
    at = candidates.table["at"].to_numpy()
    by_container: dict[tuple[str, int], list[int]] = {}
    for position in positions:
        name = candidates.names[candidates.locate(position)[0]]
        by_container.setdefault((name, int(candidates.containers[position])), []).append(position)
    jobs, images = list[CopyJob](), list[list[list[str]]]()
    for (name, number), mine in by_container.items():
        container = prepared.converted[name].containers[number]
        mine.sort(key=lambda position: at[position])
        done = 0
        for places in pieces(container, [int(at[position]) for position in mine]):
            of = [candidates.images[position] for position in mine[done : done + len(places)]]
            done += len(places)
            images.append(of)
            jobs.append(
                CopyJob(len(jobs), container, stamp(Path(container.path)), places, [len(paths) for paths in of], out)
            )
    total, done = len(positions), 0
    progress("copying images", 0, total)
    for job, found in pool.map(copy_images, jobs):
        for paths, infos in zip(images[job.number], found):
            facts.update(zip(paths, infos))
        done += len(job.places)
        progress("copying images", done, total)


def copy_images(job: CopyJob) -> list[list[ImageInfo]]:
    """Copy the images of a job into one file; per row, what they are. Runs in a worker."""
    name = xxh3_128_hexdigest(msgspec.msgpack.encode((job.container, job.stamp, job.places, job.counts)))
    copy, done = job.out / f"{name}.images", job.out / f"{name}.done"
    try:
        found = msgspec.msgpack.decode(done.read_bytes(), type=list[list[ImageInfo]])
        if copy.stat().st_size == sum(info.bytes for row in found for info in row):
            return found
    except (OSError, ValueError):
        pass
    found, offset = [], 0
    label = f"{job.container.path}#"
    with atomic_write(copy) as file:
        for place, count, images in zip(job.places, job.counts, read_images(job.container, job.places)):
            row = []
            for number in range(count):
                data = images[number] if number < len(images) else b""
                path = f"{label}{place}" + (f".{number}" if number else "")
                info = ImageInfo(path=path, bytes=len(data), copied=str(copy), offset=offset)
                row.append(probe_bytes(data, info))
                file.write(data)
                offset += len(data)
            found.append(row)
    write_bytes(done, msgspec.msgpack.encode(found))
    return found
