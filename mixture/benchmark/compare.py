"""Comparisons of models on the same questions: differences and relative scores, with what other questions and other
seeds would change.

A model may have been trained several times; its score is then the mean over seeds. Two models are paired by question,
and by seed where both have it. An interval reaches sqrt(z² Q + t² S), of Q the variance over questions that all seeds
share, S that over seeds, t of as few degrees of freedom as there are seeds less one: of two seeds it is wide.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, structs

from vlmix.mixture.benchmark.intervals import (
    LEVEL,
    Influence,
    bounds,
    closed_interval,
    influence,
    most_of,
    normal_quantile,
    proportion,
    quantile,
)
from vlmix.mixture.benchmark.values import Floats, Values
from vlmix.mixture.errors import VlmixError

POWER = 0.8
"""Chance to tell a difference, for which questions are counted."""
ALPHA = 0.05


class Run(Struct, frozen=True):
    """What one trained model scored: `values` by benchmark. Runs of several models with the same `seed` are pairs."""

    seed: int
    values: Mapping[str, Values]


class Estimate(Struct, frozen=True, kw_only=True):
    """A number with its 95 % interval, and the two-sided `p` of its being 0. `seeds` is how many seeds the interval
    counts in; below 2 it is one over questions alone."""

    value: float
    low: float
    high: float
    stderr: float
    p: float
    seeds: int


class Difference(Struct, frozen=True, kw_only=True):
    """Score `b` minus score `a` on the `questions` that all runs answered, of `asked`.

    `adjusted` is its p among the differences that it is shown with (see `holm`), by which it is marked. `needed` is how
    many such questions would tell a difference of this size in 8 of 10 cases, None if no number would, as seeds differ
    by more, and 0 if there is no difference.
    """

    benchmark: str
    a: float
    b: float
    difference: Estimate
    adjusted: float
    questions: int
    asked: int
    needed: int | None


class Comparison(Struct, frozen=True, kw_only=True):
    """Two models on all benchmarks that both have, by name.

    `overall` is the mean relative difference in percent over benchmarks in which both score above 0, None without one;
    `left_out` are the others, `unshared` benchmarks that one model has alone. `overall_adjusted` is the p of `overall`
    among several comparisons, None for one alone.
    """

    differences: list[Difference]
    overall: Estimate | None
    left_out: list[str]
    unshared: list[str]
    overall_adjusted: float | None = None


class _Term(NamedTuple):
    """What one run's score in one benchmark weighs in a number. `side` groups the runs of one model."""

    side: int
    seed: int
    benchmark: str
    gradient: float
    influence: Influence


class _Variance(NamedTuple):
    """Over questions, over seeds (0 for one seed), and what both hold: by how much seeds differ as they do on other
    questions. With degrees of freedom, and the number of seeds."""

    questions: float
    questions_freedom: float
    seeds: float
    seeds_freedom: float
    both: float
    num_seeds: int

    def reach(self, level: float) -> float:
        """Half of the interval of `level`."""
        over_questions = quantile(self.questions_freedom, level) ** 2 * max(0.0, self.questions - self.both)
        over_seeds = quantile(self.seeds_freedom, level) ** 2 * self.seeds if self.seeds else 0.0
        return math.sqrt(over_questions + over_seeds)


def mean_score(runs: Sequence[Run], benchmark: str) -> Estimate:
    """The score of one model, mean over its seeds."""
    influences = [influence(run.values[benchmark]) for run in runs]
    terms = [_Term(0, run.seed, benchmark, 1 / len(runs), each) for run, each in zip(runs, influences)]
    hidden = _hidden(influences, runs, benchmark) ** 2
    estimate = _estimate(float(np.mean([each.score for each in influences])), terms, _variance(terms), hidden=hidden)
    within = closed_interval(runs[0].values[benchmark]) if len(runs) == 1 else None
    if within is not None:
        return structs.replace(estimate, low=within.low, high=within.high)
    return _bounded(estimate, *bounds(runs[0].values[benchmark]))


