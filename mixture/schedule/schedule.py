"""The order of training: a pure function of (samples, seed, epoch, global batch).

A global batch is of one modality and is the same set of samples for every number of ranks; the number of steps is known
before the first; the only state is the step. Nothing is buffered and nothing is sampled sequentially, so resuming
at step k, on any number of ranks, is asking for step k. A change of what comes out needs a new ORDER_VERSION.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import derive_key, mix64
from vlmix.mixture.schedule.packing import Lengths, Positions, packed_shares, shares

_SAMPLES, _BATCHES = 1, 2  # purposes of the two keys of an epoch


@dataclass(frozen=True)
class Epoch:
    """The batches of one epoch. `samples` [total] int64 are positions, batch after batch; step s has those from
    `starts[s]` to `starts[s + 1]`; `images` [steps] bool says which batches are of image samples."""

    samples: Positions
    starts: Positions
    images: NDArray[np.bool_]

    @property
    def steps(self) -> int:
        return len(self.images)

    def batch(self, step: int) -> Positions:
        """Positions of a step's samples. Raises IndexError outside the epoch."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        return self.samples[self.starts[step] : self.starts[step + 1]]


def check_batch(global_batch: int, total: int) -> None:
    """Raises VlmixError for a global batch that an epoch of `total` samples does not fill."""
    if global_batch < 1:
        raise VlmixError(f"global batch {global_batch}: at least 1")
    if global_batch > total:
        raise VlmixError(f"global batch {global_batch} is larger than the {total} samples of an epoch; lower it")


def shuffle(identity: NDArray[np.int64], repeat: NDArray[np.int32], key: np.uint64) -> Positions:
    """[sum of `repeat`] positions of N samples, each as often as `repeat` [N] says, ordered by `key`. `identity` [N] is
    unique, and all that the order of a sample depends on."""
    positions = np.repeat(np.arange(len(identity), dtype=np.int64), repeat)
    first = np.cumsum(repeat, dtype=np.int64) - repeat
    occurrence = np.arange(len(positions), dtype=np.int64) - np.repeat(first, repeat)
    draw = mix64(mix64(identity.astype(np.uint64) + key)[positions] + occurrence.astype(np.uint64) * key)
    return positions[np.lexsort((occurrence, identity[positions], draw))]


def epoch_order(
    identity: NDArray[np.int64],
    images: NDArray[np.bool_],
    repeat: NDArray[np.int32],
    *,
    seed: int,
    epoch: int,
    global_batch: int,
    lengths: Lengths | None = None,
    length_window: int = 1,
    drop_last: bool = False,
) -> Epoch:
    """The batches of an epoch over N samples.

    `identity` [N]: what the order of a sample depends on, unique (its row in the root; so subsets keep their relative
    order); `images` [N]: which have an image; `repeat` [N]: how often each is seen. A modality's samples are shuffled
    and cut into batches; what is left over makes one smaller batch at the end (`drop_last` leaves it out). With
    `length_window` w > 1, w batches at a time are filled by `lengths`, so that a batch holds samples of similar length.
    """
    check_batch(global_batch, int(repeat.sum()))
    if length_window > 1 and lengths is None:
        raise VlmixError("a length window needs the lengths of the samples")
    shuffled = shuffle(identity, repeat, derive_key(seed, epoch, _SAMPLES))

    full: list[Positions] = []  # [batches, global_batch] per modality
    rest: list[tuple[bool, Positions]] = []
    names: list[NDArray[np.uint64]] = []
    for image in (True, False):
        samples = shuffled[images[shuffled] == image]
        cut = len(samples) // global_batch * global_batch
        if drop_last and not cut and len(samples):
            kind = "image" if image else "text"
            raise VlmixError(
                f"global batch {global_batch}: the {len(samples)} {kind} samples make no full batch and would never be "
                "seen; lower the batch or keep the last one (drop_last: false)"
            )
        if len(samples) > cut and not drop_last:
            rest.append((image, samples[cut:]))
        samples = samples[:cut]
        if length_window > 1 and lengths is not None:
            window = np.arange(cut) // (length_window * global_batch)
            samples = samples[np.lexsort((-lengths[samples], window))]
        full.append(samples.reshape(-1, global_batch))
        names.append(np.arange(len(full[-1]), dtype=np.uint64) * np.uint64(2) + np.uint64(image))
    batches, name = np.concatenate(full), np.concatenate(names)
    order = np.argsort(mix64(name + derive_key(seed, epoch, _BATCHES)), kind="stable")
    sizes = [*([global_batch] * len(order)), *(len(part) for _, part in rest)]
    return Epoch(
        samples=np.concatenate([batches[order].reshape(-1), *(part for _, part in rest)]),
        starts=np.cumsum([0, *sizes], dtype=np.int64),
        images=np.array([*((name[order] & np.uint64(1)) == 1), *(image for image, _ in rest)], dtype=np.bool_),
    )


class Schedule:
    """All epochs of a training, addressed by one integer, the global step."""

    def __init__(
        self,
        identity: NDArray[np.int64],
        images: NDArray[np.bool_],
        repeat: NDArray[np.int32],
        lengths: Lengths,
        *,
        seed: int,
        global_batch: int,
        length_window: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.lengths, self.seed, self.global_batch = lengths, seed, global_batch
        self._order = partial(
            epoch_order,
            identity,
            images,
            repeat,
            seed=seed,
            global_batch=global_batch,
            lengths=lengths,
            length_window=length_window,
            drop_last=drop_last,
        )
        self._epoch, self._batches = 0, self._order(epoch=0)
        self.steps_per_epoch = self._batches.steps

    def __repr__(self) -> str:
        return f"<Schedule: {self.steps_per_epoch} steps an epoch, global batch {self.global_batch}, seed {self.seed}>"

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch. The last one asked for is kept."""
        if number != self._epoch:
            self._epoch, self._batches = number, self._order(epoch=number)
        return self._batches

    def batch(self, step: int) -> Positions:
        """Positions of the samples of a global step, the same for every number of ranks."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch).batch(within)

    def rank_batch(self, step: int, rank: int, world: int) -> Positions:
        """Positions of the samples of a global step that `rank` of `world` ranks takes."""
        batch = self._shared_batch(step, rank, world)
        return batch[shares(self.lengths[batch], world)[rank]]

    def packed_batch(self, step: int, rank: int, world: int, capacity: int) -> list[Positions]:
        """The same global batch, packed: positions, bin by bin, of the bins that `rank` takes. All ranks have equally
        many."""
        batch = self._shared_batch(step, rank, world)
        return [batch[members] for members in packed_shares(self.lengths[batch], world, capacity)[rank]]

    def _shared_batch(self, step: int, rank: int, world: int) -> Positions:
        if world < 1 or not 0 <= rank < world:
            raise VlmixError(f"rank {rank} of {world}: ranks count from 0 to world - 1")
        if self.global_batch % world:
            raise VlmixError(
                f"global batch {self.global_batch} cannot be shared evenly by {world} ranks; choose a multiple of it"
            )
        return self.batch(step)
