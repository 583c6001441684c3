"""The numbers on the first page: sums, histograms, what is said most often, and which samples stand out.

They come from columns of the index, a row group of texts at a time, and never hold an object per sample.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vlmix.mixture.boxes import SQUARE_TEXT
from vlmix.mixture.browse.sides import Side, whole
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import source_columns
from vlmix.mixture.dataset.view import index_schema, read_rejects
from vlmix.mixture.errors import abridged
from vlmix.mixture.record import IMAGE_TOKEN
from vlmix.mixture.render import CAPTION, GROUNDING, OCR_LINE, OPTION_LETTER, REGION_CAPTION, SHORT_ANSWER

LONGEST_COUNTED = 60
"""Characters of an answer or a question that is counted among the commonest; longer ones hardly repeat."""
COMMONEST = 15
REJECTS_SHOWN = 3
"""Examples of each reason."""
PROMPTS = (SHORT_ANSWER, OPTION_LETTER, CAPTION, OCR_LINE.strip(), REGION_CAPTION.strip(), GROUNDING.strip())

_ROUNDS = (1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 51)
_WORDS = (0, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000)
_PICTURES = (0, 1, 2, 3, 4, 5, 9, 17, 33, 65)
_SIDES = (0, 128, 224, 336, 448, 512, 641, 801, 1025, 1537, 2049)
_BOXES = (0, 1, 2, 3, 5, 9, 17, 33)
_MERGED = 40  # row groups whose counts are kept apart before they are added up
_FEW_VALUES = 12
_LONGEST_LABEL = 40


@dataclass
class Facts:
    """Of one side, over all its samples. Arrays of N numbers are in the order of its positions."""

    sources: list[dict[str, Any]]
    """Of each source: `source`, `samples`, `per_epoch`, `rounds`, `words`, `images`, `median_words`."""
    samples: int
    numbers: dict[str, NDArray[Any]]
    """`rounds`, `words`, `pictures`, `boxes`: [N]; `picture side`: [M], the longer side of each picture, pixels."""
    columns: dict[str, pl.Series]
    """Columns that sources added to the index."""
    answers: list[tuple[str, int]] = field(default_factory=list)
    answers_of: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """The commonest, of all sources and of each."""
    all_answers: int = 0
    questions: list[tuple[str, int]] = field(default_factory=list)
    prompts: list[tuple[str, int]] = field(default_factory=list)
    formats: list[tuple[str, int]] = field(default_factory=list)
    """Of rounds."""


def facts_of(side: Side) -> Facts:
    """Everything above, of one side."""
    mixture = side.mixture
    names = ["source", "num_rounds", "num_words", "num_images", "repeat"]
    extra = [column.name for column in source_columns(index_schema(mixture))]
    index = mixture.samples.select([*names, *extra]).collect()
    _, sizes = mixture.image_fields("width", "height")
    boxes = pl.Series(_of_root(mixture, pl.col("boxes").list.len())).cast(pl.Int64).to_numpy().copy()
    found = Facts(
        sources=_sums(index, list(mixture.manifest.sources)),
        samples=len(index),
        numbers={
            "rounds": index["num_rounds"].to_numpy(),
            "words": index["num_words"].to_numpy(),
            "pictures": index["num_images"].to_numpy(),
            "boxes": boxes,
            "picture side": np.maximum(*(size.to_numpy() for size in sizes)),
        },
        columns={name: index[name] for name in extra},
    )
    _read_texts(mixture, index["source"], found)
    found.formats = _formats(mixture)
    return found


def _sums(index: pl.DataFrame, order: list[str]) -> list[dict[str, Any]]:
    rows = index.group_by("source").agg(
        pl.len().alias("samples"),
        pl.col("repeat").cast(pl.Int64).sum().alias("per_epoch"),
        pl.col("num_rounds").cast(pl.Int64).sum().alias("rounds"),
        pl.col("num_words").cast(pl.Int64).sum().alias("words"),
        pl.col("num_images").cast(pl.Int64).sum().alias("images"),
        pl.col("num_words").median().alias("median_words"),
    )
    place = {name: at for at, name in enumerate(order)}
    return sorted(rows.to_dicts(), key=lambda row: (place.get(row["source"], len(place)), row["source"]))


def _of_root(mixture: Reader, column: pl.Expr) -> pl.Series:
    """A short value of each sample, made of a heavy column, which views leave with their root."""
    return whole(mixture).samples.select(column).collect().to_series().gather(mixture.rows)


def _formats(mixture: Reader) -> list[tuple[str, int]]:
    rows = whole(mixture).samples.select("response_formats")
    if len(mixture) < mixture.root_manifest.samples:
        rows = rows.with_row_index("row").filter(pl.col("row").is_in(mixture.rows)).select("response_formats")
    counted = rows.select(pl.col("response_formats").explode()).group_by("response_formats").len().collect()
    return [(name, count) for name, count in counted.sort(["len", "response_formats"], descending=[True, False]).rows()]


def _read_texts(mixture: Reader, source: pl.Series, found: Facts) -> None:
    """One pass over all texts: answers, questions, prompts, and the boxes of samples whose boxes are in text alone."""
    boxes, pictures = found.numbers["boxes"], found.numbers["pictures"]
    answers, questions = _Counter(["source", "text"]), _Counter(["text"])
    prompts = dict.fromkeys(PROMPTS, 0)
    for positions, values, counts in mixture.turns():
        texts = _series(values)
        starts = np.cumsum(counts) - counts
        place = np.arange(len(texts)) - np.repeat(starts, counts)
        spoken = pl.DataFrame({"text": texts, "source": source.gather(positions).gather(_owner(counts))})
        asked, given = spoken.filter(pl.Series(place % 2 == 0)), spoken.filter(pl.Series(place % 2 == 1))
        found.all_answers += len(given)
        short = pl.col("text").str.len_chars() <= LONGEST_COUNTED
        answers.add(given.filter(short).with_columns(pl.col("text").str.strip_chars()))
        bare = pl.col("text").str.replace_all(IMAGE_TOKEN, "", literal=True).str.strip_chars()
        first = pl.col("text").str.split("\n").list.first().str.strip_chars()
        questions.add(asked.select(bare).select(first).filter(short & (pl.col("text") != "")))
        for prompt in prompts:
            prompts[prompt] += int(asked["text"].str.contains(prompt, literal=True).sum())
        named = texts.str.contains("[0.", literal=True) | texts.str.contains("[1.", literal=True)
        if named.any() and not boxes[positions].all():
            each = np.zeros(len(texts), dtype=np.int64)
            each[named.to_numpy()] = texts.filter(named).str.count_matches(SQUARE_TEXT).to_numpy()
            total = np.bincount(_owner(counts), each, len(counts)).astype(np.int64)
            only = (boxes[positions] == 0) & (pictures[positions] == 1)
            boxes[positions[only]] = total[only]
    counted = answers.counts()
    found.answers = _top(counted.group_by("text").agg(pl.col("len").sum()))
    found.answers_of = {
        str(part["source"][0]): _top(part.select("text", "len")) for part in counted.partition_by("source")
    }
    found.questions = [(text, count) for text, count in _top(questions.counts()) if count > 1]
    found.prompts = sorted(((text, n) for text, n in prompts.items() if n), key=lambda each: -each[1])


def _series(values: pa.Array) -> pl.Series:
    made = pl.from_arrow(values)
    assert isinstance(made, pl.Series)
    return made


def _owner(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each turn, the number of its sample among those of a row group."""
    return np.repeat(np.arange(len(counts)), counts)


