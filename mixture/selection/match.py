"""How the rows of a selection file and the samples of a mixture come together."""

import msgspec
import numpy as np
import polars as pl

from vlmix.mixture.dataset.llava_row import llava_row, row_sha256
from vlmix.mixture.dataset.manifest import SAMPLES_NAME
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import open_index
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.keyed import Indices, keyed_order
from vlmix.mixture.selection.rankings import Ranking, Report
from vlmix.mixture.selection.score_file import Listing, image_path

_NAMED = 5  # rows of a kind that a report names


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
    ids: list[str] = mixture.column("id").to_pylist()
    order = keyed_order(
        ids, seed, "match"
    )  # unlike the hash order of a random subset, which the result is held against
    samples = pl.DataFrame({"sample": order, "key": pl.Series(ids, dtype=pl.String).gather(order)})
    # A stable sort: rows of one score keep the order of the file.
    rows = listing.rows.with_row_index("row").sort(
        "score", descending=not ascending, nulls_last=True, maintain_order=True
    )
    pairs_by = {"id": _pair(rows.with_columns(key="id"), samples)}
    _refuse_two_scores(listing, pairs_by["id"])
    rest = rows.filter(~pl.col("row").is_in(pairs_by["id"]["row"].implode()))
    with_hash, without = rest.filter(pl.col("row_sha256").is_not_null()), rest.filter(pl.col("row_sha256").is_null())
    if len(with_hash):
        keys = pl.Series(sample_hashes(mixture), dtype=pl.String).gather(order)
        hashed = with_hash.with_columns(key=pl.col("row_sha256").str.to_lowercase())
        pairs_by["row_sha256"] = _pair(hashed, samples.with_columns(key=keys))
    if len(without):
        telling = bool(without["image"].is_not_null().any())
        keys = pl.Series(_llava_keys(mixture, telling), dtype=pl.String).gather(order)
        key = pl.col("id") + "\0" + pl.col("image").fill_null("") if telling else pl.col("id")
        pairs_by["llava_id"] = _pair(without.with_columns(key=key), samples.with_columns(key=keys))
    pairs = pl.concat([frame.with_columns(by=pl.lit(by)) for by, frame in pairs_by.items()])
    taken, report = _account(listing, mixture, rows, pairs)
    if not listing.scored and (ascending or threshold is not None):
        raise VlmixError(f"{listing.name}: it has no `score`, which ascending and threshold need")
    named = np.zeros(len(ids), dtype=np.bool_)
    positions = taken["sample"].to_numpy()
    named[positions] = True
    stays, nobody = named[offered], np.zeros(len(offered), dtype=np.bool_)
    if not listing.scored:
        report = msgspec.structs.replace(report, listed=int(stays.sum()))
        return Ranking(np.zeros(len(offered)), stays, nobody, nobody, report)
    sign = -1.0 if ascending else 1.0
    priorities = np.full(len(ids), -np.inf)
    priorities[positions] = sign * taken["score"].to_numpy()
    priority = priorities[offered]
    unscored = ~stays
    stays = ~nobody if threshold is None else stays & (priority >= sign * threshold)
    return Ranking(priority, stays, unscored, nobody, report)


def _pair(rows: pl.DataFrame, samples: pl.DataFrame) -> pl.DataFrame:
    """The rows whose key a sample has, each with the sample it takes (null: other rows took them all).

    `named` and `held` are how many rows and samples have the key, `kinds` how many scores.
    """
    place = pl.int_range(pl.len()).over("key").alias("place")
    numbered = samples.with_columns(place)
    held = samples.group_by("key").agg(held=pl.len())
    return (
        rows.filter(pl.col("key").is_not_null())
        .with_columns(place, named=pl.len().over("key"), kinds=pl.col("score").n_unique().over("key"))
        .join(held, on="key", how="inner", maintain_order="left")
        .join(numbered, on=["key", "place"], how="left", maintain_order="left")
        .select("row", "id", "row_sha256", "score", "sample", "named", "held", "kinds")
    )


