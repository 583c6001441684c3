"""Columns in place of objects: images looked up and examined in blocks, parts of a source, an index of parts."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlmix
from tests.helpers import dump, hashes
from vlmix.builders import known_sources
from vlmix.mixture.build import facts, loose
from vlmix.mixture.build.build import build
from vlmix.mixture.build.facts import FACTS, Journal, pack, path_key, unpack
from vlmix.mixture.build.plan import prepare
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.dataset import writer
from vlmix.mixture.dataset.rejects import reject_rows, write_rejects
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import image_index
from vlmix.mixture.io.digests import Stamp
from vlmix.mixture.io.image_index import ImageFolder, ImageIndex
from vlmix.mixture.io.images import ImageInfo, probe
from vlmix.mixture.io.json_pieces import Unsplit
from vlmix.mixture.io.pool import Pool
from vlmix.mixture.record import Conversation, ImageRef, Round


def talk(id: str, *images: str) -> Conversation:
    refs = tuple(ImageRef(image) for image in images)
    return Conversation(f"plants/{id}", "plants", (Round(f"What is {id}?", "Fern", "short_answer"),), refs)


def plants(*talks: Conversation, **changes: Any) -> Source:
    plain = Source(
        name="plants",
        title="Plants",
        homepage="https://example.org",
        license="CC0",
        response_formats=("short_answer",),
        files=(),
        read=lambda *_: iter(talks),
    )
    return replace(plain, **changes)


def recipe(source: Source, **keys: Any) -> Any:
    return parse({"name": "x", "sources": {source.name: {}}, **keys}, {source.name: source})


@pytest.mark.parametrize("most", [2_000_000, 5])
def test_images_are_found_as_the_index_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(loose, "_BLOCK", 7)
    monkeypatch.setattr(image_index, "_MOST_LISTED", most)
    rng, roots = random.Random(0), [tmp_path / "a", tmp_path / "b"]
    folders = ["coco/train2017", "coco/train2014", "vg", "vg/deep/er", "."]
    for root in roots:
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in rng.sample(range(40), 15):
                prefix = "COCO_" if "2014" in folder else ""
                ending = rng.choice([".jpg", ".JPG", ".png", ".gif", ".txt", ""])
                (root / folder / f"{prefix}{number}{ending}").touch()
    aliases = {"coco/train2017": (ImageFolder("coco/train2014", "COCO_"),), "vg": (ImageFolder("coco/train2017"),)}
    names = [f"{folder}/{i}.jpg" for folder in ("coco/train2017", "vg", "vg/deep/er", "no") for i in range(40)]
    names += [f"{i}.jpg" for i in range(40)] + ["vg//3.jpg", "vg/./4.jpg", "vg/.5", "vg/5."]
    drawn = [talk(str(i), *rng.sample(names, rng.randint(0, 3))) for i in range(300)]
    source = plants(*drawn, images=aliases)
    with Pool(1) as pool:
        prepared = prepare(recipe(source), {"plants": source}, tmp_path, tmp_path / "work", pool, roots)
    index = ImageIndex(roots, aliases)
    expected = {name: index.candidates(name) for name in names}
    found = prepared.loose
    assert found is not None and 0 < len(found) <= len(names)
    for block, images in found.names(np.arange(len(found))):
        for number, image in zip(block.tolist(), images):
            assert list(map(Path, found.every(number))) == expected[image]
            assert (found.location[number] < 0) == (not expected[image])
            if expected[image]:
                assert Path(found.file(number)) == expected[image][0]
                assert bool(found.several[number]) >= (len(expected[image]) > 1)
    lost = [any(not expected[image.path] for image in one.images) for one in drawn]
    assert prepared.missing.tolist() == lost and 0 < sum(lost) < len(lost)


def test_two_paths_of_one_hash_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmix.mixture.build.extract.xxh3_64_intdigest", lambda data, seed=0: len(data))
    source = plants(talk("1", "a/1.jpg"), talk("22", "a/2.jpg"))
    with Pool(1) as pool, pytest.raises(VlmixError, match="same hash of 64 bits"):
        prepare(recipe(source), {"plants": source}, tmp_path, tmp_path / "work", pool, [tmp_path])


def reading(*parts: list[Conversation]) -> dict[str, Any]:
    """A source that is read in parts, or whole."""

    def read(raw: RawFolder, options: Options, seed: int, reject: Rejects) -> Iterator[Conversation]:
        for number, part in enumerate(parts):
            if raw.part in (None, number):
                reject(f"plants/{number}", "odd", f"part {number}")
                yield from part

    return {"read": read, "split": lambda raw, options, name: range(len(parts))}


def test_an_id_that_two_parts_have_is_met_once(tmp_path: Path) -> None:
    first, second = [talk("1"), talk("2"), talk("1")], [talk("2"), talk("3"), talk("2")]
    made = {}
    for name, changes in (("parts", {}), ("whole", {"split": lambda raw, options, name: (None,)})):
        source = plants(**{**reading(first, second), **changes})
        build(recipe(source), {"plants": source}, tmp_path, tmp_path / name, annotations_only=True)
        made[name] = hashes(tmp_path / name)
    assert made["parts"] == made["whole"]
    assert sorted(pl.read_parquet(tmp_path / "parts/samples.parquet")["id"]) == ["plants/1", "plants/2", "plants/3"]
    rejects = pl.read_parquet(tmp_path / "parts/rejects.parquet")
    assert Counter(rejects["reason"]) == {"duplicate_id": 3, "odd": 2}
    assert {json.loads(record)["id"] for record in rejects["record"] if record} == {"plants/1", "plants/2"}


def test_a_part_that_cannot_be_read_alone_is_read_with_the_others(tmp_path: Path) -> None:
    def read(raw: RawFolder, options: Options, seed: int, reject: Rejects) -> Iterator[Conversation]:
        if raw.part == 1:
            raise Unsplit("a border inside a text")
        yield from [talk("1"), talk("2")]

    source = plants(read=read, split=lambda raw, options, name: range(3))
    build(recipe(source), {"plants": source}, tmp_path, tmp_path / "out", annotations_only=True)
    assert len(pl.read_parquet(tmp_path / "out/samples.parquet")) == 2


def test_a_source_that_numbers_ids_is_read_whole_where_parts_share_one(tmp_path: Path) -> None:
    def read(raw: RawFolder, options: Options, seed: int, reject: Rejects) -> Iterator[Conversation]:
        yield talk("1")
        if raw.part is None:
            yield talk("1#2")

    source = plants(read=read, split=lambda raw, options, name: range(2), numbers=True)
    build(recipe(source), {"plants": source}, tmp_path, tmp_path / "out", annotations_only=True)
    assert sorted(pl.read_parquet(tmp_path / "out/samples.parquet")["id"]) == ["plants/1", "plants/1#2"]


@pytest.mark.parametrize("many", [7, 16_384])
def test_rejects_are_sorted_as_python_sorts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr("vlmix.mixture.build.source.MANY_REJECTS", many)
    keys = [(f"é{i % 3}", i % 4 - 1, f"r{i % 2}", chr(0x1F600 + i % 5) + "\uff00" * (i % 2)) for i in range(60)]

    def read(raw: RawFolder, options: Options, seed: int, reject: Rejects) -> Iterator[Conversation]:
        for id, number, reason, detail in keys:
            reject(id, reason, detail, round=number)
            assert len(reject.rows) < many
        yield talk("1")

    source = plants(read=read)
    manifest = build(recipe(source), {"plants": source}, tmp_path, tmp_path / "out", annotations_only=True)
    table = pq.read_table(tmp_path / "out/rejects.parquet")
    rows = [(row["id"], row["round"], row["reason"], row["detail"]) for row in table.to_pylist()]
    assert rows == sorted(keys)
    assert manifest.rejects == {"plants": {"r0": 30, "r1": 30}}


def test_rejects_longer_than_an_array_are_all_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmix.mixture.dataset.rejects._TEXT", 1_000)
    given = [
        Reject(source="s", id=f"{i:02}", reason="bad_row", detail="", record="é" * 100) for i in reversed(range(40))
    ]
    counts = write_rejects(tmp_path / "rejects.parquet", [reject_rows(given[:25]), reject_rows(given[25:])])
    written = pq.ParquetFile(tmp_path / "rejects.parquet")
    assert written.num_row_groups > 1
    assert written.read()["id"].to_pylist() == sorted(reject.id for reject in given)
    assert counts == {"s": {"bad_row": 40}}


@pytest.mark.parametrize("rows", [1, 9, 15, 22])
def test_an_index_of_parts_holds_the_rows_of_one_file(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    keys = {"samples_per_shard": 5}
    drawn = {"name": "x", "sources": {"okvqa": {"take": 13}, "sharegpt": {"take": 9}}, **keys}
    made = parse(drawn, known_sources())
    build(made, known_sources(), raw, tmp_path / "one")
    monkeypatch.setattr(writer, "PART_ROWS", rows)
    manifest = build(made, known_sources(), raw, tmp_path / "parts")
    index = tmp_path / "parts/samples.parquet"
    groups = [pq.ParquetFile(part).num_row_groups for part in sorted(index.iterdir())] if index.is_dir() else [5]
    assert groups == {1: [1] * 5, 9: [1, 1, 1, 2], 15: [3, 2], 22: [5]}[rows]
    assert pq.read_table(index).equals(pq.read_table(tmp_path / "one/samples.parquet"))
    assert {name for name in manifest.checksums if name.startswith("samples")} == (
        {f"samples.parquet/part-{i:05d}.parquet" for i in range(len(groups))} if rows < 22 else {"samples.parquet"}
    )
    assert not verify(tmp_path / "parts").problems


def info(number: int, **changes: Any) -> ImageInfo:
    plain = {"path": f"/p/{number}.jpg", "bytes": 10 + number, "stamp": Stamp(10 + number, -5, 6, 2**63 + number)}
    plain |= {"digest": f"{number:032x}", "format": "JPEG", "width": 40_000, "height": 3, "orientation": 6}
    return ImageInfo(**{**plain, **changes})


def test_facts_come_back_from_their_file(tmp_path: Path) -> None:
    infos = [info(1), info(2, problem="image_damaged", detail="line\nbreak é"), info(3, format="MPO", orientation=1)]
    infos.append(info(4, digest=""))  # its header alone was read
    keys = [path_key(each.path, True) for each in infos]
    Journal(tmp_path / "j.facts").append(*pack(infos, keys))
    newer = info(1, width=7, height=7)
    Journal(tmp_path / "j.facts").append(*pack([newer], keys[:1]))
    journal = Journal(tmp_path / "j.facts")
    assert journal.find([*keys, path_key("/p/1.jpg", False)]) == [4, 1, 2, 3, -1]
    assert journal.problems == {1: ("image_damaged", "line\nbreak é")}
    rows = journal[np.array([2, 3, 4])]
    assert unpack(rows, ["/p/3.jpg", "/p/4.jpg", "/p/1.jpg"], [""] * 3) == [*infos[2:], newer]


@pytest.mark.parametrize("damage", ["cut", "flipped", "no detail"])
def test_damaged_facts_are_absent(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "j.facts"
    infos = [info(1), info(2, problem="image_damaged", detail="why"), info(3)]
    keys = [path_key(each.path, True) for each in infos]
    Journal(path).append(*pack(infos, keys))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[2 * FACTS.itemsize + 20] ^= 1
        path.write_bytes(data)
    else:
        (tmp_path / "j.problems").write_bytes(b'\n["' + keys[1].hex().encode())
    journal = Journal(path)
    assert journal.find(keys) == ([0, -1, 2] if damage == "no detail" else [0, 1, -1])
    journal.append(*pack([info(4)], [path_key("4", True)]))
    assert Journal(path).find([path_key("4", True)]) == [2 if damage == "cut" else 3]


def test_the_first_bytes_of_keys_may_agree(tmp_path: Path) -> None:
    keys = [bytes(8) + bytes([i]) * 8 for i in (3, 1, 2, 1)]
    Journal(tmp_path / "j.facts").append(*pack([info(i) for i in range(4)], keys))
    journal = Journal(tmp_path / "j.facts")
    assert journal.find([*keys, bytes(16)]) == [0, 3, 2, 3, -1]
    assert facts.FACTS.itemsize == 96


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """Rows of a whole and a cut JPEG, and of a whole and a cut PNG."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "raw/llava_json/images"
    folder.mkdir(parents=True)
    rows = []
    for name in ("whole.jpg", "cut.jpg", "sound.png", "short.png"):
        Image.fromarray(rng.integers(0, 255, (90, 120, 3), np.uint8)).save(folder / name)
        if name in ("cut.jpg", "short.png"):
            (folder / name).write_bytes((folder / name).read_bytes()[:-2000])
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That"}]
        rows.append({"id": name, "image": f"images/{name}", "conversations": turns})
    dump(tmp_path / "raw/llava_json/mine.json", rows)
    return tmp_path / "raw"


