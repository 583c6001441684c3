"""What a training takes of memory, before it is started, for the process that has most.

States are counted by their shapes; activations and logits by following, on the meta device, what a forward and a
backward pass keep alive.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from msgspec import Struct
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from vlmix.train.attention import Bounds
from vlmix.train.batches import MicroBatch
from vlmix.train.config import Recipe
from vlmix.train.cross_entropy import chunked_cross_entropy
from vlmix.train.model import TrainableVLM
from vlmix.train.parallel import reduces_each, shard_size

_FP32 = torch.float32.itemsize
_ATTENTION = "vlmix-forecast"


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


def memory(model: TrainableVLM, recipe: Recipe, world: int, micros: Sequence[MicroBatch], several: bool) -> Memory:
    """What a model on the meta device takes on `world` processes. `micros`, on the meta device, too: the micro-batches
    that may need most; `several`: whether a step may have more than one."""
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
    whole = several and not reduces_each(model, recipe)
    activations, logits = peaks(model, recipe, micros)
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


def peaks(model: TrainableVLM, recipe: Recipe, micros: Sequence[MicroBatch]) -> tuple[int, int]:
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
    for micro in micros:
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
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    bounds: Bounds | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """[B, T, H, D] of query [B, H, T, D], without values."""
    if bounds is not None and bounds.arrays is not None and (places := bounds.arrays.places) is not None:
        key, value = (each.index_select(2, places) for each in (key, value))
    out: torch.Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out, None
