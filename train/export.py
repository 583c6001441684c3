"""What comes out of a run: a Hugging Face folder that loads everywhere, or the connector alone.

The names of the weights are those that llava-hf's checkpoints have had from the start, which transformers 4 and 5, vLLM
and llama.cpp's converter know. transformers 5 would write other ones for a model that was not loaded from such a file,
and transformers 4 would then draw the tower at random with a warning only.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from tokenizers import Tokenizer
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write, disk_errors
from vlmix.train.card import CARD_NAME
from vlmix.train.config import Recipe
from vlmix.train.images import ImageGeometry
from vlmix.train.model import LlavaModel
from vlmix.train.tokens import IMAGE, Encoder, Template, adds_begin, question_text

MODEL = "model"
"""Folder of a run that holds its export."""
CONNECTOR = "connector.safetensors"
SHARD_BYTES = 5 * 2**30
"""Most bytes of one file of weights, unless a single tensor has more."""
_PREFIXED = ("clip_vision_model", "siglip_vision_model")
State = dict[str, torch.Tensor]
_PROBE = ("What is it?", "It is  é.", "def f():\n    return 1")
_PROBES = ((_PROBE, 0), (_PROBE, 1), (("<image>\nIs it  like <image>?", "It is  é.", "So?"), 2))
"""Conversations that end in a question, and the number of their images."""


def legacy_names(state: State, model: LlavaModel) -> State:
    """Weights by the names of llava-hf's checkpoints, from those that `model` has in memory."""
    # transformers knows which of its names are not those of its checkpoints, such as DINOv2's in 5.23, but for the
    # level `vision_model.` of a tower that it did not itself load.
    named: State = revert_weight_conversion(model, state)
    if model.config.tie_word_embeddings:
        named.pop("language_model.lm_head.weight", None)
    if model.config.vision_config.model_type in _PREFIXED:
        inner = "vision_tower.vision_model."
        named = {re.sub(r"^vision_tower\.(vision_model\.)?", inner, name): tensor for name, tensor in named.items()}
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
    return {**state, f"{name}.weight": torch.eye(width), f"{name}.bias": torch.zeros(width)}


def write(
    out: Path,
    state: State,
    model: LlavaModel,
    vision: ImageGeometry,
    has_cls: bool,
    tokenizer: PreTrainedTokenizerBase,
    layout: Template,
    recipe: Recipe,
    *,
    card: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """A folder with weights, configuration, processor and chat template; read back before it takes its name.

    `state` holds the whole weights by their names in TrainableVLM; `card` is its README.md, if any. Raises VlmixError,
    and leaves what stood at `out`, if the disk is full, or if transformers misses a weight, finds one that it does not
    expect or has another value for it.
    """
    state = {name.removeprefix("hf."): tensor for name, tensor in state.items()}
    if recipe.lora:
        state = merge_adapters(state, recipe.lora.alpha / recipe.lora.rank)
    if recipe.model.connector == "linear":
        state = with_identity(state, model.config.text_config.hidden_size)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    partial, old = (out.with_name(f"{out.name}.{what}") for what in ("partial", "old"))
    try:
        with disk_errors(out):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write_weights(partial, legacy_names(state, model), dtype, shard_bytes)
            _write_json(partial / "config.json", _config(model, vision, dtype))
            _write_json(partial / "generation_config.json", _generation(model, tokenizer, layout))
            _write_tokenizer(partial, tokenizer, layout)
            _write_processor(partial, vision, has_cls)
            if card:
                (partial / CARD_NAME).write_text(card, encoding="utf-8")
            _check(partial, out, state, dtype, Encoder(tokenizer, layout))
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)


def _write_weights(folder: Path, named: State, dtype: torch.dtype, shard_bytes: int) -> None:
    shards: list[State] = [{}]
    size = total = 0
    for name, tensor in named.items():
        nbytes = tensor.numel() * dtype.itemsize
        if size + nbytes > shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += nbytes
        total += nbytes
    places: dict[str, str] = {}
    for number, part in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save({name: tensor.to(dtype).contiguous() for name, tensor in part.items()}, folder / file)
        places |= dict.fromkeys(part, file)
    if len(shards) > 1:
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _save(tensors: State, path: Path) -> None:
    """As `save_file`, but what the system refuses is an OSError."""
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from None


