"""Which runs are left out, on scores that are made up; and a sweep that leaves some out, with a backend of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.mixture.benchmark.made import values_of
from tests.train.sweep.made import sweep_file, untrained
from vlmix.builders import known_benchmarks
from vlmix.mixture.benchmark.values import Values
from vlmix.train.sweep.early import by_use, needless
from vlmix.train.sweep.folder import read_rows, read_values
from vlmix.train.sweep.recipe import EvalConfig, Sweep, load, run_specs
from vlmix.train.sweep.report.aggregate import Result
from vlmix.train.sweep.sweep import left_out, run

RATIOS = (0.1, 0.3, 0.5, 0.7, 1.0)


def sweep(**changes: Any) -> Sweep:
    plain: dict[str, Any] = {
        "name": "x", "mixture": "m", "recipe": "tiny", "ratios": RATIOS, "seeds": (0, 1, 2),
        "evaluate": {"gqa": EvalConfig(data="x")},
    }  # fmt: skip
    return Sweep(**plain | changes)


def scored(
    rates: Mapping[tuple[float, int], float], questions: int = 4000
) -> tuple[list[Any], dict[str, dict[str, Values]]]:
    """Rows and values of runs by (ratio, seed) that answer so many questions right."""
    rows, values = [], {}
    for (ratio, seed), rate in rates.items():
        name = f"random-{ratio:g}-seed{seed}"
        found = values_of(np.arange(questions) < rate * questions)
        rows.append(
            Result(
                run=name, grid={}, selection="random", ratio=ratio, seed=seed, samples=1, sources={}, steps=1, loss=1.0,
                train_seconds=1.0, evaluate_seconds=1.0, scores={"gqa": found.score()}, metrics={}, questions={},
                finished="2026-11-28T19:45:02Z", machine="2 x A", versions={}, mixture="0123456789abcdef",
            )
        )  # fmt: skip
        values[name] = {"gqa": found}
    return rows, values


FULL = {(1.0, seed): 0.6 + seed / 1000 for seed in range(3)}


def left(rates: Mapping[tuple[float, int], float]) -> dict[str, str]:
    return needless(run_specs(sweep()), *scored(rates))


def test_nothing_is_left_out_before_the_full_mixture_is_done_and_two_seeds_of_a_share() -> None:
    low = {(0.1, seed): 0.2 for seed in range(2)}
    assert left({}) == {}
    assert left({(1.0, 0): 0.6, (1.0, 1): 0.6} | low) == {}, "one seed of the full mixture is open"
    assert left(FULL | {(0.1, 0): 0.2}) == {}


def test_seeds_that_a_sweep_no_longer_has_stand_for_none_of_its_own() -> None:
    low = {(0.1, seed): 0.2 for seed in range(2)}
    assert left({(1.0, 0): 0.6, (1.0, 1): 0.6, (1.0, 9): 0.6} | low) == {}, "seed 2 of the full mixture is open"
    assert left(FULL | {(0.1, 8): 0.2, (0.1, 9): 0.2}) == {}, "no seed of the share is done"
    assert left(FULL | {(0.2, seed): 0.2 for seed in range(2)}) == {}, "the report does not show this share"
    assert left(FULL | {(1.0, 9): 0.6} | low).keys() == {"random-0.1-seed2"}, "all of its own are done"


def test_a_share_that_is_far_from_enough_decides_itself_and_the_smaller_ones() -> None:
    found = left(FULL | {(0.3, seed): 0.3 + seed / 1000 for seed in range(2)})
    assert found == {
        "random-0.3-seed2": "30 % is not enough, whatever more seeds say",
        **{f"random-0.1-seed{seed}": "30 % is not enough" for seed in range(3)},
    }


def test_a_share_that_is_surely_enough_decides_itself_and_the_larger_ones() -> None:
    found = left(FULL | {(0.5, seed): 0.72 + seed / 1000 for seed in range(2)})
    assert set(found) == {"random-0.5-seed2", *(f"random-0.7-seed{seed}" for seed in range(3))}
    assert found["random-0.7-seed0"] == "50 % is enough"


def test_a_share_near_the_mark_decides_nothing() -> None:
    assert left(FULL | {(0.5, seed): 0.59 + seed / 1000 for seed in range(2)}) == {}
    apart = {(0.5, 0): 0.2, (0.5, 1): 0.55}
    assert left(FULL | apart) == {}, "seeds that differ by more than questions do"


def test_the_middle_of_the_open_shares_comes_first() -> None:
    specs = run_specs(sweep())
    assert [spec.ratio for spec in by_use(specs)][:6] == [1.0] * 3 + [0.5] * 3
    larger = [spec for spec in specs if spec.ratio > 0.5]
    assert [spec.ratio for spec in by_use(larger)] == [1.0] * 3 + [0.7] * 3


def test_selections_may_be_better_with_less_and_keep_their_controls() -> None:
    """Half of a mixture with bad samples may not be enough where the best tenth is."""
    low = FULL | {(0.3, seed): 0.3 + seed / 1000 for seed in range(2)}
    rows, values = scored(low)
    more, more_values = scored({each: rate for each, rate in low.items() if each[0] < 1})
    renamed = [
        msgspec.structs.replace(row, run=row.run.replace("random", "lengths"), selection="lengths") for row in more
    ]
    values |= {name.replace("random", "lengths"): found for name, found in more_values.items()}
    found = needless(run_specs(sweep(selections=("random", "lengths"))), rows + renamed, values)
    assert found.keys() == {"random-0.3-seed2", "lengths-0.3-seed2"}, "shares of 10 % are open for both"


def test_a_score_that_is_no_number_decides_nothing() -> None:
    """The report does not count such a run either."""
    rows, values = scored(FULL | {(0.3, seed): 0.3 + seed / 1000 for seed in range(2)})
    for row in rows:
        row.scores["pope"] = 50.0
        values[row.run]["pope"] = values_of([1.0, 0.0] * 500)
    assert needless(run_specs(sweep()), rows, values)
    rows[-1].scores["pope"] = float("nan")
    assert needless(run_specs(sweep()), rows, values) == {}


@pytest.fixture()
def plan(mixture: Path, raw: Path, tmp_path: Path) -> Path:
    plain = {"name": "early", "ratios": [0.1, 0.2, 0.3, 0.4, 0.5, 1.0], "seeds": [0, 1, 2], "stop_early": True}
    return sweep_file(tmp_path, mixture, 8, evaluate={"vqav2": {"data": str(raw)}}, **plain)


def test_a_sweep_leaves_out_what_cannot_change_its_answer_and_runs_it_when_asked(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(name: str) -> float:
        _, ratio, seed = name.split("-")
        return (0.6 if float(ratio) >= 0.4 else float(ratio)) + int(seed[4:]) / 2000

    out = tmp_path / "out"
    benchmark = known_benchmarks().__getitem__
    parsed = load(plan, benchmark)
    read, shown = [], []
    whole_read = Values.read
    monkeypatch.setattr(Values, "read", lambda path: read.append(path) or whole_read(path))
    rows = run(parsed, out, untrained(rate), lambda *each: shown.append(each))
    assert len(read) == len({*read}) == len(rows), "what a run left is read once"
    assert shown[0][1:] == (0, 18) and shown[-1][1:] == (len(rows), len(rows)), "runs that are left out are not awaited"
    done = {(row.ratio, row.seed) for row in rows}
    skipped = left_out(parsed, rows, read_values(out, rows))
    assert {(1.0, seed) for seed in range(3)} <= done and len(rows) + len(skipped) == 18
    smaller = {f"random-{ratio}-seed{seed}" for ratio in (0.1, 0.2) for seed in range(3)}
    assert skipped.keys() == smaller | {"random-0.3-seed2"}
    others = load(plan, benchmark, ["seeds=[3,4,5]"])
    assert left_out(others, read_rows(out), read_values(out, read_rows(out))) == {}, "none of its runs is done"
    whole = run(load(plan, benchmark, ["stop_early=false"]), out, untrained(rate))
    assert len(whole) == 18, "the same folder, without leaving anything out"
