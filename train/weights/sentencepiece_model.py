"""A fast tokenizer out of `tokenizer.model` alone, as Llama, Vicuna and Mistral are released.

transformers makes one as well, but ranks the merges by the ids of their pieces. SentencePiece ranks them by score, and
in Llama's vocabulary the two differ: runs of blanks have low ids and the lowest scores, so all indented code would be
cut otherwise than the LM was trained.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.extras import missing

_BLANK = "▁"
# What differs between kinds of SentencePiece models: blanks at either end, runs of them, bytes, joined characters.
_PROBES = (
    "What is  in   the image?",
    "  two before, one after ",
    "def f(x):\n    if x:\n\t\treturn x  # twice",
    "USER: ½ ﬁne ＡＢＣ é 漢字 😀👩‍🚀 ▁\r\n",
)


def read(path: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer of the SentencePiece model at `path`; `settings` is what tokenizer_config.json says.

    Raises VlmixError if the package sentencepiece is not installed, if `path` is no BPE model of Llama's kind, or if
    the tokenizer would cut a text otherwise than SentencePiece does.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise missing("sentencepiece", f"{path}: a SentencePiece model") from None
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise VlmixError(f"{path}: not a SentencePiece model: {str(error).splitlines()[0]}") from None
    count = model.get_piece_size()
    pieces = [model.id_to_piece(i) for i in range(count)]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=_merges(model, pieces),
            unk_token=pieces[model.unk_id()],
            fuse_unk=True,
            byte_fallback=any(model.is_byte(i) for i in range(count)),
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), normalizers.Replace(" ", _BLANK)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for probe in _PROBES:
        if backend.encode(probe, add_special_tokens=False).ids != model.encode(probe):
            raise VlmixError(
                f"{path}: not a BPE model of Llama's kind: {probe!r} would not be cut as SentencePiece cuts it; "
                "take a checkpoint with a tokenizer.json"
            )
    named = {"unk_token": pieces[model.unk_id()]}
    named |= {f"{name}_token": pieces[i] for name, i in (("bos", model.bos_id()), ("eos", model.eos_id())) if i >= 0}
    special = [pieces[i] for i in range(count) if model.is_control(i) or model.is_unknown(i)]
    backend.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    _add(path, backend, settings)
    if "bos_token" in named and settings.get("add_bos_token", True):
        begin = named["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, model.bos_id())]
        )
    named |= {
        name: text for name in ("bos_token", "eos_token", "unk_token", "pad_token") if (text := _text(settings, name))
    }
    kept = {key: settings[key] for key in ("model_max_length", "chat_template") if settings.get(key) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named, **kept)


def _merges(model: Any, pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best score first."""
    usable = [not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i)) for i in range(len(pieces))]
    ids = {piece: i for i, piece in enumerate(pieces) if usable[i]}
    found = []
    for piece, i in ids.items():
        score = -model.get_score(i)
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((score, i, ids[left], ids[right]))
    return [(pieces[left], pieces[right]) for _, _, left, right in sorted(found)]


def _add(path: Path, backend: Tokenizer, settings: dict[str, Any]) -> None:
    """The tokens that were added to the model's own, under the ids that they have."""
    added: dict[int, AddedToken] = {}
    if (extra := path.with_name("added_tokens.json")).is_file():
        added |= {i: AddedToken(text, normalized=False) for text, i in json.loads(extra.read_text("utf-8")).items()}
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        added[int(number)] = AddedToken(token["content"], special=token.get("special", False), normalized=False)
    for number, token in sorted(added.items()):
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != number:
            raise VlmixError(f"{path}: the added token {token.content!r} should be {number}; its files disagree")


def _text(settings: dict[str, Any], name: str) -> str | None:
    value = settings.get(name)
    return value.get("content") if isinstance(value, dict) else value
