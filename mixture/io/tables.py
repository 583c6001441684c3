"""Tables of rows in whatever file people keep them: Parquet, Arrow, JSONL, JSON, CSV, WebDataset tars.

Rows come in batches, in bounded memory where the file's form allows it, and without the bytes of their images: of these
is only said whether they lie inside the row or under a path.
"""

import csv
import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.extras import missing
from vlmix.mixture.io.containers import Container, Kind, arrow_batches, bytes_leaves, is_image_member
from vlmix.mixture.io.digests import sha256, stamp
from vlmix.mixture.io.surrogates import replace_lone_surrogates

INSIDE = ""
"""An image whose bytes are in the row itself, instead of a path."""
ImageItem = str | None
"""INSIDE, a path or URL, or None for nothing."""

_BATCH = 1024
_SAMPLE = 50  # rows from which the columns of untyped files are read
_SUFFIXES: dict[str, Kind] = {
    ".parquet": "parquet", ".arrow": "arrow", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".tar": "tar",
}  # fmt: skip
_PACKED = (".gz", ".zst", ".zip", ".bz2", ".xz", ".tgz")
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


def _globbed(pattern: str) -> list[Path]:
    paths = map(Path, glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    return sorted(path for path in paths if path.is_file())


def _in_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text()).get("splits", [])
        if splits != ["train"]:
            shown = " or ".join(str(folder / str(name)) for name in splits)
            raise VlmixError(f"{folder} holds the splits {', '.join(map(str, splits))}; name one: {shown}")
        return _in_folder(folder / "train")
    if (folder / "state.json").exists():
        files = json.loads((folder / "state.json").read_text()).get("_data_files", [])
        return [folder / str(entry["filename"]) for entry in files]
    below = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
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
        return str(self._schema().field(name).type).replace("large_", "")

    def csv_types(self) -> dict[str, type[int] | type[float]]:
        """The columns of a CSV that hold numbers alone."""
        if self.kind != "csv":
            return {}
        import polars as pl

        scan = pl.scan_csv(self.path, separator=_delimiter(self.path), infer_schema_length=None)
        try:
            schema = scan.collect_schema()
        except pl.exceptions.PolarsError:  # what is wrong with its lines, reading them says
            return {}
        return {name: int if type.is_integer() else float for name, type in schema.items() if type.is_numeric()}

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

    def sha256(self) -> str:
        """Of what was read of the file, or all of it (see `partial_sha256`)."""
        return self.partial_sha256 or sha256(self.path)

    def _errors(self) -> "_Errors":
        return _Errors(self.path)

    def _mean_bytes(self) -> int:
        if self.kind == "parquet":
            file = pq.ParquetFile(self.path)
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
            named = tuple(name for name in self._named if name in schema.names)
            images = named or tuple(field.name for field in schema if _holds_images(field.type))
            if not images:  # text may name files
                images = tuple(field.name for field in schema if _is_text(field.type) and _names_images(field.name))
            return [name for name in schema.names if name not in images], images
        first = next(iter(self._rows()), None)
        seen = [first] if first else []
        for number, row in enumerate(self._rows()):
            seen.append(row)
            if number >= _SAMPLE:
                break
        names = list(dict.fromkeys(name for _, row in seen if isinstance(row, dict) for name in row))
        if self.kind == "tar":
            return [name for name in names if name != "__images__"], ("__images__",)
        images = tuple(name for name in self._named if name in names) or tuple(
            name
            for name in names
            if _names_images(name) and any(_image_value(row.get(name)) for _, row in seen if isinstance(row, dict))
        )
        return [name for name in names if name not in images], images

    def _schema(self) -> pa.Schema:
        if self.kind == "parquet":
            return pq.ParquetFile(self.path).schema_arrow
        batches = arrow_batches(str(self.path), stamp(self.path))
        if not batches:
            raise VlmixError(f"{self.path}: there is no row in it")
        return batches[0].schema

    def _batches(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        match self.kind:
            case "parquet":
                yield from self._parquet(names, size)
            case "arrow":
                yield from self._arrow(names, size)
            case _:
                yield from self._plain(names, size)

    def _parquet(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        file = pq.ParquetFile(self.path)
        paths = [file.schema.column(i).path for i in range(len(file.schema.names))]
        inside: dict[str, bool | None] = {}
        wanted = [path for path in paths if path.partition(".")[0] in names]
        for name in self.image_columns:
            leaves = [path for path in paths if path == name or path.startswith(f"{name}.")]
            light = [path for path in leaves if path.endswith(".path")]
            inside[name] = _bytes_are_there(file, leaves) if light else None
            wanted += light if light else leaves
        start = 0
        for batch in file.iter_batches(size, columns=wanted):
            columns = {name: batch.column(name).to_pylist() for name in names}
            images = [image_lists(batch.column(name), inside[name]) for name in self.image_columns]
            places = list(range(start, start + len(batch)))
            yield Batch(places, places, columns, _side_by_side(images, len(batch)))
            start += len(batch)

    def _arrow(self, names: Sequence[str], size: int) -> Iterator[Batch]:
        start = 0
        for whole in arrow_batches(str(self.path), stamp(self.path)):
            for at in range(0, len(whole), size):
                batch = whole.slice(at, size)
                columns = {name: batch.column(name).to_pylist() for name in names}
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

    def _rows(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """(place, row); of one that is broken (place, "code NUL detail NUL text")."""
        match self.kind:
            case "jsonl":
                return self._jsonl()
            case "json":
                return self._json()
            case "csv":
                return self._csv()
            case _:
                return self._tar()

    def _jsonl(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        with self.path.open("rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            at = file.tell()
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield at, _decoded(line, f"line {number}")
                at += len(line)

    def _json(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        data = self.path.read_bytes()
        data = data[3:] if data[:3] == b"\xef\xbb\xbf" else data
        try:
            elements = msgspec.json.decode(data, type=list[msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise VlmixError(f"{self.path}: {error}; expected is a JSON list of rows") from None
        for number, element in enumerate(elements):
            yield number, _decoded(bytes(element), f"row {number}")

    def _csv(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(2**31 - 1)
            delimiter = _delimiter(self.path)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            try:
                names = next(reader)
                if len(set(names)) != len(names):
                    raise VlmixError(f"{self.path}: two columns have one name, among {', '.join(names)}")
                for number, values in enumerate(row for row in reader if row):
                    if len(values) == len(names):
                        yield number, {name: value if value != "" else None for name, value in zip(names, values)}
                    else:
                        what = f"line {reader.line_num} has {len(values)} fields, the header has {len(names)}"
                        yield number, f"bad_row\0{what}\0{delimiter.join(values)}"
            except csv.Error as error:
                raise VlmixError(f"{self.path}: line {reader.line_num}: {error}") from None
            except UnicodeDecodeError as error:
                raise VlmixError(f"{self.path}: not UTF-8: {error.reason}; save it as UTF-8") from None

    def _tar(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
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
                    if member.isfile():
                        yield {"fname": member.name, "data": member, "__url__": ""}

            for sample in group_by_keys(members(), lcase=False):
                yield self._tar_row(sample, tar, digest.update)
            file.seek(tar.offset)  # tarfile takes half a header for the end
            if file.read(512) != bytes(512):
                raise tarfile.ReadError(f"the end of the archive is missing at byte {tar.offset}")
        self.partial_sha256 = digest.hexdigest()

    def _tar_row(
        self, sample: dict[str, Any], tar: tarfile.TarFile, note: Callable[[bytes], None]
    ) -> tuple[int, dict[str, Any] | str]:
        key = sample.pop("__key__")
        members: dict[str, tarfile.TarInfo] = {k: m for k, m in sample.items() if not k.startswith("__")}
        at = min(member.offset for member in members.values())
        if ".." in Path(key).parts or key.startswith("/"):
            return at, f"unsafe_path\0member {key!r} leaves its folder\0"
        row: dict[str, Any] = {"__key__": key, "__images__": []}
        for name, member in members.items():
            if is_image_member(name):
                row["__images__"].append(INSIDE)
                continue
            content = tar.extractfile(member)
            data = content.read() if content else b""
            note(data)
            if name.rpartition(".")[2].lower() == "json":
                found = _decoded(data, f"member {key}.{name}")
                if isinstance(found, str):
                    return at, found
                row |= {k: v for k, v in found.items() if k != "__images__"}
            else:
                row[name] = data.decode(errors="replace")
        return at, row


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return max(",\t;", key=file.readline(65536).count)


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


def _decoded(text: bytes, what: str) -> dict[str, Any] | str:
    """The object that JSON text holds, with halves of surrogate pairs replaced; else "code NUL detail NUL text"."""
    try:
        row = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        mended, count = replace_lone_surrogates(text)
        try:
            row = msgspec.json.decode(mended) if count else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            row = None
        if row is None:
            return f"bad_row\0{what}: {error}\0{text[:2000].strip().decode(errors='replace')}"
    if not isinstance(row, dict):
        shown = text[:2000].strip().decode(errors="replace")
        return f"bad_row\0{what} is {type(row).__name__}, expected an object\0{shown}"
    return row


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
        return [INSIDE if _is_base64(value) else value]
    return [INSIDE if isinstance(value, bytes) else None]


def image_lists(column: pa.Array, inside: bool | None) -> list[list[ImageItem]]:
    """The same for a column of an Arrow batch, `inside` saying whether its images have bytes; None: they are in it."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
        items = iter(_items(column.flatten(), inside))
        return [[next(items) for _ in range(length)] for length in lengths]
    return [[] if item is None else [item] for item in _items(column, inside)]


def _items(array: pa.Array, inside: bool | None) -> list[ImageItem]:
    if pa.types.is_struct(array.type):
        names = [field.name for field in array.type]
        if inside:
            return [INSIDE if valid else None for valid in array.is_valid().to_pylist()]
        there = array.field("bytes").is_valid().to_pylist() if "bytes" in names else [False] * len(array)
        paths = array.field("path").to_pylist() if "path" in names else [None] * len(array)
        valid = array.is_valid().to_pylist()
        return [(INSIDE if has else path) if ok else None for ok, has, path in zip(valid, there, paths)]
    if _is_text(array.type):
        return [next(iter(image_items(value)), None) for value in array.to_pylist()]
    return [INSIDE if valid else None for valid in array.is_valid().to_pylist()]


def _side_by_side(images: list[list[list[ImageItem]]], rows: int) -> list[list[ImageItem]]:
    if len(images) == 1:
        return images[0]
    return [[item for column in images for item in column[row]] for row in range(rows)]


def _bytes_are_there(file: pq.ParquetFile, leaves: list[str]) -> bool:
    """Whether images have bytes, by the statistics of the file; with no statistics they are taken to."""
    for group in range(file.num_row_groups):
        of_group = file.metadata.row_group(group)
        for number in range(of_group.num_columns):
            column = of_group.column(number)
            if column.path_in_schema in leaves and column.path_in_schema.endswith(".bytes"):
                nulls = column.statistics.null_count if column.statistics else None
                if nulls is None or nulls < column.num_values:
                    return True
    return False


def _holds_images(type: pa.DataType) -> bool:
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        return _holds_images(type.value_type)
    if pa.types.is_struct(type):
        return "bytes" in [field.name for field in type]
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type))


def _is_text(type: pa.DataType) -> bool:
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        return _is_text(type.value_type)
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _names_images(name: str) -> bool:
    return _IMAGE_NAME.fullmatch(name) is not None


def _image_value(value: Any) -> bool:
    items: Iterable[Any] = value if isinstance(value, list) else [value]
    return any(
        isinstance(item, str) or (isinstance(item, dict) and ("bytes" in item or "path" in item)) for item in items
    )


def _is_base64(text: str) -> bool:
    return text.startswith("data:image/") or (len(text) > 200 and _BASE64.fullmatch(text[:400]) is not None)


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
