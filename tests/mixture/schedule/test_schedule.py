"""The order: exact, the same for any number of ranks, resumable at any step. The golden tests pin it."""

from collections import Counter
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import mix64
from vlmix.mixture.schedule import shuffle as shuffling
from vlmix.mixture.schedule.packing import pack, packed_shares, shares, waste
from vlmix.mixture.schedule.schedule import Schedule, epoch_order
from vlmix.mixture.version import ORDER_VERSION


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, object]:
    count = draw(st.integers(1, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    world = draw(st.integers(1, 6))
    repeat = rng.integers(1, 4, count).astype(np.int32)
    most = max(int(repeat.sum()) // world, 1)
    return {
        "identity": rng.permutation(1000)[:count].astype(np.int64),
        "images": rng.random(count) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        "repeat": repeat,
        "lengths": rng.integers(0, 50, count).astype(np.int64),
        "seed": draw(st.integers(0, 5)),
        "global_batch": world * draw(st.integers(1, most)) if repeat.sum() >= world else 1,
        "length_window": draw(st.sampled_from([1, 2, 5])),
        "world": world if repeat.sum() >= world else 1,
    }


def order_of(configuration: dict[str, object]) -> Schedule:
    return Schedule(**{key: value for key, value in configuration.items() if key != "world"})


@given(configurations(), st.integers(0, 3))
def test_every_sample_is_seen_exactly_as_often_as_asked(configuration: dict[str, object], epoch: int) -> None:
    order = order_of(configuration)
    batches = order.epoch(epoch)
    assert Counter(batches.samples.tolist()) == dict(enumerate(configuration["repeat"].tolist()))
    assert batches.steps == order.steps_per_epoch, "known before the first step, the same for all epochs"


@given(configurations(), st.integers(0, 3))
def test_a_batch_is_of_one_modality_and_full_but_for_the_last(configuration: dict[str, object], epoch: int) -> None:
    order = order_of(configuration)
    batches = order.epoch(epoch)
    images = configuration["images"]
    sizes = [len(batches.batch(step)) for step in range(batches.steps)]
    for step in range(batches.steps):
        assert set(images[batches.batch(step)].tolist()) == {bool(batches.images[step])}
    short = [size for size in sizes if size != order.global_batch]
    assert len(short) <= 2 and sizes[len(sizes) - len(short) :] == short and all(s > 0 for s in sizes)


@given(configurations(), st.data())
def test_any_number_of_ranks_shares_the_same_batches(configuration: dict[str, object], data: st.DataObject) -> None:
    order = order_of(configuration)
    step = data.draw(st.integers(0, 2 * order.steps_per_epoch - 1))
    batch = order.batch(step)
    for world in (1, configuration["world"]):
        mine = [order.rank_batch(step, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(mine).tolist()) == sorted(batch.tolist())
        assert max(map(len, mine)) - min(map(len, mine)) <= 1


@given(configurations(), st.data())
def test_resuming_at_a_step_is_never_having_stopped(configuration: dict[str, object], data: st.DataObject) -> None:
    through = order_of(configuration)
    run = [through.batch(step).tolist() for step in range(2 * through.steps_per_epoch)]
    step = data.draw(st.integers(0, len(run) - 1))
    again = order_of(configuration)
    assert [again.batch(s).tolist() for s in range(step, len(run))] == run[step:]


@given(configurations(), st.data())
def test_a_part_keeps_the_relative_order_of_its_samples(configuration: dict[str, object], data: st.DataObject) -> None:
    """With batches of one, the order of a subset is the whole's with the others left out."""
    plain = {**configuration, "global_batch": 1, "length_window": 1, "world": 1}
    images = plain["images"]
    plain["images"] = np.ones(len(images), dtype=bool)
    plain["repeat"] = np.ones(len(images), dtype=np.int32)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(images), max_size=len(images))))
    keep[0] = True
    arrays = ("identity", "images", "repeat", "lengths")
    part = {key: value[keep] if key in arrays else value for key, value in plain.items()}

    def shuffled(configuration: dict[str, object]) -> list[int]:
        key = epoch_order(
            configuration["identity"],
            configuration["images"],
            configuration["repeat"],
            seed=1,
            epoch=0,
            global_batch=len(configuration["identity"]),
        )
        return configuration["identity"][key.samples].tolist()

    inside = set(part["identity"].tolist())
    assert shuffled(part) == [identity for identity in shuffled(plain) if identity in inside]


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 8))
def test_shares_are_even_and_balanced(lengths: list[int], world: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    mine = shares(array, world)
    assert sorted(np.concatenate(mine).tolist()) == list(range(len(lengths)))
    counts = [len(share) for share in mine]
    assert max(counts) - min(counts) <= 1
    if len(lengths) and len(lengths) % world == 0:
        sums = [int(array[share].sum()) for share in mine]
        assert max(sums) - min(sums) <= max(lengths), "greedy is never further apart than one sample"


@given(st.lists(st.integers(0, 120), max_size=60), st.integers(1, 100), st.integers(1, 4))
def test_bins_hold_everything_once_and_are_never_too_full(lengths: list[int], capacity: int, world: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    bins = pack(array, capacity)
    assert sorted(np.concatenate([*bins, np.empty(0, dtype=np.int64)]).tolist()) == list(range(len(lengths)))
    for members in bins:
        assert np.minimum(array, capacity)[members].sum() <= capacity
    needed = np.minimum(array, capacity).sum()
    assert len(bins) * capacity <= 2 * needed + capacity or not array.any()
    assert 0 <= waste([int(array[members].sum()) for members in bins], capacity) <= 1
    over = packed_shares(array, world, capacity)
    assert len({len(mine) for mine in over}) == 1, "every rank has the same number of micro-batches"
    assert sorted(i for mine in over for members in mine for i in members.tolist()) == list(range(len(lengths)))
    fills = [[int(np.minimum(array, capacity)[members].sum()) for members in mine] for mine in over]
    assert all(fill <= capacity for mine in fills for fill in mine)
    assert sum(map(len, over)) == -(-len(bins) // world) * world, "no more bins than best fit and an even share take"
    for fuller, emptier in pairwise(zip(*fills, strict=True)):
        assert min(fuller) >= max(emptier), "bins of like fill have the same turn"


def test_packed_ranks_have_equally_much_to_do() -> None:
    """Best fit alone would leave one of two ranks with a full bin and the other with a tenth of one."""
    lengths = np.array([50, 50, 10], dtype=np.int64)
    assert [[members.tolist() for members in mine] for mine in packed_shares(lengths, 2, 100)] == [[[0, 2]], [[1]]]
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(600, 1_200, 128)
        totals = [sum(lengths[members].sum() for members in mine) for mine in packed_shares(lengths, 8, 4_096)]
        assert max(totals) <= 1.02 * np.mean(totals)


def test_a_batch_that_fits_only_tightly_is_packed_tightly() -> None:
    lengths = np.array([50, 50, 40, 40, 20], dtype=np.int64)  # longest first into the emptiest: 90 and 20 more
    assert [[sorted(lengths[members].tolist()) for members in mine] for mine in packed_shares(lengths, 2, 100)] == [
        [[50, 50]],
        [[20, 40, 40]],
    ]


def test_packing_is_tight_where_it_can_be() -> None:
    lengths = np.array([60, 40, 50, 50, 30, 70, 100])
    bins = pack(lengths, 100)
    fills = [int(lengths[members].sum()) for members in bins]
    assert len(bins) == 4 and waste(fills, 100) == 0
    assert waste([25], 100) == 0.75 and waste([250, 0], 100) == 0.5 and waste([], 100) == 0


def small() -> dict[str, object]:
    return {
        "identity": np.arange(10, dtype=np.int64),
        "images": np.array([True] * 7 + [False] * 3),
        "repeat": np.array([1, 1, 2, 1, 1, 1, 1, 1, 1, 1], dtype=np.int32),
        "lengths": np.array([5, 9, 2, 7, 1, 8, 3, 4, 6, 10], dtype=np.int64),
    }


def test_the_order_is_pinned() -> None:
    """What comes out here is what a paper's runs saw. A change needs a new ORDER_VERSION and a word in the manifest."""
    assert ORDER_VERSION == 2
    order = Schedule(**small(), seed=0, global_batch=2)
    assert [order.batch(step).tolist() for step in range(order.steps_per_epoch)] == [
        [3, 2],
        [2, 1],
        [4, 6],
        [5, 0],
        [7, 8],
        [9],
    ]
    assert order.epoch(1).samples.tolist() == [0, 3, 5, 4, 1, 2, 6, 2, 9, 7, 8]
    assert [order.rank_batch(0, rank, 2).tolist() for rank in (0, 1)] == [[3], [2]]
    large = Schedule(**small(), seed=0, global_batch=8)
    assert large.batch(0).tolist() == [4, 6, 2, 1, 3, 2, 5, 0]
    assert [[b.tolist() for b in large.packed_batch(0, rank, 2, 12)] for rank in (0, 1)] == [
        [[5, 2], [0, 6, 4]],
        [[1], [3, 2]],
    ]
    windowed = Schedule(**small(), seed=0, global_batch=2, length_window=3)
    assert windowed.epoch(0).samples.tolist() == [2, 4, 6, 2, 1, 3, 5, 0, 8, 7, 9]


def test_dropping_the_last_batch_never_drops_a_modality() -> None:
    order = Schedule(**small(), seed=0, global_batch=3, drop_last=True)
    assert [len(order.batch(step)) for step in range(order.steps_per_epoch)] == [3, 3, 3]
    with pytest.raises(VlmixError, match="3 text samples make no full batch"):
        Schedule(**small(), seed=0, global_batch=4, drop_last=True)


def test_a_modality_smaller_than_the_batch_is_one_short_batch() -> None:
    order = Schedule(**small(), seed=0, global_batch=8)
    assert [len(order.batch(step)) for step in range(order.steps_per_epoch)] == [8, 3]
    assert [len(order.rank_batch(1, rank, 8)) for rank in range(8)] == [1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"global_batch": 0}, "at least 1"), ({"global_batch": 12}, "larger than the 11 samples")],
)
def test_impossible_batches_are_told(change: dict[str, int], message: str) -> None:
    with pytest.raises(VlmixError, match=message):
        Schedule(**{**small(), "seed": 0, **change})


