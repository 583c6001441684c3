"""Tables of rows in whatever file people keep them: Parquet, Arrow, JSONL, JSON, CSV, WebDataset tars.

Rows come in batches, in bounded memory where the file's form allows it, and without the bytes of their images: of these
is only said whether they lie inside the row or under a path.
"""

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.extras import missing
from vlmix.mixture.io.containers import (
    Container,
    Kind,
    arrow_batches,
    bytes_leaves,
    is_image_member,
    leaf_columns,
    opened_parquet,
)
from vlmix.mixture.io.digests import sha256, stamp
from vlmix.mixture.io.text_rows import TextRow, csv_rows, decoded, json_rows, jsonl_rows, loaded

INSIDE = ""
"""An image whose bytes are in the row itself, instead of a path."""
ImageItem = str | None
"""INSIDE, a path or URL, or None for nothing."""

MEDIA = ("video", "videos", "audio", "audios", "video_path", "audio_path")
"""Columns of what is not read; of those in typed files is only said whether there is something."""

_BATCH = 1024
_HEAVY_BATCH = 64  # where the images have to be looked at
_SAMPLE = 50  # rows from which the columns of untyped files are read
_SUFFIXES: dict[str, Kind] = {
    ".parquet": "parquet", ".arrow": "arrow", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".tar": "tar",
}  # fmt: skip
_PACKED = (".gz", ".zst", ".zip", ".bz2", ".xz", ".tgz")
_VIDEOS, _SOUNDS = ("mp4", "webm", "avi", "mov", "mkv"), ("mp3", "wav", "flac", "ogg", "m4a")
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)?(\.\d+)?([eE][-+]?\d+)?")
_ENCODED_HEADS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")  # how JPEG, PNG, GIF and WebP begin in base64
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{200,}")
_IMAGE_NAME = re.compile(
    r"(images?|imgs?|pictures?|photos?|jpe?g|png|webp|file_?name)([_-]?(\d+|paths?|files?|urls?|bytes|base64))*", re.I
)


@dataclass
class Batch:
    """Some rows: their numbers in the file, their places (see `Container`), the values of their columns without images,
    their images, and what of the file could not be read as rows: (number, code, detail, text)."""

    numbers: list[int]
    places: list[int]
    columns: dict[str, list[Any]]
    images: list[list[ImageItem]]
    broken: list[tuple[int, str, str, str]] = field(default_factory=list)


