"""Checks of a language model before it is trained: architectures that the trainer would train wrongly are refused."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vlmix.mixture.errors import VlmixError
from vlmix.train import attention
from vlmix.train.config import Recipe
from vlmix.train.weights.pretrained import Tower

_EXPERTS = re.compile(r"experts|moe\.")


_SAME = 1e-3
"""Relative difference that rounding in fp32 stays below."""


def _lm_name(recipe: Recipe) -> str:
    lm = recipe.model.lm
    return lm if isinstance(lm, str) else str(lm.get("model_type"))


@contextmanager
def _lm_errors(recipe: Recipe, what: str) -> Iterator[None]:
    """Makes whatever transformers raises about an LM that it was not written for a VlmixError."""
    try:
        yield
    except VlmixError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise VlmixError(f"model.lm {_lm_name(recipe)}: it {what}: {reason}") from None


def _check_lm(recipe: Recipe, lm: Any) -> None:
    """Raises VlmixError for an LM that would not be trained as it was made, or that lets packed samples see each
    other: because it keeps a state, as Mamba does, or does not say to its attention where samples begin."""
    name, config, length = _lm_name(recipe), lm.config, recipe.batch.max_length
    if any(_EXPERTS.search(each) for each, _ in lm.named_parameters()):
        raise VlmixError(
            f"model.lm {name}: a mixture of experts; vlmix trains no balancing loss for its router, take a dense LM"
        )
    layers = getattr(lm.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise VlmixError(
            f"model.lm {name}: it has no `layers`, which vlmix shards one by one; take one built as Llama is"
        )
    if getattr(config, "attn_logit_softcapping", None):
        raise VlmixError(f"model.lm {name}: its attention caps logits, which vlmix's does not")
    most = getattr(config, "max_position_embeddings", None)
    if most and most < length:
        raise VlmixError(f"model.lm {name}: it knows {most} positions; take batch.max_length={most} or less")
    if lm.device.type == "meta":
        return  # it has no weights to be tried with
    with _lm_errors(recipe, "cannot be run as vlmix trains it"), _narrowed(lm, length):
        attends, apart, logits = _tried(lm)
    if logits > _SAME:
        raise VlmixError(
            f"model.lm {name}: it scales or caps its logits, which transformers' Llava does not; take another LM"
        )
    if attends > _SAME:
        raise VlmixError(f"model.lm {name}: its attention computes something else than vlmix's")
    if recipe.batch.pack_length and apart > _SAME:
        raise VlmixError(f"model.lm {name}: it would let packed samples see each other; take batch.pack_length=0")


_NARROW = 4
"""Window under which an LM is tried, so that a few tokens show whether its layers say theirs to the attention."""


@contextmanager
def _narrowed(lm: Any, length: int) -> Iterator[None]:
    """The LM with the sliding windows of its layers cut down, if samples of this length are longer than they are.

    transformers has a window twice: in the configuration, of which masks are made, and in the attention of each layer
    that has one, which it gives to the attention function; or the layer takes it from the configuration, too.
    """
    config = lm.get_decoder().config
    window = getattr(config, "sliding_window", None)
    if not window or window >= length:
        yield
        return
    modules = [module for module in lm.modules() if getattr(module, "sliding_window", None) == window]
    places = [config, *modules]
    try:
        for place in places:
            place.sliding_window = min(_NARROW, window)
        yield
    finally:
        for place in places:
            place.sliding_window = window


@torch.no_grad()
def _tried(lm: Any) -> tuple[float, float, float]:
    """Relative differences of a few hidden states: under vlmix's attention and under the LM's own, and packed and
    alone; and of the LM's logits and those of its head alone."""
    decoder, was_training = lm.get_decoder(), lm.training
    own = decoder.config._attn_implementation
    ids = torch.randint(lm.config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    embeds = lm.get_input_embeddings()(ids)
    lm.eval()

    def hidden(part: slice, positions: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = decoder(
            inputs_embeds=embeds[:, part], position_ids=positions[None], use_cache=False
        ).last_hidden_state
        return out

    expected = hidden(slice(12), torch.arange(12))
    own_logits = lm(inputs_embeds=embeds, position_ids=torch.arange(12)[None], use_cache=False).logits
    head_logits = lm.get_output_embeddings()(expected)
    decoder.set_attn_implementation(attention.register())
    try:
        found = hidden(slice(12), torch.arange(12))
        alone = [hidden(slice(5), torch.arange(5)), hidden(slice(5, 12), torch.arange(7))]
        # A sample, and another one as a tree whose second branch is its beginning.
        ids_in_row = [*range(5), *range(5, 12), *range(8, 10)]
        both = torch.cat([torch.arange(5), torch.arange(7), torch.arange(3, 5)])
        bounds = attention.Bounds.of([0, 5, 8, 12, 14], [(0, 0), (5, 5), (5, 8), (5, 8)])
        packed = decoder(
            inputs_embeds=embeds[:, ids_in_row], position_ids=both[None], use_cache=False, bounds=bounds
        ).last_hidden_state
    finally:
        decoder.set_attn_implementation(own)
        lm.train(was_training)
    return (
        _apart(expected, found),
        _apart(torch.cat([*alone, alone[1][:, 3:5]], dim=1), packed),
        _apart(own_logits, head_logits),
    )


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def _unused(tower: Tower, layer: int) -> frozenset[str]:
    named = {name: weight.requires_grad_() for name, weight in tower.model.named_parameters()}
    pixels = torch.zeros((1, 3, tower.side, tower.side))
    states = tower.model(pixels, output_hidden_states=True).hidden_states
    if not -len(states) <= layer < len(states):
        raise VlmixError(
            f"model.vision_feature_layer {layer}: the tower has {len(states)} hidden states, {-len(states)} to -1"
        )
    gradients = torch.autograd.grad(states[layer].sum(), list(named.values()), allow_unused=True)
    return frozenset(name for name, gradient in zip(named, gradients) if gradient is None)
