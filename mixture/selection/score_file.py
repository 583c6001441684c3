"""Reading a selection that was made elsewhere: a file of ids, content hashes or LLaVA rows, with or without scores."""

import json
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct, field

from vlmix.mixture.dataset.llava_row import row_sha256
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.json_pieces import PIECE, Piece, Pieces

KEYS = ("id", "row_sha256", "conversations")
"""What can name a sample: one of these columns or fields has to be there."""

_NAMING = (*KEYS, "image", "images")
_INDEX = ("", "Unnamed: 0", "__index_level_0__")  # the row numbers that pandas writes beside the columns
_SUFFIXES = (".parquet", ".csv", ".jsonl", ".json", ".txt")
_ROWS = pl.Schema({"id": pl.String, "row_sha256": pl.String, "image": pl.String, "score": pl.Float64})


_LOOK = 1000  # values of a text column that show whether it holds numbers
_SLICE = 5000  # rows that are Python objects at a time
_ID_END = re.compile(rb'["\d]\s*,')  # between two ids of a JSON list, perhaps


@dataclass(frozen=True)
class Listing:
    """A selection file as read. `rows` has the columns `id`, `row_sha256`, `image` and `score`, null where a row does
    not say, and of type Null where no row does; `scored` says whether the rows have scores."""

    name: str
    sha256: str
    rows: pl.DataFrame
    scored: bool


