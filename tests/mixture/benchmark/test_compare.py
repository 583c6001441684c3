"""Differences against scipy's paired test, planted differences, seeds, and answers to other questions."""

import math

import numpy as np
import pytest
from msgspec import structs
from scipy import stats

from tests.mixture.benchmark.made import values_of
from vlmix.mixture.benchmark.compare import Run, compare, difference, holm, mean_score, relative
from vlmix.mixture.benchmark.intervals import interval
from vlmix.mixture.benchmark.wording import difference_table, notes, verdict
from vlmix.mixture.errors import VlmixError


def run(value: object, seed: int = 0, **more: object) -> Run:
    return Run(seed, {"x": values_of(value, **more)})  # type: ignore[arg-type]


def test_a_paired_difference_is_that_of_scipys_paired_t_test() -> None:
    random = np.random.default_rng(0)
    a = (random.random(300) < 0.6) * 1.0
    b = np.where(random.random(300) < 0.8, a, random.random(300) < 0.7) * 1.0
    found, official = difference("x", [run(a)], [run(b)]), stats.ttest_rel(b, a)
    within = official.confidence_interval()
    assert found.difference.p == pytest.approx(official.pvalue, abs=1e-9)
    assert (found.difference.low, found.difference.high) == pytest.approx((100 * within.low, 100 * within.high))
    assert (found.a, found.b, found.questions, found.asked) == (100 * a.mean(), 100 * b.mean(), 300, 300)


def test_pairing_finds_what_two_intervals_hide() -> None:
    random = np.random.default_rng(1)
    hard = random.random(1000)
    a, b = (hard < 0.60) * 1.0, (hard < 0.63) * 1.0
    found = difference("x", [run(a)], [run(b)])
    assert found.difference.p < 0.001 and found.difference.low > 0
    one, other = (mean_score([run(each)], "x") for each in (a, b))
    assert one.high > other.low, "the intervals of the scores overlap"


def test_the_number_of_questions_needed_has_the_power_it_says() -> None:
    """So many questions with this spread find the difference in 8 of 10 cases: the power of a t test, by scipy."""
    random = np.random.default_rng(2)
    a = (random.random(400) < 0.6) * 1.0
    b = np.where(random.random(400) < 0.2, random.random(400) < 0.75, a) * 1.0
    found = difference("x", [run(a)], [run(b)])
    assert found.needed is not None and found.needed > 100
    apart = (b - a).mean() / (b - a).std(ddof=1) * found.needed**0.5
    edge = stats.t.ppf(0.975, found.needed - 1)
    assert stats.nct.sf(edge, found.needed - 1, apart) == pytest.approx(0.8, abs=0.005)


def test_equal_answers_are_no_difference() -> None:
    a = run([0.0, 1.0, 1.0, 0.0])
    found = difference("x", [a], [a])
    assert (found.difference.value, found.difference.p, found.needed) == (0.0, 1.0, 0)
    assert verdict(found.difference, 1.0) == "equal"


@pytest.mark.parametrize("count", [1, 5, 6, 20])
def test_where_every_question_differs_alike_the_sign_test_decides(count: int) -> None:
    found = difference("x", [run([0.0] * count)], [run([1.0] * count)])
    official = stats.binomtest(count, count).pvalue
    assert found.difference.p == pytest.approx(official)
    assert found.difference.high == 100 and (found.difference.low > 0) == (official < 0.05)


def test_models_that_are_the_same_on_every_question_may_differ_on_others() -> None:
    """As many images of others as none of so many leaves open, by the exact interval."""
    exact = stats.binomtest(0, 40).proportion_ci(0.95, "exact")
    for value in ([1.0] * 40, [1.0, 0.0] * 20):
        for seeds in (1, 3):
            runs = [run(value, seed) for seed in range(seeds)]
            found = compare(runs, runs)
            (only,) = found.differences
            assert (only.difference.low, only.difference.high) == pytest.approx((-100 * exact.high, 100 * exact.high))
            assert only.difference.p == 1 and difference_table(found)[1][0][5] == "equal"
            assert found.overall is not None and found.overall.high == pytest.approx(1e4 * exact.high / only.a)
    crossed = compare([run([1.0, 0.0] * 20)], [run([0.0, 1.0] * 20)])
    assert difference_table(crossed)[1][0][5] == "no difference shown", "the same score, and all answers differ"


