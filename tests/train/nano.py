"""The smallest recipe that trains everything, for tests."""

from typing import Any

from vlmix.train.config import Recipe, parse

NANO: dict[str, Any] = {
    "name": "nano",
    "model": {
        "lm": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        "tower": {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        "tokenizer": 400,
        "layer": -1,
    },
    "template": "vicuna",
    "train": ["tower", "connector", "lm"],
    "batch": {"samples": 16, "pack": 2048, "length": 512},
    "optim": {"lr": 1e-3},
    "precision": "fp32",
    "checkpointing": False,
    "workers": 0,
    "steps": 6,
}


def nano(**changes: Any) -> Recipe:
    """The recipe with changes: `nano(steps=2, model={"layer": -2}, batch={"pack": 0})` merges sections."""
    plain = {key: dict(value) if isinstance(value, dict) else value for key, value in NANO.items()}
    for key, value in changes.items():
        plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
    return parse(plain)
