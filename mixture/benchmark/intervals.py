"""The interval of a score: what other questions of the same kind would have given, with 95 % of them inside.

A proportion of questions that stand alone has the exact interval (Clopper and Pearson). A score with little that is
right, or little that is wrong, has that of as many such questions as would vary by as much (Korn and Graubard 1998): a
bootstrap would cover 85 % where two in a hundred answers on 40 images are wrong. All else is a bootstrap over clusters
of questions, within strata that share nothing: each draw takes one cluster less than there are, which makes its
variance that of the sample and not of a slightly narrower one (Rao and Wu 1988), and the quantiles are those of t
(Hesterberg 2015, "expanded percentile"), without which intervals of few clusters cover too little. Of many clusters,
where the bootstrap's distribution is the normal one, its limit stands for it. Standard errors are by linearisation,
with clusters as units.
"""

import math
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.benchmark.values import Floats, Totals, Values, score_of
from vlmix.mixture.extras import missing

LEVEL = 0.95
_DRAWS = 2000
_SEED = 0
_CELLS = 2**24  # of the draws that are held at a time
# From so many clusters, and below this skewness of the score, bootstrap and normal interval agree to a percent.
_MANY, _SYMMETRIC = 500, 0.05
# With fewer right or wrong answers than this, each counted by how much it varies with others, a score is a rare one.
_RARE = 15


class Interval(Struct, frozen=True):
    """The 95 % interval of a score, and how it was made: "exact", "effective" (exact, of as many
    questions alone as vary by as much), "bootstrap" or "normal", over `clusters`."""

    low: float
    high: float
    method: str
    clusters: int


class Influence(NamedTuple):
    """How a score depends on its clusters: `effect` [clusters] is what each adds to it beyond the mean, scaled so that
    the sum of squares is the score's variance. `freedom` are the degrees of freedom of that (Satterthwaite's, over
    strata)."""

    score: float
    clusters: list[str]
    effect: Floats
    freedom: float

    @property
    def stderr(self) -> float:
        return float(math.sqrt(np.square(self.effect).sum()))

    @property
    def varies(self) -> bool:
        """Whether clusters differ at all."""
        return self.stderr > 1e-9 * max(1.0, abs(self.score))

    @property
    def skewness(self) -> float:
        """Of the score over samples of clusters."""
        return float((self.effect**3).sum() / self.stderr**3)


def interval(values: Values) -> Interval | None:
    """The interval of the score of `values`, None without any that counts."""
    totals = _counted(values.totals)
    count = len(totals.clusters)
    if not count:
        return None
    linear = influence(values)
    if (closed := _closed(values, totals, linear)) is not None or not linear.varies:
        return closed
    if count >= _MANY and abs(linear.skewness) < _SYMMETRIC:
        reach = quantile(linear.freedom) * linear.stderr
        most = most_of(values)
        return Interval(max(0.0, linear.score - reach), min(most, linear.score + reach), "normal", count)
    tail = _expanded_tail(linear.freedom)
    low, high = np.quantile(_bootstrap(totals, values.summed), [tail, 1 - tail])
    return Interval(float(min(low, linear.score)), float(max(high, linear.score)), "bootstrap", count)


def closed_interval(values: Values) -> Interval | None:
    """The interval of a score where a formula has it, as of all proportions and of what hardly varies, if it is a share
    of something."""
    totals = _counted(values.totals)
    return _closed(values, totals, influence(values)) if totals.clusters else None


def available() -> bool:
    """Whether there is scipy, which has the quantiles."""
    return find_spec("scipy") is not None


