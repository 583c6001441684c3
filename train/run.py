"""A training run: from a recipe to a folder with metrics, checkpoints and the model."""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import signal
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vlmix.mixture.benchmark.benchmark import Benchmark
from vlmix.mixture.blend import Samples, digest, open_samples
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write, disk_errors, write_text
from vlmix.mixture.io.locks import exclusive_lock
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.mixture.version import ORDER_VERSION, VERSION
from vlmix.train import attention, loggers, mixtures, validation
from vlmix.train.batches import Collator, Lengths, MicroBatchDataset
from vlmix.train.batches import lengths as measure
from vlmix.train.card import DATA_NAME, card
from vlmix.train.checkpoint import Checkpoints, State, bytes_of, checkpoints_in, read_state, restore_weights
from vlmix.train.config import Recipe, load
from vlmix.train.evaluate.during import Evaluation
from vlmix.train.export import CONNECTOR, MODEL, load_connector, write, write_connector
from vlmix.train.flops import Flops
from vlmix.train.images import ImageGeometry
from vlmix.train.loop import EventCallback, Loop, Measure
from vlmix.train.model import ModelBundle, TrainableVLM, build, meta_model
from vlmix.train.parallel import Ranks, apply_fsdp, broadcast_weights, full_state, init_distributed, shard_size
from vlmix.train.param_groups import count_parameters, param_groups
from vlmix.train.tokens import Encoder, Template, template, train_tokenizer
from vlmix.train.weights.pretrained import load_tokenizer

_FREE = (
    "out",
    "loader_workers",
    "log_interval",
    "checkpoint",
    "cpu_threads",
    "max_bad_images",
    "peak_tflops",
    "profile",
    "wandb",
)
"""Keys of a recipe that may change when a run resumes; so may `validation` and `evaluate`, but for the hold-out."""
CHECKPOINTS, EXPORTS = "checkpoints", "exports"
"""Folders of a run."""
SKIPPED = "skipped.jsonl"
"""Samples that a run leaves out, and why, one a line."""
_LENGTHS, _VALIDATION_LENGTHS = "lengths.npz", "validation-lengths.npz"
LENGTHS = tuple(field.name for field in dataclasses.fields(Lengths))
_FILES = ("tokenizer", "tokenizer.partial", _LENGTHS, _VALIDATION_LENGTHS, SKIPPED, DATA_NAME, CHECKPOINTS)
"""What a run may have written before it has its recipe.yaml."""
_MEASURES = ("validation", "evaluate")
_KNOBS = (
    *("batch.pack_length", "batch.micro_size", "activation_checkpointing", "loss_chunk", "compile"),
    *("reshard_after_forward", "shard_size", "reduce_gradients"),
)
"""What saves memory or time: it may change, too, and then the sums are rounded differently."""

_Export = Callable[[TrainableVLM, Path], None]


def silent(event: str, facts: dict[str, Any]) -> None:
    """No report."""


def train(recipe: Recipe, report: EventCallback = silent, benchmark: Callable[[str], Benchmark] | None = None) -> int:
    """Run a recipe to its end: 0 if it got there, or the number of the signal that stopped it, its state saved.

    The run's folder is `recipe.out`; a run of the same recipe in it is resumed. `benchmark` gives those that
    `recipe.evaluate` names. Raises VlmixError for input that cannot be trained on, on every rank.
    """
    if not recipe.mixture:
        raise VlmixError("no mixture to train on: add mixture=FOLDER")
    if recipe.cpu_threads:
        torch.set_num_threads(recipe.cpu_threads)
    with init_distributed() as me:
        return _Run(recipe, me, report if me.is_main else silent, benchmark).go()