def relative(runs: Sequence[Run], full: Sequence[Run], benchmarks: Sequence[str], *, less: float = 0.0) -> Estimate:
    """100 x the mean over benchmarks of the score of `runs` over that of `full`, minus `less`, with the spread of both.

    Every run needs every benchmark, on the same questions, and `full` a score above 0.
    """
    terms: list[_Term] = []
    ratios, hidden, unseen = [], 0.0, 0.0
    for benchmark in benchmarks:
        sides = [[influence(run.values[benchmark]) for run in each] for each in (runs, full)]
        mean, reference = (float(np.mean([each.score for each in side])) for side in sides)
        ratios.append(mean / reference)
        unseen = max(unseen, 100 * _unseen(full[0].values[benchmark]) / reference / len(benchmarks))
        for number, (each, side, gradient) in enumerate(
            zip((runs, full), sides, (1 / reference, -mean / reference**2))
        ):
            hidden += (100 * gradient / len(benchmarks) * _hidden(side, each, benchmark)) ** 2
            terms += [
                _Term(number, run.seed, benchmark, 100 * gradient / len(each) / len(benchmarks), effect)
                for run, effect in zip(each, side)
            ]
    estimate = _estimate(100 * float(np.mean(ratios)) - less, terms, _variance(terms), unseen=unseen, hidden=hidden)
    lowest = min(bounds(run.values[benchmark])[0] for run in runs for benchmark in benchmarks)
    return _bounded(estimate, lowest - less, math.inf)


def difference(benchmark: str, a: Sequence[Run], b: Sequence[Run]) -> Difference:
    """How the model of the runs `b` differs from that of `a` in one benchmark. Raises VlmixError if they have no
    question in common."""
    runs, asked = _common(benchmark, [*a, *b])
    return _difference(benchmark, runs[: len(a)], runs[len(a) :], asked)


def _difference(benchmark: str, a: Sequence[Run], b: Sequence[Run], asked: int) -> Difference:
    """The same of runs on the same questions."""
    values = a[0].values[benchmark]
    sides = [[influence(run.values[benchmark]) for run in side] for side in (a, b)]
    before, after = (float(np.mean([each.score for each in side])) for side in sides)
    terms = [
        _Term(number, run.seed, benchmark, sign / len(runs), effect)
        for number, (sign, runs, effects) in enumerate(zip((-1, 1), (a, b), sides))
        for run, effect in zip(runs, effects)
    ]
    variance = _variance(terms)
    apart = after - before if abs(after - before) > 1e-9 * max(before, after) else 0.0  # means of the same numbers
    lowest, highest = bounds(values)
    estimate = _bounded(_estimate(apart, terms, variance, unseen=_unseen(values)), lowest - highest, highest - lowest)
    return Difference(
        benchmark=benchmark,
        a=before,
        b=after,
        difference=estimate,
        adjusted=estimate.p,
        questions=values.questions,
        asked=asked,
        needed=_needed(apart, variance, values.questions),
    )


def _bounded(estimate: Estimate, lowest: float, highest: float) -> Estimate:
    """The part of an interval that there is: of two seeds it may reach far beyond what can be scored."""
    return structs.replace(estimate, low=max(lowest, estimate.low), high=min(highest, estimate.high))


