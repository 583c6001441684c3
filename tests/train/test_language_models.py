"""LMs are trained as transformers runs them. Those that would be trained or counted wrong are refused, in one line,
before anything is trained."""

import copy
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from torch.nn.functional import cross_entropy
from transformers.models.qwen3 import modeling_qwen3

from tests.train.nano import NANO, nano
from tests.train.test_export import sample
from vlmix.mixture.errors import VlmixError
from vlmix.train.attention import sliding_windows
from vlmix.train.batches import Collator
from vlmix.train.flops import Flops
from vlmix.train.images import normalise
from vlmix.train.model import TrainableVLM, build
from vlmix.train.tokens import Encoder, template, train_tokenizer

LM = NANO["model"]["lm"]
OPT = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32}
LOGITS, EXPERTS = "scales or caps its logits", "a mixture of experts"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scaled down": ({**LM, "model_type": "granite", "logits_scaling": 8.0}, LOGITS),
    "scaled": ({**LM, "model_type": "cohere", "logit_scale": 0.25, "eos_token_id": 2}, LOGITS),
    "capped": (
        {**LM, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 1024, "final_logit_softcapping": 3.0},
        LOGITS,
    ),
    "experts": ({**LM, "model_type": "mixtral", "num_local_experts": 4}, EXPERTS),
    "more experts": ({**LM, "model_type": "qwen3_moe", "num_experts": 9, "head_dim": 8}, EXPERTS),
    "experts by another name": ({**LM, "model_type": "granitemoe"}, EXPERTS),
    "no embeddings by their name": (OPT, "does not fit into transformers' Llava"),
    "a key is missing": ({**LM, "model_type": "ministral"}, "cannot be built"),
    "no layers": ({**LM, "num_hidden_layers": 0}, "it has no `layers`"),
    "no heads": ({**LM, "num_attention_heads": 0}, "model.lm"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_lm_that_would_be_trained_wrong_is_refused(kind: str) -> None:
    keys, message = REFUSED[kind]
    with pytest.raises(VlmixError, match=message) as raised:
        build(nano(model={"lm": keys}), train_tokenizer(["some words"], 300))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("neutral", [{"model_type": "granite", "logits_scaling": 1.0}, {"model_type": "qwen3"}])
def test_an_lm_whose_logits_are_its_heads_is_taken(neutral: dict[str, Any]) -> None:
    build(nano(model={"lm": {**LM, **neutral}}), train_tokenizer(["some words"], 300))


WINDOW = 9
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "qwen3": ({"model_type": "qwen3", "head_dim": 16}, 0),
    "qwen3 with windows": (
        {"model_type": "qwen3", "head_dim": 16, "use_sliding_window": True, "sliding_window": WINDOW}
        | {"max_window_layers": 1},
        1,
    ),
    "smollm3": ({"model_type": "smollm3", "no_rope_layer_interval": 2}, 0),
    "smollm3 with windows": (
        {"model_type": "smollm3", "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": WINDOW},
        1,
    ),
    "gemma3": (
        {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": WINDOW, "num_hidden_layers": 3}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        2,
    ),
    "mistral": ({"model_type": "mistral", "sliding_window": WINDOW}, 2),
}
"""LMs and how many of their layers have a window, of which all samples are longer."""
SAMPLES = [sample(60, 40), sample(31, 50, ["<image>\nSo?", "it is so"]), sample(9, 9, ["<image>\nWho is it?", "they"])]


@pytest.mark.parametrize("kind", KINDS)
def test_an_lm_is_trained_as_transformers_runs_it(kind: str) -> None:
    """Packed and padded: losses, and the gradients of every weight, against transformers' eager attention and its
    masks, sample by sample. Windows, layers without positions, and both."""
    keys, windowed = KINDS[kind]
    recipe = nano(model={"lm": {**LM, **keys}})
    torch.manual_seed(0)
    parts, tokenizer = build(recipe, train_tokenizer(["What color is the cat? red"], 300))
    theirs = copy.deepcopy(parts.model).eval()
    theirs.set_attn_implementation("eager")
    model, vision = TrainableVLM(parts, recipe).eval(), parts.vision
    assert sliding_windows(model.hf.config.text_config) == ((WINDOW, windowed) if windowed else (0, 0))
    collate = Collator(Encoder(tokenizer, template("bare", tokenizer)), vision, recipe.batch, ["s"], 0)
    expected = []
    for given in SAMPLES:
        micro = collate([given], packed=True)
        assert micro.input_ids.shape[1] > 2 * WINDOW
        pixels = normalise(micro.images, vision.mean, vision.std)
        logits = theirs(input_ids=micro.input_ids, pixel_values=pixels).logits.flatten(0, 1)
        expected.append(cross_entropy(logits[micro.target_positions], micro.targets, reduction="sum"))
    torch.stack(expected).sum().backward()
    for packed in (True, False):
        model.zero_grad()
        losses = model(collate(SAMPLES, packed=packed))
        losses.sum().backward()
        assert torch.allclose(losses, torch.stack(expected), rtol=1e-5, atol=0)
        for (name, ours), (_, other) in zip(model.hf.named_parameters(), theirs.named_parameters(), strict=True):
            if ours.requires_grad and other.grad is not None:
                assert ours.grad is not None
                assert torch.allclose(ours.grad, other.grad, rtol=1e-3, atol=1e-5), name


def test_a_window_is_counted_by_the_pairs_of_tokens_that_see_each_other() -> None:
    recipe = nano(model={"lm": {**LM, **KINDS["gemma3"][0]}})
    flops = Flops.of(TrainableVLM(build(recipe, train_tokenizer(["some words"], 300))[0], recipe))
    lengths = np.array([3.0, 9.0, 40.0])
    # Half of a square has half of its diagonal: a token sees itself for a half.
    narrow, whole = ([sum(min(i + 0.5, most) for i in range(int(n))) for n in lengths] for most in (WINDOW, 99))
    assert flops.squares(lengths) == pytest.approx(2 * (2 * np.array(narrow) + np.array(whole)) / 3)


def test_a_window_that_the_layers_do_not_say_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = modeling_qwen3.Qwen3Attention.__init__

    def silent(self: Any, *args: Any, **more: Any) -> None:
        begin(self, *args, **more)
        self.sliding_window = None

    keys = {**LM, **KINDS["qwen3 with windows"][0]}
    build(nano(model={"lm": keys}), train_tokenizer(["some words"], 300))
    monkeypatch.setattr(modeling_qwen3.Qwen3Attention, "__init__", silent)
    with pytest.raises(VlmixError, match="its attention computes something else"):
        build(nano(model={"lm": keys}), train_tokenizer(["some words"], 300))
