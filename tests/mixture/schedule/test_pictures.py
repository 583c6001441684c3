"""Orders that keep samples of the same pictures together, and the bins of their trees."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.helpers import vlmix, vlmix_here
from vlmix.mixture.blend import blend
from vlmix.mixture.dataset import reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import _digests
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.schedule import pictures
from vlmix.mixture.schedule.packing import packed_shares
from vlmix.mixture.schedule.pictures import picture_groups, runs
from vlmix.mixture.schedule.schedule import Schedule, _longest_first, epoch_order
from vlmix.mixture.schedule.trees import Sharing, packed_trees, trees_of

SOURCES = 7


class Made:
    """Made-up samples: of pictures with as many on average as LLaVA-1.5 has, whose 624,610 show 328,489."""

    def __init__(self, pictures: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        sizes = rng.geometric(0.526, pictures)
        self.picture = rng.permutation(np.repeat(np.arange(pictures), sizes))
        self.size = len(self.picture)
        # A picture of few samples is of another source than one of many, as book covers are.
        by_picture = np.where(sizes == 1, rng.integers(0, 3, pictures), rng.integers(2, SOURCES, pictures))
        self.source = by_picture[self.picture]
        self.digests = np.stack([self.picture.astype(np.uint64) * np.uint64(7919) + np.uint64(1)] * 2, axis=1)
        self.lengths = 616 + rng.lognormal(4.3, 0.8, self.size).astype(np.int64)

    def groups(self, share: int) -> NDArray[np.uint64]:
        return picture_groups(np.ones(self.size, dtype=np.int64), self.digests, np.arange(self.size), share)

    def sharing(self, share: int) -> Sharing:
        return Sharing(self.groups(share), np.full(self.size, 616), np.zeros(self.size, dtype=np.uint64))

    def order(self, share: int, **more: object) -> Schedule:
        ones = np.ones(self.size, dtype=np.int32)
        return Schedule(
            np.arange(self.size),
            ones > 0,
            ones,
            self.lengths,
            **{"seed": 3, "global_batch": 128, "groups": self.groups(share), **more},  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def made() -> Made:
    return Made(30_000)


@pytest.mark.parametrize("share", [2, 4, 8])
def test_samples_of_a_picture_come_together_up_to_so_many(made: Made, share: int) -> None:
    found = made.order(share, global_batch=made.size).epoch(0).samples  # in one batch, whose end cuts nothing
    assert sorted(found.tolist()) == list(range(made.size))
    bounds = runs(made.groups(share), found)
    sizes = Counter(np.diff(bounds).tolist())
    expected: Counter[int] = Counter()
    for count in np.bincount(made.picture).tolist():
        expected.update([share] * (count // share) + ([count % share] if count % share else []))
    assert sizes == expected and max(sizes) <= share
    for start, stop in pairwise(bounds.tolist()):
        assert len(set(made.picture[found[start:stop]].tolist())) == 1
        assert (np.diff(found[start:stop]) > 0).all()


def test_a_subset_keeps_every_group_in_its_place(made: Made) -> None:
    """In batches of one, so that no batch's end cuts."""
    rng, groups = np.random.default_rng(1), made.groups(4)
    kept = np.flatnonzero(rng.random(made.size) < 0.4)
    ones = np.ones(made.size, dtype=np.int32)

    def order(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        one = ones[rows]
        found = epoch_order(rows, one > 0, one, groups=groups[rows], seed=3, epoch=1, global_batch=len(rows))
        return rows[found.samples]

    whole, part = order(np.arange(made.size)), order(kept)
    assert part.tolist() == whole[np.isin(whole, kept)].tolist()


@pytest.mark.parametrize("share", [2, 8])
def test_every_source_is_spread_evenly_over_the_epoch(made: Made, share: int) -> None:
    """A group whose place is that of its first sample would come early if it is large: a curriculum."""
    found = made.source[made.order(share).epoch(0).samples]
    tenths = np.array_split(found, 10)
    for source in range(made.source.max() + 1):
        shares = [float((tenth == source).mean()) for tenth in tenths]
        assert max(abs(each - (made.source == source).mean()) for each in shares) < 0.025, source
    # What is avoided: the least of the hashes of a group's samples.
    rng = np.random.default_rng(0)
    drawn = rng.random(made.size)
    least = np.full(made.picture.max() + 1, 1.0)
    np.minimum.at(least, made.picture, drawn)
    naive = made.source[np.argsort(least[made.picture], kind="stable")]
    first = naive[: made.size // 10]
    assert (
        max(abs(float((first == source).mean()) - (made.source == source).mean()) for source in range(SOURCES)) > 0.05
    )


def test_batches_are_full_and_only_their_ends_cut_groups(made: Made) -> None:
    order = made.order(8)
    groups = made.groups(8)
    sizes = [len(order.batch(step)) for step in range(order.steps_per_epoch)]
    assert set(sizes[:-1]) == {128}
    pieces = Counter[int]()
    for step in range(order.steps_per_epoch):
        pieces.update(dict.fromkeys(groups[order.batch(step)].tolist(), 1))
    cut = sum(count > 1 for count in pieces.values())
    assert 0 < cut < order.steps_per_epoch
    for world in (1, 2, 8):
        for step in (0, 5):
            mine = [order.rank_batch(step, rank, world) for rank in range(world)]
            assert sorted(np.concatenate(mine).tolist()) == sorted(order.batch(step).tolist())


def test_a_length_window_sorts_whole_groups(made: Made) -> None:
    share, groups = 8, made.groups(8)
    plain, sorted_ = made.order(share), made.order(share, length_window=4)
    together = [len(runs(groups, order.epoch(0).samples)) for order in (plain, sorted_)]
    assert together[1] < 1.05 * together[0], "windows and batches cut, and nothing else does"
    spread = [
        float(np.mean([made.lengths[order.batch(step)].std() for step in range(order.steps_per_epoch - 1)]))
        for order in (plain, sorted_)
    ]
    assert spread[1] < 0.9 * spread[0]


def test_a_repeated_sample_comes_again_elsewhere() -> None:
    picture = np.repeat(np.arange(50), 3)
    digests = np.stack([picture.astype(np.uint64) + np.uint64(1)] * 2, axis=1)
    groups = picture_groups(np.ones(150, dtype=np.int64), digests, np.arange(150), 8)
    repeat = np.where(picture % 2, 3, 1).astype(np.int32)
    total = int(repeat.sum())
    order = epoch_order(np.arange(150), repeat > 0, repeat, groups=groups, seed=0, epoch=0, global_batch=total)
    found = order.samples
    assert np.bincount(found).tolist() == repeat.tolist()
    bounds = runs(groups, found)
    assert np.diff(bounds).tolist() == [3] * int(repeat.sum() // 3)
    # Where two times stand side by side, a tree has none of its samples twice.
    twice = np.array([0, 1, 2, 0, 1, 2])
    trees = trees_of(twice, np.full(6, 9), Sharing(groups, np.full(150, 5), groups), 1_000)
    assert [tree.members.tolist() for tree in trees] == [[0, 1, 2], [3, 4, 5]]


def test_samples_share_only_if_all_their_pictures_are_equal() -> None:
    a, b, c = np.array([[1, 11], [2, 22], [3, 33]], dtype=np.uint64)
    lists = [[a], [a, b], [b, a], [a, b], [], [b], [a], [], [a, c], [c, b]]
    counts = np.array(list(map(len, lists)))
    digests = np.array([each for some in lists for each in some], dtype=np.uint64)
    groups = picture_groups(counts, digests, np.arange(10), 8)
    assert groups[0] == groups[6] and groups[1] == groups[3]
    assert len(set(groups.tolist())) == 8
    assert groups[[4, 7]].tolist() == [4, 7], "texts have the places that they have without sharing"


def test_the_default_is_todays_order() -> None:
    rng = np.random.default_rng(0)
    images, repeat = rng.random(500) < 0.8, rng.integers(1, 3, 500).astype(np.int32)
    given_ = {"seed": 1, "epoch": 2, "global_batch": 16}
    plain = epoch_order(np.arange(500), images, repeat, **given_)
    groups = np.arange(500, dtype=np.uint64)
    same = epoch_order(np.arange(500), images, repeat, groups=groups, **given_)
    assert plain.samples.tolist() == same.samples.tolist()


def test_two_lists_of_one_hash_are_told() -> None:
    digests = np.array([[5, 1], [5, 2]], dtype=np.uint64)
    with pytest.raises(VlmixError, match="two lists of pictures have the same hash of 64 bits; take share_images: 1"):
        picture_groups(np.ones(2, dtype=np.int64), digests, np.arange(2), 2)


def test_two_groups_of_one_hash_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pictures would be taken for the same."""
    monkeypatch.setattr(pictures, "mix64", lambda values: values)
    digests = np.array([[7, 1]] * 3 + [[7 + int(pictures._STEP), 2]], dtype=np.uint64)
    ones = np.ones(4, dtype=np.int64)
    assert len(set(picture_groups(ones, digests, np.arange(4), 3).tolist())) == 2
    with pytest.raises(VlmixError, match="two groups of pictures have the same hash of 64 bits"):
        picture_groups(ones, digests, np.arange(4), 2)


@pytest.mark.parametrize("number", [0, -1, 2.5, "8", None, 2**31])
def test_what_is_no_number_of_samples_is_told(mixture: Path, tmp_path: Path, number: object) -> None:
    opened = open_mixture(mixture)
    opened[:50].save(tmp_path / "part")
    several = blend({str(mixture): 0.5, str(tmp_path / "part"): 0.5})
    for ask in (
        lambda: opened.schedule(16, share_images=number),  # type: ignore[arg-type]
        lambda: opened.picture_groups(number),  # type: ignore[arg-type]
        lambda: several.schedule(16, share_images=number),  # type: ignore[arg-type]
    ):
        with pytest.raises(VlmixError, match="share_images"):
            ask()


def test_numbers_of_numpy_are_numbers(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_mixture(mixture)
    expected = opened.schedule(16, share_images=4).batch(3).tolist()
    monkeypatch.setenv("VLMIX_CACHE", str(tmp_path))
    monkeypatch.setattr(reader, "LEAST", 1)
    assert opened.schedule(16, share_images=np.int64(4)).batch(3).tolist() == expected


@pytest.mark.parametrize(
    ("world", "rank", "said"),
    [(3, None, "cannot be shared evenly by 3 ranks"), (2, -1, "rank -1 of 2"), (2, 2, "rank 2 of 2")],
)
@pytest.mark.parametrize("pack", [None, 2048])
@pytest.mark.parametrize("share", [1, 4])
def test_ranks_that_are_none_are_not_listed(
    mixture: Path, world: int, rank: int | None, said: str, pack: int | None, share: int
) -> None:
    options = ["--global-batch=16", f"--world={world}", f"--share-images={share}", "--steps=1"]
    options += [] if rank is None else [f"--rank={rank}"]
    options += [] if pack is None else [f"--pack={pack}"]
    done = vlmix_here("batches", mixture, *options)
    assert done.returncode == 1 and said in done.stderr, done.stderr


def test_a_group_in_a_length_window_is_as_long_as_its_longest_sample() -> None:
    lengths, groups = np.array([5, 90, 20, 30, 40]), np.array([1, 1, 2, 2, 3], dtype=np.uint64)
    assert _longest_first(np.arange(5), lengths, groups).tolist() == [0, 1, 4, 2, 3]


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_listed_is_the_order(mixture: Path, packed: bool) -> None:
    opened = open_mixture(mixture)
    options = ["--global-batch", "32", "--world", "2", "--share-images", "4", "--steps", "2", "--image-tokens", "576"]
    options += ["--pack", "4096"] if packed else []
    found = json.loads(vlmix("batches", mixture, *options, "--json").stdout)
    order = opened.schedule(32, share_images=4, lengths=opened.lengths(576))
    assert found["steps_per_epoch"] == order.steps_per_epoch
    ids, words, images = (opened.column(name) for name in ("id", "num_words", "num_images"))
    for step in range(2):
        batch, shares = order.batch(step), [row for row in found["shares"] if row["step"] == step]
        assert sorted(id for row in shares for id in row["ids"]) == sorted(ids.take(batch).to_pylist())
        alone = sum(words.take(batch).to_pylist()) + 576 * sum(images.take(batch).to_pylist())
        told = sum(row["length"] for row in shares)
        assert told == alone if not packed else alone - 576 * 20 < told < alone
        assert told % 576 == alone % 576
        for row in shares:
            assert len(row["bins"]) == (len(shares[0]["bins"]) if packed else 0)
            if packed:
                assert row["waste"] == pytest.approx(1 - row["length"] / 4096 / len(row["bins"]))


@pytest.mark.parametrize(("world", "capacity", "most"), [(2, 4_096, 1.02), (8, 4_096, 1.05), (8, 8_192, 1.05)])
def test_ranks_have_equally_much_to_compute(made: Made, world: int, capacity: int, most: float) -> None:
    order, sharing, imbalance, computed, alone = made.order(8), made.sharing(8), [], 0, 0
    for step in range(60):
        batch = order.batch(step)
        bins = packed_trees(trees_of(batch, made.lengths[batch], sharing, capacity), world, capacity)
        sums = [sum(tree.tokens for trees in rank for tree in trees) for rank in bins]
        imbalance.append(max(sums) / np.mean(sums))
        computed, alone = computed + sum(sums), alone + int(made.lengths[batch].sum())
    assert (max(imbalance) if world == 2 else np.mean(imbalance)) <= most
    assert alone / computed > 1.4


def test_a_tree_is_split_where_that_pays() -> None:
    lengths = np.array([700] * 8, dtype=np.int64)
    sharing = Sharing(np.zeros(8, dtype=np.uint64), np.full(8, 100), np.zeros(8, dtype=np.uint64))
    trees = trees_of(np.arange(8), lengths, sharing, 8_192)
    assert [(tree.trunk, tree.tokens) for tree in trees] == [(100, 4_900)]
    bins = packed_trees(trees, 2, 8_192)
    assert [[(len(tree.members), tree.tokens) for trees in rank for tree in trees] for rank in bins] == [
        [(4, 2_500)],
        [(4, 2_500)],
    ]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(1, 60)), min_size=1, max_size=40),
    st.integers(20, 120),
    st.integers(1, 4),
)
def test_bins_hold_everything_once_and_are_never_too_full(
    given_: list[tuple[int, int, int]], capacity: int, world: int
) -> None:
    given_ = sorted(given_, key=lambda each: each[0])
    groups = np.array([group for group, _, _ in given_], dtype=np.uint64)
    prefixes = np.array([prefix for _, prefix, _ in given_], dtype=np.uint64)
    trunks = np.where(groups == 0, 0, 10 + groups.astype(np.int64))
    lengths = trunks + np.array([rest for _, _, rest in given_])
    trees = trees_of(np.arange(len(given_)), lengths, Sharing(groups, trunks, prefixes), capacity)
    for tree in trees:
        assert len({(groups[i], prefixes[i]) for i in tree.members.tolist()}) == 1
        assert (tree.trunk > 0) == (len(tree.members) > 1)
        assert (tree.trunk + tree.rest == lengths[tree.members]).all()
        assert tree.tokens <= capacity or len(tree.members) == 1
    bins = packed_trees(trees, world, capacity)
    assert len({len(mine) for mine in bins}) == 1, "every rank has the same number of micro-batches"
    members = [i for mine in bins for trees in mine for tree in trees for i in tree.members.tolist()]
    assert sorted(members) == list(range(len(given_)))
    for mine in bins:
        for some in mine:
            assert sum(tree.tokens for tree in some) <= capacity or len(some) == 1
            assert all((tree.trunk + tree.rest == lengths[tree.members]).all() for tree in some)


def test_without_shared_pictures_the_bins_are_as_level_as_without_trees(made: Made) -> None:
    lengths = made.lengths[:128]
    alone = Sharing(np.arange(128, dtype=np.uint64), np.full(128, 616), np.zeros(128, dtype=np.uint64))
    trees = packed_trees(trees_of(np.arange(128), lengths, alone, 4_096), 8, 4_096)
    plain = packed_shares(lengths, 8, 4_096)
    sums = [sum(tree.tokens for some in mine for tree in some) for mine in trees]
    assert max(sums) <= max(sum(int(lengths[members].sum()) for members in mine) for mine in plain)


def test_digests_are_the_numbers_that_their_digits_write() -> None:
    numbers = [0, 1, 2**64, 2**128 - 1, 0x0123456789ABCDEF_FEDCBA9876543210]
    texts = pa.array(["before", *(f"{number:032x}" for number in numbers), "more"])[1:-1]
    for some in (texts, texts.cast(pa.large_string())):
        found = _digests(some).tolist()
        assert [high << 64 | low for high, low in found] == numbers
    assert _digests(texts[:0]).shape == (0, 2)
    for wrong in ("", "0" * 31, "g" * 32, "é" * 16):
        with pytest.raises(VlmixError, match="hash"):
            _digests(pa.array([*texts.to_pylist(), wrong]))


def test_a_mixture_groups_its_samples_by_their_stored_pictures(mixture: Path, tmp_path: Path) -> None:
    opened = open_mixture(mixture)
    groups = opened.picture_groups(4)
    pictures = [tuple(image["xxh3"] for image in images) for images in opened.column("images").to_pylist()]
    assert any(count > 1 for shown, count in Counter(pictures).items() if shown)
    by_group: dict[int, list[int]] = {}
    for position, group in enumerate(groups.tolist()):
        by_group.setdefault(group, []).append(position)
    for members in by_group.values():
        assert len({pictures[position] for position in members}) == 1 and len(members) <= 4
        assert len(members) == 1 or pictures[members[0]]
    part = opened.subset(ratio=0.3)
    assert part.picture_groups(4).tolist() == groups[part.rows].tolist()
    part.save(tmp_path / "view")
    assert open_mixture(tmp_path / "view").picture_groups(4).tolist() == groups[part.rows].tolist()
    assert opened.schedule(16).batch(3).tolist() == opened.schedule(16, share_images=1).batch(3).tolist()
    assert opened.schedule(16).batch(3).tolist() != opened.schedule(16, share_images=4).batch(3).tolist()
