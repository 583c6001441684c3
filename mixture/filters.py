"""SQL conditions over samples: what `where` admits, and how it is evaluated.

Polars parses and evaluates expressions recursively, so its time grows with the square of their length, and its stack
overflows at some thousand terms; some functions make strings of any length. What is not plainly harmless is refused
before polars sees it.
"""

import re

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError, nearest

LONGEST = 2**23
"""Characters of a condition, lists included."""
MOST_PARTS = 1000
"""Words, numbers, strings and signs of a condition, those in the list of an IN counted as one."""
LONGEST_TEXT = 10_000
"""Characters of all parts that MOST_PARTS counts."""

# fmt: off
FUNCTIONS = frozenset(
    {
        "abs", "avg", "ceil", "ceiling", "char_length", "character_length", "coalesce", "count", "ends_with",
        "exp", "first", "floor", "greatest", "if", "ifnull", "last", "least", "left", "length", "ln", "log",
        "log10", "log2", "lower", "ltrim", "max", "median", "min", "mod", "nullif", "octet_length", "pow",
        "power", "regexp_like", "right", "round", "rtrim", "sign", "sqrt", "starts_with", "stddev", "stdev",
        "strpos", "substr", "substring", "sum", "trim", "upper", "variance",
    }
)
"""Functions that make no longer text than they are given; CAST and what SQL writes as words come beside them."""

_WORDS = frozenset(
    {
        "and", "any", "as", "between", "by", "case", "cast", "distinct", "else", "escape", "from", "ilike",
        "in", "interval", "is", "like", "not", "or", "rlike", "regexp", "then", "try_cast", "when",
    }
)
# fmt: on
_QUOTED = re.compile(r'"([^"]+)"')
_PART = re.compile(
    r"""(?P<space>\s+)
    | (?P<text>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*"|`[^`]*`|[^\W\d]\w*)
    | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
    | (?P<sign>[<>=!|:]{2}|[-+*/%<>=!|&^~(),.])""",
    re.VERBOSE,
)


def matching(frame: pl.DataFrame, condition: str, what: str) -> NDArray[np.bool_]:
    """[rows] bool: where the SQL `condition` over the frame's columns is true. Raises VlmixError, which begins with
    `what`, for one that is not admitted or not true or false for each row."""
    shown = repr(condition if len(condition) <= 200 else f"{condition[:200]}…")
    if problem := _problem(condition):
        raise VlmixError(f"{what}: {shown}: {problem}")
    try:
        result = frame.select(pl.sql_expr(condition).alias("match"))["match"]
    # A panic is a BaseException and no Exception.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError, ValueError) as error:
        if isinstance(error, pl.exceptions.ColumnNotFoundError) and (name := _QUOTED.search(str(error))):
            near = nearest(name[1], frame.columns)
            raise VlmixError(f"{what}: {shown}: there is no column {name[1]!r}{near}") from None
        why = (str(error).splitlines() or [type(error).__name__])[0][:500]
        raise VlmixError(f"{what}: {shown}: {why}; columns are {', '.join(frame.columns)}") from None
    if result.dtype != pl.Boolean or len(result) not in (1, len(frame)):
        raise VlmixError(f"{what}: {shown} is not a condition that is true or false for each sample")
    match = result.fill_null(False).to_numpy()
    return np.broadcast_to(match, len(frame)).copy() if len(match) != len(frame) else match


def _problem(condition: str) -> str:
    """Why a condition is not given to polars, "" if it is."""
    if len(condition) > LONGEST:
        return f"it has {len(condition):,} characters, at most {LONGEST:,} are taken; give ids as a file with --by"
    parts, at = [], 0
    while at < len(condition):
        found = _PART.match(condition, at)
        if found is None:
            return f"{condition[at]!r} at character {at} is no part of a condition"
        if found.lastgroup != "space":
            parts.append((str(found.lastgroup), found[0]))
        at = found.end()
        if condition[found.start() : at + 1] in ("--", "/*"):
            return "it holds a comment"
        if found.lastgroup == "name" and condition[at : at + 1] == "'":
            return f"{found[0]} before a string is not taken"
    return _too_much(_without_lists(parts)) or _forbidden(parts)


def _without_lists(parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The parts with the plain values in the brackets behind an IN taken out."""
    kept: list[tuple[str, str]] = []
    position = 0
    while position < len(parts):
        kept.append(parts[position])
        position += 1
        if parts[position - 1][1].lower() == "in" and parts[position : position + 1] == [("sign", "(")]:
            end = position + 1
            while end < len(parts) and (parts[end][0] in ("text", "number") or parts[end][1] in (",", "-")):
                end += 1
            if parts[end : end + 1] == [("sign", ")")]:
                position = end + 1
    return kept


def _too_much(parts: list[tuple[str, str]]) -> str:
    remedy = "write a long choice as column IN (value, value, …)"
    if len(parts) > MOST_PARTS:
        return f"it has {len(parts):,} parts, at most {MOST_PARTS:,} are taken; {remedy}"
    if (length := sum(len(text) for _, text in parts)) > LONGEST_TEXT:
        return f"it has {length:,} characters outside lists, at most {LONGEST_TEXT:,} are taken; {remedy}"
    return ""


def _forbidden(parts: list[tuple[str, str]]) -> str:
    for number, (kind, text) in enumerate(parts[:-1]):
        after, then = parts[number + 1][1], parts[number + 2 : number + 3]
        name = text.strip('"`').lower()
        if kind == "name" and after == "(" and name not in (FUNCTIONS if text[0] in '"`' else FUNCTIONS | _WORDS):
            return f"the function {name} is not admitted; admitted are {', '.join(sorted(FUNCTIONS))}"
        if kind == "name" and after == "(" and then == [("sign", ")")]:
            return f"{name}() has nothing in its brackets"
    return ""
