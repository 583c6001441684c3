"""Halves of surrogate pairs in JSON: Python writes them for text cut inside an emoji, and no text can hold them."""

import re

_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u[dD][89a-fA-F]..|.)", re.DOTALL)


def replace_lone_surrogates(json: bytes) -> tuple[bytes, int]:
    """The JSON with lone surrogate escapes replaced by U+FFFD, and how many there were."""
    count = 0

    def replace(match: re.Match[bytes]) -> bytes:
        nonlocal count
        lone = len(match[0]) == 6 and match[0][2:3] in b"dD"
        count += lone
        return rb"\ufffd" if lone else match[0]

    return _ESCAPE.sub(replace, json), count
