"""Samples that say nearly the same: by exact words where turns are short, by MinHash and then Jaccard where long.

Two texts are near if they have the same number of turns, and each turn of one and its peer in the other
- have the same words, or
- are both long, differ in neither numbers nor words such as "not" and "left", and share most runs of three words.
Punctuation around words, format prompts, image tokens and recognized words ("Reference OCR token") do not count.
A long question counts as long only if its answer is: what is said of a long text may hang on one word of the question.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from vlmix.mixture.extras import missing
from vlmix.mixture.hashing import derive_key, mix64
from vlmix.mixture.overlaps.text import normalised
from vlmix.mixture.record import IMAGE_TOKEN
from vlmix.mixture.render import OCR_LINE, OPTION_LETTER, SHORT_ANSWER, UNANSWERABLE

SEPARATOR = "\x1f"
"""Between the turns of a text."""
LONG = 30
"""Words from which on a turn may differ in some. Of LLaVA's questions with one word as answer hardly any are longer."""
SHARED = 8
"""Tenths of the runs of three words that both of two long turns have, of those that any has. One word makes three runs,
so of 30 words one may be another, of 100 words three."""

_DROPPED = (*map(normalised, (SHORT_ANSWER, OPTION_LETTER, UNANSWERABLE)), IMAGE_TOKEN)
_OCR = normalised(OCR_LINE)
_OPENING, _CLOSING = "\"'`“”‘’«»「」", "\"'`“”‘’«»「」.,;:!?…。、"
_TELLING = re.compile(
    "yes|no|not|nor|never|none|neither|cannot|without|.*n['’]t|left|right|"
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|不|没|無|无|左|右"
)
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of languages that put no spaces between words: each counts as a word."""
_KEPT_WORDS, _KEPT_LENGTH = 1_000_000, 64

_FACTORS = [derive_key(place) | np.uint64(1) for place in range(3)]
_SLOTS, _ROWS = 128, 4
"""Of texts that share `SHARED` tenths, five in a hundred million meet in none of 32 bands of 4: (1 - 0.8^4)^32."""
_SEED = 1
_ALMOST = 88
"""Slots of 128 from which on a pair is compared: 3.2 standard deviations of plain MinHash below `SHARED` tenths."""
_BUCKET, _NEXT = 16, 2
"""Texts that meet in a band are compared with each other up to the first number, and with that many others beyond."""
_AT_ONCE, _PART = 8_192, 2_000_000
"""Texts, and words or runs, at once."""


def alike(texts: Iterable[tuple[int, str]], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N] labels: equal for samples of one group whose texts are the same or near, over others too.

    `texts` are N, in any order, each with the number of its sample: the `text.normalised` turns with `SEPARATOR`
    between them, questions first; `groups` [N] has the numbers of the groups. The grouping does not depend on the order
    of the samples, on the machine, or on what else there is in other groups. Raises VlmixError if rensa is not
    installed.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    words, kept = _Words(), dict[tuple[int, int], list[NDArray[np.uint32]]]()
    said, frame = np.zeros(len(groups), np.uint64), np.zeros(len(groups), np.uint64)
    peers = counts[group] > 1
    for number, text in texts:
        if peers[number]:
            said[number], frame[number], turns = _read(text, words)
            key = int(group[number]), int(said[number])
            if turns and key not in kept:
                kept[key] = [(np.array(turn, np.uint64) >> np.uint64(32)).astype(np.uint32) for turn in turns]
    del words
    # Texts of the same words are one from here on. Their order is that of hashes of their content alone.
    same = np.empty(len(groups), dtype=[("group", np.int64), ("said", np.uint64)])
    same["group"], same["said"] = group, said
    distinct, firsts, label = np.unique(same, return_index=True, return_inverse=True)
    frames = np.empty(len(distinct), dtype=[("group", np.int64), ("frame", np.uint64)])
    frames["group"], frames["frame"] = distinct["group"], frame[firsts]
    _, framed, counts = np.unique(frames, return_inverse=True, return_counts=True)
    chosen = np.flatnonzero(counts[framed] > 1)
    chosen = chosen[[key in kept for key in distinct[chosen].tolist()]]
    if len(chosen):
        long = [kept[key] for key in distinct[chosen].tolist()]
        counts = np.array(list(map(len, long)))
        places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        flat, sizes = _runs([turn for turns in long for turn in turns], places)
        del long, kept
        label = _joined(len(distinct), chosen[_near(flat, sizes, counts, framed[chosen])])[label]
    return np.asarray(label, dtype=np.int64)


def are_near(one: str, other: str) -> bool:
    """Whether two texts of one group, as `alike` takes them, are near each other and not over others."""
    words = _Words()
    (said, frame, turns), (other_said, other_frame, other_turns) = _read(one, words), _read(other, words)
    if said == other_said:
        return True
    if frame != other_frame:
        return False
    runs = ([Counter(zip(turn, turn[1:], turn[2:])) for turn in of] for of in (turns, other_turns))
    for left, right in zip(*runs, strict=True):
        shared = (left & right).total()
        if 10 * shared < SHARED * (left.total() + right.total() - shared):
            return False
    return bool(turns)


class _Words(dict[str, int]):
    """The hash of each word, 0 for punctuation; odd for words that must not differ."""

    def __missing__(self, word: str) -> int:
        bare = word.lstrip(_OPENING).rstrip(_CLOSING)
        value = 0
        if bare:
            telling = _TELLING.fullmatch(bare) is not None or any(map(str.isnumeric, bare))
            value = _hash(bare) & ~1 | telling
        if len(word) <= _KEPT_LENGTH:
            if len(self) == _KEPT_WORDS:
                self.clear()
            self[word] = value
        return value


def _hash(text: str) -> int:
    return xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _read(text: str, words: _Words) -> tuple[int, int, list[list[int]]]:
    """A hash of all words of a text, one of those that must not differ, and the words of its long turns."""
    for dropped in _DROPPED:
        text = text.replace(dropped, " ")
    if not text.isascii():
        text = _UNSPACED.sub(r" \g<0> ", text)
    turns = text.split(SEPARATOR)
    said, frame, long = array("Q"), array("Q"), []
    for question, answer in zip_longest(turns[::2], turns[1::2]):
        asked = _hashes(question.partition(_OCR)[0], words)
        answered = None if answer is None else _hashes(answer, words)
        may_differ = len(asked if answered is None else answered) >= LONG
        for turn in (asked,) if answered is None else (asked, answered):
            said.append(0)
            said.extend(turn)
            if may_differ and len(turn) >= LONG:
                long.append(turn)
                frame.append(1)
                frame.extend(word for word in turn if word & 1)
            else:
                frame.append(0)
                frame.extend(turn)
    return xxh3_64_intdigest(said.tobytes()), xxh3_64_intdigest(frame.tobytes()), long


def _hashes(turn: str, words: _Words) -> list[int]:
    """Of the words of a turn; of all of it if it is punctuation alone."""
    found = [hash for hash in map(words.__getitem__, turn.split()) if hash]
    return found or ([_hash(turn)] if turn.strip() else [])


def _runs(turns: list[NDArray[np.uint32]], places: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Of each turn the sorted 30-bit hashes of its runs of three words, one turn after the other; and [R] how many.
    The second of equal runs is another than the first, and so are those of the turn at another place of a text."""
    flat, sizes = list[NDArray[np.int32]](), list[NDArray[np.int64]]()
    lengths = np.array(list(map(len, turns)))
    for part in _parts(np.arange(len(turns)), lengths):
        words = np.concatenate([turns[number] for number in part]).astype(np.uint64)
        turn = np.repeat(np.arange(len(part)), lengths[part])
        within = turn[2:] == turn[:-2]
        mixed = words[:-2] * _FACTORS[0] + words[1:-1] * _FACTORS[1] + words[2:] * _FACTORS[2]
        turn = turn[2:][within].astype(np.uint64)
        mixed = mix64(mixed[within] + mix64(places[part].astype(np.uint64))[turn])
        runs = np.sort(turn << np.uint64(34) | mixed >> np.uint64(30))
        starts = _starts(runs)
        times = (np.arange(len(runs)) - np.repeat(starts, np.diff(starts, append=len(runs)))).astype(np.uint64)
        mixed = mix64((runs & np.uint64(2**34 - 1)) + (times << np.uint64(34)))
        runs = np.sort(
            runs >> np.uint64(34) << np.uint64(30) | mixed >> np.uint64(34)
        )  # np.unique takes ten times as long
        runs = runs[_starts(runs)]
        flat.append((runs & np.uint64(2**30 - 1)).astype(np.int32))
        sizes.append(np.bincount((runs >> np.uint64(30)).astype(np.int64), minlength=len(part)))
    return np.concatenate(flat), np.concatenate(sizes)


