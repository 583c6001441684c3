"""The order of training: a pure function of (samples, seed, epoch, global batch).

A global batch is of one modality and is the same set of samples for every number of ranks; the number of steps is known
before the first; the only state is the step. Nothing is buffered and nothing is sampled sequentially, so resuming
at step k, on any number of ranks, is asking for step k. A change of what comes out needs a new ORDER_VERSION.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import derive_key, mix64
from vlmix.mixture.schedule.packing import Lengths, Positions, packed_shares, shares
from vlmix.mixture.schedule.pictures import runs
from vlmix.mixture.schedule.shuffle import BLOCK, shuffle

_SAMPLES, _BATCHES = 1, 2  # purposes of the two keys of an epoch


@dataclass(frozen=True)
class Epoch:
    """The batches of one epoch. `samples` [total] int32 or int64 are positions, batch after batch; step s has those
    from `starts[s]` to `starts[s + 1]`; `images` [steps] bool says which batches are of image samples."""

    samples: NDArray[np.signedinteger]
    starts: Positions
    images: NDArray[np.bool_]

    @property
    def steps(self) -> int:
        return len(self.images)

    def batch(self, step: int) -> Positions:
        """Positions of a step's samples. Raises IndexError outside the epoch."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        return self.samples[self.starts[step] : self.starts[step + 1]].astype(np.int64)


Arrays = dict[str, NDArray[Any]]
Shared = Callable[[Sequence[object], Callable[[], Arrays]], Arrays]
"""Gives the arrays that a function makes, under a key that says which of the samples' arrays they are: computed once by
several processes that have the same samples, and mapped by all."""


class Columns(NamedTuple):
    """What an order is made of, [N] each: see `epoch_order`."""

    identity: NDArray[np.integer]
    images: NDArray[np.bool_]
    repeat: NDArray[np.int32]
    groups: NDArray[np.uint64] | None = None


def check_batch(global_batch: int, total: int) -> None:
    """Raises VlmixError for a global batch that an epoch of `total` samples does not fill."""
    if global_batch < 1:
        raise VlmixError(f"global batch {global_batch}: at least 1")
    if global_batch > total:
        raise VlmixError(f"global batch {global_batch} is larger than the {total} samples of an epoch; lower it")


def epoch_order(
    identity: NDArray[np.integer],
    images: NDArray[np.bool_],
    repeat: NDArray[np.int32],
    *,
    seed: int,
    epoch: int,
    global_batch: int,
    groups: NDArray[np.uint64] | None = None,
    lengths: Lengths | None = None,
    length_window: int = 1,
    drop_last: bool = False,
) -> Epoch:
    """The batches of an epoch over N samples.

    `identity` [N]: what the order of a sample depends on, unique (its row in the root; so subsets keep their relative
    order); `images` [N]: which have an image; `repeat` [N]: how often each is seen. A modality's samples are shuffled
    and cut into batches; what is left over makes one smaller batch at the end (`drop_last` leaves it out). With
    `length_window` w > 1, w batches at a time are filled by `lengths`, so that a batch holds samples of similar length.
    Samples of one of the `groups` [N] (`pictures.picture_groups`) stay together, but for one that a batch's end cuts.
    """
    check_batch(global_batch, int(repeat.sum(dtype=np.int64)))
    if length_window > 1 and lengths is None:
        raise VlmixError("a length window needs the lengths of the samples")
    shuffled = shuffle(identity, repeat, derive_key(seed, epoch, _SAMPLES), groups)

    full: list[NDArray[np.signedinteger]] = []  # [batches, global_batch] per modality
    rest: list[tuple[bool, NDArray[np.signedinteger]]] = []
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
            _sort_windows(samples, lengths, length_window * global_batch, groups)
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


