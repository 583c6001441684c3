"""What a training will take, before it is started: its data as the schedule has them, its memory, its time.

The model is built on the meta device, from configurations alone.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.blend import Samples, open_samples
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.keyed import keyed_order
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.mixture.schedule.trees import Bin
from vlmix.train import mixtures, validation
from vlmix.train.attention import Bounds, Kernel
from vlmix.train.batches import Lengths, MicroBatch, micro_batches
from vlmix.train.batches import lengths as measure
from vlmix.train.checkpoint import bytes_of
from vlmix.train.config import Recipe
from vlmix.train.flops import PEAKS, Flops
from vlmix.train.images import ImageGeometry
from vlmix.train.memory import Memory
from vlmix.train.memory import memory as memory_of
from vlmix.train.model import TrainableVLM, describe
from vlmix.train.parallel import shard_size
from vlmix.train.param_groups import count_parameters
from vlmix.train.run import own_tokenizer, steps_of
from vlmix.train.tokens import Encoder, template

SAMPLE = 20_000


class Source(Struct, frozen=True, kw_only=True):
    """What a source gives to an average step of the first epoch, over all processes."""

    samples: float
    tokens: float
    image_tokens: float
    target_tokens: float
    tflop: float
    """Of forward and backward passes, by `train.flops`."""


class MicroBatches(Struct, frozen=True, kw_only=True):
    """Micro-batches that each process has in a step of the first epoch."""

    least: int
    mean: float
    most: int


class Time(Struct, frozen=True, kw_only=True):
    """From a peak and an efficiency, not from a measurement."""

    gpu: str
    peak_tflops: float
    efficiency: float
    """Share of the peak that is reached: a run's `mfu`."""
    step_seconds: float
    hours: float
    """Of the whole training."""
    tokens_per_second: float


class Forecast(Struct, frozen=True, kw_only=True):
    """What a training will take."""

    name: str
    mixture: str
    world: int
    samples: int
    tokenized_samples: int
    """Samples whose texts were tokenized; where these are not all, text lengths of the others are estimated."""
    skipped_samples: int
    """Their images do not fit into batch.max_length."""
    steps: int
    steps_per_epoch: int
    global_size: int
    mixtures: list[dict[str, Any]] = []
    """Of several mixtures: what each gives."""
    parameters: dict[str, dict[str, int]]
    """Part -> trained and frozen."""
    step: Source
    """An average step of the first epoch, over all processes."""
    sources: dict[str, Source]
    micro_batches: MicroBatches
    padding_waste: float
    """Of the first epoch, as in metrics.jsonl."""
    imbalance: float
    memory: Memory
    checkpoint_bytes: int
    time: Time | None = None


def forecast(
    recipe: Recipe, world: int = 1, *, gpu: str = "", efficiency: float = 0.0, sample: int = SAMPLE
) -> Forecast:
    """What a training of a recipe on `world` processes will take; nothing is trained or written.

    With `gpu`, a name of `flops.PEAKS`, and the `efficiency` that it reaches, the time, too. The texts of at most
    `sample` samples are tokenized, the first in hash order (0: of all); the others are taken to have as many tokens as
    one of their source with about as many words. Raises VlmixError for a recipe, data or a model that `train` raises it
    for, as far as they show without weights; what is measured while training, and the disk, are not looked at.
    """
    if not recipe.mixture:
        raise VlmixError("no mixture to train on: add mixture=FOLDER")
    peak = _peak(recipe, gpu)
    samples = open_samples(recipe.mixture)
    mixtures.check(samples, recipe)
    shard_size(recipe, world)
    if recipe.validation and recipe.validation.holdout is not None:
        samples, _ = validation.split(samples, recipe.validation)
    parts, tokenizer = describe(recipe, own_tokenizer(recipe, samples, None))
    with torch.device("meta"):
        model = TrainableVLM(parts, recipe)
    encoder = Encoder(tokenizer, template(recipe.template, tokenizer))
    facts = _Facts(samples, encoder, parts.vision, recipe, sample)
    order = mixtures.schedule(facts.samples, recipe, facts.lengths.tokens, world)
    steps = steps_of(recipe, order)
    epoch = _Epoch(order, facts, world, recipe)
    flops = Flops.of(model)
    step, sources = _sources(facts, order, flops, epoch)
    parameters = count_parameters(model)
    time = None
    if gpu:
        seconds = step.tflop / (world * peak * efficiency)
        time = Time(
            gpu=gpu,
            peak_tflops=peak,
            efficiency=efficiency,
            step_seconds=seconds,
            hours=seconds * steps / 3600,
            tokens_per_second=step.tokens / seconds,
        )
    return Forecast(
        name=recipe.name,
        mixture=mixtures.name_of(samples),
        world=world,
        samples=len(facts.samples),
        tokenized_samples=facts.tokenized,
        skipped_samples=len(samples) - len(facts.samples),
        steps=steps,
        steps_per_epoch=order.steps_per_epoch,
        global_size=recipe.batch.global_size,
        mixtures=mixtures.facts(facts.samples, order, steps).get("mixtures", []),
        parameters=parameters,
        step=step,
        sources=sources,
        micro_batches=MicroBatches(
            least=int(epoch.counts.min()), mean=float(epoch.counts.mean()), most=int(epoch.counts.max())
        ),
        padding_waste=1 - epoch.tokens / int(epoch.slots.sum()),
        imbalance=float(epoch.slots.max(axis=1).sum() * world / epoch.slots.sum()),
        memory=memory_of(
            model,
            recipe,
            world,
            [_skeleton(members, facts, recipe) for members in epoch.largest],
            several=int(epoch.counts.max()) > 1,
        ),
        checkpoint_bytes=bytes_of(sum(part["trained"] for part in parameters.values())),
        time=time,
    )


