"""Errors that a user can act on."""

from collections.abc import Iterable
from difflib import get_close_matches


class VlmixError(Exception):
    """Bad input or an impossible request. The message names the file, the record and the remedy; the command
    line prints it without a traceback and exits with 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the known word closest to `word`, else `"; known: a, b, c"`."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def abridged(text: str, most: int = 120) -> str:
    """`text` for a message: printable, and cut in the middle if it is longer than `most` characters."""
    plain = text if text.isprintable() else ascii(text)[1:-1]
    return plain if len(plain) <= most else f"{plain[: most // 2]}…{plain[-most // 4 :]}"
