"""The order of training on several mixtures: a pure function of (samples, weights, seed, step).

Steps go to image and text batches, and the places of a batch to the mixtures, by the apportionment that builds use, so
the counts are exact at every step and not on average. A mixture's samples of one modality come in an endless sequence
of its epochs, each in its own order; a step takes the next of each sequence. A change of what comes out needs a new
ORDER_VERSION.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.hashing import derive_key, mix64
from vlmix.mixture.keyed import seats
from vlmix.mixture.schedule.packing import Lengths, Positions
from vlmix.mixture.schedule.schedule import Arrays, Columns, Epoch, Schedule, Shared, check_batch
from vlmix.mixture.schedule.shuffle import shuffle

_SAMPLES, _SLOTS = 3, 4  # purposes of keys, apart from those of `schedule`
_TEXT, _IMAGE = 0, 1


class _Sequence:
    """The samples of one mixture and modality, epoch after epoch: `size` of them in each, in the `order` of its
    number."""

    def __init__(self, size: int, order: Callable[[int], NDArray[np.signedinteger]]) -> None:
        self.size, self._order_of = size, order
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epoch": -1, "_order": self._order[:0].copy()}

    def __getitem__(self, places: slice) -> Positions:
        """Positions of the samples from `places.start` to before `places.stop`, counted from the first epoch on."""
        found, at = [np.empty(0, dtype=np.int64)], places.start
        while at < places.stop:
            epoch, within = divmod(at, self.size)
            found.append(self._of_epoch(epoch)[within : within + places.stop - at].astype(np.int64))
            at += len(found[-1])
        return np.concatenate(found)

    def _of_epoch(self, epoch: int) -> NDArray[np.signedinteger]:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return self._order


class Part(NamedTuple):
    """A mixture of several: its number, the position of its first sample, what reads its columns anew, and how many
    samples of each modality, texts and images, its epoch has."""

    number: int
    start: int
    columns: Callable[[], Columns]
    sizes: tuple[int, int]


def _arranged(part: Part, kind: bool, seed: int, epoch: int) -> Arrays:
    """The positions of a part's samples of one modality in the order of an epoch."""
    identity, images, repeat, _ = part.columns()
    members = np.flatnonzero(images == kind)
    order = shuffle(identity[members], repeat[members], derive_key(seed, epoch, _SAMPLES, part.number))
    positions = members[order] + part.start
    return {"positions": positions.astype(np.int32 if part.start + len(images) < 2**31 else np.int64)}


def _order_of(part: Part, kind: bool, seed: int, shared: Shared | None, epoch: int) -> NDArray[np.signedinteger]:
    make = partial(_arranged, part, kind, seed, epoch)
    key = ["sequence", part.number, kind, seed, epoch]
    return (make() if shared is None else shared(key, make))["positions"]


def sizes_of(columns: Columns) -> tuple[int, int]:
    """How many samples of each modality, texts and images, an epoch over these has."""
    images = int(columns.repeat[columns.images].sum(dtype=np.int64))
    return int(columns.repeat.sum(dtype=np.int64)) - images, images


