from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmix.mixture import keyed
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.keyed import apportion, choose, exact_share, hash_order, integer_hashes, keyed_order, ranked, repeats

ids = st.lists(st.text("abcdef0123456789/#", min_size=1, max_size=8), unique=True, max_size=60)


@given(ids, st.integers(0, 2**32), st.randoms())
def test_a_rank_depends_on_seed_and_id_alone(names: list[str], seed: int, random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)
    before = dict(zip(names, hash_order(names, seed).tolist(), strict=True))
    assert before == dict(zip(shuffled, hash_order(shuffled, seed).tolist(), strict=True))
    assert [names[i] for i in keyed_order(names, seed)] == [shuffled[i] for i in keyed_order(shuffled, seed)]


def test_ranks_are_pinned() -> None:
    """A change here changes every subset that anybody has drawn: it needs a new format version."""
    assert hash_order(["vqav2/000000180641", "gqa/2327515"], 0).tolist() == [7479029296596140670, 8256821534745404418]
    assert integer_hashes(np.array([1, 2]), 0, "vg regions").tolist() == [15604940236611859703, 17359737497979205564]


@given(st.dictionaries(st.text(max_size=3), st.floats(0.001, 1000), min_size=1, max_size=8), st.integers(0, 500))
def test_shares_sum_and_only_grow(weights: dict[str, float], total: int) -> None:
    shares, more = apportion(total, weights), apportion(total + 1, weights)
    assert sum(shares.values()) == total
    assert all(more[name] >= share for name, share in shares.items())


def test_shares_are_sainte_lagues() -> None:
    assert apportion(10, {"a": 53, "b": 24, "c": 23}) == {"a": 6, "b": 2, "c": 2}  # remainders would say 5, 3, 2
    assert apportion(4, {"a": 1, "b": 1, "c": 2}) == {"a": 1, "b": 1, "c": 2}
    assert apportion(0, {"a": 1.0}) == {"a": 0}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 9), st.data())
def test_subsets_nest_and_are_exact(sizes: list[int], seed: int, data: st.DataObject) -> None:
    names = [f"s{source}/{i}" for source, size in enumerate(sizes) for i in range(size)]
    strata = {
        f"s{s}": np.array([i for i, name in enumerate(names) if name.startswith(f"s{s}/")]) for s in range(len(sizes))
    }
    large = data.draw(st.integers(0, len(names)))
    small = data.draw(st.integers(0, large))
    inner, outer = (choose(strata, ranked(names, seed), total) for total in (small, large))
    assert len(inner) == small and len(outer) == large
    assert set(inner.tolist()) <= set(outer.tolist())
    per_source = Counter(names[i].split("/")[0] for i in outer.tolist())
    for source, size in enumerate(sizes):
        assert abs(per_source[f"s{source}"] - large * size / len(names)) <= len(sizes)


def test_another_source_leaves_the_rank_order_of_the_first_alone() -> None:
    first = [f"a/{i}" for i in range(50)]
    alone = [first[i] for i in keyed_order(first, 3)]
    both = [*first, *(f"b/{i}" for i in range(50))]
    assert [both[i] for i in keyed_order(both, 3) if both[i].startswith("a/")] == alone


def test_too_small_a_source_for_its_weight_is_an_error() -> None:
    strata = {"a": np.arange(3), "b": np.arange(3, 20)}
    with pytest.raises(VlmixError, match="'a' asks for 5 samples, it has 3"):
        choose(strata, ranked([str(i) for i in range(20)], 0), 10, {"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("ratio", "count", "share"), [(0.1, 5, 1), (0.1, 665298, 66530), (0.005, 100, 1), (0.29, 100, 29), (1, 7, 7)]
)
def test_shares_are_rounded_in_decimal(ratio: float, count: int, share: int) -> None:
    assert exact_share(ratio, count) == share


@given(ids, st.sampled_from([1.0, 1.25, 2.0, 2.5, 3.1]), st.integers(0, 5))
def test_repeats_are_exact_and_even(names: list[str], repeat: float, seed: int) -> None:
    counts = repeats(names, repeat, seed)
    assert counts.sum() == exact_share(repeat, len(names))
    assert set(counts.tolist()) <= {int(repeat), int(repeat) + 1}


def test_a_column_of_ids_has_the_order_of_its_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "_SLICE", 7)
    names = [f"s/{i:03d}é" for i in range(50)]
    column = pa.chunked_array([names[:20], [], names[20:]])
    assert hash_order(column, 5).tolist() == hash_order(names, 5).tolist()
    assert hash_order(column.combine_chunks(), 5).tolist() == hash_order(names, 5).tolist()


@pytest.mark.parametrize("as_column", [False, True])
def test_equal_hashes_are_ordered_by_id(as_column: bool) -> None:
    ids = ["d", "b", "e", "a", "c", "f"]
    hashes = np.array([7, 7, 1, 7, 9, 9], dtype=np.uint64)
    ranks = keyed.Ranks(pa.array(ids) if as_column else ids, hashes)
    assert [ids[i] for i in ranks.order()] == ["e", "a", "b", "d", "c", "f"]
    assert [ids[i] for i in ranks.order(np.array([0, 3, 4]))] == ["a", "d", "c"]
