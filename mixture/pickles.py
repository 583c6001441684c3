"""Pickles of plain data, read without running anything."""

import io
import pickle
from pathlib import Path
from typing import Any

from mixture.errors import VlmixError


class _PlainData(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; data needs no code")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_plain(data: bytes | memoryview, path: Path) -> Any:
    """The lists, dicts, strings and numbers of a pickle's bytes, Python 2's included. Anything else in it is refused;
    errors name `path`."""
    try:
        return _PlainData(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise VlmixError(f"{path}: refused, the pickle is not plain data: {error}") from None
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise VlmixError(f"{path}: not a whole pickle ({type(error).__name__}: {error})") from None
