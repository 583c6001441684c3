"""Rankings: what a selection goes by, if not by the hash order alone. A ranking gives every sample a priority, and a
subset takes the highest of each source first (see `selection.subset`); so subsets of one ranking nest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import digests, mix64
from vlmix.mixture.keyed import HashOrder, Ids, Indices, Ranks, hash_order
from vlmix.mixture.record import IMAGE_TOKEN
from vlmix.mixture.selection.embeddings import Embeddings
from vlmix.mixture.selection.keys import places
from vlmix.mixture.selection.kmeans import cluster_count, directions, spherical_kmeans

Priorities = NDArray[np.float64]
"""[N]: the higher, the sooner; equal ones follow the hash order."""

Codes = NDArray[np.integer]


class Report(Struct, frozen=True, kw_only=True):
    """What came of a selection `by` something.

    The `rows` of a file named a sample (`matched_by` id, row_sha256 or llava_id: see `selection.match`), or are
    `unmatched`: their sample is not there. `unscored` samples of the mixture have no score or embedding, of which
    `unscored_kept` were kept. `random_overlap` is the share of the kept samples that a random subset of that size,
    with the same seed, `where`, `sources` and stratification, would have kept.
    """

    by: str
    sha256: str = ""
    """Of the file of scores, ids or embeddings."""
    rows: int = 0
    matched_by: dict[str, int] = {}
    unmatched: int = 0
    unmatched_first: list[str] = []
    duplicates: int = 0
    """Rows whose sample another row had taken."""
    ambiguous: int = 0
    """Matched rows for which another sample would have done as well, as LLaVA's ids are not unique."""
    ambiguous_first: list[str] = []
    unscored: int = 0
    unscored_kept: int = 0
    repeated: int = 0
    """By lengths: samples whose text or image another one of their source has shown."""
    repeated_kept: int = 0
    nonempty_clusters: int = 0
    """Clusters that hold a sample of the mixture."""
    listed: int = 0
    """By a file without scores: the samples on offer that it names."""
    kept: int = 0
    random_overlap: float = 0.0
    same_as_random: bool = False
    """Whether the samples are exactly those of the random subset, though not all there are."""

    @property
    def matched(self) -> int:
        return sum(self.matched_by.values())

    def notes(self) -> list[str]:
        """What a user should know before using the subset."""
        notes = []
        if 0 < self.kept < self.listed:
            share = f"{100 * self.kept / self.listed:.1f}".removesuffix(".0")
            notes.append(f"{self.by} has no scores: kept a random {share} % of the {self.listed:,} samples it lists")
        if self.same_as_random:
            notes.append(
                f"warning: by {self.by}, the {self.kept:,} samples equal the random selection of the same size and seed"
            )
        return notes

    def counts(self) -> dict[str, Any]:
        """What a manifest records: all but the names of single rows and zeros."""
        plain = msgspec.to_builtins(self)
        return {key: value for key, value in plain.items() if value and key != "by" and not key.endswith("_first")}


@dataclass(frozen=True)
class Ranking:
    """What a selection goes by. All [N]: who comes first, who may be kept at all, who has no score or embedding, who
    repeats another sample; and the report as far as it goes before anything is kept."""

    priority: Priorities
    stays: NDArray[np.bool_]
    unscored: NDArray[np.bool_]
    repeated: NDArray[np.bool_]
    report: Report

    def outcome(self, kept: Indices, random: Indices) -> Report:
        """The report once the samples at `kept` are kept, those at `random` being a random subset of the same size."""
        return msgspec.structs.replace(
            self.report,
            unscored=int(self.unscored.sum()),
            unscored_kept=int(self.unscored[kept].sum()),
            repeated=int(self.repeated.sum()),
            repeated_kept=int(self.repeated[kept].sum()),
            kept=len(kept),
            same_as_random=len(kept) < len(self.stays) and np.array_equal(np.sort(kept), np.sort(random)),
            random_overlap=round(len(np.intersect1d(kept, random, assume_unique=True)) / len(kept), 4),
        )