def _config(model: LlavaModel, vision: ImageGeometry, dtype: torch.dtype) -> dict[str, Any]:
    """transformers 5's configuration, and in older words what transformers 4 and the converters would not find in it:
    they would take their own defaults, silently."""
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    text, tower = config["text_config"], config["vision_config"]
    config["architectures"] = [type(model).__name__]
    text["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config.text_config)].__name__]
    tower.pop("architectures", None)
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = bool(model.config.tie_word_embeddings)
    if vision.merge == 1:
        config["image_seq_length"] = (vision.side // vision.patch) ** 2
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    for part in (config, text, tower):
        part["dtype"] = config["torch_dtype"]
        part.pop("_name_or_path", None)
    rope = dict(text.get("rope_parameters") or {})
    text |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if rope.get("rope_type", "default") != "default":
        text["rope_scaling"] = rope
    return config


def _generation(model: LlavaModel, tokenizer: PreTrainedTokenizerBase, layout: Template) -> dict[str, Any]:
    """Greedy, and to the end of an answer as it was trained, or what ends the LM's own texts. The LM's settings for
    sampling are left out: transformers refuses to load or save many of them."""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [special.get(layout.answer_end), tokenizer.eos_token_id]
    # Those of a configuration that was written by hand may be its defaults, which mean nothing in this vocabulary.
    ends += [end for end in (own if isinstance(own, list) else [own]) if end in special.values()]
    ends = [end for end in dict.fromkeys(ends) if end is not None]
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {name: value for name, value in ids.items() if value is not None}


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, layout: Template) -> None:
    """transformers 5's `save_pretrained` would name a class, and list special tokens in a way, that 4 cannot read."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(layout.jinja(), encoding="utf-8")
    more = [str(token) for token in tokenizer.extra_special_tokens]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "model_max_length": tokenizer.model_max_length,
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        "additional_special_tokens": list(dict.fromkeys([IMAGE, *more])),
    }
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    _write_json(folder / "tokenizer_config.json", settings | named)


def _write_processor(folder: Path, vision: ImageGeometry, has_cls: bool) -> None:
    """The files are written here, not by `save_pretrained`: without torchvision that would name an image processor
    which transformers 4 does not have."""
    side = {"height": vision.side, "width": vision.side}
    if vision.merge > 1:
        _write_shuffling_processor(folder, vision)
        return
    kind = "LlavaNext" if vision.tile_grids else "Llava"
    images: dict[str, Any] = {
        "image_processor_type": f"{kind}ImageProcessor",
        "processor_class": f"{kind}Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side
        if vision.image_aspect_ratio == "stretch" and not vision.tile_grids
        else {"shortest_edge": vision.side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": side,
        "do_pad": vision.image_aspect_ratio == "pad" or bool(vision.tile_grids),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
    }
    if vision.tile_grids:
        images["image_grid_pinpoints"] = vision.pinpoints
    _write_json(folder / "preprocessor_config.json", images)
    processor = {
        "processor_class": f"{kind}Processor",
        "patch_size": vision.patch,
        "vision_feature_select_strategy": "default" if has_cls else "full",
        "num_additional_image_tokens": int(has_cls),
        "image_token": IMAGE,
    }
    _write_json(folder / "processor_config.json", processor)


def _write_shuffling_processor(folder: Path, vision: ImageGeometry) -> None:
    """AyaVision's, which cuts an image into at least one tile and writes marks around them: one, and empty marks."""
    kind = "AyaVisionProcessor"
    images = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": vision.side, "width": vision.side},
        "resample": 3,
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 1,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
    }
    _write_json(folder / "preprocessor_config.json", images)
    marks = ("start_of_img_token", "end_of_img_token", "img_line_break_token", "tile_token", "tile_global_token")
    processor = {
        "processor_class": kind,
        "patch_size": vision.patch,
        "img_size": vision.side,
        "downsample_factor": vision.merge,
        "image_token": IMAGE,
        "img_patch_token": IMAGE,
        **dict.fromkeys(marks, ""),
    }
    _write_json(folder / "processor_config.json", processor)


def _check(folder: Path, out: Path, state: State, dtype: torch.dtype, encoder: Encoder) -> None:
    """Raises VlmixError if what transformers reads from `folder` is not the model with the weights `state`, or asks
    with other tokens than `encoder` trained it on."""
    with _quiet():
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            model, report = AutoModelForImageTextToText.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, dtype="auto", trust_remote_code=False
            )
        except Exception as error:  # of every kind
            raise VlmixError(f"{out}: the export does not load back: {error}") from error
    troubles = {what: sorted(map(str, report[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    found = model.state_dict()
    troubles["other values"] = [
        name
        for name, tensor in state.items()
        if name not in found or not torch.equal(found[name].to(dtype), tensor.to(dtype))
    ]
    for values, images in _PROBES:
        prompt = question_text(processor, values, images)
        ids = processor.tokenizer(prompt, add_special_tokens=adds_begin(processor.tokenizer, prompt))["input_ids"]
        if ids != encoder.encode(values, [1] * images).ids.tolist():
            troubles["other tokens"] = [f"for {prompt!r}"]
    for what, names in troubles.items():
        if names:
            raise VlmixError(
                f"{out}: the export does not load back in transformers {transformers_version}: {what} {names[:5]}; the "
                "run's checkpoint stands"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without warnings and progress bars; afterwards as before."""
    level = logging.get_verbosity()
    hook = logging.set_tqdm_hook(lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True}))
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.set_tqdm_hook(hook)


def write_connector(path: Path, state: State) -> None:
    """The connector's weights, from the whole state: `linear_1.weight` and so on, and `image_newline`."""
    mine = {}
    for name, tensor in state.items():
        name = name.removeprefix("hf.").removeprefix("model.")
        if name.startswith("multi_modal_projector.") or name == "image_newline":
            mine[name.removeprefix("multi_modal_projector.")] = tensor.float().contiguous()
    with atomic_write(path) as file:
        file.write(save(mine, {"format": "pt"}))


def load_connector(model: LlavaModel, start: str) -> None:
    """Stage one's connector into a model. `start` is a run's folder or its connector file.

    Raises VlmixError if it is neither, or of another shape.
    """
    path = Path(start) / CONNECTOR if Path(start).is_dir() else Path(start)
    if not path.is_file():
        raise VlmixError(f"model.init_connector_from {start}: no {CONNECTOR} there; name a finished run of stage one")
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors' own
        raise VlmixError(f"model.init_connector_from {path}: {error}; it is not a connector") from None
    newline = weights.pop("image_newline", None)
    try:
        model.model.multi_modal_projector.load_state_dict(weights)
        if newline is not None and hasattr(model.model, "image_newline"):
            model.model.image_newline.data.copy_(newline)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise VlmixError(f"model.init_connector_from {path}: of another model: {what}") from None


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
