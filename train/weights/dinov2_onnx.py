"""DINOv2 out of an ONNX file that PyTorch's tracing exporter wrote of a Hugging Face model.

Such a file keeps the names of most weights. Those of linear layers are nameless and transposed, and known by the MatMul
node that takes them; the position embeddings are nameless and split into the CLS token's and the patches'. The format
is protobuf, of which weights and nodes are a handful of fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Dinov2Config

from vlmix.mixture.errors import VlmixError

_HEAD_WIDTH = 64  # of every DINOv2
_CLS = "embeddings.cls_token"
_FLOAT = 1  # TensorProto.DataType


@dataclass(frozen=True)
class _Node:
    kind: str
    name: str
    inputs: list[str]


@dataclass(frozen=True)
class _Graph:
    nodes: list[_Node] = field(default_factory=list)
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def read(path: Path) -> tuple[Dinov2Config, dict[str, torch.Tensor]]:
    """The configuration and the fp32 weights, under the names of Hugging Face's checkpoints, of the DINOv2 in a file.

    Weights of other modules in the file are left out. Raises VlmixError if the file is damaged or holds no DINOv2.
    """
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        graph = _graph(data)
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise VlmixError(f"{path}: not an ONNX file, or a damaged one: {error}") from None
    prefix = next((name.removesuffix(_CLS) for name in graph.weights if name.endswith(_CLS)), None)
    if prefix is None:
        raise VlmixError(f"{path}: holds no DINOv2: none of its weights is called …{_CLS}")
    try:
        weights = _weights(graph, prefix)
        return _config(weights), {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    except (KeyError, ValueError, IndexError, ArithmeticError) as error:
        raise VlmixError(f"{path}: the DINOv2 in it is not as PyTorch exports it: {error}") from None


def _weights(graph: _Graph, prefix: str) -> dict[str, NDArray[np.float32]]:
    """Weights by name, without what is not below `prefix`."""
    scope = "/" + prefix.replace(".", "/")
    weights = {name.removeprefix(prefix): array for name, array in graph.weights.items() if name.startswith(prefix)}
    positions: dict[bool, NDArray[np.float32]] = {}
    for node in graph.nodes:
        if not node.name.startswith(scope):
            continue
        for array in (graph.weights[name] for name in node.inputs if name in graph.weights and "." not in name):
            if node.kind == "MatMul":
                layer = node.name.removeprefix(scope).removesuffix("/MatMul").replace("/", ".")
                weights[f"{layer}.weight"] = array.T
            elif node.name.startswith(f"{scope}embeddings/") and array.ndim == 3:
                positions[array.shape[1] == 1] = array
    weights["embeddings.position_embeddings"] = np.concatenate([positions[True], positions[False]], axis=1)
    return weights


def _config(weights: dict[str, NDArray[np.float32]]) -> Dinov2Config:
    width = weights[_CLS].shape[2]
    if width < _HEAD_WIDTH or width % _HEAD_WIDTH:
        raise ValueError(f"its tokens are {width} wide, no multiple of a head's {_HEAD_WIDTH}")
    patch = weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
    if patch < 1:
        raise ValueError("its patches have no pixels")
    across = math.isqrt(weights["embeddings.position_embeddings"].shape[1] - 1)
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(name.endswith(".norm1.weight") for name in weights),
        num_attention_heads=width // _HEAD_WIDTH,
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.bias"].shape[0] // width,
        image_size=across * patch,
        patch_size=patch,
        use_mask_token=False,  # for pre-training only; exporters drop it
    )


def _graph(model: memoryview) -> _Graph:
    graph = _Graph()
    for number, value in _fields(_only(model, 7)):
        if number == 1:
            inputs = [_text(v) for n, v in _fields(_bytes(value)) if n == 1]
            named = {n: _text(v) for n, v in _fields(_bytes(value)) if n in (3, 4)}
            graph.nodes.append(_Node(named.get(4, ""), named.get(3, ""), inputs))
        elif number == 5:
            name, array = _tensor(_bytes(value))
            if array is not None:
                graph.weights[name] = array
    return graph


def _tensor(message: memoryview) -> tuple[str, NDArray[np.float32] | None]:
    """Name and values of a TensorProto; None if they are no floats."""
    shape: list[int] = []
    name, kind, raw = "", 0, None
    for number, value in _fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = _bytes(value)
    if kind != _FLOAT:
        return name, None
    if raw is None:
        raise ValueError(f"the values of {name} are in another file")
    return name, np.frombuffer(raw, dtype="<f4").reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + size > len(message):
            raise ValueError("it ends early")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at `at`, seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at + shift // 7]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + shift // 7 + 1
    raise ValueError("a number of more than ten bytes")


def _varints(packed: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(packed):
        number, at = _varint(packed, at)
        numbers.append(number)
    return numbers


def _only(message: memoryview, wanted: int) -> memoryview:
    for number, value in _fields(message):
        if number == wanted:
            return _bytes(value)
    raise ValueError("it has no graph")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode()
