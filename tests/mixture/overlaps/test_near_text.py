"""Texts that are nearly the same, against a comparison of all pairs; and texts that only look so."""

import pydoc_data.topics as topics
import re
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.overlaps.near_text import LONG, SEPARATOR, alike, are_near
from vlmix.mixture.overlaps.text import normalised
from vlmix.mixture.render import OCR_LINE, OPTION_LETTER, SHORT_ANSWER

PARAGRAPHS = [
    words
    for topic in sorted(topics.topics)
    for paragraph in topics.topics[topic].split("\n\n")
    if len(words := paragraph.split()) >= 40 and paragraph[:1].isalpha() and not any(map(str.isdigit, paragraph))
][:200]
"""Of Python's documentation: some of them are there twice."""
ANSWER = (
    "The picture shows a busy street market on a sunny morning, with people who walk between stalls of fruit and look "
    "at what is offered. A woman in a yellow coat holds a basket and talks to the seller, while a dog rests in the "
    "shade below the table and two children on bicycles pass behind them."
)


def said(*turns: str) -> str:
    return SEPARATOR.join(map(normalised, turns))


def are_alike(*texts: str) -> bool:
    found = len(set(alike(enumerate(texts), np.zeros(len(texts), np.int64)).tolist())) == 1
    assert len(texts) > 2 or found == are_near(*texts)
    return found


