"""rejects.parquet: everything that was dropped, as columns."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vlmix.mixture.dataset.schema import REJECTS, Reject
from vlmix.mixture.io.atomic import write_parquet

_ORDER = [(name, "ascending") for name in ("source", "id", "round", "reason", "detail")]
_MOST = 1_000_000  # rows of a row group
_TEXT = 2**31 - 1  # bytes that an array of strings holds; columns of large strings are not bound to it
_LARGE = pa.schema([field.with_type(pa.large_string()) if field.type == pa.string() else field for field in REJECTS])
_TOGETHER = 65_536  # rejects that are Python objects at a time


class RejectRows:
    """Rejects that are collected one by one and kept as columns."""

    def __init__(self) -> None:
        self._done: list[pa.RecordBatch] = []
        self._rows: list[Reject] = []

    def add(self, reject: Reject) -> None:
        self._rows.append(reject)
        if len(self._rows) >= _TOGETHER:
            self._done, self._rows = [*self._done, reject_rows(self._rows)], []

    def batches(self) -> list[pa.RecordBatch]:
        return [*self._done, *([reject_rows(self._rows)] if self._rows else [])]


def reject_rows(rejects: Sequence[Reject]) -> pa.RecordBatch:
    """Rejects as columns (REJECTS)."""
    columns = [pa.array([getattr(reject, field.name) for reject in rejects], field.type) for field in REJECTS]
    return pa.record_batch(columns, schema=REJECTS)


def write_rejects(path: Path, rejects: Iterable[pa.RecordBatch]) -> dict[str, dict[str, int]]:
    """Write all rejects in one order, however they were found: source -> reason -> how many, in alphabetical order."""
    table = pa.Table.from_batches(rejects, REJECTS).cast(_LARGE).combine_chunks()
    order = pc.sort_indices(table, sort_keys=_ORDER)
    parts = (order.slice(start, _MOST) for start in range(0, max(len(order), 1), _MOST))
    write_parquet(path, (group for part in parts for group in _row_groups(table, part)), REJECTS)
    counts = table.group_by(["source", "reason"]).aggregate([([], "count_all")]).sort_by(_ORDER[:1] + _ORDER[3:4])
    reasons: dict[str, dict[str, int]] = {}
    for row in counts.to_pylist():
        reasons.setdefault(row["source"], {})[row["reason"]] = row["count_all"]
    return reasons


def _row_groups(table: pa.Table, order: pa.Array) -> Iterator[pa.RecordBatch]:
    """Rows of the table as one batch, or as several where their text is too long for one."""
    part = table.take(order)
    if part.nbytes > _TEXT and len(order) > 1:
        half = len(order) // 2
        yield from _row_groups(table, order.slice(0, half))
        yield from _row_groups(table, order.slice(half))
    else:
        yield part.cast(REJECTS).combine_chunks().to_batches()[0] if len(part) else reject_rows([])
