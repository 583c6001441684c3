"""Which samples a training leaves out for its validation: by picture, so that none of those is ever trained on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.keyed import hash_order


class Groups(NamedTuple):
    """Samples that show a picture in common, directly or through others, are one group; so is each text-only sample.

    `of` [N] int64 numbers every sample's group; `names` [G] are paths of pictures (of several the first in order), or
    the ids of text-only samples.
    """

    of: NDArray[np.int64]
    names: pa.Array


def picture_groups(parts: Sequence[Reader]) -> Groups:
    """The groups over all samples of the parts, one part after the other. A picture is the same where its path in
    LLaVA's layout is, or the bytes that are stored."""
    each = [part.image_fields("path", "xxh3") for part in parts]
    counts = np.concatenate([count for count, _ in each])
    path, stored = (pa.concat_arrays(columns) for columns in zip(*(fields for _, fields in each)))
    sample = np.repeat(np.arange(len(counts)), counts)
    paths = pc.unique(path)
    paths = paths.take(pc.sort_indices(paths))
    picture = _places(path, paths)
    digest = pc.if_else(pc.equal(stored, ""), path, stored)  # annotations alone have no bytes
    first = _linked(picture, (sample, _places(digest, pc.unique(digest))), len(paths))

    of = np.zeros(len(counts), dtype=np.int64)
    of[sample] = first[picture]
    text_only = np.flatnonzero(counts == 0)
    of[text_only] = len(paths) + np.arange(len(text_only))
    ids = pa.chunked_array([chunk for part in parts for chunk in part.column("id").chunks], pa.string())
    return Groups(of, pa.concat_arrays([paths, ids.take(pa.array(text_only)).combine_chunks()]))


def held_out(parts: Sequence[Reader], share: float, seed: int = 0) -> list[NDArray[np.bool_]]:
    """For each part [N] bool: whether a sample is held out of training. About `share` of the groups are, by a hash of
    (seed, name) alone: where samples have one picture each, a part of a mixture holds out the same pictures as the
    whole, and a larger share all of a smaller one's."""
    groups = picture_groups(parts)
    chosen = hash_order(groups.names.to_pylist(), seed, "holdout") < np.float64(share) * 2.0**64
    return np.split(chosen[groups.of], np.cumsum([len(part) for part in parts])[:-1])


def _places(values: pa.Array, among: pa.Array) -> NDArray[np.int64]:
    return np.asarray(pc.index_in(values, among).to_numpy(zero_copy_only=False), dtype=np.int64)


def _linked(items: NDArray[np.int64], labels: tuple[NDArray[np.int64], ...], count: int) -> NDArray[np.int64]:
    """[count] for each item the least of those that it shares a label with, directly or through others. `items` and
    each of `labels` [M]."""
    least = np.arange(count)
    while True:
        before = least.copy()
        for label in labels:
            of_label = np.full(int(label.max(initial=-1)) + 1, count)
            np.minimum.at(of_label, label, least[items])
            np.minimum.at(least, items, of_label[label])
        least = least[least]
        if np.array_equal(least, before):
            return least
