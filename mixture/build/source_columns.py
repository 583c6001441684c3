"""What sources say about their samples beyond the conversation, as typed nullable columns."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from vlmix.mixture.dataset.schema import RESERVED, SCALARS
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.record import Conversation, Scalar

_KINDS = {pa.string(): "text", pa.int64(): "whole numbers", pa.float64(): "numbers", pa.bool_(): "true and false"}


def columns_path(candidates: Path) -> Path:
    """The file beside a file of candidates that holds the columns of their source; absent where it has none."""
    return candidates.with_suffix(".columns")


class SourceColumns:
    """Collects the `columns` of the conversations of the entry `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._values: dict[str, list[Scalar]] = {}
        self._rows: list[dict[str, Scalar]] = []
        self._chunks: dict[str, list[pa.Array]] = {}
        self._done = 0

    def noted(self, conversations: Iterator[Conversation]) -> Iterator[Conversation]:
        for conversation in conversations:
            self._rows.append(conversation.columns)
            yield conversation

    def close_batch(self, count: int) -> None:
        """Take in the first `count` of the conversations that were noted since."""
        rows, self._rows = self._rows[:count], self._rows[count:]
        names = dict.fromkeys((*self._chunks, *(name for row in rows for name in row)))
        for name in names:
            if name not in self._chunks:
                if name in RESERVED:
                    raise VlmixError(_renamed(self.name, name, "has the name of a column of every mixture"))
                self._chunks[name] = [pa.nulls(self._done)] if self._done else []
            try:
                array = pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, OverflowError) as error:
                raise VlmixError(
                    f"sources.{self.name}: column {name!r} is not of one type that can be kept ({error}); leave it out "
                    f"with `without: [{name}]`"
                ) from None
            if array.type not in (*SCALARS, pa.null()):
                raise VlmixError(
                    f"sources.{self.name}: column {name!r} holds {array.type}, expected text, numbers or booleans; "
                    f"leave it out with `without: [{name}]`"
                )
            self._chunks[name].append(array)
        self._done += len(rows)

    def write(self, path: Path) -> None:
        """Write the columns, if there are any."""
        path.unlink(missing_ok=True)
        if not self._chunks:
            return
        columns = {}
        for name, chunks in self._chunks.items():
            type = one_type(self.name, name, [chunk.type for chunk in chunks], f"leave it out with `without: [{name}]`")
            columns[name] = pa.chunked_array([chunk.cast(type) for chunk in chunks], type)
        table = pa.table(columns)
        with atomic_write(path) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)


def one_type(where: str, name: str, types: list[pa.DataType], remedy: str = "") -> pa.DataType:
    """The type of a column whose parts have `types`. Raises VlmixError for two that do not go together; another name is
    the remedy if none is given."""
    kinds = {type for type in types if type != pa.null()}
    if kinds == {pa.int64(), pa.float64()}:
        return pa.float64()
    if len(kinds) > 1:
        what = " and ".join(sorted(_KINDS[kind] for kind in kinds))
        if remedy:
            raise VlmixError(f"sources.{where}: column {name!r} holds {what}; {remedy}")
        raise VlmixError(_renamed(where, name, f"holds {what}"))
    return kinds.pop() if kinds else pa.null()


def _renamed(where: str, name: str, why: str) -> str:
    return f"sources.{where}: column {name!r} {why}; give it another name with `columns: {{new_name: {name}}}`"
