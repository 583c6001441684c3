"""Reading a selection that was made elsewhere: a file of ids, content hashes or LLaVA rows, with or without scores."""

import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from msgspec import Struct, field

from mixture.errors import VlmixError
from mixture.files import sha256
from mixture.samples import ROLES

KEYS = ("id", "hash", "conversations")
"""What can name a sample: one of these columns or fields has to be there."""

_COLUMNS = (*KEYS, "image", "score")
_SUFFIXES = (".parquet", ".csv", ".jsonl", ".json", ".txt")
_ROWS = pl.Schema({"id": pl.String, "hash": pl.String, "image": pl.String, "score": pl.Float64})


def content_hash(image: str, values: Sequence[str], roles: Sequence[str] | None = None) -> str:
    """64 hex digits that name a LLaVA row by what it says.

    The SHA-256 of the JSON list `[image, from, value, from, value, …]`, UTF-8, no spaces, nothing escaped that need
    not be: `json.dumps(…, ensure_ascii=False, separators=(",", ":"))`. `image` is `""` for text only. `roles` default
    to human and gpt by turns. Ids and all other keys of a row are left out.
    """
    flat: list[Any] = [image] * (1 + 2 * len(values))
    flat[1::2] = (ROLES * len(values))[: len(values)] if roles is None else roles
    flat[2::2] = values
    return hashlib.sha256(msgspec.json.encode(flat)).hexdigest()


@dataclass(frozen=True)
class Listing:
    """A selection file as read. `rows` has the columns `id`, `hash`, `image` and `score`, null where a row does not
    tell; `scored` says whether the rows have scores."""

    name: str
    sha256: str
    rows: pl.DataFrame
    scored: bool


def read_listing(path: Path) -> Listing:
    """Read a parquet, csv, jsonl, json or txt file of ids, content hashes or LLaVA rows.

    Raises VlmixError that names the row and the remedy for a file that is missing, damaged, empty or of another form,
    and for scores that are missing, no numbers or not finite.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json}
    if path.suffix not in _SUFFIXES:
        raise VlmixError(f"{path}: a selection is a {', '.join(_SUFFIXES)} file, or one of the words lengths, clusters")
    try:
        digest = sha256(path)
        rows = readers.get(path.suffix, _read_txt)(path)
    except FileNotFoundError:
        raise VlmixError(f"{path}: there is no such file") from None
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise VlmixError(f"{path}: not UTF-8 at byte {error.start}; the file is damaged or of another kind") from None
    if rows.is_empty():
        raise VlmixError(f"{path}: there is no row in it")
    unnamed = (rows["id"].is_null() & rows["hash"].is_null()).arg_true()
    if len(unnamed):
        raise VlmixError(f"{path}: row {unnamed[0] + 1} has none of {', '.join(KEYS)}; one of them names the sample")
    return Listing(path.name, digest, rows, _check_scores(path, rows["score"]))


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


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        schema = pl.read_parquet_schema(path)
        _check_columns(path, list(schema))
        frame = pl.read_parquet(path, columns=[name for name in _COLUMNS if name in schema])
    except pl.exceptions.PolarsError as error:
        raise VlmixError(f"{path}: {_first(error)}; the file is damaged") from None
    for name in ("id", "hash", "image"):
        if name in frame.columns and not (
            frame[name].dtype in (pl.String, pl.Categorical, pl.Null)
            or (name == "id" and frame[name].dtype.is_integer())
        ):
            raise VlmixError(f"{path}: column {name} is {frame[name].dtype}, not text; write it as text")
    if "score" in frame.columns and not frame["score"].dtype.is_numeric():
        what = "its scores are not numbers"
        raise VlmixError(f"{path}: column score is {frame['score'].dtype}: {what}; write it as a column of floats")
    if "conversations" in frame.columns:
        frame = frame.with_columns(hash=_hash_column(path, frame))
    return _complete(frame)


def _hash_column(path: Path, frame: pl.DataFrame) -> pl.Series:
    """Column `hash`, where it is missing that of the row's conversations."""
    given = frame["hash"].to_list() if "hash" in frame.columns else [None] * len(frame)
    images = frame["image"].to_list() if "image" in frame.columns else [None] * len(frame)
    hashes: list[str | None] = []
    for part in frame["conversations"].to_frame().iter_slices(5000):  # as Python objects, a row is ten times as large
        for turns in part["conversations"].to_list():
            number = len(hashes)
            try:
                row = msgspec.convert({"conversations": turns, "hash": given[number], "image": images[number]}, _Row)
            except msgspec.ValidationError as error:
                raise VlmixError(f"{path}: row {number + 1}: {error}; it is no LLaVA row") from None
            hashes.append(_hash(row))
    return pl.Series(hashes, dtype=pl.String)


