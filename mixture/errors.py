"""Errors that a user can act on."""

import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


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
    names = [name for name in known if name.lower() == word.lower()]
    names = names or parts.get(word) or get_close_matches(word, known, n=1)
    names = names or [name for part in get_close_matches(word, parts, n=1) for name in parts[part]]
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else f"; known: {', '.join(known)}"


def abridged(text: str, most: int = 120) -> str:
    """`text` for a message: printable, and cut in the middle if it is longer than `most` characters."""
    plain = text if text.isprintable() else ascii(text)[1:-1]
    return plain if len(plain) <= most else f"{plain[: most // 2]}…{plain[-most // 4 :]}"


def fault(error: BaseException, file: str | None = None) -> str:
    """An unexpected exception in one line, with the place where it was raised: in `file` if that is on its way."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames
    what = abridged(f"{type(error).__name__}: {error}".partition("\n")[0], 200)
    return f"{what} ({Path(own[-1].filename).name}, line {own[-1].lineno})"