def find_tables(where: str, folders: Sequence[Path]) -> list[Path]:
    """The files that `where` names, a path or a glob below one of `folders` or anywhere, or a folder: one that
    `datasets` saved, or of files of one kind. In order of their names. Raises VlmixError if there are none."""
    for base in (*folders, Path()):
        place = base / Path(where).expanduser()
        if place.is_file():
            return [place]
        if place.is_dir():
            return _in_folder(place)
        # A folder's name may hold brackets, as FineVision's do: they are meant as written where that exists.
        if found := _globbed(str(place)):
            return found
        if place.parent.is_dir() and (found := sorted(filter(Path.is_file, place.parent.glob(place.name)))):
            return found
    places = ", ".join(str(base / where) for base in (*folders, Path()))
    raise VlmixError(f"{where}: there is no such file or folder; looked at {places}")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _globbed(pattern: str) -> list[Path]:
    paths = map(Path, glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    return sorted(path for path in paths if path.is_file())


def _in_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").exists():
        splits = _listed(folder / "dataset_dict.json", "splits")
        if splits != ["train"]:
            shown = " or ".join(str(folder / name) for name in splits)
            raise VlmixError(f"{folder} holds the splits {', '.join(splits)}; name one: {shown}")
        return _in_folder(folder / "train")
    if (folder / "state.json").exists():
        return [folder / name for name in _listed(folder / "state.json", "_data_files", "filename")]
    below = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    files = [path for path in below if path.suffix.lower() in _SUFFIXES]
    kinds = sorted({path.suffix.lower() for path in files if path.suffix.lower() != ".json"}) or [".json"]
    files = [path for path in files if path.suffix.lower() == kinds[0]]
    if len(kinds) > 1:
        raise VlmixError(f"{folder} holds {' and '.join(kinds)} files; name those that you mean: {folder}/*{kinds[0]}")
    if not files:
        if packed := next((path for path in below if path.suffix.lower() in _PACKED), None):
            raise VlmixError(f"{packed}: packed files are not read; unpack it first")
        there = ", ".join(path.name for path in below[:5]) or "nothing"
        raise VlmixError(f"{folder}: there is no table in it (it has {there}); expected are {', '.join(_SUFFIXES)}")
    parents = {path.parent for path in files}
    if len(parents) > 1:
        folders = ", ".join(sorted(str(parent.relative_to(folder)) for parent in parents)[:4])
        raise VlmixError(
            f"{folder} holds tables in several folders ({folders}); name one, or all: {folder}/**/*{kinds[0]}"
        )
    split_name = re.compile(r"(train|validation|valid|val|test|dev)(?![a-z])")
    named = sorted({found[1] for path in files if (found := split_name.match(path.name))})
    if len(named) > 1:
        raise VlmixError(f"{folder} holds the splits {', '.join(named)}; name one: {folder}/{named[0]}*{kinds[0]}")
    return files


def _listed(path: Path, what: str, key: str | None = None) -> list[str]:
    """The names below the folder of `path` that it lists, as `datasets` writes them."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))[what]
        names = [entry[key] if key else entry for entry in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VlmixError(f"{path}: not as `datasets` saves it: {type(error).__name__} {error}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise VlmixError(f"{path} names {name!r}, which is no file beside it")
    return names


def kind_of(path: Path) -> Kind:
    """What a file is, by its first bytes, or by its name where these say nothing."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror}") from None
    if not head.strip():
        raise VlmixError(f"{path} is empty")
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    if head[257:262] == b"ustar":
        return "tar"
    if path.suffix.lower() in _PACKED or head[:2] in (b"\x1f\x8b", b"PK") or head[:4] == b"\x28\xb5\x2f\xfd":
        raise VlmixError(f"{path}: packed files are not read; unpack it first")
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind == "json" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "jsonl"
    if kind in ("jsonl", "json", "csv"):
        return kind
    if kind is not None:
        raise VlmixError(f"{path}: the file is damaged, it does not begin as a {kind} file does")
    raise VlmixError(f"{path}: not a table; expected are {', '.join(_SUFFIXES)}")


