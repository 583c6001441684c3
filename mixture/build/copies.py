"""Images inside containers: copied out once, in the order in which their container holds them, and judged on the way.

Shards take samples in another order, in which a container could only be read over and over.
"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from xxhash import xxh3_128_hexdigest

from vlmix.mixture.build.facts import Problems, copy_path, pack
from vlmix.mixture.build.plan import Prepared
from vlmix.mixture.io.atomic import atomic_write, write_bytes
from vlmix.mixture.io.digests import Stamp, stamp
from vlmix.mixture.io.images import ImageInfo, probe_bytes
from vlmix.mixture.io.rows.containers import Container, pieces, read_images
from vlmix.mixture.keyed import Indices


class CopyJob(Struct, frozen=True):
    """Rows of a container to copy the images of, and how many images each has. `full`: the images are decoded."""

    number: int
    container: Container
    stamp: Stamp
    places: list[int]
    counts: list[int]
    out: Path
    full: bool


def copy_jobs(prepared: Prepared, positions: Indices, out: Path, full: bool) -> Iterator[tuple[CopyJob, Indices]]:
    """Jobs for the images of candidates whose images lie in containers, each with the candidates that it copies, in the
    order of its places."""
    candidates = prepared.candidates
    at, counts = candidates.column("at"), candidates.column("num_images")
    entries, numbers = candidates.entries(positions), candidates.containers[positions]
    order = np.lexsort((at[positions], numbers, entries))
    entries, numbers, positions = entries[order], numbers[order], positions[order]
    edges = np.flatnonzero(np.diff(entries) | np.diff(numbers)) + 1
    number = count()
    for start, end in zip([0, *edges], [*edges, len(positions)]):
        name = candidates.names[int(entries[start])]
        container = prepared.converted[name].containers[int(numbers[start])]
        signed = stamp(Path(container.path))
        for places in pieces(container, at[positions[start:end]].tolist()):
            mine = positions[start : start + len(places)]
            start += len(places)
            yield CopyJob(next(number), container, signed, places, counts[mine].tolist(), out, full), mine


def copy_images(job: CopyJob) -> tuple[bytes, Problems]:
    """Copy the images of a job into one file: their facts (`facts.pack`), row after row. Runs in a worker; what an
    earlier run has copied is taken as it is."""
    decides = job.container, job.stamp, job.places, job.counts, job.full
    key = bytes.fromhex(xxh3_128_hexdigest(msgspec.msgpack.encode(decides)))
    copy = copy_path(job.out, key)
    done = copy.with_suffix(".done")
    try:
        size, rows, problems = msgspec.msgpack.decode(done.read_bytes(), type=tuple[int, bytes, Problems])
        if copy.stat().st_size == size:
            return rows, problems
    except (OSError, ValueError):
        pass
    found, offset = list[ImageInfo](), 0
    with atomic_write(copy) as file:
        for place, held, images in zip(job.places, job.counts, read_images(job.container, job.places)):
            for number in range(held):
                data = images[number] if number < len(images) else b""
                info = ImageInfo(path=f"{job.container.path}#{place}", bytes=len(data), copied=str(copy), offset=offset)
                found.append(probe_bytes(data, info, full=job.full))
                file.write(data)
                offset += len(data)
    rows, problems = pack(found, [key] * len(found))
    write_bytes(done, msgspec.msgpack.encode((offset, rows, problems)))
    return rows, problems