def compare(a: Sequence[Run], b: Sequence[Run]) -> Comparison:
    """The model of the runs `b` against that of `a`. Every run of a model has the same benchmarks. Raises VlmixError if
    the models share none, or no question of one that they share."""
    names = [set(side[0].values) for side in (a, b)]
    shared = sorted(names[0] & names[1])
    if not shared:
        raise VlmixError(f"nothing to compare: one has {_listed(names[0])}, the other {_listed(names[1])}")
    runs, asked = [*a, *b], {}
    for name in shared:
        runs, asked[name] = _common(name, runs)
    a, b = runs[: len(a)], runs[len(a) :]
    differences = [_difference(name, a, b, asked[name]) for name in shared]
    adjusted = holm([each.difference.p for each in differences])
    positive = [each.benchmark for each in differences if each.a > 0 and each.b > 0]
    return Comparison(
        differences=[structs.replace(each, adjusted=p) for each, p in zip(differences, adjusted)],
        overall=relative(b, a, positive, less=100.0) if positive else None,
        left_out=[name for name in shared if name not in positive],
        unshared=sorted(names[0] ^ names[1]),
    )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "no benchmark"


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several differences, adjusted so that one in twenty tables has a difference that is none (Holm 1979)."""
    order = np.argsort(ps, kind="stable")
    adjusted = [0.0] * len(ps)
    most = 0.0
    for place, number in enumerate(order):
        most = max(most, min(1.0, (len(ps) - place) * ps[number]))
        adjusted[number] = most
    return adjusted


def _common(benchmark: str, runs: Sequence[Run]) -> tuple[list[Run], int]:
    """The runs on the questions that all of them answered, and how many questions there are in any."""
    sets = [run.values[benchmark].answered() for run in runs]
    shared = sets[0]
    for other in sets[1:]:
        if not shared.equals(other):
            shared = shared.filter(pc.is_in(shared, other))
    if not len(shared):
        raise VlmixError(f"{benchmark}: no question was answered by all; compare answers to the same questions")
    _check_same(benchmark, [run.values[benchmark].table for run in runs], shared)
    asked = len(pc.unique(pa.concat_arrays([run.values[benchmark].ids() for run in runs])))
    if len(shared) == asked:
        return list(runs), asked
    return [Run(run.seed, {**run.values, benchmark: run.values[benchmark].of(shared)}) for run in runs], asked


def _check_same(benchmark: str, tables: Sequence[pa.Table], shared: pa.Array) -> None:
    """Raises VlmixError for a question that has its image, or what else it shares with others, in one table, and
    another one in another: it is another question, of the same id."""
    columns = ["question", "cluster"]
    places = [table.select(columns) for table in tables]
    for other in places[1:]:
        if other.equals(places[0]):
            continue
        one, two = (
            each.filter(pc.is_in(each["question"], shared))
            .group_by(columns)
            .aggregate([])
            .sort_by([(name, "ascending") for name in columns])
            for each in (places[0], other)
        )
        if differ := [pair for pair in zip(one.to_pylist(), two.to_pylist()) if pair[0] != pair[1]]:
            (id, was), (_, here) = ([pair[name] for name in columns] for pair in differ[0])
            raise VlmixError(
                f"{benchmark}: question {id} is about {was} in one and about {here} in another, so it is not the same "
                "question; answer and score the same questions with both"
            )


def _hidden(influences: Sequence[Influence], runs: Sequence[Run], benchmark: str) -> float:
    """The standard error of a score that is the same on every question, as if all were wrong: its exact interval
    reaches to one side, and the questions themselves show nothing. 0 of other scores."""
    if any(each.varies for each in influences):
        return 0.0
    within = closed_interval(runs[0].values[benchmark])
    return 0.0 if within is None else (within.high - within.low) / normal_quantile()


def _unseen(values: Values) -> float:
    """By how much of a score two models may differ that are the same on every question of `values`: so large a share
    of images may not be among so many, by the exact interval of none."""
    clusters = len(influence(values).clusters)
    return most_of(values) * proportion(0, clusters)[1]


def _estimate(
    value: float, terms: Sequence[_Term], variance: _Variance, *, unseen: float = 0.0, hidden: float = 0.0
) -> Estimate:
    """`unseen` is how far the interval of no difference reaches where questions and seeds show none; `hidden` is
    variance over questions that they do not show."""
    alike = variance.reach(LEVEL) <= 1e-12 * max(1.0, abs(value)) and (not hidden or (unseen > 0 and not value))
    variance = variance._replace(questions=variance.questions + hidden)
    reach = variance.reach(LEVEL)
    low, high, p = value - reach, value + reach, _p(value, variance)
    if alike and value:
        # Every cluster differs alike. By the sign test over clusters: so many of others may differ the other way.
        clusters = len({cluster for term in terms for cluster in term.influence.clusters})
        low, high = sorted((value * (2 * proportion(clusters, clusters)[0] - 1), value))
        p = min(1.0, 2.0 * 0.5**clusters)
    elif alike:
        low, high = -unseen, unseen
    spread = max(0.0, variance.questions - variance.both) + variance.seeds
    return Estimate(
        value=value, low=low, high=high, stderr=0.0 if alike else math.sqrt(spread), p=p, seeds=variance.num_seeds
    )


def _variance(terms: Sequence[_Term]) -> _Variance:
    """Over questions: squares of the clusters' effects, summed over all runs. Over seeds: squares of their deviations
    from the mean. Both: squares of the clusters' effects in one seed, from those in the mean of seeds."""
    sizes = {side: len({term.seed for term in terms if term.side == side}) for side in {term.side for term in terms}}
    # A sum of squares over n seeds has n - 1 degrees of freedom; one seed deviates from nothing.
    factors = {side: math.sqrt(size / (size - 1)) if size > 1 else 0.0 for side, size in sizes.items()}
    seeds: dict[int, float] = {}
    over_questions, freedoms, interaction = [], [], 0.0
    for benchmark in {term.benchmark: None for term in terms}:
        mine = [term for term in terms if term.benchmark == benchmark]
        places = {cluster: place for place, cluster in enumerate(mine[0].influence.clusters)}
        for term in mine:
            for cluster in term.influence.clusters:
                places.setdefault(cluster, len(places))
        effects = [_aligned(term, places) for term in mine]
        over_questions.append(float(np.square(np.sum(effects, axis=0)).sum()))
        freedoms.append(min(term.influence.freedom for term in mine))
        apart: dict[int, Floats] = {}
        for side in sizes:
            members = [(term, effect) for term, effect in zip(mine, effects) if term.side == side]
            if not members:
                continue
            mean = np.mean([effect for _, effect in members], axis=0)
            score = float(np.mean([term.influence.score for term, _ in members]))
            for term, effect in members:
                zero = np.zeros(len(places))
                apart[term.seed] = apart.get(term.seed, zero) + factors[side] * (effect - mean)
                deviation = factors[side] * term.gradient * (term.influence.score - score)
                seeds[term.seed] = seeds.get(term.seed, 0.0) + deviation
        interaction += float(sum(np.square(each).sum() for each in apart.values()))
    questions, count = sum(over_questions), min(sizes.values())
    spread = sum(variance**2 / freedom for variance, freedom in zip(over_questions, freedoms) if variance)
    return _Variance(
        questions=questions,
        questions_freedom=questions**2 / spread if spread else math.inf,
        seeds=sum(deviation**2 for deviation in seeds.values()) if count > 1 else 0.0,
        seeds_freedom=_seed_freedom(terms, sizes),
        both=interaction if count > 1 else 0.0,
        num_seeds=count,
    )


