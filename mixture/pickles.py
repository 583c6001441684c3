"""Pickles of plain data, read without running anything, in time and memory that their size bounds."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from mixture.errors import VlmixError

# Lists, dicts, text, numbers and None, of Python 2 and 3. No tuples or sets: only they can be keys that are hashed as
# deep as they are nested, which ends the interpreter.
_ADMITTED = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "  # noqa: SIM905
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET".split()
)
_MEMO = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


class _PlainData(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; data needs no code")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_plain(data: bytes | memoryview, path: Path) -> Any:
    """The lists, dicts, strings and numbers of a pickle's bytes, Python 2's included. Anything else in it is refused;
    errors name `path`."""
    try:
        _inspect(data)
        return _PlainData(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise VlmixError(f"{path}: refused, the pickle is not plain data: {error}") from None
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise VlmixError(f"{path}: not a whole pickle ({type(error).__name__}: {str(error)[:200]})") from None


def _inspect(data: bytes | memoryview) -> None:
    """Raises UnpicklingError for an instruction that plain data does not need, or that would take memory out of
    proportion: the unpickler makes room up to the highest number under which something is remembered."""
    for count, (instruction, argument, at) in enumerate(pickletools.genops(io.BytesIO(data))):
        name = instruction.name
        if name not in _ADMITTED:
            what = f" {argument}" if name in ("GLOBAL", "INST") else ""
            raise pickle.UnpicklingError(f"it has the instruction {name}{what[:200]} at byte {at}; data needs none")
        if name in _MEMO and (argument or 0) > count:
            raise pickle.UnpicklingError(f"it remembers something as number {argument} after {count} instructions")
