"""Runs that can no longer change which share of the mixture is enough.

A sweep asks for the smallest share that keeps `KEEPS` percent of the full mixture's score. A share is decided when the
99 % interval of its relative score, over two seeds at least, lies on one side of that: 99 % and not 95, as it is looked
at after every run. More seeds of a share that is decided change nothing, nor do larger shares where one is enough; nor
smaller ones of random samples where one is not, as fewer samples of the same kind are not better. Selections may be:
what they leave out may do harm. A control stays as long as a selection that is compared with it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlmix.mixture.benchmark.compare import relative
from vlmix.train.sweep.recipe import RunSpec
from vlmix.train.sweep.report.aggregate import (
    RANDOM,
    Result,
    RunValues,
    grid_key,
    grouped,
    runs_of,
    scores_of,
    with_all,
)
from vlmix.train.sweep.report.wording import KEEPS, share

_SURE = 0.01
_SEEDS = 2

Line = tuple[Any, str]
"""Grid and selection."""


def needless(specs: Sequence[RunSpec], rows: Iterable[Result], values: RunValues) -> dict[str, str]:
    """Run -> why it need not be done, for those of `specs` that have no row. Rows of other runs, as of seeds that the
    sweep had before, decide nothing: the report does not show them."""
    names = {spec.name for spec in specs}
    rows = [row for row in rows if row.run in names]
    done = {row.run for row in rows}
    full_seeds: dict[Any, set[int]] = {}
    for spec in specs:
        if spec.ratio == 1:
            full_seeds.setdefault(grid_key(spec.grid), set()).add(spec.seed)
    decided = _decided(rows, values, full_seeds)
    reasons = {}
    for spec in specs:
        found = decided.get((grid_key(spec.grid), spec.label), {})
        if spec.name not in done and spec.ratio < 1 and (reason := _reason(spec, found)):
            reasons[spec.name] = reason
    compared = {_cell(spec) for spec in specs if spec.label != RANDOM and spec.name not in reasons}
    controls = {spec.name for spec in specs if spec.label == RANDOM and _cell(spec) in compared}
    return {name: reason for name, reason in reasons.items() if name not in controls}


def _cell(spec: RunSpec) -> tuple[Any, float, int]:
    """What a selection's run and its control have in common."""
    return grid_key(spec.grid), spec.ratio, spec.seed


def by_use(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """What is left of a sweep in the order that decides soonest: the full mixture first, then of each line the middle
    of its shares, all its seeds."""
    found: dict[Line, set[float]] = {}
    for spec in specs:
        if spec.ratio < 1:
            found.setdefault((grid_key(spec.grid), spec.label), set()).add(spec.ratio)
    open_shares = {line: sorted(shares) for line, shares in found.items()}

    def place(spec: RunSpec) -> tuple[bool, int]:
        if spec.ratio == 1:
            return False, 0
        shares = open_shares[grid_key(spec.grid), spec.label]
        return True, abs(shares.index(spec.ratio) - len(shares) // 2)

    return sorted(specs, key=place)


def _decided(
    rows: list[Result], values: RunValues, full_seeds: Mapping[Any, set[int]]
) -> dict[Line, dict[float, bool]]:
    """Line -> share -> whether it is enough, of shares that are decided."""
    groups = grouped(rows)
    references = {grid_key(group[0].grid): group for group in groups if group[0].ratio == 1}
    found: dict[Line, dict[float, bool]] = {}
    for group in groups:
        first, key = group[0], grid_key(group[0].grid)
        reference = references.get(key)
        if first.ratio == 1 or reference is None or not full_seeds[key] <= {row.seed for row in reference}:
            continue
        names = [name for name, score in scores_of(reference, values).items() if score.mean > 0]
        part, whole = (runs_of(with_all(side, names), values, names) for side in (group, reference))
        if not names or part is None or whole is None or min(len(part), len(whole)) < _SEEDS:
            continue
        apart = relative(part, whole, names, less=KEEPS)
        if apart.p < _SURE:
            found.setdefault((key, first.selection), {})[first.ratio] = apart.value > 0
    return found


def _reason(spec: RunSpec, decided: Mapping[float, bool]) -> str:
    if spec.ratio in decided:
        return f"{share(spec.ratio)} {'is' if decided[spec.ratio] else 'is not'} enough, whatever more seeds say"
    if enough := [each for each, keeps in decided.items() if keeps and each < spec.ratio]:
        return f"{share(min(enough))} is enough"
    less = [each for each, keeps in decided.items() if not keeps and each > spec.ratio]
    if less and spec.label == RANDOM:
        return f"{share(max(less))} is not enough"
    return ""