def _sort_windows(
    samples: NDArray[np.signedinteger], lengths: Lengths, window: int, groups: NDArray[np.uint64] | None
) -> None:
    """Sorts every `window` samples, the longest first, in place; groups by their longest sample."""
    step = max(BLOCK // window, 1) * window
    for start in range(0, len(samples), step):
        part = samples[start : start + step]
        whole = len(part) // window * window
        for rows in (part[:whole].reshape(-1, window), part[whole:].reshape(1, -1)):
            if groups is None:
                rows[:] = np.take_along_axis(rows, np.argsort(-lengths[rows], axis=1, kind="stable"), axis=1)
                continue
            for row in rows:
                row[:] = row[_longest_first(row, lengths, groups)]


def _longest_first(samples: NDArray[np.signedinteger], lengths: Lengths, groups: NDArray[np.uint64]) -> Positions:
    """The order of some samples that puts the longest first, each group that comes together as long as its longest."""
    if not len(samples):
        return np.empty(0, dtype=np.int64)
    bounds = runs(groups, samples)
    longest = np.maximum.reduceat(lengths[samples], bounds[:-1])
    return np.argsort(-np.repeat(longest, np.diff(bounds)), kind="stable")


class Schedule:
    """All epochs of a training, addressed by one integer, the global step."""

    def __init__(
        self,
        identity: NDArray[np.integer],
        images: NDArray[np.bool_],
        repeat: NDArray[np.int32],
        lengths: Lengths,
        *,
        seed: int,
        global_batch: int,
        length_window: int = 1,
        drop_last: bool = False,
        groups: NDArray[np.uint64] | None = None,
    ) -> None:
        columns = partial(Columns, identity, images, repeat, groups)
        self._begin(columns, lengths, None, seed, global_batch, length_window, drop_last)

    @classmethod
    def of(
        cls,
        columns: Callable[[], Columns],
        lengths: Lengths | Callable[[], Lengths],
        shared: Shared,
        *,
        seed: int,
        global_batch: int,
        length_window: int = 1,
        drop_last: bool = False,
        share_images: int = 1,
    ) -> Self:
        """The schedule of many samples, whose epochs are `shared`. `columns`, and `lengths` where that is a function,
        read them anew where they are needed: a copy in another process holds none of them."""
        schedule = cls.__new__(cls)
        schedule._begin(columns, lengths, shared, seed, global_batch, length_window, drop_last, share_images)
        return schedule

    def _begin(
        self,
        columns: Callable[[], Columns],
        lengths: Lengths | Callable[[], Lengths],
        shared: Shared | None,
        seed: int,
        global_batch: int,
        length_window: int,
        drop_last: bool,
        share_images: int = 1,
    ) -> None:
        self._columns, self._shared, self._share_images = columns, shared, share_images
        self._given: Lengths | Callable[[], Lengths] = lengths
        self._lengths: Lengths | None = None
        self.seed, self.global_batch, self.length_window, self.drop_last = seed, global_batch, length_window, drop_last
        self._epoch, self._batches = 0, self._order(0)
        self.steps_per_epoch = self._batches.steps

    @property
    def lengths(self) -> Lengths:
        """[N] what shares are balanced and packed by."""
        if self._lengths is None:
            self._lengths = self._given() if callable(self._given) else self._given
        return self._lengths

    def __getstate__(self) -> dict[str, Any]:
        kept = {**self.__dict__, "_lengths": None}
        return kept if self._shared is None else {**kept, "_epoch": -1, "_batches": None}

    def __repr__(self) -> str:
        return f"<Schedule: {self.steps_per_epoch} steps an epoch, global batch {self.global_batch}, seed {self.seed}>"

    @property
    def groups(self) -> NDArray[np.uint64] | None:
        """[N] the samples that are kept together, by the number of their group; None where nothing is shared."""
        return self._columns().groups

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch. The last one asked for is kept."""
        if number != self._epoch:
            self._epoch, self._batches = number, self._order(number)
        return self._batches

    def batch(self, step: int) -> Positions:
        """Positions of the samples of a global step, the same for every number of ranks."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch).batch(within)

    def rank_batch(self, step: int, rank: int, world: int) -> Positions:
        """Positions of the samples of a global step that `rank` of `world` ranks takes."""
        batch = self.shared_batch(step, rank, world)
        return batch[shares(self.lengths[batch], world)[rank]]

    def packed_batch(self, step: int, rank: int, world: int, capacity: int) -> list[Positions]:
        """The same global batch, packed: positions, bin by bin, of the bins that `rank` takes. All ranks have equally
        many."""
        batch = self.shared_batch(step, rank, world)
        return [batch[members] for members in packed_shares(self.lengths[batch], world, capacity)[rank]]

    def shared_batch(self, step: int, rank: int, world: int) -> Positions:
        """`batch`, for one of `world` ranks. Raises VlmixError if there is no such rank, or they cannot share it."""
        if world < 1 or not 0 <= rank < world:
            raise VlmixError(f"rank {rank} of {world}: ranks count from 0 to world - 1")
        if self.global_batch % world:
            raise VlmixError(
                f"global batch {self.global_batch} cannot be shared evenly by {world} ranks; choose a multiple of it"
            )
        return self.batch(step)

    def _order(self, epoch: int) -> Epoch:
        make = partial(self._computed, epoch)
        key = ["epoch", self.seed, epoch, self.global_batch, self.length_window, self.drop_last]
        key += [] if self._share_images == 1 else [self._share_images]
        return Epoch(**(make() if self._shared is None else self._shared(key, make)))

    def _computed(self, epoch: int) -> Arrays:
        columns = self._columns()
        found = epoch_order(
            *columns[:3],
            groups=columns.groups,
            seed=self.seed,
            epoch=epoch,
            global_batch=self.global_batch,
            lengths=self.lengths if self.length_window > 1 else None,
            length_window=self.length_window,
            drop_last=self.drop_last,
        )
        return vars(found)
