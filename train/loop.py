"""The training loop.

A step fetches all its micro-batches, counts the tokens that train over all ranks, runs them, clips, looks whether
everything is finite, and only then updates. What a step does depends on (recipe, mixture, step, number of ranks) alone;
dropout, too, is drawn anew from these at every step. So a run goes on where it stopped: on the CPU bit for bit, on
GPUs as far as their kernels repeat themselves.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import derive_key
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.train.batches import MicroBatch, MicroBatchDataset
from vlmix.train.checkpoint import Checkpoints, State
from vlmix.train.config import Recipe
from vlmix.train.flops import Flops, peak
from vlmix.train.loader import make_loader
from vlmix.train.metrics import Metrics
from vlmix.train.model import TrainableVLM
from vlmix.train.parallel import Ranks

EventCallback = Callable[[str, dict[str, Any]], None]
"""Told on the first rank: what happens (data, model, resumed, step, saved, unreadable, stopped or done), and facts."""


@dataclass
class _Counted:
    """Sums over the ranks of one step."""

    target_tokens: float
    tokens: float
    image_tokens: float
    slots: float
    samples: float
    unreadable: float
    flops: float
    stops: float
    saved: float
    errors: float
    fullest: float
    """Not a sum: positions of the rank that computes most."""


@dataclass
class Loop:
    """Trains a sharded model. `sources` names the numbers that micro-batches have for their samples' sources."""

    recipe: Recipe
    me: Ranks
    report: EventCallback
    folder: Path
    model: TrainableVLM
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    flops: Flops
    sources: list[str]
    stopping: int = 0
    """The signal that asked for the end."""

    def run(self, data: MicroBatchDataset, state: State, steps: int) -> State:
        """From a state to the end, or to a signal; the state there, saved."""
        with self._signals():
            try:
                return self._run(data, state, steps)
            except (VlmixError, SystemExit):  # known to all ranks: a save in progress is finished first
                self.checkpoints.wait()
                raise

    def _run(self, data: MicroBatchDataset, state: State, steps: int) -> State:
        recipe, me, model, optimizer = self.recipe, self.me, self.model, self.optimizer
        names, checkpoints = self.sources, self.checkpoints
        metrics: Metrics | None = me.run_on_all(lambda: Metrics(self.folder, state.step) if me.is_main else None)
        keep = metrics.add if metrics else lambda row: None
        sums = torch.zeros((2, len(names)), device=me.device)  # loss and trained tokens per source since the last row
        counted, unreadable = dict(state.counted), state.unreadable
        batches = iter(make_loader(data, state.step, steps, recipe.loader_workers))
        began = time.perf_counter()
        waited, logged, last_saved = 0.0, list[_Counted](), state.step
        for step in range(state.step, steps):
            asked = time.perf_counter()
            micros = next(batches)
            waited += time.perf_counter() - asked
            count = self._count(micros)
            if count.errors:
                me.raise_if_any(micros)
            assert not isinstance(micros, VlmixError)
            if count.unreadable:
                unreadable = self._unreadable(micros, unreadable)
            if count.saved == me.world:
                checkpoints.wait()
            torch.manual_seed(int(derive_key(recipe.seed, step, me.rank)) & (2**63 - 1))
            losses = []
            for micro in micros:
                micro = micro.to(me.device)
                loss = model(micro)
                # FSDP averages over ranks: times world, this is the mean over the tokens of the whole global batch.
                (loss.sum() * (me.world / max(count.target_tokens, 1))).backward()
                losses.append((micro, loss.detach()))
            norm = _clip(model, recipe.optim.max_grad_norm)
            if not math.isfinite(norm):
                me.abort(self._not_finite(step, losses))
            factor = lr_factor(step, steps, recipe)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for micro, loss in losses:
                ones = torch.ones_like(micro.sample_index, dtype=sums.dtype)
                tokens = torch.zeros_like(loss).index_add(0, micro.sample_index, ones)
                sums.index_add_(1, micro.sources, torch.stack([loss, tokens]))
            for name in ("samples", "tokens", "image_tokens", "target_tokens"):
                counted[name] = counted.get(name, 0) + getattr(count, name)
            logged.append(count)
            done = step + 1
            every = recipe.checkpoint.interval
            save = bool((every and done % every == 0) or done == steps or count.stops)
            if done % recipe.log_interval == 0 or save:  # a run that goes on begins a new row, too
                dist.all_reduce(sums)
                seconds = time.perf_counter() - began
                row = self._row(done, data.order, norm, sums, logged, seconds, waited)
                row["total"] = {**counted, "unreadable": len(unreadable)}
                me.run_on_all(partial(keep, row))
                self.report("step", row | {"of": steps})
                sums.zero_()
                waited, logged, began = 0.0, [], time.perf_counter()
            state = State(done, dict(counted), state.identity, unreadable)
            if save:
                checkpoints.save(model, optimizer, state)
                last_saved = done
                self.report("saved", {"step": done})
            if count.stops:
                break
        assert last_saved == state.step
        checkpoints.wait()
        if metrics is not None:
            metrics.close()
        return state

    def _count(self, micros: list[MicroBatch] | VlmixError) -> _Counted:
        failed = isinstance(micros, VlmixError)
        mine = [] if isinstance(micros, VlmixError) else micros
        slots = sum(micro.input_ids.numel() for micro in mine)
        sums = self.me.all_reduce_sum(
            [
                sum(len(micro.targets) for micro in mine),
                sum(int(micro.lengths.sum()) for micro in mine),
                sum(micro.image_tokens for micro in mine),
                slots,
                sum(len(micro.samples) for micro in mine),
                sum(len(micro.unreadable) for micro in mine),
                sum(self.flops.of_micro(micro) for micro in mine),
                bool(self.stopping),
                self.checkpoints.finished,
                failed,
                *(slots if rank == self.me.rank else 0 for rank in range(self.me.world)),
            ]
        )
        shared = len(sums) - self.me.world
        sums[shared:] = [max(sums[shared:])]
        return _Counted(*sums)

    def _row(
        self,
        step: int,
        order: Schedule,
        norm: float,
        sums: torch.Tensor,
        logged: list[_Counted],
        seconds: float,
        waited: float,
    ) -> dict[str, Any]:
        """A row of metrics.jsonl: over the steps since the row before."""
        loss, trained = sums.tolist()
        peak_flops = (self.recipe.peak_tflops or peak(self.me.device) or 0) * 1e12
        total = {name: sum(getattr(count, name) for count in logged) for name in _Counted.__dataclass_fields__}
        row = {
            "step": step,
            "epoch": round(step / order.steps_per_epoch, 4),
            "loss": sum(loss) / max(sum(trained), 1),
            "sources": {
                name: {"loss": a / b, "tokens": int(b)} for name, a, b in zip(self.sources, loss, trained) if b
            },
            "lr": dict(self._rates()),
            "grad_norm": norm,
            "samples": int(total["samples"]),
            "tokens": int(total["tokens"]),
            "image_tokens": int(total["image_tokens"]),
            "target_tokens": int(total["target_tokens"]),
            "padding_waste": round(1 - total["tokens"] / max(total["slots"], 1), 4),
            "imbalance": round(total["fullest"] * self.me.world / max(total["slots"], 1), 4),
            "tokens_per_second": round(total["tokens"] / seconds, 1),
            "step_seconds": round(seconds / len(logged), 4),
            "data_wait": round(waited / seconds, 4),
            "mfu": round(total["flops"] / seconds / self.me.world / peak_flops, 4) if peak_flops else None,
            "tflops": round(total["flops"] / seconds / self.me.world / 1e12, 4),
        }
        if self.me.device.type == "cuda":
            row["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return row

    def _rates(self) -> Iterator[tuple[str, float]]:
        for group in self.optimizer.param_groups:
            yield group["part"], group["lr"]

    def _unreadable(self, micros: list[MicroBatch], before: tuple[str, ...]) -> tuple[str, ...]:
        """All samples so far whose image did not decode. Ends the run where they are too many."""
        found = [name for names in self.me.gather([n for micro in micros for n in micro.unreadable]) for name in names]
        new = sorted(set(found) - set(before))
        if new:
            self.report("unreadable", {"samples": new})
        every = (*before, *new)
        if len(every) > self.recipe.max_bad_images:
            self.me.abort(
                VlmixError(
                    f"{len(every)} images did not decode so far, the last of {', '.join(every[-5:])}; "
                    f"`vlmix verify {self.recipe.mixture}` lists the damage, max_bad_images=N with a larger N goes on "
                    "without them"
                )
            )
        return every

    def _not_finite(self, step: int, losses: list[tuple[MicroBatch, torch.Tensor]]) -> VlmixError:
        bad = [
            name
            for micro, loss in losses
            for name, fine in zip(micro.samples, torch.isfinite(loss).tolist())
            if not fine
        ]
        named = [name for names in self.me.gather(bad) for name in names]
        mine = [name for micro, _ in losses for name in micro.samples]
        everyone = [name for names in self.me.gather(mine) for name in names]
        what = f"the loss of {', '.join(named[:8])}" if named else f"a gradient over {', '.join(everyone[:8])}"
        return VlmixError(
            f"step {step + 1}: {what} is not finite; nothing was updated. Lower optim.lr, or look at the samples with "
            f"`vlmix inspect {self.recipe.mixture} --id ID`; what was saved before stays"
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT or SIGTERM end the run after the step in progress; a further one at once, unless it comes within
        seconds, as launchers pass on what the terminal has sent already."""
        asked = [0.0]
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.getsignal(kind) for kind in kinds}

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stopping and time.monotonic() - asked[0] > 3:
                signal.signal(number, before[signal.Signals(number)])
                signal.raise_signal(number)
            asked[0] = asked[0] if self.stopping else time.monotonic()
            self.stopping = number

        for kind in kinds:
            signal.signal(kind, stop)
        try:
            yield
        finally:
            for kind in kinds:
                signal.signal(kind, before[kind])


def lr_factor(step: int, steps: int, recipe: Recipe) -> float:
    """Factor of the learning rate in a step, from 0: linear warm-up from 0, then the schedule down to 0, as Hugging
    Face's schedules have it."""
    warmup = math.ceil(recipe.optim.warmup_ratio * steps)
    if step < warmup:
        return step / warmup
    if recipe.optim.lr_scheduler == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if recipe.optim.lr_scheduler == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def _clip(model: TrainableVLM, largest: float) -> float:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, largest or math.inf)
    full = getattr(norm, "full_tensor", None)
    return float(full() if full else norm)
