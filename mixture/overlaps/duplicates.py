"""Samples of which an earlier one says the same, or nearly, of the same pictures, or nearly."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from vlmix.mixture.keyed import Indices
from vlmix.mixture.overlaps.fingerprints import BITS, near
from vlmix.mixture.overlaps.near_text import SEPARATOR, alike, are_near
from vlmix.mixture.overlaps.samples import Samples
from vlmix.mixture.overlaps.table import Checked, Level, Row
from vlmix.mixture.overlaps.text import normalised

_MOST_COMPARED = 16
"""Samples that stay, of those with near pictures, whose text another's is compared with."""
_TOGETHER = 256
"""Samples that are looked for among all others of their group at once."""


def duplicates(samples: Samples, most: int, rows: list[Row]) -> Checked:
    """Samples that say the same of the same pictures, or nearly: each with the first that does by the closest level.
    That one stays by its level: nothing is a duplicate of another over a third."""
    pictures, order = samples.pictures, samples.order
    by_bytes: Level = "id" if pictures is None else "bytes"
    texts, nearly = _texts(samples)
    exact = samples.path_of if pictures is None else pictures.picture
    shown = _shown(samples, exact)
    stays = np.ones(len(samples), dtype=np.bool_)

    def found(position: int, kept: int, with_pictures: Level, without: Level, distance: int | None) -> None:
        stays[position] = False
        level = with_pictures if samples.counts[position] else without
        rows.append(Row("", "", str(samples.ids[kept]), level, position, distance=distance))

    first = _firsts(_groups(shown, texts), order)
    for position in np.flatnonzero(first != np.arange(len(samples))).tolist():
        found(position, int(first[position]), by_bytes, "text", None)
    bits = _Bits(samples, exact)
    if pictures is not None:
        groups = _groups(texts) * (samples.counts.max() + 1) + samples.counts
        for members in _together(groups, order, stays & (samples.counts > 0)):
            for position, kept, distance in bits.firsts(members, most):
                found(position, kept, "near", "text", distance)
    similar = list(_together(nearly, order, stays))
    known = _texts_of(samples, similar)
    for members in similar:
        said = [known[position] for position in members.tolist()]
        for position, kept, distance in bits.firsts(members, most, lambda a, b: are_near(said[a], said[b])):  # noqa: B023
            found(position, kept, "near_text", "near_text", distance if pictures is not None else None)
    return Checked(
        benchmark="",
        split="",
        levels=[by_bytes, *(["near"] if pictures is not None else []), "text", "near_text"],
        unchecked={} if pictures is not None else dict.fromkeys(("bytes", "near"), samples.unseen),
        pictures=len(samples.paths) if pictures is None else len(pictures.hashes),
        unreadable=[] if pictures is None else samples.names(pictures.broken),
        flat=0 if pictures is None else len(pictures.flat),
    )


def _together(groups: Indices, order: Indices, chosen: NDArray[np.bool_]) -> Iterator[Indices]:
    """Those of `chosen` [N] samples that are in a group with others, group by group, each in `order`."""
    members = order[chosen[order]]
    members = members[np.argsort(groups[members], kind="stable")]
    for part in np.split(members, np.flatnonzero(np.diff(groups[members])) + 1):
        if len(part) > 1:
            yield part


def _texts_of(samples: Samples, groups: Sequence[Indices]) -> dict[int, str]:
    wanted = np.zeros(len(samples), dtype=np.bool_)
    for members in groups:
        wanted[members] = True
    return {position: text for position, text in _normalised(samples) if wanted[position]}


def _normalised(samples: Samples) -> Iterator[tuple[int, str]]:
    """The position and the normalised turns of each sample, as they are read."""
    for positions, turns in samples.texts():
        for position, values in zip(positions.tolist(), turns):
            yield position, SEPARATOR.join(map(normalised, values))


def _texts(samples: Samples) -> tuple[NDArray[np.void], Indices]:
    """([N] 16 bytes: of each sample's normalised turns, [N] labels of texts that are near, over others too)."""
    made = bytearray(16 * len(samples))

    def noted() -> Iterator[tuple[int, str]]:
        for position, text in _normalised(samples):
            made[16 * position : 16 * position + 16] = xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
            yield position, text

    nearly = alike(noted(), samples.counts)
    return np.frombuffer(made, "V16"), nearly


def _shown(samples: Samples, numbers: NDArray[np.int64]) -> NDArray[np.void]:
    """[N] 16 bytes: of each sample's images, as [M] `numbers` that are equal where they are the same."""
    data, ends = numbers.astype("<i8").tobytes(), 8 * np.cumsum(samples.counts)
    pieces = zip((ends - 8 * samples.counts).tolist(), ends.tolist())
    return np.frombuffer(b"".join(xxh3_128_digest(data[start:end]) for start, end in pieces), "V16")


