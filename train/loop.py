"""The training loop.

A step fetches all its micro-batches, counts the tokens that train over all ranks, runs them, clips, looks whether
everything is finite, and only then updates. What a step does depends on (recipe, mixture, step, number of ranks) alone;
dropout, too, follows from these at every step. So a run resumes where it stopped: on the CPU bit for bit, on
GPUs as far as their kernels repeat themselves.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from msgspec import structs

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import derive_key
from vlmix.mixture.io.atomic import disk_errors
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.train.batches import MicroBatch, MicroBatchDataset
from vlmix.train.checkpoint import Best, Checkpoints, State
from vlmix.train.config import Recipe
from vlmix.train.flops import Flops, peak
from vlmix.train.loader import make_loader
from vlmix.train.loggers import open_loggers
from vlmix.train.metrics import Metrics
from vlmix.train.mixtures import inspect_hint, verify_hint
from vlmix.train.model import TrainableVLM
from vlmix.train.parallel import Ranks, before_backward, reduces_each
from vlmix.train.profiler import Profiler

EventCallback = Callable[[str, dict[str, Any]], None]
"""Called on the first rank with an event (seen, data, model, resumed, wandb, step, measured, saved, profiled,
unreadable, stopped, done) and facts."""


class Measure(Protocol):
    """What is measured every `interval` steps, and at the end: facts for the row of metrics, under its name. All ranks
    call it, and get the same."""

    name: str
    interval: int

    def __call__(self, model: TrainableVLM, step: int) -> dict[str, Any]: ...


_Counts = dict[str, float]  # sums over the ranks of one step, and `fullest`: the slots of the rank that has most
_Losses = tuple[MicroBatch, torch.Tensor]  # a micro-batch and the loss of each of its samples


class _Window:
    """The steps since the last row of metrics."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self.sums = torch.zeros((2, sources), device=device)  # loss and target tokens per source
        self.counts: list[_Counts] = []
        self.waited, self.began = 0.0, time.perf_counter()

    def add(self, count: _Counts, losses: list[_Losses]) -> None:
        self.counts.append(count)
        for micro, loss in losses:
            ones = torch.ones_like(micro.sample_index, dtype=self.sums.dtype)
            tokens = torch.zeros_like(loss).index_add(0, micro.sample_index, ones)
            self.sums.index_add_(1, micro.sources, torch.stack([loss, tokens]))


