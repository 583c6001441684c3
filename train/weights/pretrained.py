"""The two pretrained halves of a LLaVA model: a language model with its tokenizer, and a vision tower.

A name is a local folder of Hugging Face files, a name on their hub, a single file (`.gguf` for a language model,
`.onnx` for a DINOv2), or `package://PACKAGE/PATH`, a file inside an installed Python package. Whatever the form, a
weight that the files lack, hold in another shape or hold besides is an error: transformers by itself only warns, and
continues with random values.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionModel,
    Dinov2Model,
    ImageProcessingMixin,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
)
from transformers.utils import cached_file, logging

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.hub import check_reachable
from vlmix.train.images import CLIP_MEAN, CLIP_STD
from vlmix.train.weights import dinov2_onnx, llama_gguf, sentencepiece_model

Triple = tuple[float, float, float]

_PACKAGE = "package://"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What a CLIP or SigLIP checkpoint holds beside its vision tower, and the constant buffers of older files.
_BESIDE_VISION = re.compile(
    r"text_model\..+|(text|visual)_projection\.weight|logit_scale|logit_bias|(vision_model\.)?embeddings\.position_ids"
)
_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, on the CPU in evaluation mode, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


@dataclass(frozen=True)
class Tower:
    """A vision model, on the CPU in evaluation mode, and the images that it takes: `side` pixels square, of which
    `patch` by `patch` become a token, normalised by `mean` and `std` of values in [0, 1]."""

    model: PreTrainedModel
    mean: Triple
    std: Triple
    side: int
    has_cls: bool
    """The first of its tokens is no patch."""
    patch: int


@dataclass(frozen=True)
class _Family:
    """A kind of vision tower. Mean and std are those of its authors, for checkpoints without a preprocessor."""

    model: type[PreTrainedModel]
    mean: Triple
    std: Triple
    has_cls: bool
    unused: re.Pattern[str]
    side: int | None
    """None: the side is the configuration's, because position embeddings are not interpolated."""


_CLIP = _Family(CLIPVisionModel, CLIP_MEAN, CLIP_STD, True, _BESIDE_VISION, None)
_SIGLIP = _Family(SiglipVisionModel, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False, _BESIDE_VISION, None)
_DINOV2 = _Family(Dinov2Model, _IMAGENET_MEAN, _IMAGENET_STD, True, _NOTHING, 224)
_FAMILIES = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": _DINOV2,
}


class _Preprocessor(msgspec.Struct):
    """What a tower needs of preprocessor_config.json; old files give sizes as numbers."""

    image_mean: Triple | None = None
    image_std: Triple | None = None
    do_center_crop: bool | None = True
    crop_size: int | dict[str, int] | None = None
    size: int | dict[str, int] | None = None