def read_listing(path: Path, column: str | None = None) -> Listing:
    """Read a parquet, csv, jsonl, json or txt file of ids, content hashes or LLaVA rows.

    The scores are those in `column`, by default in `score` if there is one.
    Raises VlmixError that names the row and the remedy for a file that is missing, damaged, empty or in a different
    format, for scores that are missing, no numbers or not finite, and for a file with numbers in other columns of which
    none is chosen: taken as a list of ids, a part of it would be the random subset.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json}
    if column in _NAMING:
        raise VlmixError(f"{path}: column {column} names the samples; choose a column of scores")
    if path.suffix not in _SUFFIXES:
        raise VlmixError(f"{path}: a selection is a {', '.join(_SUFFIXES)} file, or one of the words lengths, clusters")
    try:
        digest = sha256(path)
        seen = _Seen()
        rows = readers.get(path.suffix, _read_txt)(path, column or "score", seen)
    except FileNotFoundError:
        raise VlmixError(f"{path}: there is no such file") from None
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise VlmixError(f"{path}: not UTF-8 at byte {error.start}; the file is damaged or of another kind") from None
    if rows.is_empty():
        raise VlmixError(f"{path}: there is no row in it")
    unnamed = (rows["id"].is_null() & rows["row_sha256"].is_null()).arg_true()
    if len(unnamed):
        raise VlmixError(f"{path}: row {unnamed[0] + 1} has none of {', '.join(KEYS)}; one of them names the sample")
    if column is not None and column not in seen.names:
        raise VlmixError(f"{path}: no column {_short(column)}; it has {_listed(seen.names)}")
    scored = _check_scores(path, rows["score"])
    if column is not None and not scored:
        raise VlmixError(f"{path}: column {_short(column)} holds no number; it has {_listed(seen.names)}")
    if not scored and (numbers := seen.numeric(rows=bool("conversations" in seen.names))):
        raise VlmixError(
            f"{path}: no column is called score, but there are numbers in {_listed(numbers)} (its columns are "
            f"{_listed(seen.names)}); choose one with --column {numbers[0]}, or remove them to use it as a list"
        )
    return Listing(path.name, digest, rows, scored)


class _Seen:
    """The columns of a file, and how many values of each are numbers."""

    def __init__(self) -> None:
        self.names: dict[str, list[int]] = {}
        """Name -> values, numbers among them, numbers with a fraction among these."""

    def add(self, name: str, values: int, numbers: int, fractions: int) -> None:
        counts = self.names.setdefault(name, [0, 0, 0])
        for place, count in enumerate((values, numbers, fractions)):
            counts[place] += count

    def add_texts(self, name: str, column: pl.LazyFrame) -> None:
        """Of a column of texts that is read as it goes by."""
        numbers = pl.col(name).str.strip_chars().cast(pl.Float64, strict=False)
        counts = pl.col(name).count(), numbers.count().alias("n"), (numbers != numbers.round()).sum().alias("f")
        values, found, fractions = column.select(counts).collect(engine="streaming").row(0)
        self.add(name, values, found, fractions)

    def add_text(self, name: str, values: pl.Series) -> None:
        numbers = values.str.strip_chars().cast(pl.Float64, strict=False).drop_nulls()
        self.add(name, len(values) - values.null_count(), len(numbers), int((numbers != numbers.round()).sum()))

    def add_row(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            number = _number(value)
            whole = number is None or number.is_integer()
            self.add(name, value is not None, number is not None, not whole)

    def numeric(self, *, rows: bool) -> list[str]:
        """Columns that may be meant as scores. In LLaVA `rows`, whole numbers are sizes and running numbers unless the
        name says score; there, too, one text among numbers does not hide a column."""
        return [
            name
            for name, (values, numbers, fractions) in self.names.items()
            if name not in (*_NAMING, *_INDEX, "score")
            and numbers
            and 2 * numbers >= values
            and (not rows or fractions or "score" in name.lower())
        ]


def _number(value: Any) -> float | None:
    """A number, or a short text that is one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)[:65]) > 64:
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _short(value: Any) -> str:
    """A value as a message repeats it: fields of damaged files may be megabytes long."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(_short, names[:20])) + (", …" if len(names) > 20 else "") or "none"


def _check_scores(path: Path, scores: pl.Series) -> bool:
    """Whether there are scores. Raises VlmixError for rows without one among others with, and for odd numbers."""
    if scores.null_count() == len(scores):
        return False
    if scores.null_count():
        raise VlmixError(f"{path}: row {scores.is_null().arg_true()[0] + 1} has no score, others have; leave it out")
    odd = (~scores.is_finite()).arg_true()
    if len(odd):
        what = f"row {odd[0] + 1} has the score {scores[odd[0]]}"
        raise VlmixError(f"{path}: {what}, which has no place in an order; leave such rows out")
    return True


def _read_parquet(path: Path, column: str, seen: _Seen) -> pl.DataFrame:
    try:
        file = pq.ParquetFile(path)  # polars would panic over some damages
        empty = pl.from_arrow(file.schema_arrow.empty_table())
        assert isinstance(empty, pl.DataFrame)
        schema = empty.schema
        _check_columns(path, list(schema))
        wanted = [name for name in dict.fromkeys((*_NAMING, column)) if name in schema]
        _check_types(path, empty, column)
        for name, dtype in schema.items():
            seen.add(name, 1, dtype.is_numeric(), dtype.is_float() or dtype.is_decimal())
        texts = [name for name, dtype in schema.items() if dtype == pl.String and name not in _NAMING]
        for batch in islice(file.iter_batches(_LOOK, columns=texts), 1) if texts else []:
            for values in pl.DataFrame(batch):
                seen.add_text(values.name, values)
        parts, first = [_ROWS.to_frame()], 1
        for batch in file.iter_batches(_SLICE if "conversations" in schema else 20 * _SLICE, columns=wanted):
            frame = pl.DataFrame(batch)
            if "conversations" in schema:
                frame = frame.with_columns(row_sha256=_hash_column(path, frame, first))
            parts.append(_complete(frame, column))
            first += len(frame)
    except (pa.ArrowException, OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        raise VlmixError(f"{path}: {_first(error)}; the file is damaged or is no Parquet") from None
    return _joined(parts)


def _check_types(path: Path, frame: pl.DataFrame, column: str) -> None:
    for name in ("id", "row_sha256", "image"):
        if name in frame.columns and not (
            frame[name].dtype in (pl.String, pl.Categorical, pl.Null)
            or (name == "id" and frame[name].dtype.is_integer())
        ):
            raise VlmixError(f"{path}: column {name} is {frame[name].dtype}, not text; write it as text")
    if column in frame.columns and not (frame[column].dtype.is_numeric() or frame[column].dtype == pl.Null):
        what = f"column {_short(column)} is {_short(frame[column].dtype)}: its scores are not numbers"
        raise VlmixError(f"{path}: {what}; write it as a column of floats (its columns are {_listed(frame.columns)})")


def _hash_column(path: Path, frame: pl.DataFrame, first: int) -> pl.Series:
    """Column `row_sha256`, where it is missing that of the row's conversations; `first` is the first row's number."""
    columns = [name for name in ("conversations", "row_sha256", "image", "images") if name in frame.columns]
    hashes: list[str | None] = []
    for row in frame.select(columns).iter_rows(named=True):
        try:
            hashes.append(_hash(msgspec.convert(row, _Row)))
        except msgspec.ValidationError as error:
            raise VlmixError(f"{path}: row {first + len(hashes)}: {error}; it is no LLaVA row") from None
    return pl.Series(hashes, dtype=pl.String)


def _read_csv(path: Path, column: str, seen: _Seen) -> pl.DataFrame:
    try:
        lazy = pl.scan_csv(path, infer_schema=False)
        names = lazy.collect_schema().names()
        _check_columns(path, [name for name in names if name != "conversations"])
        for name in names:
            seen.add_texts(name, lazy.select(name))
        frame = lazy.select(name for name in names if name in (*_NAMING, column) and name != "conversations").collect()
    except pl.exceptions.NoDataError:
        return _ROWS.to_frame()
    except pl.exceptions.PolarsError as error:
        raise VlmixError(f"{path}: {_first(error)}; the file is damaged or is no CSV") from None
    if column in frame.columns:
        scores = frame[column].str.strip_chars().cast(pl.Float64, strict=False)
        wrong = (scores.is_null() & frame[column].is_not_null()).arg_true()
        if len(wrong):
            value = _short(repr(frame[column][wrong[0]]))
            what = f"row {wrong[0] + 1}: {_short(column)} {value} is not a number"
            raise VlmixError(f"{path}: {what} (its columns are {_listed(names)})")
        frame = frame.with_columns(scores.alias(column))
    return _complete(frame, column)


def _check_columns(path: Path, columns: list[str]) -> None:
    if not any(name in columns for name in KEYS):
        raise VlmixError(
            f"{path}: no column names the samples; id, row_sha256 or conversations do, it has {_listed(columns)}"
        )


def _complete(frame: pl.DataFrame, column: str = "score") -> pl.DataFrame:
    """The columns of a listing, the scores being those in `column`; columns without a value are of type Null."""
    origin = {**{name: name for name in _ROWS}, "score": column}
    none = pl.repeat(None, len(frame), dtype=pl.Null, eager=True)
    found = {name: frame[origin[name]] for name in _ROWS if origin[name] in frame.columns}
    full = {name: values.cast(_ROWS[name]) for name, values in found.items() if values.null_count() < len(values)}
    return pl.DataFrame({name: full.get(name, none) for name in _ROWS})


def _joined(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat([part for part in parts if len(part)] or parts[:1], how="vertical_relaxed")


class _Turn(Struct):
    role: Any = field(name="from", default=None)
    value: Any = None


class _Row(Struct):
    """A row of a JSON file. Turns may be of any kind: a row that cannot be a sample is reported as unmatched."""

    id: Any = None
    row_sha256: str | None = None
    image: Any = None
    images: Any = None
    conversations: list[_Turn] | None = None
    score: Any = None


class _Entries:
    """Decodes the entries of a JSON file, whose scores are in `column`, and counts what else they have."""

    def __init__(self, path: Path, column: str, seen: _Seen) -> None:
        self.path, self.column, self.seen = path, column, seen
        # The key of the scores is known only when the file is read.
        fields = [("score", Any, field(default=None, name=column))]
        row = _Row if column == "score" else msgspec.defstruct("_ScoredRow", fields, bases=(_Row,))
        self.type = row | str | int
        self.decoder = msgspec.json.Decoder(self.type)
        self.keys = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def decode(self, number: int, raw: Any) -> Any:
        try:
            entry = self.decoder.decode(raw)
            if isinstance(entry, _Row):
                self.seen.add_row(
                    {name: () if name in _NAMING else _scalar(value) for name, value in self.keys.decode(raw).items()}
                )
            return entry
        except msgspec.ValidationError as error:
            raise VlmixError(
                f"{self.path}: row {number}: {error}; a row is an id or an object with one of {KEYS}"
            ) from None
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            whole = _as_python(b"[" + bytes(raw) + b"]")
            if whole is None:
                raise VlmixError(f"{self.path}: row {number}: {error}; the file is damaged") from None
            return self.converted(whole)[0]

    def converted(self, whole: Any) -> list[Any]:
        """The entries of a list that Python's json has read."""
        try:
            entries: list[Any] = msgspec.convert(whole, list[self.type])  # type: ignore[name-defined]
        except msgspec.ValidationError as error:
            raise VlmixError(f"{self.path}: {error}; a row is an id or an object with one of {KEYS}") from None
        for row in whole:
            if isinstance(row, dict):
                self.seen.add_row(row)
        return entries


