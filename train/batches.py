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
from xxhash import xxh3_64_intdigest

from vlmix.mixture.blend import Samples
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.record import ImageRef
from vlmix.mixture.schedule.packing import packed_shares, shares
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.mixture.schedule.trees import Bin, Sharing, packed_bins
from vlmix.train.attention import Bounds
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
    bounds: Bounds | None
    """Where packed: what of the row belongs together."""
    samples: list[str]
    """[S] ids in the mixture."""
    sources: torch.Tensor
    """[S] int64: number of each sample's source."""
    lengths: NDArray[np.int64]
    """[S] tokens of each sample, those that it shares with others counted for each."""
    unreadable: list[str] = field(default_factory=list)
    """Samples with an image that did not decode: it shows nothing, and they have no target tokens."""

    @property
    def image_tokens(self) -> int:
        return len(self.image_positions)

    @property
    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """([G] computed tokens of what belongs together, [G] tokens before them that they see, too): of samples, or of
        the trunks and branches of trees."""
        if self.bounds is None or not self.samples:
            return self.lengths, np.zeros_like(self.lengths)
        return self.bounds.spans

    def to(self, device: torch.device) -> "MicroBatch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        tensors = {name: value for name, value in self.__dict__.items() if isinstance(value, torch.Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return dataclasses.replace(self, **changed)


