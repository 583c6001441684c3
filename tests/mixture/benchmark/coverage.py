"""How often 95 % intervals hold the truth, and differences are found: simulated at the benchmarks' real sizes.

    python -m tests.mixture.benchmark.coverage 2000

prints the tables of docs/statistics.md. Models are made up: an image has a rate of its own at which questions about it
are answered right, a seed moves all rates.
"""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.mixture.benchmark.made import values_of
from vlmix.mixture.benchmark.compare import Estimate, Run, difference, mean_score, relative
from vlmix.mixture.benchmark.intervals import interval
from vlmix.mixture.benchmark.values import Values

Floats = NDArray[np.float64]
Random = np.random.Generator


class Kind(NamedTuple):
    """A kind of score: how to draw one, and what it is in the long run."""

    name: str
    draw: Callable[[Random], Values]
    truth: float


def _sizes(questions: int, images: int, seed: int = 0) -> NDArray[np.int64]:
    """How many questions each image has."""
    return np.random.default_rng(seed).multinomial(questions - images, np.full(images, 1 / images)) + 1


def _shares(name: str, questions: int, images: int, rate: float, alike: float) -> Kind:
    """Right or wrong; questions of an image are `alike` (their correlation)."""
    of = np.repeat(np.arange(images), _sizes(questions, images))
    a, b = rate * (1 / alike - 1), (1 - rate) * (1 / alike - 1)

    def draw(random: Random) -> Values:
        return values_of(random.random(questions) < random.beta(a, b, images)[of], clusters=of)

    return Kind(name, draw, 100 * rate)


def _soft(name: str, questions: int, images: int, alike: float) -> Kind:
    """VQA accuracy: thirds, as people agree."""
    of = np.repeat(np.arange(images), _sizes(questions, images))
    steps = np.array([0.0, 0.3, 0.6, 0.9, 1.0])
    edges = np.cumsum([0.35, 0.07, 0.06, 0.07])

    def draw(random: Random) -> Values:
        shared = random.random(questions) < alike
        place = np.where(shared, random.random(images)[of], random.random(questions))
        return values_of(steps[np.searchsorted(edges, place)], clusters=of)

    return Kind(name, draw, 100 * float(steps @ [0.35, 0.07, 0.06, 0.07, 0.45]))


def _alone(name: str, questions: int, rate: float) -> Kind:
    return Kind(name, lambda random: values_of(random.random(questions) < rate), 100 * rate)


def _pope() -> Kind:
    """500 images, six questions each in each of three splits; the three that mean yes are the same in all."""
    images, splits = 500, 3
    of = np.tile(np.repeat(np.arange(images), 6), splits)
    groups = np.repeat(np.arange(splits), images * 6)
    factors = (1, 2, 3)  # adversarial objects are taken for seen more often

    def draw(random: Random) -> Values:
        value, weight = [], []
        seen = random.random((images, 3)) < random.beta(8, 2, images)[:, None]
        wrongly = random.beta(1, 12, images)[:, None]
        for factor in factors:
            taken = random.random((images, 3)) < np.minimum(1, factor * wrongly)
            value.append(np.hstack([2 * seen, 0 * taken]).ravel())
            weight.append(np.hstack([seen + 1, taken]).ravel())
        return values_of(np.concatenate(value), of, groups, np.concatenate(weight))

    rate = np.random.default_rng(0).beta(1, 12, 1_000_000)
    wrong = [float(np.minimum(1, factor * rate).mean()) for factor in factors]
    return Kind("POPE", draw, float(np.mean([100 * 1.6 / (1.6 + each + 0.2) for each in wrong])))


def _mme(name: str, tasks: dict[int, float]) -> Kind:
    """Tasks by their number of images; of two questions of an image the second is answered as the first in 3 of 10."""

    def draw(random: Random) -> Values:
        of, groups, value, weight = [], [], [], []
        for number, (size, rate) in enumerate(tasks.items()):
            first = random.random(size) < rate
            second = np.where(random.random(size) < 0.3, first, random.random(size) < rate)
            for kind, add, each in (("acc", first * 1 + second, 2), ("acc+", first & second, 1)):
                of += [f"{number}/{image}" for image in range(size)]
                groups += [f"{number}/{kind}"] * size
                value += list(add)
                weight += [each] * size
        return values_of(value, of, groups, weight, summed=True, questions=of)

    return Kind(name, draw, sum(100 * rate + 100 * (0.3 * rate + 0.7 * rate**2) for rate in tasks.values()))


def _llava_bench() -> Kind:
    """60 questions on 24 images; the model's grade over that of the reference."""
    of = np.repeat(np.arange(24), _sizes(60, 24))

    def grades(random: Random, of: NDArray[np.int64], images: int) -> tuple[Floats, Floats]:
        picture = random.normal(0, 1, images)[of]
        reference = np.clip(np.round(8 + 0.5 * picture + random.normal(0, 0.8, len(of))), 1, 10)
        return np.clip(np.round(5.5 + picture + random.normal(0, 2, len(of))), 1, 10), reference

    def draw(random: Random) -> Values:
        model, reference = grades(random, of, 24)
        return values_of(model, of, weight=reference)

    model, reference = grades(np.random.default_rng(0), np.arange(1_000_000), 1_000_000)
    return Kind("LLaVA-Bench", draw, 100 * float(model.sum() / reference.sum()))