def export_model(run: Path, step: int | None = None, best: bool = False, out: Path | None = None) -> Path:
    """Write a checkpoint of a run as a model folder: the last one, that of a `step`, or the `best`. By default `out` is
    RUN/exports/step-00000500. Weights that are not trained come from where the recipe has them.

    Raises VlmixError if the run has no such checkpoint, if `out` exists, or for what `train` raises it for a model.
    """
    if not (run / "recipe.yaml").is_file():
        raise VlmixError(f"{run}: no recipe.yaml; name the folder of a training run")
    recipe = load(run / "recipe.yaml", [f"out={json.dumps(str(run))}"])
    folder = run / CHECKPOINTS
    steps = [int(path.name.removeprefix("step-")) for path in checkpoints_in(folder)]
    if not steps:
        raise VlmixError(f"{run} has no checkpoint yet")
    if best:
        found = read_state(checkpoints_in(folder)[-1]).best
        if found is None:
            raise VlmixError(f"{run}: no best checkpoint; a recipe with checkpoint.best keeps one")
        step = found.step
    step = steps[-1] if step is None else step
    if step not in steps:
        raise VlmixError(f"{run}: no checkpoint of step {step}; there are those of {', '.join(map(str, steps))}")
    out = out or run / EXPORTS / f"step-{step:08d}"
    if out.exists():
        raise VlmixError(f"{out} exists; choose another --out")
    with init_distributed() as me:
        job = _Run(recipe, me)
        model, tokenizer, layout, weights = job._model(None, begun=True)
        apply_fsdp(model, recipe, me)
        broadcast_weights(model, weights, me)
        weights.clear()
        restore_weights(folder / f"step-{step:08d}", model)
        job._write_model(model, out, tokenizer=tokenizer, layout=layout, step=step)
    return out


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.out or f"runs/{recipe.name}")


