"""A training run: from a recipe to a folder with metrics, checkpoints and the model.

A step fetches all its micro-batches, counts the tokens that train over all ranks, runs them, clips, looks whether
everything is finite, and only then updates. What a step does depends on (recipe, mixture, step, number of ranks) alone;
dropout, too, is drawn anew from these at every step. So a run goes on where it stopped, bit for bit.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mixture import manifest as manifests
from mixture import open as open_mixture
from mixture.errors import VlmixError
from mixture.files import disk_errors, write_text
from mixture.mixing import derive_key
from mixture.order import ORDER_VERSION, Order
from mixture.reader import Mixture
from train.batches import Collator, Lengths, Micro, Microbatches
from train.batches import lengths as measure
from train.checkpoint import Checkpoints, State
from train.config import Recipe
from train.export import CONNECTOR, load_connector, write, write_connector
from train.flops import Flops, peak
from train.images import Vision
from train.loader import load
from train.metrics import Metrics
from train.model import Parts, Trainee, build, groups, part_of, skeleton
from train.parallel import Ranks, full_state, ranks, shard, spread
from train.tokens import Encoder, Template, template, train_tokenizer

MODEL = "model"
"""Folder of a run that holds the exported model."""

Report = Callable[[str, dict[str, Any]], None]
"""Told on the first rank: what happens (data, model, resumed, step, saved, unreadable, stopped or done), and facts."""

_FREE = ("out", "workers", "log_every", "checkpoints", "max_bad_images", "peak_tflops")
"""Keys of a recipe that may change while a run goes on."""


def silent(event: str, facts: dict[str, Any]) -> None:
    """No report."""


def train(recipe: Recipe, report: Report = silent) -> bool:
    """Run a recipe to its end; True if it got there, False if a signal stopped it, its state saved.

    The run's folder is `recipe.out`; what stands there of the same recipe goes on. Raises VlmixError for input that
    cannot be trained on, on every rank.
    """
    if not recipe.data:
        raise VlmixError("no mixture to train on: add data=FOLDER")
    with ranks() as me:
        return _Run(recipe, me, report if me.first else silent).go()


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.out or f"runs/{recipe.name}")


@dataclass
class _Counted:
    """Sums over the ranks of one step, in this order."""

    trained: float
    tokens: float
    image_tokens: float
    slots: float
    samples: float
    unreadable: float
    flops: float
    stops: float
    saved: float
    errors: float


class _Run:
    def __init__(self, recipe: Recipe, me: Ranks, report: Report) -> None:
        self.recipe, self.me, self.report = recipe, me, report
        self.folder = folder_of(recipe)
        self.stopping = False

    def go(self) -> bool:
        recipe, me = self.recipe, self.me
        me.share(_caught(self._prepare) if me.first else None)
        mixture = open_mixture(recipe.data)
        model, tokenizer, layout, whole = self._model(mixture)
        encoder = Encoder(tokenizer, layout)
        found = self._lengths(mixture, encoder, model.vision)
        order = mixture.order(
            recipe.batch.samples,
            seed=recipe.seed,
            lengths=found.tokens,
            window=recipe.batch.window,
            last=recipe.batch.last,
        )
        steps = recipe.steps or math.ceil(recipe.epochs * order.steps_per_epoch)
        self._tell_data(mixture, found, order, steps)
        flops = Flops.of(model)
        self._tell_model(model)
        shard(model, recipe, me)
        spread(model, whole, me)
        whole.clear()
        optimizer = torch.optim.AdamW(
            list(groups(model, recipe)), betas=recipe.optim.betas, eps=recipe.optim.eps, fused=True
        )
        identity = _identity(recipe, mixture)
        checkpoints = Checkpoints(self.folder / "checkpoints", recipe.checkpoints.keep, me)
        state = State(0, {}, identity)
        if latest := me.share(_caught(lambda: _latest(checkpoints, identity, self.folder)) if me.first else None):
            path, state = latest
            checkpoints.restore(path, model, optimizer)
            self.report("resumed", {"step": state.step})
        if me.first:
            write_text(self.folder / "recipe.yaml", yaml.safe_dump(recipe.resolved(), sort_keys=False))
        names = sorted(set(mixture.column("source").to_pylist()))
        pad = tokenizer.pad_token_id
        collator = Collator(encoder, model.vision, recipe.batch, names, 0 if pad is None else int(pad))
        data = Microbatches(mixture, order, collator, me.rank, me.world)
        with self._signals():
            state = self._steps(data, state, steps, model, optimizer, checkpoints, flops, names, identity)
        if state.step < steps:
            self.report("stopped", {"step": state.step, "of": steps})
            return False
        self._export(model, tokenizer, layout)
        return True

    def _prepare(self) -> None:
        _check_data(open_mixture(self.recipe.data), self.recipe)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def _steps(
        self,
        data: Microbatches,
        state: State,
        steps: int,
        model: Trainee,
        optimizer: torch.optim.Optimizer,
        checkpoints: Checkpoints,
        flops: Flops,
        names: list[str],
        identity: dict[str, str],
    ) -> State:
        """The loop, from a state to the end or to a signal."""
        recipe, me = self.recipe, self.me
        metrics = Metrics(self.folder, state.step) if me.first else None
        peak_flops = (recipe.peak_tflops or peak(me.device) or 0) * 1e12
        sums = torch.zeros((2, len(names)), device=me.device)  # loss and trained tokens per source since the last row
        counted = dict(state.counted)
        batches = iter(load(data, state.step, steps, recipe.workers))
        began = time.perf_counter()
        waited, logged, last_saved = 0.0, list[_Counted](), state.step
        for step in range(state.step, steps):
            asked = time.perf_counter()
            micros = next(batches)
            waited += time.perf_counter() - asked
            count = self._count(micros, flops, checkpoints.finished)
            if count.errors:
                me.agree(next(error for error in me.gather(micros) if isinstance(error, VlmixError)))
            assert not isinstance(micros, VlmixError)
            if count.unreadable:
                self._unreadable(micros, counted, count)
            if count.saved == me.world:
                checkpoints.wait()
            torch.manual_seed(int(derive_key(recipe.seed, step, me.rank)) & (2**63 - 1))
            losses = []
            for micro in micros:
                micro = micro.to(me.device)
                loss = model(micro)
                # FSDP averages over ranks: times world, this is the mean over the tokens of the whole global batch.
                (loss.sum() * (me.world / max(count.trained, 1))).backward()
                losses.append((micro, loss.detach()))
            norm = _clip(model, recipe.optim.clip)
            if not math.isfinite(norm):
                me.agree(self._not_finite(step, losses))
            factor = rate(step, steps, recipe)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for micro, loss in losses:
                ones = torch.ones_like(micro.owners, dtype=sums.dtype)
                tokens = torch.zeros_like(loss).index_add(0, micro.owners, ones)
                sums.index_add_(1, micro.sources, torch.stack([loss, tokens]))
            for name in ("samples", "tokens", "image_tokens", "trained"):
                counted[name] = counted.get(name, 0) + getattr(count, name)
            logged.append(count)
            done = step + 1
            if done % recipe.log_every == 0 or done == steps or count.stops:
                dist.all_reduce(sums)
                seconds = time.perf_counter() - began
                if metrics is not None:
                    row = self._row(done, data.order, optimizer, norm, sums, names, logged, seconds, waited, peak_flops)
                    metrics.add(row | {"seen": dict(counted)})
                    self.report("step", row | {"of": steps})
                sums.zero_()
                waited, logged, began = 0.0, [], time.perf_counter()
            state = State(done, dict(counted), identity)
            every = recipe.checkpoints.every
            if (every and done % every == 0) or done == steps or count.stops:
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

    def _count(self, micros: list[Micro] | VlmixError, flops: Flops, saved: bool) -> _Counted:
        failed = isinstance(micros, VlmixError)
        mine = [] if isinstance(micros, VlmixError) else micros
        return _Counted(
            *self.me.total(
                [
                    sum(len(micro.targets) for micro in mine),
                    sum(int(micro.lengths.sum()) for micro in mine),
                    sum(micro.image_tokens for micro in mine),
                    sum(micro.ids.numel() for micro in mine),
                    sum(len(micro.samples) for micro in mine),
                    sum(len(micro.unreadable) for micro in mine),
                    sum(flops.of_micro(micro) for micro in mine),
                    self.stopping,
                    saved,
                    failed,
                ]
            )
        )

    def _row(
        self,
        step: int,
        order: Order,
        optimizer: torch.optim.Optimizer,
        norm: float,
        sums: torch.Tensor,
        names: list[str],
        logged: list[_Counted],
        seconds: float,
        waited: float,
        peak_flops: float,
    ) -> dict[str, Any]:
        """A row of metrics.jsonl: over the steps since the row before."""
        loss, trained = sums.tolist()
        total = {name: sum(getattr(count, name) for count in logged) for name in _Counted.__dataclass_fields__}
        row = {
            "step": step,
            "epoch": round(step / order.steps_per_epoch, 4),
            "loss": sum(loss) / max(sum(trained), 1),
            "sources": {name: {"loss": a / b, "tokens": int(b)} for name, a, b in zip(names, loss, trained) if b},
            "lr": dict(self._rates(optimizer)),
            "grad_norm": norm,
            "samples": int(total["samples"]),
            "tokens": int(total["tokens"]),
            "image_tokens": int(total["image_tokens"]),
            "trained_tokens": int(total["trained"]),
            "padding_waste": round(1 - total["tokens"] / max(total["slots"], 1), 4),
            "tokens_per_second": round(total["tokens"] / seconds, 1),
            "step_seconds": round(seconds / len(logged), 4),
            "data_wait": round(waited / seconds, 4),
            "mfu": round(total["flops"] / seconds / self.me.world / peak_flops, 4) if peak_flops else None,
            "tflops": round(total["flops"] / seconds / self.me.world / 1e12, 4),
        }
        if self.me.device.type == "cuda":
            row["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return row

    def _rates(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, float]]:
        for group in optimizer.param_groups:
            yield group["part"], group["lr"]

    def _unreadable(self, micros: list[Micro], counted: dict[str, float], count: _Counted) -> None:
        named = [name for names in self.me.gather([n for micro in micros for n in micro.unreadable]) for name in names]
        counted["unreadable"] = counted.get("unreadable", 0) + count.unreadable
        self.report("unreadable", {"samples": named})
        if counted["unreadable"] > self.recipe.max_bad_images:
            what = f"{int(counted['unreadable'])} images did not decode, the last of {', '.join(named[:5])}"
            self.me.agree(
                VlmixError(
                    f"{what}; `vlmix verify {self.recipe.data}` lists the damage, max_bad_images={len(named)} or more "
                    "goes on without them"
                )
            )

    def _not_finite(self, step: int, losses: list[tuple[Micro, torch.Tensor]]) -> VlmixError:
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
            f"`vlmix inspect {self.recipe.data} --id ID`; the run goes on from its last checkpoint"
        )

    def _model(self, mixture: Mixture):  # type: ignore[no-untyped-def]
        """The model, on every rank; its weights on the first one alone."""
        recipe, me = self.recipe, self.me
        home = self.folder / "tokenizer"
        built: list[Parts] = []

        def first() -> tuple[Any, Parts]:
            torch.manual_seed(recipe.seed)
            parts, tokenizer = build(recipe, _own_tokenizer(recipe, mixture, home))
            if recipe.model.start:
                load_connector(parts.model, recipe.model.start)
            tokenizer.save_pretrained(home)
            built.append(parts)
            return parts.model.config, dataclasses.replace(parts, model=None)

        config, described = me.share(_caught(first) if me.first else None)
        tokenizer = AutoTokenizer.from_pretrained(home)
        layout = template(recipe.template, tokenizer)
        torch.manual_seed(recipe.seed + 1)
        parts = built[0] if built else dataclasses.replace(described, model=skeleton(config))
        model = Trainee(parts, recipe)
        whole = {name: parameter.detach() for name, parameter in model.named_parameters()} if me.first else {}
        return model, tokenizer, layout, whole

    def _lengths(self, mixture: Mixture, encoder: Encoder, vision: Vision) -> Lengths:
        """Token lengths, measured by the first rank and kept in the run's folder."""
        path = self.folder / "lengths.npz"

        def first() -> None:
            found = measure(mixture, encoder, vision, self.recipe.batch.length)
            with path.with_suffix(".partial").open("wb") as file:
                np.savez(file, tokens=found.tokens, trained=found.trained, whole=found.whole)
            path.with_suffix(".partial").rename(path)

        self.me.share(_caught(first) if self.me.first else None)
        kept = np.load(path)
        return Lengths(kept["tokens"], kept["trained"], kept["whole"])

    def _tell_data(self, mixture: Mixture, found: Lengths, order: Order, steps: int) -> None:
        facts = {
            "mixture": mixture.manifest.name,
            "samples": len(mixture),
            "steps": steps,
            "steps_per_epoch": order.steps_per_epoch,
            "tokens": int(found.tokens.sum()),
            "trained_tokens": int(found.trained.sum()),
            "cut_samples": int((found.whole > found.tokens).sum()),
            "untrained_samples": int((found.trained == 0).sum()),
        }
        if not facts["trained_tokens"]:
            self.me.agree(
                VlmixError(f"{self.recipe.data}: none of its tokens would train; all answers are empty or cut off")
            )
        if self.me.first:
            write_text(self.folder / "data.json", json.dumps(facts, indent=1) + "\n")
        self.report("data", facts)

    def _tell_model(self, model: Trainee) -> None:
        facts: dict[str, dict[str, int]] = {}
        for name, parameter in model.named_parameters():
            part = facts.setdefault(part_of(name), {"trained": 0, "frozen": 0})
            part["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
        self.report("model", facts)

    def _export(self, model: Trainee, tokenizer: PreTrainedTokenizerBase, layout: Template) -> None:
        only_connector = set(self.recipe.train) == {"connector"}
        state = full_state(model, self.me, trained_only=only_connector)

        def first() -> str:
            write_connector(self.folder / CONNECTOR, state)
            if only_connector:
                return CONNECTOR
            out = self.folder / MODEL
            write(out, state, model.hf, model.vision, model.has_cls, tokenizer, layout, self.recipe)
            return MODEL

        written = self.me.share(_caught(first) if self.me.first else None)
        self.report("done", {"out": str(self.folder / written)})

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
            self.stopping = True

        for kind in kinds:
            signal.signal(kind, stop)
        try:
            yield
        finally:
            for kind in kinds:
                signal.signal(kind, before[kind])


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """Factor of the learning rate in a step, from 0: linear warm-up from 0, then the schedule down to 0, as Hugging
    Face's schedules have it."""
    warmup = math.ceil(recipe.optim.warmup * steps)
    if step < warmup:
        return step / warmup
    if recipe.optim.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if recipe.optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def _clip(model: Trainee, largest: float) -> float:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, largest or math.inf)
    full = getattr(norm, "full_tensor", None)
    return float(full() if full else norm)


