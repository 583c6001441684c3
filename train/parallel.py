"""Processes, devices and FSDP2. One process is a group of one, so that there is one way to train."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vlmix.mixture.errors import VlmixError
from vlmix.train.config import Part, Recipe
from vlmix.train.model import TrainableVLM
from vlmix.train.param_groups import part_of

T = TypeVar("T")

SMALL = 2**30
"""Trainable parameters up to which `reduce_gradients: auto` keeps their gradients whole: 4 GiB on each GPU."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all ranks, on the CPU: no wait for the accelerator."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return list(sums.tolist())

    def run_on_main(self, call: Callable[[], T]) -> T:
        """What the first rank's call returns, on all. A VlmixError that it raises ends all of them."""
        box: list[Any] = [_caught(call) if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        result: T | VlmixError = box[0]
        return self.abort(result) if isinstance(result, VlmixError) else result

    def run_on_all(self, call: Callable[[], T]) -> T:
        """What this rank's call returns. A VlmixError that it raises on any rank ends all of them."""
        return self.raise_if_any(_caught(call))

    def raise_if_any(self, value: T | VlmixError) -> T:
        """This rank's value. If it is a VlmixError on any rank, that ends all of them."""
        errors = [error for error in self.gather(value if isinstance(value, VlmixError) else None) if error]
        return self.abort(errors[0]) if errors or isinstance(value, VlmixError) else value

    def abort(self, error: VlmixError) -> NoReturn:
        """End all ranks, which all know the error; the first one reports it."""
        raise error if self.is_main else SystemExit(1)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on all."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def gather_all(self, names: Iterable[str]) -> list[str]:
        """Every rank's names, on all, one after the other."""
        return [name for of_rank in self.gather(list(names)) for name in of_rank]


def _caught(call: Callable[[], T]) -> T | VlmixError:
    try:
        return call()
    except VlmixError as error:
        return error


@contextmanager
def init_distributed() -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be alone."""
    joined = "LOCAL_RANK" in os.environ  # RANK alone may be a cluster's name for a machine
    rank, world = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if joined else (0, 1)
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise VlmixError(
            f"process {local} on this machine has no GPU: it has {torch.cuda.device_count()}; lower --nproc"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if joined:
        # The others wait while the first one reads a large model, measures texts or exports, on slow disks for long.
        dist.init_process_group(backend, timeout=timedelta(hours=2))
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield Ranks(rank, world, device)
    finally:
        dist.destroy_process_group()


def shard_size(recipe: Recipe, world: int) -> int:
    """How many processes share one copy of the model. Raises VlmixError if the others do not make up further copies."""
    size = recipe.shard_size or world
    if world % size:
        raise VlmixError(
            f"shard_size {size} does not divide the number of processes, {world}; take a divisor, such as the GPUs of "
            "a node, or 0 for all of them"
        )
    return size


def apply_fsdp(model: TrainableVLM, recipe: Recipe, ranks: Ranks) -> None:
    """Shard a model in place: every block of the LM, then the rest. A frozen tower stays whole on every rank: it takes
    no part in collectives, so a rank without images holds up nobody."""
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    size = shard_size(recipe, ranks.world)
    common: dict[str, Any] = {
        "mesh": _mesh(size, ranks),
        "mp_policy": bf16 if recipe.precision == "bf16" else MixedPrecisionPolicy(),
    }
    if "vision_tower" not in model.parts:
        model.vision_tower.to(ranks.device)
        common["ignored_params"] = set(model.vision_tower.parameters())
    for block in model.blocks:
        if recipe.compile:
            block.compile(dynamic=True)
        fully_shard(block, reshard_after_forward=recipe.reshard_after_forward and size > 1, **common)
    fully_shard(model, reshard_after_forward=False, **common)


def _mesh(size: int, ranks: Ranks) -> DeviceMesh:
    """[copies, size] where there are several copies of the model (HSDP), else [size]."""
    kind, copies = ranks.device.type, ranks.world // size
    if copies == 1:
        return init_device_mesh(kind, (size,))
    return init_device_mesh(kind, (copies, size), mesh_dim_names=("copies", "shards"))


def reduces_each(model: TrainableVLM, recipe: Recipe) -> bool:
    """Whether gradients are reduced after every micro-batch, and not once a step (`reduce_gradients`)."""
    if recipe.reduce_gradients != "auto":
        return recipe.reduce_gradients == "each"
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) > SMALL


def before_backward(model: TrainableVLM, last: bool, each: bool) -> None:
    """Say what FSDP does with the gradients of the next backward pass: the last one of a step, or not. Copies of the
    model add up theirs once a step; within a copy they are added up after `each`, or once, too."""
    sharded = cast(FSDPModule, model)
    sharded.set_requires_gradient_sync(last or each)
    sharded.set_requires_all_reduce(last)


def broadcast_weights(model: TrainableVLM, whole: dict[str, torch.Tensor], ranks: Ranks) -> None:
    """Give all ranks the weights that the first one has in `whole` (empty on the others), and its buffers."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            if ranks.is_main:
                full = whole[name].to(ranks.device)
            else:
                full = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            split = distribute_tensor(full, parameter.device_mesh, parameter.placements)
            with torch.no_grad():
                parameter.to_local().copy_(split.to_local())
        else:
            dist.broadcast(parameter.data, src=0)
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def full_state(
    model: TrainableVLM, ranks: Ranks, parts: Collection[Part] = ("connector", "lm", "vision_tower")
) -> dict[str, torch.Tensor]:
    """The whole weights of some parts on the CPU of the first rank; empty on the others, which take part in
    gathering."""
    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if part_of(name) not in parts:
            continue
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if ranks.is_main:
            state[name] = whole.detach().cpu()
    return state