def steps_of(recipe: Recipe, order: Schedule) -> int:
    """Steps of a training."""
    return recipe.max_steps or math.ceil(recipe.epochs * order.steps_per_epoch)


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        me: Ranks,
        report: EventCallback = silent,
        benchmark: Callable[[str], Benchmark] | None = None,
    ) -> None:
        self.recipe, self.me, self.report, self.benchmark = recipe, me, report, benchmark
        self.folder = folder_of(recipe)

    def go(self) -> int:
        me = self.me
        me.run_on_main(self._prepare)
        with exclusive_lock(self.folder) if me.is_main else nullcontext(True) as mine:
            me.run_on_main(lambda: self._check_alone(mine))
            return self._go()

    def _go(self) -> int:
        recipe, me = self.recipe, self.me
        dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        if recipe.batch.share_images > 1 and attention.has_kernel(me.device, dtype):
            me.run_on_all(lambda: attention.check_kernel(me.device))
        whole_mixture: Samples = me.run_on_all(lambda: open_samples(recipe.mixture))
        identity = _identity(recipe, whole_mixture)
        offered, validated = me.run_on_all(lambda: self._split(whole_mixture))
        checkpoints = Checkpoints(self.folder / CHECKPOINTS, recipe.checkpoint.keep, me)
        latest = me.run_on_main(lambda: _latest(checkpoints, identity, self.folder))
        model, tokenizer, layout, whole = self._model(offered, begun=latest is not None)
        export = partial(self._write_model, tokenizer=tokenizer, layout=layout)
        encoder = Encoder(tokenizer, layout)
        found = self._lengths(offered, encoder, model.vision, _LENGTHS)
        mixture = self._fitting(offered, found)
        skipped, found = len(offered) - len(mixture), found.of(found.fits)
        order: Schedule = me.run_on_all(lambda: mixtures.schedule(mixture, recipe, found.tokens, me.world))
        steps = steps_of(recipe, order)
        if recipe.profile and recipe.profile[1] > steps:
            me.abort(VlmixError(f"profile: it ends with step {recipe.profile[1]}, the training with step {steps}"))
        names = sorted(mixture.sources)
        pad = tokenizer.pad_token_id
        collator = Collator(encoder, model.vision, recipe.batch, names, 0 if pad is None else int(pad))
        measures = self._measures(validated, collator, export)
        facts = {**self._tell_data(mixture, skipped, found, order, steps), "parts": self._tell_model(model)}
        me.run_on_main(lambda: write_text(self.folder / DATA_NAME, json.dumps(facts, indent=1) + "\n"))
        me.run_on_main(lambda: self._check_space(model, steps))
        flops = Flops.of(model)
        apply_fsdp(model, recipe, me)
        broadcast_weights(model, whole, me)
        whole.clear()
        optimizer = torch.optim.AdamW(
            list(param_groups(model, recipe)), betas=recipe.optim.betas, eps=recipe.optim.eps, fused=True
        )
        state = State(0, {}, identity)
        if latest:
            path, state = latest
            me.run_on_all(lambda: checkpoints.restore(path, model, optimizer))
            self.report("resumed", {"step": state.step})
        resolved = yaml.safe_dump(recipe.resolved(), sort_keys=False)
        me.run_on_main(lambda: write_text(self.folder / "recipe.yaml", resolved))
        sharing = me.run_on_all(lambda: mixtures.sharing(order, recipe, found))
        data = MicroBatchDataset(mixture, order, collator, me.rank, me.world, sharing)
        loop = Loop(recipe, me, self.report, self.folder, model, optimizer, checkpoints, flops, names, measures)
        state = loop.run(data, state, steps)
        if state.step < steps:
            self.report("stopped", {"step": state.step, "of": steps})
            return loop.stopping or signal.SIGTERM  # which another rank was sent
        self._export(model, tokenizer, layout, state.step)
        return 0

    def _prepare(self) -> None:
        loggers.check(self.recipe)
        mixtures.check(open_samples(self.recipe.mixture), self.recipe)
        shard_size(self.recipe, self.me.world)
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if "recipe.yaml" not in there and (others := sorted(name for name in there if name not in _FILES)):
            raise VlmixError(f"{self.folder} holds {', '.join(others[:3])} and is no training run; choose another out=")

    def _check_alone(self, mine: bool) -> None:
        if not mine:
            raise VlmixError(f"{self.folder} is being written by another run; wait for it or choose another out=")

    def _model(self, mixture: Samples | None, begun: bool):  # type: ignore[no-untyped-def]
        """The model, on every rank; its weights on the first one alone."""
        recipe, me = self.recipe, self.me
        home = self.folder / "tokenizer"
        built: list[ModelBundle] = []

        def first() -> tuple[Any, ModelBundle]:
            torch.manual_seed(recipe.seed)
            parts, tokenizer = build(recipe, own_tokenizer(recipe, mixture, home if begun else None))
            if recipe.model.init_connector_from:
                load_connector(parts.model, recipe.model.init_connector_from)
            if not begun or not home.is_dir():
                _save_tokenizer(tokenizer, home)
            built.append(parts)
            return parts.model.config, dataclasses.replace(parts, model=None)

        config, described = me.run_on_main(first)
        tokenizer = AutoTokenizer.from_pretrained(home, trust_remote_code=False)
        layout: Template = me.run_on_all(lambda: template(recipe.template, tokenizer))
        torch.manual_seed(recipe.seed + 1)
        parts = built[0] if built else dataclasses.replace(described, model=meta_model(config))
        model = TrainableVLM(parts, recipe)
        whole = {name: parameter.detach() for name, parameter in model.named_parameters()} if me.is_main else {}
        return model, tokenizer, layout, whole

    def _lengths(self, mixture: Samples, encoder: Encoder, vision: ImageGeometry, name: str) -> Lengths:
        """Token lengths, measured by the first rank and kept under a name in the run's folder for the next start."""
        path = self.folder / name

        def first() -> None:
            words = [file.read_bytes() for file in sorted(self.folder.glob("tokenizer/**/*")) if file.is_file()]
            eyes = [vision.side, vision.patch, vision.tile_grids, vision.merge]
            settings = [VERSION, LENGTHS, digest(mixture), self.recipe.template, self.recipe.batch.max_length, eyes]
            key = hashlib.sha256(b"".join([repr(settings).encode(), *words])).hexdigest()
            with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                if np.load(path)["key"] == key:
                    return
            found = measure(mixture, encoder, vision, self.recipe.batch.max_length)
            with atomic_write(path) as file:
                np.savez(file, key=key, **vars(found))

        self.me.run_on_main(first)
        kept = np.load(path)
        return Lengths(*(kept[name] for name in LENGTHS))

    def _fitting(self, mixture: Samples, found: Lengths) -> Samples:
        """The samples whose images fit into batch.max_length. The others are listed in the run's folder."""
        fitting = self.me.run_on_all(lambda: mixtures.fitting(mixture, found, self.recipe))

        def first() -> None:
            if found.fits.all():
                (self.folder / SKIPPED).unlink(missing_ok=True)
                return
            names, lines, length = mixture.column("id"), [], self.recipe.batch.max_length
            for position in np.flatnonzero(~found.fits).tolist():
                tokens = int(found.untruncated[position])
                sample = mixtures.skipped(self.recipe, names[position].as_py())
                row = {**sample, "reason": "too_long", "tokens": tokens, "max_length": length}
                lines.append(json.dumps(row) + "\n")
            write_text(self.folder / SKIPPED, "".join(lines))

        self.me.run_on_main(first)
        return fitting

    def _tell_data(self, mixture: Samples, skipped: int, found: Lengths, order: Schedule, steps: int) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "mixture": mixtures.name_of(mixture),
            "samples": len(mixture),
            "skipped_samples": skipped,
            "steps": steps,
            "steps_per_epoch": order.steps_per_epoch,
            "tokens": int(found.tokens.sum()),
            "target_tokens": int(found.targets.sum()),
            "cut_samples": int((found.untruncated > found.tokens).sum()),
            "untrained_samples": int((found.targets == 0).sum()),
            "sources": mixtures.sources(mixture),
            "manifests": mixtures.manifests(mixture),
            **self.me.run_on_all(lambda: mixtures.facts(mixture, order, steps)),
        }
        if not facts["target_tokens"]:
            self.me.abort(
                VlmixError(
                    f"{mixtures.named(self.recipe)}: no token would train; all answers are empty or cut off by "
                    f"batch.max_length {self.recipe.batch.max_length}"
                )
            )
        self.report("data", facts)
        return facts

    def _tell_model(self, model: TrainableVLM) -> dict[str, dict[str, int]]:
        facts = count_parameters(model)
        self.report("model", facts)
        return facts

    def _check_space(self, model: TrainableVLM, steps: int) -> None:
        """Raises VlmixError where the checkpoints that are kept, and one that is being written, cannot be held."""
        config = self.recipe.checkpoint
        measured = self.recipe.validation if config.best == "validation.loss" else self.recipe.evaluate
        often = [config.interval or steps, *([measured.interval] if config.best and measured else [])]
        saves = 1 + sum((steps - 1) // every for every in often)
        saves -= (steps - 1) // math.lcm(*often) if len(often) > 1 else 0  # what is due anyway is saved once
        most = config.keep + 1 + bool(config.best)
        count = min(saves, most)
        learnt = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        each = bytes_of(learnt)
        there = sum(file.stat().st_size for file in self.folder.glob(f"{CHECKPOINTS}/step-*/*") if file.is_file())
        with disk_errors(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free + there < count * each:
            kept = f"{count - 1} and the best" if config.best and count == most else str(count)
            raise VlmixError(
                f"{self.folder}: {kept} checkpoints of {each / 1e6:,.1f} MB each do not fit into the "
                f"{(free + there) / 1e6:,.1f} MB there; free some space, lower checkpoint.keep, or choose another out="
            )

    def _split(self, mixture: Samples) -> tuple[Samples, Samples | None]:
        """What is trained on, and what validates."""
        config = self.recipe.validation
        if config is None:
            return mixture, None
        if config.holdout is not None:
            kept, held = validation.split(mixture, config)
            return kept, validation.chosen(held, config)
        other = validation.other(mixture, config)
        if self.me.is_main and (seen := validation.seen(mixture, other)):
            self.report("seen", {"mixture": config.mixture, "samples": seen, "of": len(other)})
        return mixture, validation.chosen(other, config)

    def _measures(self, validated: Samples | None, collator: Collator, export: _Export) -> list[Measure]:
        recipe, me = self.recipe, self.me
        found: list[Measure] = []
        if validated is not None:
            lengths = self._lengths(validated, collator.encoder, collator.vision, _VALIDATION_LENGTHS)
            found.append(me.run_on_all(lambda: validation.Validation(validated, lengths, recipe, collator, me)))
        if recipe.evaluate is not None:
            if self.benchmark is None:
                me.abort(VlmixError("the recipe has `evaluate`, and no benchmarks were given to train"))
            known = self.benchmark
            found.append(me.run_on_all(lambda: Evaluation(recipe, known, self.folder, export, me)))
        return found

    def _export(self, model: TrainableVLM, tokenizer: Any, layout: Template, step: int) -> None:
        only_connector = set(self.recipe.trainable) == {"connector"}
        if not only_connector:
            self._write_model(model, self.folder / MODEL, tokenizer=tokenizer, layout=layout, step=step)
        state = full_state(model, self.me, parts=["connector"])
        self.me.run_on_main(lambda: write_connector(self.folder / CONNECTOR, state))
        self.report("done", {"out": str(self.folder / (CONNECTOR if only_connector else MODEL))})

    def _write_model(
        self, model: TrainableVLM, out: Path, *, tokenizer: Any, layout: Template, step: int | None = None
    ) -> None:
        """A model folder, with a card where it is that of a `step`; all ranks take part."""
        state = full_state(model, self.me)

        def first() -> None:
            about = "" if step is None else card(self.recipe, self.folder, step)
            write(out, state, model.hf, model.vision, model.has_cls, tokenizer, layout, self.recipe, card=about)

        self.me.run_on_main(first)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, home: Path) -> None:
    """Whole or not at all: a resumed run reads it."""
    partial = home.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(home, ignore_errors=True)
        partial.rename(home)
    except Exception as error:  # tokenizers' own writer raises nothing more exact
        raise VlmixError(f"{home}: cannot write the tokenizer: {error}; free some space") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def own_tokenizer(recipe: Recipe, mixture: Samples | None, home: Path | None) -> PreTrainedTokenizerBase | None:
    """For an LM from scratch: the one at `home`, of a begun run, else that of the recipe, or one to be trained on the
    mixture."""
    if isinstance(recipe.model.lm, str):
        return None
    if home is not None:
        return AutoTokenizer.from_pretrained(home, trust_remote_code=False)
    if isinstance(recipe.model.tokenizer, str):
        return load_tokenizer(recipe.model.tokenizer)
    assert isinstance(recipe.model.tokenizer, int) and mixture is not None
    texts = (value for _, many in mixture.texts() for values in many for value in values)
    return train_tokenizer(texts, recipe.model.tokenizer)


def _identity(recipe: Recipe, mixture: Samples) -> dict[str, str]:
    """What a checkpoint must agree with to be resumed."""
    plain = {key: value for key, value in recipe.resolved().items() if key not in (*_FREE, *_MEASURES, "mixture")}
    if recipe.validation and recipe.validation.holdout is not None:
        plain["validation"] = {"holdout": recipe.validation.holdout, "seed": recipe.validation.seed}
    flat: dict[str, str] = {}
    for key, value in plain.items():
        section = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{inner}".rstrip("."): json.dumps(part, sort_keys=True) for inner, part in section.items()}
    for key in _KNOBS:
        flat.pop(key, None)
    return flat | {"mixture": digest(mixture), "order": str(ORDER_VERSION), **mixtures.shares(recipe)}


def _latest(checkpoints: Checkpoints, identity: dict[str, str], folder: Path) -> tuple[Path, State] | None:
    found = checkpoints.latest()
    if found is not None:
        _same(found[1].identity, identity, folder)
    return found


def _same(there: dict[str, str], here: dict[str, str], folder: Path) -> None:
    there = {"batch.share_images": "1"} | there  # of a vlmix that did not know it
    if there.get("mixture") != here["mixture"]:
        raise VlmixError(f"{folder} is a run on another mixture; name the one that it was begun with, or another out=")
    if there.get("order") != here["order"]:
        raise VlmixError(
            f"{folder} was begun by a vlmix that takes samples in another order (its number {there.get('order')}, here "
            f"{here['order']}); finish it with that one, or choose another out="
        )
    other = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    if other:
        differences = "; ".join(f"{key} was {there.get(key)}, here it is {here.get(key)}" for key in other[:4])
        raise VlmixError(f"{folder} is a run of another recipe: {differences}. Choose another out= or the same recipe")
