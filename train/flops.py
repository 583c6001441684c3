"""The arithmetic of a step, for MFU: what the model needs, not what recomputation adds."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vlmix.train.attention import sliding_windows
from vlmix.train.batches import MicroBatch
from vlmix.train.model import TrainableVLM

Numbers = TypeVar("Numbers", float, NDArray[np.float64])

PEAKS = {"H100 PCIe": 756.5, "H100 NVL": 835.5, "H100": 989.5, "H200": 989.5, "GH200": 989.5, "A100": 312.0}
"""Dense bf16 TFLOP/s of one device, by NVIDIA's data sheets; the first name that fits."""


def peak(device: torch.device) -> float | None:
    """Peak TFLOP/s of a device, if it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops for key, tflops in PEAKS.items() if key in name), None)


@dataclass(frozen=True)
class Flops:
    """FLOPs of forward and backward passes: two per weight and token for each product.

    A forward pass is one product; the backward pass is one for the gradient of the inputs, where something before
    learns, and one for that of the weights, where they learn. Attention counts scores and values over what a token
    sees: for the LM half the square, or its window. The LM's head counts only target tokens.
    """

    lm: int
    """Weights of the LM's linear layers."""
    head: int
    connector: int
    tower: int
    lm_width: int
    """Sum over the LM's layers of heads x head width."""
    tower_width: int
    tower_tokens: int
    lm_passes: int
    tower_passes: int
    window: int = 0
    """Tokens that a token sees in the LM's layers with a sliding window."""
    windowed: float = 0.0
    """Their share of the layers."""

    @classmethod
    def of(cls, model: TrainableVLM) -> "Flops":
        text, eyes = model.hf.config.text_config, model.hf.config.vision_config
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        lm_learns = "lm" in model.parts
        window, windowed = sliding_windows(text)
        return cls(
            lm=_linear(model.hf.model.language_model),
            head=model.hf.lm_head.in_features * model.hf.lm_head.out_features,
            connector=_linear(model.hf.model.multi_modal_projector),
            tower=_linear(model.vision_tower),
            lm_width=text.num_hidden_layers * text.num_attention_heads * head_width,
            tower_width=eyes.num_hidden_layers * eyes.hidden_size,
            tower_tokens=(model.vision.side // model.vision.patch) ** 2 + int(model.has_cls),
            lm_passes=3 if lm_learns and not _adapted(model) else 2,
            tower_passes=3 if "vision_tower" in model.parts else 1,
            window=window,
            windowed=windowed / text.num_hidden_layers,
        )

    def of_micro(self, micro: MicroBatch) -> float:
        """FLOPs that a micro-batch needs; padding needs none."""
        own, seen = (each.astype(np.float64) for each in micro.spans)
        return self.of_samples(
            float(own.sum()),
            float((self.squares(seen + own) - self.squares(seen)).sum()),
            float(len(micro.targets)),
            float(len(micro.images)),
            float(micro.image_tokens),
        )

    def squares(self, lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Twice the pairs of tokens that see each other in samples of these lengths, on average over the LM's layers:
        the length's square, without windows."""
        return lengths**2 - self.windowed * np.maximum(lengths - self.window, 0) ** 2

    def of_samples(
        self, tokens: Numbers, squares: Numbers, targets: Numbers, tiles: Numbers, image_tokens: Numbers
    ) -> Numbers:
        """FLOPs of samples, each its own or all their sums: tokens, `squares` of them, target tokens, squares of pixels
        that the tower sees, and image tokens."""
        attention = 2 * self.lm_width * squares
        lm = 2 * self.lm * tokens + 2 * self.head * targets
        seen = tiles * self.tower_tokens
        tower = 2 * self.tower * seen + 4 * self.tower_width * self.tower_tokens * seen
        connector = 2 * self.connector * image_tokens
        return self.lm_passes * lm + 3 * attention + self.tower_passes * tower + 3 * connector


def _linear(module: nn.Module) -> int:
    found = 0
    for each in module.modules():
        if isinstance(each, nn.Linear):
            found += each.in_features * each.out_features
        elif isinstance(each, nn.Conv2d):
            found += each.weight.numel()
    return found


def _adapted(model: TrainableVLM) -> bool:
    return any("lora_" in name for name, _ in model.named_parameters())