@dataclass(frozen=True)
class Offer:
    """Samples to choose from, [N] in mixture order: their hash order, and the numbers of their sources in `names`."""

    ranks: Ranks
    codes: NDArray[np.int32]
    names: list[str]

    @classmethod
    def of(cls, mixture: Reader, seed: int) -> "Offer":
        codes, numbers, first = np.empty(len(mixture), dtype=np.int32), dict[str, int](), 0
        for piece in mixture.pieces("source"):
            for chunk in piece.dictionary_encode().chunks:
                known = [numbers.setdefault(name, len(numbers)) for name in chunk.dictionary.to_pylist()]
                codes[first : first + len(chunk)] = np.array(known, dtype=np.int32)[chunk.indices.to_numpy()]
                first += len(chunk)
        return cls(ranks_of(mixture, seed), codes, list(numbers))

    def __len__(self) -> int:
        return len(self.codes)

    def at(self, positions: Indices) -> "Offer":
        """Those at some positions, ascending."""
        if len(positions) == len(self):
            return self
        ranks = Ranks(_Some(self.ranks.ids, positions), self.ranks.hashes[positions])
        return Offer(ranks, self.codes[positions], self.names)

    def strata(self, stratify: bool) -> tuple[Codes, list[str]]:
        """[N] numbers of the sources and their names; one nameless source if not `stratify`."""
        return (self.codes, self.names) if stratify else (np.zeros(len(self), dtype=np.int32), [""])


class _Some(Sequence[str]):
    """Ids at some positions. Only equal hashes ask for them."""

    def __init__(self, ids: Ids, positions: Indices) -> None:
        self._ids, self._positions = ids, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, place: Any) -> Any:
        return str(self._ids[int(self._positions[place])])


class _OfMixture(Sequence[str]):
    """The ids of a mixture. Only equal hashes ask for them, so that they are not held."""

    def __init__(self, mixture: Reader) -> None:
        self._mixture = mixture

    def __len__(self) -> int:
        return len(self._mixture)

    def __getitem__(self, position: Any) -> Any:
        return str(self._mixture.column("id")[int(position)])


def ranks_of(mixture: Reader, seed: int, purpose: str = "") -> Ranks:
    """The hash order of a mixture's samples; see `mixture.keyed`."""
    hashes, first = np.empty(len(mixture), dtype=np.uint64), 0
    for ids in mixture.pieces("id"):
        hashes[first : first + len(ids)] = hash_order(ids, seed, purpose)
        first += len(ids)
    return Ranks(_OfMixture(mixture), hashes)


def rank_lengths(mixture: Reader, offer: Offer, seed: int, *, stratify: bool = True) -> Ranking:
    """The ranking `lengths` of `mixture`, all of whose samples are on offer: see `by_lengths`."""
    words = np.concatenate([piece.to_numpy() for piece in mixture.pieces("num_words")])
    images = image_codes(mixture.pieces("image"))
    priority, rounds = by_lengths(offer, images, words, _texts(mixture), seed, stratify=stratify)
    return Ranking(priority, np.full(len(offer), True), np.full(len(offer), False), rounds > 0, Report(by="lengths"))


def image_codes(pieces: Iterable[pa.ChunkedArray]) -> HashOrder:
    """[N] uint64: equal for samples of the same image; of a text-only sample, whose image is "", its own number."""
    parts, first = [np.empty(0, dtype=np.uint64)], 0
    for images in pieces:
        codes = hash_order(images, 0, "images")
        alone = pc.equal(images, "").to_numpy()
        codes[alone] = first + np.flatnonzero(alone)
        parts.append(codes)
        first += len(codes)
    return np.concatenate(parts)


def rank_clusters(
    embeddings: Embeddings,
    mixture: Reader,
    offer: Offer,
    offered: Indices,
    seed: int,
    *,
    clusters: int | None = None,
    stratify: bool = True,
) -> Ranking:
    """The ranking `clusters` of the `offer`, which is the samples `offered` of `mixture`: see `by_clusters`.

    The clusters are those of the whole embedding file, so they do not depend on how much of a mixture is offered.
    Raises VlmixError if no sample has an embedding.
    """
    count = clusters or cluster_count(len(embeddings.ids))
    labels = spherical_kmeans(embeddings.ids, lambda: map(directions, embeddings.rows()), count, seed)
    keys = digests(embeddings.ids)
    order = np.argsort(keys)
    keys, labels = keys[order], labels[order]
    nonempty = len(np.unique(labels))
    found = (places(digests(ids), keys) for ids in mixture.pieces("id"))
    of_sample = np.concatenate([np.where(place >= 0, labels[place], -1) for place in found])
    matched = int((of_sample >= 0).sum())
    if not matched:
        raise VlmixError(
            f"{embeddings.path.name}: no sample has an embedding in it; its first id is {embeddings.ids[0].as_py()!r}, "
            f"the first sample's is {mixture.column('id')[0].as_py()!r}"
        )
    of_sample = of_sample[offered]
    report = Report(
        by="clusters",
        sha256=embeddings.sha256,
        rows=len(embeddings.ids),
        matched_by={"id": matched},
        unmatched=len(embeddings.ids) - matched,
        nonempty_clusters=nonempty,
    )
    priority = by_clusters(offer, of_sample, stratify=stratify)
    return Ranking(priority, np.full(len(offered), True), of_sample < 0, np.full(len(offered), False), report)


