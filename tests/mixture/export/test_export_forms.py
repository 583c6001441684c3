"""Every form by its documented schema; interop/ reads them with the peers' own loaders."""

import io
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.helpers import hashes
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import FORMS, export
from vlmix.mixture.export._rows import LooseImages, blocks, texts
from vlmix.mixture.export.ms_swift import with_objects
from vlmix.mixture.export.trl import without_tokens
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.subset import Selection, subsample

TARS = ("dali", "energon", "wids")
RECIPE: dict[str, Any] = {
    "name": "small",
    "order": "natural",
    "samples_per_shard": 40,
    "sources": {
        "sharegpt": {"repeat": 2},
        "okvqa": {"repeat": 2.5},
        "refcoco": {"take": 20},
        "vg": {"take": 10, "regions_per_image": 10},
    },
}


@pytest.fixture(scope="module")
def small(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text-only samples first, boxes, and three kinds of `repeat`, in natural order."""
    out = tmp_path_factory.mktemp("small") / "mixture"
    build(parse(RECIPE, known_sources(), "test"), known_sources(), raw, out)
    return out


@pytest.fixture(scope="module")
def view(small: Path) -> Path:
    out = small.with_name("view")
    subsample(small, out, Selection(ratio=0.5))
    return out


@pytest.fixture(scope="module")
def exported(small: Path, view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<case>/<form>: everything exported once."""
    out = tmp_path_factory.mktemp("exported")
    for folder in (small, view):
        for form in FORMS:
            rows = export(folder, form, out / folder.name / form)
            assert rows == sum(sample["repeat"] for sample in samples(folder))
    return out


def samples(folder: Path) -> list[dict[str, Any]]:
    """Rows of samples.parquet with their texts, in natural order, and the image's bytes."""
    mixture = open_mixture(folder)
    frame = pl.read_parquet(mixture.local_root / "samples.parquet")[mixture.rows.tolist()]
    jpegs = [next(iter(mixture.raw(i).jpegs), None) for i in range(len(mixture))]
    return sorted(
        ({**row, "jpeg": jpeg} for row, jpeg in zip(frame.to_dicts(), jpegs)), key=lambda row: row["natural_index"]
    )


def repeated(folder: Path) -> list[dict[str, Any]]:
    return [sample for sample in samples(folder) for _ in range(sample["repeat"])]


@pytest.fixture(params=["mixture", "view"])
def case(request: pytest.FixtureRequest, small: Path) -> Path:
    return small.with_name(request.param)


def test_hf_rows_hold_images_and_features(exported: Path, case: Path) -> None:
    folder = exported / case.name / "hf"
    card = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert card["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}]
    files = sorted((folder / "data").iterdir())
    assert [path.name for path in files] == [f"train-{i:05d}-of-{len(files):05d}.parquet" for i in range(len(files))]
    features = json.loads(pq.read_schema(files[0]).metadata[b"huggingface"])["info"]["features"]
    assert features["images"] == [{"_type": "Image"}]
    assert features["id"] == {"dtype": "string", "_type": "Value"}
    found = [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]
    for row, sample in zip(found, repeated(case), strict=True):
        for name in ("id", "source", "width", "height", "num_words", "conversations", "response_formats", "boxes"):
            assert row[name] == sample[name]
        images = [{"bytes": sample["jpeg"], "path": sample["image"]}] if sample["image"] else []
        assert row["images"] == images


def test_texts_rows_are_rounds(exported: Path, case: Path) -> None:
    folder = exported / case.name / "texts"
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1])["configs"]
    found = [row for path in sorted((folder / "data").iterdir()) for row in pq.ParquetFile(path).read().to_pylist()]
    for row, sample in zip(found, repeated(case), strict=True):
        assert list(row) == ["images", "texts", "source", "id"]
        assert (row["source"], row["id"]) == (sample["source"], sample["id"])
        values = [turn["value"] for turn in sample["conversations"]]
        assert [text for pair in row["texts"] for text in (pair["user"], pair["assistant"])] == [
            value.replace("<image>\n", "") if sample["image"] else value for value in values
        ]
        assert [image["bytes"] for image in row["images"]] == ([sample["jpeg"]] if sample["image"] else [])