def _seed_freedom(terms: Sequence[_Term], sizes: Mapping[int, int]) -> float:
    sets = [{term.seed for term in terms if term.side == side} for side in sizes]
    shared = len(set.intersection(*sets))
    return shared - 1 if shared > 1 else min(sizes.values()) - 1


def _aligned(term: _Term, places: Mapping[str, int]) -> Floats:
    effect = np.zeros(len(places))
    if list(places)[: len(term.influence.clusters)] == term.influence.clusters:
        effect[: len(term.influence.clusters)] = term.influence.effect
    else:
        effect[[places[cluster] for cluster in term.influence.clusters]] = term.influence.effect
    return term.gradient * effect


def _p(value: float, variance: _Variance) -> float:
    """One minus the level of the interval that just reaches 0."""
    if not value:
        return 1.0
    low, high = 1e-12, 1.0
    for _ in range(60):  # halving on a log scale
        middle = math.sqrt(low * high)
        low, high = (middle, high) if variance.reach(1 - middle) > abs(value) else (low, middle)
    return high


def _needed(value: float, variance: _Variance, questions: int) -> int | None:
    if not value:
        return 0
    reach = normal_quantile() + normal_quantile(2 * POWER - 1)
    left = (value / reach) ** 2 - max(0.0, variance.seeds - variance.both)
    return math.ceil(questions * variance.questions / left) if left > 0 else None
