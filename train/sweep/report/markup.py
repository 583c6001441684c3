"""HTML for a page that stands alone: no script, nothing fetched, well-formed as XML, light or dark as the reader's
system is."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

from vlmix.train.sweep.report.canvas import DPI

SOURCE_COLOURS = 16

_HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#f0e442")
_STRIPES = "background-image: repeating-linear-gradient(45deg, rgba(0,0,0,.45) 0 2px, transparent 2px 6px);"
_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1f24; --muted: #59636e; --line: #d5dae0; --band: #f4f6f8;
  --bright: #0058a3; }
@media (prefers-color-scheme: dark) { :root { --ground: #161b22; --ink: #e6edf3; --muted: #9aa4af; --line: #30363d;
  --band: #1d242d; --bright: #79c0ff; } }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
.lead { font-size: 1.2rem; margin: 0 0 .5rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption, caption { color: var(--muted); font-size: .875rem; max-width: 46rem; text-align: left; }
figcaption { margin-top: .25rem; }
caption { padding: 0 0 .35rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--bright); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td, thead th { white-space: nowrap; }
th.n, td.n { text-align: right; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 7rem; max-width: 24rem; overflow-wrap: break-word; }
tbody tr:hover { background: var(--band); }
.facts td { white-space: normal; overflow-wrap: anywhere; }
.bar { display: flex; gap: 1px; width: 16rem; height: 1.1rem; margin-top: .15rem; }
.bar span { flex: 0 1 0; min-width: 0; }
.swatch { display: inline-block; width: .75em; height: .75em; margin-right: .4em; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
details { margin: .4rem 0; }
summary { cursor: pointer; }
@media print { .scroll { overflow: visible; } tr, figure { break-inside: avoid; } }
"""


class Markup(str):
    """HTML that is safe as it stands; every other string is escaped."""

    __slots__ = ()


def text(item: str) -> str:
    """Escaped; characters that XML forbids or that turn the direction of writing become spaces."""
    return item if isinstance(item, Markup) else escape("".join(c if c.isprintable() else " " for c in item))


def element(tag: str, content: str) -> Markup:
    return Markup(f"<{tag}>{text(content)}</{tag}>")


def bullets(items: Iterable[str]) -> Markup:
    return Markup("\n".join(["<ul>", *(element("li", item) for item in items), "</ul>"]))


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1, kind: str = "") -> Markup:
    """A real table that scrolls by itself where it is wide. The first `words` columns are words, the others numbers;
    the first column heads its row."""

    def side(column: int) -> str:
        return ' class="n"' if column >= words else ""

    heads = "".join(f'<th scope="col"{side(at)}>{text(name)}</th>' for at, name in enumerate(header))
    body = []
    for first, *others in rows:
        cells = "".join(f"<td{side(at)}>{text(cell)}</td>" for at, cell in enumerate(others, 1))
        body.append(f'<tr><th scope="row"{side(0)}>{text(first)}</th>{cells}</tr>')
    return Markup(
        f'<div class="scroll {kind}" role="region" aria-label="{text(caption)}" tabindex="0"><table>\n'
        f"<caption>{text(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def figure(light: bytes, dark: bytes, alt: str, caption: str) -> Markup:
    """A PNG for light pages and its twin for dark ones, in the file itself."""
    for_light, for_dark = (f"data:image/png;base64,{b64encode(png).decode()}" for png in (light, dark))
    width, height = (int.from_bytes(light[at : at + 4], "big") * 96 // DPI for at in (16, 20))
    return Markup(
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{for_dark}" />'
        f'<img src="{for_light}" alt="{text(alt)}" width="{width}" height="{height}" /></picture>\n'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def swatch(number: int) -> Markup:
    """The colour of source `number`; those beyond the eighth are striped."""
    return Markup(f'<span class="swatch s{number % SOURCE_COLOURS}"></span>')


def bar(shares: Sequence[tuple[int, str, float]]) -> Markup:
    """A stacked bar of (source number, name, share of 1); its text says the shares."""
    told = ", ".join(f"{name} {100 * part:.1f} %" for _, name, part in shares)
    parts = (
        f'<span class="s{number % SOURCE_COLOURS}" style="flex-grow:{part:.5f}" title="{text(name)}"></span>'
        for number, name, part in shares
    )
    return Markup(f'<div class="bar" role="img" aria-label="{text(told)}">{"".join(parts)}</div>')


def document(title: str, body: Iterable[str]) -> str:
    """The whole file. Its own policy forbids what it promises not to do."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8" />',
            '<meta name="viewport" content="width=device-width, initial-scale=1" />',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\" />",
            f"<title>{text(title)}</title>",
            f"<style>{_STYLE}{_source_styles()}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _source_styles() -> str:
    return "".join(
        f".s{number} {{ background-color: {_HUES[number % len(_HUES)]}; {_STRIPES if number >= len(_HUES) else ''}}}\n"
        for number in range(SOURCE_COLOURS)
    )
