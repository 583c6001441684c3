"""Checkpoints of a run: what learns and the optimizer's state, by torch's DCP, asynchronous and atomic.

`RUN/checkpoints/step-00000500` means the state before step 500. It is written under another name, which it loses when
every rank is done. A checkpoint may be read on another number of ranks.
"""

import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from msgspec import Struct
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from mixture.errors import VlmixError
from train.model import Trainee
from train.parallel import Ranks

_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


class State(Struct, frozen=True):
    """Where a run stands: the next step, what has been counted so far, and what it is a run of."""

    step: int
    counted: dict[str, float]
    identity: dict[str, str]
    """What must be the same to go on: name -> value."""
    unreadable: tuple[str, ...] = ()
    """Samples whose image did not decode."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self._pending: tuple[Path, Future[Any]] | None = None
        # A save in the background talks among the ranks while training does: in a group of its own.
        self._group = dist.new_group(backend="gloo")
        if ranks.first:
            for left in folder.glob("*.partial"):
                shutil.rmtree(left)
        dist.barrier()

    def save(self, model: Trainee, optimizer: torch.optim.Optimizer, state: State) -> None:
        """Begin to save; training may go on at once. Waits for the save before it, and raises VlmixError if that, or
        this, cannot be written."""
        self.wait()
        path = self.folder / f"step-{state.step:08d}"
        partial = path.with_suffix(".partial")

        def begin() -> None:
            try:
                partial.mkdir(parents=True)
                (partial / "state.json").write_bytes(msgspec.json.format(msgspec.json.encode(state)))
            except OSError as error:
                raise self._unwritable(path, error) from None

        self.ranks.once(begin)
        tensors = _tensors(model, optimizer)
        self._pending = path, dcp.async_save(tensors, checkpoint_id=partial, process_group=self._group)

    @property
    def finished(self) -> bool:
        """Whether a save is in progress that this rank is done with."""
        return self._pending is not None and self._pending[1].done()

    def wait(self) -> None:
        """Finish the save in progress, if any, and remove old ones. Raises VlmixError if it could not be written."""
        if self._pending is None:
            return
        path, future = self._pending
        self._pending = None
        problem = None
        try:
            future.result()
        except (Exception, CheckpointException) as error:  # whatever a storage writer raises, on whichever rank
            problem = self._unwritable(path, error)
        found = [each for each in self.ranks.gather(problem) if each]
        self.ranks.once(lambda: self._finish(path, found[0] if found else None))

    def _finish(self, path: Path, problem: VlmixError | None) -> None:
        """Give a save its name, or take it away."""
        partial = path.with_suffix(".partial")
        try:
            if problem is None:
                _sync(partial)
                if path.exists():
                    shutil.rmtree(path)
                partial.rename(path)
                for old in self._whole()[: -self.keep]:
                    shutil.rmtree(old)
        except OSError as error:
            problem = self._unwritable(path, error)
        if problem is not None:
            shutil.rmtree(partial, ignore_errors=True)
            raise problem

    def latest(self) -> tuple[Path, State] | None:
        """The last whole checkpoint. Raises VlmixError if its state cannot be read."""
        newest = self._whole()[-1:]
        if not newest:
            return None
        try:
            return newest[0], msgspec.json.decode((newest[0] / "state.json").read_bytes(), type=State)
        except (OSError, msgspec.DecodeError) as error:
            raise VlmixError(f"{newest[0]}: {error}; remove this checkpoint to go on from the one before") from None

    def restore(self, path: Path, model: Trainee, optimizer: torch.optim.Optimizer) -> None:
        """Load a checkpoint into a model and its optimizer, sharded as they are."""
        tensors = _tensors(model, optimizer)
        try:
            dcp.load(tensors, checkpoint_id=path)
        except (Exception, CheckpointException) as error:  # DCP wraps what happened on each rank
            what = str(error).strip().splitlines()[-1]
            raise VlmixError(f"{path}: {what}; remove this checkpoint to go on from the one before") from None
        set_model_state_dict(model, tensors["model"], options=_OPTIONS)
        set_optimizer_state_dict(model, optimizer, tensors["optimizer"], options=_OPTIONS)

    def _whole(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if not path.suffix)

    def _unwritable(self, path: Path, error: BaseException) -> VlmixError:
        last = self._whole()[-1:]
        kept = f"{last[0].name} is kept and the run can go on from it" if last else "none was written before"
        what = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        return VlmixError(f"{path}: cannot write the checkpoint: {what}; free some space. {kept}")


def _tensors(model: Trainee, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What learns, and the optimizer's state. (DCP by itself takes a frozen tied embedding for trained.)"""
    trained = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
    weights = get_model_state_dict(model, options=_OPTIONS)
    return {
        "model": {name: tensor for name, tensor in weights.items() if name in trained},
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_OPTIONS),
    }


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