def test_one_seed_of_a_model_has_the_interval_of_its_score() -> None:
    """Where a formula has it: 1 of 60 answers is wrong, and the interval does not end above 100."""
    only = run([0.0] + [1.0] * 59)
    found, within = mean_score([only], "x"), interval(only.values["x"])
    assert within is not None and (found.low, found.high) == (within.low, within.high) and found.high < 100


def test_answers_to_other_questions_are_compared_on_what_both_have_and_it_is_said() -> None:
    a = run([1.0, 0.0, 1.0, 0.0], questions="abcd", answered=[True, True, True, False])
    b = run([1.0, 1.0, 1.0], questions="bcx")
    found = compare([a], [b])
    (only,) = found.differences
    assert (only.questions, only.asked, only.a, only.b) == (2, 5, 50.0, 100.0)
    assert difference_table(found)[1][0][6] == "2 of 5"
    assert any("the questions that all answered (x: 2 of 5)" in note for note in notes(found))
    with pytest.raises(VlmixError, match="x: no question was answered by all"):
        compare([a], [run([1.0], questions="z")])


def test_other_questions_of_the_same_ids_are_told() -> None:
    """As of two tables whose rows are numbered."""
    one = Run(0, {"x": values_of([1, 0, 1], ["a.jpg", "b.jpg", "b.jpg"])})
    two = Run(0, {"x": values_of([1, 1, 1], ["a.jpg", "b.jpg", "c.jpg"])})
    with pytest.raises(
        VlmixError, match="x: question 2 is about b.jpg in one and about c.jpg in another, so it is not"
    ):
        compare([one], [two])
    moved = Run(0, {"x": values_of([0, 1], ["b.jpg", "a.jpg"], questions=[1, 0])})
    assert compare([one], [moved]).differences[0].questions == 2, "the order is no matter"


def test_models_without_a_common_benchmark_are_told() -> None:
    with pytest.raises(VlmixError, match="nothing to compare: one has x, the other y"):
        compare([run([1.0])], [Run(0, {"y": values_of([1.0])})])


def test_pairs_of_seeds_take_out_what_both_share() -> None:
    """Two models whose seeds move them together differ surely; the same scores with the seeds crossed do not."""
    random = np.random.default_rng(3)
    hard, moves = random.random(4000), (-0.06, 0.0, 0.06)
    a = [run((hard < 0.5 + move) * 1.0, seed) for seed, move in enumerate(moves)]
    b = [run((hard < 0.52 + move) * 1.0, seed) for seed, move in enumerate(moves)]
    paired = difference("x", a, b)
    crossed = difference("x", a, [Run(2 - each.seed, each.values) for each in b])
    assert paired.difference.seeds == 3 and paired.difference.p < 0.01 < 0.3 < crossed.difference.p
    assert crossed.needed is None, "no number of questions helps where seeds differ by more"
    other = difference("x", a, [Run(each.seed + 10, each.values) for each in b])
    assert other.difference.p > 0.3, "seeds that are no pairs"


def test_more_seeds_narrow_the_interval_of_a_mean() -> None:
    random = np.random.default_rng(4)
    runs = [run((random.random(500) < rate) * 1.0, seed) for seed, rate in enumerate(random.normal(0.5, 0.03, 8))]
    widths = [mean_score(runs[:count], "x") for count in (2, 4, 8)]
    assert widths[0].stderr > 0 and widths[0].high - widths[0].low > widths[2].high - widths[2].low
    scores = [100 * np.asarray(each.values["x"].table["value"]).mean() for each in runs]
    over_seeds = stats.sem(scores)
    assert widths[2].stderr >= 0.99 * over_seeds, "never less than seeds alone show"


def test_a_relative_score_holds_the_spread_of_the_full_mixture() -> None:
    random = np.random.default_rng(5)
    part = [run((random.random(2000) < 0.45) * 1.0, seed) for seed in range(3)]
    steady = [run((random.random(2000) < 0.5) * 1.0, seed) for seed in range(3)]
    shaken = [run((random.random(2000) < rate) * 1.0, seed) for seed, rate in enumerate((0.4, 0.5, 0.6))]
    quiet, loud = relative(part, steady, ["x"]), relative(part, shaken, ["x"])
    assert loud.stderr > 3 * quiet.stderr
    expected = 100 * np.mean([mean_score([each], "x").value for each in part]) / mean_score(steady, "x").value
    assert quiet.value == pytest.approx(expected)
    same = relative(steady, steady, ["x"])
    assert same.value == 100 and same.stderr == pytest.approx(0, abs=1e-9)


