"""What must hold before transformers may read a GGUF file."""

import math
import re
from pathlib import Path
from typing import Any, BinaryIO

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import PreTrainedTokenizerFast

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.extras import missing

_LLAMA = re.compile(
    r"(token_embd|output_norm|output|blk\.\d+\.(attn_(norm|q|k|v|output)|ffn_(norm|gate|up|down)))\.(weight|bias)"
)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""GGUF's type of a value -> bytes."""


def check(path: Path) -> dict[str, Any]:
    """The header.

    Raises VlmixError if transformers would misread the file: it is damaged, not a Llama with a byte-level BPE, or says
    what transformers does not carry over (scaled or partial rotary embeddings); or if `gguf` is missing.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise missing("gguf", f"{path}: a GGUF file") from None
    try:
        with path.open("rb") as opened:
            _Header(opened, path.stat().st_size).check()
        reader = GGUFReader(path)
        header = {name: field.contents() for name, field in reader.fields.items()}
        excess = sorted(tensor.name for tensor in reader.tensors if not _LLAMA.fullmatch(tensor.name))
    except Exception as error:  # the reader indexes and reshapes what may not be there
        raise VlmixError(f"{path}: not a GGUF file, or a damaged one: {error}") from error
    if excess:
        raise VlmixError(f"{path}: the checkpoint also holds {excess[0]}; is it of a Llama?")
    width, heads = (header.get(f"llama.{key}", 1) for key in ("embedding_length", "attention.head_count"))
    head = header.get("llama.attention.key_length", width // heads)
    for key, value, known in (
        ("general.architecture", "", ("llama",)),
        ("llama.rope.scaling.type", "none", ("none",)),
        ("llama.rope.dimension_count", head, (head,)),
        ("tokenizer.ggml.model", "", ("gpt2",)),
        ("tokenizer.ggml.pre", "", ("gpt-2", "smollm")),
    ):
        if header.get(key, value) not in known:
            raise VlmixError(
                f"{path}: {key} is {header.get(key, value)}; vlmix reads {' and '.join(map(str, known))}. "
                "Take the model's Hugging Face folder or hub name"
            )
    return header


def tokenizer(read: PreTrainedTokenizerFast, header: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that transformers read, with what it leaves out of the header, and of a class that does not build
    its backend anew when it is saved and loaded."""
    backend = read.backend_tokenizer
    if header["tokenizer.ggml.pre"] == "smollm":
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=read.chat_template,
        model_max_length=header["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **{name: str(token) for name, token in read.special_tokens_map.items() if isinstance(token, str)},
    )


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