def _near(
    flat: NDArray[np.int32], sizes: NDArray[np.int64], counts: NDArray[np.int64], framed: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[P, 2] numbers of texts in one frame of which every long turn is near, enough to connect all that are. Of T texts
    `counts` [T] says how many long turns they have, as many in all of a frame, and `sizes` how many of `flat`'s runs
    those have."""
    from scipy.sparse import csr_array

    first = np.cumsum(counts) - counts
    ends = np.concatenate([[0], np.cumsum(sizes)])
    signatures = _signatures(flat, ends[np.append(first, len(sizes))])
    runs = csr_array((np.ones(len(flat), dtype=np.bool_), flat, ends), shape=(len(sizes), 2**30))
    labels = np.arange(len(counts))
    edges = [np.empty((0, 2), dtype=np.int64)]
    for band in range(0, _SLOTS, _ROWS):
        met = _met(signatures, framed, band)
        met = met[labels[met[:, 0]] != labels[met[:, 1]]]
        met = met[_estimated(signatures, met) >= _ALMOST]
        for part in _parts(met, (ends[first + counts] - ends[first])[met[:, 0]]):
            several = counts[part[:, 0]]
            begins = np.cumsum(several) - several
            within = np.arange(several.sum()) - np.repeat(begins, several)
            left, right = (np.repeat(first[side], several) + within for side in part.T)
            shared = np.diff(runs[left].multiply(runs[right]).indptr)
            near = 10 * shared >= SHARED * (sizes[left] + sizes[right] - shared)
            edges.append(part[np.logical_and.reduceat(near, begins)])
        labels = _joined(len(labels), np.concatenate(edges))
    return np.concatenate(edges)


def _starts(ordered: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _parts(items: NDArray[np.int64], weights: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """`items` in parts of about `_PART` in weight."""
    part = np.cumsum(weights) // _PART
    return (each for each in np.split(items, np.flatnonzero(np.diff(part)) + 1) if len(each))


def _signatures(flat: NDArray[np.int32], ends: NDArray[np.int64]) -> NDArray[np.uint32]:
    """[T, 128] MinHash of T texts, each the runs between two of `ends`."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise missing("rensa", "looking for texts that are near") from None
    found = np.empty((len(ends) - 1, _SLOTS), dtype=np.uint32)
    for start in range(0, len(found), _AT_ONCE):
        part = ends[start : start + _AT_ONCE + 1]
        hashes = flat[part[0] : part[-1]].astype(np.uint64)
        offsets = (part - part[0]).astype(np.uint64)
        rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, _SLOTS, _SEED)
        found[start : start + _AT_ONCE] = rows.to_rows()
    return found