class BlendSchedule(Schedule):
    """The schedule of P mixtures over their N samples.

    Of the first n samples of a modality, a mixture has its share s of n, up to 1/2 + s (P - 2) / 2 samples: half a
    sample for two mixtures. Of the first k steps, a modality has its share up to half a step. So a mixture has its
    share of all samples up to half a batch where mixtures differ in their shares of text, and up to the roundings above
    where they do not. All batches are full.

    A sample comes again when all others of its mixture and modality, with their `repeat`, have come as often.
    """

    def __init__(
        self,
        mixture: NDArray[np.int64],
        weights: NDArray[np.float64],
        identity: NDArray[np.int64],
        images: NDArray[np.bool_],
        repeat: NDArray[np.int32],
        lengths: Lengths,
        *,
        total: int,
        seed: int,
        global_batch: int,
        length_window: int = 1,
    ) -> None:
        """`mixture` [N]: number of each sample's mixture, 0 to P - 1, ascending; `weights` [P]: above 0, relative to
        each other; `total`: samples of an epoch, which is rounded up to whole steps; the rest as for `epoch_order`,
        `identity` being unique in its mixture. With `length_window` w, a mixture's samples for w batches of a modality
        are distributed over them by `lengths`; where one of its epochs ends among them, they stay as they come."""
        parts = []
        for number in range(len(weights)):
            own = np.flatnonzero(mixture == number)
            start = int(own[0]) if len(own) else 0
            columns = Columns(identity[own], images[own], repeat[own])
            parts.append(Part(number, start, partial(Columns, *columns), sizes_of(columns)))
        self._begin_blend(parts, weights, lengths, None, total, seed, global_batch, length_window)

    @classmethod
    def of_parts(
        cls,
        parts: Sequence[Part],
        weights: NDArray[np.float64],
        lengths: Lengths | Callable[[], Lengths],
        shared: Shared,
        *,
        total: int,
        seed: int,
        global_batch: int,
        length_window: int = 1,
    ) -> Self:
        """The schedule of many samples, whose orders are `shared`, as with `Schedule.of`."""
        schedule = cls.__new__(cls)
        schedule._begin_blend(parts, weights, lengths, shared, total, seed, global_batch, length_window)
        return schedule

    def _begin_blend(
        self,
        parts: Sequence[Part],
        weights: NDArray[np.float64],
        lengths: Lengths | Callable[[], Lengths],
        shared: Shared | None,
        total: int,
        seed: int,
        global_batch: int,
        length_window: int,
    ) -> None:
        check_batch(global_batch, total)
        self._given, self._lengths, self._shared = lengths, None, shared
        self.seed, self.global_batch, self.length_window = seed, global_batch, length_window
        self.steps_per_epoch = -(-total // global_batch)
        self._sequences = [
            [_Sequence(part.sizes[kind], partial(_order_of, part, kind, seed, shared)) for part in parts]
            for kind in (False, True)
        ]
        sizes = np.array([[sequence.size for sequence in kind] for kind in self._sequences], dtype=np.float64)
        self._shares = sizes / sizes.sum(axis=0) * (weights / weights.sum())
        """[modality, P]: of all samples."""
        self._windows: dict[int, tuple[int, list[Positions]]] = {}
        """Modality -> the last window asked for, and its batches."""
        self._number, self._epoch_steps = -1, Epoch(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.bool_))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lengths": None}

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch. The last one asked for is kept."""
        if number != self._number:
            steps = range(number * self.steps_per_epoch, (number + 1) * self.steps_per_epoch)
            self._epoch_steps = Epoch(
                samples=np.concatenate([self.batch(step) for step in steps]),
                starts=np.arange(len(steps) + 1, dtype=np.int64) * self.global_batch,
                images=np.array([self._modality(step)[0] == _IMAGE for step in steps]),
            )
            self._number = number
        return self._epoch_steps

    def batch(self, step: int) -> Positions:
        """Positions of the samples of a global step, the same for every number of ranks, mixture by mixture."""
        if step < 0:
            raise IndexError(f"step {step}: steps count from 0")
        kind, number = self._modality(step)
        window, slot = divmod(number, self.length_window)
        if self._windows.get(kind, (-1, []))[0] != window:
            self._windows[kind] = window, self._window(kind, window)
        return self._windows[kind][1][slot]

    def samples_before(self, step: int) -> NDArray[np.int64]:
        """[P] how many samples of each mixture come in the steps before `step`, repetitions counted."""
        by_kind = self._kinds(step)
        text, image = (self._bounds(kind, int(by_kind[kind]), 0)[0] for kind in (_TEXT, _IMAGE))
        return np.asarray(text + image, dtype=np.int64)

    @property
    def samples_per_epoch(self) -> NDArray[np.int64]:
        """[P] how many samples an epoch of each mixture has."""
        return np.array([text.size + image.size for text, image in zip(*self._sequences)], dtype=np.int64)

    def _kinds(self, step: int) -> NDArray[np.int64]:
        """[modality] how many of the steps before `step` are of each."""
        return seats(step, self._shares.sum(axis=1))

    def _modality(self, step: int) -> tuple[int, int]:
        """The modality of a step, and how many steps before it have the same."""
        before = self._kinds(step)
        kind = int(np.argmax(self._kinds(step + 1) - before))
        return kind, int(before[kind])

    def _bounds(self, kind: int, first: int, batches: int) -> NDArray[np.int64]:
        """[batches + 1, P] how many samples of each mixture come before each of a modality's batches from `first`."""
        ends = range(first, first + batches + 1)
        return np.stack([seats(end * self.global_batch, self._shares[kind]) for end in ends])

    def _window(self, kind: int, window: int) -> list[Positions]:
        """The batches of a window, [global_batch] each."""
        bounds = self._bounds(kind, window * self.length_window, self.length_window)
        key = derive_key(self.seed, window, _SLOTS, kind)
        slots = np.argsort(mix64(np.arange(self.length_window, dtype=np.uint64) + key), kind="stable")
        of_mixtures = [
            self._distributed(sequence, bounds[:, mixture], slots)
            for mixture, sequence in enumerate(self._sequences[kind])
        ]
        return [np.concatenate(parts) for parts in zip(*of_mixtures)]

    def _distributed(self, sequence: _Sequence, bounds: NDArray[np.int64], slots: NDArray[np.int64]) -> list[Positions]:
        """What a mixture gives to each batch of a window, in which it has the places between `bounds` [w + 1]. The
        batches get samples in the order of `slots` [w], the longest first."""
        start, stop = int(bounds[0]), int(bounds[-1])
        samples = sequence[start:stop]
        if len(slots) == 1 or start == stop or start // sequence.size != (stop - 1) // sequence.size:
            return np.split(samples, bounds[1:-1] - start)
        samples = samples[np.argsort(-self.lengths[samples], kind="stable")]
        parts = np.split(samples, np.cumsum(np.diff(bounds)[slots])[:-1])
        return [parts[turn] for turn in np.argsort(slots)]
