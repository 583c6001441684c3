"""Several mixtures held as one."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from vlmix.mixture.blend import blend, digest, names_of, open_samples, origin, parse_shares
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture


@pytest.fixture(scope="session")
def half(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A view whose folder is called as that of another one is."""
    out = tmp_path_factory.mktemp("half") / "mixture"
    open_mixture(mixture).subset(ratio=0.5).save(out)
    return out


def test_samples_are_those_of_the_mixtures_under_names_of_their_own(mixture: Path, half: Path) -> None:
    whole, part = open_mixture(mixture), open_mixture(half)
    both = blend({str(mixture): 0.8, str(half): 0.2})
    one, other = (f"{path.parent.name}/mixture" for path in (mixture, half))
    assert list(both.mixtures) == [one, other] and len(both) == len(whole) + len(part)
    assert both[len(whole) + 3].conversations == part[3].conversations
    assert both[len(whole) + 3].id == f"{other}/{part[3].id}" and both[-1].jpegs == part[-1].jpegs
    assert both[both[len(whole) + 3].id] == both[len(whole) + 3]
    assert both.sources == {
        **{f"{one}/{name}": count for name, count in whole.sources.items()},
        **{f"{other}/{name}": count for name, count in part.sources.items()},
    }
    assert both.column("id").to_pylist() == [sample.id for sample in both]
    assert len(set(both.column("id").to_pylist())) == len(both) == len(set(both.rows.tolist()))
    texts = {int(at): text for positions, many in both.texts() for at, text in zip(positions, many)}
    assert all(texts[at] == [turn.value for turn in both[at].conversations] for at in (0, 5, len(whole), len(both) - 1))
    counts, (widths,) = both.image_fields("width")
    assert counts.tolist() == [len(sample.images) for sample in both] and len(widths) == counts.sum()
    with pytest.raises(IndexError):
        both[len(both)]
    with pytest.raises(KeyError):
        both[part[3].id]
    copy = pickle.loads(pickle.dumps(both))
    assert copy[len(whole)] == both[len(whole)]
    some = both.select(np.array([2, len(whole), len(whole) + 7]))
    assert [sample.id for sample in some] == [both[at].id for at in (2, len(whole), len(whole) + 7)]
    assert list(both.overlaps()) == [(one, other, len(part))]


def test_the_schedule_takes_weights_repeats_and_whatever_is_left(mixture: Path, half: Path) -> None:
    whole, part = open_mixture(mixture), open_mixture(half)
    weighed = blend({str(mixture): 8, str(half): 2})
    order = weighed.schedule(16, seed=3)
    assert order.steps_per_epoch == -(-int(np.sum(weighed.column("repeat").to_numpy())) // 16)
    owners = np.concatenate([order.batch(step) for step in range(order.steps_per_epoch)]) >= len(whole)
    assert abs(owners.mean() - 0.2) < 0.5 / order.steps_per_epoch + 2 / len(owners)
    thrice = blend({str(mixture): {"repeat": 1}, str(half): {"repeat": 3}}).schedule(16)
    samples = [int(each.column("repeat").to_numpy().sum()) for each in (whole, part)]
    assert thrice.steps_per_epoch == -(-(samples[0] + 3 * samples[1]) // 16)
    epoch = np.concatenate([thrice.batch(step) for step in range(thrice.steps_per_epoch)])
    counts = np.bincount(epoch, minlength=len(weighed))
    assert set(counts[len(whole) :]) <= {2, 3, 4} and np.median(counts[len(whole) :]) == 3
    single = blend({str(mixture): 0.3}).schedule(16, seed=1)
    alone = whole.schedule(16, seed=1)
    assert all(single.batch(step).tolist() == alone.batch(step).tolist() for step in range(2 * alone.steps_per_epoch))
    with pytest.raises(VlmixError, match=r"mixture: no sample is left to train on; take .*/mixture out"):
        weighed.select(np.arange(len(whole))).schedule(16)


def test_what_a_blend_is_does_not_depend_on_where_it_lies(mixture: Path, half: Path, tmp_path: Path) -> None:
    link = tmp_path / "other"
    link.symlink_to(mixture)
    assert digest(open_samples({str(mixture): 1, str(half): 2})) == digest(open_samples({str(link): 1, str(half): 2}))
    assert digest(open_samples({str(mixture): 1, str(half): 2})) != digest(
        open_samples({str(half): 2, str(mixture): 1})
    )


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["demo/a", "demo/b"], ["a", "b"]),
        (["x/mixture/", "./y/mixture", "mine"], ["x/mixture", "y/mixture", "mine"]),
        (["s3://one/mixture", "s3://two/mixture"], ["one/mixture", "two/mixture"]),
        (["/data/a/m", "/backup/a/m"], ["data/a/m", "backup/a/m"]),
    ],
)
def test_mixtures_are_called_by_their_folders(folders: list[str], names: list[str]) -> None:
    assert names_of(folders) == names
    for folder, name in zip(folders, names):
        assert origin(dict.fromkeys(folders, 1), f"{name}/gqa/7") == (folder, "gqa/7")
    assert origin("demo/a", "gqa/7") == ("demo/a", "gqa/7")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 0}, "a: a weight is above 0"),
        ({"a": -1, "b": 1}, "a: a weight is above 0"),
        ({"a": float("inf"), "b": 1}, "a: a weight is above 0 and at most"),
        ({"a": float("nan"), "b": 1}, "a: a weight is above 0"),
        ({"a": "0.8", "b": 1}, r"a: expected a weight or \{repeat: N\}, got '0.8'"),
        ({"a": True, "b": 1}, "a: expected a weight"),
        ({"a": None, "b": 1}, "a: expected a weight"),
        ({"a": {"weight": 1}, "b": 1}, "a: expected a weight"),
        ({"a": {"repeat": 0}, "b": {"repeat": 1}}, "a: a repeat is above 0"),
        ({"a": {"repeat": 2}, "b": 1}, "b has a weight and a a repeat; give all of them the same"),
        ({"a": {"repeat": 2}}, "`repeat` is for several mixtures; for one, set epochs: 2"),
        ({}, "name at least one mixture"),
    ],
)
def test_shares_that_are_none_are_told(given: dict[str, object], message: str) -> None:
    with pytest.raises(VlmixError, match=f"recipe: {message}"):
        parse_shares(given, "recipe")


def test_the_same_mixture_twice_and_one_that_is_missing_are_told(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match=r"mixture and .*/mixture/\. are the same mixture; name it once"):
        blend({str(mixture): 1, f"{mixture}/.": 1})
    link = tmp_path / "other"
    link.symlink_to(mixture)
    with pytest.raises(VlmixError, match="mixture and other hold the same samples; name one of them"):
        blend({str(mixture): 1, str(link): 1})
    with pytest.raises(VlmixError, match="nowhere"):
        blend({str(mixture): 1, str(tmp_path / "nowhere"): 1})