class _Counter:
    """Counts rows that come in pieces."""

    def __init__(self, keys: list[str]) -> None:
        self._keys, self._parts = keys, list[pl.DataFrame]()

    def add(self, rows: pl.DataFrame) -> None:
        self._parts.append(rows.group_by(self._keys).len())
        if len(self._parts) >= _MERGED:
            self._parts = [self.counts()]

    def counts(self) -> pl.DataFrame:
        if not self._parts:
            return pl.DataFrame(schema={**dict.fromkeys(self._keys, pl.String), "len": pl.UInt32})
        return pl.concat(self._parts).group_by(self._keys).agg(pl.col("len").sum())


def _top(counted: pl.DataFrame) -> list[tuple[str, int]]:
    best = counted.sort(["len", "text"], descending=[True, False]).head(COMMONEST)
    return list(best.select("text", "len").rows())


@dataclass(frozen=True)
class Histogram:
    """`counts[side]` belong to `labels`; `of` says what is counted."""

    title: str
    labels: list[str]
    counts: list[list[int]]
    of: str = "samples"


def histograms(all_facts: Sequence[Facts]) -> list[Histogram]:
    """Of all sides in the same bins; those in which every value is the same are left out."""
    drawn = [
        _binned("rounds per sample", "rounds", _ROUNDS, all_facts),
        _binned("words per sample", "words", _WORDS, all_facts),
        _binned("pictures per sample", "pictures", _PICTURES, all_facts),
        _binned("longer side of a picture, pixels", "picture side", _SIDES, all_facts, "pictures"),
        _binned("boxes per sample", "boxes", _BOXES, all_facts),
    ]
    names = dict.fromkeys(name for facts in all_facts for name in facts.columns)
    drawn += [_of_column(name, all_facts) for name in names]
    return [each for each in drawn if sum(map(sum, each.counts))]


