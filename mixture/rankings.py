"""Built-in rankings. A ranking gives every sample a priority, and a subset takes the highest of each source first (see
`mixture.subset`); so subsets of one ranking nest."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mixture.mixing import mix64
from mixture.reader import Mixture
from mixture.record import IMAGE_TOKEN
from mixture.sampling import Indices, Ranks, keyed_order, ranks

Priorities = NDArray[np.float64]
"""[N]: the higher, the sooner; equal ones follow the keyed rank."""

Codes = NDArray[np.int64]


def by_lengths(mixture: Mixture, frame: pl.DataFrame, seed: int, *, stratify: bool) -> tuple[Priorities, Indices]:
    """Priorities that leave repetition for last and keep the lengths of the source, and [N] the rounds.

    A sample's round is the number of samples of its source that come before it in the keyed rank and have the same
    text, or the same image, whichever is more. Texts are the same if all turns are, without case, white space,
    punctuation and image token. A source gives its rounds one after the other. Within a round the samples lie in the
    order of their words, and are taken as a van der Corput sequence takes the points of a line, scrambled by the seed:
    of the first m samples, every stretch of the lengths that holds a share p of the round gets m p, give or take the
    logarithm of m. So a subset that is filled from round 0 has the length distribution of one sample per image.

    `frame` is the index of `mixture`. With `stratify` False the mixture counts as one source.
    """
    codes, names = _groups(frame, stratify)
    ids: list[str] = frame["id"].to_list()
    rank = _inverse(keyed_order(ids, seed))
    images = frame["image"].cast(pl.Categorical).to_physical().to_numpy().astype(np.int64)
    pictured = (frame["image"] != "").to_numpy()
    # A text-only sample is alone with its image: minus its own number.
    images = np.where(pictured, images, -1 - np.arange(len(images)))
    rounds = np.maximum(_earlier(rank, codes, _texts(mixture)), _earlier(rank, codes, images))
    words = frame["words"].to_numpy().astype(np.int64)
    place = _places(codes, rounds, order=np.lexsort((rank, words, rounds, codes)))
    keys = mix64(ranks(names, seed, "lengths")[codes] + rounds.astype(np.uint64))
    return _quantiles(codes, np.lexsort((_scrambled(place, keys), rounds, codes))), rounds


def by_clusters(frame: pl.DataFrame, labels: Codes, seed: int, *, stratify: bool) -> Priorities:
    """Priorities that go round the clusters: from each cluster its first sample in the keyed rank, then from each its
    second, and so on; a round takes the clusters in the keyed rank of their samples.

    So a subset holds the same number of samples of every cluster that has that many. Within a cluster the choice is
    random, which leaves its spread as it is. Each source goes round by itself. `labels` [N] are the clusters of the
    rows of `frame`, -1 without one: those of a source keep their share of it, in the keyed rank.
    With `stratify` False all sources go round together.
    """
    codes, names = _groups(frame, stratify)
    sources, _ = _groups(frame, True)
    ids: list[str] = frame["id"].to_list()
    rank = _inverse(keyed_order(ids, seed))
    without = labels < 0
    strata = np.where(without, len(names) + sources, codes)
    turn = np.where(without, 0, _earlier(rank, strata, labels))
    return _quantiles(strata, np.lexsort((rank, turn, strata)))


def _groups(frame: pl.DataFrame, stratify: bool) -> tuple[Codes, list[str]]:
    """[N] number of each sample's source and the sources' names; one nameless source if not `stratify`."""
    if not stratify:
        return np.zeros(len(frame), dtype=np.int64), [""]
    names = frame["source"].unique(maintain_order=True)
    codes = frame["source"].replace_strict(names, pl.int_range(len(names), eager=True), return_dtype=pl.Int64)
    return codes.to_numpy(), names.to_list()


def _inverse(order: Indices) -> Indices:
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def _starts(sorted_codes: tuple[Codes, ...]) -> Indices:
    """[N] for rows in sorted order, where the run of equal codes begins that each belongs to."""
    changes = np.zeros(len(sorted_codes[0]), dtype=np.bool_)
    for codes in sorted_codes:
        changes[1:] |= codes[1:] != codes[:-1]
    return np.maximum.accumulate(np.where(changes, np.arange(len(changes)), 0))


def _places(*codes: Codes, order: Indices) -> Indices:
    """[N] place of each sample among those that share all its `codes`, in `order`, which keeps these together."""
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - _starts(tuple(column[order] for column in codes))
    return places


def _earlier(rank: Indices, codes: Codes, keys: NDArray[np.integer]) -> Indices:
    """[N] how many samples with the same code and key stand before each in the rank."""
    return _places(codes, keys, order=np.lexsort((rank, keys, codes)))


def _quantiles(codes: Codes, order: Indices) -> Priorities:
    """Priorities for an order that keeps codes together: minus the share of its code that stands before a sample, so
    that codes keep their shares of a common prefix."""
    sizes = np.bincount(codes, minlength=1)
    return -(_places(codes, order=order) + 0.5) / sizes[codes]


def _scrambled(places: Indices, keys: Ranks) -> Ranks:
    """[N] uint64: the bits of `places` in reverse, each flipped or not by a hash of the key and the bits before it.

    In the order of the result every prefix is spread evenly over the places of a key (nested uniform scrambling of the
    van der Corput sequence: Owen 1995).
    """
    bits = max(int(places.max(initial=0)).bit_length(), 1)
    numbers = places.astype(np.uint64)
    result = np.zeros_like(numbers)
    for level in range(bits):
        node = (numbers & np.uint64((1 << level) - 1)) | np.uint64(1 << level)
        flip = mix64(keys + node) & np.uint64(1)
        result |= (((numbers >> np.uint64(level)) & np.uint64(1)) ^ flip) << np.uint64(bits - 1 - level)
    return result


def _texts(mixture: Mixture) -> Ranks:
    """[N] uint64: equal for samples whose turns are equal but for case, white space, punctuation and image token."""
    result = np.zeros(len(mixture), dtype=np.uint64)
    for positions, texts in mixture.texts():
        if not len(positions):
            continue
        lengths = np.array([len(values) for values in texts])
        ends = np.cumsum(lengths)
        values = pl.Series([value for values in texts for value in values], dtype=pl.String)
        plain = values.str.replace(IMAGE_TOKEN, "", literal=True).str.to_lowercase()
        hashes = plain.str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars(" ").hash().to_numpy()
        # The place of a turn is part of its hash: the sum of a sample's turns does not depend on their order.
        turn = np.arange(len(hashes)) - np.repeat(ends - lengths, lengths)
        result[positions] = np.add.reduceat(mix64(hashes + turn.astype(np.uint64)), ends - lengths)
    return result