def _met(signatures: NDArray[np.uint32], framed: NDArray[np.int64], band: int) -> NDArray[np.int64]:
    """[P, 2] texts of one frame that are equal in the `_ROWS` slots from `band` on. Where more than `_BUCKET` are, each
    is compared with the next `_NEXT`, and with those that are equal in twice as many slots, and so on: so many are
    near each other, and connected, or are made from one template and would make too many pairs."""
    items, buckets, used, rows = np.arange(len(framed)), mix64(framed.astype(np.uint64)), 0, _ROWS
    found = [np.empty((0, 2), dtype=np.int64)]
    while len(items):
        for slot in range(used, rows):
            buckets = mix64(buckets + signatures[items, (band + slot) % _SLOTS])
        order = np.argsort(buckets, kind="stable")
        items, buckets = items[order], buckets[order]
        starts = _starts(buckets)
        sizes = np.diff(starts, append=len(items))
        size = np.repeat(sizes, sizes)
        few, many = (size > 1) & (size <= _BUCKET), size > _BUCKET
        found += [_pairs(items[few], buckets[few], distance) for distance in range(1, _BUCKET)]
        found += [_pairs(items[many], buckets[many], distance) for distance in range(1, _NEXT + 1)]
        items, buckets, used, rows = items[many], buckets[many], rows, 2 * rows
        if used == _SLOTS:
            break
    return np.concatenate(found)


def _pairs(items: NDArray[np.int64], buckets: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    equal = buckets[distance:] == buckets[:-distance]
    return np.stack([items[:-distance][equal], items[distance:][equal]], axis=1)


def _estimated(signatures: NDArray[np.uint32], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """[P] in how many slots the texts of each pair are equal."""
    parts = (pairs[start : start + _AT_ONCE].T for start in range(0, len(pairs), _AT_ONCE))
    return np.concatenate([np.empty(0, np.int64), *((signatures[a] == signatures[b]).sum(axis=1) for a, b in parts)])


def _joined(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """[count] labels of which those of `pairs` [P, 2] are the same, over others too."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), dtype=np.bool_), tuple(pairs.T)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