def partition(labels: NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("busy", "buzy"),
        ("basket", "bag"),
        ("fruit and", "fruit, and"),
        ("behind them.", "behind them. It is a lively scene."),
        ("on a sunny morning, with", "with"),
        ("shows", "“shows”"),
    ],
)
def test_a_small_edit_of_a_long_answer_is_near(old: str, new: str) -> None:
    assert are_alike(said("Describe it.", ANSWER), said("Describe it.", ANSWER.replace(old, new)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("What color is the car?", "Red"), ("What colour is the bus?", "Red")),
        (("How many cats?", "2"), ("How many dogs?", "2")),
        (("How many cats?", "2"), ("How many cats?", "3")),
        (("Is it 1.5 or 15?", "No"), ("Is it 15 or 1.5?", "No")),
        (("How?", "?"), ("How?", "!")),
        (("How?", ""), ("How?", "C")),
        (("C", "C++"), ("C", "C#")),
        (("是猫吗", "是"), ("是狗吗", "是")),
        (("यह क्या है", "कि"), ("यह क्या है", "की")),
        (("Describe it.", ANSWER), ("Describe it.", ANSWER.replace("two", "three"))),
        (("Describe it.", f"{ANSWER} It is 7:15."), ("Describe it.", f"{ANSWER} It is 7:45.")),
        (("Describe it.", ANSWER), ("Describe it.", ANSWER.replace("that", "not").replace("what is", "what is not"))),
        (("Describe it.", ANSWER), ("What is it about?", ANSWER)),
        (("Describe it.", ANSWER), ("Describe it.", ANSWER, "Is it day?", "Yes")),
        (("a", ANSWER, "Is it day?", "Yes"), ("a", ANSWER, "Is it day?", "Nearly")),
        (("a", ANSWER, "b", ANSWER), ("a", ANSWER, "b", " ".join(reversed(ANSWER.split())))),
        ((f"{ANSWER} Who rests?", "Dog"), (f"{ANSWER} Who talks?", "Dog")),
        (("a", "ha " * 30), ("a", "ha " * 60)),
    ],
)
def test_what_differs_in_what_it_says_is_not_near(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert not are_alike(said(*first), said(*second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((f"Is it red?\n{SHORT_ANSWER}", "Yes"), ("<image>\nIs it red", "Yes.")),
        (("Which?\nA. a\nB. b", "A"), (f"Which?\nA. a\nB. b\n{OPTION_LETTER}", "A")),
        ((f"What is it?\n{OCR_LINE}stop, go\n{SHORT_ANSWER}", "Stop"), ("What is it?", "stop")),
        (("这是什么？", "一只猫。"), ("这是什么", "一只猫")),
        (("", ""), ("", "")),
    ],
)
def test_prompts_and_punctuation_make_no_difference(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert are_alike(said(*first), said(*second))


def test_recognized_words_do_not_make_questions_alike() -> None:
    tokens = OCR_LINE + ", ".join(f"word{'x' * number}" for number in range(60))
    assert not are_alike(said(f"Which brand?\n{tokens}", ANSWER), said(f"Which shop?\n{tokens}", ANSWER))


def edited(words: list[str], edits: int, rng: np.random.Generator) -> str:
    changed = words.copy()
    for place in rng.choice(len(words), edits, replace=False):
        changed[place] = "".join(rng.choice(list("bcdfgh"), 9))
    return " ".join(changed)


def by_all_pairs(texts: list[str]) -> NDArray[np.int64]:
    """Labels of texts of one turn that share eight tenths of their runs of three words, every pair compared."""
    words = [[word.strip("\"'`“”‘’.,;:!?") for word in text.split()] for text in texts]
    runs = [Counter(zip(each, each[1:], each[2:])) for each in [[w for w in each if w] for each in words]]
    near = [
        (a, b)
        for a, b in combinations(range(len(texts)), 2)
        if (runs[a] & runs[b]).total() * 10 >= 8 * (runs[a] | runs[b]).total()
    ]
    graph = coo_array((np.ones(len(near)), tuple(np.array(near).T)), shape=(len(texts), len(texts)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def test_the_same_are_found_as_by_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    telling = re.compile(r"\b(not?|nor|none|one|two|three|without|left|right|never|cannot|neither)\b|n't", re.I)
    plain = [words for words in PARAGRAPHS if not telling.search(" ".join(words))][:40]
    texts = [normalised(edited(words, edits, rng)) for words in plain for edits in (0, 1, 2, 3, 4, 5)]
    found = partition(alike(enumerate(texts), np.zeros(len(texts), np.int64)))
    assert found == partition(by_all_pairs(texts))
    assert 40 < len(found) < len(texts) - 40  # of both there are many


def test_order_and_other_groups_make_no_difference() -> None:
    rng = np.random.default_rng(1)
    texts = [said("Tell me.", edited(words, edits, rng)) for words in PARAGRAPHS for edits in (0, 1, 2, 4)]
    groups = rng.integers(0, 3, len(texts)) * 10**12 - 5
    labels = alike(enumerate(texts), groups)
    order = rng.permutation(len(texts))
    again = alike(enumerate([texts[number] for number in order]), -groups[order])
    assert partition(labels[order]) == partition(again)
    assert 3 < len(set(labels.tolist())) < len(texts)
    for group in set(groups.tolist()):
        mine = np.flatnonzero(groups == group)
        alone = alike(enumerate([texts[number] for number in mine]), np.zeros(len(mine), np.int64))
        assert partition(labels[mine]) == partition(alone)
        assert not set(labels[mine]) & set(labels[groups != group])


def test_many_texts_from_one_template() -> None:
    rng = np.random.default_rng(2)
    words = (ANSWER + ANSWER.replace("two", "some")).split()
    telling = words.index("two")
    texts = []
    for number in range(600):
        changed = words.copy()
        changed[(number * 7) % telling] = "".join(rng.choice(list("bcdfgh"), 9))
        texts.append(said("Describe it.", " ".join(changed)))
    assert len(set(texts)) == 600
    assert are_alike(*texts)


def test_texts_of_a_megabyte() -> None:
    turns = [turn for words in 20 * PARAGRAPHS for turn in ("And then? \ud800", " ".join(words))]
    other, another = turns.copy(), turns.copy()
    other[1] += " really"
    another[0] = "And when? \ud800"
    texts = [
        said(*turns),
        said(*other),
        said(*another),
        "\udfff",
        "x" * 2**20,
        "y" * 2**20,
        "猫" * 2**18,
        "猫" * (2**18 - 1),
    ]
    assert len(texts[0]) > 2**20
    labels = alike(enumerate(texts), np.zeros(len(texts), np.int64)).tolist()
    assert labels[0] == labels[1]
    assert labels[6] == labels[7]
    assert len(set(labels)) == 6


def test_long_begins_at_its_number_of_words() -> None:
    words = [chr(97 + number % 26) * (1 + number // 26) for number in range(LONG)]
    changed = ["new", *words[1:]]
    assert are_alike(said("", " ".join(words)), said("", " ".join(changed)))
    assert not are_alike(said("", " ".join(words[:-1])), said("", " ".join(changed[:-1])))


def test_no_samples() -> None:
    assert alike(enumerate([]), np.empty(0, np.int64)).shape == (0,)


def test_without_rensa_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(VlmixError, match="needs rensa: pip install"):
        are_alike(said("Describe it.", ANSWER), said("Describe it.", ANSWER + " Indeed so."))
