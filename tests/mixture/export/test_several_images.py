"""Samples of none to five images in every form, and rows that come back as they came."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from interop.several import COUNT, SOURCE, SYSTEM
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.build.source import Source
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import FORMS, export
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.record import Conversation, ImageRef, Round

KNOWN = {**known_sources(), "several": SOURCE}


@pytest.fixture(scope="module")
def several(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several") / "mixture"
    build(parse({"name": "several", "order": "natural", "sources": {"several": {}}}, KNOWN, "test"), KNOWN, raw, out)
    return out


@pytest.fixture(scope="module")
def exported(several: Path) -> Path:
    for form in FORMS:
        assert export(several, form, several.with_name(form)) == COUNT
    return several.parent


@pytest.fixture(scope="module")
def wanted(several: Path) -> list[dict[str, Any]]:
    """Rows of the index with the images' bytes, in natural order."""
    mixture = open_mixture(several)
    table = pq.read_table(several / "samples.parquet").to_pylist()
    rows = [{**row, "jpegs": list(mixture.raw(i).jpegs)} for i, row in enumerate(table)]
    return sorted(rows, key=lambda row: int(row["id"].partition("/")[2]))


def parquet(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.rglob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def read_paths(folder: Path, named: list[str]) -> list[bytes]:
    return [(folder / name).read_bytes() for name in named]


def in_pairs(
    found: list[dict[str, Any]], wanted: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    return zip(found, wanted, strict=True)


def test_peers_that_count_tokens_find_one_for_each_image(exported: Path, wanted: list[dict[str, Any]]) -> None:
    llama_factory = parquet(exported / "llama-factory")
    (entry,) = yaml.safe_load((exported / "llava-next/data.yaml").read_text())["datasets"]
    llava_next = json.loads((exported / "llava-next" / entry["json_path"]).read_text())
    for row, other, sample in zip(llama_factory, llava_next, wanted, strict=True):
        assert row["conversations"] == other["conversations"]
        text = "".join(turn["value"] for turn in row["conversations"])
        assert text.count("<image>") == len(row["images"]) == sample["num_images"]
        assert read_paths(exported / "llama-factory", row["images"]) == sample["jpegs"]
        named = other.get("image", [])
        assert isinstance(named, list) == (sample["num_images"] != 1)
        named = named if isinstance(named, list) else [named]
        assert read_paths(exported / "llava-next/images", named) == sample["jpegs"]


def test_internvl_lists_sizes(exported: Path, wanted: list[dict[str, Any]]) -> None:
    lines = (exported / "internvl/several.jsonl").read_text().splitlines()
    for row, sample in in_pairs([json.loads(line) for line in lines], wanted):
        if sample["num_images"] > 1:
            assert row["width_list"] == [image["width"] for image in sample["images"]]
            assert row["height_list"] == [image["height"] for image in sample["images"]]
            assert read_paths(exported / "internvl/images", row["image"]) == sample["jpegs"]
            assert "width" not in row
        else:
            assert (row.get("width", 0), row.get("height", 0)) == (sample["width"], sample["height"])


def test_ms_swift_says_which_image_a_box_is_in(exported: Path, wanted: list[dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in (exported / "ms-swift/train.jsonl").read_text().splitlines()]
    numbers = set()
    for row in rows:
        assert "".join(message["content"] for message in row["messages"]).count("<image>") == len(row["images"])
        if row["objects"]:
            assert len(row["objects"]["image_id"]) == len(row["objects"]["bbox"]) == 3
            numbers |= set(row["objects"]["image_id"])
    assert numbers == {0, 1, 2, 3, 4} and len(rows) == len(wanted)


def test_trl_has_blocks_where_images_stand_elsewhere(exported: Path, wanted: list[dict[str, Any]]) -> None:
    for row, sample in in_pairs(parquet(exported / "trl"), wanted):
        kinds = [block["type"] for message in row["messages"] for block in message["content"]]
        assert kinds.count("image") == len(row["images"]) == sample["num_images"]
        assert set(row["messages"][0]["content"][0]) == {"type", "text"}


def test_messages_are_those_of_trl_with_the_system_message(exported: Path, wanted: list[dict[str, Any]]) -> None:
    systems = 0
    for row, trl, sample in zip(parquet(exported / "messages"), parquet(exported / "trl"), wanted, strict=True):
        assert [image["bytes"] for image in row["images"]] == sample["jpegs"]
        assert [row[name] for name in ("rating", "kind", "good")] == [sample[n] for n in ("rating", "kind", "good")]
        if "system" not in sample["extra"]:
            assert row["messages"] == trl["messages"]
            continue
        systems += 1
        system, *others = row["messages"]
        assert system == {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
        assert [message["role"] for message in others] == ["user", "assistant"] * sample["num_rounds"]
        assert SYSTEM not in str(others)
    assert systems == 6


def test_texts_leave_out_tokens_that_lead(exported: Path, wanted: list[dict[str, Any]]) -> None:
    for row, sample in in_pairs(parquet(exported / "texts"), wanted):
        said = [text for pair in row["texts"] for text in pair.values()]
        values = [turn["value"] for turn in sample["conversations"]]
        assert said[1:] == values[1:]
        front, back = "<image>\n" * sample["num_images"], "\n<image>" * sample["num_images"]
        assert said[0] == values[0] or values[0] in (f"{front}{said[0]}", f"{said[0]}{back}")
        if "inline" in sample["extra"]:
            assert said == values
        elif values[0].startswith("<image>\nWhat"):
            assert "<image>" not in said[0]


def test_datasets_decodes_texts_and_messages(exported: Path, wanted: list[dict[str, Any]], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for form in ("hf", "texts", "messages"):
        data = datasets.load_dataset(str(exported / form), split="train", cache_dir=str(tmp_path))
        assert data.features["rating"].dtype == "int64" and data.features["good"].dtype == "bool"
        for row, sample in in_pairs(list(data), wanted):
            assert [image.size for image in row["images"]] == [(i["width"], i["height"]) for i in sample["images"]]
            assert all(row[name] == sample[name] for name in ("rating", "weight", "kind", "good"))
            if form == "hf":
                text = "".join(turn["value"] for turn in row["conversations"])
                assert row["boxes"] == sample["boxes"] and text.count("<image>") >= sample["num_images"]


def offer(*conversations: Conversation) -> Source:
    return Source(
        name="several",
        title="",
        homepage="",
        license="",
        response_formats=("free",),
        files=(),
        read=lambda *_: iter(conversations),
    )


def built(raw: Path, out: Path, *conversations: Conversation) -> Path:
    known = {**KNOWN, "several": offer(*conversations)}
    build(parse({"name": "m", "sources": {"several": {}}}, known, "test"), known, raw, out)
    return out


def test_an_image_in_an_answer_has_no_place_in_internvls_rows(raw: Path, tmp_path: Path) -> None:
    image = ImageRef("coco/train2017/000000000139.jpg")
    rounds = (Round("Show <image>.", "Here: <image>"),)
    conversation = Conversation("several/1", "several", rounds, (image, image), image_at="inline")
    folder = built(raw, tmp_path / "m", conversation)
    with pytest.raises(VlmixError, match="several/1 has an image in an answer.*--where \"id != 'several/1'\""):
        export(folder, "internvl", tmp_path / "out")
    assert export(folder, "ms-swift", tmp_path / "swift") == 1


def test_one_image_of_a_later_turn_stays_there_in_internvls_rows(raw: Path, tmp_path: Path) -> None:
    image = ImageRef("coco/train2017/000000000139.jpg")
    rounds = (Round("Hello.", "Hello."), Round("<image>\nWhat is it?", "A room."))
    folder = built(raw, tmp_path / "m", Conversation("several/1", "several", rounds, (image,), image_at="inline"))
    export(folder, "internvl", tmp_path / "out")
    row = json.loads((tmp_path / "out/several.jsonl").read_text())
    assert row["image"] == [image.path] and len(row["width_list"]) == 1
    export(folder, "trl", tmp_path / "trl")
    assert [len(m["content"]) for m in parquet(tmp_path / "trl")[0]["messages"]] == [1, 1, 2, 1]


def test_a_column_of_a_source_may_not_be_called_as_the_forms(raw: Path, tmp_path: Path) -> None:
    conversation = Conversation("several/1", "several", (Round("q", "a"),), columns={"texts": 3})
    folder = built(raw, tmp_path / "m", conversation)
    with pytest.raises(VlmixError, match=r"called 'texts'.*`columns: \{NEW: texts\}`"):
        export(folder, "texts", tmp_path / "out")
    assert export(folder, "messages", tmp_path / "messages") == 1
    assert parquet(tmp_path / "messages")[0]["texts"] == 3


def jpegs(raw: Path, count: int) -> list[dict[str, Any]]:
    paths = sorted((raw / "coco/val2017").iterdir())[:count]
    return [{"bytes": path.read_bytes(), "path": path.name} for path in paths]


def round_trip(
    raw: Path, tmp_path: Path, form: str, rows: list[dict[str, Any]], schema: pa.Schema | None = None
) -> Any:
    """Rows of Parquet, built in natural order and exported in their form."""
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, tmp_path / "rows.parquet")
    source = {"builder": "rows", "path": str(tmp_path / "rows.parquet")}
    recipe = {"name": "m", "order": "natural", "sources": {"mine": source}}
    build(parse(recipe, KNOWN, "test"), KNOWN, raw, tmp_path / "mixture")
    out = tmp_path / "out"
    if form == "llava-json":
        export(tmp_path / "mixture", form, out, images=tmp_path / "images")
        found = json.loads(out.read_text())
    else:
        export(tmp_path / "mixture", form, out)
        found = parquet(out)
    return found


def test_texts_come_back(raw: Path, tmp_path: Path) -> None:
    images = jpegs(raw, 5)
    said = [
        [("What is it?", "A cat."), ("And?", "No.")],
        [("<image>\nWhat is it?", "A cat.")],
        [("What is it?\n<image>", "A cat.")],
        [("Is <image> like <image>?", "Yes."), ("\n q ", " a\n")],
        [("q", "a"), ("<image> or not", "b")],
    ]
    rows = [
        {
            "images": images[:count],
            "texts": [{"user": user, "assistant": assistant} for user, assistant in pairs],
            "source": f"set {count}",
            "relevance_min": count or None,
        }
        for pairs in said
        for count in (5, 3, 2, 1, 0)
        if sum(user.count("<image>") for user, _ in pairs) <= count
    ]
    rows.sort(key=lambda row: not row["images"])  # text-only samples do not lead a shard
    found = round_trip(raw, tmp_path, "texts", rows)
    for row, sample in in_pairs(found, rows):
        assert row["texts"] == sample["texts"]
        assert [image["bytes"] for image in row["images"]] == [image["bytes"] for image in sample["images"]]
        assert row["relevance_min"] == sample["relevance_min"]


def test_messages_come_back(raw: Path, tmp_path: Path) -> None:
    images = jpegs(raw, 3)

    def turn(role: str, *parts: str | None) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text" if p else "image", "text": p} for p in parts]}

    answer = turn("assistant", "Yes.\n")
    chats = [
        (2, [turn("user", None, None, "Are they alike?"), answer]),
        (3, [turn("user", "Is ", None, " like ", None, " or\n", None, "?"), answer]),
        (2, [turn("user", None, "\nFirst."), answer, turn("user", None, "Second."), answer]),
        (1, [turn("system", "Be brief."), turn("user", None, "What?"), answer]),
        (2, [turn("system", "Be\n\nbrief."), turn("user", "What ", None, None), answer]),
        (1, [turn("user", None, "What?"), answer, turn("user", "And?"), answer]),
        (0, [turn("system", "Be brief."), turn("user", "What?"), answer]),
        (0, [turn("user", "What?"), answer]),
    ]
    rows = [{"messages": chat, "images": images[:count], "level": "easy"} for count, chat in chats]
    found = round_trip(raw, tmp_path, "messages", rows)
    for row, sample in in_pairs(found, rows):
        assert row["messages"] == sample["messages"]
        assert [image["bytes"] for image in row["images"]] == [image["bytes"] for image in sample["images"]]
        assert row["level"] == "easy"


def test_conversations_come_back(raw: Path, tmp_path: Path) -> None:
    images = jpegs(raw, 3)
    said = [
        (1, ["<image>\nWhat?", "A cat.", "And?", "No."]),
        (1, ["What?\n<image>", "A cat."]),
        (3, ["<image>\n<image>\n<image>\nWhat?", "Cats."]),
        (2, ["<image>\nA?", "Yes.", "<image>\nB?", "No."]),
        (2, ["Is <image> like <image>?", "Yes."]),
        (0, ["What?", "A cat."]),
    ]
    rows = [
        {
            "id": f"row {number}",
            "images": images[:count],
            "conversations": [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)],
        }
        for number, (count, values) in enumerate(said)
    ]
    found = round_trip(raw, tmp_path, "llava-json", rows)
    for row, sample in in_pairs(found, rows):
        assert set(row) <= {"id", "image", "conversations"} and row["id"] == sample["id"]
        assert row["conversations"] == sample["conversations"]
        named = row.get("image", [])
        stored = read_paths(tmp_path / "images", named if isinstance(named, list) else [named])
        assert stored == [image["bytes"] for image in sample["images"]]


@pytest.mark.parametrize("form", ["dali", "energon", "wids"])
def test_shards_hold_all_images(raw: Path, tmp_path: Path, form: str, wanted: list[dict[str, Any]]) -> None:
    recipe = {"name": "m", "order": "natural", "sources": {"several": {"repeat": 1.5}}}
    build(parse(recipe, KNOWN, "test"), KNOWN, raw, tmp_path / "m")
    assert export(tmp_path / "m", form, tmp_path / "out") == COUNT * 3 // 2
    found: dict[str, list[bytes]] = {}
    ids: dict[str, str] = {}
    for path in sorted((tmp_path / "out/train").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, part = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                if part == "json":
                    ids[key] = json.loads(file.read())["id"]
                else:
                    assert part == (f"{len(found[key])}.jpg" if key in found else "jpg")
                    found.setdefault(key, []).append(file.read())
    assert {ids[key]: found.get(key, []) for key in ids} == {row["id"]: row["jpegs"] for row in wanted}
    if form == "dali":
        _, *lines = (tmp_path / "out/train/train-000000.idx").read_text().splitlines()
        assert {len(line.split()) // 4 for line in lines} == {1, 2, 3, 4, 5, 6}
