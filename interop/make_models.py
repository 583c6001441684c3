"""Small models, randomly initialized and exported as `vlmix train` exports them, for the checks of exported models.

<case>/model           the export
<case>/expected.json   what transformers 5 makes of it: the tokens that go in, the logits and the tokens that come out
<n>.png                the images that are asked about
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentencepiece import SentencePieceTrainer
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase
from transformers.utils import logging

from vlmix.train.config import parse
from vlmix.train.export import write
from vlmix.train.model import TrainableVLM, build
from vlmix.train.tokens import VICUNA, question_text, template, train_tokenizer
from vlmix.train.weights.pretrained import load_tokenizer

LM = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
SIGLIP, DINOV2 = {**TOWER, "model_type": "siglip_vision_model"}, {**TOWER, "model_type": "dinov2"}
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip, untied": {"lm": {**LM, "tie_word_embeddings": False}},
    "clip, linear connector": {"connector": "linear"},
    "clip, cropped, chat template": {"image_aspect_ratio": "crop", "template": "chat"},
    "clip, scaled rope": {
        "lm": {**LM, "rope_theta": 1e5, "rope_scaling": {**SCALED, "original_max_position_embeddings": 32}}
    },
    "clip, qwen2": {"lm": {**LM, "model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": False}},
    "clip, bf16": {"precision": "bf16"},
    "clip, SentencePiece": {"tokenizer": "SentencePiece"},
    "siglip": {"vision_tower": SIGLIP, "image_aspect_ratio": "stretch"},
    "siglip, untied": {"vision_tower": SIGLIP, "lm": {**LM, "tie_word_embeddings": False}},
    "dinov2": {"vision_tower": DINOV2},
    "dinov2, SwiGLU, untied": {
        "vision_tower": {**DINOV2, "use_swiglu_ffn": True},
        "lm": {**LM, "tie_word_embeddings": False},
    },
    "next": {"tile_grids": [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]},
    "next, siglip, untied": {
        "tile_grids": [[1, 2], [2, 1], [2, 2]],
        "vision_tower": SIGLIP,
        "lm": {**LM, "tie_word_embeddings": False},
    },
    "next, dinov2": {"tile_grids": [[1, 2], [2, 1]], "vision_tower": DINOV2},
}
SIZES = [(90, 60), (41, 77), (64, 64), (150, 30)]
QUESTIONS = [
    "What color is the cat?",
    "Is the user curious?\nAnswer the question using a single word or phrase.",
    "é?",
    "",
    "<image>\nIs the cat in <image> red?",
]
SHOWN = [[0], [1], [2], [3], [1, 3]]
"""The images of each question."""
PAST = ["What  is\n    it?", "It is  red."]
"""A turn before the question about the last image alone."""
CHAT = (
    "{% for m in messages %}{% if loop.first %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main(folder: Path) -> None:
    logging.disable_progress_bar()
    work = folder.with_name(folder.name + ".making")
    for old in (work, folder):
        shutil.rmtree(old, ignore_errors=True)
    work.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(work / f"{number}.png")
    for name, changes in CASES.items():
        (work / name).mkdir()
        export(work / name / "model", changes)
        (work / name / "expected.json").write_text(json.dumps(expected(work / name / "model", work)), encoding="utf-8")
    work.rename(folder)


def export(out: Path, changes: dict[str, Any]) -> None:
    """A randomly initialized model."""
    recipe = parse(
        {
            "name": "interop",
            "model": {"lm": LM, "vision_tower": TOWER, "tokenizer": 400, "vision_feature_layer": -2}
            | {key: value for key, value in changes.items() if key not in ("template", "precision", "tokenizer")},
            "template": changes.get("template", "vicuna"),
            "trainable": ["connector", "lm", "vision_tower"],
            "batch": {"max_length": 1024},
            "optim": {"lr": 1e-3},
            "precision": changes.get("precision", "fp32"),
            "activation_checkpointing": False,
        }
    )
    tokenizer = sentences() if "tokenizer" in changes else train_tokenizer(QUESTIONS[:4], 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    parts, tokenizer = build(recipe, tokenizer)
    trainee = TrainableVLM(parts, recipe)
    with torch.no_grad():  # far from each other, so that the most likely token is the same at any rounding
        for parameter in trainee.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    layout = template(recipe.template, tokenizer)
    write(out, trainee.state_dict(), parts.model, parts.vision, parts.has_cls, tokenizer, layout, recipe)


def sentences() -> PreTrainedTokenizerBase:
    """A tokenizer of Llama's kind."""
    with TemporaryDirectory() as folder:
        SentencePieceTrainer.train(
            sentence_iterator=iter([VICUNA, *QUESTIONS[:2], *PAST] * 9),
            model_prefix=f"{folder}/tokenizer",
            model_type="bpe",
            vocab_size=360,
            byte_fallback=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            minloglevel=2,
        )
        return load_tokenizer(folder)


def expected(model_folder: Path, images: Path) -> list[dict[str, Any]]:
    """Per question: its prompt, images, tokens, the logits of the first token of the answer, and greedy tokens."""
    processor = AutoProcessor.from_pretrained(model_folder, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32, trust_remote_code=False)
    found = []
    for question, shown in zip(QUESTIONS, SHOWN):
        past = PAST if shown == [3] else []
        names = [f"{number}.png" for number in shown]
        prompt = question_text(processor, [*past, question], images=len(shown))
        inputs = processor(text=prompt, images=[Image.open(images / name) for name in names], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        tokens = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        found.append(
            {
                "prompt": prompt,
                "images": names,
                "input_ids": inputs["input_ids"][0].tolist(),
                "pixels": inputs["pixel_values"].flatten()[::97].tolist(),
                "logits": logits.tolist(),
                "tokens": tokens.tolist(),
                "eos": model.generation_config.eos_token_id,
            }
        )
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
