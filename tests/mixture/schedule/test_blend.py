"""Several mixtures: exact counts at every step, each one's own epochs, the same for any number of ranks."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.schedule.blend import BlendSchedule
from vlmix.mixture.version import ORDER_VERSION


@st.composite
def blends(draw: st.DrawFn) -> dict[str, object]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = sum(sizes)
    mixture = np.repeat(np.arange(len(sizes)), sizes)
    repeat = rng.integers(1, 3, count).astype(np.int32)
    texts = np.array([draw(st.sampled_from([0.0, 0.3, 1.0])) for _ in sizes])
    return {
        "mixture": mixture,
        "weights": np.array([draw(st.sampled_from([0.01, 0.2, 0.5, 0.8, 1.0, 3.0])) for _ in sizes]),
        "identity": np.concatenate([rng.permutation(100)[:size] for size in sizes]).astype(np.int64),
        "images": rng.random(count) >= texts[mixture],
        "repeat": repeat,
        "lengths": rng.integers(1, 50, count).astype(np.int64),
        "total": int(repeat.sum()),
        "seed": draw(st.integers(0, 5)),
        "global_batch": min(draw(st.sampled_from([1, 2, 4, 8])), int(repeat.sum())),
        "length_window": draw(st.sampled_from([1, 1, 3])),
    }


def fractions(configuration: dict[str, object]) -> tuple[list[Fraction], list[dict[bool, Fraction]]]:
    """Each mixture's share of all samples, and of all samples of each modality, exactly."""
    weights = [Fraction(weight) for weight in configuration["weights"].tolist()]
    of_all = [weight / sum(weights) for weight in weights]
    of_kind: list[dict[bool, Fraction]] = [{} for _ in weights]
    for kind in (True, False):
        counts = []
        for number, share in enumerate(of_all):
            own = configuration["mixture"] == number
            size = int(configuration["repeat"][own].sum())
            counts.append(
                share * Fraction(int(configuration["repeat"][own & (configuration["images"] == kind)].sum()), size)
            )
        for number, share in enumerate(counts):
            of_kind[number][kind] = share
    return of_all, of_kind


@settings(max_examples=60, deadline=None)
@given(blends())
def test_counts_are_exact_at_every_step(configuration: dict[str, object]) -> None:
    order = BlendSchedule(**configuration)
    size, mixture, images = order.global_batch, configuration["mixture"], configuration["images"]
    of_all, of_kind = fractions(configuration)
    parties = len(of_all)
    samples = np.zeros((parties, 2), dtype=np.int64)
    steps = {True: 0, False: 0}
    for step in range(60):
        batch = order.batch(step)
        kind = bool(images[batch[0]])
        assert len(batch) == size and (images[batch] == kind).all(), "full, and of one modality"
        samples[:, int(kind)] += np.bincount(mixture[batch], minlength=parties)
        steps[kind] += 1
        assert order.samples_before(step + 1).tolist() == samples.sum(axis=1).tolist()
        modality = {each: sum(shares[each] for shares in of_kind) for each in (True, False)}
        assert abs(steps[True] - modality[True] * (step + 1)) <= Fraction(1, 2) + Fraction(1, 10**9)
        for number in range(parties):
            rounding = Fraction(0)
            for each in (True, False):
                if not modality[each]:
                    assert not samples[number, int(each)]
                    continue
                share = of_kind[number][each] / modality[each]
                most = Fraction(1, 2) + share * (parties - 2) / 2 + Fraction(1, 10**9)
                rounding += most
                assert abs(int(samples[number, int(each)]) - share * steps[each] * size) <= most
            off = abs(int(samples[number].sum()) - of_all[number] * (step + 1) * size)
            assert off <= Fraction(size, 2) + rounding
            shares = {of_kind[number][each] / modality[each] for each in (True, False) if modality[each]}
            if len(shares) == 1:
                assert off <= rounding, "as much text everywhere, or none: no batch's rounding"


@settings(max_examples=60, deadline=None)
@given(blends())
def test_each_mixture_goes_through_its_epochs(configuration: dict[str, object]) -> None:
    """Of a mixture's samples of one modality, none comes again before all have come, at every step; where a window
    distributes samples over its batches, at its end."""
    order = BlendSchedule(**configuration)
    seen = {kind: Counter() for kind in (True, False)}
    steps = {True: 0, False: 0}
    for step in range(60):
        batch = order.batch(step)
        kind = bool(configuration["images"][batch[0]])
        steps[kind] += 1
        seen[kind].update(batch.tolist())
        if configuration["length_window"] > 1 and steps[kind] % configuration["length_window"]:
            continue
        for number in range(len(configuration["weights"])):
            own = np.flatnonzero((configuration["mixture"] == number) & (configuration["images"] == kind))
            repeat = configuration["repeat"][own]
            if not len(own):
                continue
            counts = np.array([seen[kind][position] for position in own.tolist()])
            epochs = int(counts.sum()) // int(repeat.sum())
            assert (counts >= epochs * repeat).all() and (counts <= (epochs + 1) * repeat).all()


