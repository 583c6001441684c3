"""Token counts of a named tokenizer, without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.extras import missing
from vlmix.mixture.io.hub import check_reachable


class TokenCounter:
    """Counts tokens as the fast tokenizer `name` makes them: a tokenizer.json, a folder with one, or a name on the
    Hugging Face hub. Raises VlmixError if it is none, or if the package tokenizers is not installed."""

    def __init__(self, name: str) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise missing("tokenizers", "counting tokens") from None
        path = Path(name)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file() and (path.exists() or path.suffix == ".json" or name.startswith((".", "/", "~"))):
            raise VlmixError(f"tokenizer {name}: there is no such file; name a tokenizer.json")
        if not path.is_file():
            check_reachable(name, "tokenizer.json")
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
        except Exception as error:  # the library raises plain Exception
            raise VlmixError(f"tokenizer {name}: {abridged(str(error), 300)}") from None
        self._tokenizer.no_truncation()
        self.path = path if path.is_file() else None

    def __call__(self, texts: Sequence[str]) -> int:
        """Tokens of all texts, each by itself, without special tokens."""
        return sum(map(len, self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)))