def proportion(hits: float, count: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of `hits` of `count`, 0..1."""
    special = _special()
    tail = (1 - LEVEL) / 2
    low = special.betaincinv(hits, count - hits + 1, tail) if hits > 0 else 0.0
    high = special.betaincinv(hits + 1, count - hits, 1 - tail) if hits < count else 1.0
    return float(low), float(high)


def quantile(freedom: float, level: float = LEVEL) -> float:
    """How many standard errors a two-sided interval of `level` reaches out, by Student's t."""
    return float(_special().stdtrit(freedom, (1 + level) / 2)) if math.isfinite(freedom) else normal_quantile(level)


def normal_quantile(level: float = LEVEL) -> float:
    """The same for a known standard error."""
    return float(_special().ndtri((1 + level) / 2))


def most_of(values: Values) -> float:
    """What a model scores that is always right."""
    return 100.0 * (len(pc.unique(values.table["group"])) if values.summed else 1)


def bounds(values: Values) -> tuple[float, float]:
    """The lowest and the highest score there is; infinite where values are no shares of their weights."""
    value, weight = (values.table[name].to_numpy() for name in ("value", "weight"))
    shares = bool(((value >= 0) & (value <= weight)).all())
    return (0.0, most_of(values)) if shares else (-math.inf, math.inf)


def influence(values: Values) -> Influence:
    """The linearised score: of a sum of ratios, each cluster's (value - ratio x weight) / Σ weight."""
    totals = _counted(values.totals)
    value, weight = totals.value.sum(0), totals.weight.sum(0)
    ratio = np.divide(value, weight, out=np.zeros_like(value), where=weight > 0)
    parts = np.divide(totals.value - ratio * totals.weight, weight, out=np.zeros_like(totals.value), where=weight > 0)
    effect = 100 * (parts.sum(1) if values.summed else parts.mean(1)) if len(parts) else np.zeros(0)
    sizes: Floats = np.bincount(totals.stratum).astype(np.float64)
    # A stratum of one cluster says nothing about its spread, and adds none.
    factor = np.sqrt(np.divide(sizes, sizes - 1, out=np.zeros(len(sizes)), where=sizes > 1))
    effect = effect * factor[totals.stratum]
    variances: Floats = np.bincount(totals.stratum, np.square(effect), minlength=len(sizes)).astype(np.float64)
    freedom = satterthwaite(variances, sizes - 1)
    return Influence(float(score_of(value, weight, values.summed)), totals.clusters, effect, freedom)


def satterthwaite(variances: Floats, freedoms: Floats) -> float:
    """Degrees of freedom of a sum of `variances` that have `freedoms` each; infinite for a sum of 0."""
    counted = (variances > 0) & (freedoms > 0)
    total = float(np.square(variances[counted]) @ (1 / freedoms[counted]))
    return float(variances.sum() ** 2 / total) if total else math.inf


def _special() -> Any:
    try:
        from scipy import special
    except ModuleNotFoundError:
        raise missing("scipy", "the interval of a score") from None
    return special


def _counted(totals: Totals) -> Totals:
    """Without clusters that have no weight."""
    kept: NDArray[np.bool_] = np.any(totals.weight != 0, axis=1)
    if kept.all():
        return totals
    clusters = [cluster for cluster, keep in zip(totals.clusters, kept) if keep]
    return Totals(clusters, totals.value[kept], totals.weight[kept], totals.stratum[kept])


def _closed(values: Values, totals: Totals, linear: Influence) -> Interval | None:
    """Values that do not vary, and those of one cluster, have the exact interval of a proportion over as many clusters:
    a bootstrap would give them no width."""
    count, most = len(totals.clusters), most_of(values)
    share = linear.score / most
    if not 0 <= share <= 1:
        return None
    if _is_proportion(totals) or not linear.varies:
        return _of_proportion(share * count, count, most, "exact", count)
    if np.any(totals.value < 0) or np.any(totals.value > totals.weight):
        return None
    size = share * (1 - share) * (most / linear.stderr) ** 2
    size = min(size * (normal_quantile() / quantile(linear.freedom)) ** 2, values.questions)
    if size * min(share, 1 - share) >= _RARE:
        return None
    return _of_proportion(share * size, size, most, "effective", count)


def _of_proportion(hits: float, size: float, most: float, method: str, clusters: int) -> Interval:
    low, high = proportion(hits, size)
    return Interval(most * low, most * high, method, clusters)


def _is_proportion(totals: Totals) -> bool:
    """Whether the score is the share of questions, each in a cluster of its own, that are right."""
    one = totals.value.shape[1] == 1 and bool((totals.weight == 1).all())
    return one and bool(np.isin(totals.value, (0, 1)).all())


def _bootstrap(totals: Totals, summed: bool) -> Floats:
    """Scores [draws], NaN-free."""
    rng = np.random.default_rng(_SEED)
    strata = [np.flatnonzero(totals.stratum == number) for number in np.unique(totals.stratum)]
    value = np.zeros((_DRAWS, totals.value.shape[1]))
    weight = np.zeros_like(value)
    for members in strata:
        size = len(members)
        sums = np.hstack([totals.value[members], totals.weight[members]])
        filled = np.flatnonzero(sums.any(0))  # a stratum has few of the groups
        for start, stop in _chunks(size):
            counts = _counts(rng, stop - start, size)
            drawn = np.zeros((stop - start, sums.shape[1]))
            drawn[:, filled] = counts @ sums[:, filled]
            value[start:stop] += drawn[:, : value.shape[1]]
            weight[start:stop] += drawn[:, value.shape[1] :]
    return score_of(value, weight, summed)


def _chunks(size: int) -> list[tuple[int, int]]:
    step = max(1, _CELLS // size)
    return [(start, min(start + step, _DRAWS)) for start in range(0, _DRAWS, step)]


def _counts(rng: np.random.Generator, draws: int, size: int) -> NDArray[np.float64]:
    """How often each of `size` clusters is drawn [draws, size]: one less than there are, scaled up to as many."""
    if size == 1:
        return np.ones((draws, 1))
    picked = rng.integers(0, size, (draws, size - 1), dtype=np.int32)
    flat = (picked + size * np.arange(draws)[:, None]).ravel()
    counts = np.bincount(flat, minlength=draws * size).reshape(draws, size)
    return np.asarray(counts * (size / (size - 1)), dtype=np.float64)


def _expanded_tail(freedom: float) -> float:
    return float(_special().ndtr(-quantile(freedom)))
