"""The loss on samples that are not trained on."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from vlmix.mixture.benchmark.intervals import available, influence, quantile
from vlmix.mixture.benchmark.values import Values
from vlmix.mixture.blend import Samples, parts_of
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.holdout import held_out, picture_groups
from vlmix.mixture.keyed import keyed_order
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.train.batches import Collator, Lengths, MicroBatchDataset
from vlmix.train.config import Recipe
from vlmix.train.config import Validation as Config
from vlmix.train.loader import make_loader
from vlmix.train.model import TrainableVLM
from vlmix.train.parallel import Ranks


def split(mixture: Samples, config: Config) -> tuple[Samples, Samples]:
    """What is trained on, and what is held out of it. Raises VlmixError for a hold-out that is empty, or that takes all
    of a source."""
    held = np.concatenate(held_out(parts_of(mixture), config.holdout or 0.0, config.seed))
    if not held.any():
        raise VlmixError(
            f"validation.holdout {config.holdout} holds out none of the {len(mixture):,} samples; raise it"
        )
    kept, out = mixture.select(np.flatnonzero(~held)), mixture.select(np.flatnonzero(held))
    if whole := [name for name in out.sources if name not in kept.sources]:
        raise VlmixError(
            f"validation.holdout {config.holdout} takes all {out.sources[whole[0]]:,} samples of {whole[0]}; lower it, "
            "or take another validation.seed"
        )
    return kept, out


def other(trained: Samples, config: Config) -> Mixture:
    """The mixture that a recipe validates on. Raises VlmixError if it has no shards, or prompts of another style."""
    mixture = open_mixture(config.mixture)
    if mixture.root_manifest.kind == "annotations":
        raise VlmixError(f"validation.mixture {config.mixture} was built with --annotations-only: it has no shards")
    style, *styles = (each.root_manifest.recipe.get("prompts") for each in (mixture, *parts_of(trained)))
    if style not in styles:
        raise VlmixError(
            f"validation.mixture {config.mixture} has prompts of the style {style}, what is trained on of "
            f"{' and '.join(map(str, styles))}; build one of them anew with the other's"
        )
    return mixture


def seen(trained: Samples, mixture: Mixture) -> int:
    """How many samples of a mixture show a picture that is trained on, or have no picture and a text that is."""
    groups = picture_groups([*parts_of(trained), mixture]).of
    shown = int(np.isin(groups[len(trained) :], groups[: len(trained)]).sum())
    read = list(_plain_texts([mixture]))
    known = {*_plain_texts(parts_of(trained))} if read else set()
    return shown + sum(text in known for text in read)


def chosen(mixture: Samples, config: Config) -> Samples:
    """Those that are measured: at most `samples`, the first in hash order."""
    if not config.samples or len(mixture) <= config.samples:
        return mixture
    order = keyed_order(mixture.column("id").to_pylist(), config.seed, "validation")
    return mixture.select(np.sort(order[: config.samples]))


def _plain_texts(parts: Sequence[Mixture]) -> Iterator[bytes]:
    """A digest of the texts of every sample without a picture."""
    for part in parts:
        plain = part.select(np.flatnonzero(part.column("num_images").to_numpy() == 0))
        for _, texts in plain.texts():
            yield from (hashlib.sha256("\0".join(values).encode("utf-8", "surrogatepass")).digest() for values in texts)


@dataclass(frozen=True)
class _Loss:
    """Of one sample."""

    id: str
    source: str
    loss: float
    """Sum over its target tokens."""
    tokens: int


class Validation:
    """Measures the loss of a model under training on the samples of `mixture`, the same for any number of ranks."""

    name = "validation"

    def __init__(self, mixture: Samples, found: Lengths, recipe: Recipe, collator: Collator, me: Ranks) -> None:
        """`found`: their token lengths. Raises VlmixError where fewer of them can be measured than there are ranks."""
        config = recipe.validation
        assert config is not None
        self.interval, self.workers, self.me = config.interval, recipe.loader_workers, me
        usable = found.fits & (found.targets > 0)
        self.mixture, found = mixture.select(np.flatnonzero(usable)), found.of(usable)
        if len(self.mixture) < me.world:
            raise VlmixError(
                f"validation: {len(self.mixture)} samples can be measured on {me.world} ranks; hold out more, or raise "
                "batch.max_length"
            )
        groups = picture_groups(parts_of(self.mixture))
        self.clusters = dict(zip(self.mixture.column("id").to_pylist(), groups.of.tolist()))
        self.order = Schedule(
            self.mixture.rows,
            np.asarray(self.mixture.column("num_images").to_numpy() > 0),
            np.ones(len(self.mixture), dtype=np.int32),
            found.tokens,
            seed=0,
            global_batch=max(1, min(recipe.batch.global_size, len(self.mixture)) // me.world) * me.world,
        )
        names = sorted(self.mixture.sources)
        self.collator = collator.of(names)
        self.data = MicroBatchDataset(self.mixture, self.order, self.collator, me.rank, me.world)

    def __call__(self, model: TrainableVLM, step: int) -> dict[str, Any]:
        """Loss over all target tokens and its 95 % interval, by source, too. All ranks take part and get the same."""
        names = list(self.collator.sources)
        losses: list[_Loss] = []
        unreadable: list[str] = []
        model.eval()
        try:
            with torch.no_grad():
                for micros in make_loader(self.data, 0, self.order.steps_per_epoch, self.workers):
                    for micro in self.me.raise_if_any(micros):
                        micro = micro.to(self.me.device)
                        found = model(micro).tolist()
                        tokens = np.bincount(micro.sample_index.cpu().numpy(), minlength=len(micro.samples)).tolist()
                        sources = [names[number] for number in micro.sources.tolist()]
                        losses += map(_Loss, micro.samples, sources, found, tokens)
                        unreadable += micro.unreadable
        finally:
            model.train()
        every: list[_Loss] = sorted(
            (each for of_rank in self.me.gather(losses) for each in of_rank if each.tokens), key=lambda each: each.id
        )
        row = {**self._summed(every), "samples": len(every), "sources": {}}
        for name in names:
            if of_source := [each for each in every if each.source == name]:
                row["sources"][name] = self._summed(of_source)
        bad = len(self.me.gather_all(unreadable))
        return {**row, "unreadable": bad} if bad else row

    def _summed(self, losses: Iterable[_Loss]) -> dict[str, Any]:
        """The mean over target tokens. Its interval has pictures for units, by linearisation."""
        rows = [(each.id, str(self.clusters[each.id]), "", each.loss, float(each.tokens), True) for each in losses]
        columns = dict(zip(("question", "cluster", "group", "value", "weight", "answered"), zip(*rows)))
        effect = influence(Values(pa.table({name: list(column) for name, column in columns.items()})))
        facts: dict[str, Any] = {"loss": effect.score / 100, "tokens": int(sum(columns["weight"]))}
        if available() and effect.varies:
            reach = quantile(effect.freedom) * effect.stderr / 100
            facts |= {"low": max(0.0, facts["loss"] - reach), "high": facts["loss"] + reach}
        return facts
