"""Processes, devices and FSDP2. One process is a group of one, so that there is one way to train."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mixture.errors import VlmixError
from train.config import Recipe
from train.model import Trainee


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all ranks, on the CPU: no wait for the accelerator."""
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return list(sums.tolist())

    def share(self, value: Any) -> Any:
        """The first rank's value, on all. An error that it met ends all of them."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return self.agree(box[0])

    def agree(self, value: Any) -> Any:
        """A value that all ranks have. If it is an error all of them end, and the first one tells it."""
        if isinstance(value, VlmixError):
            raise value if self.first else SystemExit(1)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on all."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started, or be alone."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
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
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield Ranks(rank, world, device)
    finally:
        dist.destroy_process_group()


def shard(model: Trainee, recipe: Recipe, ranks: Ranks) -> None:
    """Shard a model in place: every block of the LM, then the rest. A frozen tower stays whole on every rank: it takes
    no part in collectives, so a rank without images holds up nobody."""
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    common: dict[str, Any] = {
        "mesh": init_device_mesh(ranks.device.type, (ranks.world,)),
        "mp_policy": bf16 if recipe.precision == "bf16" else MixedPrecisionPolicy(),
    }
    if "tower" not in model.parts:
        model.tower.to(ranks.device)
        common["ignored_params"] = set(model.tower.parameters())
    for block in model.blocks:
        if recipe.compile:
            block.compile(dynamic=True)
        fully_shard(block, reshard_after_forward=recipe.reshard and ranks.world > 1, **common)
    fully_shard(model, reshard_after_forward=False, **common)


def spread(model: Trainee, whole: dict[str, torch.Tensor], ranks: Ranks) -> None:
    """Give all ranks the weights that the first one has in `whole` (empty on the others), and its buffers."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            full = whole[name].to(ranks.device) if ranks.first else torch.empty_like(_full_size(parameter))
            split = distribute_tensor(full, parameter.device_mesh, parameter.placements)
            with torch.no_grad():
                parameter.to_local().copy_(split.to_local())
        else:
            dist.broadcast(parameter.data, src=0)
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def _full_size(parameter: DTensor) -> torch.Tensor:
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)


def full_state(model: Trainee, ranks: Ranks, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """The whole weights on the CPU of the first rank; empty on the others, which take part in gathering."""
    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if trained_only and not parameter.requires_grad:
            continue
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if ranks.first:
            state[name] = whole.detach().cpu()
    return state