_Sites = Callable[[int, NDArray[np.int64]], NDArray[np.int64]]
"""Of a sample, by its number, the places in the micro-batch of its tokens."""
_Laid = tuple[NDArray[np.int64], NDArray[np.int64], _Sites, Bounds | None]  # ids, positions, sites, bounds


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

    def __call__(self, samples: Sequence[Sample], packed: bool, trees: Sequence[int] | None = None) -> MicroBatch:
        """`trees`: how many of the samples, one after the other, share all up to their pictures, which the first of
        them brings; None: each is alone."""
        encoded, unreadable = list[Encoded](), []
        sizes_of_trees = [1] * len(samples) if trees is None else trees
        firsts = {int(first) for first in np.cumsum([0, *sizes_of_trees])[:-1]}
        sizes = [size for number in sorted(firsts) for size in samples[number].images]
        counts = [self.vision.tile_count(size.width, size.height) for size in sizes]
        images = room(sum(counts), self.vision.side)
        views = iter(images.split(counts))
        readable = True
        for number, sample in enumerate(samples):
            tokens = self.encode(sample)
            if number in firsts:
                if len(sample.jpegs) != len(sample.images):
                    found = f"{len(sample.images)} images, {len(sample.jpegs)} in the index"
                    raise VlmixError(f"sample {sample.id}: {found}")
                seen = [self._draw(next(views), jpeg, size) for jpeg, size in zip(sample.jpegs, sample.images)]
                readable = all(seen)
            if not readable:
                unreadable.append(sample.id)
                tokens = Encoded(tokens.ids, np.zeros_like(tokens.loss_mask))
            encoded.append(tokens)
        if not samples:
            encoded, sizes_of_trees = [Encoded(np.array([self.pad]), np.array([False]))], [1]
        lengths = np.array([len(tokens.ids) for tokens in encoded], dtype=np.int64)
        ids, positions, sites_of, bounds = (
            self._packed(encoded, sizes_of_trees) if packed else self._padded(encoded, lengths)
        )
        targets, sites, owners = [], [], []
        for number, tokens in enumerate(encoded):
            places = np.flatnonzero(tokens.loss_mask[1:])
            targets.append(tokens.ids[places + 1])
            sites.append(sites_of(number, places))
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
            bounds=bounds,
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
        return ids, positions, lambda number, places: number * width + places, None

    def _packed(self, encoded: list[Encoded], trees: Sequence[int]) -> _Laid:
        """Of each tree the trunk, then the rest of its samples."""
        ids, positions = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        shared, trunks, starts = list[int](), list[tuple[int, int]](), list[int]()
        number = end = 0
        for size in trees:
            mine = encoded[number : number + size]
            trunk = prefix_length(mine[0], self.encoder.image_id) if size > 1 else 0
            shared.append(trunk)
            ids.append(mine[0].ids[:trunk])
            positions.append(np.arange(trunk))
            first, end = end, end + trunk
            for tokens in mine:
                assert np.array_equal(tokens.ids[:trunk], mine[0].ids[:trunk]), "a tree has one trunk"
                trunks.append((first, trunk))
                starts.append(end - trunk)
                ids.append(tokens.ids[trunk:])
                positions.append(np.arange(trunk, len(tokens.ids)))
                end += len(tokens.ids) - trunk
            number += size

        def sites(number: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
            first, trunk = trunks[number]
            return places + np.where(places < trunk, first, starts[number])

        bounds = Bounds.of_trees([len(tokens.ids) for tokens in encoded], trees, shared)
        return np.concatenate(ids)[None], np.concatenate(positions)[None], sites, bounds


def prefix_length(tokens: Encoded, image_id: int) -> int:
    """Tokens up to the last one of a picture, which samples of the same pictures may have in common; 0 without any."""
    found = np.flatnonzero(tokens.ids == image_id)
    return int(found[-1]) + 1 if len(found) else 0


def cut(tokens: Encoded, length: int) -> Encoded:
    """The first `length` tokens."""
    return Encoded(tokens.ids[:length], tokens.loss_mask[:length])


def images_fit(tokens: Encoded, length: int, image_id: int) -> bool:
    """Whether the first `length` tokens hold all images."""
    return not (tokens.ids[length:] == image_id).any()


class MicroBatchDataset(SampleSteps["list[MicroBatch] | VlmixError"]):
    """Item k: the micro-batches of one rank in step k. An error that a user can act on comes as an item, so that it
    crosses the border of a worker process as it is."""

    def __init__(
        self,
        mixture: Samples,
        order: Schedule,
        collator: Collator,
        rank: int,
        world: int,
        sharing: Sharing | None = None,
    ) -> None:
        self.mixture, self.order, self.collator = mixture, order, collator
        self.rank, self.world, self.sharing = rank, world, sharing

    def read(self, step: int) -> list[tuple[list[Sample], list[int]]]:
        """Of each micro-batch the samples, of each tree the first alone with its pictures, and the trees."""
        bins = micro_batches(self.order, step, self.world, self.collator.batch, self.sharing)[self.rank]
        asked = [position for members in bins for position in members.positions.tolist()]
        bare = [nth > 0 for members in bins for size in members.trees for nth in range(size)]
        samples = iter(self.mixture.read(asked, bare if any(bare) else None))
        return [([next(samples) for _ in members.positions], members.trees) for members in bins]

    def item(
        self, step: int, read: Callable[[], list[tuple[list[Sample], list[int]]]]
    ) -> "list[MicroBatch] | VlmixError":
        packed = bool(self.collator.batch.pack_length)
        try:
            return [self.collator(samples, packed, trees) for samples, trees in read()]
        except VlmixError as error:
            return error


def micro_batches(
    order: Schedule, step: int, world: int, batch: Batch, sharing: Sharing | None = None
) -> list[list[Bin]]:
    """The samples in every micro-batch of a step, by rank. All ranks have equally many; some may be empty. With
    `sharing`, those of the same pictures are in trees, where they stand together in the order."""
    samples = order.shared_batch(step, 0, world)
    lengths, length = order.lengths[samples], batch.pack_length
    if sharing is not None:
        return packed_bins(samples, lengths, sharing, world, length)
    if length:
        places = packed_shares(lengths, world, length)
    else:
        starts = range(0, -(-len(samples) // world), batch.micro_size)
        places = [[share[i : i + batch.micro_size] for i in starts] for share in shares(lengths, world)]
    return [[Bin(samples[members], [1] * len(members)) for members in bins] for bins in places]


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
    trunks: NDArray[np.int64]
    """Those up to the last token of a picture, 0 without any."""
    prefixes: NDArray[np.uint64]
    """A hash of these."""

    def of(self, samples: NDArray[np.bool_]) -> "Lengths":
        """Of some samples alone."""
        return Lengths(*(column[samples] for column in vars(self).values()))


def lengths(mixture: Samples, encoder: Encoder, vision: ImageGeometry, length: int) -> Lengths:
    """One pass over all texts of a mixture."""
    counts, (widths, heights) = mixture.image_fields("width", "height")
    image_tokens = [vision.tokens(width, height) for width, height in zip(widths.to_pylist(), heights.to_pylist())]
    ends = [0, *np.cumsum(counts).tolist()]
    found = np.zeros((4, len(mixture)), dtype=np.int64)
    fits, prefixes = np.ones(len(mixture), dtype=np.bool_), np.zeros(len(mixture), dtype=np.uint64)
    for positions, texts in mixture.texts():
        places = positions.tolist()
        encoded = encoder.encode_many(texts, [image_tokens[ends[i] : ends[i + 1]] for i in places])
        for position, tokens in zip(places, encoded):
            short = cut(tokens, length)
            trunk = prefix_length(tokens, encoder.image_id)
            found[:, position] = len(short.ids), short.loss_mask[1:].sum(), len(tokens.ids), trunk
            fits[position] = trunk <= length
            prefixes[position] = xxh3_64_intdigest(np.ascontiguousarray(tokens.ids[:trunk]).data)
    return Lengths(found[0], found[1], found[2], fits, found[3], prefixes)
