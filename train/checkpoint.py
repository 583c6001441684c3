"""Checkpoints of a run: what learns and the optimizer's state, by torch's DCP, asynchronous and atomic.

`RUN/checkpoints/step-00000500` means the state before step 500. It is written under another name, which it loses when
every rank is done. A checkpoint may be read on another number of ranks.
"""

import io
import os
import pickle
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from msgspec import Struct
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from vlmix.mixture.errors import VlmixError
from vlmix.train.model import TrainableVLM
from vlmix.train.parallel import Ranks

_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)

_METADATA = "torch.distributed.checkpoint.metadata"
# Exact names, never a module: it would admit whatever that module imports. None of them does anything but hold data.
_ADMITTED = {
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in (torch.float64, torch.int64, torch.int32, torch.bool)),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
}


class _Unpickler(pickle.Unpickler):
    """Reads a checkpoint's metadata; a checkpoint that somebody else made must not run code here."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint of vlmix needs")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _Reader(FileSystemReader):  # type: ignore[misc]
    """DCP's reader, without its plain `pickle.load`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            try:
                metadata = _Unpickler(file).load()
            except pickle.UnpicklingError:
                raise
            except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
                raise pickle.UnpicklingError(f".metadata is damaged ({type(error).__name__})") from None
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("it is no metadata of a checkpoint")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):  # type: ignore[misc]
    """DCP's planner, without its plain unpickling of what is no tensor: numbers and names alone are admitted."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        set_element(
            self.original_state_dict, self.mappings[read_item.dest_index.fqn], torch.load(value, weights_only=True)
        )


class Best(Struct, frozen=True):
    """The best value so far of the number that a recipe names, and the step that it was measured at."""

    number: str
    value: float
    step: int


class State(Struct, frozen=True):
    """Where a run stands: the next step, what has been counted so far, and what it is a run of."""

    step: int
    counted: dict[str, float]
    identity: dict[str, str]
    """What must be the same to resume: name -> value."""
    unreadable: tuple[str, ...] = ()
    """Samples whose image did not decode."""
    measured: int = 0
    """The last step at which everything was measured that was due."""
    best: Best | None = None


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self._pending: tuple[Path, Future[Any], State] | None = None
        # A save in the background talks among the ranks while training does: in a group of its own.
        self._group = dist.new_group(backend="gloo")
        if ranks.is_main:
            for left in folder.glob("*.partial"):
                shutil.rmtree(left)
        dist.barrier()

    def save(self, model: TrainableVLM, optimizer: torch.optim.Optimizer, state: State) -> None:
        """Begin to save; training may continue at once. Waits for the save before it, and raises VlmixError if that, or
        this, cannot be written."""
        self.wait()
        path = self.path(state.step)
        partial = path.with_suffix(".partial")

        def begin() -> None:
            try:
                partial.mkdir(parents=True)
                (partial / "state.json").write_bytes(msgspec.json.format(msgspec.json.encode(state)))
            except OSError as error:
                raise self._unwritable(path, error) from None

        self.ranks.run_on_main(begin)
        tensors = {"model": _weights(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=_OPTIONS)}
        self._pending = path, dcp.async_save(tensors, checkpoint_id=partial, process_group=self._group), state

    @property
    def finished(self) -> bool:
        """Whether a save is in progress that this rank is done with."""
        return self._pending is not None and self._pending[1].done()

    def wait(self) -> None:
        """Finish the save in progress, if any, and remove old ones. Raises VlmixError if it could not be written."""
        if self._pending is None:
            return
        path, future, state = self._pending
        self._pending = None
        problem = None
        try:
            future.result()
        except (Exception, CheckpointException) as error:  # whatever a storage writer raises, on whichever rank
            problem = self._unwritable(path, error)
        found = [each for each in self.ranks.gather(problem) if each]
        self.ranks.run_on_main(lambda: self._finish(path, state.best, found[0] if found else None))

    def _finish(self, path: Path, best: Best | None, problem: VlmixError | None) -> None:
        """Give a save its name, or take it away."""
        partial = path.with_suffix(".partial")
        try:
            if problem is None:
                _sync(partial)
                if path.exists():
                    shutil.rmtree(path)
                partial.rename(path)
                for old in self._whole()[: -self.keep]:
                    if best is None or old != self.path(best.step):
                        shutil.rmtree(old)
        except OSError as error:
            problem = self._unwritable(path, error)
        if problem is not None:
            shutil.rmtree(partial, ignore_errors=True)
            raise problem

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def latest(self) -> tuple[Path, State] | None:
        """The last whole checkpoint. Raises VlmixError if its state cannot be read."""
        newest = self._whole()[-1:]
        return (newest[0], read_state(newest[0])) if newest else None

    def restore(self, path: Path, model: TrainableVLM, optimizer: torch.optim.Optimizer) -> None:
        """Load a checkpoint into a model and its optimizer, sharded as they are."""
        tensors = {"model": _weights(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=_OPTIONS)}
        _load(path, tensors)
        set_model_state_dict(model, tensors["model"], options=_OPTIONS)
        set_optimizer_state_dict(model, optimizer, tensors["optimizer"], options=_OPTIONS)

    def _whole(self) -> list[Path]:
        return checkpoints_in(self.folder)

    def _unwritable(self, path: Path, error: BaseException) -> VlmixError:
        last = self._whole()[-1:]
        kept = f"{last[0].name} is kept and the run can resume from it" if last else "none was written before"
        what = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        return VlmixError(f"{path}: cannot write the checkpoint: {what}; free some space. {kept}")


def bytes_of(trained: int) -> int:
    """Size of a checkpoint of so many trained parameters: the weights and AdamW's two moments, in fp32."""
    return 3 * trained * torch.float32.itemsize


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints in the folder of a run's, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if not path.suffix)


def read_state(path: Path) -> State:
    """What a checkpoint says beside its tensors. Raises VlmixError if it cannot be read."""
    try:
        return msgspec.json.decode((path / "state.json").read_bytes(), type=State)
    except (OSError, msgspec.DecodeError) as error:
        raise VlmixError(f"{path}: {error}; remove this checkpoint to resume from the one before") from None


def restore_weights(path: Path, model: TrainableVLM) -> None:
    """Load what a checkpoint has learnt into a model, and nothing of the optimizer's."""
    tensors = {"model": _weights(model)}
    _load(path, tensors)
    set_model_state_dict(model, tensors["model"], options=_OPTIONS)


def _load(path: Path, tensors: dict[str, Any]) -> None:
    try:
        reader = _Reader(path)
        reader.read_metadata()  # DCP would log what this raises, twice, before it raises something else
        dcp.load(tensors, storage_reader=reader, planner=_Planner())
    except (Exception, CheckpointException) as error:  # DCP wraps what happened on each rank
        what = str(error).strip().splitlines()[-1]
        raise VlmixError(f"{path}: {what}; remove this checkpoint to resume from the one before") from None


def _weights(model: TrainableVLM) -> dict[str, Any]:
    """What learns. (DCP by itself takes a frozen tied embedding for trained.)"""
    trained = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.requires_grad}
    weights = get_model_state_dict(model, options=_OPTIONS)
    return {name: tensor for name, tensor in weights.items() if name in trained}


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
