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
        "vision_tower": {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        "tokenizer": 400,
        "vision_feature_layer": -1,
    },
    "template": "vicuna",
    "trainable": ["vision_tower", "connector", "lm"],
    "batch": {"global_size": 16, "pack_length": 2048, "max_length": 512},
    "optim": {"lr": 1e-3},
    "precision": "fp32",
    "activation_checkpointing": False,
    "loader_workers": 0,
    "max_steps": 6,
}


def nano(**changes: Any) -> Recipe:
    """The recipe with changes: `nano(max_steps=2, batch={"pack_length": 0})` merges sections."""
    plain = {key: dict(value) if isinstance(value, dict) else value for key, value in NANO.items()}
    for key, value in changes.items():
        plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
    return parse(plain)
