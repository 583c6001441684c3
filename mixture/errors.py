"""Errors that a user can act on."""

from collections.abc import Iterable
from difflib import get_close_matches


class VlmixError(Exception):
    """Bad input or an impossible request. The message names the file, the record and the remedy; the command
    line prints it without a traceback and exits with 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known names close to `word`, whole or in a part between underscores; where none
    is, `"; known: a, b, c"`."""
    known = sorted(known)
    parts: dict[str, list[str]] = {}
    for name in known:
        for part in name.split("_"):
            parts.setdefault(part, []).append(name)
    names = parts.get(word) or get_close_matches(word, known, n=1)
    names = names or [name for part in get_close_matches(word, parts, n=1) for name in parts[part]]
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else f"; known: {', '.join(known)}"


def abridged(text: str, most: int = 120) -> str:
    """`text` for a message: printable, and cut in the middle if it is longer than `most` characters."""
    plain = text if text.isprintable() else ascii(text)[1:-1]
    return plain if len(plain) <= most else f"{plain[: most // 2]}…{plain[-most // 4 :]}"
