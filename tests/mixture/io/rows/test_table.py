import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.builders import tables
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.rows.containers import read_images
from vlmix.mixture.io.rows.files import find_tables
from vlmix.mixture.io.rows.images import INSIDE, image_bytes, image_items
from vlmix.mixture.io.rows.table import Table

ONE = [tables.picture(number) for number in range(6)]
SEVERAL = [[] if number % 3 == 0 else [tables.picture(number), tables.picture(number + 50)] for number in range(6)]
PAIRS = [[tables.picture(number), tables.picture(number + 50)] for number in range(6)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXT = [base64.b64encode(data).decode() for data in ONE]


def as_struct(images: list[bytes]) -> list[dict[str, bytes | None]]:
    return [{"bytes": data, "path": None} for data in images]


INSIDE_COLUMNS: dict[str, tuple[pa.Array, list[list[bytes]]]] = {
    name: (array, [[data] for data in ONE])
    for name, array in {
        "bytes": pa.array(ONE, pa.binary()),
        "large bytes": pa.array(ONE, pa.large_binary()),
        "views of bytes": pa.array(ONE, pa.binary_view()),
        "bytes in a dictionary": pa.array(ONE, pa.binary()).dictionary_encode(),
        "bytes and path": pa.array(as_struct(ONE), STRUCT),
        "bytes alone": pa.array([{"bytes": data} for data in ONE], pa.struct([("bytes", pa.large_binary())])),
        "base64": pa.array(TEXT),
        "large base64": pa.array(TEXT, pa.large_string()),
        "views of base64": pa.array(TEXT, pa.string_view()),
        "base64 in a dictionary": pa.array(TEXT).dictionary_encode(),
    }.items()
}
INSIDE_COLUMNS |= {
    "lists of bytes": (pa.array([None, *SEVERAL[1:]], pa.list_(pa.binary())), SEVERAL),
    "large lists of bytes": (pa.array(SEVERAL, pa.large_list(pa.binary())), SEVERAL),
    "views of lists": (pa.array(SEVERAL, pa.list_view(pa.binary())), SEVERAL),
    "lists of bytes and path": (pa.array([None, *map(as_struct, SEVERAL[1:])], pa.list_(STRUCT)), SEVERAL),
    "lists of one length": (pa.array(PAIRS, pa.list_(pa.binary(), 2)), PAIRS),
    "lists of one length of bytes and path": (pa.array(list(map(as_struct, PAIRS)), pa.list_(STRUCT, 2)), PAIRS),
}
PATHS = [f"{number}.jpg" for number in range(6)]
PATH_COLUMNS: dict[str, pa.Array] = {
    "text": pa.array(PATHS),
    "text in a dictionary": pa.array(PATHS).dictionary_encode(),
    "a path alone": pa.array([{"path": path} for path in PATHS]),
    "no bytes": pa.array([{"bytes": None, "path": path} for path in PATHS], STRUCT),
}


def as_parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, row_group_size=4)
    return path


def as_parquet_of_another(path: Path, table: pa.Table) -> Path:
    """No statistics, no Arrow schema, another page version."""
    pq.write_table(
        table, path, row_group_size=2, write_statistics=False, store_schema=False, data_page_version="2.0",
        compression="zstd",
    )  # fmt: skip
    return path


def as_arrow(path: Path, table: pa.Table) -> Path:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


def as_stream(path: Path, table: pa.Table) -> Path:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


WRITERS: list[Callable[[Path, pa.Table], Path]] = [as_parquet, as_parquet_of_another, as_arrow, as_stream]


def images_of(table: Table) -> list[list[str | None]]:
    return [images for batch in table.batches([]) for images in batch.images]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("what", INSIDE_COLUMNS)
def test_images_inside_columns_of_any_type(what: str, write: Callable[..., Path], tmp_path: Path) -> None:
    column, expected = INSIDE_COLUMNS[what]
    table = Table(write(tmp_path / "rows", pa.table({"image": column})))
    assert images_of(table) == [[INSIDE] * len(images) for images in expected]
    places = [0, 1, 3] if "parquet" not in write.__name__ else [0, 1]
    assert list(read_images(table.container(), places)) == [expected[place] for place in places]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("what", PATH_COLUMNS)
def test_paths_in_columns_of_any_type(what: str, write: Callable[..., Path], tmp_path: Path) -> None:
    table = Table(write(tmp_path / "rows", pa.table({"image": PATH_COLUMNS[what]})))
    assert images_of(table) == [[path] for path in PATHS]