def by_lengths(
    offer: Offer, images: HashOrder, words: NDArray[np.integer], texts: HashOrder, seed: int, *, stratify: bool = True
) -> tuple[Priorities, Indices]:
    """Priorities that leave repetition for last and keep the lengths of the source, and [N] the rounds.

    A sample's round is the number of samples of its source that come before it in hash order and have the same
    text, or the same image, whichever is more. Texts are the same if all turns are, without case, white space,
    punctuation and image token. A source gives its rounds one after the other. Within a round the samples lie in the
    order of their words, and are taken as a van der Corput sequence takes the points of a line, scrambled by the seed:
    of the first m samples, every stretch of the lengths that holds a share p of the round gets m p, give or take the
    logarithm of m. So a subset that is filled from round 0 has the length distribution of one sample per image.

    `images` and `texts` [N] are equal for samples of the same image or text; `words` [N] are the lengths. With
    `stratify` False the mixture counts as one source.
    """
    codes, names = offer.strata(stratify)
    order = offer.ranks.order()
    rounds = _places(order, codes, texts)
    np.maximum(rounds, _places(order, codes, images), out=rounds)
    by_words = order[np.argsort(words[order], kind="stable")]
    keys = mix64(hash_order(names, seed, "lengths")[codes] + rounds.astype(np.uint64))
    scrambled = _scrambled(_places(by_words, codes, rounds), keys)
    return _quantiles(np.lexsort((scrambled, rounds)), codes), rounds


def by_clusters(offer: Offer, labels: Codes, *, stratify: bool = True) -> Priorities:
    """Priorities that go round the clusters: from each cluster its first sample in hash order, then from each its
    second, and so on; a round takes the clusters in hash order of their samples.

    So a subset holds the same number of samples of every cluster that has that many. Within a cluster the choice is
    random, which leaves its spread as it is. Each source goes round by itself. `labels` [N] are the samples' clusters,
    -1 without one: those of a source keep their share of it, in hash order.
    With `stratify` False all sources go round together.
    """
    codes, names = offer.strata(stratify)
    order = offer.ranks.order()
    without = labels < 0
    strata = np.where(without, len(names) + offer.codes, codes)
    turn = np.where(without, 0, _places(order, strata, labels))
    return _quantiles(order[np.argsort(turn[order], kind="stable")], strata)


def _places(order: Indices, *codes: NDArray[Any]) -> Indices:
    """[N] place in `order` of each sample among those that share all its `codes`."""
    by_code = order[np.lexsort([column[order] for column in codes])]
    new = np.full(len(order), True)
    new[1:] = np.any([column[by_code[1:]] != column[by_code[:-1]] for column in codes], axis=0)
    starts = np.flatnonzero(new)
    found = np.empty(len(order), dtype=np.int64)
    found[by_code] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return found


def _quantiles(order: Indices, codes: Codes) -> Priorities:
    """Priorities for an order: minus the share of its code that stands before a sample, so that codes keep their shares
    of a common prefix."""
    return -(_places(order, codes) + 0.5) / np.bincount(codes)[codes]


def _scrambled(places: Indices, keys: HashOrder) -> HashOrder:
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


def _texts(mixture: Reader) -> HashOrder:
    """[N] uint64: equal for samples whose turns are equal but for case, white space, punctuation and image token."""
    result = np.zeros(len(mixture), dtype=np.uint64)
    for positions, values, lengths in mixture.turns():
        texts = pl.Series(values, dtype=pl.String).str.replace_all(IMAGE_TOKEN, "", literal=True).str.to_lowercase()
        hashes = texts.str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars(" ").hash().to_numpy()
        # The place of a turn is part of its hash, because a sum does not depend on the order.
        starts = np.cumsum(lengths) - lengths
        place = np.arange(len(hashes)) - np.repeat(starts, lengths)
        result[positions] = np.add.reduceat(mix64(hashes + place.astype(np.uint64)), starts)
    return result
