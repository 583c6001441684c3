"""What a training will take, before it is started: its data as the schedule has them, its memory, its time.

The model is built on the meta device, from configurations alone. Memory is that of the process that has most: states by
their shapes, activations by following what a forward and a backward pass over the largest micro-batch keep alive.
"""

import weakref
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from vlmix.mixture.blend import Samples, open_samples
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.keyed import keyed_order
from vlmix.mixture.schedule.packing import Positions
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.train import mixtures, validation
from vlmix.train.batches import Lengths, MicroBatch, micro_batches
from vlmix.train.batches import lengths as measure
from vlmix.train.checkpoint import bytes_of
from vlmix.train.config import Recipe
from vlmix.train.cross_entropy import chunked_cross_entropy
from vlmix.train.flops import PEAKS, Flops
from vlmix.train.images import ImageGeometry
from vlmix.train.model import TrainableVLM, describe
from vlmix.train.parallel import reduces_each, shard_size
from vlmix.train.param_groups import count_parameters
from vlmix.train.run import own_tokenizer, steps_of
from vlmix.train.tokens import Encoder, template

SAMPLE = 20_000
_FP32 = torch.float32.itemsize
_ATTENTION = "vlmix-forecast"


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


class Memory(Struct, frozen=True, kw_only=True):
    """Bytes of the process that has most."""

    weights: int
    """fp32, its share of them."""
    frozen_tower: int
    """A frozen vision tower, whole."""
    gradients: int
    """fp32, its share; and whole ones, where a step has several micro-batches and they are reduced once
    (`reduce_gradients`)."""
    optimizer: int
    """AdamW's two moments."""
    gathered: int
    """Whole weights in the type of the computation while they are used, and gradients on their way to their shares."""
    activations: int
    logits: int
    """Of `loss_chunk` target tokens, and what else the loss holds for a moment."""

    @property
    def total(self) -> int:
        """At most: no moment needs all of it. Without what CUDA and its allocator take for themselves."""
        return sum(getattr(self, name) for name in self.__struct_fields__)


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
    one of their source with about as many words. Raises VlmixError for what `train` raises it for, weights aside.
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
    step, sources = _sources(facts, order, flops)
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
        memory=_memory(model, recipe, world, epoch, facts),
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
    fits = np.where(whole <= most, True, image_tokens < most)
    fits[chosen] = found.fits
    return Lengths(np.minimum(whole, most), found.targets[like], whole, fits), len(chosen)


class _Epoch:
    """The first epoch: [steps, world] positions that each rank computes, [steps] micro-batches of a rank, and the
    micro-batches that need most memory."""

    def __init__(self, order: Schedule, facts: _Facts, world: int, recipe: Recipe) -> None:
        steps = order.steps_per_epoch
        self.slots = np.zeros((steps, world), dtype=np.int64)
        self.counts = np.zeros(steps, dtype=np.int64)
        self.tokens = 0
        lengths = facts.lengths
        largest: dict[str, tuple[int, Positions]] = {}
        for step in range(steps):
            ranks = micro_batches(order, step, world, recipe.batch)
            self.counts[step] = len(ranks[0])
            for rank, bins in enumerate(ranks):
                for members in bins:
                    tokens = lengths.tokens[members]
                    slots = self._slots(tokens, bool(recipe.batch.pack_length))
                    self.slots[step, rank] += slots
                    self.tokens += int(tokens.sum())
                    sums = {
                        "slots": slots,
                        "tiles": facts.tiles[members].sum(),
                        "targets": lengths.targets[members].sum(),
                    }
                    for what, size in sums.items():
                        if size > largest.get(what, (-1, None))[0]:
                            largest[what] = int(size), members
        self.largest = list({members.tobytes(): members for _, members in largest.values()}.values())

    @staticmethod
    def _slots(tokens: NDArray[np.int64], packed: bool) -> int:
        if not len(tokens):
            return 1
        return int(tokens.sum() if packed else tokens.max() * len(tokens))


def _sources(facts: _Facts, order: Schedule, flops: Flops) -> tuple[Source, dict[str, Source]]:
    """The average step of the first epoch, and each source's part of it."""
    drawn = np.bincount(order.epoch(0).samples, minlength=len(facts.samples)).astype(np.float64)
    tokens, targets = facts.lengths.tokens.astype(np.float64), facts.lengths.targets.astype(np.float64)
    tiles, image_tokens = facts.tiles.astype(np.float64), facts.image_tokens.astype(np.float64)
    columns = {
        "samples": np.ones(len(drawn)),
        "tokens": tokens,
        "image_tokens": image_tokens,
        "target_tokens": targets,
        "tflop": flops.of_samples(tokens, flops.squares(tokens), targets, tiles, image_tokens) / 1e12,
    }
    sums = {
        name: np.bincount(facts.source, drawn * column, minlength=len(facts.sources)) / order.steps_per_epoch
        for name, column in columns.items()
    }
    each = {
        source: Source(**{name: float(column[number]) for name, column in sums.items()})
        for number, source in enumerate(facts.sources)
    }
    return Source(**{name: float(column.sum()) for name, column in sums.items()}), each


