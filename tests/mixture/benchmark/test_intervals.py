"""Intervals against scipy, against formulas of papers, and where there is little to go by."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from tests.mixture.benchmark.made import values_of
from vlmix.builders import known_benchmarks
from vlmix.mixture.benchmark import intervals
from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.intervals import influence, interval, proportion
from vlmix.mixture.benchmark.values import Tallies, Values
from vlmix.mixture.errors import VlmixError


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 50), (1347, 2017)])
def test_proportions_of_questions_that_stand_alone_are_exact(hits: int, count: int) -> None:
    found = interval(values_of([1.0] * hits + [0.0] * (count - hits)))
    official = stats.binomtest(hits, count).proportion_ci(0.95, "exact")
    assert found is not None and found.method == "exact" and found.clusters == count
    assert (found.low, found.high) == pytest.approx((100 * official.low, 100 * official.high), abs=1e-9)


def test_a_bootstrap_agrees_with_that_of_scipy() -> None:
    shares = np.random.default_rng(1).random(400) ** 2
    found = interval(values_of(shares, clusters=range(400)))
    assert found is not None
    official = stats.bootstrap((shares,), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    width = 100 * (official.high - official.low)
    assert (found.low, found.high) == pytest.approx((100 * official.low, 100 * official.high), abs=0.05 * width)


def test_standard_errors_are_those_of_a_mean_and_of_its_clusters() -> None:
    """For clusters: equation 4 of Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), whose cross terms are
    written out here; and the factor for few clusters, which it leaves out."""
    random = np.random.default_rng(2)
    value, cluster = random.random(300), random.integers(0, 40, 300)
    assert influence(values_of(value)).stderr == pytest.approx(100 * value.std(ddof=1) / 300**0.5)
    apart = value - value.mean()
    crossed = sum(apart[i] * apart[j] for i in range(300) for j in range(300) if cluster[i] == cluster[j])
    count = len(set(cluster))
    expected = 100 * (crossed / 300**2 * count / (count - 1)) ** 0.5
    assert influence(values_of(value, clusters=cluster)).stderr == pytest.approx(expected)


def test_questions_of_one_image_are_no_news() -> None:
    value = np.random.default_rng(3).integers(0, 2, 50).astype(float)
    alone, together = values_of(value), values_of(np.repeat(value, 6), clusters=np.repeat(range(50), 6))
    assert influence(together).stderr == pytest.approx(influence(alone).stderr)
    found = interval(together)
    assert found is not None and found.clusters == 50
    assert found.high - found.low > 2 * (
        interval(values_of(np.repeat(value, 6))).high - interval(values_of(np.repeat(value, 6))).low
    )  # type: ignore[union-attr]


def test_strata_keep_their_sizes_and_the_variances_add() -> None:
    """MME: each task is a stratum of its own, and a sum's variance is the sum of variances."""
    random = np.random.default_rng(4)
    small, large = random.random(20), random.random(200)
    both = values_of([*small, *large], groups=["a"] * 20 + ["b"] * 200, summed=True)
    apart = [influence(values_of(each)).stderr for each in (small, large)]
    assert influence(both).stderr == pytest.approx(np.hypot(*apart))
    assert both.score() == pytest.approx(100 * (small.mean() + large.mean()))
    tasks = influence(both)
    assert 19 < tasks.freedom < 40, "few clusters hold most of the variance"


