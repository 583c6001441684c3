"""Run by test_parallel.py in every rank: gradients of sharded models against those of a whole one, two ranks that share
one copy, or four that hold two; and what these four save, loaded by ranks that share it in another way."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.optim import AdamW

from tests.train.nano import nano
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.batches import Collator, MicroBatch
from vlmix.train.checkpoint import Checkpoints, State
from vlmix.train.config import Recipe
from vlmix.train.model import TrainableVLM, build
from vlmix.train.parallel import (
    Ranks,
    apply_fsdp,
    before_backward,
    broadcast_weights,
    full_state,
    init_distributed,
    reduces_each,
)
from vlmix.train.param_groups import param_groups
from vlmix.train.tokens import Encoder, template, train_tokenizer

CASES: dict[str, dict[str, Any]] = {
    "everything, tied": {"loss_chunk": 16},
    "everything, untied": {"model": {"lm": {**nano().model.lm, "tie_word_embeddings": False}}},  # type: ignore[dict-item]
    "frozen tower": {"trainable": ["connector", "lm"]},
    "connector alone": {"trainable": ["connector"], "loss_chunk": 16},
    "recomputed": {"activation_checkpointing": True},
    "tiles": {"model": {"tile_grids": [[1, 2], [2, 1], [2, 2]]}},
    "adapters": {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}, "loss_chunk": 16},
    "bf16, frozen tower": {"precision": "bf16", "trainable": ["connector", "lm"], "loss_chunk": 16},
    "reduced after each micro-batch": {"reduce_gradients": "each"},
}
COPIES: dict[str, dict[str, Any]] = {
    "reduced once": {"shard_size": 2, "reduce_gradients": "last"},
    "reduced after each micro-batch": {"shard_size": 2, "reduce_gradients": "each", "loss_chunk": 16},
    "bf16": {"shard_size": 2, "precision": "bf16", "trainable": ["connector", "lm"]},
}


def gradients(
    model: TrainableVLM, micros: list[MicroBatch], scale: float, each: bool | None = None
) -> dict[str, torch.Tensor]:
    """Whole gradients; `each`, of a sharded model: whether it reduces them after each micro-batch."""
    for number, micro in enumerate(micros, 1):
        if each is not None:
            before_backward(model, number == len(micros), each)
        (model(micro).sum() * scale).backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return found


def make(recipe: Recipe, tokenizer) -> tuple[TrainableVLM, dict[str, torch.Tensor]]:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    parts, _ = build(recipe, tokenizer)
    for parameter in parts.model.parameters():  # biases that are zero would hide a part that is not reached
        parameter.data += 0.02 * torch.randn_like(parameter)
    model = TrainableVLM(parts, recipe)
    return model, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def sharded(recipe: Recipe, tokenizer: Any, weights: dict[str, torch.Tensor], me: Ranks) -> TrainableVLM:
    model, _ = make(recipe, tokenizer)
    if me.rank:
        for parameter in model.parameters():
            parameter.data.zero_()
    apply_fsdp(model, recipe, me)
    broadcast_weights(model, weights if me.is_main else {}, me)
    return model


def check(name: str, recipe: Recipe, images: list[Sample], texts: list[Sample], me: Ranks) -> None:
    values = [turn.value for sample in images + texts for turn in sample.conversations]
    tokenizer = train_tokenizer(values, 400)
    whole, weights = make(recipe, tokenizer)
    encoder = Encoder(tokenizer, template("vicuna", tokenizer))
    sources = sorted({sample.source for sample in images + texts})
    collate = Collator(encoder, whole.vision, recipe.batch, sources, 0)
    # Rank 1 sees text alone, then nothing at all, while rank 0 sees images; then the other way round.
    plan = [
        [collate(images[:2], True), collate(images[2:3], False), collate(images[3:4], True)],
        [collate(texts[:1], True), collate(texts[1:4], False), collate([], True)],
        [collate([], True), collate(texts[4:6], True), collate(images[4:6], True)],
        [collate(texts[6:7], True), collate(images[6:8], False), collate([], True)],
    ][: me.world]
    for shares in (plan, plan[::-1]):
        whole.zero_grad()
        tokens = sum(len(micro.targets) for share in shares for micro in share)
        expected = gradients(whole, [micro for share in shares for micro in share], 1 / tokens)
        model = sharded(recipe, tokenizer, weights, me)
        found = gradients(model, shares[me.rank], me.world / tokens, reduces_each(model, recipe))
        assert found.keys() == expected.keys(), (name, found.keys() ^ expected.keys())
        assert any("connector" in key or "projector" in key for key in found)
        for key, gradient in expected.items():
            if recipe.precision == "bf16":  # the whole model computes in fp32
                assert (found[key] - gradient).norm() < 0.03 * gradient.norm() + 1e-4, (name, key)
                continue
            torch.testing.assert_close(
                found[key], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{name} {k} {m}"
            )
    if name == "reduced once":
        step_and_save(model, whole, recipe, tokenizer, me)


def step_and_save(model: TrainableVLM, whole: TrainableVLM, recipe: Recipe, tokenizer: Any, me: Ranks) -> None:
    """A step of two copies against one of the whole model; then its checkpoint, loaded into one copy."""
    optimizer = AdamW(list(param_groups(model, recipe)), fused=True)
    theirs = AdamW(list(param_groups(whole, recipe)), fused=True)
    optimizer.step()
    theirs.step()
    after = full_state(model, me)
    for key, weight in after.items():
        torch.testing.assert_close(weight, whole.get_parameter(key).detach(), rtol=0, atol=2e-5, msg=key)
    checkpoints = Checkpoints(Path(sys.argv[2]).parent / "checkpoints", 1, me)
    checkpoints.save(model, optimizer, State(1, {}, {}))
    checkpoints.wait()
    for size in (0, 1):
        other = sharded(
            msgspec.structs.replace(recipe, shard_size=size), tokenizer, {} if me.rank else zeros(after), me
        )
        moments = AdamW(list(param_groups(other, recipe)), fused=True)
        checkpoints.restore(checkpoints.path(1), other, moments)
        for key, weight in full_state(other, me).items():
            trained = other.get_parameter(key).requires_grad
            assert torch.equal(weight, after[key] if trained else torch.zeros_like(weight)), (size, key)
        for one, two in zip(moved(optimizer), moved(moments), strict=True):
            assert torch.equal(one, two), size


def zeros(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(weight) for name, weight in state.items()}


def moved(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [state["exp_avg_sq"].full_tensor() for state in optimizer.state.values()]


if __name__ == "__main__":
    mixture = open_mixture(sys.argv[1])
    shown = mixture.column("image").to_pylist()
    images, texts = (
        [mixture[i] for i, name in enumerate(shown) if bool(name) == with_image][:8] for with_image in (True, False)
    )
    with init_distributed() as me:
        cases = CASES if me.world == 2 else COPIES
        for name, changes in cases.items():
            check(name, nano(**changes), images, texts, me)
        if me.is_main:
            Path(sys.argv[2]).write_text("\n".join(cases))
