"""What comes out of a run: a Hugging Face folder that loads everywhere, or the connector alone.

The names of the weights are those that llava-hf's checkpoints have had from the start, which transformers 4 and 5, vLLM
and llama.cpp's converter know. transformers 5 would write other ones for a model that was not loaded from such a file,
and transformers 4 would then draw the tower at random with a warning only.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase

from mixture.errors import VlmixError
from mixture.files import disk_errors
from train.config import Recipe
from train.images import Vision
from train.model import LlavaModel
from train.tokens import Template

CONNECTOR = "connector.safetensors"
MODEL = "model"
"""Folder of a run that holds its export."""
_SHARD = 5 * 2**30  # bytes of one file of weights
_PREFIXED = ("clip_vision_model", "siglip_vision_model")
State = dict[str, torch.Tensor]


def legacy_names(state: State, tower_type: str, tied: bool) -> State:
    """Weights by the names of llava-hf's checkpoints, from those that a model has in memory."""
    inner = "vision_tower.vision_model." if tower_type in _PREFIXED else "vision_tower."
    named: State = {}
    for name, tensor in state.items():
        name = name.removeprefix("hf.")
        if name == "lm_head.weight":
            if tied:
                continue
            name = "language_model.lm_head.weight"
        name = name.removeprefix("model.")
        if name.startswith("vision_tower."):
            name = inner + name.removeprefix("vision_tower.").removeprefix("vision_model.")
        elif name.startswith("language_model.") and not name.startswith("language_model.lm_head."):
            name = "language_model.model." + name.removeprefix("language_model.")
        named[name] = tensor
    return named


def merge_adapters(state: State, scale: float) -> State:
    """Weights with their low-rank adapters added in: W + scale * B A."""
    merged: State = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        stem = name.replace(".base_layer.weight", "")
        if stem != name:
            down, up = state[f"{stem}.lora_A.default.weight"], state[f"{stem}.lora_B.default.weight"]
            tensor = tensor + scale * (up.float() @ down.float()).to(tensor.dtype)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


def with_identity(state: State, width: int) -> State:
    """A linear connector as the two-layer one of which the second is the identity."""
    name = "model.multi_modal_projector.linear_2"
    prefix = "hf." if any(key.startswith("hf.") for key in state) else ""
    return {**state, f"{prefix}{name}.weight": torch.eye(width), f"{prefix}{name}.bias": torch.zeros(width)}


def write(
    out: Path,
    state: State,
    model: LlavaModel,
    vision: Vision,
    has_cls: bool,
    tokenizer: PreTrainedTokenizerBase,
    layout: Template,
    recipe: Recipe,
) -> None:
    """A folder with weights, configuration, processor and chat template; read back before it takes its name.

    `state` holds the whole weights by their names in `model`. Raises VlmixError if transformers misses a weight in it
    or finds one that it does not expect.
    """
    if recipe.lora:
        state = merge_adapters(state, recipe.lora.alpha / recipe.lora.rank)
    if recipe.model.connector == "linear":
        state = with_identity(state, model.config.text_config.hidden_size)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    tied = bool(model.config.tie_word_embeddings)
    named = legacy_names(state, model.config.vision_config.model_type, tied)
    named = {name: tensor.to(dtype).contiguous() for name, tensor in named.items()}
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(out):
        partial.mkdir(parents=True)
        _write_weights(partial, named)
        config = model.config
        config.architectures = [type(model).__name__]
        config.dtype = dtype
        config.save_pretrained(partial)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(partial)
        _write_processor(partial, vision, has_cls, tokenizer, layout)
        _check(partial)
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)


def _write_weights(folder: Path, named: State) -> None:
    shards: list[State] = [{}]
    size = 0
    for name, tensor in named.items():
        if size + tensor.nbytes > _SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", {"format": "pt"})
        return
    places = {}
    for number, part in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in named.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _write_processor(
    folder: Path, vision: Vision, has_cls: bool, tokenizer: PreTrainedTokenizerBase, layout: Template
) -> None:
    """The files are written here, not by `save_pretrained`: without torchvision that would name an image processor
    which transformers 4 does not have."""
    tokenizer.chat_template = layout.jinja()
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(layout.jinja(), encoding="utf-8")
    side = {"height": vision.side, "width": vision.side}
    kind = "LlavaNext" if vision.grids else "Llava"
    images: dict[str, Any] = {
        "image_processor_type": f"{kind}ImageProcessor",
        "processor_class": f"{kind}Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side if vision.fitting == "stretch" and not vision.grids else {"shortest_edge": vision.side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": side,
        "do_pad": vision.fitting == "pad" or bool(vision.grids),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
    }
    if vision.grids:
        images["image_grid_pinpoints"] = vision.pinpoints
    _write_json(folder / "preprocessor_config.json", images)
    processor = {
        "processor_class": f"{kind}Processor",
        "patch_size": vision.patch,
        "vision_feature_select_strategy": "default" if has_cls else "full",
        "num_additional_image_tokens": int(has_cls),
        "image_token": "<image>",
    }
    _write_json(folder / "processor_config.json", processor)


def _check(folder: Path) -> None:
    AutoProcessor.from_pretrained(folder)
    _, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype="auto")
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[what]:
            raise VlmixError(f"{folder}: the export does not load back: {what} {sorted(report[what])[:5]}")


def write_connector(path: Path, state: State) -> None:
    """The connector's weights, from the whole state: `linear_1.weight` and so on, and `image_newline`."""
    mine = {}
    for name, tensor in state.items():
        name = name.removeprefix("hf.").removeprefix("model.")
        if name.startswith("multi_modal_projector.") or name == "image_newline":
            mine[name.removeprefix("multi_modal_projector.")] = tensor.float().contiguous()
    temporary = path.with_suffix(".partial")
    with disk_errors(path):
        save_file(mine, temporary, {"format": "pt"})
        temporary.rename(path)


def load_connector(model: LlavaModel, start: str) -> None:
    """Stage one's connector into a model. `start` is a run's folder or its connector file.

    Raises VlmixError if it is neither, or of another shape.
    """
    path = Path(start) / CONNECTOR if Path(start).is_dir() else Path(start)
    if not path.is_file():
        raise VlmixError(f"model.start {start}: no {CONNECTOR} there; name a finished run of stage one")
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors' own
        raise VlmixError(f"model.start {path}: {error}; it is not a connector") from None
    newline = weights.pop("image_newline", None)
    try:
        model.model.multi_modal_projector.load_state_dict(weights)
        if newline is not None and hasattr(model.model, "image_newline"):
            model.model.image_newline.data.copy_(newline)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise VlmixError(f"model.start {path}: of another model: {what}") from None


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