def test_headers_alone_let_a_cut_jpeg_through_and_say_so(cut: Path, tmp_path: Path) -> None:
    made = parse({"name": "x", "sources": {"llava_json": {"path": "mine.json"}}}, known_sources())
    roots = [cut / "llava_json"]
    full = build(made, known_sources(), cut, tmp_path / "full", images=roots)
    header = build(made, known_sources(), cut, tmp_path / "header", images=roots, check="header")
    ids = [set(pl.read_parquet(tmp_path / name / "samples.parquet")["image"]) for name in ("full", "header")]
    assert ids[0] == {"images/whole.jpg", "images/sound.png"} and ids[1] == ids[0] | {"images/cut.jpg"}
    assert [sum(sum(reasons.values()) for reasons in made.rejects.values()) for made in (full, header)] == [2, 1]
    for name, said in (("full", False), ("header", True)):
        assert ('"check": "header"' in (tmp_path / name / "manifest.json").read_text()) == said
        assert ("--check header" in (tmp_path / name / "README.md").read_text()) == said


def test_verify_decodes_what_no_build_has_decoded(cut: Path, tmp_path: Path) -> None:
    made = parse({"name": "x", "sources": {"llava_json": {"path": "mine.json"}}}, known_sources())
    build(made, known_sources(), cut, tmp_path / "header", images=[cut / "llava_json"], check="header")
    source = plants(talk("1"))
    build(recipe(source), {"plants": source}, cut, tmp_path / "text")
    vlmix.merge([tmp_path / "header", tmp_path / "text"], tmp_path / "merged")
    for name in ("header", "merged"):
        (problem,) = verify(tmp_path / name).problems
        assert "train-000000.tar" in problem and "truncated" in problem


@pytest.mark.parametrize("name", ["whole.jpg", "cut.jpg", "sound.png", "short.png"])
def test_a_header_says_what_decoding_says(cut: Path, name: str) -> None:
    path = cut / "llava_json/images" / name
    full, header = probe(path), probe(path, full=False)
    if name == "cut.jpg":
        assert full.problem == "image_damaged" and not header.problem
    else:
        assert (full.problem, full.detail, full.format, full.orientation) == (
            header.problem, header.detail, header.format, header.orientation,
        )  # fmt: skip
    assert (full.width, full.height, full.stamp) == (header.width, header.height, header.stamp)