_COUNTED = ("samples", "tokens", "tokens_alone", "image_tokens", "target_tokens")
"""What a run counts from its first step on; `tokens_alone`: as many as they were if no sample shared any."""


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
    measures: Sequence[Measure] = ()
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
        metrics: Metrics | None = self.me.run_on_all(
            lambda: self._open_metrics(state.step) if self.me.is_main else None
        )
        state = self._catch_up(state, metrics, steps)
        window = _Window(len(self.sources), self.me.device)
        batches = iter(make_loader(data, state.step, steps, self.recipe.loader_workers))
        profiler = Profiler(self.folder, self.recipe.profile)
        each = reduces_each(self.model, self.recipe)
        for step in range(state.step, steps):
            with profiler.step(step + 1):
                micros, count = self._fetch(batches, window)
                unreadable = self._unreadable(micros, state.unreadable) if count["unreadable"] else state.unreadable
                if count["saved"] == self.me.world:
                    self.checkpoints.wait()
                losses = self._forward_backward(step, micros, count, each)
                norm = self._update(step, steps, losses)
                window.add(count, losses)
            if step + 1 == profiler.last or count["stops"]:
                self._write_trace(profiler, step + 1)
            before = {"tokens_alone": state.counted.get("tokens", 0)} | state.counted  # of a run that counted them not
            counted = {name: before.get(name, 0) + count[name] for name in _COUNTED}
            state = structs.replace(state, step=step + 1, counted=state.counted | counted, unreadable=unreadable)
            interval = self.recipe.checkpoint.interval
            save = bool((interval and state.step % interval == 0) or state.step == steps or count["stops"])
            # A run that is to stop measures when it resumes.
            due = [] if count["stops"] and state.step < steps else self._due(state.step, steps)
            if state.step % self.recipe.log_interval == 0 or save or due:  # a resumed run begins a new row, too
                row = self._row(state, data.order, norm, window)
                state, measured, is_better = self._measured(state, due)
                self._log(row | measured, metrics)
                self.report("step", row | {"of": steps})
                window = _Window(len(self.sources), self.me.device)
                save = save or is_better
            if save:
                self._save(state)
            if count["stops"]:
                break
        self.checkpoints.wait()
        if metrics is not None:
            metrics.close()
        return state

    def _open_metrics(self, step: int) -> Metrics:
        with disk_errors(self.folder):
            loggers = open_loggers(self.recipe, self.folder, step, self.report)
        return Metrics(self.folder, step, loggers)

    def _log(self, row: dict[str, Any], metrics: Metrics | None) -> None:
        self.me.run_on_all(lambda: metrics.add(row) if metrics else None)

    def _due(self, step: int, steps: int) -> list[Measure]:
        return [each for each in self.measures if step and (step % each.interval == 0 or step == steps)]

    def _measured(self, state: State, due: Sequence[Measure]) -> tuple[State, dict[str, Any], bool]:
        """The state after everything that is due was measured, the facts, and whether this is the best step so far."""
        if not due:
            return state, {}, False
        facts = {}
        for each in due:
            facts[each.name] = each(self.model, state.step)
            self.report("measured", {"step": state.step, each.name: facts[each.name]})
        best = better(state.best, self.recipe.checkpoint.best, facts, state.step)
        return structs.replace(state, measured=state.step, best=best), facts, best != state.best

    def _catch_up(self, state: State, metrics: Metrics | None, steps: int) -> State:
        """Measure what a run that was stopped had no time for."""
        if state.measured == state.step or not (due := self._due(state.step, steps)):
            return state
        state, measured, is_better = self._measured(state, due)
        self.me.run_on_all(lambda: metrics.amend(state.step, measured) if metrics else None)
        if is_better:
            self._save(state)
        return state

    def _save(self, state: State) -> None:
        self.checkpoints.save(self.model, self.optimizer, state)
        self.report("saved", {"step": state.step})

    def _write_trace(self, profiler: Profiler, step: int) -> None:
        path = self.me.run_on_main(lambda: profiler.write(step))
        if path:
            self.report("profiled", {"out": str(path)})

    def _fetch(
        self, batches: Iterator[list[MicroBatch] | VlmixError], window: _Window
    ) -> tuple[list[MicroBatch], _Counts]:
        """This rank's micro-batches of the next step, and what all ranks have. An error of one rank ends all."""
        asked = time.perf_counter()
        micros = next(batches)
        window.waited += time.perf_counter() - asked
        count = self._count([] if isinstance(micros, VlmixError) else micros, isinstance(micros, VlmixError))
        if count["errors"]:
            self.me.raise_if_any(micros)
        assert not isinstance(micros, VlmixError)
        return micros, count

    def _forward_backward(self, step: int, micros: list[MicroBatch], count: _Counts, each: bool) -> list[_Losses]:
        """The gradients of a step, reduced after `each` micro-batch or once. Dropout depends on seed, step and rank
        alone."""
        torch.manual_seed(int(derive_key(self.recipe.seed, step, self.me.rank)) & (2**63 - 1))
        losses = []
        for number, micro in enumerate(micros, 1):
            micro = micro.to(self.me.device)
            before_backward(self.model, number == len(micros), each)
            loss = self.model(micro)
            # FSDP averages over ranks: times world, this is the mean over the tokens of the whole global batch.
            (loss.sum() * (self.me.world / max(count["target_tokens"], 1))).backward()
            losses.append((micro, loss.detach()))
        return losses

    def _update(self, step: int, steps: int, losses: list[_Losses]) -> float:
        """One step of the optimizer; the gradient's norm. A norm that is not finite ends the run before it."""
        norm = _clip(self.model, self.recipe.optim.max_grad_norm)
        if not math.isfinite(norm):
            self.me.abort(self._not_finite(step, losses))
        factor = lr_factor(step, steps, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _count(self, micros: list[MicroBatch], failed: bool) -> _Counts:
        slots = sum(micro.input_ids.numel() for micro in micros)
        own: _Counts = {
            "target_tokens": sum(len(micro.targets) for micro in micros),
            "tokens": sum(int(micro.spans[0].sum()) for micro in micros),
            "tokens_alone": sum(int(micro.lengths.sum()) for micro in micros),
            "image_tokens": sum(micro.image_tokens for micro in micros),
            "slots": slots,
            "samples": sum(len(micro.samples) for micro in micros),
            "unreadable": sum(len(micro.unreadable) for micro in micros),
            "flops": sum(self.flops.of_micro(micro) for micro in micros),
            "stops": bool(self.stopping),
            "saved": self.checkpoints.finished,
            "errors": failed,
        }
        slots_by_rank = [slots if rank == self.me.rank else 0 for rank in range(self.me.world)]
        sums = self.me.all_reduce_sum([*own.values(), *slots_by_rank])
        return {**dict(zip(own, sums)), "fullest": max(sums[len(own) :])}

    def _row(self, state: State, schedule: Schedule, norm: float, window: _Window) -> dict[str, Any]:
        """A row of metrics.jsonl: over the steps since the row before."""
        dist.all_reduce(window.sums)
        loss, targets = window.sums.tolist()
        seconds = time.perf_counter() - window.began
        peak_flops = (self.recipe.peak_tflops or peak(self.me.device) or 0) * 1e12
        total = {name: sum(count[name] for count in window.counts) for name in window.counts[0]}
        row = {
            "step": state.step,
            "epoch": round(state.step / schedule.steps_per_epoch, 4),
            "loss": sum(loss) / max(sum(targets), 1),
            "sources": {
                name: {"loss": a / b, "tokens": int(b)} for name, a, b in zip(self.sources, loss, targets) if b
            },
            "lr": {group["part"]: group["lr"] for group in self.optimizer.param_groups},
            "grad_norm": norm,
            **{name: int(total[name]) for name in _COUNTED},
            "padding_waste": round(1 - total["tokens"] / max(total["slots"], 1), 4),
            "imbalance": round(total["fullest"] * self.me.world / max(total["slots"], 1), 4),
            "tokens_per_second": round(total["tokens"] / seconds, 1),
            "step_seconds": round(seconds / len(window.counts), 4),
            "data_wait": round(window.waited / seconds, 4),
            "mfu": round(total["flops"] / seconds / self.me.world / peak_flops, 4) if peak_flops else None,
            "tflops": round(total["flops"] / seconds / self.me.world / 1e12, 4),
        }
        if self.me.device.type == "cuda":
            row["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return row | {"total": {**state.counted, "unreadable": len(state.unreadable)}}

    def _unreadable(self, micros: list[MicroBatch], before: tuple[str, ...]) -> tuple[str, ...]:
        """All samples so far whose image did not decode. Ends the run where they are too many."""
        new = sorted({*self.me.gather_all(name for micro in micros for name in micro.unreadable)} - {*before})
        if new:
            self.report("unreadable", {"samples": new})
        every = (*before, *new)
        if len(every) > self.recipe.max_bad_images:
            self.me.abort(
                VlmixError(
                    f"{len(every)} images did not decode so far, the last of {', '.join(every[-5:])}; "
                    f"{verify_hint(self.recipe, [*every[-5:]])} lists the damage, a larger max_bad_images skips them"
                )
            )
        return every

    def _not_finite(self, step: int, losses: list[_Losses]) -> VlmixError:
        finite = [pair for micro, loss in losses for pair in zip(micro.samples, torch.isfinite(loss).tolist())]
        bad = self.me.gather_all(name for name, fine in finite if not fine)
        everyone = self.me.gather_all(name for name, _ in finite)
        what = f"the loss of {', '.join(bad[:8])}" if bad else f"a gradient over {', '.join(everyone[:8])}"
        return VlmixError(
            f"step {step + 1}: {what} is not finite; nothing was updated. Lower optim.lr, or look at the samples with "
            f"{inspect_hint(self.recipe, (bad or everyone)[0])}; what was saved before stays"
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


def better(best: Best | None, number: str, facts: dict[str, Any], step: int) -> Best | None:
    """The best value of a number so far, after `facts` were measured at a step: of a loss the lowest, of a score the
    highest, of equal ones the first. A value that is not finite is never the best."""
    kind, _, name = number.partition(".")
    best = best if best is not None and best.number == number else None
    if kind not in facts:
        return best
    value = facts["validation"]["loss"] if kind == "validation" else facts["evaluate"][name]["score"]
    if not math.isfinite(value):
        return best
    if best is not None and (value >= best.value if kind == "validation" else value <= best.value):
        return best
    return Best(number, value, step)


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
