"""Optional packages: what is missing, and the command that installs it."""

import re
from importlib.metadata import PackageNotFoundError, requires

from vlmix.mixture.errors import VlmixError

_EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "safetensors": "train",
    "tokenizers": "tokenizer",
    "sentencepiece": "train",
    "peft": "lora",
    "webdataset": "rows",
    "huggingface_hub": "rows",
    "gguf": "smol",
    "onnx": "smol",
    "jinja2": "browse",
    "imagehash": "overlaps",
    "faiss": "overlaps",
    "rensa": "overlaps",
    "matplotlib": "sweep",
    "wandb": "wandb",
    "ray": "ray",
}


def missing(module: str, purpose: str) -> VlmixError:
    """The error for a `module` that `purpose` needs and that does not import. Its remedy names the packages of the
    extra, not the extra, so that it can be followed wherever vlmix came from: an index, a wheel or a checkout."""
    extra = _EXTRAS.get(module.partition(".")[0])
    packages = _packages(extra) if extra else [module]
    return VlmixError(f"{purpose} needs {module}: pip install {' '.join(map(repr, packages))}")


def is_optional(module: str | None) -> bool:
    """Whether an import of `module` may fail because an extra is not installed."""
    return (module or "").partition(".")[0] in _EXTRAS


def _packages(extra: str) -> list[str]:
    """The requirements of an extra, `["vlmix[extra]"]` where vlmix is not installed but on the path."""
    try:
        lines = requires("vlmix") or []
    except PackageNotFoundError:
        lines = []
    found = [line.partition(";")[0].strip() for line in lines if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return found or [f"vlmix[{extra}]"]
