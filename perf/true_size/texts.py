"""Texts drawn from pools, and JSON files written item by item."""

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np

THINGS = "man woman dog cat bus train table clock plate pizza horse umbrella boat zebra laptop bench kite skateboard"
LOOKS = "red blue small white tall old wooden green shiny empty striped yellow large brown black open plastic wet"
PLACES = "street kitchen field beach room sidewalk counter grass wall window water fence snow shelf road tree"
ASKS = (
    "What color is the {look} {thing}?",
    "Is the {thing} {look}?",
    "How many {thing}s are on the {place}?",
    "What is the {thing} next to the {place} doing?",
    "Is there a {look} {thing} in the {place}?",
    "Where is the {thing}?",
    "What kind of {thing} is this?",
    "Does the {thing} look {look} to you?",
)
SAYS = (
    "a {look} {thing} on the {place}",
    "the {thing} is {look}",
    "{look} {thing}",
    "a {thing} near the {look} {place} ",  # 7 % of the real phrases have outer white space
    "The {thing} is next to the {place}.",
    "{thing} standing by a {look} {place}",
    "A {look} {place}",
    "part of a {look} {thing}\\n",
)
SENTENCES = (
    "The image shows a {look} {thing} in front of the {place}, and several people walk past it.",
    "There is also a {thing} on the {place}, which suggests that the picture was taken during the day.",
    "A {look} {thing} stands out among the other objects.",
    "You could try to put the {thing} on the {place} first, then look at the {look} one again.",
    "In the background, the {place} is partly hidden by a {thing}, so only its {look} side is visible.",
    "That depends on how {look} the {thing} is.",
)


def texts(forms: tuple[str, ...], count: int, rng: Random) -> list[str]:
    words = THINGS.split(), LOOKS.split(), PLACES.split()
    things, looks, places = (rng.choices(w, k=count) for w in words)
    said = zip(rng.choices(forms, k=count), things, looks, places)
    return [form.replace("{thing}", a).replace("{look}", b).replace("{place}", c) for form, a, b, c in said]


def paragraphs(rng: Random, count: int, least: int, most: int) -> list[str]:
    """Texts of `least` to `most` sentences, escaped as in JSON, without the quotes."""
    pool = texts(SENTENCES, 5_000, rng)
    return [json.dumps(" ".join(rng.choices(pool, k=rng.randint(least, most))))[1:-1] for _ in range(count)]


def spread(total: int, over: int, rng: Random) -> np.ndarray:
    """`total` in `over` parts of at least 1, drawn evenly."""
    drawn = np.random.default_rng(rng.getrandbits(32)).integers(over, size=total - over)
    return 1 + np.bincount(drawn, minlength=over)


def write(path: Path, head: str, items: Iterable[str], tail: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", buffering=2**20) as file:
        rest = iter(items)
        file.write(head + next(rest))
        for item in rest:
            file.write(", ")
            file.write(item)
        file.write(tail)