def _as_python(data: bytes) -> Any:
    """JSON that msgspec refuses, as Python reads it, None if it cannot either. Half of a surrogate pair becomes U+FFFD,
    as in a build (ShareGPT has chats that were cut inside an emoji)."""
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False)  # takes NaN too, which Python writes
        return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return None


def _scalar(raw: msgspec.Raw) -> Any:
    """A number or a short text of a row's key; nothing else can be a score. Anything but null counts as a value."""
    data = bytes(memoryview(raw)[:70]).strip()
    if data == b"null":
        return None
    short = len(memoryview(raw)) < 70 and data[:1] in b'-0123456789"'
    return json.loads(data) if short else ()


def _read_json(path: Path, column: str, seen: _Seen) -> pl.DataFrame:
    with path.open("rb") as file:
        try:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:  # an empty file cannot be mapped
            return _ROWS.to_frame()
    entries = _Entries(path, column, seen)
    data = data[3:] if bytes(data[:3]) == b"\xef\xbb\xbf" else data
    return _frame(path, _elements(path, data, entries), column)


def _elements(path: Path, data: memoryview, entries: _Entries) -> Iterator[Any]:
    """The entries of a JSON list, a piece of the file at a time."""
    pieces, number, size = Pieces(data), 0, PIECE
    if not pieces.there:
        raise VlmixError(_problem(path, data))
    start, stop = pieces.range(None)
    objects = bytes(data[start : start + 1000]).lstrip().startswith(b"{")
    while True:
        piece = pieces.piece(start, stop, size)
        if piece.last and (end := _ID_END.search(data, start + size)) and not objects:
            piece = Piece(start, end.end() - 1, last=False)
        text = pieces.text(piece)
        try:
            raws = msgspec.json.decode(text, type=list[msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            whole = _as_python(text)
            if whole is None and piece.last:
                raise VlmixError(_problem(path, data)) from None
            if whole is None:  # cut where no element ends
                size *= 4
                continue
            found = entries.converted(whole)
        else:
            found = [entries.decode(number, raw) for number, raw in enumerate(raws, start=number + 1)]
        yield from found
        if piece.last:
            return
        start, number, size = piece.end + 1, number + len(found), PIECE


def _problem(path: Path, data: memoryview) -> str:
    """Why a file is no JSON list."""
    try:
        msgspec.json.decode(data, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        return f"{path}: it holds no list; a JSON selection is a list of ids or of objects"
    except (msgspec.DecodeError, RecursionError) as error:
        return f"{path}: {error}; the file is damaged"
    return f"{path}: the file is damaged"


def _read_jsonl(path: Path, column: str, seen: _Seen) -> pl.DataFrame:
    rows = _Entries(path, column, seen)

    def entries() -> Iterator[Any]:
        with path.open("rb") as file:
            number = 0
            for line in file:
                text = line.removeprefix(b"\xef\xbb\xbf") if not number else line
                if text.strip():
                    number += 1
                    yield rows.decode(number, text)

    return _frame(path, entries(), column)


def _frame(path: Path, entries: Iterator[Any], column: str) -> pl.DataFrame:
    """The entries as a listing's rows."""
    parts, number = [_ROWS.to_frame()], 1
    while some := list(islice(entries, _SLICE)):
        parts.append(_complete(_slice(path, some, number, column)))
        number += len(some)
    return _joined(parts)


def _slice(path: Path, entries: list[Any], first: int, column: str) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in _ROWS}
    for number, entry in enumerate(entries, start=first):
        row = entry if isinstance(entry, _Row) else _Row(id=entry)
        if row.id is not None and (isinstance(row.id, bool) or not isinstance(row.id, str | int)):
            raise VlmixError(f"{path}: row {number}: id {_short(repr(row.id))} is neither text nor a whole number")
        if row.score is not None and (isinstance(row.score, bool) or not isinstance(row.score, int | float)):
            value = _short(repr(row.score))
            raise VlmixError(f"{path}: row {number}: {_short(column)} {value} is not a number")
        columns["id"].append(None if row.id is None else str(row.id))
        columns["row_sha256"].append(_hash(row))
        columns["image"].append(image_path(row.image or row.images))
        try:
            columns["score"].append(None if row.score is None else float(row.score))
        except OverflowError:
            raise VlmixError(f"{path}: row {number}: {_short(column)} is too large for a float") from None
    return pl.DataFrame(columns, schema=_ROWS)


def _hash(row: _Row) -> str | None:
    if row.row_sha256 is not None or row.conversations is None:
        return row.row_sha256
    values, roles = [turn.value for turn in row.conversations], [turn.role for turn in row.conversations]
    return row_sha256(image_path(row.image or row.images) or "", values, roles)


def image_path(image: Any) -> str | None:
    """The path of a row's first image, of which some releases write a list."""
    if isinstance(image, list) and image:
        image = image[0]
    return image if isinstance(image, str) else None


def _read_txt(path: Path, column: str, seen: _Seen) -> pl.DataFrame:
    seen.add("id", 0, 0, 0)
    parts, start = [_ROWS.to_frame()], 0
    with path.open("rb") as file:
        while raw := b"".join(islice(file, _SLICE)):
            try:
                lines = raw.decode("utf-8" if start else "utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                error.start += start
                raise
            ids = [line.strip() for line in lines if line.strip()]
            parts.append(_complete(pl.DataFrame({"id": ids}, schema={"id": pl.String})))
            start += len(raw)
    return _joined(parts)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