class Table:
    """One file of rows. Raises VlmixError, from every method, for a file that is damaged."""

    def __init__(self, path: Path, image_columns: Sequence[str] = ()) -> None:
        self.path, self.kind = path, kind_of(path)
        self._named = tuple(image_columns)
        self._inside: dict[str, bool | None] = {}
        """Column of images -> whether they have bytes, all or none of them; None where they have to be looked at."""
        self.rows = 0
        """Rows read so far, broken ones included."""
        self.partial_sha256 = ""
        """Of what says where everything is in the file, once it was read; "" where all of it counts."""
        with self._errors():
            self.columns, self.image_columns = self._head()

    def type_of(self, name: str) -> str:
        """The type of a column where the file has types, "" where it has none. Text is text, however long."""
        if self.kind not in ("parquet", "arrow") or name not in self.columns:
            return ""
        return _type_name(self._schema().field(name).type)

    def container(self) -> Container:
        """The file as one that images can be taken from."""
        return Container(str(self.path), self.kind, self.image_columns, self._mean_bytes())

    def sample(self, count: int = _SAMPLE) -> Batch:
        """The first rows, with all columns."""
        with self._errors():
            return next(
                iter(self._batches(self.columns, count)), Batch([], [], {name: [] for name in self.columns}, [])
            )

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """All rows with the columns `names`; a column that the file lacks is None everywhere."""
        self.rows = 0
        there = [name for name in names if name in self.columns]
        with self._errors():
            for batch in self._batches(there, _BATCH):
                self.rows += len(batch.places) + len(batch.broken)
                for name in names:
                    if name not in batch.columns:
                        batch.columns[name] = [None] * len(batch.places)
                yield batch
        if self.kind == "parquet":
            self.partial_sha256 = hashlib.sha256(_footer(self.path)).hexdigest()
        elif self.kind == "arrow":
            self.partial_sha256 = _ends_sha256(self.path)

    def count(self) -> int:
        """The rows of a Parquet file, by its footer."""
        return int(opened_parquet(self.path).metadata.num_rows)

    def sha256(self) -> str:
        """Of what was read of the file, or all of it (see `partial_sha256`)."""
        return self.partial_sha256 or sha256(self.path)

    def _errors(self) -> "_Errors":
        return _Errors(self.path)

    def _mean_bytes(self) -> int:
        if self.kind == "parquet":
            file = opened_parquet(self.path)
            leaves = set(bytes_leaves(file, self.image_columns))
            sizes, values = 0, 0
            for group in range(file.num_row_groups):
                of_group = file.metadata.row_group(group)
                for number in range(of_group.num_columns):
                    column = of_group.column(number)
                    if column.path_in_schema in leaves:
                        nulls = column.statistics.null_count if column.statistics else 0
                        sizes += column.total_uncompressed_size
                        values += column.num_values - (nulls or 0)
            return sizes // max(values, 1)
        return self.path.stat().st_size // max(self.rows, 1)

    def _head(self) -> tuple[list[str], tuple[str, ...]]:
        """(columns without images, columns of images)."""
        if self.kind in ("parquet", "arrow"):
            schema = self._schema()
            counts = Counter(schema.names)
            if twice := [name for name, count in counts.items() if count > 1]:
                raise VlmixError(f"{self.path}: two columns have one name, {twice[0]!r}")
            images = tuple(name for name in self._named if name in schema.names) or _image_fields(schema)
            return [name for name in schema.names if name not in images], images
        # All rows, as any of them may be the first with an image; in a tar these are known by their names.
        rows = islice(self._rows(), _SAMPLE) if self.kind == "tar" else self._rows()
        said: dict[str, bool | None] = {}  # name -> whether it has images, None as long as nothing is in it
        for _, row in rows:
            for name, value in row.items() if isinstance(row, dict) else ():
                if name not in said:
                    said[name] = None if _names_images(name) else False
                elif said[name] or not _names_images(name):
                    continue
                if _names_images(name) and not _is_nothing(value):
                    said[name] = _image_value(value) or bool(said[name])
        if self.kind == "tar":
            return [name for name in said if name != "__images__"], ("__images__",)
        images = tuple(name for name in self._named if name in said)
        images = images or tuple(sorted((name for name, has in said.items() if has is not False), key=_number_in))
        return [name for name in said if name not in images], images

    def _schema(self) -> pa.Schema:
        if self.kind == "parquet":
            return opened_parquet(self.path).schema_arrow
        return arrow_batches(str(self.path), stamp(self.path))[0]

    def _batches(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        match self.kind:
            case "parquet":
                yield from self._parquet(names, size)
            case "arrow":
                yield from self._arrow(names, size)
            case _:
                yield from self._plain(names, size)

    def _parquet(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        file = opened_parquet(self.path)
        leaves = {name: [file.schema.column(i).path for i in of] for name, of in leaf_columns(file).items()}
        light = {name: [path for path in of if path[len(name) :].endswith(".path")] for name, of in leaves.items()}
        wanted = [path for name in names for path in (name in MEDIA and light[name]) or leaves[name]]
        for name in self.image_columns:
            if name not in self._inside:
                self._inside[name] = _bytes_are_there(file, name, light[name]) if light[name] else None
            looked_at = self._inside[name] is None
            wanted += leaves[name] if looked_at else light[name]
            size = min(size, _HEAVY_BATCH) if looked_at else size
        start = 0
        for batch in file.iter_batches(size, columns=wanted):
            columns = {name: _values(batch.column(name)) for name in names}
            images = [image_lists(batch.column(name), self._inside[name]) for name in self.image_columns]
            places = list(range(start, start + len(batch)))
            yield Batch(places, places, columns, _side_by_side(images, len(batch)))
            start += len(batch)

    def _arrow(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        start = 0
        for whole in arrow_batches(str(self.path), stamp(self.path))[1]:
            # Where a value begins and ends is taken on trust otherwise, and may lie outside of the file.
            whole.select([*names, *self.image_columns]).validate(full=True)
            for at in range(0, len(whole), size):
                batch = whole.slice(at, size)
                columns = {name: _values(batch.column(name)) for name in names}
                images = [image_lists(batch.column(name), None) for name in self.image_columns]
                places = list(range(start, start + len(batch)))
                yield Batch(places, places, columns, _side_by_side(images, len(batch)))
                start += len(batch)

    def _plain(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        rows = enumerate(self._rows())
        while True:
            batch = Batch([], [], {name: [] for name in names}, [])
            for number, (place, row) in rows:
                if isinstance(row, str):
                    code, _, rest = row.partition("\0")
                    detail, _, text = rest.partition("\0")
                    batch.broken.append((number, code, detail, text))
                else:
                    batch.numbers.append(number)
                    batch.places.append(place)
                    for name in names:
                        batch.columns[name].append(row.get(name))
                    values = [row.get(name) for name in self.image_columns]
                    inside = self.kind == "tar"  # where they are listed as items
                    batch.images.append(row["__images__"] if inside else [i for v in values for i in image_items(v)])
                if len(batch.places) + len(batch.broken) >= size:
                    break
            if not batch.places and not batch.broken:
                return
            yield batch

    def _rows(self) -> Iterator[tuple[int, TextRow]]:
        """(place, row); of one that is broken (place, "code NUL detail NUL text")."""
        match self.kind:
            case "jsonl":
                return jsonl_rows(self.path)
            case "json":
                return json_rows(self.path)
            case "csv":
                return csv_rows(self.path)
            case _:
                return self._tar()

    def _tar(self) -> Iterator[tuple[int, TextRow]]:
        """webdataset's grouping of the members of a tar, whose headers alone are read, with the texts."""
        try:
            from webdataset.tariterators import group_by_keys
        except ImportError:
            raise missing("webdataset", "a tar of rows") from None

        digest = hashlib.sha256()
        with self.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:

            def members() -> Iterator[dict[str, Any]]:
                for member in tar:
                    digest.update(f"{member.name}\0{member.size}\0{member.offset_data}\n".encode(errors="replace"))
                    if not member.isdir():
                        yield {"fname": member.name, "data": member, "__url__": ""}

            for sample in group_by_keys(members(), lcase=False):
                yield self._tar_row(sample, tar, digest.update)
            file.seek(tar.offset)  # tarfile takes half a header for the end
            if file.read(512) != bytes(512):
                raise tarfile.ReadError(f"the end of the archive is missing at byte {tar.offset}")
        self.partial_sha256 = digest.hexdigest()

    def _tar_row(
        self, sample: dict[str, Any], tar: tarfile.TarFile, note: Callable[[bytes], None]
    ) -> tuple[int, TextRow]:
        key = sample.pop("__key__")
        members: dict[str, tarfile.TarInfo] = {k: m for k, m in sample.items() if not k.startswith("__")}
        at = min(member.offset for member in members.values())
        if ".." in Path(key).parts or key.startswith("/"):
            return at, f"unsafe_path\0member {key!r} leaves its folder\0"
        row: dict[str, Any] = {"__key__": key, "__images__": []}
        for name, member in members.items():
            if not member.isreg() or member.issparse():
                return (
                    at,
                    f"bad_row\0member {member.name!r} is a link, sparse or no file; make the tar of plain files\0",
                )
            if is_image_member(name):
                row["__images__"].append(INSIDE)
                continue
            if (suffix := name.rpartition(".")[2].lower()) in (*_VIDEOS, *_SOUNDS):
                row["video" if suffix in _VIDEOS else "audio"] = member.name
                continue
            content = tar.extractfile(member)
            data = content.read() if content else b""
            note(data)
            if suffix == "json":
                found = decoded(data, f"member {key}.{name}")
                if isinstance(found, str):
                    return at, found
                row |= {k: v for k, v in found.items() if k not in ("__images__", "__key__")}
            elif suffix in ("txt", "text", "caption"):
                try:
                    row[name] = data.decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    return at, f"bad_row\0member {member.name!r} is not UTF-8: {error.reason}\0"
            else:
                row[name] = data.decode(errors="replace")
        return at, row


def number_columns(tables: Sequence[Table], names: Sequence[str]) -> dict[str, type[int] | type[float]]:
    """The columns of CSV files that hold numbers alone, as numbers are written: `007` is text."""
    left: dict[str, type[int] | type[float] | None] = dict.fromkeys(names)
    for table in tables if left else ():
        if table.kind != "csv":
            return {}
        for _, row in csv_rows(table.path):
            if isinstance(row, str):
                continue
            for name in list(left):
                if (value := row.get(name)) is None or _WHOLE.fullmatch(value):
                    left[name] = left[name] or (int if value else None)
                elif any(map(str.isdigit, value)) and _NUMBER.fullmatch(value):
                    left[name] = float
                else:
                    del left[name]
    return {name: type for name, type in left.items() if type}


class _Errors:
    """Turns what libraries raise about damaged files into a VlmixError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...
    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        damage = pa.ArrowException, OSError, tarfile.TarError, ValueError, EOFError
        if isinstance(error, damage) and not isinstance(error, VlmixError):
            why = (str(error) or type(error).__name__).splitlines()[0][:300]
            raise VlmixError(f"{self.path}: {why}; the file is damaged or was not copied whole") from None


def image_items(value: Any) -> list[ImageItem]:
    """What a value of a row says of images: bytes, `{bytes, path}`, base64, a path, or a list of these."""
    if value is None or value == "":
        return []
    if isinstance(value, list):
        return [item for one in value for item in (image_items(one) or [None])]
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return [INSIDE]
        return [value["path"]] if isinstance(value.get("path"), str) else [None]
    if isinstance(value, str):
        if value.startswith("[") and (listed := loaded(value)) is not None:  # as pandas and JSON print it
            return image_items(listed)
        return [INSIDE if _is_base64(value) else value]
    return [INSIDE if isinstance(value, bytes) else None]


def image_lists(column: pa.Array, inside: bool | None) -> list[list[ImageItem]]:
    """The same for a column of an Arrow batch, `inside` saying whether its images have bytes; None: they are in it."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
        items = iter(image_lists(column.flatten(), inside))
        return [[item for _ in range(length) for item in next(items) or [None]] for length in lengths]
    if _is_text(column.type):
        return [image_items(value) for value in column.to_pylist()]
    return [[] if item is None else [item] for item in _items(column, inside)]


def _items(array: pa.Array, inside: bool | None) -> list[ImageItem]:
    valid = array.is_valid().to_pylist()
    if pa.types.is_struct(array.type):
        names = [field.name for field in array.type]
        if inside:
            return [INSIDE if ok else None for ok in valid]
        there = array.field("bytes").is_valid().to_pylist() if "bytes" in names else [False] * len(array)
        paths = array.field("path").to_pylist() if "path" in names else [None] * len(array)
        return [(INSIDE if has else path) if ok else None for ok, has, path in zip(valid, there, paths)]
    if _is_text(array.type):
        return [next(iter(image_items(value)), None) for value in array.to_pylist()]
    return [INSIDE if ok and _is_binary(array.type) else None for ok in valid]


def _values(column: pa.Array) -> list[Any]:
    """The values of a column; a time that Python cannot hold is ()."""
    try:
        return list(column.to_pylist())
    except (ValueError, KeyError, OverflowError):
        if pa.types.is_temporal(column.type):
            return [() if ok else None for ok in column.is_valid().to_pylist()]
        raise


def _side_by_side(images: list[list[list[ImageItem]]], rows: int) -> list[list[ImageItem]]:
    if len(images) == 1:
        return images[0]
    return [[item for column in images for item in column[row]] for row in range(rows)]


def _bytes_are_there(file: pq.ParquetFile, name: str, paths: list[str]) -> bool | None:
    """Whether all images of a column have bytes, or none has; None where the file's statistics do not say."""
    leaves = [i for i in leaf_columns(file)[name] if file.schema.column(i).path[len(name) :].endswith(".bytes")]
    found = 0
    for group in range(file.num_row_groups):
        for number in leaves:
            column = file.metadata.row_group(group).column(number)
            nulls = column.statistics.null_count if column.statistics else None
            if nulls is None:
                return None
            found += column.num_values - nulls
    if not found:
        return False
    images = sum(_count_items(batch.column(name)) for batch in file.iter_batches(2**14, columns=paths))
    return True if images == found else None


def _count_items(column: pa.Array) -> int:
    while _is_list(column.type):
        column = column.flatten()
    return len(column) - int(column.null_count)


def _image_fields(schema: pa.Schema) -> tuple[str, ...]:
    """The columns of images: those with bytes, or else with text under a name that says so."""
    fields = [field for field in schema if field.name not in MEDIA]
    binary = [field for field in fields if _holds_images(field.type)]
    plain = [field for field in binary if pa.types.is_struct(_item(field.type)) or _names_images(field.name)]
    named = [field for field in fields if _names_images(field.name)]
    text = [field for field in named if _is_text(_item(field.type)) or _has(_item(field.type), "path", _is_text)]
    chosen = plain or binary or text
    return tuple(f.name for f in fields if f in chosen or (f in named and pa.types.is_null(_item(f.type))))


def _type_name(type: pa.DataType) -> str:
    """A type as it matters to who reads it: lists and texts of all kinds are the same."""
    if pa.types.is_dictionary(type):
        return _type_name(type.value_type)
    if _is_list(type):
        return f"list<{_type_name(type.value_type)}>"
    if pa.types.is_struct(type):
        return f"struct<{', '.join(f'{field.name}: {_type_name(field.type)}' for field in type)}>"
    return "string" if _is_text(type) else str(type)


def _item(type: pa.DataType) -> pa.DataType:
    """The type of what is in a list, or in a dictionary."""
    while _is_list(type) or pa.types.is_dictionary(type):
        type = type.value_type
    return type


def _is_list(type: pa.DataType) -> bool:
    kinds = pa.types
    return any(
        is_one(type)
        for is_one in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list, kinds.is_list_view,
                       kinds.is_large_list_view)
    )  # fmt: skip


def _holds_images(type: pa.DataType) -> bool:
    return _is_binary(_item(type)) or _has(_item(type), "bytes", lambda of: _is_binary(of) or _is_text(of))


def _has(type: pa.DataType, name: str, is_one: Callable[[pa.DataType], bool]) -> bool:
    return pa.types.is_struct(type) and any(field.name == name and is_one(field.type) for field in type)


def _is_binary(type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type))


def _is_text(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def _is_nothing(value: Any) -> bool:
    return value is None or value == "" or value == []


def _number_in(name: str) -> int:
    return int(digits[-1]) if (digits := re.findall(r"\d{1,9}", name)) else 0


def _names_images(name: str) -> bool:
    return _IMAGE_NAME.fullmatch(name) is not None


def _image_value(value: Any) -> bool:
    items: Iterable[Any] = value if isinstance(value, list) else [value]
    return any(
        isinstance(item, str) or (isinstance(item, dict) and ("bytes" in item or "path" in item)) for item in items
    )


def _is_base64(text: str) -> bool:
    if text.startswith(("data:image/", *_ENCODED_HEADS)):
        return True
    return len(text) > 200 and _BASE64.fullmatch(text[:400]) is not None


def _footer(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        return file.read(length)


def _ends_sha256(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(2**16)
        size = file.seek(0, 2)
        file.seek(max(size - 2**16, 0))
        return hashlib.sha256(b"%d" % size + head + file.read()).hexdigest()