def _refuse_two_scores(listing: Listing, pairs: pl.DataFrame) -> None:
    two = pairs.filter(pl.col("kinds") > 1)
    if len(two):
        id = two["id"][0]
        scores = two.filter(pl.col("id") == id)["score"].unique().sort()
        raise VlmixError(f"{listing.name}: {id} has the scores {scores[0]} and {scores[1]}; keep one row for it")


def _account(listing: Listing, mixture: Reader, rows: pl.DataFrame, pairs: pl.DataFrame) -> tuple[pl.DataFrame, Report]:
    """The pairs that have a sample of their own, and the report on all rows."""
    missed = rows.filter(~pl.col("row").is_in(pairs["row"].implode())).sort("row")
    taken = pairs.filter(pl.col("sample").is_not_null()).unique("sample", keep="first", maintain_order=True)
    if not len(taken):
        raise _nothing(listing, mixture)
    bare = rows.select(
        pl.col("row_sha256").is_null() & pl.col("id").str.contains(r"^(0|[1-9]\d*)$").fill_null(False)
    ).to_series()
    if len(missed) > len(taken) and bare.all():
        raise VlmixError(
            f"{listing.name}: {len(missed):,} of its {len(rows):,} ids name no sample, and all are whole numbers: they "
            "look like row numbers of a JSON file; write the rows themselves, `vlmix docs selection` shows how"
        )
    unsure = taken.filter(
        (pl.col("by") == "llava_id")
        & (pl.col("held") > 1)
        & ((pl.col("named") < pl.col("held")) | (pl.col("kinds") > 1))
    ).sort("row")
    report = Report(
        by=listing.name,
        sha256=listing.sha256,
        rows=len(listing.rows),
        matched_by=dict(taken.group_by("by", maintain_order=True).len().rows()),
        unmatched=len(missed),
        unmatched_first=_names(missed),
        duplicates=len(pairs) - len(taken),
        ambiguous=len(unsure),
        ambiguous_first=_names(unsure),
    )
    return taken, report


def _names(rows: pl.DataFrame) -> list[str]:
    """The first few rows by name: their id, else the beginning of their hash."""
    first = rows.head(_NAMED)
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
        [f"row_sha256 {sample_hashes(one)[0]!r}"]
        if row["row_sha256"] is not None
        else [f"LLaVA's id {_llava_keys(one)[0]!r}"]
    )
    return VlmixError(
        f"{listing.name}: none of its {len(listing.rows):,} rows is in {mixture.folder.name}; its first has {theirs}, "
        f"the mixture's first sample has {' and '.join(ours)}; was it made of another mixture or another prompt style?"
    )


def sample_hashes(mixture: Reader) -> list[str]:
    """[N] content hashes of the samples, as rows of `vlmix export --to llava-json`."""
    images = [image for _, image in _llava_names(mixture)]
    hashes = [""] * len(images)
    for positions, values, lengths in mixture.turns():
        texts, end = values.to_pylist(), 0
        for position, length in zip(positions.tolist(), lengths.tolist()):
            start, end = end, end + length
            hashes[position] = row_sha256(images[position], texts[start:end])
    return hashes


def _llava_keys(mixture: Reader, with_image: bool = False) -> list[str]:
    return [f"{id}\0{image}" if with_image else id for id, image in _llava_names(mixture)]


def _llava_names(mixture: Reader) -> list[tuple[str, str]]:
    """[N] id and image that the samples have in LLaVA's JSON."""
    table = open_index(mixture.local_root / SAMPLES_NAME).read(["id", "images", "extra"]).take(mixture.rows)
    names: list[tuple[str, str]] = []
    for batch in table.to_batches(max_chunksize=5000):
        for row in batch.to_pylist():
            llava = llava_row({**row, "conversations": []})
            names.append((str(llava.get("id")), image_path(llava.get("image")) or ""))
    return names
