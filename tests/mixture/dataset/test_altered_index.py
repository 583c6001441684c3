"""An index with one value altered and its checksums made right again: `verify` finds it, and readers and exports raise
nothing but VlmixError."""

import contextlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import BOXED, reseal, write_boxed
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.schema import SAMPLES
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import FORMS, export
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.subset import Selection, subsample

SHARDS = [f"train/train-{number:06d}.tar" for number in range(3)]
SOURCES = {
    "sharegpt": {"take": 2},
    "vqav2": {"take": 3},
    "refcoco": {"take": 2},
    "vg": {"take": 2, "repeat": 1.5},
    "aokvqa": {"take": 2},
    "textcaps": {"take": 2},
    "boxed": {"take": 2},
}


@pytest.fixture(scope="module")
def tiny(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root`, 15 samples of up to five images in three shards, and `view`, a half of it. Read only."""
    folder, known = tmp_path_factory.mktemp("tiny"), {**known_sources(), "boxed": BOXED}
    recipe = parse({"name": "tiny", "order": "natural", "samples_per_shard": 5, "sources": SOURCES}, known)
    loose = write_boxed(tmp_path_factory.mktemp("loose"))
    made = build(recipe, known, raw, folder / "root", images=[loose])
    assert len(made.shards) == 3 and made.samples == 15
    open_mixture(folder / "root").subset(ratio=0.5).save(folder / "view")
    assert not verify(folder / "root").problems and not verify(folder / "view").problems
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "copy")
    return tmp_path / "copy"


def problems(folder: Path) -> list[str]:
    """What `vlmix verify` says; that there is no manifest is an error of its own."""
    try:
        return verify(folder).problems
    except VlmixError as error:
        return [str(error)]


def rewrite_index(folder: Path, table: pa.Table) -> None:
    """Another index, its row groups as before, and the manifest's checksum of it."""
    path = folder / "samples.parquet"
    groups = [pq.ParquetFile(path).metadata.row_group(i).num_rows for i in range(pq.ParquetFile(path).num_row_groups)]
    with pq.ParquetWriter(path, table.schema) as writer:
        start = 0
        for size in groups:
            writer.write_table(table.slice(start, size), row_group_size=max(size, 1))
            start += size
    reseal(folder)


def altered(column: str, change: Callable[[Any, dict[str, Any]], Any], where: Callable[[dict[str, Any]], bool]) -> Any:
    def alter(folder: Path, schema: pa.Schema) -> None:
        rows = pq.read_table(folder / "samples.parquet").to_pylist()
        row = next(row for row in rows if where(row))
        row[column] = change(row[column], row)
        rewrite_index(folder, pa.Table.from_pylist(rows, schema))

    return alter


def altered_all(change: Callable[[dict[str, Any]], dict[str, Any]], where: Callable[[dict[str, Any]], bool]) -> Any:
    """Several columns of a row at once."""

    def alter(folder: Path, schema: pa.Schema) -> None:
        rows = pq.read_table(folder / "samples.parquet").to_pylist()
        row = next(row for row in rows if where(row))
        row.update(change(row))
        rewrite_index(folder, pa.Table.from_pylist(rows, schema))

    return alter


def any_row(row: dict[str, Any]) -> bool:
    return True


def with_image(row: dict[str, Any]) -> bool:
    return row["image"] != ""


def without_image(row: dict[str, Any]) -> bool:
    return row["image"] == ""


def with_boxes(row: dict[str, Any]) -> bool:
    return bool(row["boxes"])


def with_several(row: dict[str, Any]) -> bool:
    return row["num_images"] > 2


def of(source: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: row["source"] == source


def moved(boxes: list[dict[str, Any]], **corners: float | None) -> list[dict[str, Any]]:
    return [{**boxes[0], **corners}, *boxes[1:]]


IMAGE = {"path": "a/b.jpg", "width": 8, "height": 8, "offset": 512, "size": 9, "xxh3": "0" * 32, "transform": "none"}


def image_alterations(number: int, where: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What may be wrong with the image `number` of a sample."""

    def image(key: str, change: Callable[[Any], Any]) -> Any:
        def other(images: list[dict[str, Any]], _: dict[str, Any]) -> list[dict[str, Any]]:
            return [{**one, key: change(one[key])} if at == number else one for at, one in enumerate(images)]

        return altered("images", other, where)

    return {
        **{f"null {key}": image(key, lambda old: None) for key in IMAGE},
        "another path": image("path", lambda old: "a/b.jpg"),
        "climbing path": image("path", lambda old: "../../b.jpg"),
        "empty path": image("path", lambda old: ""),
        "another width": image("width", lambda old: old + 1),
        "negative height": image("height", lambda old: -old),
        "width 0": image("width", lambda old: 0),
        "offset -1": image("offset", lambda old: -1),
        "offset 0": image("offset", lambda old: 0),
        "offset moved": image("offset", lambda old: old + 512),
        "size 2^62": image("size", lambda old: 2**62),
        "size 2^63-1": image("size", lambda old: 2**63 - 1),
        "size -1": image("size", lambda old: -1),
        "size 0": image("size", lambda old: 0),
        "size less": image("size", lambda old: old - 1),
        "another xxh3": image("xxh3", lambda old: "0" * 32),
        "empty xxh3": image("xxh3", lambda old: ""),
        "unknown transform": image("transform", lambda old: "painted"),
        "empty transform": image("transform", lambda old: ""),
    }


ALTERATIONS: dict[str, Any] = {
    **{f"null {name}": altered(name, lambda old, row: None, with_image) for name in SAMPLES.names},
    "another id": altered("id", lambda old, row: old + "x", any_row),
    "empty id": altered("id", lambda old, row: "", any_row),
    "another key": altered("key", lambda old, row: "000000099", any_row),
    "another source": altered("source", lambda old, row: "vg", of("vqav2")),
    "unknown source": altered("source", lambda old, row: "nobody", any_row),
    "another image": altered("image", lambda old, row: "a/b.jpg", with_image),
    "climbing image": altered("image", lambda old, row: "../../b.jpg", with_image),
    "no image": altered("image", lambda old, row: "", with_image),
    "an image more": altered("image", lambda old, row: "a/b.jpg", without_image),
    "another width": altered("width", lambda old, row: old + 1, with_image),
    "negative height": altered("height", lambda old, row: -old, with_image),
    "num_rounds": altered("num_rounds", lambda old, row: old + 1, any_row),
    "no rounds": altered("num_rounds", lambda old, row: 0, any_row),
    "num_words": altered("num_words", lambda old, row: old + 1, any_row),
    "negative words": altered("num_words", lambda old, row: -1, any_row),
    "repeat of 2^31-1": altered("repeat", lambda old, row: 2**31 - 1, any_row),
    "repeat of 3": altered("repeat", lambda old, row: 3, of("vg")),
    "repeat of 2": altered("repeat", lambda old, row: 2, of("vqav2")),
    "negative repeat": altered("repeat", lambda old, row: -1, any_row),
    "repeat of 0": altered("repeat", lambda old, row: 0, any_row),
    "duplicate ordinal": altered("natural_index", lambda old, row: old + 1, any_row),
    "negative ordinal": altered("natural_index", lambda old, row: -1, any_row),
    "large ordinal": altered("natural_index", lambda old, row: 2**40, any_row),
    "unknown shard": altered("shard", lambda old, row: "train/train-000009.tar", any_row),
    "no shard": altered("shard", lambda old, row: "", any_row),
    "another shard": altered("shard", lambda old, row: SHARDS[2], any_row),
    "num_images": altered("num_images", lambda old, row: old + 1, with_several),
    "num_images of 0": altered("num_images", lambda old, row: 0, with_image),
    "num_images of no image": altered("num_images", lambda old, row: 1, without_image),
    **{f"{name} of an image": change for name, change in image_alterations(0, with_image).items()},
    **{f"{name} of a further image": change for name, change in image_alterations(2, with_several).items()},
    "images of a text": altered("images", lambda old, row: [IMAGE], without_image),
    "a null image of a text": altered("images", lambda old, row: [None], without_image),
    "an image less": altered("images", lambda old, row: old[:-1], with_several),
    "the first image less": altered("images", lambda old, row: old[1:], with_several),
    "no image of one": altered("images", lambda old, row: [], with_image),
    "an image twice": altered("images", lambda old, row: [*old, old[-1]], with_several),
    "images reversed": altered("images", lambda old, row: old[::-1], with_several),
    "further images exchanged": altered("images", lambda old, row: [old[0], old[2], old[1], *old[3:]], with_several),
    "null image": altered("images", lambda old, row: [None, *old[1:]], with_several),
    "null further image": altered("images", lambda old, row: [*old[:-1], None], with_several),
    "an image of its own less, and its number": altered_all(
        lambda row: {"images": row["images"][:-1], "num_images": row["num_images"] - 1}, with_several
    ),
    "json_offset -1": altered("json_offset", lambda old, row: -1, any_row),
    "json_offset 2^62": altered("json_offset", lambda old, row: 2**62, any_row),
    "json_offset moved": altered("json_offset", lambda old, row: old + 1, any_row),
    "json_size 2^62": altered("json_size", lambda old, row: 2**62, any_row),
    "json_size -1": altered("json_size", lambda old, row: -1, any_row),
    "json_size 0": altered("json_size", lambda old, row: 0, any_row),
    "another text": altered("conversations", lambda old, row: [*old[:-1], {"from": "gpt", "value": "no"}], any_row),
    "a turn less": altered("conversations", lambda old, row: old[:-1], any_row),
    "no turns": altered("conversations", lambda old, row: [], any_row),
    "null turn": altered("conversations", lambda old, row: [None, *old[1:]], any_row),
    "null text": altered("conversations", lambda old, row: [{"from": "human", "value": None}, *old[1:]], any_row),
    "another role": altered("conversations", lambda old, row: [{**old[0], "from": "system"}, *old[1:]], any_row),
    "unknown format": altered("response_formats", lambda old, row: ["poem", *old[1:]], any_row),
    "a format more": altered("response_formats", lambda old, row: [*old, "free"], any_row),
    "null format": altered("response_formats", lambda old, row: [None, *old[1:]], any_row),
    "a caption called an answer": altered("response_formats", lambda old, row: ["short_answer"], of("textcaps")),
    "a caption called a choice": altered("response_formats", lambda old, row: ["choice"], of("textcaps")),
    "an answer called grounding": altered("response_formats", lambda old, row: ["grounding", *old[1:]], of("vqav2")),
    "no boxes": altered("boxes", lambda old, row: [], with_boxes),
    "a box less": altered("boxes", lambda old, row: old[1:], with_boxes),
    "boxes out of order": altered("boxes", lambda old, row: old[::-1], with_boxes),
    "box moved": altered("boxes", lambda old, row: moved(old, x1=0.0, y1=0.0, x2=row["width"], y2=1.0), with_boxes),
    "box of nan": altered("boxes", lambda old, row: moved(old, x1=math.nan), with_boxes),
    "box of inf": altered("boxes", lambda old, row: moved(old, x2=math.inf), with_boxes),
    "box reversed": altered("boxes", lambda old, row: moved(old, x2=old[0]["x1"] - 1), with_boxes),
    "box outside": altered("boxes", lambda old, row: moved(old, x1=5000.0, x2=5001.0), with_boxes),
    "box of nothing": altered("boxes", lambda old, row: [{**old[0], "round": 99}, *old[1:]], with_boxes),
    "box of no image": altered("boxes", lambda old, row: moved(old, image=99), with_boxes),
    "box of the image after the last": altered("boxes", lambda old, row: moved(old, image=1), of("refcoco")),
    "box of a negative image": altered("boxes", lambda old, row: moved(old, image=-1), with_several),
    "box of null for an image": altered("boxes", lambda old, row: moved(old, image=None), with_several),
    "box of another image": altered("boxes", lambda old, row: moved(old, image=1), with_several),
    "boxes of the first image": altered("boxes", lambda old, row: [{**box, "image": 0} for box in old], with_several),
    "null corner": altered("boxes", lambda old, row: [{**old[0], "x1": None}, *old[1:]], with_boxes),
    "a box more": altered(
        "boxes", lambda old, row: [{"round": 0, "image": 0, "x1": 9.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}], of("vqav2")
    ),
    "origin of no JSON": altered("extra", lambda old, row: "{", any_row),
    "origin of a list": altered("extra", lambda old, row: "[1]", any_row),
    "origin of a number": altered("extra", lambda old, row: "7", any_row),
    "origin nested": altered("extra", lambda old, row: "[" * 100_000, any_row),
    "origin of other turns": altered("extra", lambda old, row: '{"conversations": [1]}', any_row),
    "origin with text for turns": altered("extra", lambda old, row: '{"conversations": "abc"}', any_row),
    "origin with other turns": altered("extra", lambda old, row: '{"conversations": [{}]}', any_row),
}


def read_all(folder: Path) -> None:
    """All samples, the index, the order: a VlmixError or nothing."""
    try:
        opened = open_mixture(folder)
        opened.schedule(2).batch(0)
        list(opened.turns())
    except VlmixError:
        return
    for position in range(len(opened)):
        with contextlib.suppress(VlmixError):
            opened[position]


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_index_with_right_checksums_is_found(copy: Path, name: str) -> None:
    root = copy / "root"
    ALTERATIONS[name](root, SAMPLES)
    found = problems(root)
    assert found and all("bytes differ" not in problem for problem in found), "the checksums are right"
    read_all(root)
    export_or_say(root, copy, ["llava-json", "wids"])


def export_or_say(root: Path, out: Path, forms: list[str]) -> None:
    """Exports and a view: each is made, or says in a line why not."""
    for form in forms:
        try:
            export(root, form, out / form)
        except VlmixError as error:
            assert "\n" not in str(error)
    try:
        subsample(root, out / "half", Selection(ratio=0.5))
    except VlmixError as error:
        assert "\n" not in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERATIONS)
def test_every_export_of_an_altered_index_is_made_or_says_why_not(copy: Path, name: str) -> None:
    ALTERATIONS[name](copy / "root", SAMPLES)
    export_or_say(copy / "root", copy, list(FORMS))


def test_a_rewritten_index_without_alterations_is_sound(copy: Path) -> None:
    """What the alterations rest on."""
    rewrite_index(copy / "root", pq.read_table(copy / "root/samples.parquet"))
    assert not problems(copy / "root")
