"""The card, read back by a YAML parser and a Markdown parser."""

import msgspec
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from vlmix.mixture.dataset.card import card
from vlmix.mixture.dataset.manifest import Counts, Manifest, Parent, SourceInfo

HOSTILE = [
    "x\n\n# forged\n\n| a | b |\n",
    "a | b `|` c",
    "<script>alert(1)</script>",
    "&lt;b&gt; &copy; &#60;",
    "![x](http://evil/x.png) [y](javascript:alert(1)) <http://evil> [z]: http://evil",
    "`code` *b* _i_ ~~s~~ $m$ \\",
    '"q": {a: [1]}\n---\nlicense: mit',
    "\x1b[31m\u202e\u2028\x85",
    "---",
    "#",
    "",
]


def of(name: str, kind: str = "mixture", **more: str) -> Manifest:
    info = SourceInfo(
        license=more.get("license", name),
        homepage=more.get("homepage", ""),
        counts=Counts(samples=1, samples_per_epoch=1),
    )
    plain = {"kind": kind, "name": name, "seed": 0, "recipe": {"prompts": "llava", "order": name}, "samples": 1}
    manifest = msgspec.convert({**plain, "sources": {}, "checksums": {}}, Manifest)
    return msgspec.structs.replace(manifest, sources={name: info}, parent=Parent(name, "0"), rejects={"x": {name: 1}})


def tokens(text: str) -> list[Token]:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True  # other parsers link everything
    flat: list[Token] = []
    for token in parser.parse(text):
        flat += [token, *(token.children or [])]
    return flat


def shape(manifest: Manifest) -> list[str]:
    """The kinds of Markdown elements of a card, without the text in them."""
    _, body = card(manifest, 1).split("\n---\n", 1)
    return [token.type for token in tokens(body) if token.type not in ("text", "text_special", "softbreak")]


@pytest.mark.parametrize("kind", ["mixture", "view"])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_a_card(name: str, kind: str) -> None:
    assert shape(of(name, kind)) == shape(of("plain", kind))
    lines = card(of(name, kind), 1).split("\n---\n", 1)
    assert yaml.safe_load(lines[0])["pretty_name"] == name
    assert yaml.safe_load(lines[0])["license"] == "other"
    assert not set("\x1b\u202e\u2028\x85") & set(card(of(name, kind), 1))


@pytest.mark.parametrize("name", ["a | b", "<b> & *c* _d_ e_f [g]", "x&lt;y", "back\\slash `code`"])
def test_names_read_as_they_are(name: str) -> None:
    _, body = card(of(name), 1).split("\n---\n", 1)
    inline = [token for token in tokens(body) if token.type == "inline"]
    cells = ["".join(part.content for part in token.children or []) for token in inline]
    assert cells[0] == name and cells.count(name) == 3  # the heading, the source and its license


@pytest.mark.parametrize(
    ("homepage", "link"),
    [
        ("https://example.org/a_b?c=1#d", "https://example.org/a_b?c=1#d"),
        ("https://example.org/(a)|b", "https://example.org/%28a%29%7Cb"),
        ("javascript:alert(1)", None),
        ("data:text/html,<script>", None),
        ("https://a b", None),
        ("https://a\n\n# x", None),
        ("", None),
    ],
)
def test_only_web_pages_are_linked(homepage: str, link: str | None) -> None:
    found = [token.attrs["href"] for token in tokens(card(of("x", homepage=homepage), 1)) if token.type == "link_open"]
    assert found == ([link] if link else [])