def _peak(recipe: Recipe, gpu: str) -> float:
    if not gpu:
        return 0.0
    if gpu not in PEAKS:
        raise VlmixError(f"--gpu {gpu}: its peak is not known{nearest(gpu, PEAKS)}")
    if recipe.precision != "bf16":
        raise VlmixError(f"--gpu {gpu}: its peak is known for bf16, the recipe computes in {recipe.precision}")
    return PEAKS[gpu]


class _Facts:
    """The samples that are trained on, and of each [N] its tokens, tiles and source."""

    def __init__(self, samples: Samples, encoder: Encoder, vision: ImageGeometry, recipe: Recipe, sample: int) -> None:
        self.vision = vision
        counts, (widths, heights) = samples.image_fields("width", "height")
        self.starts = np.cumsum([0, *counts])
        self.sizes = np.stack([widths.to_numpy(), heights.to_numpy()], axis=1)
        """[images, 2]: width and height."""
        different, place = np.unique(self.sizes, axis=0, return_inverse=True)
        owner = np.repeat(np.arange(len(samples)), counts)

        def summed(of_size: Any) -> NDArray[np.int64]:
            values = np.array([of_size(width, height) for width, height in different.tolist()], dtype=np.int64)
            return np.bincount(owner, values[place.reshape(-1)], minlength=len(samples)).astype(np.int64)

        image_tokens, tiles = summed(vision.tokens), summed(vision.tile_count)
        found, self.tokenized = _lengths(samples, encoder, vision, recipe, image_tokens, sample)
        self.samples = mixtures.fitting(samples, found, recipe)
        self.places = np.flatnonzero(found.fits)
        """[N]: which of the samples offered they are."""
        self.lengths = found.of(found.fits)
        self.image_tokens, self.tiles = image_tokens[found.fits], tiles[found.fits]
        names = self.samples.column("source").to_pylist()
        self.sources = sorted(set(names))
        number = {name: place for place, name in enumerate(self.sources)}
        self.source = np.array([number[name] for name in names], dtype=np.int64)

    def image_sizes(self, sample: int) -> list[tuple[int, int]]:
        """(height, width) of each image."""
        place = self.places[sample]
        return [(height, width) for width, height in self.sizes[self.starts[place] : self.starts[place + 1]].tolist()]


def _lengths(
    samples: Samples,
    encoder: Encoder,
    vision: ImageGeometry,
    recipe: Recipe,
    image_tokens: NDArray[np.int64],
    sample: int,
) -> tuple[Lengths, int]:
    """Token lengths of all samples, and how many were tokenized for it."""
    most = recipe.batch.max_length
    if not sample or len(samples) <= sample:
        return measure(samples, encoder, vision, most), len(samples)
    chosen = np.sort(keyed_order(samples.column("id").to_pylist(), 0, "forecast")[:sample])
    found = measure(samples.select(chosen), encoder, vision, most)
    words, source = samples.lengths(), np.unique(samples.column("source").to_pylist(), return_inverse=True)[1]
    like = np.empty(len(samples), dtype=np.int64)  # of each sample, the one of `chosen` that stands for it
    for number in range(int(source.max()) + 1):
        members, known = np.flatnonzero(source == number), np.flatnonzero(source[chosen] == number)
        known = known if len(known) else np.arange(len(chosen))
        known = known[np.argsort(words[chosen[known]], kind="stable")]
        left, right = (np.searchsorted(words[chosen[known]], words[members], side) for side in ("left", "right"))
        # Those of as many words stand in turns.
        at = left + np.arange(len(members)) % np.maximum(right - left, 1)
        like[members] = known[np.minimum(at, len(known) - 1)]
    like[chosen] = np.arange(len(chosen))
    whole = (found.untruncated - image_tokens[chosen])[like] + image_tokens
    before = (found.trunks - image_tokens[chosen])[like]  # text before and between pictures
    trunks = np.where(image_tokens > 0, image_tokens + before, 0)
    fits = trunks <= most
    prefixes = np.zeros(len(samples), dtype=np.uint64)  # as if those of the same pictures had the same text before them
    return Lengths(np.minimum(whole, most), found.targets[like], whole, fits, trunks, prefixes), len(chosen)


