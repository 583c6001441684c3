"""Builds whose raw files and pictures are in object stores, against the same builds from disk."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlmix
from tests.helpers import hashes, vlmix_here, write_images
from tests.mixture.build.test_overlaps_in_build import BY_ALL, make, planted
from tests.stores import BUCKET, Proxy, Store
from vlmix.builders import benchmark_named, known_sources
from vlmix.mixture.build import build as builds
from vlmix.mixture.build.recipe import Recipe, parse
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import storage
from vlmix.mixture.io.storage import Remote

pytestmark = [pytest.mark.slow, pytest.mark.processes]
__all__ = ["planted"]
Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def images(moto: Store, raw: Path) -> str:
    """An image root, of COCO alone."""
    return moto.put_folder(raw / "coco", "pictures/coco").removesuffix("/coco")


@pytest.fixture(scope="module")
def address(moto: Store, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The releases without COCO's pictures."""
    folder = tmp_path_factory.mktemp("address") / "raw"
    shutil.copytree(raw, folder, ignore=shutil.ignore_patterns("coco"))
    return moto.put_folder(folder, "raw")


@pytest.fixture(scope="module")
def okvqa(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OK-VQA's mixture, built from disk."""
    out = tmp_path_factory.mktemp("okvqa") / "mixture"
    build(recipe(okvqa={}), raw, out)
    return out


@pytest.fixture
def notes(moto: Store, raw: Path, tmp_path: Path) -> tuple[str, Path]:
    """(URL, folder) of OK-VQA's annotations, which a test may change."""
    folder = tmp_path / "own"
    shutil.copytree(raw / "okvqa", folder / "okvqa")
    return moto.put_folder(folder, tmp_path.name), folder


@pytest.fixture(scope="module")
def own(moto: Store, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The same, with its pictures, for all tests: in the store is what is in the folder."""
    folder = tmp_path_factory.mktemp("own") / "raw"
    for name in ("okvqa", "coco"):
        shutil.copytree(raw / name, folder / name)
    return moto.put_folder(folder, "own"), folder


def key(url: str) -> str:
    return url.removeprefix(f"s3://{BUCKET}/")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.001)


def recipe(**sources: dict[str, Any]) -> Recipe:
    return parse({"name": "x", "samples_per_shard": 20, "sources": sources}, known_sources())


def build(asked: Recipe, raw: str | Path, out: Path, **options: Any) -> dict[str, str]:
    builds.build(asked, known_sources(), raw, out, **options)
    return hashes(out)


def fetched(proxy: Proxy, what: str) -> list[str]:
    """The requests for the bytes of files whose keys hold `what`."""
    return [line for line, _ in proxy.requests if line.startswith("GET /") and "list-type" not in line and what in line]


def test_the_command_builds_the_same_bytes_behind_a_store_in_trouble(
    proxy: Proxy, address: str, images: str, mixture: Path, tmp_path: Path
) -> None:
    proxy.set(fail=0.05, cut=0.05, seed=3)
    places = ["--raw", f"{address}/", "--images", images, "--out", tmp_path / "mixture"]
    done = vlmix_here("build", "sample", *places, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "mixture") == hashes(mixture)
    assert proxy.troubled > 50


def test_a_plan_is_that_from_disk_and_fetches_no_picture(
    proxy: Proxy, address: str, images: str, raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text("{name: small, sources: {okvqa: {}, textcaps: {}, vg: {take: 10}}}")
    small = ["plan", tmp_path / "small.yaml", "--workers", 1, "--json", "--raw"]
    here, there = vlmix_here(*small, raw), vlmix_here(*small, address, "--images", images)
    assert there.returncode == 0 and there.stdout == here.stdout, there.stderr
    assert fetched(proxy, ".json") and not fetched(proxy, ".jpg")


def test_workers_and_another_check_make_the_same(
    proxy: Proxy, address: str, images: str, raw: Path, tmp_path: Path
) -> None:
    asked = recipe(okvqa={}, textcaps={}, vg={"take": 10})
    here = build(asked, raw, tmp_path / "here", check="header")
    assert build(asked, address, tmp_path / "there", images=[images], check="header", workers=2) == here


def test_a_server_without_conditional_puts_gives_the_same(
    rclone: Store, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "raw"
    for folder in ("textcaps", "textvqa"):
        shutil.copytree(raw / folder, small / folder)
    url = rclone.put_folder(small, "raw")
    rclone.use(monkeypatch)
    assert build(recipe(textcaps={}), url, tmp_path / "there") == build(recipe(textcaps={}), small, tmp_path / "here")


def write_rows(folder: Path, name: str, pictures: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"image": each, "question": f"What is {name} {i}?", "answer": f"{i}"} for i, each in enumerate(pictures)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "options",
    [
        {"path": "a.jsonl", "image_root": "shots"},  # below RAW, where the table is in RAW/rows
        {"path": "deep/[set]/b.jsonl"},  # a folder with brackets, pictures beside the table
        {"path": "deep/*/?.jsonl"},
        {"path": "deep/**/*.jsonl"},
        {"path": "deep"},
    ],
    ids=str,
)
def test_rows_of_ones_own_with_loose_pictures(
    proxy: Proxy, moto: Store, tmp_path: Path, options: dict[str, Any]
) -> None:
    raw = tmp_path / "raw"
    write_rows(raw / "rows", "a", write_images(raw / "shots", "one"))
    write_rows(raw / "deep/[set]", "b", write_images(raw / "deep/[set]", "two"))
    write_rows(raw / "other", "c", write_images(raw / "other", "three"))
    url = moto.put_folder(raw, "tables")
    asked = recipe(mine={"builder": "rows", **options})
    assert build(asked, url, tmp_path / "there") == build(asked, raw, tmp_path / "here")
    assert not fetched(proxy, "c.jsonl") and len(vlmix.open(tmp_path / "there")) == 5


def test_an_image_root_may_be_a_url(proxy: Proxy, moto: Store, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", "a", write_images(tmp_path / "shots", "one"))
    url = moto.put_folder(tmp_path / "shots", "shots")
    for at, root in enumerate(("shots", url)):
        build(recipe(mine={"builder": "rows", "path": "a.jsonl", "image_root": root}), tmp_path, tmp_path / str(at))
    assert list(vlmix.open(tmp_path / "0")) == list(vlmix.open(tmp_path / "1"))
    with pytest.raises(VlmixError, match="image_root s3://bucket/none: there is no such folder"):
        asked = recipe(mine={"builder": "rows", "path": "a.jsonl", "image_root": "s3://bucket/none"})
        build(asked, tmp_path, tmp_path / "none")


def test_evaluation_sets_are_read_from_there(proxy: Proxy, moto: Store, planted: Path, tmp_path: Path) -> None:
    url = moto.put_folder(planted, "planted")
    wanted: dict[str, Any] = {"dedup": {"drop": ["near"]}, "decontaminate": [BY_ALL]}
    for place, out in ((planted, "here"), (url, "there")):
        make(place, tmp_path / out, {"one": {}, "two": {}}, **wanted)  # type: ignore[arg-type]
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    with pytest.raises(VlmixError, match="pope: s3://bucket/planted/EVAL/coco_pope_adversarial.json .* is missing"):
        sources = {"one": {"builder": "llava_json", "path": "one.json"}}
        pope = {"name": "x", "sources": sources, "decontaminate": [{"benchmark": "pope", "data": "EVAL"}]}
        build(parse(pope, known_sources()), url, tmp_path / "none", benchmark=benchmark_named)
    with pytest.raises(VlmixError, match="there is nothing below s3://bucket/planted/NOWHERE"):
        make(url, tmp_path / "none", {"one": {}}, decontaminate=[{**BY_ALL, "data": "NOWHERE"}])  # type: ignore[arg-type]


KILLED = """
import os, signal, sys
from tests.mixture.build.test_store_inputs import build, recipe
from pathlib import Path
def stop(stage, done, total):
    if stage == "writing shards" and done == 1:
        os.kill(os.getpid(), signal.SIGKILL)
build(recipe(okvqa={}), sys.argv[1], Path(sys.argv[2]), progress=stop)
"""


def test_a_killed_build_fetches_what_is_left_and_what_was_changed(
    proxy: Proxy, own: tuple[str, Path], okvqa: Path, moto: Store, tmp_path: Path
) -> None:
    (url, folder), out = own, tmp_path / "there"
    killed = subprocess.run([sys.executable, "-c", KILLED, url, str(out)], env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    examined, written = len(fetched(proxy, ".jpg")), 20
    proxy.set()
    whole, samples = hashes(okvqa), vlmix.open(okvqa)
    partial = tmp_path / "there.partial"
    shutil.copytree(partial, tmp_path / "again.partial")
    assert build(recipe(okvqa={}), url, out) == whole
    assert not fetched(proxy, "okvqa")
    assert len(fetched(proxy, ".jpg")) == examined - 2 * written  # whose pictures were examined and written before

    image = samples[30].image
    picture = Image.open(io.BytesIO(samples[30].jpeg))
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(folder / image)
    name = "okvqa/mscoco_val2014_annotations.json"
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    for changed in (image, name):
        moto.client().upload_file(str(folder / changed), BUCKET, f"{key(url)}/{changed}")
    proxy.set()
    there, here = (
        build(recipe(okvqa={}), place, tmp_path / name) for place, name in ((url, "again"), (folder, "anew"))
    )
    assert there == here != whole
    assert fetched(proxy, "okvqa") == [f"GET /bucket/{key(url)}/{name} HTTP/1.1"]
    assert len(fetched(proxy, image)) == 2  # examined anew, and written


@pytest.mark.parametrize(
    ("number", "stage", "data", "said"),
    [
        (31, "writing shards", lambda old: old[:-2] + b"\0\0", "changed during the build; run it again"),
        (32, "writing shards", lambda old: old + b"\0", "changed during the build: it has"),
        (33, "writing shards", None, "No such file"),
        (34, "checking images", lambda old: b"short", "changed during the build: it has 5 bytes"),
        (35, "checking images", None, "changed during the build: it is gone"),
    ],
)
def test_a_picture_that_changes_meanwhile_is_an_error(
    proxy: Proxy,
    own: tuple[str, Path],
    okvqa: Path,
    moto: Store,
    tmp_path: Path,
    number: int,
    stage: str,
    data: Change | None,
    said: str,
) -> None:
    (url, folder), image = own, vlmix.open(okvqa)[number].image

    def change(now: str, done: int, total: int) -> None:
        if now == stage and not done:
            put(moto, f"{url}/{image}", None if data is None else data((folder / image).read_bytes()))

    with pytest.raises(VlmixError, match=f"{url}/{image}.*{said}"):
        build(recipe(okvqa={}), url, tmp_path / "there", progress=change)
    assert not (tmp_path / "there").exists()
    put(moto, f"{url}/{image}", (folder / image).read_bytes())


@pytest.mark.parametrize(("data", "said"), [(lambda old: old[:-1] + b"\n", "changed"), (None, "removed")])
def test_a_raw_file_that_changes_while_it_is_copied_is_an_error(
    proxy: Proxy, notes: tuple[str, Path], moto: Store, tmp_path: Path, data: Change | None, said: str
) -> None:
    (url, folder), name = notes, "okvqa/mscoco_val2014_annotations.json"

    def change(now: str, done: int, total: int) -> None:
        if now == "fetching raw files" and not done:
            put(moto, f"{url}/{name}", None if data is None else data((folder / name).read_bytes()))

    with pytest.raises(VlmixError, match=f"{url}/{name} was {said} while it was copied"):
        build(recipe(okvqa={}), url, tmp_path / "there", progress=change)
    assert not (tmp_path / "there.partial/work/sources/raw" / name).exists()


def put(store: Store, url: str, data: bytes | None) -> None:
    """Put an object, or (None) delete it."""
    if data is None:
        store.client().delete_object(Bucket=BUCKET, Key=key(url))
    else:
        store.client().put_object(Bucket=BUCKET, Key=key(url), Body=data)


def test_large_files_are_fetched_in_pieces(
    proxy: Proxy, address: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmix.mixture.build.raw_copy._PIECE", 1000)
    monkeypatch.setattr(storage, "_MOST_TOGETHER", 1000)
    monkeypatch.setattr(storage, "_BYTES_AHEAD", 3000)
    proxy.set(fail=0.1, cut=0.1, seed=5)
    asked = recipe(okvqa={})
    here = build(asked, raw, tmp_path / "here", annotations_only=True)
    assert build(asked, address, tmp_path / "there", annotations_only=True) == here
    name = "mscoco_val2014_annotations.json"
    assert len(fetched(proxy, name)) >= (raw / "okvqa" / name).stat().st_size // 1000


def test_a_refusal_or_an_outage_is_no_missing_picture(
    proxy: Proxy, address: str, images: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(okvqa={})
    proxy.set(fail=1.0, status=403)
    with pytest.raises(VlmixError, match="s3://bucket/raw: the store refuses: .*check its credentials"):
        build(asked, address, tmp_path / "there")
    assert len(proxy.requests) == 1
    proxy.set(fail=1.0, status=403, only="list-type.*pictures")
    with pytest.raises(VlmixError, match="s3://bucket/pictures.*: the store refuses"):
        build(asked, raw, tmp_path / "there", images=[images])
    monkeypatch.setattr(storage, "_PAGE", {"total_max_attempts": 1})
    proxy.set(fail=1.0, only="list-type.*coco")
    with pytest.raises(VlmixError, match=r"s3://bucket/pictures/coco/.*tried 8 times"):
        build(asked, address, tmp_path / "there", images=[images])
    assert not list(tmp_path.glob("there*/manifest.json"))


@pytest.mark.parametrize("place", ["s3://bucket/nothing", "s3://none/raw"])
def test_a_bucket_or_a_folder_that_is_not_there_is_said(proxy: Proxy, raw: Path, tmp_path: Path, place: str) -> None:
    said = vlmix_here("build", "sample", "--raw", place, "--out", tmp_path / "out", "--workers", 1)
    assert said.returncode == 1 and f"{place}: there is nothing below it" in " ".join(said.stderr.split())
    with pytest.raises(VlmixError, match=f"image folder {place} does not exist"):
        build(recipe(okvqa={}), raw, tmp_path / "out", images=[place])
    assert not Remote(place).is_folder()


def test_a_name_may_be_a_file_and_a_folder(proxy: Proxy, moto: Store) -> None:
    for name in ("both", "both/a.jpg", "both/", "file"):
        moto.client().put_object(Bucket=BUCKET, Key=name, Body=b"")
    both, file = Remote("s3://bucket/both"), Remote("s3://bucket/file")
    assert both.is_folder() and list(both.below()) == ["a.jpg"]
    assert not file.is_folder() and list(file.below()) == [""]


def test_a_missing_official_file_is_named_where_it_should_be(
    proxy: Proxy, notes: tuple[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(VlmixError, match=rf"vqav2: {notes[0]}/vqav2/v2_mscoco.* is missing"):
        build(recipe(vqav2={}), notes[0], tmp_path / "there")
