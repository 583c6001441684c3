"""Every damage to a mixture is found, and none ends in anything but a report."""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.helpers import BOXED, forge, reseal, write_boxed
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.dataset.view import save_copy
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import export
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.storage import Remote
from vlmix.mixture.mixture import open as open_mixture

SHARD = "train/train-000001.tar"


@pytest.fixture(scope="module")
def small(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of five samples, with one image and several, boxes, rejects and text."""
    out = tmp_path_factory.mktemp("small") / "small"
    sources = {"vqav2": {"take": 5}, "refcoco": {"take": 3}, "sharegpt": {"take": 3}, "boxed": {}}
    known = {**known_sources(), "boxed": BOXED}
    recipe = parse({"name": "small", "sources": sources, "samples_per_shard": 5}, known)
    manifest = build(recipe, known, raw, out, images=[write_boxed(out.with_name("loose"))])
    assert len(manifest.shards) == 3 and manifest.rejects
    return out


@pytest.fixture(scope="module")
def view(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = small.with_name("view")
    open_mixture(small).subset(total=8).save(out)
    return out


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    shutil.copytree(small, tmp_path / "small")
    return tmp_path / "small"


def problems(folder: Path) -> list[str]:
    try:
        return verify(folder).problems
    except VlmixError as error:
        return [str(error)]


@pytest.mark.parametrize("kind", ["small", "view"])
def test_every_bit_of_a_manifest_is_covered(kind: str, small: Path, view: Path) -> None:
    data = bytearray(({"small": small, "view": view}[kind] / "manifest.json").read_bytes())
    manifests.parse(bytes(data), "manifest.json")
    missed = []
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            try:
                manifests.parse(bytes(data), "manifest.json")
                missed.append((at, bit))
            except VlmixError:
                pass
            data[at] ^= 1 << bit
    assert not missed


def flips(folder: Path, name: str, count: int) -> list[int]:
    """Bits of a file that can be flipped without anybody noticing; by a seed that a failure prints."""
    seed = int(os.environ.get("VLMIX_SEED", random.SystemRandom().randrange(2**32)))
    print(f"VLMIX_SEED={seed}")
    path, rng = folder / name, random.Random(f"{seed} {name}")
    sound = path.read_bytes()
    missed = []
    for _ in range(count):
        bit = rng.randrange(8 * len(sound))
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        if not problems(folder):
            missed.append(bit)
    path.write_bytes(sound)
    assert not problems(folder)
    return missed


@pytest.mark.parametrize("name", ["README.md", "rejects.parquet", "samples.parquet", SHARD])
def test_any_bit_of_a_file_is_seen(copy: Path, name: str) -> None:
    assert not flips(copy, name, 20)


@pytest.mark.parametrize("name", ["README.md", "samples.parquet"])
def test_any_bit_of_a_view_is_seen(copy: Path, name: str) -> None:
    out = copy.with_name("view")
    open_mixture(copy).subset(total=8).save(out)
    assert not flips(out, name, 20)
    assert not flips(copy, "samples.parquet", 5)


def test_a_view_of_a_damaged_index_is_seen(copy: Path) -> None:
    out = copy.with_name("view")
    open_mixture(copy).subset(total=8).save(out)
    path = copy / "samples.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert any("samples.parquet: missing, or differs" in problem for problem in problems(out))


@pytest.mark.fuzz
def test_500_bits_of_every_file(copy: Path) -> None:
    for name in files(copy):
        assert not flips(copy, name, 500), name


@pytest.mark.parametrize("kind", ["small", "view"])
def test_a_file_that_is_gone_or_short_is_seen(kind: str, copy: Path) -> None:
    folder = copy
    if kind == "view":
        folder = copy.with_name("view")
        open_mixture(copy).subset(total=8).save(folder)
    for name in files(folder):
        path = folder / name
        data = path.read_bytes()
        for short in (None, b"", data[: len(data) // 2], data[:-1], data + b"\0"):
            path.unlink()
            if short is not None:
                path.write_bytes(short)
            assert problems(folder), (name, short and len(short))
            path.write_bytes(data)
    assert not problems(folder)


def test_damage_does_not_hide_other_damage(copy: Path) -> None:
    for name in ("README.md", "rejects.parquet", SHARD):
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (copy / name).write_bytes(data)
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    found = "\n".join(problems(copy))
    for name in ("README.md", "rejects.parquet", SHARD, "manifest.json"):
        assert f"{name}: " in found


def test_a_mixture_that_is_sealed_again_unchanged_is_sound(copy: Path) -> None:
    reseal(copy)
    assert not problems(copy)


Row = dict[str, Any]


def second(rows: list[Row]) -> int:
    return 1


def boxed(rows: list[Row]) -> int:
    """A row with several images and a box in each."""
    return next(at for at, row in enumerate(rows) if row["num_images"] > 2)


def refcoco(rows: list[Row]) -> int:
    """A row with one image and boxes in it."""
    return next(at for at, row in enumerate(rows) if row["source"] == "refcoco")


def column(name: str, value: Any, row: Callable[[list[Row]], int] = second) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / "samples.parquet"
        table = pq.read_table(path)
        values = table[name].to_pylist()
        number = row(table.to_pylist())
        values[number] = value(values[number], values) if callable(value) else value
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))
        pq.write_table(table, path, row_group_size=5)

    return change


def image(number: int, key: str, value: Any) -> Callable[[Path], None]:
    """Another `key` of the image `number` of a row that has several."""

    def changed(images: list[Row], _: Any) -> list[Row]:
        new = value(images[number][key], images) if callable(value) else value
        return [{**one, key: new} if at == number else one for at, one in enumerate(images)]

    return column("images", changed, boxed)


def of_images(change: Callable[[list[Row]], Any]) -> Callable[[Path], None]:
    return column("images", lambda was, _: change(was), boxed)


def of_box(row: Callable[[list[Row]], int] = boxed, number: int = 1, **changes: Any) -> Callable[[Path], None]:
    return column(
        "boxes", lambda was, _: [{**box, **(changes if i == number else {})} for i, box in enumerate(was)], row
    )


def forged_images(number: int) -> dict[str, Callable[[Path], None]]:
    """What may be wrong with the image `number` of several."""
    forged = {
        "another path": image(number, "path", "coco/other.jpg"),
        "a path outside": image(number, "path", "../../x.jpg"),
        "no path": image(number, "path", ""),
        "a null path": image(number, "path", None),
        "more width": image(number, "width", lambda was, _: was + 1),
        "a negative height": image(number, "height", lambda was, _: -was),
        "no width": image(number, "width", None),
        "a negative place": image(number, "offset", -1),
        "a place at 0": image(number, "offset", 0),
        "the place of the next": image(number, "offset", lambda _, all: all[number + 1]["offset"]),
        "a place past the end": image(number, "offset", 2**40),
        "no place": image(number, "offset", None),
        "a huge size": image(number, "size", 2**62),
        "a larger size": image(number, "size", lambda was, _: was + 1),
        "a smaller size": image(number, "size", lambda was, _: was - 1),
        "a negative size": image(number, "size", -1),
        "size 0": image(number, "size", 0),
        "another hash": image(number, "xxh3", "00"),
        "the hash of the next": image(number, "xxh3", lambda _, all: all[number + 1]["xxh3"]),
        "no hash": image(number, "xxh3", ""),
        "another transform": image(number, "transform", "painted"),
        "no transform": image(number, "transform", ""),
        "a null transform": image(number, "transform", None),
    }
    return {f"{name} of image {number}": change for name, change in forged.items()}


FORGED: dict[str, Callable[[Path], None]] = {
    "no id": column("id", None),
    "an id of another": column("id", lambda _, all: all[0]),
    "another id": column("id", "x"),
    "another source": column("source", "vqav3"),
    "another image": column("image", "coco/other.jpg"),
    "an image outside": column("image", "../../x.jpg"),
    "a wide image": column("width", lambda was, _: was + 1),
    **forged_images(0),
    **forged_images(1),
    "more images": column("num_images", lambda was, _: was + 1, boxed),
    "fewer images": column("num_images", 1, boxed),
    "no number of images": column("num_images", None, boxed),
    "a negative number of images": column("num_images", -1, boxed),
    "a billion images": column("num_images", 2**30, boxed),
    "an image missing at the front": of_images(lambda was: was[1:]),
    "an image missing at the end": of_images(lambda was: was[:-1]),
    "no image but the first": of_images(lambda was: was[:1]),
    "no images": of_images(lambda was: []),
    "null for images": of_images(lambda was: None),
    "null for an image": of_images(lambda was: [was[0], None, *was[2:]]),
    "an image twice": of_images(lambda was: [*was, was[-1]]),
    "a null image more": of_images(lambda was: [*was, None]),
    "a thousand images": of_images(lambda was: was * 1000),
    "images in another order": of_images(lambda was: [was[0], *was[:0:-1]]),
    "two images exchanged": of_images(lambda was: [was[1], was[0], *was[2:]]),
    "more rounds": column("num_rounds", lambda was, _: was + 1),
    "a billion rounds": column("num_rounds", 2**30),
    "more words": column("num_words", lambda was, _: was + 1),
    "no words": column("num_words", None),
    "many repeats": column("repeat", 2**31 - 1),
    "few repeats": column("repeat", -1),
    "an ordinal of another": column("natural_index", lambda _, all: all[0]),
    "a negative ordinal": column("natural_index", -5),
    "another shard": column("shard", "train/train-000002.tar"),
    "a shard that is none": column("shard", "x" * 5000),
    "a place past the end": column("json_offset", 2**40),
    "a huge size": column("json_size", 2**62),
    "a small size": column("json_size", 10),
    "fewer formats": column("response_formats", []),
    "another format": column("response_formats", lambda was, _: ["shortanswer"] * len(was)),
    "a box of no round": of_box(round=99),
    "a box outside": of_box(x2=1e6),
    "a box outside its image, inside another": of_box(x1=44.0, x2=54.0, number=0),
    "a box that is none": of_box(x1=float("nan")),
    "a box elsewhere": of_box(x1=2.0),
    "a box elsewhere in the one image": of_box(refcoco, 0, x1=0.0, y1=0.0),
    "a box of no image": of_box(image=99),
    "a box of the image after the last": of_box(refcoco, 0, image=1),
    "a box of a negative image": of_box(image=-1),
    "a box of null for an image": of_box(image=None),
    "a box of another image": of_box(image=0),
    "a box of another image, first": of_box(image=1, number=0),
    "a box less": column("boxes", lambda was, _: was[:-1], boxed),
    "a box more": column("boxes", lambda was, _: [*was, was[-1]], boxed),
    "boxes in another order": column("boxes", lambda was, _: was[::-1], boxed),
    "a format of others": column("response_formats", lambda was, _: ["choice"] * len(was)),
    "another origin": column("extra", "{"),
    "a deep origin": column("extra", "[" * 100_000),
    "another text": column("conversations", [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]),
    "turns of one": column("conversations", lambda was, _: [{**turn, "from": "human"} for turn in was]),
    "another key": column("key", "000000099"),
}


@pytest.mark.parametrize("what", FORGED)
def test_an_index_that_contradicts_itself_is_seen_whatever_its_checksum(copy: Path, what: str, tmp_path: Path) -> None:
    FORGED[what](copy)
    reseal(copy)
    assert problems(copy)
    # Readers may read it or say what is wrong, but nothing else.
    with contextlib.suppress(VlmixError):
        assert all(sample.conversations for sample in open_mixture(copy))
    for form in ("llava-json", "trl"):
        with contextlib.suppress(VlmixError):
            export(copy, form, tmp_path / form)


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain["sources"]["vqav2"]["counts"].update(words=1),
        lambda plain: plain["sources"]["vqav2"]["counts"].update(samples_per_epoch=99),
        lambda plain: plain["rejects"].clear(),
        lambda plain: plain["checksums"].pop("samples.parquet"),
        lambda plain: plain["checksums"].pop("rejects.parquet"),
    ],
)
def test_counts_that_do_not_add_up_are_seen(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    reseal(copy, change)
    assert problems(copy)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret", "train/../../secret"])
def test_files_outside_the_folder_are_not_looked_at(copy: Path, name: str) -> None:
    secret = copy.parent.parent / "secret"
    secret.write_text("x")
    reseal(copy, lambda plain: plain["checksums"].update({name: sha256(secret)}))
    found = problems(copy)
    assert any("leaves the folder" in problem for problem in found)
    assert not any("sound" in problem for problem in found)
    with pytest.raises(VlmixError, match="leaves the folder"):
        open_mixture(copy)


@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet", "README.md", "rejects.parquet", SHARD])
@pytest.mark.parametrize("special", ["pipe", "device", "loop", "outside"])
def test_special_files_are_reported_and_not_opened(copy: Path, name: str, special: str, tmp_path: Path) -> None:
    path = copy / name
    (tmp_path / "kept").write_bytes(path.read_bytes())
    path.unlink()
    if special == "pipe":
        os.mkfifo(path)
    else:
        target = {"device": "/dev/zero", "loop": path, "outside": tmp_path / "kept"}[special]
        path.symlink_to(target)
    found = problems(copy)
    if special == "outside" and name == "manifest.json":
        return  # what it says is covered by its checksum, wherever it lies
    assert any(name in problem for problem in found), found
    if name == "samples.parquet" and special != "outside":
        with pytest.raises((VlmixError, OSError)):
            open_mixture(copy)[0]


def test_a_shard_path_of_thousands_of_letters_is_reported(copy: Path) -> None:
    def change(plain: dict[str, Any]) -> None:
        plain["shards"][0]["path"] = "train/" + "x" * 5000

    with pytest.raises(OSError, match="too long"):
        reseal(copy, change)
    plain = json.loads((copy / "manifest.json").read_text())
    change(plain)
    forge(copy, plain)
    assert any("too long" in problem for problem in problems(copy))


def test_a_letter_that_is_none_is_one_problem_and_one_error(copy: Path) -> None:
    frame = pl.read_parquet(copy / "samples.parquet").filter(pl.col("shard") == SHARD)
    path = copy / SHARD
    data = bytearray(path.read_bytes())
    start = frame["json_offset"][0]
    at = data.index(b'"value":"', start) + 12
    data[at] ^= 0x80
    path.write_bytes(data)
    assert sum("is no sample" in problem for problem in problems(copy)) == 1
    mixture = open_mixture(copy)
    with pytest.raises(VlmixError, match="lists all damage"):
        mixture[int(frame["key"][0])]


def test_a_copy_of_a_part_that_a_program_chose_is_sound(copy: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    open_mixture(copy)[3:11].save(part)
    save_copy(open_mixture(part), tmp_path / "whole", [])
    assert not problems(part) and not problems(tmp_path / "whole")


def test_a_view_at_a_url_stays_on_its_host() -> None:
    view = Remote("memory://bucket/views/a")
    assert view.join("../../root").url == "memory://bucket/root"
    for path in ("../../../other/root", "../../..", "/other/root"):
        with pytest.raises(VlmixError, match="leaves its host or bucket"):
            view.join(path)
