"""Pickles of plain data, read without running anything, in time and memory that their size bounds."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from vlmix.mixture.errors import VlmixError

# Lists, dicts, text, numbers and None, of Python 2 and 3. No tuples or sets: only they can be keys that are hashed as
# deep as they are nested, which ends the interpreter.
_NAMES = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "  # noqa: SIM905
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET".split()
)
_INSTRUCTIONS = {ord(instruction.code): instruction for instruction in pickletools.opcodes}
# Byte -> (name, length of its argument in bytes, or one of pickletools' codes for where the length is).
_ADMITTED = {
    code: (instruction.name, instruction.arg.n if instruction.arg else 0)
    for code, instruction in _INSTRUCTIONS.items()
    if instruction.name in _NAMES
}
_PREFIXES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_STOP = pickle.STOP[0]
_LONGEST = {"INT": 24, "LONG": 24, "LONG1": 9, "LONG4": 9}
"""Bytes of a number's argument: ids have 64 bits. Python refuses to show numbers of more than 4,300 digits."""
_SHARED = 1_000_000
"""What small pickles may weigh that share much: some seconds of work and 100 MB at most."""
_CHECKED = frozenset((*_LONGEST, "PUT", "LONG_BINPUT"))  # BINPUT's number is at most 255


class _PlainData(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; data needs no code")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_plain(data: bytes | memoryview, path: Path) -> Any:
    """The lists, dicts, strings and numbers of a pickle's bytes, Python 2's included. Anything else in it is refused,
    and so is what would take time or memory out of proportion to its size; errors name `path`."""
    try:
        data = bytes(data)
        _inspect(data)
        loaded = _PlainData(io.BytesIO(data), encoding="latin1").load()
        _weigh(loaded, _SHARED + 2 * len(data))
    except pickle.UnpicklingError as error:
        raise VlmixError(f"{path}: refused, the pickle is not plain data: {error}") from None
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise VlmixError(f"{path}: not a whole pickle ({type(error).__name__}: {str(error)[:200]})") from None
    return loaded


def _inspect(data: bytes) -> None:
    """Raises UnpicklingError for an instruction that plain data does not need, or that would take memory out of
    proportion: the unpickler makes room up to the highest number under which something is remembered.

    By hand, as pickletools.genops refuses Python 2's text of other than ASCII characters, which the unpickler reads.
    """
    at = count = 0
    while (code := data[at]) != _STOP:
        known = _ADMITTED.get(code)
        if known is None:
            name = _INSTRUCTIONS[code].name if code in _INSTRUCTIONS else f"{code:#04x}"
            what = ""
            if name in ("GLOBAL", "INST"):
                what = " " + " ".join(data[at + 1 : at + 200].decode("latin1").split("\n")[:2])
            raise pickle.UnpicklingError(f"it has the instruction {name}{what} at byte {at}; data needs none")
        name, size = known
        start = at + 1
        if size >= 0:
            at = start + size
        elif size == pickletools.UP_TO_NEWLINE:
            at = data.index(b"\n", start) + 1
        else:
            prefix = _PREFIXES[size]
            at = start + prefix + int.from_bytes(data[start : start + prefix], "little")
            start += prefix
        if at > len(data):
            raise pickle.UnpicklingError(f"its {name} at byte {start} extends {at - len(data)} bytes past its end")
        if name in _CHECKED:
            _check_number(name, data[start:at], start, count)
        count += 1


def _check_number(name: str, argument: bytes, at: int, count: int) -> None:
    if name in _LONGEST:
        if len(argument) > _LONGEST[name]:
            raise pickle.UnpicklingError(f"it has a number of more than 64 bits at byte {at}")
        return
    number = int(argument) if name == "PUT" else int.from_bytes(argument, "little")
    if number > count:
        raise pickle.UnpicklingError(f"it remembers something as number {number} after {count} instructions")


def _weigh(loaded: Any, limit: int) -> None:
    """Raises UnpicklingError if the data, written out without anything shared, is out of proportion: a list that is in
    20,000 places is converted 20,000 times. A string weighs 1 and an eighth of its characters, anything else 1; without
    lists that are shared that is less than the bytes of the pickle.

    Also for text that cannot be written as UTF-8.
    """
    weights: dict[int, int] = {}  # by id, as everything is alive; 0: what it holds is being weighed
    stack = [loaded]
    while stack:
        item = stack[-1]
        if weights.get(id(item)):  # weighed at another place
            stack.pop()
            continue
        weight = 1
        inside = []
        for value in item.values() if isinstance(item, dict) else item if isinstance(item, list) else [item]:
            if isinstance(value, str):
                weight += 1 + len(value) // 8
                if not value.isascii():
                    _check_text(value)
            elif isinstance(value, (list, dict)):
                known = weights.get(id(value))
                if known is None:
                    inside.append(value)
                elif known:
                    weight += known
                else:
                    raise pickle.UnpicklingError("a list or dict in it holds itself")
            else:
                weight += 1
        if inside and id(item) not in weights:
            weights[id(item)] = 0
            stack += inside
            continue
        if weight > limit:
            raise pickle.UnpicklingError("its parts share others, far more of them than the file has bytes")
        weights[id(item)] = weight
        stack.pop()


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise pickle.UnpicklingError(f"{text[:100]!r} holds half of a character") from None
