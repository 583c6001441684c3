"""Micro-batches: what one forward pass of one rank takes, padded or packed, as tensors.

All ranks have the same number of micro-batches in a step; where samples run out, a micro-batch is one token without a
target. Which samples they hold is a function of the step (`mixture.schedule`).
"""

import dataclasses
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vlmix.mixture.blend import Samples
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.record import ImageRef
from vlmix.mixture.schedule.packing import Positions, packed_shares, shares
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.train.config import Batch
from vlmix.train.images import ImageGeometry, decode, room
from vlmix.train.loader import SampleSteps
from vlmix.train.tokens import Encoded, Encoder

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What decoding raises for bytes that are no image."""


@dataclass
class MicroBatch:
    """B rows of T tokens holding S samples, of which K are target tokens. Packed, B is 1."""

    input_ids: torch.Tensor
    """[B, T] int64."""
    position_ids: torch.Tensor
    """[B, T] int64: place of each token in its sample."""
    targets: torch.Tensor
    """[K] int64: tokens to be predicted."""
    target_positions: torch.Tensor
    """[K] int64: place in B * T of the token before each target."""
    sample_index: torch.Tensor
    """[K] int64: the sample of each target, 0 to S - 1."""
    image_positions: torch.Tensor
    """[F] int64: place in B * T of each image token, in order."""
    images: torch.Tensor
    """[V, 3, side, side] uint8: the tiles of all images, in order."""
    image_sizes: list[tuple[int, int]]
    """[I] (height, width) of each image in pixels."""
    tiles_per_image: list[int]
    """[I] tiles of each image."""
    cu_seqlens: torch.Tensor | None
    """[S + 1] int32 where packed: where samples begin and end. It stays on the CPU (`attention.placed`)."""
    max_seqlen: int
    """Tokens of the longest sample."""
    samples: list[str]
    """[S] ids in the mixture."""
    sources: torch.Tensor
    """[S] int64: number of each sample's source."""
    lengths: NDArray[np.int64]
    """[S] tokens of each sample."""
    unreadable: list[str] = field(default_factory=list)
    """Samples with an image that did not decode: it shows nothing, and they have no target tokens."""

    @property
    def image_tokens(self) -> int:
        return len(self.image_positions)

    def to(self, device: torch.device) -> "MicroBatch":
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return dataclasses.replace(moved, cu_seqlens=self.cu_seqlens)

    def pin_memory(self) -> "MicroBatch":
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        tensors = {name: value for name, value in self.__dict__.items() if isinstance(value, torch.Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return dataclasses.replace(self, **changed)


_Laid = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # ids, positions, where each sample begins


class Collator:
    """Samples to micro-batches."""

    def __init__(self, encoder: Encoder, vision: ImageGeometry, batch: Batch, sources: Sequence[str], pad: int) -> None:
        self.encoder, self.vision, self.batch, self.pad = encoder, vision, batch, pad
        self.sources = {name: number for number, name in enumerate(sources)}

    def of(self, sources: Sequence[str]) -> "Collator":
        """The same for samples of other sources."""
        return Collator(self.encoder, self.vision, self.batch, sources, self.pad)

    def encode(self, sample: Sample) -> Encoded:
        """Ids of a sample, cut to batch.max_length. Raises VlmixError where the cut would take some of an image."""
        values = [turn.value for turn in sample.conversations]
        whole = self.encoder.encode(values, [self.vision.tokens(size.width, size.height) for size in sample.images])
        length, image_id = self.batch.max_length, self.encoder.image_id
        if not images_fit(whole, length, image_id):
            what = f"image{'s' * (len(sample.images) > 1)} of {(whole.ids == image_id).sum()} tokens"
            raise VlmixError(
                f"sample {sample.id}: batch.max_length {length} cuts through its {what}; raise batch.max_length"
            )
        return cut(whole, length)

    def __call__(self, samples: Sequence[Sample], packed: bool) -> MicroBatch:
        encoded, unreadable = [], []
        sizes = [size for sample in samples for size in sample.images]
        counts = [self.vision.tile_count(size.width, size.height) for size in sizes]
        images = room(sum(counts), self.vision.side)
        views = iter(images.split(counts))
        for sample in samples:
            tokens = self.encode(sample)
            if len(sample.jpegs) != len(sample.images):
                raise VlmixError(f"sample {sample.id}: {len(sample.images)} images, {len(sample.jpegs)} in the index")
            seen = [self._draw(next(views), jpeg, size) for jpeg, size in zip(sample.jpegs, sample.images)]
            if not all(seen):
                unreadable.append(sample.id)
                tokens = Encoded(tokens.ids, np.zeros_like(tokens.loss_mask))
            encoded.append(tokens)
        if not samples:
            encoded = [Encoded(np.array([self.pad]), np.array([False]))]
        lengths = np.array([len(tokens.ids) for tokens in encoded], dtype=np.int64)
        ids, positions, starts = (self._packed if packed else self._padded)(encoded, lengths)
        targets, sites, owners = [], [], []
        for number, tokens in enumerate(encoded):
            places = np.flatnonzero(tokens.loss_mask[1:])
            targets.append(tokens.ids[places + 1])
            sites.append(places + starts[number])
            owners.append(np.full(len(places), number))
        return MicroBatch(
            input_ids=torch.from_numpy(ids),
            position_ids=torch.from_numpy(positions),
            targets=torch.from_numpy(np.concatenate(targets)),
            target_positions=torch.from_numpy(np.concatenate(sites)),
            sample_index=torch.from_numpy(np.concatenate(owners)),
            image_positions=torch.from_numpy(np.flatnonzero(ids == self.encoder.image_id)),
            images=images,
            image_sizes=[(size.height, size.width) for size in sizes],
            tiles_per_image=counts,
            cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)) if packed else None,
            max_seqlen=int(lengths.max()),
            samples=[sample.id for sample in samples],
            sources=torch.tensor([self.sources[sample.source] for sample in samples], dtype=torch.int64),
            lengths=lengths if samples else lengths[:0],
            unreadable=unreadable,
        )

    def _draw(self, views: torch.Tensor, jpeg: bytes, size: ImageRef) -> bool:
        """An image of this size as the tower sees it, put into `views`; nothing and False if it does not decode, or is
        not what its tokens are for."""
        try:
            image = decode(jpeg)
            other = image.shape[1:] != (size.height, size.width)
            if not (other and self.vision.tile_grids):
                views.copy_(self.vision.tiles(image))
                return True
        except UNREADABLE:
            pass
        views.zero_()
        return False

    def _padded(self, encoded: list[Encoded], lengths: NDArray[np.int64]) -> _Laid:
        width = int(lengths.max())
        ids = np.full((len(encoded), width), self.pad, dtype=np.int64)
        for row, tokens in zip(ids, encoded):
            row[: len(tokens.ids)] = tokens.ids
        positions = np.broadcast_to(np.arange(width), ids.shape).copy()
        return ids, positions, np.arange(len(encoded)) * width

    def _packed(self, encoded: list[Encoded], lengths: NDArray[np.int64]) -> _Laid:
        ids = np.concatenate([tokens.ids for tokens in encoded])[None]
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
        return ids, positions, np.cumsum(lengths) - lengths