def load_lm(where: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The language model `where`; quantised weights are expanded to `dtype`.

    Raises VlmixError if it cannot be had or is no causal language model, lacks a weight or has one too many, or has
    no tokenizer.
    """
    found = _resolve(where)
    if isinstance(found, Path) and found.suffix == ".gguf":
        header = llama_gguf.check(found)
        read = _load(where, LlamaForCausalLM, found.parent, dtype, gguf_file=found.name)
        read.config.quantization_config = None
        # A model of its own: transformers refuses to save one that it calls quantised.
        model = _load(where, LlamaForCausalLM, None, dtype, config=read.config, state_dict=read.state_dict())
        return LanguageModel(model, _gguf_tokenizer(where, found, header))
    _refuse_file(where, found, ".gguf")
    model = _load(where, AutoModelForCausalLM, found, dtype)
    return LanguageModel(model, load_tokenizer(where))


def describe_lm(where: str) -> LanguageModel:
    """The language model `where` on the meta device, from its configuration alone: shapes without weights.

    Raises VlmixError as `load_lm`, but for what is wrong with weights.
    """
    found = _resolve(where)
    with loading(where, found), torch.device("meta"):
        if isinstance(found, Path) and found.suffix == ".gguf":
            config = AutoConfig.from_pretrained(found.parent, gguf_file=found.name, trust_remote_code=False)
        else:
            _refuse_file(where, found, ".gguf")
            config = AutoConfig.from_pretrained(found, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if isinstance(found, Path) and found.suffix == ".gguf":
        return LanguageModel(model, _gguf_tokenizer(where, found, llama_gguf.check(found)))
    return LanguageModel(model, load_tokenizer(where))


def _gguf_tokenizer(where: str, found: Path, header: dict[str, Any]) -> PreTrainedTokenizerFast:
    with loading(f"{where}: its tokenizer", found):
        tokenizer = AutoTokenizer.from_pretrained(found.parent, gguf_file=found.name, trust_remote_code=False)
    return llama_gguf.tokenizer(tokenizer, header)


def load_tokenizer(where: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a model `where`. Of a SentencePiece model without tokenizer.json it is made here, because
    transformers would rank its merges otherwise.

    Raises VlmixError if it has none, or none that a fast tokenizer can stand for.
    """
    found = _resolve(where)
    with loading(f"{where}: its tokenizer", found):
        sentences = _tokenizer_file(found, "tokenizer.model")
        if sentences is not None and _tokenizer_file(found, "tokenizer.json") is None:
            settings = _tokenizer_file(found, "tokenizer_config.json")
            return sentencepiece_model.read(sentences, msgspec.json.decode(settings.read_bytes()) if settings else {})
        tokenizer = AutoTokenizer.from_pretrained(found, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise VlmixError(f"{where}: its tokenizer has no tokenizer.json; let transformers convert and save it")
    return tokenizer


def _tokenizer_file(found: Path | str, name: str) -> Path | None:
    file = cached_file(found, name, _raise_exceptions_for_missing_entries=False)
    return Path(file) if file else None


def load_tower(where: str, dtype: torch.dtype = torch.float32) -> Tower:
    """The vision tower `where`: CLIP and SigLIP (also out of a checkpoint with both towers) or DINOv2.

    Mean, std and DINOv2's side come from the checkpoint's preprocessor, else from the family's own. Raises VlmixError
    if it cannot be had or is no such model, or lacks a weight or has one too many.
    """
    found = _resolve(where)
    if isinstance(found, Path) and found.suffix == ".onnx":
        config, weights = dinov2_onnx.read(found)
        model = _load(where, Dinov2Model, None, dtype, config=config, state_dict=weights)
        return _tower(where, _DINOV2, model, _Preprocessor())
    family = _family(where, found)
    model = _load(where, family.model, found, dtype, family.unused)
    return _tower(where, family, model, _preprocessor(where, found))


def describe_tower(where: str) -> Tower:
    """The vision tower `where` on the meta device, from its configuration alone: shapes without weights.

    Raises VlmixError as `load_tower`, but for what is wrong with weights.
    """
    found = _resolve(where)
    if isinstance(found, Path) and found.suffix == ".onnx":
        config, _ = dinov2_onnx.read(found)
        family, preprocessor = _DINOV2, _Preprocessor()
    else:
        family = _family(where, found)
        with loading(where, found):
            config = family.model.config_class.from_pretrained(found, trust_remote_code=False)
        preprocessor = _preprocessor(where, found)
    with loading(where, found), torch.device("meta"):
        model = family.model(config)
    return _tower(where, family, model, preprocessor)


def _family(where: str, found: Path | str) -> _Family:
    _refuse_file(where, found, ".onnx")
    with loading(where, found):
        config = AutoConfig.from_pretrained(found, trust_remote_code=False)
    return family_of(where, config.model_type)


def family_of(where: str, model_type: str) -> _Family:
    """The kind of tower that a configuration's type names. Raises VlmixError, with `where`, for any other."""
    family = _FAMILIES.get(model_type)
    if family is None and model_type in ("siglip2", "siglip2_vision_model"):
        raise VlmixError(
            f"{where}: a SigLIP2 of the NaFlex kind, whose images have as many patches as their shape asks for, which "
            "transformers' Llava cannot take; take one of a fixed size, such as google/siglip2-base-patch16-256 or "
            "google/siglip2-so400m-patch16-384"
        )
    if family is None:
        raise VlmixError(f"{where}: a model of type {model_type!r}; a tower is a CLIP, a SigLIP or a DINOv2")
    return family


def _load(
    where: str,
    kind: Any,
    found: Path | str | None,
    dtype: torch.dtype,
    unused: re.Pattern[str] = _NOTHING,
    **given: Any,
) -> PreTrainedModel:
    """A model with all of its weights, from files or from those `given`. Raises VlmixError if any is lacking, or is
    left over and not one of those that `unused` matches."""
    with loading(where, found):
        # Sizes that differ are reported below, by name; code that comes with a checkpoint is never run.
        model, info = kind.from_pretrained(
            found, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **given
        )
    troubles = {
        "lacks": info["missing_keys"],
        "also holds": [key for key in info["unexpected_keys"] if not unused.fullmatch(key)],
        "holds in another shape": [f"{key} {list(held)}" for key, held, _ in info["mismatched_keys"]],
        "could not load": info["error_msgs"],
    }
    listed = [f"{what} {_some(keys)}" for what, keys in troubles.items() if keys]
    if listed:
        raise VlmixError(
            f"{where}: the checkpoint {', and '.join(listed)}; is it whole, and of the model it says it is?"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _some(keys: Iterable[object], most: int = 5) -> str:
    named = sorted(map(str, keys))
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")


def _resolve(where: str) -> Path | str:
    """The file or folder that `where` names, or `where` itself: a name on the hub."""
    if where.startswith(_PACKAGE):
        return _inside_package(where)
    path = Path(where).expanduser()
    if path.exists():
        return path
    if is_local(where):
        raise VlmixError(f"{where}: no such file or folder")
    return where


def is_local(where: str) -> bool:
    """Whether a name that is not there was meant as a path: one not valid on the hub, or lies in a folder that is
    there."""
    path = Path(where).expanduser()
    odd = path.suffix in (".gguf", ".onnx") or where.startswith((".", "/", "~")) or where.count("/") > 1
    return odd or ("/" in where and path.parent.is_dir()) or where.startswith("runs/")


def _inside_package(where: str) -> Path:
    package, _, inside = where.removeprefix(_PACKAGE).partition("/")
    if not package.isidentifier() or not inside or ".." in PurePosixPath(inside).parts or inside.startswith("/"):
        raise VlmixError(f"{where}: not of the form {_PACKAGE}PACKAGE/PATH")
    spec = find_spec(package)  # looks without importing
    remedy = f"pip install --no-deps {package.replace('_', '-')}"
    if spec is None:
        raise VlmixError(f"{where}: the Python package {package} is not installed: {remedy}")
    for root in spec.submodule_search_locations or ():
        if (path := Path(root, inside)).exists():
            return path
    raise VlmixError(f"{where}: the Python package {package} holds no {inside}; is it another version? {remedy}")


def _refuse_file(where: str, found: Path | str, suffix: str) -> None:
    if isinstance(found, Path) and not found.is_dir():
        raise VlmixError(f"{where}: a file, but neither {suffix} nor a folder of Hugging Face files")


def check_size(where: str, folder: Path) -> None:
    """Raises VlmixError if config.json describes a model far larger than the safetensors files beside it hold, which
    transformers would allocate before it looks at them."""
    tensors, values = 0, 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
        tensors += len(shapes)
        values += sum(math.prod(shape) for shape in shapes)
    if not tensors:
        return
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        if (layers := getattr(part, "num_hidden_layers", 0)) > tensors:
            raise VlmixError(f"{where}: config.json describes {layers:,} layers, its weights are {tensors:,} tensors")
    with torch.device("meta"):
        described = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    described_values = sum(value.numel() for value in (*described.parameters(), *described.buffers()))
    if described_values > 2 * values + 10**8:
        raise VlmixError(
            f"{where}: config.json describes a model of {described_values:,} values, its weights hold {values:,}"
        )


@contextmanager
def loading(where: str, found: Path | str | None = None) -> Iterator[None]:
    """Makes errors of transformers, which are of every kind, VlmixErrors. Its warnings and the hub's are off inside:
    what they would tell is checked or in the error. `found` is a hub name (str) or a path."""
    before = logging.get_verbosity()
    hub = getLogger("huggingface_hub")
    level = hub.level
    logging.set_verbosity(ERROR)
    hub.setLevel(ERROR)
    try:
        if isinstance(found, str):
            check_reachable(found, "config.json")
        yield
    except VlmixError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        reason = reason.partition(" (1) ")[0].partition(" Re-running ")[0]  # torch's advice to run what is in the file
        if isinstance(found, str):
            reason = (
                f"there is no such folder here, and as a name on the Hugging Face hub: {reason} Offline, fetch it "
                f"beforehand (hf download {found}), or name a folder that has its files"
            )
        raise VlmixError(f"{where}: {reason}") from error
    finally:
        logging.set_verbosity(before)
        hub.setLevel(level)


def _preprocessor(where: str, found: Path | str) -> _Preprocessor:
    names = ("preprocessor_config.json", "processor_config.json")
    if isinstance(found, Path) and not any((found / name).exists() for name in names):
        return _Preprocessor()
    try:
        raw, _ = ImageProcessingMixin.get_image_processor_dict(found)
        return msgspec.convert(raw, _Preprocessor)
    except OSError as error:
        if isinstance(found, Path):
            raise VlmixError(f"{where}: {str(error).splitlines()[0]}") from error
        return _Preprocessor()  # the weights were had from the hub, so it has no such file
    except msgspec.ValidationError as error:
        raise VlmixError(f"{where}: preprocessor_config.json: {error}") from None


def _tower(where: str, family: _Family, model: PreTrainedModel, preprocessor: _Preprocessor) -> Tower:
    config: PreTrainedConfig = model.config
    side = config.image_size
    if family.side is not None:
        wanted = preprocessor.crop_size if preprocessor.do_center_crop else None
        side = _side(wanted) or _side(preprocessor.size) or family.side
    patch = config.patch_size
    # CLIP and SigLIP leave out what a last patch lacks, as so400m-patch14-384 does: 27 by 27 of 14 pixels in 384.
    if patch < 1 or side < patch or (side % patch and family.side is not None):
        raise VlmixError(f"{where}: images of {side} pixels are no whole number of patches of {patch}")
    mean, std = preprocessor.image_mean or family.mean, preprocessor.image_std or family.std
    return Tower(model, mean, std, side, family.has_cls, patch)


def _side(size: int | dict[str, int] | None) -> int | None:
    if isinstance(size, dict):
        return size.get("height") or size.get("shortest_edge")
    return size