@settings(max_examples=60, deadline=None)
@given(blends(), st.integers(0, 80), st.sampled_from([1, 2, 4]))
def test_a_step_is_the_same_for_any_ranks_and_from_anywhere(
    configuration: dict[str, object], step: int, world: int
) -> None:
    through = BlendSchedule(**configuration)
    for before in range(step):
        through.batch(before)
    order = BlendSchedule(**configuration)
    batch = order.batch(step)
    assert through.batch(step).tolist() == batch.tolist()
    assert order.epoch(step // order.steps_per_epoch).batch(step % order.steps_per_epoch).tolist() == batch.tolist()
    if order.global_batch % world == 0:
        shared = [order.rank_batch(step, rank, world) for rank in range(world)]
        packed = [order.packed_batch(step, rank, world, 60) for rank in range(world)]
        assert sorted(np.concatenate(shared).tolist()) == sorted(batch.tolist())
        assert sorted(i for bins in packed for members in bins for i in members.tolist()) == sorted(batch.tolist())
        assert len({len(bins) for bins in packed}) == 1


def pair(**changes: object) -> dict[str, object]:
    return {
        "mixture": np.repeat([0, 1], [6, 4]),
        "weights": np.array([0.75, 0.25]),
        "identity": np.array([*range(6), *range(4)]),
        "images": np.array([True] * 4 + [False] * 2 + [True] * 4),
        "repeat": np.ones(10, dtype=np.int32),
        "lengths": np.array([5, 9, 2, 7, 1, 8, 3, 4, 6, 10], dtype=np.int64),
        "total": 10,
        "seed": 0,
        "global_batch": 4,
        **changes,
    }


def test_the_order_is_pinned() -> None:
    """As for a single mixture: a change needs a new ORDER_VERSION."""
    assert ORDER_VERSION == 2
    order = BlendSchedule(**pair())
    assert order.steps_per_epoch == 3
    assert [order.batch(step).tolist() for step in range(6)] == [
        [1, 2, 0, 6],
        [5, 4, 4, 5],
        [3, 1, 9, 7],
        [2, 0, 3, 8],
        [3, 0, 2, 8],
        [5, 4, 4, 5],
    ]
    windowed = BlendSchedule(**pair(length_window=2, global_batch=2))
    assert [windowed.batch(step).tolist() for step in range(6)] == [[1, 6], [5, 4], [0, 2], [3, 7], [1, 9], [4, 5]]


def test_a_window_keeps_like_lengths_together() -> None:
    rng = np.random.default_rng(0)
    count = 4_000
    many = {
        "mixture": np.repeat([0, 1], count // 2),
        "identity": np.tile(np.arange(count // 2), 2),
        "images": np.ones(count, dtype=bool),
        "repeat": np.ones(count, dtype=np.int32),
        "lengths": rng.integers(1, 1_000, count),
        "total": count,
        "global_batch": 32,
    }
    spread = [
        np.mean([np.ptp(order.lengths[order.batch(step)]) for step in range(order.steps_per_epoch)])
        for order in (BlendSchedule(**pair(**many)), BlendSchedule(**pair(**many, length_window=8)))
    ]
    assert spread[1] < 0.3 * spread[0]


def test_two_mixtures_of_the_same_rows_have_orders_of_their_own() -> None:
    order = BlendSchedule(
        **pair(
            mixture=np.repeat([0, 1], 500),
            weights=np.array([1.0, 1.0]),
            identity=np.tile(np.arange(500), 2),
            images=np.ones(1000, dtype=bool),
            repeat=np.ones(1000, dtype=np.int32),
            lengths=np.ones(1000, dtype=np.int64),
            total=1000,
            global_batch=100,
        )
    )
    batch = order.batch(0)
    assert len(set((batch % 500).tolist())) > 80, "the same rows would come together otherwise"
    later = order.batch(order.steps_per_epoch)
    assert later.tolist() != batch.tolist(), "the next epoch has another order"


@pytest.mark.parametrize(
    ("change", "message"), [({"global_batch": 0}, "at least 1"), ({"global_batch": 12}, "larger than the 10 samples")]
)
def test_impossible_batches_are_told(change: dict[str, object], message: str) -> None:
    with pytest.raises(VlmixError, match=message):
        BlendSchedule(**pair(**change))
