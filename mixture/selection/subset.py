"""Subsets: prefixes of the hash order, or of a ranking, as a view that refers to the shards or with shards of
their own."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.dataset.manifest import Manifest
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import TEXT_COLUMNS
from vlmix.mixture.dataset.view import replacing_view, save_copy, save_view
from vlmix.mixture.errors import VlmixError, abridged, nearest
from vlmix.mixture.filters import matching
from vlmix.mixture.io.engines import EngineName
from vlmix.mixture.io.pool import Progress, silent
from vlmix.mixture.keyed import Indices, apportion, exact_share, prefixes
from vlmix.mixture.selection.embeddings import read_embeddings
from vlmix.mixture.selection.match import rank_listing
from vlmix.mixture.selection.rankings import Offer, Priorities, Report, rank_clusters, rank_lengths
from vlmix.mixture.selection.score_file import read_listing

AnyReader = TypeVar("AnyReader", bound=Reader)


class TooFew(VlmixError):
    """A `total` of more samples than the `offered` ones."""

    def __init__(self, total: int, offered: int) -> None:
        super().__init__(f"total {total} asks for more than the {offered} samples there are")
        self.offered = offered


class Selection(Struct, frozen=True, kw_only=True):
    """What to keep: first `where`, then what a list in `by` names, then each source in `sources` cut to a count (int)
    or share (float), then `ratio` or `total` of the rest, stratified by source unless the options say
    otherwise. `seed` None takes the mixture's.

    `by` says who comes first: None, the hash order alone; a file (see `selection.score_file`); `"lengths"` or
    `"clusters"` (see `selection.rankings`). A file with scores ranks by them, the highest first, or the lowest if
    `ascending`; samples without a score come last. `threshold` keeps the scores from there up, or down if
    `ascending`. A file without scores keeps the samples that it names. The scores are those in `column`, by default
    `score`. `"clusters"` reads the file `embeddings` and makes `clusters` of them, by default about the square root
    of their number.
    """

    ratio: float | None = None
    total: int | None = None
    sources: dict[str, int | float] = {}
    where: str | None = None
    stratify: bool = True
    seed: int | None = None
    by: str | None = None
    column: str | None = None
    ascending: bool = False
    threshold: float | None = None
    embeddings: str | None = None
    clusters: int | None = None


@dataclass(frozen=True)
class Selected(Generic[AnyReader]):
    """A selection from a mixture: its part, the entry for the manifest, and the report of a selection `by` something.
    `offered` counts the samples that `where`, a list and a threshold left to choose from."""

    mixture: AnyReader
    entry: dict[str, Any]
    report: Report | None
    offered: int


def select(mixture: AnyReader, selection: Selection) -> Selected[AnyReader]:
    """Select from `mixture`; writes nothing.

    Raises TooFew for a total of more than there is, and VlmixError for another amount that is, for nothing, and for a
    file that is damaged, in a different format, or names no sample.
    """
    seed = mixture.manifest.seed if selection.seed is None else selection.seed
    check_options(selection)
    everything = Offer.of(mixture, seed)
    passing = np.arange(len(mixture), dtype=np.int64)
    if selection.where is not None:
        passing = passing[matching_samples(mixture, selection.where)]
        if not len(passing):
            where = abridged(selection.where)
            raise VlmixError(f"the selection keeps no sample: none matches `where` {where!r}; loosen it")
    offer = everything.at(passing)
    report: Report | None = None
    if selection.by is None:
        kept, offered = passing[kept_rows(offer, selection)], len(passing)
    else:
        kept, offered, report = _select_by(mixture, offer, passing, selection, selection.by, seed)
    entry = {name: getattr(selection, name) for name in ("ratio", "total", "sources", "where", "stratify")}
    entry |= {"seed": seed, "of": mixture.manifest.name}
    if report is not None:
        said = {"by": report.by, "ascending": selection.ascending, "threshold": selection.threshold}
        if selection.embeddings is not None:
            said |= {"embeddings": Path(selection.embeddings).name, "clusters": selection.clusters}
        if selection.column is not None:
            said |= {"column": selection.column}
        entry |= {**said, **report.counts()}
    return Selected(mixture.select(kept), entry, report, offered)


def matching_samples(mixture: Reader, where: str) -> NDArray[np.bool_]:
    """[N] where the SQL condition `where` over the columns of an index without texts and images is true. Only the
    columns that it names are read. Raises VlmixError for one that is not admitted."""
    whole = pl.DataFrame(mixture.own_index().schema_arrow.empty_table()).drop(*TEXT_COLUMNS, "images", strict=False)
    matching(whole.with_columns(root_row=pl.lit(None, pl.Int64)), where, "where")  # finds all but what values bring
    named = set(pl.sql_expr(where).meta.root_names())
    columns = {name: pl.concat(map(pl.Series, mixture.pieces(name))) for name in named - {"root_row"}}
    return matching(pl.DataFrame({**columns, "root_row": mixture.rows}), where, "where")


def check_options(selection: Selection) -> None:
    """Raises VlmixError for options that go with another `by`, and for a ranking of which no amount is asked."""
    if selection.by in (None, "lengths", "clusters") and (selection.ascending or selection.threshold is not None):
        raise VlmixError("ascending and threshold go with a file of scores: name it with `by`")
    if selection.by in (None, "lengths", "clusters") and selection.column is not None:
        raise VlmixError("column goes with a file of scores: name it with `by`")
    if selection.by != "clusters" and (selection.embeddings is not None or selection.clusters is not None):
        raise VlmixError("embeddings and a number of clusters go with `by` clusters alone")
    if selection.by == "clusters" and selection.embeddings is None:
        raise VlmixError("clusters of what? name an embedding file: Parquet with the columns id and embedding")
    if selection.clusters is not None and selection.clusters < 1:
        raise VlmixError(f"{selection.clusters} clusters: at least 1")
    if selection.by in ("lengths", "clusters"):
        _check_amount(selection, selection.by)


def _check_amount(selection: Selection, by: str) -> None:
    if selection.ratio is None and selection.total is None and not selection.sources:
        raise VlmixError(f"by {by}: say how much to keep: a ratio, a total, or the amount of a source")


def _select_by(
    mixture: Reader, offer: Offer, passing: Indices, selection: Selection, by: str, seed: int
) -> tuple[Indices, int, Report]:
    """Positions (ascending) that a selection by something keeps, out of the `offer` at `passing`, those of its `where`;
    how many of these competed; and what came of it."""
    if by == "lengths":
        part = mixture if len(passing) == len(mixture) else mixture.select(passing)
        ranking = rank_lengths(part, offer, seed, stratify=selection.stratify)
    elif by == "clusters":
        embeddings = read_embeddings(Path(selection.embeddings or ""))
        count, stratify = selection.clusters, selection.stratify
        ranking = rank_clusters(embeddings, mixture, offer, passing, seed, clusters=count, stratify=stratify)
    else:
        listing = read_listing(Path(by), selection.column)
        if listing.scored and selection.threshold is None:
            _check_amount(selection, listing.name)
        ranking = rank_listing(listing, mixture, passing, seed, selection.ascending, selection.threshold)
    stays = np.flatnonzero(ranking.stays)
    if not len(stays):
        raise VlmixError(f"{Path(by).name}: no sample that is offered passes; loosen the threshold or `where`")
    chosen = stays[kept_rows(offer.at(stays), selection, ranking.priority[stays])]
    as_many = msgspec.structs.replace(selection, ratio=None, total=len(chosen))
    return passing[chosen], len(stays), ranking.outcome(chosen, kept_rows(offer, as_many))


def kept_rows(offer: Offer, selection: Selection, priority: Priorities | None = None) -> Indices:
    """Places (ascending) of the samples of `offer` that the amounts of `selection` keep: the ones with the highest
    `priority` [N], ties in hash order."""
    if selection.ratio is not None and selection.total is not None:
        raise VlmixError("ratio and total exclude each other")
    if selection.ratio is not None and not 0 < selection.ratio <= 1:
        raise VlmixError(f"ratio {selection.ratio}: it must be above 0 and at most 1")
    if selection.total is not None and selection.total < 1:
        raise VlmixError(f"total {selection.total}: at least 1")
    kept = np.arange(len(offer), dtype=np.int64)
    groups = _by_source(offer, kept) if selection.sources else {}
    for name, amount in selection.sources.items():
        if name not in groups:
            raise VlmixError(f"no sample of source {name!r} is there{nearest(name, groups)}")
        members = groups[name]
        if (isinstance(amount, float) and not 0 <= amount <= 1) or amount < 0:
            raise VlmixError(f"source {name}: {amount} is neither a count nor a share between 0 and 1")
        count = exact_share(amount, len(members)) if isinstance(amount, float) else amount
        if count > len(members):
            raise VlmixError(f"source {name}: {count} asks for more than its {len(members)} samples")
        groups[name] = _highest(offer, {name: members}, priority, {name: count})
    if groups:
        kept = np.sort(np.concatenate(list(groups.values())))
    del groups
    if selection.ratio is None and selection.total is None:
        total = len(kept)
    else:
        total = selection.total or exact_share(selection.ratio or 0, len(kept))
    if total > len(kept):
        raise TooFew(total, len(kept))
    if total < len(kept):
        pools = _by_source(offer, kept) if selection.stratify else {"": kept}
        shares = apportion(total, {name: len(members) for name, members in pools.items()})
        kept = _highest(offer, pools, priority, shares)
    if not len(kept):
        raise VlmixError(_nothing(selection, len(offer)))
    return kept


def _highest(
    offer: Offer, pools: Mapping[str, Indices], priority: Priorities | None, shares: Mapping[str, int]
) -> Indices:
    """Positions (ascending) of the `shares[name]` members of each pool with the highest priority. Where the last ones
    are equal, they are a prefix of the hash order."""
    if priority is None:
        return prefixes(pools, offer.ranks, shares)
    sure, equal, left = [], {}, {}
    for name, members in pools.items():
        if count := shares[name]:
            mine = priority[members]
            last = np.partition(mine, len(mine) - count)[len(mine) - count]
            sure.append(members[mine > last])
            equal[name], left[name] = members[mine == last], count - len(sure[-1])
    return np.sort(np.concatenate([*sure, prefixes(equal, offer.ranks, left)]))


def _by_source(offer: Offer, positions: Indices) -> dict[str, Indices]:
    """`positions` by their source, sources in the order of their first occurrence."""
    codes = offer.codes[positions]
    _, firsts, sizes = np.unique(codes, return_index=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    parts = np.split(positions[order], np.cumsum(sizes)[:-1])
    pairs = sorted(zip(firsts.tolist(), parts), key=itemgetter(0))
    return {offer.names[int(codes[first])]: part for first, part in pairs}


def subsample(
    folder: Path,
    out: Path,
    selection: Selection,
    *,
    materialize: bool = False,
    workers: int | None = None,
    engine: EngineName = "local",
    progress: Progress = silent,
) -> Manifest:
    """Make the new folder `out` with the samples of the mixture or view `folder` that `selection` keeps.

    A view holds no shards: its index refers to the root's. Raises VlmixError for a selection that asks for more than
    there is, or for nothing.
    """
    selected = select(Reader.open(folder), selection)
    return save(selected, out, materialize=materialize, workers=workers, engine=engine, progress=progress)


def save(
    selected: Selected[AnyReader],
    out: Path | str,
    *,
    materialize: bool = False,
    overwrite: bool = False,
    work: Path | None = None,
    workers: int | None = None,
    engine: EngineName = "local",
    progress: Progress = silent,
) -> Manifest:
    """Make the new folder `out`, a path or the URL of a store, of what was selected: a view, or with `materialize`
    shards of its own. `overwrite` replaces a view that is there; anything else is never replaced. `work` is where what
    is not finished is kept for a store."""
    with replacing_view(out) if overwrite else nullcontext():
        if not materialize:
            return save_view(selected.mixture, out, [selected.entry], work=work)
        how: dict[str, Any] = {"work": work, "workers": workers, "engine": engine, "progress": progress}
        return save_copy(selected.mixture, out, [selected.entry], **how)


def _nothing(selection: Selection, offered: int) -> str:
    """Why a selection out of `offered` samples keeps none."""
    if selection.ratio is not None:
        return f"the selection keeps no sample: ratio {selection.ratio} of {offered:,} is less than one; raise it"
    return "the selection keeps no sample; raise the amounts"


def parse_ratio(text: str) -> float:
    """`0.1` or `10%` as a share. Raises VlmixError for anything else."""
    try:
        return float(Decimal(text[:-1]) / 100) if text.endswith("%") else float(text)  # 0.35 / 100 is not 0.0035
    except (ValueError, ArithmeticError):
        raise VlmixError(f"ratio {text!r}: write 0.1 or 10%") from None


def parse_amounts(texts: list[str]) -> Mapping[str, int | float]:
    """`vqav2=1000`, `gqa=0.1`, `ocrvqa=12.5%` as source -> count (int) or share (float)."""
    amounts: dict[str, int | float] = {}
    for text in texts:
        name, equals, amount = text.partition("=")
        try:
            if not (name and equals):
                raise ValueError
            amounts[name] = parse_ratio(amount) if "." in amount or amount.endswith("%") else int(amount)
        except (ValueError, VlmixError):
            raise VlmixError(f"source {text!r}: write NAME=1000, NAME=0.1 or NAME=10%") from None
    return amounts