def test_trl_messages_leave_the_image_to_the_trainer(exported: Path, case: Path) -> None:
    files = sorted((exported / case.name / "trl").iterdir())
    found = [row for path in files for row in pq.ParquetFile(path).read().to_pylist()]
    for row, sample in zip(found, repeated(case), strict=True):
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * sample["num_rounds"]
        assert "<image>" not in str(row["messages"])
        wanted = [turn["value"].replace("<image>\n", "") for turn in sample["conversations"]]
        assert [m["content"] for m in row["messages"]] == wanted
        assert [image["bytes"] for image in row["images"]] == ([sample["jpeg"]] if sample["image"] else [])


def test_llama_factory_counts_tokens_and_finds_images(exported: Path, case: Path) -> None:
    folder = exported / case.name / "llama-factory"
    info = json.loads((folder / "dataset_info.json").read_text())
    columns = {"messages": "conversations", "images": "images"}
    assert info == {"small": {"file_name": "rows", "formatting": "sharegpt", "columns": columns}}
    found = [row for path in sorted((folder / "rows").iterdir()) for row in pq.ParquetFile(path).read().to_pylist()]
    for row, sample in zip(found, repeated(case), strict=True):
        assert row["conversations"] == sample["conversations"]
        assert str(row["conversations"]).count("<image>") == len(row["images"])
        assert [(folder / path).read_bytes() for path in row["images"]] == ([sample["jpeg"]] if sample["image"] else [])


def test_ms_swift_rows_hold_boxes(exported: Path, case: Path) -> None:
    folder = exported / case.name / "ms-swift"
    found = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    wanted = repeated(case)
    assert not wanted[0]["image"] and found[0]["objects"], "the first row shows every type"
    leader = next(sample["id"] for sample in wanted if sample["boxes"])
    wanted.sort(key=lambda sample: sample["id"] != leader)
    for row, sample in zip(found, wanted, strict=True):
        assert list(row) == ["messages", "images", "objects", "channel"] and row["channel"] == sample["source"]
        text = "\n".join(m["content"] for m in row["messages"])
        assert text.count("<image>") == len(row["images"]) == bool(sample["image"])
        assert [(folder / path).read_bytes() for path in row["images"]] == ([sample["jpeg"]] if sample["image"] else [])
        if not sample["boxes"]:
            assert row["objects"] is None
            assert [m["content"] for m in row["messages"]] == [turn["value"] for turn in sample["conversations"]]
            continue
        boxes = [[box[c] for c in ("x1", "y1", "x2", "y2")] for box in sample["boxes"]]
        assert row["objects"]["bbox"] == boxes and row["objects"]["bbox_type"] == "real"
        assert text.count("<bbox>") == len(boxes) and text.count("<ref-object>") == len(row["objects"]["ref"])
        assert "[0." not in text


def test_a_box_turn_is_taken_apart() -> None:
    values = [
        "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: dog no. 2.",
        "[0.25, 0.0, 0.75, 1.0]",
        "Please provide a short description for this region: [0.25, 0.0, 0.5, 0.5].",
        "a <bbox> ear",
    ]
    row = {
        "images": [{"path": "a.jpg", "width": 50, "height": 100}],
        "response_formats": ["grounding", "region_caption"],
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)],
        "boxes": [
            {"round": 0, "image": 0, "x1": 0.0, "y1": 0.0, "x2": 50.0, "y2": 100.0},
            {"round": 1, "image": 0, "x1": 0.0, "y1": 0.0, "x2": 25.0, "y2": 50.0},
        ],
    }
    said, objects = with_objects(row)
    assert said == [
        "<image>\nPlease provide the bounding box coordinate of the region this sentence describes: <ref-object>.",
        "<bbox>",
        "Please provide a short description for this region: <bbox>.",
        "<ref-object>",
    ]
    assert objects == {
        "ref": ["dog no. 2", "a < bbox > ear"],
        "bbox": [[0.0, 0.0, 50.0, 100.0], [0.0, 0.0, 25.0, 50.0]],
        "bbox_type": "real",
        "image_id": [0, 0],
    }
    assert with_objects({**row, "boxes": []}) == (values, None)


