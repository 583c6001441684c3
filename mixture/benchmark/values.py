"""What each question adds to a score: enough to tell the score's interval, and to compare it with another model's.

Every score here is the sum, or the mean, over groups of 100 x Σ value / Σ weight: an accuracy has one group and weights
of 1, MME two groups for each task, POPE the F1 of each split, which is Σ 2 tp / Σ (2 tp + fp + fn).
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write

NAME = "values.parquet"
"""Of the file beside a report."""

Floats = NDArray[np.float64]

_SCHEMA = pa.schema(
    [
        ("question", pa.string()),
        ("cluster", pa.string()),
        ("group", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
        ("answered", pa.bool_()),
    ]
)


class Totals(NamedTuple):
    """Sums over the questions of a cluster: `value` and `weight` [clusters, groups]; `stratum` [clusters] numbers the
    clusters that share groups, directly or through others."""

    clusters: list[str]
    value: Floats
    weight: Floats
    stratum: NDArray[np.int64]


class Values:
    """The rows of one score: (question, cluster, group, value, weight, answered).

    A cluster is what questions share so that their answers go together, mostly the image. The score is the mean over
    groups, or with `summed` their sum. `answered` says whether the model answered.
    """

    def __init__(self, table: pa.Table, summed: bool = False) -> None:
        self.table = table.cast(_SCHEMA)
        self.summed = summed

    def __len__(self) -> int:
        return len(self.table)

    @property
    def questions(self) -> int:
        """How many questions there are."""
        return len(self.ids())

    def ids(self) -> pa.Array:
        """The ids of questions, each once, in order."""
        return pc.unique(self.table["question"])

    def answered(self) -> pa.Array:
        """The ids of questions with an answer, each once, in order."""
        return pc.unique(self.table.filter(self.table["answered"])["question"])

    def of(self, questions: pa.Array) -> "Values":
        """The rows of some questions alone."""
        return Values(self.table.filter(pc.is_in(self.table["question"], questions)), self.summed)

    @cached_property
    def totals(self) -> Totals:
        """Sums by cluster and group."""
        clusters, cluster = _numbered(self.table["cluster"])
        groups, group = _numbered(self.table["group"])
        place = cluster * len(groups) + group
        shape = (len(clusters), len(groups))

        def summed(name: str) -> Floats:
            weights = self.table[name].to_numpy()
            sums = np.bincount(place, weights, minlength=shape[0] * shape[1])
            return np.asarray(sums, dtype=np.float64).reshape(shape)

        return Totals(clusters, summed("value"), summed("weight"), _strata(cluster, group, shape))

    def score(self) -> float:
        """On the published scale; 0 where nothing has a weight."""
        totals = self.totals
        return float(score_of(totals.value.sum(0), totals.weight.sum(0), self.summed))

    def write(self, path: Path) -> None:
        """Write a Parquet file that `read` reads."""
        table = self.table.replace_schema_metadata({"groups": "summed" if self.summed else "mean"})
        with atomic_write(path) as file:
            pq.write_table(table, file, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> "Values":
        """Raises VlmixError for a file that is missing, damaged or another's."""
        try:
            table = pq.read_table(path)
            values = cls(table, (table.schema.metadata or {}).get(b"groups") == b"summed")
            values.table.validate(full=True)
            if not all(_whole(column) for column in values.table.columns):
                raise ValueError("a cell is empty or not finite")
            return values
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            raise VlmixError(f"{path}: no values of questions ({error}); evaluate or score again") from None


def score_of(value: Floats, weight: Floats, summed: bool) -> Floats:
    """The score of sums `value` and `weight` [..., groups]: [...]. A group without weight counts as 0."""
    ratios = 100 * np.divide(value, weight, out=np.zeros_like(value), where=weight > 0)
    return np.asarray(ratios.sum(-1) if summed else ratios.mean(-1))


class Tallies:
    """What questions add to several scores, by the name of the score, "" for the main one."""

    def __init__(self) -> None:
        # Names are kept once, rows as numbers: VQAv2 has 214,354 questions, each in four scores.
        self._names: tuple[dict[str, int], ...] = ({}, {}, {})
        self._rows: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._summed: set[str] = set()
        self._values: dict[str, Values] | None = None

    def add(
        self,
        name: str,
        question: str,
        cluster: str,
        value: float,
        weight: float = 1.0,
        *,
        group: str = "",
        answered: bool = True,
    ) -> None:
        """What a question adds to the score `name`: an accuracy adds the share that is right, of weight 1."""
        self._rows[name].extend((*self._codes(question, cluster, group), value, weight, answered))
        self._values = None

    def add_shares(
        self, shares: Iterable[tuple[str, float]], question: str, cluster: str, answered: bool = True
    ) -> None:
        """What a question adds to several accuracies, (name, share that is right) each."""
        codes = self._codes(question, cluster, "")
        for name, share in shares:
            self._rows[name].extend((*codes, share, 1.0, answered))
        self._values = None

    def _codes(self, question: str, cluster: str, group: str) -> tuple[int, int, int]:
        questions, clusters, groups = self._names
        return (
            questions.setdefault(question, len(questions)),
            clusters.setdefault(cluster, len(clusters)),
            groups.setdefault(group, len(groups)),
        )

    def add_binary(
        self, name: str, question: str, cluster: str, said: bool, label: bool, *, group: str = "", answered: bool = True
    ) -> None:
        """What a yes/no question adds to the F1 `name`, of which "yes" is the positive class."""
        self.add(name, question, cluster, 2 * (said and label), said + label, group=group, answered=answered)

    def sum_groups(self, names: Iterable[str]) -> None:
        """These scores are sums over their groups, not means."""
        self._summed |= set(names)
        self._values = None

    def values(self) -> Mapping[str, Values]:
        """By name, in the order of names."""
        if self._values is None:
            names = [pa.array(list(each), pa.string()) for each in self._names]
            self._values = {}
            for name in sorted(self._rows):
                numbers = np.frombuffer(self._rows[name]).reshape(-1, len(_SCHEMA)).T.copy()
                told = [each.take(pa.array(codes.astype(np.int64))) for each, codes in zip(names, numbers)]
                columns = [*told, numbers[3], numbers[4], numbers[5].astype(bool)]
                self._values[name] = Values(pa.table(columns, schema=_SCHEMA), name in self._summed)
        return self._values

    def percents(self, digits: int | None = None) -> dict[str, float]:
        """Scores by name, rounded to `digits` if given, in the order of names."""
        scores = {name: values.score() for name, values in self.values().items()}
        return scores if digits is None else {name: round(score, digits) for name, score in scores.items()}


def _whole(column: pa.ChunkedArray) -> bool:
    """Whether every cell has a value, and every number is finite."""
    finite = not pa.types.is_floating(column.type) or bool(np.isfinite(column.to_numpy()).all())
    return not column.null_count and finite


def _numbered(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _strata(cluster: NDArray[np.int64], group: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    """A number for each cluster; clusters with a group in common, directly or through others, have the same."""
    of_group = np.arange(shape[1])
    of_cluster = np.full(shape[0], shape[1])
    while True:
        np.minimum.at(of_cluster, cluster, of_group[group])
        before = of_group.copy()
        np.minimum.at(of_group, group, of_cluster[cluster])
        if np.array_equal(before, of_group):
            return of_cluster