def test_f1_is_a_ratio_of_sums() -> None:
    random = np.random.default_rng(5)
    said, label = random.random(600) < 0.6, random.random(600) < 0.5
    tallies = Tallies()
    for number, (one, other) in enumerate(zip(said, label)):
        tallies.add_binary("", str(number), str(number // 6), bool(one), bool(other), group=str(number % 3))
    values = tallies.values()[""]
    expected = []
    for split in range(3):
        tp, fp, fn = (int((a & b)[split::3].sum()) for a, b in ((said, label), (said, ~label), (~said, label)))
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        expected.append(2 * precision * recall / (precision + recall))
    assert values.score() == pytest.approx(100 * np.mean(expected))
    # A jackknife over images: another way to the same standard error.
    clusters = [str(number) for number in range(100)]
    left = [values.of(pa.array([str(n) for n in range(600) if n // 6 != int(c)])).score() for c in clusters]
    jackknife = np.sqrt(99 / 100 * np.square(np.array(left) - np.mean(left)).sum())
    assert influence(values).stderr == pytest.approx(jackknife, rel=0.02)


def test_many_clusters_have_the_interval_that_a_bootstrap_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    value = np.random.default_rng(6).random(3000)
    normal = interval(values_of(value))
    monkeypatch.setattr(intervals, "_MANY", 10**9)
    drawn = interval(values_of(value))
    assert normal is not None and drawn is not None and (normal.method, drawn.method) == ("normal", "bootstrap")
    width = normal.high - normal.low
    assert (drawn.low, drawn.high) == pytest.approx((normal.low, normal.high), abs=0.05 * width)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.6])
def test_values_that_do_not_vary_have_the_interval_of_a_proportion(value: float) -> None:
    found = interval(values_of([value] * 30, clusters=np.repeat(range(10), 3)))
    low, high = proportion(10 * value, 10)
    assert found is not None and found.method == "exact"
    assert (found.low, found.high) == pytest.approx((100 * low, 100 * high))


def test_one_question_says_next_to_nothing_and_none_says_nothing() -> None:
    found = interval(values_of([1.0]))
    assert found is not None and (found.low, found.high) == pytest.approx((2.5, 100))
    assert interval(values_of([])) is None
    assert interval(values_of([0.0, 0.0], weight=[0.0, 0.0])) is None


def test_an_interval_holds_its_score_and_is_the_same_every_time() -> None:
    values = values_of(np.random.default_rng(7).random(90), clusters=np.repeat(range(9), 10))
    found = interval(values)
    assert found is not None and found == interval(values)
    assert found.low < values.score() < found.high


def test_a_score_with_little_that_is_wrong_has_the_interval_of_korn_and_graubard() -> None:
    """Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts"
    (Survey Methodology 24, 1998): 40 images of 5 questions, 3 answers on one image and 1 on another wrong."""
    wrong = np.zeros((40, 5))
    wrong[0, :3] = wrong[1, 0] = 1
    found = interval(values_of(1 - wrong.ravel(), clusters=np.repeat(range(40), 5)))
    share = 4 / 200
    variance = 40 / 39 * ((wrong.sum(1) - 5 * share) ** 2).sum() / 200**2
    size = share * (1 - share) / variance * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 39)) ** 2
    low, high = (stats.beta.ppf(p, share * size + a, (1 - share) * size + 1 - a) for p, a in ((0.025, 0), (0.975, 1)))
    assert found is not None and (found.method, found.clusters) == ("effective", 40)
    assert (found.low, found.high) == pytest.approx((100 - 100 * high, 100 - 100 * low))


def test_what_varies_less_than_rounding_does_not_vary() -> None:
    """0.3 and 0.1 + 0.2 are not the same number."""
    found = interval(values_of([0.3] * 20 + [0.1 + 0.2] * 20))
    same = interval(values_of([0.3] * 40))
    assert found is not None and same is not None and found.method == "exact"
    assert (found.low, found.high) == pytest.approx((same.low, same.high))


@pytest.mark.parametrize("cell", [float("nan"), float("inf"), None])
def test_a_file_with_a_value_that_is_no_number_is_refused(cell: float | None, tmp_path: Path) -> None:
    table = values_of([0.5, 1.0]).table
    at = table.schema.get_field_index("weight")
    pq.write_table(table.set_column(at, "weight", pa.array([1.0, cell], pa.float64())), tmp_path / "values.parquet")
    with pytest.raises(VlmixError, match=r"values\.parquet: no values of questions \(a cell is empty or not finite\)"):
        Values.read(tmp_path / "values.parquet")


def test_values_come_back_from_their_file(tmp_path: Path) -> None:
    values = values_of([0.5, 1.0], groups="ab", summed=True, answered=[True, False])
    values.write(tmp_path / "values.parquet")
    back = Values.read(tmp_path / "values.parquet")
    assert back.table.equals(values.table) and back.summed and back.score() == values.score()
    (tmp_path / "values.parquet").write_bytes(b"PAR1")
    with pytest.raises(VlmixError, match=r"values\.parquet: no values of questions"):
        Values.read(tmp_path / "values.parquet")


def test_a_machine_without_scipy_scores_and_says_that_there_is_no_interval(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU machine has what training needs."""
    gqa = known_benchmarks()["gqa"]
    question = gqa.questions(raw / "gqa")[0]
    answers = Answers([Answer(question_id=question.id, text="yes")])
    whole = gqa.scored(answers, raw / "gqa")
    monkeypatch.setattr(intervals, "find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    bare = gqa.scored(answers, raw / "gqa")
    assert bare.report.interval is None and bare.report.score == whole.report.score
    assert "no interval: scipy is not installed here" in bare.report.notes[-1]
    assert bare.values is not None and whole.values is not None and bare.values.table.equals(whole.values.table)