def _groups(*keys: NDArray[np.void]) -> Indices:
    """[N] number of the group of samples whose keys are all equal."""
    pairs = np.stack(keys, axis=1).copy().view(f"V{16 * len(keys)}").ravel()
    return np.unique(pairs, return_inverse=True)[1].astype(np.int64)


def _firsts(groups: Indices, order: Indices) -> Indices:
    """[N] the position of the first member, by `order`, of each sample's group."""
    _, at, members = np.unique(groups[order], return_index=True, return_inverse=True)
    firsts = np.empty_like(order)
    firsts[order] = order[at[members]]
    return firsts


class _Bits:
    """How far the pictures of samples are apart. `exact` [M] are numbers of the images, equal for equal ones: a picture
    without a fingerprint is like itself alone."""

    def __init__(self, samples: Samples, exact: NDArray[np.int64]) -> None:
        self._exact, self._counts = exact, samples.counts
        self._starts = np.cumsum(samples.counts) - samples.counts
        pictures = samples.pictures
        count = int(exact.max(initial=-1)) + 1
        prints, printed = np.empty((0, BITS // 8), np.uint8), np.empty(0, np.int64)
        plain = np.empty(0, np.bool_)
        if pictures is not None:
            prints, printed, plain = pictures.prints, pictures.printed, pictures.plain
        bare = np.setdiff1d(np.arange(count), printed)
        made = np.random.default_rng(0).integers(0, 256, (count, BITS // 8), dtype=np.uint8)[bare]
        printed = np.concatenate([printed, bare])
        order = np.argsort(printed, kind="stable")
        self._prints = np.concatenate([prints, made])[order]
        self._plain = np.concatenate([plain, np.ones(len(bare), np.bool_)])[order]
        self._ends = np.searchsorted(printed[order], np.arange(count + 1))

    def firsts(
        self, members: Indices, most: int, accept: Callable[[int, int], bool] | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """Of samples of equally many pictures, in their order, those that are near an earlier one that is near none
        itself: (the sample, the first such one, bits between them). `accept` has a say on two, by their places in
        `members`."""
        waiting, tried = np.ones(len(members), dtype=np.bool_), np.zeros(len(members), dtype=np.int8)
        for place, later in self._near(members, most, waiting):
            for other in later[waiting[later] & (tried[later] < _MOST_COMPARED)].tolist():
                distance = self.between(int(members[place]), int(members[other]))
                if distance > most:
                    continue
                tried[other] += 1
                if accept is None or accept(place, other):
                    waiting[other] = False
                    yield int(members[other]), int(members[place]), distance

    def _near(self, members: Indices, most: int, waiting: NDArray[np.bool_]) -> Iterator[tuple[int, Indices]]:
        """Each place in `members` that is `waiting` when its turn comes, and those after it whose first picture is near
        or that have none either."""
        places = np.arange(len(members))
        if not self._counts[members[0]]:
            yield from ((place, places[place + 1 :]) for place in places.tolist() if waiting[place])
            return
        spans = [self._span(int(each)) for each in self._exact[self._starts[members]]]
        rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        owners = np.repeat(places, [span.stop - span.start for span in spans])
        start = 0
        while len(block := places[start:][waiting[start:]][:_TOGETHER]):
            known = waiting[owners] & (owners >= block[0])
            asking = np.flatnonzero(self._plain[rows] & known & (owners <= block[-1]))
            hits = near(self._prints[rows[asking]], self._prints[rows[known]], most)  # each is near itself
            known_owners = owners[known]
            for place, mine in itertools.groupby(hits, key=lambda hit: int(owners[asking[hit[0]]])):
                if waiting[place]:
                    others = np.unique(np.concatenate([known_owners[found[:, 0]] for _, found in mine]))
                    yield place, others[others > place]
            start = int(block[-1]) + 1

    def between(self, one: int, other: int) -> int:
        """Bits between the fingerprints of two samples' pictures, of several pictures the most."""
        pairs = zip(self._of(one), self._of(other))
        return max((self._apart(left, right) for left, right in pairs if left != right), default=0)

    def _of(self, sample: int) -> list[int]:
        start = self._starts[sample]
        return [int(each) for each in self._exact[start : start + self._counts[sample]]]

    def _span(self, picture: int) -> slice:
        return slice(int(self._ends[picture]), int(self._ends[picture + 1]))

    def _apart(self, left: int, right: int) -> int:
        mine = self._prints[self._span(left)][self._plain[self._span(left)]]
        differing = mine[:, None] ^ self._prints[self._span(right)][None]
        return int(np.bitwise_count(differing).sum(axis=2, dtype=np.int64).min())