def cut(tokens: Encoded, length: int) -> Encoded:
    """The first `length` tokens."""
    return Encoded(tokens.ids[:length], tokens.loss_mask[:length])


def images_fit(tokens: Encoded, length: int, image_id: int) -> bool:
    """Whether the first `length` tokens hold all images."""
    return not (tokens.ids[length:] == image_id).any()


class MicroBatchDataset(SampleSteps["list[MicroBatch] | VlmixError"]):
    """Item k: the micro-batches of one rank in step k. An error that a user can act on comes as an item, so that it
    crosses the border of a worker process as it is."""

    def __init__(self, mixture: Samples, order: Schedule, collator: Collator, rank: int, world: int) -> None:
        self.mixture, self.order, self.collator = mixture, order, collator
        self.rank, self.world = rank, world

    def read(self, step: int) -> list[list[Sample]]:
        bins = micro_batches(self.order, step, self.world, self.collator.batch)[self.rank]
        samples = iter(self.mixture.read([position for members in bins for position in members.tolist()]))
        return [[next(samples) for _ in members] for members in bins]

    def item(self, step: int, read: Callable[[], list[list[Sample]]]) -> "list[MicroBatch] | VlmixError":
        packed = bool(self.collator.batch.pack_length)
        try:
            return [self.collator(samples, packed) for samples in read()]
        except VlmixError as error:
            return error


def micro_batches(order: Schedule, step: int, world: int, batch: Batch) -> list[list[Positions]]:
    """Positions of the samples in every micro-batch of a step, by rank. All ranks have equally many; some may be
    empty."""
    samples = order.batch(step)
    lengths = order.lengths[samples]
    if batch.pack_length:
        return [[samples[bin] for bin in bins] for bins in packed_shares(lengths, world, batch.pack_length)]
    largest = -(-len(samples) // world)
    starts = range(0, largest, batch.micro_size)
    return [[samples[share[i : i + batch.micro_size]] for i in starts] for share in shares(lengths, world)]


@dataclass(frozen=True)
class Lengths:
    """Tokens of every sample of a mixture, [N] int64, as the model takes them."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    """Of them, the target tokens."""
    untruncated: NDArray[np.int64]
    """Before they were cut to batch.max_length."""
    fits: NDArray[np.bool_]
    """Whether their images fit into batch.max_length. A sample whose images do not cannot be trained on."""

    def of(self, samples: NDArray[np.bool_]) -> "Lengths":
        """Of some samples alone."""
        return Lengths(*(column[samples] for column in vars(self).values()))


def lengths(mixture: Samples, encoder: Encoder, vision: ImageGeometry, length: int) -> Lengths:
    """One pass over all texts of a mixture."""
    counts, (widths, heights) = mixture.image_fields("width", "height")
    image_tokens = [vision.tokens(width, height) for width, height in zip(widths.to_pylist(), heights.to_pylist())]
    ends = [0, *np.cumsum(counts).tolist()]
    found = np.zeros((3, len(mixture)), dtype=np.int64)
    fits = np.ones(len(mixture), dtype=np.bool_)
    for positions, texts in mixture.texts():
        places = positions.tolist()
        encoded = encoder.encode_many(texts, [image_tokens[ends[i] : ends[i + 1]] for i in places])
        for position, tokens in zip(places, encoded):
            short = cut(tokens, length)
            found[:, position] = len(short.ids), short.loss_mask[1:].sum(), len(tokens.ids)
            fits[position] = images_fit(tokens, length, encoder.image_id)
    return Lengths(found[0], found[1], found[2], fits)