def _read_csv(path: Path) -> pl.DataFrame:
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except pl.exceptions.NoDataError:
        return _ROWS.to_frame()
    except pl.exceptions.PolarsError as error:
        raise VlmixError(f"{path}: {_first(error)}; the file is damaged or is no CSV") from None
    _check_columns(path, [name for name in frame.columns if name != "conversations"])
    if "score" in frame.columns:
        scores = frame["score"].str.strip_chars().cast(pl.Float64, strict=False)
        wrong = (scores.is_null() & frame["score"].is_not_null()).arg_true()
        if len(wrong):
            raise VlmixError(f"{path}: row {wrong[0] + 1}: score {frame['score'][wrong[0]]!r} is not a number")
        frame = frame.with_columns(score=scores)
    return _complete(frame)


def _check_columns(path: Path, columns: list[str]) -> None:
    if not any(name in columns for name in KEYS):
        raise VlmixError(
            f"{path}: no column names the samples; id, hash or conversations do, it has {', '.join(columns) or 'none'}"
        )


def _complete(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of a listing, those that are missing null."""
    return frame.select(
        frame[name].cast(dtype) if name in frame.columns else pl.lit(None, dtype).alias(name)
        for name, dtype in _ROWS.items()
    )


class _Turn(Struct):
    role: Any = field(name="from", default=None)
    value: Any = None


class _Row(Struct):
    """A row of a JSON file. Turns may be of any kind: a row that cannot be a sample is told as missed."""

    id: Any = None
    hash: str | None = None
    image: Any = None
    conversations: list[_Turn] | None = None
    score: Any = None


_Entry = _Row | str | int


def _read_json(path: Path) -> pl.DataFrame:
    with path.open("rb") as file:
        try:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:  # an empty file cannot be mapped
            return _ROWS.to_frame()
    data = data[3:] if bytes(data[:3]) == b"\xef\xbb\xbf" else data
    try:
        raws = msgspec.json.decode(data, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        raise VlmixError(f"{path}: it holds no list; a JSON selection is a list of ids or of objects") from None
    except msgspec.DecodeError as error:
        return _frame(path, _mended(path, bytes(data), str(error)))
    decoder = msgspec.json.Decoder(_Entry)
    return _frame(path, (_decode(path, number, raw, decoder) for number, raw in enumerate(raws, start=1)))


def _read_jsonl(path: Path) -> pl.DataFrame:
    decoder = msgspec.json.Decoder(_Entry)

    def entries() -> Iterator[_Entry]:
        with path.open("rb") as file:
            number = 0
            for line in file:
                text = line.removeprefix(b"\xef\xbb\xbf") if not number else line
                if text.strip():
                    number += 1
                    yield _decode(path, number, text, decoder)

    return _frame(path, entries())


def _decode(path: Path, number: int, raw: Any, decoder: msgspec.json.Decoder[_Entry]) -> _Entry:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise VlmixError(f"{path}: row {number}: {error}; a row is an id or an object with one of {KEYS}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        return next(_mended(path, b"[" + bytes(raw) + b"]", f"row {number}: {error}"))


def _mended(path: Path, data: bytes, why: str) -> Iterator[_Entry]:
    """The entries of a JSON list that msgspec refuses. Half of a surrogate pair becomes U+FFFD, as in a build (ShareGPT
    has chats that were cut inside an emoji); anything else is an error."""
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False)  # takes NaN too, which Python writes
        whole = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        yield from msgspec.convert(whole, list[_Entry])
    except msgspec.ValidationError as error:
        raise VlmixError(f"{path}: {error}; a row is an id or an object with one of {KEYS}") from None
    except (ValueError, RecursionError):
        raise VlmixError(f"{path}: {why}; the file is damaged") from None


def _frame(path: Path, entries: Iterator[_Entry]) -> pl.DataFrame:
    """The entries as a listing's rows."""
    columns: dict[str, list[Any]] = {name: [] for name in _ROWS}
    for number, entry in enumerate(entries, start=1):
        row = entry if isinstance(entry, _Row) else _Row(id=entry)
        if row.id is not None and (isinstance(row.id, bool) or not isinstance(row.id, str | int)):
            raise VlmixError(f"{path}: row {number}: id {row.id!r} is neither text nor a whole number")
        if row.score is not None and (isinstance(row.score, bool) or not isinstance(row.score, int | float)):
            raise VlmixError(f"{path}: row {number}: score {row.score!r} is not a number")
        columns["id"].append(None if row.id is None else str(row.id))
        columns["hash"].append(_hash(row))
        columns["image"].append(image_path(row.image))
        columns["score"].append(None if row.score is None else float(row.score))
    return pl.DataFrame(columns, schema=_ROWS)


def _hash(row: _Row) -> str | None:
    if row.hash is not None or row.conversations is None:
        return row.hash
    values, roles = [turn.value for turn in row.conversations], [turn.role for turn in row.conversations]
    return content_hash(image_path(row.image) or "", values, roles)


def image_path(image: Any) -> str | None:
    """A row's image path; some releases write a list of one."""
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    return image if isinstance(image, str) else None


def _read_txt(path: Path) -> pl.DataFrame:
    lines = path.read_bytes().decode("utf-8-sig").splitlines()
    return _complete(pl.DataFrame({"id": [line.strip() for line in lines if line.strip()]}, schema={"id": pl.String}))


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]
