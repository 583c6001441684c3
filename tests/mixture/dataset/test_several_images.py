"""Samples of no image, one and several in one mixture: shards, index, reader, verification, parts, other readers."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.helpers import BOXED, SIZES, dump, forge, hashes, read, reseal, write_boxed, write_images
from vlmix.builders import known_sources
from vlmix.mixture.boxes import square_text
from vlmix.mixture.build.build import build
from vlmix.mixture.build.images import plan_storage, scaled
from vlmix.mixture.build.plan import plan, prepare
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.manifest import Manifest
from vlmix.mixture.dataset.tar import scan
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.dataset.view import save_copy
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import llava_json
from vlmix.mixture.io.images import image_xxh3, probe
from vlmix.mixture.io.pool import Pool
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.record import Conversation, ImageRef, Round

MOST = 5
Row = dict[str, Any]


def question(images: int, number: int) -> list[str]:
    """The questions of a row, each of whose images has a token, or none has (every third row of several)."""
    if images < 2 or number % 3 == 2:
        return ["<image>\nWhat is it?" if images == 1 else "What are they?", "And now?"]
    tokens = [f"number {i} <image>" for i in range(images)]
    return [f"Of {' and '.join(tokens[:-1])}: which?", f"Is it\n<image>, {number}?"]


def llava_rows(raw: Path, count: int = 24) -> list[Row]:
    """Rows of 0 to 5 images each, and their images below `raw`."""
    rows = []
    for number in range(count):
        images = write_images(raw, f"pictures/{number}", number % (MOST + 1))
        turns = [
            turn
            for text in question(len(images), number)
            for turn in ({"from": "human", "value": text}, {"from": "gpt", "value": f"Yes, {number}."})
        ]
        row: Row = {"id": f"{number:03d}", "conversations": turns}
        rows.append({**row, "image": images[0] if len(images) == 1 else images} if images else row)
    return rows


def make(raw: Path, out: Path, sources: Row | None = None, **keys: Any) -> Manifest:
    known = {**known_sources(), "boxed": BOXED}
    entries = sources or {"mine": {"builder": "llava_json", "path": "rows.json"}}
    how = {name: keys.pop(name) for name in ("workers", "annotations_only") if name in keys}
    return build(
        parse({"name": "several", "samples_per_shard": 5, "sources": entries, **keys}, known), known, raw, out, **how
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RAW of one's own: rows.json and its images. Read only."""
    raw = tmp_path_factory.mktemp("own")
    dump(raw / "rows.json", llava_rows(raw))
    return raw


@pytest.fixture(scope="module")
def several(own: Path) -> Path:
    """The mixture of it. Read only."""
    make(own, own.with_name("several"))
    return own.with_name("several")


@pytest.fixture
def copy(several: Path, tmp_path: Path) -> Path:
    shutil.copytree(several, tmp_path / "copy")
    return tmp_path / "copy"


def rows_of(own: Path) -> dict[str, Row]:
    """Id in the mixture -> the row that it was made of, `image` being a list."""
    rows = json.loads((own / "rows.json").read_text())
    listed = [
        {**row, "image": [row["image"]] if isinstance(row.get("image"), str) else row.get("image", [])} for row in rows
    ]
    return {f"mine/{row['id']}": row for row in listed}


def index(folder: Path) -> list[Row]:
    return pq.read_table(folder / "samples.parquet").to_pylist()


def origin(rows: dict[str, Row], id: str) -> Row:
    return rows[id.partition("#")[0]]


