"""LMs that would be trained or counted wrong are refused, in one line, before anything is trained."""

from typing import Any

import pytest

pytest.importorskip("transformers")

from tests.train.nano import NANO, nano
from vlmix.mixture.errors import VlmixError
from vlmix.train.model import build
from vlmix.train.tokens import train_tokenizer

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