def test_llava_next_lists_sources(exported: Path, case: Path) -> None:
    folder = exported / case.name / "llava-next"
    entries = yaml.safe_load((folder / "data.yaml").read_text())["datasets"]
    assert [entry["json_path"] for entry in entries] == [f"{name}.json" for name in RECIPE["sources"]]
    assert {entry["sampling_strategy"] for entry in entries} == {"all"}
    found = [row for entry in entries for row in json.loads((folder / entry["json_path"]).read_text())]
    for row, sample in zip(found, repeated(case), strict=True):
        assert row["id"] == sample["id"] and row["conversations"] == sample["conversations"]
        assert ("image" in row) == bool(sample["image"])
        if sample["image"]:
            assert (folder / "images" / row["image"]).read_bytes() == sample["jpeg"]


def test_internvl_repeats_where_a_source_has_one_repeat(exported: Path, case: Path) -> None:
    folder = exported / case.name / "internvl"
    meta = json.loads((folder / "meta.json").read_text())
    assert list(meta) == list(RECIPE["sources"])
    assert {name: entry["repeat_time"] for name, entry in meta.items()} == {
        "sharegpt": 2, "okvqa": 1, "refcoco": 1, "vg": 1,
    }  # fmt: skip
    found: Counter[str] = Counter()
    wanted = {sample["id"]: sample for sample in samples(case)}
    for entry in meta.values():
        assert set(entry) == {"root", "annotation", "data_augment", "repeat_time", "length"}
        rows = [json.loads(line) for line in (folder / entry["annotation"]).read_text().splitlines()]
        assert len(rows) == entry["length"]
        for row in rows:
            found[row["id"]] += entry["repeat_time"]
            sample = wanted[row["id"]]
            assert row["conversations"] == sample["conversations"]
            assert row.get("image", "") == sample["image"]
            if sample["image"]:
                with Image.open(folder / entry["root"] / row["image"]) as image:
                    assert image.size == (row["width"], row["height"]) == (sample["width"], sample["height"])
    assert found == Counter(sample["id"] for sample in repeated(case))


def members(tar: Path) -> list[tuple[str, int, int]]:
    """(name, offset of the data, size) by the standard library."""
    with tarfile.open(tar) as file:
        return [(member.name, member.offset_data, member.size) for member in file]


def ids(tar: Path) -> list[str]:
    with tarfile.open(tar) as file:
        found = (file.extractfile(member) for member in file if member.name.endswith(".json"))
        return [json.loads(part.read())["id"] for part in found if part]


