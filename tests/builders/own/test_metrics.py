"""Metrics against numbers from elsewhere."""

import pytest

from vlmix.builders.own.metrics import anls, contains, exact


@pytest.mark.parametrize(
    ("text", "answer", "same"),
    [
        ("Red.", "red", True),
        (" red\n", "Red", True),
        ("red . ", "red", True),
        ("STRASSE", "Straße", True),
        ("red..", "red", False),
        ("red!", "red", False),
        ("a red one", "red", False),
        ("3.5", "35", False),
        ("", "red", False),
    ],
)
def test_exact_leaves_case_outer_space_and_one_full_stop_aside(text: str, answer: str, same: bool) -> None:
    assert exact(text, answer) == exact(answer, text) == same


@pytest.mark.parametrize(
    ("text", "answer", "there"),
    [
        ("It is a Red fern.", "red fern", True),
        ("It is a red\nfern", "red fern.", True),
        ("reddish", "red", False),
        ("infrared", "red", False),
        ("It costs $5", "$5", True),
        ("It costs $50", "$5", False),
        ("C++ and C", "C++", True),
        ("这朵花是红色的。", "红色", True),
        ("这朵花是红色的。", "蓝色", False),
        ("rouge", "rouge foncé", False),
        ("", "red", False),
    ],
)
def test_contains_asks_for_whole_words_where_words_are_spaced(text: str, answer: str, there: bool) -> None:
    assert contains(text, answer) == there


@pytest.mark.parametrize(
    ("text", "answers", "value"),
    [
        ("12.5 kg", ["12.5kg"], 0.8571428571428572),
        ("The  Moon ", ["the moon"], 1.0),
        ("redd", ["red", "blue"], 0.75),
        ("a fern plant", ["fern"], 0.0),
        ("", ["x"], 0.0),
        ("yes", ["no"], 0.0),
        ("ab", ["abcd"], 0.5),
        ("abc", ["abcdef", "abd"], 0.6666666666666667),
        ("Zürich", ["zurich"], 0.8333333333333334),
        ("colour: dark green", ["dark green"], 0.5555555555555556),
        ("  42", ["42"], 1.0),
        ("kitten sitting", ["sitting kitten"], 0.5714285714285714),
    ],
)
def test_anls_is_that_of_lmms_eval(text: str, answers: list[str], value: float) -> None:
    """What `anls` of lmms_eval/api/metrics.py 0.7.3 gave."""
    assert max(anls(text, answer) for answer in answers) == pytest.approx(value, abs=1e-12)
