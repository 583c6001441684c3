"""Which samples a run of a sweep takes: its share of the whole mixture, by its selection."""

import shutil
from pathlib import Path

import msgspec
import numpy as np

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.keyed import exact_share
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.subset import Selected, TooFew, save, select
from vlmix.train.sweep.folder import subset_folder
from vlmix.train.sweep.recipe import CONTROL, Choice, RunSpec, Sweep, about, run_specs

_ENOUGH = 99
"""Percent of a share's samples that a selection must offer. Published lists are rounded: ICONS' "20 %" of 665,298 rows
are 133,046, and a fifth is 133,060."""


def write_subset(spec: RunSpec, whole: Path, view: Path) -> Path:
    """A view of part of a mixture, sampled by the run's seed: parts of one seed nest."""
    if view.exists():  # of a run that was interrupted: the same, and quickly made
        shutil.rmtree(view)
    save(choose(spec, open_mixture(whole)), view)
    return view


def check_selections(planned: list[RunSpec], whole: Path) -> None:
    """Raises VlmixError for a selection that cannot give the largest share that is asked of it."""
    largest: dict[str, RunSpec] = {}
    for spec in planned:  # by falling ratio
        if spec.ratio < 1 and spec.selection not in (CONTROL, Choice(name="lengths", by="lengths")):
            largest.setdefault(spec.label, spec)
    if largest:
        mixture = open_mixture(whole)
        for spec in largest.values():
            choose(spec, mixture)


def choose(spec: RunSpec, whole: Mixture) -> Selected[Mixture]:
    """The samples of a spec: its share of the whole mixture, whatever the selection leaves out, so that the points of
    one share have the same size. Raises VlmixError for a selection that offers less than that (see `_ENOUGH`), and for
    one that offers all samples and ranks none: that is the random one."""
    choice, count = spec.selection, len(whole)
    total = exact_share(spec.ratio, count)
    if not total:
        raise VlmixError(f"a share of {spec.ratio:g} of {count:,} samples is less than one; raise it")
    with about(choice):
        try:
            selected = select(whole, choice.selection(total, spec.seed))
        except TooFew as few:
            if 100 * few.offered < _ENOUGH * total:
                raise VlmixError(
                    f"it offers {few.offered:,} samples, and a share of {spec.ratio:g} of the {count:,} in the mixture "
                    f"is {total:,}; ratios up to {_floor(few.offered, count)} work"
                ) from None
            selected = select(whole, choice.selection(few.offered, spec.seed))
        unranked = selected.report is None or selected.report.listed
        if choice != CONTROL and unranked and selected.offered == count:
            raise VlmixError(
                f"all {count:,} samples are in it and none has a score, so its part is the random one; add a column "
                "score, or leave the selection out"
            )
    return selected


def _floor(part: int, count: int) -> str:
    """The largest ratio of four digits of which `count` has at most `part`."""
    digits = 3 + len(str(count // part))
    return f"{part * 10**digits // count / 10**digits:.{digits}f}".rstrip("0")


def same_as_random(sweep: Sweep, out: Path) -> list[str]:
    """Runs of a sweep whose subset is exactly that of the random selection, though they select by something."""
    names = []
    for spec in run_specs(sweep):
        control = msgspec.structs.replace(spec, selection=CONTROL)
        views = [subset_folder(out, each.name) for each in (spec, control)]
        if spec.ratio < 1 and spec != control and all(view.exists() for view in views):
            rows, random_rows = (open_mixture(view).rows for view in views)
            names += [spec.name] * np.array_equal(rows, random_rows)
    return sorted(names)