def test_shards_hold_the_files_of_every_image_in_order(own: Path, several: Path) -> None:
    rows, counts = rows_of(own), []
    members = {member.name: (path, member) for path in sorted(several.glob("train/*.tar")) for member in scan(path)}
    for row in index(several):
        images = origin(rows, row["id"])["image"]
        counts.append(len(images))
        names = [f"{row['key']}.jpg", *(f"{row['key']}.{i}.jpg" for i in range(1, len(images)))][: len(images)]
        for name, path, stored in zip(names, images, row["images"], strict=True):
            shard, member = members.pop(name)
            data = (own / path).read_bytes()
            assert shard.read_bytes()[member.offset : member.offset + member.size] == data
            assert (stored["path"], stored["offset"], stored["size"]) == (path, member.offset, member.size)
            assert (stored["xxh3"], stored["transform"]) == (image_xxh3(data), "none")
        assert [(image["width"], image["height"]) for image in row["images"]] == list(SIZES[: len(images)])
        first = row["images"][0] if images else {"path": "", "width": 0, "height": 0}
        assert (row["image"], row["width"], row["height"]) == (first["path"], first["width"], first["height"])
        assert row["num_images"] == len(images)
        shard, member = members.pop(f"{row['key']}.json")
        sample = json.loads(shard.read_bytes()[member.offset : member.offset + member.size])
        fields = "id", "source", "image", "width", "height", "images", "conversations", "extra"
        assert tuple(sample) == fields
        assert sample["images"] == [
            {name: image[name] for name in ("path", "width", "height")} for image in row["images"]
        ]
    assert not members and sorted(set(counts)) == [0, 1, 2, 3, 4, 5]


def test_texts_keep_their_image_tokens_where_they_are(own: Path, several: Path) -> None:
    rows = rows_of(own)
    for row in index(several):
        assert row["conversations"] == origin(rows, row["id"])["conversations"]
    llava_json(several, several.with_name("back.json"))
    back = json.loads(several.with_name("back.json").read_text())
    before = json.loads((own / "rows.json").read_text())
    assert sorted(back, key=lambda row: row["id"]) == before, "and the way back changes no row"


def test_the_reader_gives_all_images_in_order(own: Path, several: Path) -> None:
    rows, opened = rows_of(own), open_mixture(several)
    assert len(opened) == 24 and opened.manifest.total.images == 4 * 15
    for sample in opened:
        files = [(own / path).read_bytes() for path in origin(rows, sample.id)["image"]]
        assert list(sample.jpegs) == files and sample.jpeg == (files[0] if files else None)
        assert [image.size for image in sample.images_pil()] == [(i.width, i.height) for i in sample.images]
        assert ("and 3 more" in repr(sample)) == (len(files) == 4)
        assert sample._repr_html_().count("<img ") == len(files)
    assert opened.samples.filter(pl.col("num_images") >= 2).collect().height == 16
    assert opened.subset(where="num_images >= 2", ratio=0.5).column("num_images").to_pylist().count(1) == 0
    extra = opened.lengths(100) - opened.lengths()
    assert (extra == 100 * opened.column("num_images").to_numpy()).all()


