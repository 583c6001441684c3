"""How the rows of a selection file and the samples of a mixture come together."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.mixture.dataset.groups import row_groups
from vlmix.mixture.dataset.llava_row import llava_row, row_sha256
from vlmix.mixture.dataset.manifest import SAMPLES_NAME
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import columns_problem
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.hashing import digests
from vlmix.mixture.keyed import Indices
from vlmix.mixture.selection.keys import Keys, Numbers, coded, keys_of, places
from vlmix.mixture.selection.rankings import Ranking, Report, ranks_of
from vlmix.mixture.selection.score_file import Listing, image_path

_NAMED = 5  # rows of a kind that a report names


class _Pairs(NamedTuple):
    """Rows of a file, [P] each, whose key a sample has: their numbers, the best score first; the sample that each
    takes, -1 where other rows took them all; how many rows and samples have the key, and how many scores."""

    row: Numbers
    sample: Numbers
    named: Numbers
    held: Numbers
    kinds: Numbers

    def of(self, chosen: NDArray[Any]) -> "_Pairs":
        return _Pairs(*(column[chosen] for column in self))


def rank_listing(
    listing: Listing,
    mixture: Reader,
    offered: Indices,
    seed: int,
    ascending: bool = False,
    threshold: float | None = None,
) -> Ranking:
    """The ranking by a file, for the `offered` samples of `mixture`.

    A row is matched by its id, if that is a sample's; else by its content hash, given or made of its conversations;
    a row that has neither by LLaVA's id, and by its image too if the rows name images. Where samples share such a key,
    the rows take them in a hash order, the best score first, each row one.
    With scores, the best come first and samples without one last; a `threshold` keeps scores from there on. Without
    scores, the samples that are named stay. Raises VlmixError if nothing matches, an id has two scores, or the file
    lacks the scores that are asked for.
    """
    rows, samples = _Rows(listing, ascending), len(mixture)
    # Unlike the hash order of a random subset, which the result is held against.
    order = ranks_of(mixture, seed, "match").order().astype(np.int32)
    pairs_by = {"id": _pair(rows, rows.with_("id"), rows.column("id"), order, _id_keys(mixture))}
    _refuse_two_scores(listing, rows, pairs_by["id"])
    rest = np.full(len(listing.rows), True)
    rest[pairs_by["id"].row] = False
    hashed = rows.with_("row_sha256")
    with_hash, without = hashed[rest[hashed]], rows.order[rest[rows.order]]
    if len(with_hash):
        keys = rows.column("row_sha256").str.to_lowercase()
        pairs_by["row_sha256"] = _pair(rows, with_hash, keys, order, _digested(sample_hashes(mixture)))
        rest[hashed] = False
        without = without[rest[without]]
    if len(without):
        images = rows.column("image").gather(without)
        telling = bool(images.is_not_null().any())
        keys = rows.column("id")
        keys = keys + "\0" + rows.column("image").fill_null("") if telling else keys
        pairs_by["llava_id"] = _pair(rows, without, keys, order, _digested(_llava_keys(mixture, telling)))
    del order
    taken, report = _account(listing, mixture, pairs_by)
    if not listing.scored and (ascending or threshold is not None):
        raise VlmixError(f"{listing.name}: it has no `score`, which ascending and threshold need")
    named = np.zeros(samples, dtype=np.bool_)
    named[taken.sample] = True
    stays, nobody = named[offered], np.zeros(len(offered), dtype=np.bool_)
    if not listing.scored:
        report = msgspec.structs.replace(report, listed=int(stays.sum()))
        return Ranking(np.zeros(len(offered)), stays, nobody, nobody, report)
    sign = -1.0 if ascending else 1.0
    priorities = np.full(samples, -np.inf)
    priorities[taken.sample] = sign * rows.scores[taken.row]
    priority = priorities[offered]
    unscored = ~stays
    stays = ~nobody if threshold is None else stays & (priority >= sign * threshold)
    return Ranking(priority, stays, unscored, nobody, report)


class _Rows:
    """The rows of a file, in the `order` of their scores: the best one first, rows of one score as in the file."""

    def __init__(self, listing: Listing, ascending: bool) -> None:
        self._frame = listing.rows
        scores = listing.rows["score"]
        self.scores = scores.to_numpy() if listing.scored else np.zeros(len(scores))
        self.order = np.argsort(self.scores if ascending else -self.scores, kind="stable").astype(np.int32)

    def column(self, name: str) -> pl.Series:
        return self._frame[name].cast(pl.String)

    def with_(self, name: str) -> Numbers:
        """The rows that have a value in a column, in order."""
        has: NDArray[np.bool_] = self._frame[name].is_not_null().to_numpy()
        return self.order[has[self.order]]


def _pair(
    rows: _Rows, numbers: Numbers, keys: pl.Series, order: Numbers, sample_keys: Iterator[tuple[Indices, Keys]]
) -> _Pairs:
    """What comes of the rows `numbers`, whose keys are in the column `keys`: samples, whose keys come with their
    positions, take rows in their `order` [N]."""
    known, code = coded(keys_of(keys), numbers)
    sample_code = np.full(len(order), -1, dtype=np.int32)
    for positions, some in sample_keys:
        sample_code[positions] = places(some, known)
    count = len(known)
    del known
    sample_code = sample_code[order]
    has = sample_code >= 0
    sample_code, matched = sample_code[has], order[has]
    held = np.bincount(sample_code, minlength=count).astype(np.int32)
    grouped = matched[np.argsort(sample_code, kind="stable")]
    del sample_code, matched, has
    named = np.bincount(code, minlength=count).astype(np.int32)
    by_key = np.argsort(code, kind="stable").astype(np.int32)
    place = np.empty(len(code), dtype=np.int32)
    place[by_key] = np.arange(len(code), dtype=np.int32) - np.repeat(_starts(named), named)
    scores, keyed = rows.scores[numbers[by_key]], code[by_key]
    del by_key
    another = keyed[1:][(scores[1:] != scores[:-1]) & (keyed[1:] == keyed[:-1])]
    kinds = 1 + np.bincount(another, minlength=count).astype(np.int32)
    del scores, keyed
    pairs = held[code] > 0
    code, place, numbers = code[pairs], place[pairs], numbers[pairs]
    sample = np.full(len(code), -1, dtype=np.int32)
    takes = place < held[code]
    sample[takes] = grouped[_starts(held)[code[takes]] + place[takes]]
    return _Pairs(numbers, sample, named[code], held[code], kinds[code])


def _starts(counts: Numbers) -> Numbers:
    return np.cumsum(counts, dtype=np.int32) - counts


def _refuse_two_scores(listing: Listing, rows: _Rows, pairs: _Pairs) -> None:
    two = pairs.row[pairs.kinds > 1]
    if len(two):
        ids = listing.rows["id"]
        id = ids[int(two[0])]
        scores = np.unique(rows.scores[two[(ids.gather(two) == id).to_numpy()]]).tolist()
        raise VlmixError(f"{listing.name}: {id} has the scores {scores[0]} and {scores[1]}; keep one row for it")


def _account(listing: Listing, mixture: Reader, pairs_by: dict[str, _Pairs]) -> tuple[_Pairs, Report]:
    """The pairs that have a sample of their own, and the report on all rows."""
    taken_by: dict[str, _Pairs] = {}
    missed, free = np.full(len(listing.rows), True), np.full(len(mixture), True)
    for by, pairs in pairs_by.items():
        missed[pairs.row] = False
        own = pairs.of(pairs.sample >= 0)
        own = own.of(free[own.sample])
        free[own.sample] = False
        if len(own.row):
            taken_by[by] = own
    if not taken_by:
        raise _nothing(listing, mixture)
    taken = next(iter(taken_by.values()))
    if len(taken_by) > 1:
        taken = _Pairs(*(np.concatenate(columns) for columns in zip(*taken_by.values())))
    unmatched = np.flatnonzero(missed)
    if len(unmatched) > len(taken.row) and _all_numbers(listing):
        raise VlmixError(
            f"{listing.name}: {len(unmatched):,} of its {len(listing.rows):,} ids name no sample, and all are whole "
            "numbers: they look like row numbers of a JSON file; write the rows themselves, `vlmix docs selection` "
            "shows how"
        )
    unsure = np.empty(0, dtype=np.int64)
    if (of := taken_by.get("llava_id")) is not None:
        unsure = np.sort(of.row[(of.held > 1) & ((of.named < of.held) | (of.kinds > 1))])
    report = Report(
        by=listing.name,
        sha256=listing.sha256,
        rows=len(listing.rows),
        matched_by={by: len(pairs.row) for by, pairs in taken_by.items()},
        unmatched=len(unmatched),
        unmatched_first=_names(listing, unmatched),
        duplicates=sum(len(pairs.row) for pairs in pairs_by.values()) - len(taken.row),
        ambiguous=len(unsure),
        ambiguous_first=_names(listing, unsure),
    )
    return taken, report


def _all_numbers(listing: Listing) -> bool:
    rows = listing.rows
    whole = pl.col("id").cast(pl.String).str.contains(r"^(0|[1-9]\d*)$").fill_null(False)
    return bool(rows.select((pl.col("row_sha256").is_null() & whole).all()).item())


def _names(listing: Listing, rows: Indices) -> list[str]:
    """The first few rows by name: their id, else the beginning of their hash."""
    first = listing.rows[rows[:_NAMED]].with_columns(pl.col("id", "row_sha256").cast(pl.String))
    return first.select(pl.coalesce(pl.col("id").str.slice(0, 200), pl.col("row_sha256").str.slice(0, 12)))[
        "id"
    ].to_list()


def _nothing(listing: Listing, mixture: Reader) -> VlmixError:
    """The error for a file that names no sample: an example of each side, of every key in play."""
    row = listing.rows.row(0, named=True)
    one = mixture.select(np.array([0]))
    theirs = ", ".join(f"{name} {row[name][:80]!r}" for name in ("id", "row_sha256") if row[name] is not None)
    ours = [f"id {one.column('id')[0].as_py()!r}"]
    ours += (
        [f"row_sha256 {next(sample_hashes(one))[1][0]!r}"]
        if row["row_sha256"] is not None
        else [f"LLaVA's id {next(_llava_keys(one))[1][0]!r}"]
    )
    return VlmixError(
        f"{listing.name}: none of its {len(listing.rows):,} rows is in {mixture.folder.name}; its first has {theirs}, "
        f"the mixture's first sample has {' and '.join(ours)}; was it made of another mixture or another prompt style?"
    )


def _id_keys(mixture: Reader) -> Iterator[tuple[Indices, Keys]]:
    first = 0
    for ids in mixture.pieces("id"):
        yield np.arange(first, first + len(ids)), digests(ids)
        first += len(ids)


def _digested(pieces: Iterator[tuple[Indices, list[str]]]) -> Iterator[tuple[Indices, Keys]]:
    return ((positions, digests(pa.array(texts, pa.string()))) for positions, texts in pieces)


def sample_hashes(mixture: Reader) -> Iterator[tuple[Indices, list[str]]]:
    """[n] positions and content hashes of the samples, as rows of `vlmix export --to llava-json`, a row group at a
    time."""
    for positions, table in _tables(mixture, "conversations.list.element.value"):
        said = table["conversations"].combine_chunks()
        texts = said.flatten().field("value").to_pylist()
        ends = np.cumsum(pc.list_value_length(said).to_numpy()).tolist()
        images = [image for _, image in _llava_names(table)]
        yield positions, [row_sha256(image, texts[a:b]) for image, a, b in zip(images, [0, *ends], ends)]


def _llava_keys(mixture: Reader, with_image: bool = False) -> Iterator[tuple[Indices, list[str]]]:
    """[n] positions and LLaVA's ids of the samples, with their images or without, a row group at a time."""
    for positions, table in _tables(mixture):
        yield positions, [f"{id}\0{image}" if with_image else id for id, image in _llava_names(table)]


def _tables(mixture: Reader, *more: str) -> Iterator[tuple[Indices, pa.Table]]:
    """[n] positions and what says how the samples are called in LLaVA's JSON, a row group at a time."""
    index = mixture.root_index()
    for group in row_groups(mixture, index.group_rows):
        table = index.read_row_group(group.number, ["id", "images.list.element.path", "extra", *more])
        if problem := columns_problem(table):
            raise VlmixError(f"{mixture.root.name}: {SAMPLES_NAME}: {problem}; `vlmix verify` lists all damage")
        yield group.positions, table.take(group.rows)


def _llava_names(table: pa.Table) -> list[tuple[str, str]]:
    """[n] id and image that the samples have in LLaVA's JSON."""
    names: list[tuple[str, str]] = []
    for row in table.select(["id", "images", "extra"]).to_pylist():
        llava = llava_row({**row, "conversations": []})
        names.append((str(llava.get("id")), image_path(llava.get("image")) or ""))
    return names
