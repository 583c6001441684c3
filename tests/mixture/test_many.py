"""Mixtures of many samples, whose places and order are computed once on a machine: the same as of few."""

import hashlib
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vlmix.mixture import blend as blends
from vlmix.mixture.blend import blend, digest
from vlmix.mixture.dataset import reader
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.schedule import blend as blend_schedules
from vlmix.mixture.schedule import schedule as schedules
from vlmix.mixture.schedule.schedule import Schedule


@pytest.fixture(scope="module")
def view(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many") / "view"
    open_mixture(mixture)[::3].save(out)
    return out


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """From here on, every mixture has many samples."""
    monkeypatch.setenv("VLMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reader, "LEAST", 1)
    return tmp_path / "cache"


CASES: dict[str, Callable[[Path, Path], Mixture]] = {
    "whole": lambda mixture, view: open_mixture(mixture),
    "view": lambda mixture, view: open_mixture(view),
    "part": lambda mixture, view: open_mixture(mixture)[[8, 5, 700, 701, 30, 2, 444, 3]],
    "part of a view": lambda mixture, view: open_mixture(view)[10:100],
}


def orders(opened: Mixture) -> list[Schedule]:
    lengths = np.arange(len(opened))[::-1] % 7
    return [
        opened.schedule(4),
        opened.schedule(4, seed=3),
        opened.schedule(8),
        opened.schedule(4, length_window=2),
        opened.schedule(4, length_window=2, lengths=lengths),
        opened.schedule(4, length_window=2, lengths=lengths[::-1]),
        opened.schedule(4, lengths=lengths),
        opened.schedule(3, drop_last=True),
        opened.schedule(4, share_images=2),
        opened.schedule(4, share_images=4),
        opened.schedule(4, share_images=4, length_window=2),
    ]


def said(opened: Mixture) -> list[object]:
    batches = [
        [order.batch(step).tolist() for step in (0, order.steps_per_epoch - 1, order.steps_per_epoch)]
        + [order.rank_batch(1, 1, 2).tolist() for _ in [0] if order.global_batch % 2 == 0]
        for order in orders(opened)
    ]
    return [batches, [opened[position] for position in range(0, len(opened), 5)], opened.words().tolist()]


@pytest.mark.parametrize("case", CASES)
def test_they_read_and_train_as_few_do(
    mixture: Path, view: Path, many: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as few:
        few.setattr(reader, "LEAST", 10**9)
        expected = said(CASES[case](mixture, view))
        assert not many.exists()
    assert said(CASES[case](mixture, view)) == expected

    def computed(*_: object, **more: object) -> None:
        raise AssertionError("it was computed before")

    monkeypatch.setattr(reader.Reader, "_make_places", computed)
    monkeypatch.setattr(schedules, "epoch_order", computed)
    assert said(CASES[case](mixture, view)) == expected


@pytest.mark.parametrize("shares", [(0.3, 0.7), ({"repeat": 2}, {"repeat": 0.5})])
def test_blends_train_as_those_of_few_do(
    mixture: Path, view: Path, many: Path, shares: tuple[object, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = blend(dict(zip([str(mixture), str(view)], shares)))
    lengths = np.arange(len(opened)) % 13

    def steps(order: Schedule) -> list[list[int]]:
        return [order.rank_batch(step, 1, 2).tolist() for step in range(0, 3 * order.steps_per_epoch, 5)]

    def all_steps() -> list[list[list[int]]]:
        found = [opened.schedule(8), opened.schedule(8, seed=5, length_window=3), opened.schedule(8, lengths=lengths)]
        return [steps(order) for order in found]

    with monkeypatch.context() as few:
        few.setattr(reader, "LEAST", 10**9)
        expected = all_steps()
        assert not many.exists()
    assert all_steps() == expected
    order = opened.schedule(8, length_window=3)
    assert steps(pickle.loads(pickle.dumps(order))) == steps(order)

    def computed(*_: object, **more: object) -> None:
        raise AssertionError("it was computed before")

    monkeypatch.setattr(blend_schedules, "shuffle", computed)
    assert all_steps() == expected


def read(part: tuple[Mixture, Schedule]) -> tuple[list[str], list[int]]:
    opened, order = part
    return [opened[position].id for position in order.batch(0).tolist()], order.rank_batch(1, 0, 2).tolist()


@pytest.mark.processes
def test_another_process_maps_what_it_is_sent(mixture: Path, many: Path) -> None:
    opened = open_mixture(mixture)
    order = opened.schedule(4, length_window=2)
    expected = read((opened, order))
    sent = pickle.dumps((opened, order))
    assert len(sent) < 2 * len(pickle.dumps(opened.manifest)) + 10_000, "no array of N numbers goes along"
    assert read(pickle.loads(sent)) == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(read, [(opened, order)]) == [expected]


def test_the_digest_of_samples_is_that_of_their_rows(
    mixture: Path, view: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of earlier versions have it in their folders."""
    monkeypatch.setattr(blends, "_ROWS", 7)
    for opened in (open_mixture(mixture), open_mixture(view), open_mixture(mixture)[:1]):
        root = opened.root_manifest.checksums["samples.parquet"]
        plain = json.dumps([root, opened.rows.tolist()], separators=(",", ":"))
        assert digest(opened) == hashlib.sha256(plain.encode()).hexdigest()
    assert digest(blend({str(mixture): 1, str(view): 1})) != digest(open_mixture(mixture))