def test_a_model_that_answers_nothing_right_has_an_interval() -> None:
    found = mean_score([run([0.0] * 30, seed) for seed in range(3)], "x")
    exact = stats.binomtest(0, 30).proportion_ci(0.95, "exact")
    assert found.high == pytest.approx(100 * exact.high)
    assert relative([run([0.0] * 30)], [run([1.0, 0.0] * 15)], ["x"]).high > 5


def test_the_overall_difference_is_the_mean_of_relative_ones() -> None:
    a = Run(0, {"x": values_of([1.0, 0.0] * 50), "y": values_of([1.0, 1.0, 0.0, 0.0] * 25, summed=True)})
    b = Run(0, {"x": values_of([1.0, 1.0, 1.0, 0.0] * 25), "y": values_of([1.0, 0.0] * 50, summed=True)})
    whole = compare([a], [b]).overall
    assert whole is not None and whole.value == pytest.approx((50 + 0) / 2)
    zero = Run(0, {**b.values, "y": values_of([0.0] * 100)})
    found = compare([a], [zero])
    assert found.left_out == ["y"] and found.overall is not None and found.overall.value == pytest.approx(50)


def test_a_comparison_among_several_is_marked_by_all_of_them() -> None:
    random = np.random.default_rng(8)
    a, b = ({name: values_of((random.random(400) < rate) * 1.0) for name in "xy"} for rate in (0.5, 0.6))
    found = compare([Run(0, a)], [Run(0, b)])
    assert found.overall is not None and found.overall.p < 0.05
    among = structs.replace(found, overall_adjusted=0.2)
    assert [difference_table(each)[1][-1][5] for each in (found, among)] == ["higher", "no difference shown"]
    assert "all comparisons of the sweep" in notes(among)[0] and "sweep" not in notes(found)[0]


def test_holms_adjustment_is_that_of_statsmodels() -> None:
    """statsmodels 0.15, `multipletests(ps, method="holm")[1]`."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


def test_the_unpaired_case_is_welchs() -> None:
    """Disjoint questions cannot be paired; disjoint seeds are: the variance over seeds is the sum of both."""
    random = np.random.default_rng(6)
    hard = random.random(20_000)
    rates = random.normal(0.5, 0.05, 8)
    a = [run((hard < rate) * 1.0, seed) for seed, rate in enumerate(rates[:4])]
    b = [run((hard < rate) * 1.0, seed + 4) for seed, rate in enumerate(rates[4:])]
    scores = [[mean_score([each], "x").value for each in side] for side in (a, b)]
    expected = math.hypot(*(stats.sem(side) for side in scores))
    assert difference("x", a, b).difference.stderr == pytest.approx(expected, rel=0.05)


def test_an_interval_ends_where_scores_end() -> None:
    """Two seeds far apart reach beyond 0 and 100 by t; a ratio of grades may be above 100."""
    apart = [run([1.0] * right + [0.0] * (50 - right), seed) for seed, right in enumerate((20, 40))]
    found = mean_score(apart, "x")
    assert (found.low, found.high) == (0.0, 100.0)
    shaken = difference("x", apart, [Run(1 - each.seed, each.values) for each in apart]).difference
    assert (shaken.low, shaken.high) == (-100.0, 100.0)
    grades = [run([9.0] * right + [2.0] * (50 - right), seed, weight=[5.0] * 50) for seed, right in enumerate((20, 40))]
    assert mean_score(grades, "x").high > 200
    assert relative(apart, [run([1.0, 0.0] * 25, seed) for seed in range(2)], ["x"]).low == 0.0


def test_means_of_the_same_scores_in_another_order_are_no_difference() -> None:
    scores = [[1.0] * right + [0.0] * (7 - right) for right in (1, 2, 4)]
    a = [run(each, seed) for seed, each in enumerate(scores)]
    b = [run(each, seed) for seed, each in enumerate([scores[2], scores[0], scores[1]])]
    found = difference("x", a, b)
    assert (found.difference.value, found.difference.p, found.needed) == (0.0, 1.0, 0)