def _caught(call: Callable[[], Any]) -> Any:
    """A call's value, or the VlmixError that it raised, to be shared with the other ranks."""
    try:
        return call()
    except VlmixError as error:
        return error


def _check_data(mixture: Mixture, recipe: Recipe) -> None:
    images = np.array(mixture.column("image").to_pylist()) != ""
    if mixture.root_manifest.kind == "annotations":
        raise VlmixError(f"{recipe.data} was built with --annotations-only: it has no shards to train on")
    if recipe.template == "plain" and not images.all():
        first = mixture.column("id")[int(np.argmin(images))].as_py()
        some = "no images at all" if not images.any() else f"samples without an image, such as {first}"
        raise VlmixError(f"{recipe.data} has {some}; stage one (template: plain) needs one in every sample")


def _own_tokenizer(recipe: Recipe, mixture: Mixture, home: Path) -> PreTrainedTokenizerBase | None:
    """For an LM from scratch: the tokenizer that the run has already, that of the recipe, or one to be trained."""
    if isinstance(recipe.model.lm, str):
        return None
    if home.is_dir():
        return AutoTokenizer.from_pretrained(home)
    if isinstance(recipe.model.tokenizer, str):
        return AutoTokenizer.from_pretrained(recipe.model.tokenizer)
    assert isinstance(recipe.model.tokenizer, int)
    texts = (value for _, many in mixture.texts() for values in many for value in values)
    return train_tokenizer(texts, recipe.model.tokenizer)