def _memory(model: TrainableVLM, recipe: Recipe, world: int, epoch: _Epoch, facts: _Facts) -> Memory:
    size = shard_size(recipe, world)
    width = torch.bfloat16.itemsize if recipe.precision == "bf16" else _FP32
    tower = {id(weight) for weight in model.vision_tower.parameters()} if "vision_tower" not in model.parts else set()
    sharded = [weight for weight in model.parameters() if id(weight) not in tower]
    trained = [weight for weight in sharded if weight.requires_grad]
    inside = {id(weight) for block in model.blocks for weight in block.parameters()}
    root = [weight for weight in sharded if id(weight) not in inside]
    blocks = [list(block.parameters()) for block in model.blocks]
    # A block is used while the next one is gathered, and kept where weights stay gathered.
    resharded = recipe.reshard_after_forward and size > 1
    gathered = width * (_count(root) + sum(sorted(map(_count, blocks))[-2 if resharded else 0 :]))
    learnt = [[weight for weight in group if weight.requires_grad] for group in (root, *blocks)]
    leaving = width * _count(learnt[0]) + (width + _FP32) * max(map(_count, learnt[1:]), default=0)
    whole = int(epoch.counts.max()) > 1 and not reduces_each(model, recipe)
    activations, logits = _peaks(model, recipe, epoch.largest, facts)
    return Memory(
        weights=_FP32 * _share(sharded, size),
        frozen_tower=sum(weight.nbytes for weight in model.vision_tower.parameters()) if tower else 0,
        gradients=_FP32 * (_share(trained, size) + (_count(trained) if whole else 0)),
        optimizer=2 * _FP32 * _share(trained, size),
        gathered=gathered + leaving,
        activations=activations,
        logits=logits,
    )


def _count(weights: list[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def _share(weights: list[nn.Parameter], size: int) -> int:
    """Values that the first of `size` processes has: FSDP cuts weights by rows, and the first get the larger part."""
    return sum(-(-weight.shape[0] // size) * (weight.numel() // weight.shape[0]) for weight in weights)


def _peaks(model: TrainableVLM, recipe: Recipe, largest: list[Positions], facts: _Facts) -> tuple[int, int]:
    """Bytes of activations, and of logits, at their most. The model is cast to the type of the computation."""
    if recipe.precision == "bf16":
        model.to(torch.bfloat16)
    AttentionInterface.register(_ATTENTION, _attend)
    model.hf.model.language_model.set_attn_implementation(_ATTENTION)
    model.vision_tower.set_attn_implementation(_ATTENTION)  # type: ignore[operator]
    for weight in model.parameters():
        if weight.requires_grad:  # gradients are counted elsewhere
            weight.register_post_accumulate_grad_hook(_drop)
    activations = logits = 0
    for members in largest:
        micro = _skeleton(members, facts, recipe)
        with _Alive([*model.parameters(), *model.buffers()]) as alive:
            hidden = model.target_states(micro)
            hidden.sum().backward()
        activations = max(activations, alive.most)
        head = model.hf.lm_head
        states = hidden.detach().requires_grad_()
        weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
        with _Alive([states, weight, micro.targets]) as alive:
            chunked_cross_entropy(states, weight, bias, micro.targets, recipe.loss_chunk).sum().backward()
        logits = max(logits, alive.most)
    return activations, logits


def _drop(weight: torch.Tensor) -> None:
    weight.grad = None


def _skeleton(members: Positions, facts: _Facts, recipe: Recipe) -> MicroBatch:
    """A micro-batch of these samples on the meta device: its shapes."""
    lengths = facts.lengths.tokens[members] if len(members) else np.ones(1, dtype=np.int64)
    shape = (1, int(lengths.sum())) if recipe.batch.pack_length else (len(lengths), int(lengths.max()))
    sizes = [size for sample in members.tolist() for size in facts.image_sizes(sample)]
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
        image_positions=numbers(int(facts.image_tokens[members].sum())),
        images=torch.empty((sum(tiles), 3, side, side), dtype=torch.uint8, device="meta"),
        image_sizes=sizes,
        tiles_per_image=tiles,
        cu_seqlens=None,  # as `_attend` looks at shapes alone
        max_seqlen=int(lengths.max()),
        samples=[""] * len(members),
        sources=numbers(len(members)),
        lengths=lengths,
    )


class _Alive(TorchDispatchMode):
    """Follows the memory of what operations make, but for tensors that were there `before`. `most`: bytes at a time."""

    def __init__(self, before: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Attention(torch.autograd.Function):
    """What a kernel without the square of scores keeps: its inputs, its result, and a number for each row of scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    """[B, T, H, D] of query [B, H, T, D], without values."""
    out: torch.Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out, None
