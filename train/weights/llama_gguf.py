"""Language models of the Llama architecture out of GGUF files.

Names and the order of query and key rows are llama.cpp's, turned back into transformers'. What the header can say and
this module does not carry over (scaled or partial rotary embeddings, another tokenizer) is an error, not a guess.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

from vlmix.mixture.errors import VlmixError

if TYPE_CHECKING:
    from gguf import ReaderTensor

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""GGUF's type of a value -> bytes."""
_CONTROL = 3  # llama.cpp's type of a token that text never makes


@dataclass(frozen=True)
class _Gguf:
    path: Path
    header: dict[str, Any]
    tensors: "list[ReaderTensor]"

    def __getitem__(self, key: str) -> Any:
        if key not in self.header:
            raise VlmixError(f"{self.path}: its header has no {key}")
        return self.header[key]


def read(path: Path) -> tuple[LlamaConfig, dict[str, torch.Tensor], PreTrainedTokenizerFast]:
    """The configuration, the fp32 weights under transformers' names, and the tokenizer with its chat template.

    A tensor of no known name keeps its own. Raises VlmixError if the file is damaged, is no Llama with a byte-level
    BPE, or if the library `gguf` is missing.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise VlmixError(f"{path}: GGUF files need the library gguf: pip install 'vlmix[smol]'") from None
    try:
        with path.open("rb") as opened:
            _Header(opened, path.stat().st_size).check()
        reader = GGUFReader(path)
        file = _Gguf(path, {name: field.contents() for name, field in reader.fields.items()}, list(reader.tensors))
        _refuse(file, "general.architecture", file["general.architecture"], ("llama",))
        config = _config(file)
        return config, _weights(file, config), _tokenizer(file)
    except VlmixError:
        raise
    except Exception as error:  # the reader indexes and reshapes what may not be there
        raise VlmixError(f"{path}: not a GGUF file, or a damaged one: {error}") from error


class _Header:
    """Walks a GGUF header as far as its lengths and counts go. The library believes them, and would build lists of 2^63
    elements that the file does not hold."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def check(self) -> None:
        """Raises ValueError where the file is too short for what its header says."""
        magic, version = self.file.read(4), self.number(4)
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("no GGUF of version 2 or 3, little-endian")
        tensors, keys = self.number(8), self.number(8)
        for _ in range(self.fits(keys, 13)):
            self.skip(self.number(8))
            self.value(self.number(4))
        for _ in range(self.fits(tensors, 24)):
            self.skip(self.number(8))
            dimensions = self.number(4)
            if not 1 <= dimensions <= 4:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            sides = [self.number(8) for _ in range(dimensions)]
            if math.prod(sides) > 64 * self.size:  # the smallest kinds have less than a bit to a weight
                raise ValueError(f"a tensor of {sides} weights in a file of {self.size} bytes")
            self.skip(12)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind == 8:
            self.skip(self.number(8))
        elif kind == 9 and depth < 4:
            inner, count = self.number(4), self.number(8)
            if inner in _SIZES:
                self.skip(self.fits(count, _SIZES[inner]) * _SIZES[inner])
            else:
                for _ in range(self.fits(count, 8)):
                    self.value(inner, depth + 1)
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def fits(self, count: int, size: int) -> int:
        """`count`, if so many things of at least `size` bytes may follow."""
        if count * size > self.size - self.file.tell():
            raise ValueError(f"{count} elements, and only {self.size - self.file.tell()} bytes are left")
        return count

    def skip(self, count: int) -> None:
        self.file.seek(self.fits(count, 1), 1)

    def number(self, size: int) -> int:
        data = self.file.read(size)
        if len(data) < size:
            raise ValueError("it ends inside its header")
        return int.from_bytes(data, "little")


def _config(file: _Gguf) -> LlamaConfig:
    width, heads = file["llama.embedding_length"], file["llama.attention.head_count"]
    _refuse(file, "llama.rope.scaling.type", file.header.get("llama.rope.scaling.type", "none"), ("none",))
    head = file.header.get("llama.attention.key_length", width // heads)
    _refuse(file, "llama.rope.dimension_count", file.header.get("llama.rope.dimension_count", head), (head,))
    names = {tensor.name for tensor in file.tensors}
    return LlamaConfig(
        vocab_size=len(file["tokenizer.ggml.tokens"]),
        hidden_size=width,
        intermediate_size=file["llama.feed_forward_length"],
        num_hidden_layers=file["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=file.header.get("llama.attention.head_count_kv", heads),
        head_dim=head,
        max_position_embeddings=file["llama.context_length"],
        rms_norm_eps=file["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": file.header.get("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in names,
        bos_token_id=file.header.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.header.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=file.header.get("tokenizer.ggml.padding_token_id"),
    )


def _weights(file: _Gguf, config: LlamaConfig) -> dict[str, torch.Tensor]:
    from gguf import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in file.tensors:
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise VlmixError(f"{file.path}: tensor {tensor.name}: {error}") from None
        stem, _, kind = tensor.name.rpartition(".")
        block, _, inner = stem.removeprefix("blk.").partition(".")
        if inner in heads:
            values = _halves(values, heads[inner] or 1)
        name = f"model.layers.{block}.{_LAYER[inner]}" if inner in _LAYER else _TOP.get(stem, stem)
        weights[f"{name}.{kind}"] = torch.from_numpy(np.array(values, np.float32))
    return weights


def _halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows [heads * D, …] whose pairs of rotated dimensions are neighbours, as halves of each head: undoes `permute`
    of llama.cpp's convert_hf_to_gguf.py."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(file: _Gguf) -> PreTrainedTokenizerFast:
    kinds: dict[str, PreTokenizer] = {
        "gpt-2": ByteLevel(add_prefix_space=False),
        "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    }
    _refuse(file, "tokenizer.ggml.model", file["tokenizer.ggml.model"], ("gpt2",))
    _refuse(file, "tokenizer.ggml.pre", file["tokenizer.ggml.pre"], tuple(kinds))
    tokens: list[str] = file["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in file["tokenizer.ggml.merges"]]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = kinds[file["tokenizer.ggml.pre"]]
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, file["tokenizer.ggml.token_type"])
            if kind == _CONTROL
        ]
    )
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {name: file.header.get(f"tokenizer.ggml.{key}_token_id") for key, name in names.items()}
    special = {name: tokens[i] for name, i in ids.items() if i is not None}
    if file.header.get("tokenizer.ggml.add_bos_token", False):
        bos = special["bos_token"]
        backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids["bos_token"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.header.get("tokenizer.chat_template"),
        model_max_length=file["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )


def _refuse(file: _Gguf, key: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise VlmixError(
            f"{file.path}: {key} is {value}; vlmix reads {' and '.join(map(str, known))}. "
            "Take the model's Hugging Face folder or hub name"
        )
