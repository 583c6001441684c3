"""Rows of text files: JSON Lines, a JSON list, CSV."""

import ast
import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.official import OfficialFiles
from vlmix.mixture.io.surrogates import replace_lone_surrogates


class Broken(NamedTuple):
    """A row that cannot be read: the code of its reject, why, and its text."""

    code: str
    detail: str
    text: str = ""


Row = dict[str, Any] | Broken
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)?(\.\d+)?([eE][-+]?\d+)?")
_MARK = b"\xef\xbb\xbf"


def jsonl_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(offset of its line, row)."""
    with path.open("rb") as file:
        if file.read(3) != _MARK:
            file.seek(0)
        at = file.tell()
        for number, line in enumerate(file, 1):
            if line.strip():
                yield at, decoded(line, f"line {number}")
            at += len(line)


def json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(number, row)."""
    file = OfficialFiles(path.stem, path.name, "", path)
    file.own = "a JSON list of rows"
    if not bytes(file.read(path)[:1000]).lstrip().startswith(b"["):
        raise file.wrong(path, "it does not begin as a list")
    for number, text in enumerate(file.texts(path)):
        yield number, decoded(text, f"row {number}")


def csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(number, row), an empty field being None."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(2**31 - 1)
        delimiter = _delimiter(path)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = next(reader)
            if len(set(names)) != len(names):
                raise VlmixError(f"{path}: two columns have one name, among {', '.join(names)}")
            for number, values in enumerate(row for row in reader if row):
                if len(values) == len(names):
                    yield number, {name: value if value != "" else None for name, value in zip(names, values)}
                else:
                    what = f"line {reader.line_num} has {len(values)} fields, the header has {len(names)}"
                    yield number, Broken("bad_row", what, delimiter.join(values))
        except csv.Error as error:
            raise VlmixError(f"{path}: line {reader.line_num}: {error}") from None
        except UnicodeDecodeError as error:
            raise VlmixError(f"{path}: not UTF-8: {error.reason}; save it as UTF-8") from None


def number_columns(paths: Iterable[Path], names: Iterable[str]) -> dict[str, type[int] | type[float]]:
    """The columns of CSV files that hold numbers alone, as numbers are written: `007` is text."""
    left: dict[str, type[int] | type[float] | None] = dict.fromkeys(names)
    for path in paths:
        for _, row in csv_rows(path):
            if isinstance(row, Broken):
                continue
            for name in list(left):
                if (value := row.get(name)) is None or _WHOLE.fullmatch(value):
                    left[name] = left[name] or (int if value else None)
                elif any(map(str.isdigit, value)) and _NUMBER.fullmatch(value):
                    left[name] = float
                else:
                    del left[name]
    return {name: type for name, type in left.items() if type}


def decoded(text: bytes, what: str) -> Row:
    """The object that JSON text holds, with halves of surrogate pairs replaced."""
    try:
        row = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        mended, count = replace_lone_surrogates(text)
        try:
            row = msgspec.json.decode(mended) if count else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            row = None
        if row is None:
            return Broken("bad_row", f"{what}: {error}", _shown(text))
    if not isinstance(row, dict):
        return Broken("bad_row", f"{what} is {type(row).__name__}, expected an object", _shown(text))
    return row


def _shown(text: bytes) -> str:
    return text[:2000].strip().decode(errors="replace")


def loaded(value: Any) -> list[Any] | None:
    """A list, also one that is written as JSON or as Python prints it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        for load in (json.loads, ast.literal_eval):
            try:
                value = load(value)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value if isinstance(value, list) else None


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return max(",\t;", key=file.readline(65536).count)
