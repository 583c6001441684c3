"""Text from data, as it may be shown: on a terminal, in JSON for people, in Markdown."""

import re
from urllib.parse import quote

# C0 and C1 controls and DEL; marks, embeddings, overrides and isolates that turn the direction of text; the line and
# paragraph separators; halves of surrogate pairs (file names that are not UTF-8), which no stream can encode.
_HIDDEN = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_ALL = re.compile(f"[{_HIDDEN}]")
_BUT_LINES = re.compile(rf"(?![\n\t])[{_HIDDEN}]")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~#$!]|(?<!\w)_|_(?!\w)|&(?=[\w#])")
_LINK = re.compile(r"https?://[!-~]+", re.IGNORECASE)


def visible(text: str, *, lines: bool = False) -> str:
    r"""`text` with every character that a terminal obeys instead of showing written as `\x1b` or `\u202e`. With
    `lines`, line feeds and tabs stay."""
    return (_BUT_LINES if lines else _ALL).sub(lambda match: _escape(match[0]), text)


def visible_json(text: str) -> str:
    """JSON that means the same, with what `visible` replaces as JSON's own escapes."""
    return _BUT_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def markdown(text: str) -> str:
    """`text` as one line of Markdown (in a paragraph, a heading or a table) that shows it and does nothing else."""
    return _MARKDOWN.sub(lambda match: "&amp;" if match[0] == "&" else f"\\{match[0]}", visible(text))


def markdown_code(text: str) -> str:
    """`text` as a span of code; not for a table, where `|` would end the cell."""
    shown = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown[:1] in ("`", "") or shown[-1:] == "`" else ""
    return f"{fence}{space}{shown}{space}{fence}"


def markdown_link(text: str, url: str) -> str:
    """`text` as a link if `url` is one of http or https, else `text` alone."""
    shown = markdown(text)
    return f"[{shown}]({quote(url, safe='/:?#@!$&+,;=%~-._')})" if is_link(url) else shown


def is_link(text: str) -> bool:
    """Whether `text` is an address of http or https, and nothing beside it."""
    return _LINK.fullmatch(text) is not None


def _escape(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"