def test_a_world_that_does_not_divide_the_batch_is_told() -> None:
    order = Schedule(**small(), seed=0, global_batch=4)
    with pytest.raises(VlmixError, match="4 cannot be shared evenly by 3 ranks"):
        order.rank_batch(0, 0, 3)
    with pytest.raises(VlmixError, match="rank 2 of 2"):
        order.rank_batch(0, 2, 2)


@settings(max_examples=5)
@given(st.integers(0, 100))
def test_other_seeds_and_epochs_give_other_orders(seed: int) -> None:
    identity = np.arange(1000)
    base = {"identity": identity, "images": identity < 900, "repeat": np.ones(1000, dtype=np.int32)}
    first, second, third = (
        epoch_order(**base, seed=s, epoch=e, global_batch=10).samples.tolist()
        for s, e in ((seed, 0), (seed, 1), (seed + 1, 0))
    )
    assert first != second != third != first


@given(configurations(), st.integers(1, 40), st.integers(0, 3), st.sampled_from([None, 3, 30]))
def test_samples_that_draw_nearly_the_same_are_in_the_order_of_their_draws(
    configuration: dict[str, object], different: int, low: int, groups: int | None
) -> None:
    """`shuffle` sorts by the upper bits of the draws at first; here they agree in all of these."""
    identity, repeat, key = configuration["identity"], configuration["repeat"], np.uint64(7)
    drawn_by = identity.astype(np.uint64) % np.uint64(groups or 2**63)

    def coarse(numbers: np.ndarray) -> np.ndarray:
        return mix64(numbers) % np.uint64(different) << np.uint64(20) | mix64(numbers) % np.uint64(2**low)

    positions = np.repeat(np.arange(len(identity)), repeat)
    occurrence = np.concatenate([np.arange(times) for times in repeat])
    with mock.patch.object(shuffling, "mix64", coarse):
        found = shuffling.shuffle(identity, repeat, key, None if groups is None else drawn_by)
        draw = coarse(coarse(drawn_by + key)[positions] + occurrence.astype(np.uint64) * key)
    in_order = sorted(range(len(positions)), key=lambda at: (draw[at], identity[positions[at]], occurrence[at]))
    assert found.tolist() == positions[in_order].tolist()