def test_energons_metadata_say_where_everything_is(exported: Path, case: Path) -> None:
    folder = exported / case.name / "energon"
    meta = folder / ".nv-meta"
    assert sorted(path.name for path in meta.iterdir()) == [
        ".info.json", "dataset.yaml", "index.sqlite", "index.uuid", "split.yaml",
    ]  # fmt: skip
    counts = json.loads((meta / ".info.json").read_text())["shard_counts"]
    splits = yaml.safe_load((meta / "split.yaml").read_text())["split_parts"]
    blend = yaml.safe_load((folder / "metadataset.yaml").read_text())["splits"]["train"]["blend_epochized"]
    assert set(splits) == {"train", "val", "test", "repeat-1", "repeat-2", "repeat-3"}
    seen: Counter[str] = Counter()
    for entry in blend:
        assert entry["split_part"] == f"repeat-{entry['repetitions']}"
        for path in expand(splits[entry["split_part"]]):
            seen.update(dict.fromkeys(ids(folder / path), entry["repetitions"]))
    assert seen == Counter(sample["id"] for sample in repeated(case))
    assert [path for part in splits["train"] for path in expand([part])] == list(counts)
    samples_found, parts_found = [], []
    for number, (path, count) in enumerate(counts.items()):
        listed = members(folder / path)
        keys = list(dict.fromkeys(name.partition(".")[0] for name, _, _ in listed))
        first = {key: min(o for n, o, _ in listed if n.startswith(key)) - 512 for key in keys}
        end = listed[-1][1] + -(-listed[-1][2] // 512) * 512
        bounds = [*first.values(), end]
        index = (folder / path).with_suffix(".tar.idx").read_bytes()
        assert struct.unpack(f"={count + 1}Q", index) == tuple(bounds)
        samples_found += [(number, key, i, bounds[i], bounds[i + 1] - bounds[i]) for i, key in enumerate(keys)]
        parts_found += [(number, keys.index(n.partition(".")[0]), n.partition(".")[2], o, s) for n, o, s in listed]
    with sqlite3.connect(meta / "index.sqlite") as database:
        assert database.execute("SELECT * FROM samples").fetchall() == samples_found
        assert database.execute("SELECT * FROM sample_parts").fetchall() == parts_found


def expand(parts: list[str]) -> list[str]:
    """Paths from brace notation."""
    found = []
    for part in parts:
        head, brace, rest = part.partition("{")
        if not brace:
            found.append(part)
            continue
        span, _, tail = rest.partition("}")
        first, last = span.split("..")
        found += [f"{head}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]
    return found


def test_wids_lists_shards_as_often_as_they_are_seen(exported: Path, case: Path) -> None:
    folder = exported / case.name / "wids"
    index = json.loads((folder / "wids.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1" and index["wids_version"] == 1
    seen: Counter[str] = Counter()
    for shard in index["shardlist"]:
        found = ids(folder / shard["url"])
        assert len(found) == shard["nsamples"] and (folder / shard["url"]).stat().st_size == shard["filesize"]
        seen.update(found)
    assert seen == Counter(sample["id"] for sample in repeated(case))


def test_dali_lists_samples_as_often_as_they_are_seen(exported: Path, case: Path) -> None:
    folder = exported / case.name / "dali"
    seen: Counter[str] = Counter()
    for tar in sorted((folder / "train").glob("*.tar")):
        data = tar.read_bytes()
        places = {(name, offset, size) for name, offset, size in members(tar)}
        head, *lines = tar.with_suffix(".idx").read_text().splitlines()
        assert head == f"v1.2 {len(lines)}"
        for line in lines:
            num_words = line.split(" ")
            for suffix, offset, size, name in zip(*[iter(num_words)] * 4):
                assert (name, int(offset), int(size)) in places and name.endswith(f".{suffix}")
                if suffix == "json":
                    seen[json.loads(data[int(offset) : int(offset) + int(size)])["id"]] += 1
    assert seen == Counter(sample["id"] for sample in repeated(case))


def test_shards_of_one_repeat_are_linked_and_stay_a_mixture(mixture: Path, tmp_path: Path) -> None:
    for form in TARS:
        out = tmp_path / form
        export(mixture, form, out)
        assert len(open_mixture(out)) == len(open_mixture(mixture))
        for tar in (out / "train").glob("*.tar"):
            assert tar.samefile(mixture / "train" / tar.name)
    blend = yaml.safe_load((tmp_path / "energon/metadataset.yaml").read_text())["splits"]["train"]["blend_epochized"]
    assert blend == [{"path": ".", "repetitions": 1}]


def test_a_disk_without_hard_links_gets_copies(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    export(mixture, "wids", tmp_path / "out")
    for tar in (tmp_path / "out/train").glob("*.tar"):
        assert not tar.samefile(mixture / "train" / tar.name)
        assert tar.read_bytes() == (mixture / "train" / tar.name).read_bytes()


def test_exports_depend_on_the_mixture_alone(small: Path, exported: Path, tmp_path: Path) -> None:
    for form in FORMS:
        export(small, form, tmp_path / "elsewhere" / form)
    assert hashes(tmp_path / "elsewhere") == hashes(exported / small.name)


def hashes_of(folder: Path, form: str) -> dict[str, str]:
    found = {name: digest for name, digest in hashes(folder).items() if name.split("/")[0] == form}
    assert found
    return found


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("form", ["hf", "internvl", "llama-factory", "llava-json", "ms-swift"])
def test_exports_are_the_same_with_any_number_of_workers(
    small: Path, view: Path, exported: Path, tmp_path: Path, form: str
) -> None:
    for folder in (small, view):
        export(folder, form, tmp_path / folder.name / form, workers=2)
        assert hashes(tmp_path / folder.name) == hashes_of(exported / folder.name, form)


def test_rows_that_no_form_could_write_are_told(small: Path, tmp_path: Path) -> None:
    damages: dict[str, Callable[[dict[str, Any]], None]] = {
        "turns without text": lambda row: row["conversations"].pop(),
        "a box of no round": lambda row: row["boxes"][0].update(round=99),
        "unknown source 'x'": lambda row: row.update(source="x"),
        "without a safe path": lambda row: row["images"][0].update(path="a/../../b.jpg"),
    }
    for number, (said, damage) in enumerate(damages.items()):

        def spoil(rows: list[dict[str, Any]], damage: Callable[[dict[str, Any]], None] = damage) -> None:
            damage(next(row for row in rows if row["boxes"]))

        folder = changed(small, tmp_path / f"{number}", spoil)
        with pytest.raises(VlmixError, match=said):
            export(folder, "llava-json", tmp_path / "rows.json")
        assert not (tmp_path / "rows.json").exists()


@pytest.mark.processes
@pytest.mark.parametrize(("form", "workers"), [("llama-factory", 2), ("ms-swift", 1), ("llava-json", 1)])
def test_a_disk_that_fills_at_the_end_leaves_nothing(small: Path, tmp_path: Path, form: str, workers: int) -> None:
    """The images are small, the files that come last are not."""
    code = f"""
import resource, sys
from pathlib import Path
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import export
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        export({str(small)!r}, {form!r}, Path({str(tmp_path / "out")!r}), workers={workers})
    except VlmixError as error:
        print(error)
"""
    (tmp_path / "run.py").write_text(code)
    found = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, check=True)
    assert "cannot write: File too large; free some space" in found.stdout and found.stdout.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.py"]


def of(images: int, *values: str) -> dict[str, Any]:
    """A row of samples.parquet with what `texts` reads."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"images": [{"path": f"{i}.jpg"} for i in range(images)], "conversations": turns, "extra": ""}


@pytest.mark.parametrize(
    ("images", "before", "after"),
    [
        (1, ["<image>\nq", "a"], ["<image>\nq", "a"]),
        (1, ["q\n<image>", "a"], ["q\n<image>", "a"]),
        (1, ["q", "a"], ["<image>\nq", "a"]),
        (
            0,
            ["what is <image> in XML?", "a <image><image> tag"],
            ["what is < image > in XML?", "a < image >< image > tag"],
        ),
        (1, ["<image>\nq", "the <image> tag"], ["<image>\nq", "the < image > tag"]),
        (1, ["q", "a", "<image>\nr", "b"], ["q", "a", "<image>\nr", "b"]),
        (3, ["a <image> b", "c"], ["<image>\n<image>\na <image> b", "c"]),
        (2, ["<image> or <image>", "the <image> tag"], ["<image> or <image>", "the < image > tag"]),
    ],
)
def test_image_tokens_can_be_counted_on(images: int, before: list[str], after: list[str]) -> None:
    assert texts(of(images, *before)) == after


@pytest.mark.parametrize(
    ("images", "question", "plain"),
    [
        (1, "<image>\nq", "q"),
        (1, "q\n<image>", "q"),
        (1, "q <image> r", None),
        (1, "<image>", ""),
        (0, "q", "q"),
        (0, "q <image>", "q < image >"),
        (2, "<image>\n<image>\nq", "q"),
        (2, "q", "q"),
        (2, "<image><image> q", " q"),
        (2, "<image>\nq\n<image>", None),
        (2, "q\n<image>\n<image>", None),
    ],
)
def test_trl_puts_images_before_all(images: int, question: str, plain: str | None) -> None:
    assert without_tokens(of(images, question, "a")) == (None if plain is None else [plain, "a"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("q", ["q"]),
        ("", [""]),
        ("<image>\n<image>\nq", [None, None, "q"]),
        ("<image>\n\nq", [None, "\nq"]),
        ("<image>", [None]),
        ("a <image>\nb", ["a ", None, "\nb"]),
        ("a\n<image>", ["a\n", None]),
        ("<image> and <image>?", [None, " and ", None, "?"]),
    ],
)
def test_blocks_are_images_and_what_is_between_them(text: str, wanted: list[str | None]) -> None:
    shown = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in wanted]
    assert blocks(text) == shown


def changed(small: Path, folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """A copy of the mixture with other rows in its index."""
    shutil.copytree(small, folder)
    file = pq.ParquetFile(folder / "samples.parquet")
    rows = file.read().to_pylist()
    change(rows)
    with pq.ParquetWriter(folder / "samples.parquet", file.schema_arrow) as writer:
        for start in range(0, len(rows), RECIPE["samples_per_shard"]):
            group = rows[start : start + RECIPE["samples_per_shard"]]
            writer.write_table(pa.Table.from_pylist(group, file.schema_arrow))
    return folder


def test_one_path_with_two_pictures_becomes_two_files(small: Path, tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []

    def rename(rows: list[dict[str, Any]]) -> None:
        found = {row["images"][0]["xxh3"]: row["images"][0] for row in rows if row["images"]}
        shown.extend(list(found.values())[:3])
        path = shown[0]["path"]
        for row in rows:
            if row["images"] and row["images"][0]["xxh3"] == shown[1]["xxh3"]:
                row["images"][0]["path"] = path

    mixture = open_mixture(changed(small, tmp_path / "mixture", rename))
    images = LooseImages(mixture, tmp_path / "images")
    table = pq.read_table(tmp_path / "mixture/samples.parquet")
    rows = [{**row, "root_row": i} for i, row in enumerate(table.to_pylist())]
    names = {row["images"][0]["xxh3"]: images.add(row)[0] for row in rows if row["images"]}
    path = Path(shown[0]["path"])
    for one in shown[:2]:
        assert names[one["xxh3"]] == str(path.with_name(f"{path.stem}.{one['xxh3'][:8]}.jpg"))
    assert names[shown[2]["xxh3"]] == shown[2]["path"]
    for position, row in enumerate(rows):
        if row["images"]:
            (jpeg,) = mixture.raw(position).jpegs
            assert (tmp_path / "images" / names[row["images"][0]["xxh3"]]).read_bytes() == jpeg
    with pytest.raises(VlmixError, match="leaves its root"):
        images.add({**rows[0], "images": [{"path": "../x.jpg", "xxh3": "1"}]})


@pytest.mark.parametrize("form", sorted(FORMS))
def test_what_exists_is_not_overwritten(small: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(VlmixError, match="exists already"):
        export(small, form, out)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


@pytest.mark.parametrize(("form", "last"), [("hf", "_card"), ("energon", "write_yaml"), ("wids", "write_json")])
def test_a_failed_export_leaves_nothing(
    small: Path, tmp_path: Path, form: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise VlmixError("the disk is full")

    monkeypatch.setattr(f"vlmix.mixture.export.{form}.{last}", fail)
    with pytest.raises(VlmixError, match="disk is full"):
        export(small, form, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_a_killed_export_looks_unfinished_and_runs_again(small: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = os.fork()
    if not child:

        def die(stage: str, done: int, total: int) -> None:
            if done:
                os.kill(os.getpid(), signal.SIGKILL)

        export(small, "energon", out, progress=die)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    export(small, "energon", out)
    assert hashes(out) == hashes(exported / small.name / "energon")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_annotations_have_no_images_to_export(raw: Path, tmp_path: Path) -> None:
    recipe = {"name": "texts", "sources": {"okvqa": {}}}
    build(parse(recipe, known_sources(), "test"), known_sources(), raw, tmp_path / "texts", annotations_only=True)
    for form in set(FORMS) - {"llava-json"}:
        with pytest.raises(VlmixError, match="--annotations-only"):
            export(tmp_path / "texts", form, tmp_path / form)
    assert export(tmp_path / "texts", "llava-json", tmp_path / "texts.json") > 0


def test_an_unknown_form_is_met_with_the_nearest(small: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match="there is no export 'engeron'; did you mean 'energon'"):
        export(small, "engeron", tmp_path / "out")
    with pytest.raises(VlmixError, match="llava-json alone"):
        export(small, "trl", tmp_path / "out", images=tmp_path)


def test_images_are_readable_where_they_were_written(exported: Path) -> None:
    for form in ("internvl", "llama-factory", "llava-next", "ms-swift"):
        for path in (exported / "view" / form / "images").rglob("*.*"):
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                image.load()
