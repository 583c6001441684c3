"""JSON that is read and written again with its numbers as they were: `1e2` stays `1e2`, `1.10` stays `1.10`."""

import json
import re
from typing import Any
from uuid import uuid4

_MARK = f"{uuid4().hex}:"  # no text of a file can begin with it
_MARKED = re.compile(rf'"{_MARK}([^"]+)"')


def loads(text: str | bytes) -> Any:
    """As `json.loads`; a number that Python would write differently becomes a string that `dumps` knows."""
    return json.loads(text, parse_float=_float, parse_int=_int, parse_constant=_constant)


def dumps(value: Any) -> str:
    """As `json.dumps` with `ensure_ascii=False`, for what `loads` gave."""
    text = json.dumps(value, ensure_ascii=False)
    return _MARKED.sub(r"\1", text) if _MARK in text else text


def _float(text: str) -> float | str:
    return value if repr(value := float(text)) == text else _MARK + text


def _int(text: str) -> int | str:
    return _MARK + text if text.startswith("-0") else int(text)


def _constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
