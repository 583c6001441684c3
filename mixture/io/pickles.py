"""Pickles of plain data, read without running anything, in time and memory that their size bounds."""

import gc
import io
import pickle
import pickletools
import re
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


def _run(total: int) -> re.Pattern[bytes]:
    """Instructions of a pickle of so many bytes that need no closer look, as many as follow each other: nearly all."""
    plain, longer = [], []
    lengths = [(bytes([n]), b".{%d}" % n) for n in range(256)]
    for code, (name, size) in _ADMITTED.items():
        start = re.escape(bytes([code]))
        if name in _CHECKED:
            digits, blocks = len(str(total)) - 1, min(total >> 16, 256)
            if name == "PUT" and digits:
                longer.append(start + rb"\d{1,%d}\n" % digits)
            elif name == "LONG_BINPUT" and blocks:
                longer.append(start + rb"..[\0-%s]\0" % re.escape(bytes([blocks - 1])))
            elif name == "INT":
                longer.append(start + rb"[^\n]{1,%d}\n" % (_LONGEST[name] - 1))
        elif size == 0 and code != _STOP:
            plain.append(start)
        elif size > 0:
            longer.append(start + b".{%d}" % size)
        elif size == pickletools.UP_TO_NEWLINE:
            longer.append(start + rb"[^\n]*\n")
        elif size in _PREFIXES:
            zeros = re.escape(bytes(_PREFIXES[size] - 1))
            longer.append(start + b"(?:" + b"|".join(re.escape(n) + zeros + text for n, text in lengths) + b")")
    return re.compile(b"(?:[%s]|%s)*+" % (b"".join(plain), b"|".join(longer)), re.DOTALL)


def _inspect(data: bytes) -> None:
    """Raises UnpicklingError for an instruction that plain data does not need, or that would take memory out of
    proportion: the unpickler makes room up to the highest number under which something is remembered.

    By hand, as pickletools.genops refuses Python 2's text of other than ASCII characters, which the unpickler reads.
    """
    run, at = _run(len(data)), 0
    while (code := data[at := run.match(data, at).end()]) != _STOP:  # type: ignore[union-attr]
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
            _check_number(name, data[start:at], start, len(data))


def _check_number(name: str, argument: bytes, at: int, most: int) -> None:
    if name in _LONGEST:
        if len(argument) > _LONGEST[name]:
            raise pickle.UnpicklingError(f"it has a number of more than 64 bits at byte {at}")
        return
    number = int(argument) if name == "PUT" else int.from_bytes(argument, "little")
    if number > most:
        raise pickle.UnpicklingError(f"it remembers something as number {number} in {most} bytes")


def _weigh(loaded: Any, limit: int) -> None:
    """Raises UnpicklingError if the data, written out without anything shared, is out of proportion: a list that is in
    20,000 places is converted 20,000 times. Every value weighs 1, a string an eighth of its characters more; without
    lists that are shared that is less than the bytes of the pickle.

    Also for text that cannot be written as UTF-8.
    """
    weight, inside = 0, [loaded]
    while inside:
        texts = [value for value in inside if value.__class__ is str]
        held = [value for value in inside if value.__class__ is list or value.__class__ is dict]
        weight += sum(map(len, texts)) // 8 + sum(map(len, held))
        if weight > limit:
            raise pickle.UnpicklingError(
                "its parts share others or themselves, far more of them than the file has bytes"
            )
        if not all(map(str.isascii, texts)):
            for text in texts:
                _check_text(text)
        inside = gc.get_referents(*held)  # all that they hold, one level deeper


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise pickle.UnpicklingError(f"{text[:100]!r} holds half of a character") from None
