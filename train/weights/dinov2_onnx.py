"""DINOv2 out of an ONNX file that PyTorch's tracing exporter wrote of a Hugging Face model.

Such a file keeps the names of most weights. Those of linear layers are nameless and transposed, and known by the MatMul
node that takes them; the position embeddings are nameless and split into the CLS token's and the patches'.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Dinov2Config

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.extras import missing

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
    nodes: list[_Node]
    weights: dict[str, NDArray[np.float32]]


def read(path: Path) -> tuple[Dinov2Config, dict[str, torch.Tensor]]:
    """The configuration and the fp32 weights, under the names of Hugging Face's checkpoints, of the DINOv2 in a file.

    Weights of other modules in the file are left out. Raises VlmixError if the file is damaged or holds no DINOv2.
    """
    try:
        graph = _graph(path)
    except VlmixError:
        raise
    except Exception as error:  # protobuf's errors are its own
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


def _graph(path: Path) -> _Graph:
    try:
        import onnx
    except ImportError:
        raise missing("onnx", f"{path}: an ONNX file") from None
    graph = onnx.load(path, load_external_data=False).graph
    weights = {}
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        if onnx.external_data_helper.uses_external_data(tensor):
            raise ValueError(f"the values of {tensor.name} are in another file")
        if math.prod(tensor.dims) * 4 != len(tensor.raw_data):
            raise ValueError(f"{tensor.name} has {len(tensor.raw_data)} bytes, which is not its shape")
        weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
    return _Graph([_Node(node.op_type, node.name, list(node.input)) for node in graph.node], weights)