def _binned(
    title: str, name: str, edges: tuple[int, ...], all_facts: Iterable[Facts], of: str = "samples"
) -> Histogram:
    counts = [
        np.histogram(facts.numbers[name], bins=[*edges, np.iinfo(np.int64).max])[0].tolist() for facts in all_facts
    ]
    labels = [f"{low:,}" if high == low + 1 else f"{low:,} to {high - 1:,}" for low, high in pairwise(edges)] + [
        f"{edges[-1]:,} and more"
    ]
    return _trimmed(title, labels, counts, of)


def _trimmed(title: str, labels: list[str], counts: list[list[int]], of: str) -> Histogram:
    """Without the empty bins at both ends."""
    filled = [at for at in range(len(labels)) if any(side[at] for side in counts)]
    low, high = (filled[0], filled[-1] + 1) if filled else (0, 0)
    return Histogram(title, labels[low:high], [side[low:high] for side in counts], of)


def _of_column(name: str, all_facts: Sequence[Facts]) -> Histogram:
    """A source's column: each value where there are few, else ten bins of one width, and how many samples have none."""
    held = [facts.columns[name].drop_nulls() for facts in all_facts if name in facts.columns]
    kind = held[0].dtype if len({part.dtype for part in held}) == 1 else pl.String
    joined = pl.concat([part.cast(kind) for part in held])
    valued = [facts.columns.get(name, joined.clear()).drop_nulls().cast(kind) for facts in all_facts]
    finite = joined.filter(joined.is_finite()) if kind.is_numeric() else joined
    if kind.is_numeric() and finite.n_unique() > _FEW_VALUES:
        low, high, steps = float(finite.min()), float(finite.max()), np.linspace(0, 1, 11)  # type: ignore[arg-type]
        edges = np.maximum.accumulate(low * (1 - steps) + high * steps)  # no overflow, as high - low may
        counts = [np.histogram(part.filter(part.is_finite()).to_numpy(), bins=edges)[0].tolist() for part in valued]
        labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    else:
        common = pl.DataFrame({"value": joined}).group_by("value").len()
        values = common.sort(["len", "value"], descending=[True, False])["value"].head(_FEW_VALUES).to_list()
        values = sorted(values) if kind.is_numeric() else values
        counts = [[int((part == value).sum()) for value in values] for part in valued]
        labels = [abridged(str(value), _LONGEST_LABEL) for value in values]
    for label, more in (
        ("other values", [len(part) - sum(own) for part, own in zip(valued, counts)]),
        ("no value", [facts.samples - len(part) for facts, part in zip(all_facts, valued)]),
    ):
        if any(more):
            labels, counts = [*labels, label], [[*own, one] for own, one in zip(counts, more)]
    return Histogram(name, labels, counts)


@dataclass(frozen=True)
class RejectGroup:
    """What was dropped of one source for one reason, with some of it: id, image, detail, record."""

    source: str
    reason: str
    count: int
    examples: list[dict[str, str]]


def rejects_of(mixture: Reader) -> list[RejectGroup] | None:
    """The rejects of a mixture in groups, by source and reason; None if it lists none (see `read_rejects`)."""
    if (frame := read_rejects(mixture)) is None:
        return None
    groups = frame.group_by("source", "reason", maintain_order=True).agg(
        pl.len().alias("count"), pl.struct("id", "image", "detail", "record").head(REJECTS_SHOWN).alias("examples")
    )
    return [RejectGroup(**row) for row in groups.sort("source", "reason").to_dicts()]


@dataclass(frozen=True)
class Leaders:
    """Samples with the most of something, the most first: (position, number). `unit` is that thing, one and several of
    it; `equal` is how many samples have as much as the first."""

    unit: tuple[str, str]
    equal: int
    rows: list[tuple[int, int]]


_LISTS = (
    ("most boxes", "boxes", ("box", "boxes"), 1),
    ("most pictures", "pictures", ("picture", "pictures"), 2),
    ("most rounds", "rounds", ("round", "rounds"), 2),
    ("longest", "words", ("word", "words"), 1),
)


def outstanding(facts: Facts, passing: NDArray[np.int64], most: int = 5) -> dict[str, Leaders]:
    """Title -> the samples among `passing` that stand out; a list in which no sample has much is left out."""
    lists = {}
    for title, name, unit, least in _LISTS:
        values = facts.numbers[name][passing]
        best = np.argsort(-values.astype(np.int64), kind="stable")[:most]
        rows = [(int(passing[at]), int(values[at])) for at in best if values[at] >= least]
        if rows:
            lists[title] = Leaders(unit, int((values == rows[0][1]).sum()), rows)
    return lists
