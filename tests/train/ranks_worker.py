"""Run by test_parallel.py in every rank: gradients of sharded models against those of a whole one."""

import sys
from pathlib import Path

import torch

from tests.train.nano import nano
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.batches import Collator, MicroBatch
from vlmix.train.config import Recipe
from vlmix.train.model import TrainableVLM, build
from vlmix.train.parallel import Ranks, apply_fsdp, broadcast_weights, init_distributed
from vlmix.train.tokens import Encoder, template, train_tokenizer

CASES = {
    "everything, tied": {},
    "everything, untied": {"model": {"lm": {**nano().model.lm, "tie_word_embeddings": False}}},  # type: ignore[dict-item]
    "frozen tower": {"trainable": ["connector", "lm"]},
    "connector alone": {"trainable": ["connector"]},
    "recomputed": {"activation_checkpointing": True},
    "tiles": {"model": {"tile_grids": [[1, 2], [2, 1], [2, 2]]}},
    "adapters": {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}},
    "bf16, frozen tower": {"precision": "bf16", "trainable": ["connector", "lm"]},
}


def gradients(
    model: TrainableVLM, micros: list[MicroBatch], scale: float
) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = []
    for micro in micros:
        loss = model(micro)
        (loss.sum() * scale).backward()
        losses += loss.tolist()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return losses, found


def make(recipe: Recipe, tokenizer) -> tuple[TrainableVLM, dict[str, torch.Tensor]]:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    parts, _ = build(recipe, tokenizer)
    for parameter in parts.model.parameters():  # biases that are zero would hide a part that is not reached
        parameter.data += 0.02 * torch.randn_like(parameter)
    model = TrainableVLM(parts, recipe)
    return model, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


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
    ]
    for shares in (plan, plan[::-1]):
        whole.zero_grad()
        tokens = sum(len(micro.targets) for share in shares for micro in share)
        _, expected = gradients(whole, [micro for share in shares for micro in share], 1 / tokens)
        sharded, _ = make(recipe, tokenizer)
        if me.rank:
            for parameter in sharded.parameters():
                parameter.data.zero_()
        apply_fsdp(sharded, recipe, me)
        broadcast_weights(sharded, weights if me.is_main else {}, me)
        _, found = gradients(sharded, shares[me.rank], me.world / tokens)
        assert found.keys() == expected.keys(), (name, found.keys() ^ expected.keys())
        assert any("connector" in key or "projector" in key for key in found)
        for key, gradient in expected.items():
            if recipe.precision == "bf16":  # the whole model computes in fp32
                assert (found[key] - gradient).norm() < 0.03 * gradient.norm() + 1e-4, (name, key)
                continue
            torch.testing.assert_close(
                found[key], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{name} {k} {m}"
            )


if __name__ == "__main__":
    mixture = open_mixture(sys.argv[1])
    shown = mixture.column("image").to_pylist()
    images, texts = (
        [mixture[i] for i, name in enumerate(shown) if bool(name) == with_image][:6] for with_image in (True, False)
    )
    with init_distributed() as me:
        for name, changes in CASES.items():
            check(name, nano(**changes), images, texts, me)
        if me.is_main:
            Path(sys.argv[2]).write_text("\n".join(CASES))
