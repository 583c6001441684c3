"""What the forms made of shards share: tars in a new folder, and where the members lie."""

import os
import shutil
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.dataset.manifest import CARD_NAME, REJECTS_NAME
from vlmix.mixture.dataset.manifest import NAME as MANIFEST_NAME
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.shards import sample_key, shard_path
from vlmix.mixture.dataset.tar import BLOCK, Member, TarWriter, image_member, scan
from vlmix.mixture.dataset.view import save_copy
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.fetch import fetch_sound
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.storage import Remote

_TOGETHER = 32  # samples that are read at a time


class Tar(NamedTuple):
    """A shard: path below the folder, its samples in the order of the tar as (key, members), and how often an epoch
    sees each of them."""

    path: str
    samples: list[tuple[str, list[Member]]]
    repeats: NDArray[np.int32]

    @property
    def repeat(self) -> int:
        """Of all its samples; for `whole_shards`."""
        return int(self.repeats[0])

    @property
    def bounds(self) -> list[int]:
        """[samples + 1] bytes: where each sample's first header is, and where the last one's padded data ends."""
        last = self.samples[-1][1][-1]
        starts = [members[0].offset - BLOCK for _, members in self.samples]
        return [*starts, last.offset + last.size + -last.size % BLOCK]


def place(
    mixture: Reader, folder: Path, progress: Progress, workers: int, *, whole_shards: bool = True
) -> Iterator[Tar]:
    """Put shards with the samples of `mixture` into `folder`, and return what is in them.

    A mixture's shards are hard-linked, or copied from a store and where the file system has no such links, with the
    files that make it a mixture. A view is written out as a mixture, and so is a merged one, which may have a key
    twice. With `whole_shards`, which the forms need that can repeat shards but not samples, a mixture whose samples
    have unlike `repeat` gets new shards of one `repeat` each, with unique keys.
    """
    repeats = mixture.column("repeat").to_numpy()
    if whole_shards and (repeats != repeats[0]).any():
        paths = _write_by_repeat(mixture, folder, repeats, progress)
        repeats = np.sort(repeats)
    elif mixture.manifest.parent is None and not any(mixture.manifest.key_shifts()):
        root = mixture.root
        paths = _fetch_all(mixture, root, folder, progress) if isinstance(root, Remote) else _link_all(mixture, folder)
    else:
        copy = folder / "copy"
        paths = [shard.path for shard in save_copy(mixture, copy, [], workers=workers, progress=progress).shards]
        repeats = Reader.open(copy).column("repeat").to_numpy()  # a copy may begin with other samples
        for entry in copy.iterdir():
            entry.rename(folder / entry.name)
        copy.rmdir()
    done = 0
    for number, path in enumerate(paths):
        progress("indexing shards", number, len(paths))
        by_key = groupby(scan(folder / path), key=lambda member: member.name.partition(".")[0])
        samples = [(key, list(members)) for key, members in by_key]
        yield Tar(path, samples, repeats[done : done + len(samples)])
        done += len(samples)
    if done != len(mixture):
        what = f"the shards hold {done} samples, the index {len(mixture)}"
        raise VlmixError(f"{mixture.root.name}: {what}; `vlmix verify` lists all damage")
    progress("indexing shards", len(paths), len(paths))


def _link_all(mixture: Reader, folder: Path) -> list[str]:
    root = mixture.local_root
    for shard in mixture.manifest.shards:
        source, target = root / shard.path, folder / shard.path
        if not source.exists() or source.stat().st_size != shard.bytes:
            raise VlmixError(
                f"{source} is missing or not as long as the manifest says; `vlmix verify` lists all damage"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)
    for name in (MANIFEST_NAME, *mixture.manifest.index, REJECTS_NAME, CARD_NAME):
        if (root / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    return [shard.path for shard in mixture.manifest.shards]


def _fetch_all(mixture: Reader, root: Remote, folder: Path, progress: Progress) -> list[str]:
    shards, checksums = mixture.manifest.shards, mixture.manifest.checksums
    for name in [name for name in (*mixture.manifest.index, REJECTS_NAME, CARD_NAME) if name in checksums]:
        fetch_sound(root, name, folder / name, checksums[name])
    (folder / MANIFEST_NAME).write_bytes(root.join(MANIFEST_NAME).whole())
    for number, shard in enumerate(shards):
        progress("fetching shards", number, len(shards))
        fetch_sound(root, shard.path, folder / shard.path, shard.sha256)
    return [shard.path for shard in shards]


def _write_by_repeat(mixture: Reader, folder: Path, repeats: NDArray[np.int32], progress: Progress) -> list[str]:
    size = int(mixture.manifest.recipe["samples_per_shard"])
    parts = [np.flatnonzero(repeats == repeat) for repeat in np.unique(repeats)]
    slices = [part[i : i + size] for part in parts for i in range(0, len(part), size)]
    paths = [shard_path(number) for number in range(len(slices))]
    for number, (path, positions) in enumerate(zip(paths, slices)):
        progress("writing shards", number, len(slices))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("wb") as file:
            tar = TarWriter(file)
            together = (positions[start : start + _TOGETHER] for start in range(0, len(positions), _TOGETHER))
            for row, raw in chain.from_iterable(zip(mixture.rows[some], mixture.raws(some)) for some in together):
                key = sample_key(int(row))
                for nth, jpeg in enumerate(raw.jpegs):
                    tar.add(image_member(key, nth), jpeg)
                tar.add(f"{key}.json", raw.json)
            tar.close()
    return paths