def test_a_mixture_of_several_images_opens_from_a_store(several: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in several.rglob("*"):
        if path.is_file():
            store.pipe_file(f"/several/{path.relative_to(several)}", path.read_bytes())
    remote, local = open_mixture("memory://several"), open_mixture(several)
    assert [remote[position] for position in range(24)] == list(local)
    store.rm("/several", recursive=True)


@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_a_flipped_bit_in_any_image_is_found(copy: Path, number: int) -> None:
    assert not verify(copy).problems
    row = next(row for row in index(copy) if row["num_images"] > number and row["num_images"] > 1)
    image, path = row["images"][number], copy / row["shard"]
    data = bytearray(path.read_bytes())
    data[image["offset"] + image["size"] // 2] ^= 4
    path.write_bytes(data)
    name = f"{row['key']}.{number}.jpg" if number else f"{row['key']}.jpg"
    problems = verify(copy).problems
    assert f"{row['shard']}: {name} differs from the hash in the index" in problems
    assert f"{row['shard']}: its bytes differ from the manifest's checksum" in problems and len(problems) == 2


def test_a_view_and_a_copy_hold_the_same(several: Path, tmp_path: Path) -> None:
    part = open_mixture(several).subset(where="num_images <> 1", ratio=0.6)
    part.save(tmp_path / "view")
    save_copy(part, tmp_path / "whole", [])
    view, whole = open_mixture(tmp_path / "view"), open_mixture(tmp_path / "whole")
    assert not verify(tmp_path / "view").problems and not verify(tmp_path / "whole").problems
    assert {0, 2, 3, 4, 5} == set(view.column("num_images").to_pylist())

    def samples(opened: Any) -> dict[str, Any]:
        return {sample.id: msgspec.structs.replace(sample, key="") for sample in opened}

    assert samples(view) == samples(whole) == samples(part)
    assert view.manifest.total == whole.manifest.total and view.manifest.total.images > view.manifest.samples
    assert not (tmp_path / "view/train").exists()


def test_the_same_bytes_from_any_number_of_workers(own: Path, several: Path, tmp_path: Path) -> None:
    make(own, tmp_path / "two", workers=2)
    assert hashes(tmp_path / "two") == hashes(several)


def test_plan_counts_every_image(own: Path, several: Path, tmp_path: Path) -> None:
    known = known_sources()
    recipe = parse({"name": "x", "sources": {"mine": {"builder": "llava_json", "path": "rows.json"}}}, known)
    with Pool(1) as pool:
        (row,) = plan(prepare(recipe, known, own, tmp_path / "work", pool, [own]))
    assert (row.samples, row.images, row.missing) == (24, 60, 0)
    sizes = [s for row in index(several) for s in (row["json_size"], *(image["size"] for image in row["images"]))]
    assert 0.9 < row.bytes / sum(512 + size + -size % 512 for size in sizes) < 1.1


@pytest.fixture(params=["shuffled", "natural"])
def ordered(own: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    make(own, tmp_path / "mix", order=request.param)
    return tmp_path / "mix"


@pytest.mark.parametrize("streaming", [False, True])
def test_hf_datasets_gives_all_images(ordered: Path, streaming: bool, tmp_path: Path) -> None:
    """The first samples have fewer images than later ones, so that nothing may be inferred from them."""
    import datasets

    data = datasets.load_dataset(str(ordered), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache"))
    opened, names = open_mixture(ordered), ["jpg", *(f"{i}.jpg" for i in range(1, MOST))]
    assert list(data.features)[:MOST] == names
    found = list(data)
    assert len(found) == len(opened)
    for row, sample in zip(found, opened, strict=True):
        pictures = [row[name] for name in names if row[name] is not None]
        assert [row[name] is not None for name in names] == [i < len(sample.jpegs) for i in range(MOST)]
        assert [p.tobytes() for p in pictures] == [p.convert("RGB").tobytes() for p in sample.images_pil()]
        assert row["json"] == {
            **{name: getattr(sample, name) for name in ("id", "source", "image", "width", "height", "extra")},
            "images": [{"path": i.path, "width": i.width, "height": i.height} for i in sample.images],
            "conversations": [{"from": turn.from_, "value": turn.value} for turn in sample.conversations],
        }


def test_stock_webdataset_gives_all_images(ordered: Path) -> None:
    import webdataset

    urls = [str(path) for path in sorted(ordered.glob("train/*.tar"))]
    for stock, sample in zip(webdataset.WebDataset(urls, shardshuffle=False), open_mixture(ordered), strict=True):
        names = ["jpg", *(f"{i}.jpg" for i in range(1, MOST))]
        assert tuple(stock[name] for name in names if name in stock) == sample.jpegs
        assert stock["__key__"] == sample.key and json.loads(stock["json"])["id"] == sample.id
    for stock, sample in zip(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"), open_mixture(ordered)):
        assert [stock[name].size for name in names if name in stock] == [(i.width, i.height) for i in sample.images]


def test_the_card_declares_as_many_images_as_a_sample_has_at_most(own: Path, several: Path, tmp_path: Path) -> None:
    def declared(folder: Path) -> list[str]:
        head = yaml.safe_load((folder / "README.md").read_text().split("\n---\n", 1)[0])
        return [feature["name"] for feature in head["dataset_info"]["features"] if feature.get("dtype") == "image"]

    assert declared(several) == ["jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    for most, names in ((3, ["jpg", "1.jpg", "2.jpg"]), (1, ["jpg"]), (0, [])):
        save_copy(open_mixture(several).subset(where=f"num_images <= {most}"), tmp_path / str(most), [])
        assert declared(tmp_path / str(most)) == names


def test_max_images_rejects_more(own: Path, tmp_path: Path) -> None:
    made = make(own, tmp_path / "three", max_images=3)
    assert made.samples == 16 and made.rejects == {"mine": {"too_many_images": 8}}
    assert max(row["num_images"] for row in index(tmp_path / "three")) == 3
    rejects = pl.read_parquet(tmp_path / "three/rejects.parquet")
    assert set(rejects["detail"]) == {f"{count} images, `max_images` is 3" for count in (4, 5)}
    assert "pictures/4/3.jpg" in rejects.filter(pl.col("id").str.starts_with("mine/004"))["record"][0]
    assert make(own, tmp_path / "one", max_images=1).samples == 8
    with pytest.raises(VlmixError, match="max_images"):
        make(own, tmp_path / "none", max_images=0)


def test_at_most_64_images_by_default(tmp_path: Path) -> None:
    (image,) = write_images(tmp_path, "pictures", 1)
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Many."}]
    dump(tmp_path / "rows.json", [{"id": n, "images": [image] * n, "conversations": turns} for n in (64, 65)])
    found, rejects = read("llava_json", tmp_path, path="rows.json")
    assert [len(talk.images) for talk in found] == [64] and [r.reason for r in rejects] == ["too_many_images"]
    made = make(tmp_path, tmp_path / "mix", max_images=100)
    assert made.total.images == 129, "one picture as often as the row names it"
    assert not verify(tmp_path / "mix").problems
    assert [len(set(sample.jpegs)) for sample in open_mixture(tmp_path / "mix")] == [1, 1]


def test_annotations_alone_name_all_images(own: Path, several: Path, tmp_path: Path) -> None:
    made = make(own, tmp_path / "text", annotations_only=True)
    assert made.total == open_mixture(several).manifest.total and made.total.images == 60
    assert not verify(tmp_path / "text").problems
    whole, text = ({row["id"]: row for row in index(folder)} for folder in (several, tmp_path / "text"))
    nothing = {"width": 0, "height": 0, "offset": 0, "size": 0, "xxh3": "", "transform": "none"}
    for id, row in text.items():
        assert row["conversations"] == whole[id]["conversations"]
        assert row["images"] == [{"path": image["path"], **nothing} for image in whole[id]["images"]]
    with pytest.raises(VlmixError, match="--annotations-only"):
        open_mixture(tmp_path / "text")[0]


def forged(folder: Path, out: Path, change: Callable[[list[Row]], Any]) -> list[str]:
    """What `verify` finds in a copy whose index has other images in its first row of five, with true checksums."""
    shutil.copytree(folder, out)
    table = pq.read_table(out / "samples.parquet")
    rows = table.to_pylist()
    row = next(row for row in rows if row["num_images"] == MOST)
    row["images"] = change(row["images"])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), out / "samples.parquet")
    reseal(out)
    return verify(out).problems


FORGED: dict[str, Callable[[list[Row]], Any]] = {
    "a path outside": lambda was: [*was[:-1], {**was[-1], "path": "../x.jpg"}],
    "no path": lambda was: [*was[:-1], {**was[-1], "path": ""}],
    "another offset": lambda was: [*was[:-1], {**was[-1], "offset": was[-1]["offset"] + 512}],
    "another size": lambda was: [*was[:-1], {**was[-1], "size": was[-1]["size"] + 1}],
    "another hash": lambda was: [*was[:-1], {**was[-1], "xxh3": "0" * 32}],
    "another transform": lambda was: [*was[:-1], {**was[-1], "transform": "painted"}],
    "an image less": lambda was: was[:-1],
    "an image more": lambda was: [*was, was[-1]],
    "null for an image": lambda was: [*was[:-1], None],
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_images_are_found_without_shards_and_in_a_view(
    own: Path, several: Path, tmp_path: Path, what: str
) -> None:
    make(own, tmp_path / "text", annotations_only=True)
    assert not forged(tmp_path / "text", tmp_path / "same", lambda was: was)
    assert forged(tmp_path / "text", tmp_path / "forged", FORGED[what])
    open_mixture(several).subset(where="num_images > 3").save(tmp_path / "view")
    shutil.copytree(several, tmp_path / "root" / several.name)
    shutil.move(tmp_path / "view", tmp_path / "moved")
    manifest = json.loads((tmp_path / "moved/manifest.json").read_text())
    forge(tmp_path / "moved", {**manifest, "parent": {**manifest["parent"], "path": f"../root/{several.name}"}})
    assert not forged(tmp_path / "moved", tmp_path / "as it was", lambda was: was)
    assert forged(tmp_path / "moved", tmp_path / "other", FORGED[what]) == [
        "samples.parquet: rows differ from the root's"
    ]


def damaged(own: Path, tmp_path: Path) -> Path:
    shutil.copytree(own, tmp_path / "raw")
    return tmp_path / "raw"


def rejects_of(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    yield from pl.read_parquet(folder / "rejects.parquet").select("id", "reason", "image", "detail").rows()


def test_one_missing_image_rejects_the_whole_sample(own: Path, tmp_path: Path) -> None:
    raw = damaged(own, tmp_path)
    for name in ("4/2.jpg", "5/0.jpg", "9/1.jpg", "9/2.jpg", "7/0.jpg"):
        (raw / "pictures" / name).unlink()
    made = make(raw, tmp_path / "mix")
    assert made.samples == 20 and made.rejects == {"mine": {"image_missing": 4}}
    found = {id[5:8]: (reason, image) for id, reason, image, _ in rejects_of(tmp_path / "mix")}
    assert found == {
        "004": ("image_missing", "pictures/4/2.jpg"),
        "005": ("image_missing", "pictures/5/0.jpg"),
        "009": ("image_missing", "pictures/9/1.jpg"),
        "007": ("image_missing", "pictures/7/0.jpg"),
    }
    named = {id[5:8]: detail for id, _, _, detail in rejects_of(tmp_path / "mix")}
    assert named["004"].startswith("pictures/4/2.jpg: no file") and named["007"].startswith("no file")
    assert not verify(tmp_path / "mix").problems
    assert not {row["id"][5:8] for row in index(tmp_path / "mix")} & found.keys()


def test_one_broken_image_rejects_the_whole_sample(own: Path, tmp_path: Path) -> None:
    raw = damaged(own, tmp_path)
    broken = {
        "pictures/4/3.jpg": b"",
        "pictures/5/4.jpg": (raw / "pictures/5/4.jpg").read_bytes()[:-300],
        "pictures/8/0.jpg": b"<html>404</html>",
    }
    for path, data in broken.items():
        (raw / path).write_bytes(data)
    made = make(raw, tmp_path / "mix")
    assert made.rejects == {"mine": {"image_damaged": 1, "image_empty": 1, "image_unknown": 1}}
    found = {image: (id[5:8], reason, detail) for id, reason, image, detail in rejects_of(tmp_path / "mix")}
    assert found.keys() == broken.keys()
    assert [found[path][:2] for path in broken] == [
        ("004", "image_empty"),
        ("005", "image_damaged"),
        ("008", "image_unknown"),
    ]
    assert all(path in detail for path, (_, _, detail) in found.items())
    assert made.samples == 21 and not verify(tmp_path / "mix").problems


def test_only_the_image_that_needs_it_is_changed(own: Path, tmp_path: Path) -> None:
    raw = damaged(own, tmp_path)
    (raw / "pictures/5/1.jpg").unlink()
    Image.new("RGBA", (50, 40), (200, 10, 10, 99)).save(raw / "pictures/5/1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32), "blue").save(raw / "pictures/5/3.jpg", exif=exif)
    make(raw, tmp_path / "mix")
    assert not verify(tmp_path / "mix").problems
    opened = open_mixture(tmp_path / "mix")
    row = next(row for row in index(tmp_path / "mix") if row["id"].startswith("mine/005"))
    assert [image["transform"] for image in row["images"]] == ["none", "reencoded", "none", "rotated", "none"]
    assert [(image["width"], image["height"]) for image in row["images"]] == [
        SIZES[0],
        (50, 40),
        SIZES[2],
        (32, 64),
        SIZES[4],
    ]
    sample = opened[opened.index_of(row["id"])]
    assert [image.size for image in sample.images_pil()] == [(i.width, i.height) for i in sample.images]
    for number in (0, 2, 4):
        assert sample.jpegs[number] == (raw / f"pictures/5/{number}.jpg").read_bytes()


def test_a_box_scales_with_the_image_that_it_is_in(tmp_path: Path) -> None:
    write_images(tmp_path, "x", 2)
    Image.new("RGB", (120, 160)).save(tmp_path / "x/1.jpg")
    boxes = ((4.0, 5.0, 14.0, 17.0), (8.0, 2.0, 20.0, 30.0), (1.0, 2.0, 3.0, 4.0))
    talk = Conversation(
        id="x",
        source="x",
        images=(ImageRef("x/0.jpg", 40, 30), ImageRef("x/1.jpg", 60, 80)),
        rounds=(Round("p", "", "grounding", boxes=boxes, box_images=(1, 0, 1)), Round("q", "a")),
    )
    facts = [probe(tmp_path / image.path) for image in talk.images]
    forms = [plan_storage(f, i.width, i.height, boxed=True) for f, i in zip(facts, talk.images, strict=True)]
    moved = scaled(talk, [form for form in forms if form is not None])
    assert moved.images == (ImageRef("x/0.jpg", 40, 30), ImageRef("x/1.jpg", 120, 160))
    assert moved.rounds[0].boxes == ((8, 10, 28, 34), boxes[1], (2, 4, 6, 8))
    assert moved.rounds[0].box_images == (1, 0, 1) and moved.rounds[1] == talk.rounds[1]


def test_boxes_in_further_images_are_built_and_read(tmp_path: Path) -> None:
    write_boxed(tmp_path)
    path = tmp_path / "boxed/2/1.jpg"
    Image.new("RGB", (2 * SIZES[1][0], 2 * SIZES[1][1])).save(path)
    made = make(tmp_path, tmp_path / "mix", {"boxed": {}})
    assert made.samples == 4 and not verify(tmp_path / "mix").problems
    for row in index(tmp_path / "mix"):
        assert row["conversations"][0]["value"].startswith("<image>\n" * row["num_images"])
        for number, box in enumerate(row["boxes"]):
            times = 2 if (row["id"], number) == ("boxed/2", 1) else 1
            corners = box["x1"], box["y1"], box["x2"], box["y2"]
            assert (box["round"], box["image"]) == (number, number)
            assert corners == tuple(times * corner for corner in (4, 5, 14, 17))
            size = row["images"][number]
            answer = row["conversations"][2 * number + 1]["value"]
            assert answer == square_text(corners, size["width"], size["height"])
            assert answer == square_text((4, 5, 14, 17), *SIZES[number]), "what the text says does not change"


def test_a_box_on_another_shape_names_the_image(tmp_path: Path) -> None:
    write_boxed(tmp_path)
    Image.new("RGB", (77, 20)).save(tmp_path / "boxed/2/1.jpg")
    made = make(tmp_path, tmp_path / "mix", {"boxed": {}})
    assert made.samples == 3 and made.rejects == {"boxed": {"image_size": 1}}
    ((id, _, image, detail),) = rejects_of(tmp_path / "mix")
    assert (id, image) == ("boxed/2", "boxed/2/1.jpg")
    assert detail == "boxed/2/1.jpg: the file is 77x20, the boxes were made on 60x80"


def test_a_sample_with_a_broken_image_gives_way_to_the_next_in_order(own: Path, tmp_path: Path) -> None:
    raw = damaged(own, tmp_path)
    entry = {"mine": {"builder": "llava_json", "path": "rows.json", "where": "num_images >= 3", "take": 6}}
    make(raw, tmp_path / "before", entry)
    before = [row["id"] for row in index(tmp_path / "before")]
    hit = index(tmp_path / "before")[0]
    (raw / hit["images"][2]["path"]).write_bytes(b"no image")
    make(raw, tmp_path / "after", entry)
    after = [row["id"] for row in index(tmp_path / "after")]
    assert len(after) == 6 and set(before) - set(after) == {hit["id"]}