@pytest.mark.parametrize("write", WRITERS)
def test_some_rows_with_bytes_and_some_with_paths(write: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": path} if i % 2 else {"bytes": ONE[i], "path": path} for i, path in enumerate(PATHS)]
    table = Table(write(tmp_path / "rows", pa.table({"image": pa.array(rows, STRUCT)})))
    assert images_of(table) == [[path] if i % 2 else [INSIDE] for i, path in enumerate(PATHS)]


@pytest.mark.parametrize("write", WRITERS)
def test_a_column_named_after_images_may_be_empty(write: Callable[..., Path], tmp_path: Path) -> None:
    table = Table(write(tmp_path / "rows", pa.table({"images": pa.nulls(3), "text": ["a", "b", "c"]})))
    assert table.image_columns == ("images",) and images_of(table) == [[], [], []]


@pytest.mark.parametrize("write", WRITERS)
def test_names_with_dots_and_times_out_of_reach(write: Callable[..., Path], tmp_path: Path) -> None:
    times = pa.array([2**61, None], pa.timestamp("us", "Nowhere/Here"))
    content = {"a.b": [1, 2], "image.bytes": pa.array(ONE[:2], pa.binary()), "time": times}
    table = Table(write(tmp_path / "rows", pa.table(content)))
    batch = next(table.batches(["a.b", "time"]))
    assert batch.columns == {"a.b": [1, 2], "time": [(), None]} and batch.images == [[INSIDE], [INSIDE]]
    assert list(read_images(table.container(), [0, 1])) == [[data] for data in ONE[:2]]


@pytest.mark.parametrize("write", WRITERS)
def test_two_columns_of_one_name_are_told(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path / "rows", pa.Table.from_arrays([pa.array(["a"])] * 2, ["a", "a"]))
    with pytest.raises(VlmixError, match=r"rows: two columns have one name, 'a'"):
        Table(path)


def test_numbers_of_bytes_and_sounds_are_no_images(tmp_path: Path) -> None:
    content = {
        "info": pa.array([{"bytes": 5}]),
        "audio": pa.array([{"bytes": b"RIFF", "path": None}], STRUCT),
        "image": pa.array(ONE[:1], pa.binary()),
        "embedding": pa.array([b"x"], pa.binary()),
    }
    assert Table(as_parquet(tmp_path / "rows", pa.table(content))).image_columns == ("image",)


def test_a_stream_without_its_end_is_damaged(tmp_path: Path) -> None:
    path = as_stream(tmp_path / "rows", pa.table({"a": list(range(8))}))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(VlmixError, match=r"rows: the end of the stream is missing; the file is damaged"):
        Table(path)


def test_texts_that_begin_outside_of_an_arrow_file_are_damage(tmp_path: Path) -> None:
    path = as_stream(tmp_path / "rows", pa.table({"a": ["x" * 1000, "y" * 3333]}))
    data = path.read_bytes()
    path.write_bytes(data.replace((1000).to_bytes(4, "little"), (2**30).to_bytes(4, "little")))
    assert path.read_bytes() != data
    with pytest.raises(VlmixError, match=r"rows: .*; the file is damaged"):
        list(Table(path).batches(["a"]))


@pytest.mark.parametrize("state", ['{"_data_files": [{"filename": "../x.arrow"}]}', "[]", '{"_data_files": 5}', "{"])
def test_a_saved_folder_names_files_in_it(state: str, tmp_path: Path) -> None:
    Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    assert len(find_tables("saved", [tmp_path])) == 1
    (tmp_path / "saved/state.json").write_text(state)
    with pytest.raises(VlmixError, match=r"state\.json"):
        find_tables("saved", [tmp_path])


def tar_of(path: Path, *members: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = 0 if isinstance(data, tarfile.TarInfo) else len(data)
            tar.addfile(info, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    return path


def linked(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_member_that_is_no_file_spoils_its_row_alone(kind: bytes, tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "a.tar", ("1.jpg", linked(kind)), ("1.json", b"{}"), ("2.jpg", ONE[2]), ("2.json", b'{"a": 1}')
    )
    batch = next(Table(path).batches(["a"]))
    assert [broken.code for _, broken in batch.broken] == ["bad_row"] and "'1.jpg' is a link" in batch.broken[0][
        1
    ].detail
    assert batch.columns["a"] == [1] and batch.images == [[INSIDE]]


def test_members_of_a_tar_are_grouped_and_ordered_as_webdataset_does(tmp_path: Path) -> None:
    folder = linked(tarfile.DIRTYPE)
    images = [(f"a/1.image_{number}.png", ONE[number % 6]) for number in (10, 2, 1)]
    path = tar_of(tmp_path / "a.tar", images[0], ("README", b"x"), images[1], ("b.c", folder), *images[2:])
    table = Table(path)
    batch = next(table.batches([]))
    assert batch.images == [[INSIDE] * 3]
    assert list(read_images(table.container(), batch.places)) == [[ONE[1], ONE[2], ONE[4]]]


def test_a_text_in_a_tar_is_not_changed(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", ("1.txt", "é".encode("latin-1")), ("2.txt", "é".encode()), ("3.mp4", b"x"))
    batch = next(Table(path).batches(["txt", "video"]))
    assert [broken.detail for _, broken in batch.broken] == ["member '1.txt' is not UTF-8: unexpected end of data"]
    assert batch.columns == {"txt": ["é", None], "video": [None, "3.mp4"]}


def test_a_json_in_a_tar_does_not_rename_its_row(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", ("1.json", json.dumps({"__key__": "x", "__images__": [5], "b": 2}).encode()))
    batch = next(Table(path).batches(["__key__", "b"]))
    assert batch.columns == {"__key__": ["1"], "b": [2]} and batch.images == [[]]


def test_one_null_among_images_shifts_no_other() -> None:
    assert image_bytes([None, b"a", {"bytes": None, "path": "x"}, 5]) == [b"", b"a", b"", b""]


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize(
    ("value", "items"),
    [
        (None, []), ("", []), ([], []), (b"x", [INSIDE]), (PNG, [INSIDE]), ("a.jpg", ["a.jpg"]), (5, [None]),
        ([b"x", b"y"], [INSIDE, INSIDE]), (f"['{PNG}', '{PNG}']", [INSIDE, INSIDE]),
        ("['a.jpg', 'b.jpg']", ["a.jpg", "b.jpg"]),
        ({"bytes": PNG[:20], "path": None}, [INSIDE]), ({"bytes": None, "path": "a.jpg"}, ["a.jpg"]),
        ([{"bytes": b"x"}, None, "data:image/png;base64,eA=="], [INSIDE, None, INSIDE]), ("[1].jpg", ["[1].jpg"]),
    ],
)  # fmt: skip
def test_what_is_said_to_be_inside_is_what_is_read(value: Any, items: list[str | None]) -> None:
    assert image_items(value) == items
    data = image_bytes(value)
    assert len(data) == len(items) and all(bool(one) == (item == INSIDE) for one, item in zip(data, items))