def _mm_vet() -> Kind:
    steps, chances = np.arange(11) / 10, [0.45, 0.05, 0.03, 0.03, 0.03, 0.06, 0.03, 0.03, 0.04, 0.05, 0.2]
    of = np.repeat(np.arange(200), _sizes(218, 200))

    def draw(random: Random) -> Values:
        return values_of(random.choice(steps, 218, p=chances), clusters=of)

    return Kind("MM-Vet", draw, 100 * float(steps @ chances))


def kinds() -> list[Kind]:
    """Every kind of score, at the size of its benchmark."""
    perception = dict(
        zip((30, 31, 32, 33, 147, 170, 200, 201, 202, 20), (0.9, 0.78, 0.65, 0.85, 0.8, 0.8, 0.85, 0.8, 0.7, 0.68))
    )
    return [
        _alone("ScienceQA-IMG", 2017, 0.668),
        _alone("MMBench", 1164, 0.643),
        _shares("GQA", 12578, 398, 0.62, 0.05),
        _soft("TextVQA", 5000, 3166, 0.2),
        _soft("VizWiz", 4319, 4319, 0.0),
        _shares("RefCOCO", 10834, 1500, 0.5, 0.3),
        _pope(),
        _mme("MME", perception),
        _llava_bench(),
        _mm_vet(),
        _alone("own, 100 questions", 100, 0.7),
        _shares("own, 100 on 20 images", 100, 20, 0.7, 0.1),
    ]


def rare() -> list[Kind]:
    """Hardly anything wrong on few images, where intervals are rather too wide."""
    return [_shares(f"nearly all right, {n} images", 2 * n, n, 0.98, 0.1) for n in (40, 100, 200)]


def covered(kind: Kind, draws: int, seed: int = 0) -> float:
    """Percent of intervals that hold the truth."""
    random = np.random.default_rng(seed)
    hits = 0
    for _ in range(draws):
        found = interval(kind.draw(random))
        hits += found is not None and found.low <= kind.truth <= found.high
    return 100 * hits / draws


class Trained(NamedTuple):
    """Models of several seeds: `questions` of logistic difficulty, seeds that move all by `sd` (in logits), a second
    model that is better by `better`."""

    seeds: int
    sd: float
    better: float = 0.0
    questions: int = 2000

    def draw(self, random: Random) -> tuple[list[Run], list[Run]]:
        hard = random.normal(0.5, 1.5, self.questions)
        sides = []
        for extra in (0.0, self.better):
            moved = random.normal(0, self.sd, self.seeds)
            rates = [1 / (1 + np.exp(-(hard + extra + move))) for move in moved]
            sides.append(
                [Run(n, {"x": values_of(random.random(self.questions) < rate)}) for n, rate in enumerate(rates)]
            )
        return sides[0], sides[1]

    def truth(self, extra: float) -> float:
        random = np.random.default_rng(99)
        logits = random.normal(0.5, 1.5, 2_000_000) + random.normal(0, self.sd, 2_000_000) + extra
        return 100 * float((1 / (1 + np.exp(-logits))).mean())


def covered_seeds(trained: Trained, draws: int, seed: int = 0) -> dict[str, float]:
    """Percent of intervals of a mean, a difference and a relative score that hold the truth, and of differences that
    are found."""
    random = np.random.default_rng(seed)
    one, other = trained.truth(0.0), trained.truth(trained.better)
    hits = dict.fromkeys(("mean", "difference", "relative", "found"), 0)

    def holds(estimate: Estimate, truth: float) -> bool:
        return estimate.low <= truth <= estimate.high

    for _ in range(draws):
        a, b = trained.draw(random)
        apart = difference("x", a, b).difference
        hits["mean"] += holds(mean_score(a, "x"), one)
        hits["difference"] += holds(apart, other - one)
        hits["relative"] += holds(relative(b, a, ["x"]), 100 * other / one)
        hits["found"] += apart.p < 0.05
    return {name: 100 * count / draws for name, count in hits.items()}


def settings() -> Iterator[Trained]:
    for seeds in (2, 3, 5):
        for sd in (0.02, 0.05, 0.2):
            yield Trained(seeds, sd)


def main(draws: int) -> None:
    print("| score | truth | covered |\n|---|---:|---:|")
    for kind in [*kinds(), *rare()]:
        print(f"| {kind.name} | {kind.truth:.1f} | {covered(kind, draws):.1f} % |", flush=True)
    print("\n| seeds | sd of seeds | mean | difference | relative | false alarms |\n|---:|---:|---:|---:|---:|---:|")
    for trained in settings():
        found = covered_seeds(trained, draws)
        moved = 100 * trained.sd * 0.15  # points of accuracy, as the slope of these questions is 0.15 a logit
        shown = " | ".join(f"{found[name]:.1f} %" for name in ("mean", "difference", "relative", "found"))
        print(f"| {trained.seeds} | {moved:.1f} points | {shown} |", flush=True)
    print("\n| planted difference | seeds | found |\n|---:|---:|---:|")
    for better, seeds in ((0.0, 1), (0.1, 1), (0.2, 1), (0.0, 3), (0.1, 3), (0.2, 3)):
        trained = Trained(seeds, 0.0 if seeds == 1 else 0.02, better)
        points = trained.truth(better) - trained.truth(0.0)
        print(f"| {points:.1f} points | {seeds} | {covered_seeds(trained, draws)['found']:.1f} % |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
