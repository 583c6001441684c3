"""Greedy answers of an exported model, in batches, through transformers alone."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmix.mixture.errors import VlmixError
from vlmix.train.export import MODEL
from vlmix.train.tokens import adds_begin, question_text
from vlmix.train.weights.pretrained import check_size, is_local, loading


class Generator:
    """A model that answers questions about images: the export of a run, or any LLaVA of Hugging Face's."""

    def __init__(self, where: str, device: torch.device) -> None:
        """`where`: a run's folder, a folder of Hugging Face files, or a hub name. Raises VlmixError if it is none, or
        if a weight is missing from it or left over."""
        path = Path(where)
        if (path / MODEL).is_dir():
            path = path / MODEL
        elif path.is_dir() and not (path / "config.json").exists():
            raise VlmixError(f"{where} holds no model: neither a finished run nor a Hugging Face folder")
        elif not path.exists() and is_local(where):
            raise VlmixError(f"{where}: no such folder; a run's model is there when the run is done")
        name = str(path) if path.is_dir() else where
        with loading(where, path if path.is_dir() else where):
            if path.is_dir():
                check_size(where, path)
            dtype: Any = "auto" if device.type == "cuda" else torch.float32
            model, report = AutoModelForImageTextToText.from_pretrained(
                name, output_loading_info=True, dtype=dtype, trust_remote_code=False
            )
            self.processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        if not (hasattr(self.processor, "tokenizer") and hasattr(self.processor, "image_processor")):
            raise VlmixError(f"{where}: its processor is not one of images and texts: {type(self.processor).__name__}")
        if wrong := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
            raise VlmixError(f"{where}: weights that are missing or left over: {', '.join(wrong[:5])}")
        if self.processor.chat_template is None:
            raise VlmixError(f"{where} has no chat template; without one a question cannot be put as it was trained")
        self.model: Any = model.to(device).eval()
        self.device = device
        self.processor.tokenizer.padding_side = "left"
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token

    def prompt(self, text: str, image: bool) -> str:
        """A question as the model is asked it."""
        return question_text(self.processor, [text], int(image))

    @torch.inference_mode()
    def answers(self, asked: Sequence[tuple[str, bytes | None]], max_new_tokens: int = 128) -> list[str]:
        """Answers to (question, encoded image or None), stripped, without special tokens. One batch."""
        prompts = [self.prompt(text, image is not None) for text, image in asked]
        images = [_picture(image) for _, image in asked if image is not None]
        given = {"add_special_tokens": adds_begin(self.processor.tokenizer, prompts[0])}
        inputs = self.processor(images=images or None, text=prompts, padding=True, return_tensors="pt", **given)
        inputs = inputs.to(self.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        made = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        new = made[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]


def _picture(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")