def _identity(recipe: Recipe, mixture: Mixture) -> dict[str, str]:
    """What a checkpoint must agree with to be gone on from."""
    plain = {key: value for key, value in recipe.resolved().items() if key not in _FREE and key != "data"}
    flat = {}
    for key, value in plain.items():
        section = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{inner}".rstrip("."): json.dumps(part) for inner, part in section.items()}
    index = mixture.manifest.files.get(manifests.SAMPLES_NAME, "")
    digest = hashlib.sha256(msgspec.json.encode([index, mixture.rows.tolist()])).hexdigest()
    return flat | {"mixture": digest, "order": str(ORDER_VERSION)}


def _latest(checkpoints: Checkpoints, identity: dict[str, str], folder: Path) -> tuple[Path, State] | None:
    found = checkpoints.latest()
    if found is not None:
        _same(found[1].identity, identity, folder)
    return found


def _same(there: dict[str, str], here: dict[str, str], folder: Path) -> None:
    if there.get("mixture") != here["mixture"]:
        raise VlmixError(f"{folder} is a run on another mixture; name the one that it was begun with, or another out=")
    other = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    if other:
        told = "; ".join(f"{key} was {there.get(key)}, here it is {here.get(key)}" for key in other[:4])
        raise VlmixError(f"{folder} is a run of another recipe: {told}. Choose another out= or the same recipe")
