"""The order of training on several mixtures: a pure function of (samples, weights, seed, step).

Steps go to image and text batches, and the places of a batch to the mixtures, by the apportionment that builds use, so
the counts are exact at every step and not on average. A mixture's samples of one modality come in an endless sequence
of its epochs, each in its own order; a step takes the next of each sequence. A change of what comes out needs a new
ORDER_VERSION.
"""

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.hashing import derive_key, mix64
from vlmix.mixture.keyed import seats
from vlmix.mixture.schedule.packing import Lengths, Positions
from vlmix.mixture.schedule.schedule import Epoch, Schedule, check_batch, shuffle

_SAMPLES, _SLOTS = 3, 4  # purposes of keys, apart from those of `schedule`
_TEXT, _IMAGE = 0, 1


class _Sequence:
    """The samples of one mixture and modality, epoch after epoch."""

    def __init__(
        self, members: Positions, identity: NDArray[np.int64], repeat: NDArray[np.int32], seed: int, number: int
    ) -> None:
        self.members, self.identity, self.repeat = members, identity[members], repeat[members]
        self.size = int(self.repeat.sum())
        self._seed, self._number = seed, number
        self._epoch, self._order = -1, members

    def __getitem__(self, places: slice) -> Positions:
        """Positions of the samples from `places.start` to before `places.stop`, counted from the first epoch on."""
        found, at = [self.members[:0]], places.start
        while at < places.stop:
            epoch, within = divmod(at, self.size)
            found.append(self._of_epoch(epoch)[within : within + places.stop - at])
            at += len(found[-1])
        return np.concatenate(found)

    def _of_epoch(self, epoch: int) -> Positions:
        if epoch != self._epoch:
            key = derive_key(self._seed, epoch, _SAMPLES, self._number)
            self._epoch, self._order = epoch, self.members[shuffle(self.identity, self.repeat, key)]
        return self._order


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
        """`mixture` [N]: number of each sample's mixture, 0 to P - 1; `weights` [P]: above 0, relative to each other;
        `total`: samples of an epoch, which is rounded up to whole steps; the rest as for `epoch_order`, `identity`
        being unique in its mixture. With `length_window` w, a mixture's samples for w batches of a modality are
        distributed over them by `lengths`; where one of its epochs ends among them, they stay as they come."""
        check_batch(global_batch, total)
        self._given, self._lengths, self._key = lengths, lengths, None
        self.seed, self.global_batch, self.length_window = seed, global_batch, length_window
        self.steps_per_epoch = -(-total // global_batch)
        self._sequences = [
            [
                _Sequence(np.flatnonzero((mixture == number) & (images == kind)), identity, repeat, seed, number)
                for number in range(len(weights))
            ]
            for kind in (False, True)
        ]
        sizes = np.array([[sequence.size for sequence in kind] for kind in self._sequences], dtype=np.float64)
        self._shares = sizes / sizes.sum(axis=0) * (weights / weights.sum())
        """[modality, P]: of all samples."""
        self._windows: dict[int, tuple[int, list[Positions]]] = {}
        """Modality -> the last window asked for, and its batches."""
        self._number, self._epoch_steps = -1, Epoch(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.bool_))

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