class _Epoch:
    """The first epoch: [steps, world] positions that each rank computes, [steps] micro-batches of a rank, and the
    micro-batches that need most memory."""

    def __init__(self, order: Schedule, facts: _Facts, world: int, recipe: Recipe) -> None:
        steps = order.steps_per_epoch
        self.slots = np.zeros((steps, world), dtype=np.int64)
        self.counts = np.zeros(steps, dtype=np.int64)
        self.tokens = 0
        self.shared = np.zeros(len(facts.samples))
        """[N] times that a sample's beginning is computed with others', less its part of those times."""
        lengths, sharing = facts.lengths, mixtures.sharing(order, recipe, facts.lengths)
        largest: dict[str, tuple[int, Bin]] = {}
        for step in range(steps):
            ranks = micro_batches(order, step, world, recipe.batch, sharing)
            self.counts[step] = len(ranks[0])
            for rank, bins in enumerate(ranks):
                for members in bins:
                    positions, once = members.positions, _once(members)
                    tokens = lengths.tokens[positions] - np.where(once, 0, lengths.trunks[positions])
                    slots = self._slots(tokens, bool(recipe.batch.pack_length))
                    self.slots[step, rank] += slots
                    self.tokens += int(tokens.sum())
                    np.add.at(self.shared, positions, 1 - 1 / np.repeat(members.trees, members.trees))
                    sums = {
                        "slots": slots,
                        "keys": slots + lengths.trunks[positions[np.repeat(members.trees, members.trees) > 1]].sum(),
                        "tiles": facts.tiles[positions[once]].sum(),
                        "targets": lengths.targets[positions].sum(),
                    }
                    for what, size in sums.items():
                        if size > largest.get(what, (-1, None))[0]:
                            largest[what] = int(size), members
        self.largest = list({members.positions.tobytes(): members for _, members in largest.values()}.values())

    @staticmethod
    def _slots(tokens: NDArray[np.int64], packed: bool) -> int:
        if not len(tokens):
            return 1
        return int(tokens.sum() if packed else tokens.max() * len(tokens))


def _once(members: Bin) -> NDArray[np.bool_]:
    """[n] which samples of a micro-batch bring what they share with those after them, or are alone."""
    once = np.zeros(len(members.positions), dtype=np.bool_)
    once[np.cumsum([0, *members.trees])[:-1]] = True
    return once


def _sources(facts: _Facts, order: Schedule, flops: Flops, epoch: _Epoch) -> tuple[Source, dict[str, Source]]:
    """The average step of the first epoch, and each source's part of it; what samples share is divided among them."""
    drawn = np.bincount(order.epoch(0).samples, minlength=len(facts.samples)).astype(np.float64)
    lengths, trunks = facts.lengths.tokens.astype(np.float64), facts.lengths.trunks.astype(np.float64)
    tokens = drawn * lengths - epoch.shared * trunks
    squares = drawn * flops.squares(lengths) - epoch.shared * flops.squares(trunks)
    targets, image_tokens = drawn * facts.lengths.targets, (drawn - epoch.shared) * facts.image_tokens
    tiles = (drawn - epoch.shared) * facts.tiles
    columns = {
        "samples": drawn,
        "tokens": tokens,
        "image_tokens": image_tokens,
        "target_tokens": targets,
        "tflop": flops.of_samples(tokens, squares, targets, tiles, image_tokens) / 1e12,
    }
    sums = {
        name: np.bincount(facts.source, column, minlength=len(facts.sources)) / order.steps_per_epoch
        for name, column in columns.items()
    }
    each = {
        source: Source(**{name: float(column[number]) for name, column in sums.items()})
        for number, source in enumerate(facts.sources)
    }
    return Source(**{name: float(column.sum()) for name, column in sums.items()}), each


def _skeleton(bin: Bin, facts: _Facts, recipe: Recipe) -> MicroBatch:
    """A micro-batch of these samples on the meta device: its shapes."""
    members, once, bounds = bin.positions, _once(bin), None
    lengths = facts.lengths.tokens[members] if len(members) else np.ones(1, dtype=np.int64)
    shape = len(lengths), int(lengths.max())
    if recipe.batch.pack_length:
        trunks = np.where(np.array(bin.trees) > 1, facts.lengths.trunks[members[once]], 0)
        bounds = Bounds.of_trees(lengths.tolist(), bin.trees or [1], trunks.tolist() or [0])
        bounds = dataclasses.replace(bounds, arrays=Kernel.of(bounds, torch.device("meta")))
        shape = 1, bounds.ends[-1]
    sizes = [size for sample in members[once].tolist() for size in facts.image_sizes(sample)]
    tiles = [facts.vision.tile_count(width, height) for height, width in sizes]
    targets = int(facts.lengths.targets[members].sum())
    side = facts.vision.side

    def numbers(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int64, device="meta")

    return MicroBatch(
        input_ids=numbers(*shape),
        position_ids=numbers(*shape),
        targets=numbers(targets),
        target_positions=numbers(targets),
        sample_index=numbers(targets),
        image_positions=numbers(int(facts.image_tokens[members[once]].sum())),
        images=torch.empty((sum(tiles), 3, side, side), dtype=torch.uint8, device="meta"),
        image_sizes=sizes,
        tiles_per_image=tiles,
        bounds=bounds,
        samples=[""] * len(members),
        sources=numbers(len(members)),
        lengths=lengths,
    )
