import dataclasses
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from PIL import Image

from tests.helpers import VLMIX, hashes, vlmix, vlmix_here
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.examine import check_unreadable
from vlmix.mixture.build.recipe import load, parse
from vlmix.mixture.dataset.manifest import Manifest, read
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.storage import locate


def make(
    raw: Path, out: Path, sources: dict[str, Any], workers: int = 1, only_text: bool = False, **keys: Any
) -> Manifest:
    recipe = parse({"name": "x", "sources": sources, **keys}, known_sources())
    return build(recipe, known_sources(), raw, out, workers=workers, annotations_only=only_text)


def samples(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "samples.parquet")


def test_bytes_do_not_depend_on_workers_or_place(raw: Path, recipes: Path, mixture: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "raw"
    shutil.copytree(raw, elsewhere, copy_function=shutil.copy)  # other paths, other mtimes
    out = tmp_path / "two"
    build(load(recipes / "sample.yaml", known_sources()), known_sources(), elsewhere, out, workers=2)
    assert hashes(out) == hashes(mixture)
    assert not (tmp_path / "two.partial").exists()


def test_nothing_of_the_machine_is_in_the_output(raw: Path, mixture: Path) -> None:
    assert set(hashes(mixture)) == {
        "README.md",
        "manifest.json",
        "rejects.parquet",
        "samples.parquet",
        *(f"train/train-{i:06d}.tar" for i in range(9)),
    }
    for name in ("README.md", "manifest.json"):
        text = (mixture / name).read_text()
        assert str(raw) not in text and str(mixture) not in text
        assert not re.search(r"20\d\d-\d\d-\d\d", text)
    for row in pl.read_parquet(mixture / "rejects.parquet").to_dicts():
        assert str(raw) not in json.dumps(row)


def start(raw: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    command = ["build", "sample", "--raw", raw, "--out", out, "samples_per_shard=5", "--workers=1", *more]
    return subprocess.Popen([*VLMIX, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(raw: Path, out: Path, *more: str) -> None:
    """The same command to its end, in this process."""
    done = vlmix_here("build", "sample", "--raw", raw, "--out", out, "samples_per_shard=5", "--workers=1", *more)
    assert done.returncode == 0, done.stderr


def until(process: "subprocess.Popen[str]", path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.fixture(scope="module")
def small_shards(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole") / "mixture"
    finish(raw, out)
    return hashes(out)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("moment", ["work/sources/002.arrow", "work/images.facts", "train/train-000011.tar"])
def test_a_killed_build_goes_on_to_the_same_bytes(
    raw: Path, small_shards: dict[str, str], tmp_path: Path, moment: str, workers: int
) -> None:
    out = tmp_path / "mixture"
    partial = tmp_path / "mixture.partial"
    process = start(raw, out, f"--workers={workers}")
    until(process, partial / moment)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    finished = {path: path.stat().st_mtime_ns for path in partial.glob("train/*.tar")}
    finish(raw, out, f"--workers={workers}")
    assert hashes(out) == small_shards
    kept = [path for path, mtime in finished.items() if (out / "train" / path.name).stat().st_mtime_ns == mtime]
    # Of each process, the shard that it was at may have had its tar but not yet its rows.
    assert len(kept) >= len(finished) - workers


def interrupted(raw: Path, out: Path) -> dict[Path, int]:
    """A build killed after some shards: their files with their times."""
    process = start(raw, out)
    partial = out.with_name(out.name + ".partial")
    until(process, partial / "train/train-000011.tar")
    process.kill()
    process.communicate()
    return {path: path.stat().st_mtime_ns for path in partial.glob("train/*.tar")}


def replaced(path: Path, data: bytes) -> None:
    """Other bytes under the same size and time of change, as `cp -p` or `rsync -t` leave them."""
    before = path.stat()
    assert len(data) == before.st_size and data != path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.processes
def test_files_replaced_under_their_old_times_are_read_again(raw: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "raw", tmp_path / "mixture"
    shutil.copytree(raw, copy)
    assert interrupted(copy, out)
    path = copy / "vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
    replaced(path, path.read_bytes().replace(b"What ", b"Whut "))
    for path in sorted((copy / "vg").rglob("*.jpg")):
        small = io.BytesIO()
        try:
            with Image.open(path) as image:
                image.convert("RGB").save(small, "JPEG", quality=5)
        except OSError:
            continue  # one of the miniature's broken images
        if len(small.getvalue()) < path.stat().st_size:
            replaced(path, small.getvalue().ljust(path.stat().st_size, b"\0"))
    finish(copy, out)
    finish(copy, tmp_path / "clean")
    assert hashes(out) == hashes(tmp_path / "clean")


@pytest.mark.processes
def test_files_that_are_the_same_under_other_times_keep_their_work(
    raw: Path, small_shards: dict[str, str], tmp_path: Path
) -> None:
    copy, out = tmp_path / "raw", tmp_path / "mixture"
    shutil.copytree(raw, copy)
    finished = interrupted(copy, out)
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)  # another inode, other times
    finish(copy, out)
    assert hashes(out) == small_shards
    same = [path for path, mtime in finished.items() if (out / "train" / path.name).stat().st_mtime_ns == mtime]
    assert len(same) >= len(finished) - 1 > 5


@pytest.mark.processes
def test_ctrl_c_leaves_in_peace_and_the_next_run_goes_on(
    raw: Path, small_shards: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "mixture"
    process = start(raw, out, "--workers=2")
    until(process, tmp_path / "mixture.partial/train/train-000003.tar")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and "resume" in errors
    assert not out.exists()
    finish(raw, out)
    assert hashes(out) == small_shards


@pytest.mark.processes
def test_a_full_disk_is_told_and_survived(raw: Path, small_shards: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "mixture"
    limit = 25_000  # bytes per file: the first shard that is larger fails as on a full disk

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = ["build", "sample", "--raw", raw, "--out", out, "samples_per_shard=5", "--workers", "1"]
    failed = vlmix(*command, preexec_fn=small_disk)
    assert failed.returncode == 1 and "cannot write" in failed.stderr and "free some space" in failed.stderr
    assert "Traceback" not in failed.stderr and not out.exists()
    assert not list((tmp_path / "mixture.partial").rglob("*.tmp"))
    finish(raw, out)
    assert hashes(out) == small_shards


@pytest.mark.processes
def test_a_changed_recipe_does_not_take_over_old_shards(
    raw: Path, small_shards: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "mixture"
    process = start(raw, out, "seed=7")
    until(process, tmp_path / "mixture.partial/train/train-000008.tar")
    process.kill()
    process.communicate()
    finish(raw, out)
    assert hashes(out) == small_shards


def change_answers(raw: Path) -> None:
    path = raw / "okvqa/mscoco_train2014_annotations.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        for answer in annotation["answers"]:
            answer["answer"] = "changed"
    path.write_text(json.dumps(data))


@pytest.mark.slow
@pytest.mark.processes
def test_annotations_that_change_between_runs_leave_nothing_old(raw: Path, tmp_path: Path) -> None:
    changed = tmp_path / "raw"
    shutil.copytree(raw, changed)
    process = start(changed, tmp_path / "mixture")
    until(process, tmp_path / "mixture.partial/train/train-000012.tar")
    process.kill()
    process.communicate()
    change_answers(changed)
    for out in ("mixture", "fresh"):
        finish(changed, tmp_path / out)
    assert hashes(tmp_path / "mixture") == hashes(tmp_path / "fresh")


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: b"\xff\x00" * 300,
    "flipped": lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 0xFF]) + data[len(data) // 3 + 1 :],
}


@pytest.fixture(scope="module")
def stopped(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a killed build leaves. Read only."""
    out = tmp_path_factory.mktemp("stopped") / "mixture"
    assert interrupted(raw, out)
    return out.with_name("mixture.partial")


@pytest.mark.processes
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_work_is_absent_work(
    raw: Path, small_shards: dict[str, str], stopped: Path, tmp_path: Path, damage: str
) -> None:
    out, partial = tmp_path / "mixture", tmp_path / "mixture.partial"
    shutil.copytree(stopped, partial)
    work = partial / "work"
    some = [work / "order", work / "images.facts", work / "sources/000.arrow", work / "sources/001.state"]
    some += [work / "sources/002.records", work / "sources/003.keys", work / "sources/004.offsets"]
    some += [partial / "train/train-000001.tar", work / "rows-000002.arrow", work / "rows-000003.done"]
    for path in some:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    finish(raw, out)
    assert hashes(out) == small_shards


def test_impossible_input_leaves_no_folder_behind(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match="missing"):
        make(tmp_path, tmp_path / "out", {"okvqa": {}})
    assert not list(tmp_path.iterdir())


def broken_images(raw: Path, tmp_path: Path) -> Path:
    """Every second OK-VQA image is no image."""
    other = tmp_path / "raw"
    shutil.copytree(raw / "okvqa", other / "okvqa")
    shutil.copytree(raw / "coco", other / "coco")
    make(other, tmp_path / "all", {"okvqa": {}})
    for image in samples(tmp_path / "all").sort("id")["image"].to_list()[::2]:
        for path in (other / "coco").rglob(f"*{Path(image).name}"):
            path.write_bytes(b"<html>")
    return other


def test_shares_do_not_shrink_with_broken_images(raw: Path, tmp_path: Path) -> None:
    other = broken_images(raw, tmp_path)
    for name, names, keys in [
        ("entry", {"okvqa": {"ratio": 0.4}}, {}),
        ("whole", {"okvqa": {}}, {"ratio": 0.4}),
        ("loose", {"okvqa": {}}, {"ratio": 0.4, "stratify": False}),
        ("total", {"okvqa": {}}, {"total": 26}),
    ]:
        assert make(other, tmp_path / name, names, **keys).samples == 26, name
    assert make(other, tmp_path / "most", {"okvqa": {}}, ratio=0.9).samples == 32, "no more can be had"


def test_two_builders_of_one_dataset_are_told(raw: Path, tmp_path: Path) -> None:
    official = {"builder": "llava_json", "path": "llava_json/llava_v1_5_mix_sample.json", "recognize": True}
    with pytest.raises(VlmixError, match="vqav2 comes from the builders llava_json and vqav2"):
        make(raw, tmp_path / "x", {"official": official, "vqav2": {}}, only_text=True)
    narrowed = {**official, "only": ["gqa"]}
    assert make(raw, tmp_path / "y", {"official": narrowed, "vqav2": {}}, only_text=True).samples == 4 + 96


def test_two_splits_of_one_dataset_may_stand_together(raw: Path, tmp_path: Path) -> None:
    sources = {"train": {"builder": "vqav2"}, "val": {"builder": "vqav2", "split": "val"}}
    manifest = make(raw, tmp_path / "x", sources)
    assert manifest.samples == 95 + 32
    assert manifest.rejects == {"vqav2": {"empty_answer": 1, "image_missing": 1, "no_annotation": 1}}


def test_entries_that_give_nothing_are_told(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match=r"sources.gqa: no conversation passes where: 'num_words < 0'"):
        make(raw, tmp_path / "x", {"okvqa": {}, "gqa": {"where": "num_words < 0"}}, only_text=True)
    with pytest.raises(VlmixError, match=r"sources.gqa: ratio 0.001 of 48"):
        make(raw, tmp_path / "x", {"okvqa": {}, "gqa": {"ratio": 0.001}}, only_text=True)
    manifest = make(raw, tmp_path / "y", {"okvqa": {}, "gqa": {}}, only_text=True, total=1)
    assert {name: info.counts.samples for name, info in manifest.sources.items()} == {"okvqa": 1, "gqa": 0}


def test_a_dangling_link_is_a_reject_and_no_crash(raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "raw"
    shutil.copytree(raw / "ocrvqa", other / "ocrvqa")
    shutil.copytree(raw / "ocr_vqa", other / "ocr_vqa")
    books = json.loads((raw / "ocrvqa/dataset.json").read_text())
    path = next(p for p in (other / "ocr_vqa/images").glob("*.jpg") if books[p.stem]["split"] == 1)
    path.unlink()
    path.symlink_to("nowhere.jpg")
    assert vlmix_here("plan", _recipe(tmp_path, "ocrvqa"), "--raw", other, "--workers", 1).returncode == 0
    manifest = make(other, tmp_path / "x", {"ocrvqa": {}})
    assert manifest.rejects["ocrvqa"]["image_unreadable"] == 1


def _recipe(folder: Path, source: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"name: x\nsources: {{{source}: {{}}}}\n")
    return path


@pytest.mark.processes
def test_two_builds_of_one_folder_do_not_mix(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "mixture"
    process = start(raw, out)
    until(process, tmp_path / "mixture.partial/work/sources")
    with pytest.raises(VlmixError, match="being written by another run"):
        make(raw, out, {"okvqa": {}})
    assert process.communicate(timeout=120) and process.returncode == 0
    with pytest.raises(VlmixError, match="exists already"):
        make(raw, out, {"okvqa": {}})


def test_take_is_exact_although_images_are_broken(raw: Path, tmp_path: Path) -> None:
    """48 books, one cover missing, one truncated: 46 can be had, and no fewer."""
    manifest = make(raw, tmp_path / "a", {"ocrvqa": {"take": 46}})
    assert manifest.samples == 46
    assert manifest.rejects == {"ocrvqa": {"image_damaged": 1, "image_missing": 1}}
    with pytest.raises(VlmixError, match=r"take 47 asks for more than the 46 .*no usable image"):
        make(raw, tmp_path / "b", {"ocrvqa": {"take": 47}})


def test_all_impossible_takes_are_told_at_once(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match=r"(?s)sources.okvqa: take 900.*\nsources.gqa: take 800"):
        make(raw, tmp_path / "x", {"okvqa": {"take": 900}, "vqav2": {}, "gqa": {"take": 800}}, only_text=True)


def test_takes_nest_and_do_not_know_of_other_sources(raw: Path, tmp_path: Path) -> None:
    make(raw, tmp_path / "few", {"ocrvqa": {"take": 10}}, only_text=True)
    make(raw, tmp_path / "more", {"okvqa": {}, "ocrvqa": {"take": 30}, "gqa": {}}, only_text=True)
    few, more = (set(samples(tmp_path / name)["id"]) for name in ("few", "more"))
    assert len(few) == 10 and few < more


def test_ratio_total_weight_and_where(raw: Path, tmp_path: Path) -> None:
    def counts(name: str, sources: dict[str, Any], **keys: Any) -> dict[str, int]:
        manifest = make(raw, tmp_path / name, sources, only_text=True, **keys)
        return {source: info.counts.samples for source, info in manifest.sources.items()}

    assert counts("ratio", {"okvqa": {"ratio": 0.5}, "gqa": {"ratio": 0.125}}) == {"okvqa": 32, "gqa": 6}
    assert counts("total", {"okvqa": {}, "gqa": {}}, total=28) == {"okvqa": 16, "gqa": 12}  # of 64 and 48
    weighted = {"okvqa": {"weight": 1}, "gqa": {"weight": 3}}
    assert counts("weight", weighted, total=40) == {"okvqa": 10, "gqa": 30}
    assert counts("share", {"okvqa": {}, "gqa": {}}, ratio=0.25) == {"okvqa": 16, "gqa": 12}
    loose = counts("loose", {"okvqa": {}, "gqa": {}}, ratio=0.25, stratify=False)
    assert sum(loose.values()) == 28
    assert counts("where", {"okvqa": {"where": "num_rounds > 1"}}) == {"okvqa": 1}
    with pytest.raises(VlmixError, match="asks for 80 samples, it has 48"):
        counts("over", {"okvqa": {"weight": 1}, "gqa": {"weight": 4}}, total=100)
    with pytest.raises(VlmixError, match="total 500 asks for more than the 112"):
        counts("over", {"okvqa": {}, "gqa": {}}, total=500)
    with pytest.raises(
        VlmixError, match=r"sources.okvqa: where: 'round > 1': there is no column 'round'; did you mean 'num_rounds'"
    ):
        counts("typo", {"okvqa": {"where": "round > 1"}})
    with pytest.raises(VlmixError, match="not a condition"):
        counts("sum", {"okvqa": {"where": "num_rounds + 1"}})


def test_repeats_are_counted_and_stored_once(raw: Path, tmp_path: Path) -> None:
    manifest = make(raw, tmp_path / "a", {"okvqa": {"repeat": 2.5}, "gqa": {}}, only_text=True)
    info = manifest.sources["okvqa"].counts
    assert (info.samples, info.samples_per_epoch) == (64, 160)
    frame = samples(tmp_path / "a").filter(pl.col("source") == "okvqa")
    assert Counter(frame["repeat"].to_list()) == {2: 32, 3: 32}
    assert "`repeat`" in (tmp_path / "a/README.md").read_text()


def test_images_that_are_nowhere_are_told_before_anything_is_read(raw: Path, tmp_path: Path) -> None:
    only = tmp_path / "raw"
    only.mkdir()
    shutil.copytree(raw / "okvqa", only / "okvqa")
    with pytest.raises(VlmixError, match=r"none of its 64 images is there.*--images.*--annotations-only"):
        make(only, tmp_path / "out", {"okvqa": {}})
    recipe = parse({"name": "x", "sources": {"okvqa": {}}}, known_sources())
    manifest = build(recipe, known_sources(), only, tmp_path / "out", images=[raw / "coco"])
    assert manifest.total.images == 64
    with pytest.raises(VlmixError, match="does not exist"):
        build(recipe, known_sources(), only, tmp_path / "other", images=[tmp_path / "nowhere"])


def test_annotations_only_needs_no_image(raw: Path, mixture: Path, recipes: Path, tmp_path: Path) -> None:
    recipe = load(recipes / "sample.yaml", known_sources())
    manifest = build(recipe, known_sources(), raw, tmp_path / "text", annotations_only=True)
    assert manifest.kind == "annotations" and not manifest.shards
    assert not (tmp_path / "text/train").exists()
    whole, text = samples(mixture), samples(tmp_path / "text")
    both = whole.join(text, on="id", suffix="_text")
    assert len(both) > 800
    turned = pl.col("images").list.eval(pl.element().struct.field("transform") == "rotated").list.any()
    same = both.filter(~turned)
    assert 0 < len(both) - len(same) < 10
    assert same["conversations"].equals(same["conversations_text"], check_names=False)


def test_prompt_styles_are_one_word_of_the_recipe(raw: Path, tmp_path: Path) -> None:
    for style in ("plain", "instructblip"):
        make(raw, tmp_path / style, {"vqav2": {}, "aokvqa": {}}, only_text=True, prompts=style)
    plain, blip = (
        "\n".join(turn["value"] for talk in samples(tmp_path / style)["conversations"] for turn in talk)
        for style in ("plain", "instructblip")
    )
    assert "single word or phrase" not in plain and "option's letter" not in plain
    assert "Short answer:" in blip and "single word or phrase" not in blip


def test_two_entries_may_not_hold_the_same_conversation(raw: Path, tmp_path: Path) -> None:
    path = "llava_json/llava_v1_5_mix_sample.json"
    both = {
        "a": {"builder": "llava_json", "path": path, "recognize": True},
        "b": {"builder": "llava_json", "path": path, "recognize": True, "only": ["gqa"]},
    }
    with pytest.raises(VlmixError, match="sources 'a' and 'b' both hold gqa/"):
        make(raw, tmp_path / "out", both, only_text=True)


def test_the_manifest_tells_inputs_and_shards(raw: Path, mixture: Path) -> None:
    from vlmix.mixture.io.digests import sha256

    manifest = read(locate(mixture))
    assert manifest.samples == sum(shard.samples for shard in manifest.shards) == 840
    inputs = {item.path: item for items in manifest.inputs.values() for item in items}
    assert "refcoco/refcocog/refs(umd).p" in inputs and len(inputs) == 19
    for path, item in inputs.items():
        assert (item.bytes, item.sha256) == ((raw / path).stat().st_size, sha256(raw / path))
    for shard in manifest.shards:
        assert sha256(mixture / shard.path) == shard.sha256


def test_what_every_rebuilt_mixture_must_keep(mixture: Path) -> None:
    """The invariants that hold for all rows of the official mixture."""
    prompts = {
        "short": "\nAnswer the question using a single word or phrase.",
        "letter": "\nAnswer with the option's letter from the given choices directly.",
    }
    short = {"vqav2", "okvqa", "gqa", "ocrvqa"}
    frame = samples(mixture)
    assert frame["key"].to_list() == [f"{i:09d}" for i in range(len(frame))]
    assert frame["id"].n_unique() == len(frame)
    for row in frame.to_dicts():
        texts = [turn["value"] for turn in row["conversations"]]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * row["num_rounds"]
        assert len(row["response_formats"]) == row["num_rounds"]
        assert all(text.strip() == text and text for text in texts[1::2]), row["id"]
        joined = "\n".join(texts)
        if row["source"] == "sharegpt":
            assert row["image"] == "" and "<image>" not in joined and row["images"] == [] and row["num_images"] == 0
            continue
        assert joined.count("<image>") == 1 and "<image>" in texts[0]
        assert row["image"].endswith(".jpg") and row["width"] > 0 and row["height"] > 0
        assert texts[0].startswith("<image>\n") or row["source"] == "llava_instruct"
        assert texts[0].endswith(prompts["short"]) == (row["source"] in short)
        assert texts[0].endswith(prompts["letter"]) == (row["source"] == "aokvqa")
        assert not any(text.endswith(tuple(prompts.values())) for text in texts[2::2])
        if row["source"] in {"vqav2", "okvqa", "gqa"}:
            assert all(text == text.capitalize() for text in texts[1::2])


def test_shards_that_hold_images_begin_with_five(mixture: Path) -> None:
    for (_,), rows in samples(mixture).group_by("shard", maintain_order=True):
        with_image = (rows["num_images"] > 0).to_list()
        assert all(with_image[:5])


def test_stock_webdataset_reads_every_sample(mixture: Path) -> None:
    import webdataset

    urls = [str(path) for path in sorted(mixture.glob("train/*.tar"))]
    stock = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    frame = samples(mixture)
    assert [sample["__key__"] for sample in stock] == frame["key"].to_list()
    for sample, row in zip(stock, frame.to_dicts(), strict=True):
        assert sample["json"]["id"] == row["id"] and sample["json"]["conversations"] == row["conversations"]
        assert ("jpg" in sample) == bool(row["image"])
        if "jpg" in sample:
            assert sample["jpg"].size == (row["width"], row["height"])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("order", ["shuffled", "natural"])
def test_hf_datasets_reads_every_row(raw: Path, tmp_path: Path, streaming: bool, order: str) -> None:
    """The natural order here begins with text alone, from which no image type could be inferred."""
    import datasets

    sources = {"sharegpt": {}, "okvqa": {}, "vg": {"take": 20}}
    make(raw, tmp_path / "mix", sources, order=order, samples_per_shard=30)
    data = datasets.load_dataset(
        str(tmp_path / "mix"), split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
    )
    rows = list(data)
    frame = samples(tmp_path / "mix")
    assert [row["json"]["id"] for row in rows] == frame["id"].to_list()
    assert [row["json"]["conversations"] for row in rows] == frame["conversations"].to_list()
    assert [row["jpg"].size if row["jpg"] else (0, 0) for row in rows] == frame.select("width", "height").rows()


def test_a_text_only_mixture_opens_in_hf_datasets(raw: Path, tmp_path: Path) -> None:
    import datasets

    make(raw, tmp_path / "mix", {"sharegpt": {}})
    data = datasets.load_dataset(str(tmp_path / "mix"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 35 and "jpg" not in data.features


def test_fewer_than_asked_for_is_accepted_where_the_recipe_says_so(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(VlmixError, match="take 80000 asks for more than the 47"):
        make(raw, tmp_path / "no", {"ocrvqa": {"take": 80000}})
    made = make(raw, tmp_path / "yes", {"ocrvqa": {"take": 80000}, "okvqa": {"take": 5}}, allow_fewer=True)
    assert {name: info.counts.samples for name, info in made.sources.items()} == {"ocrvqa": 46, "okvqa": 5}
    assert [record.getMessage() for record in caplog.records] == [
        "sources.ocrvqa: 46 of the 80,000 that `take` asks for; there are no more"
    ]
    caplog.clear()
    assert make(raw, tmp_path / "total", {"okvqa": {}}, allow_fewer=True, total=1000).samples == 64
    assert "64 of the 1,000 that `total` asks for" in caplog.text


def test_the_headline_recipe_builds_from_the_miniature_releases(raw: Path, recipes: Path, tmp_path: Path) -> None:
    recipe = load(recipes / "llava-1.5-665k.yaml", known_sources(), ["allow_fewer=true"])
    made = build(recipe, known_sources(), raw, tmp_path / "out", annotations_only=True)
    assert list(made.sources) == list(recipe.sources)


def test_the_manifest_names_what_encoded_the_images(raw: Path, tmp_path: Path) -> None:
    from importlib.metadata import version

    made = make(raw, tmp_path / "out", {"okvqa": {"take": 5}})
    assert made.libraries["pillow"] == version("pillow")
    assert any(re.match(r"\d+\.\d+", value) for name, value in made.libraries.items() if name.startswith("libjpeg"))


def test_a_build_that_another_pillow_began_is_begun_anew(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: dict[str, Any] = {"vqav2": {}}
    with monkeypatch.context() as patch:
        patch.setattr("vlmix.mixture.build.build.libraries", lambda: {"pillow": "0"})
        patch.setattr("vlmix.mixture.build.build._finish", lambda *_: (_ for _ in ()).throw(VlmixError("killed")))
        with pytest.raises(VlmixError, match="killed"):
            make(raw, tmp_path / "out", sources)
    (shard,) = (tmp_path / "out.partial").rglob("*.tar")
    before = shard.stat().st_ino, shard.stat().st_mtime_ns
    make(raw, tmp_path / "out", sources)
    after = (tmp_path / "out" / "train" / shard.name).stat()
    assert (after.st_ino, after.st_mtime_ns) != before, "the shard was written again"
    make(raw, tmp_path / "straight", sources)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "straight")


def test_a_mistake_in_a_builder_names_its_line(raw: Path, tmp_path: Path) -> None:
    from vlmix.mixture.build.extract import conversations

    def broken(folder: Any, options: Any, seed: int, reject: Any) -> Any:
        yield from known_sources()["okvqa"].read(folder, known_sources()["okvqa"].options(), seed, reject)
        yield {}["Answer"]

    def opens(folder: Any, options: Any, seed: int, reject: Any) -> Any:
        yield from Path("nonexistent").read_text()

    def rejects(folder: Any, options: Any, seed: int, reject: Any) -> Any:
        reject(5, "reason", "detail")
        yield from ()

    def numbers(folder: Any, options: Any, seed: int, reject: Any) -> Any:
        for conversation in known_sources()["okvqa"].read(folder, known_sources()["okvqa"].options(), seed, reject):
            yield msgspec.structs.replace(conversation, id=5)

    def returns(folder: Any, options: Any, seed: int, reject: Any) -> Any:
        return None

    source = known_sources()["okvqa"]
    for reader, message in (
        (broken, r"builder okvqa: KeyError: 'Answer' \(test_build.py, line \d+\), after 64 conversations"),
        (opens, r"builder okvqa: FileNotFoundError: .*nonexistent.* \(test_build.py, line \d+\)"),
        (rejects, r"builder okvqa: TypeError: a reject's id is 5, expected text \(test_build.py, line \d+\)"),
        (numbers, r"builder okvqa: 5: its `id` is 5, expected text"),
        (returns, r"builder okvqa: TypeError: 'NoneType' object is not iterable .*after 0 conversations"),
    ):
        offered, _, _ = conversations(dataclasses.replace(source, read=reader), None, raw)
        with pytest.raises(VlmixError, match=message):
            list(offered)


def test_no_file_of_the_work_folder_is_mapped_when_it_is_removed(
    raw: Path, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS would keep those under other names, and their folder with them."""
    seen, remove = list[bool](), shutil.rmtree

    def looking(folder: Path, **options: Any) -> None:
        if folder.name == "work":
            seen.append(str(folder) in Path("/proc/self/maps").read_text())
        remove(folder, **options)

    monkeypatch.setattr("vlmix.mixture.io.staging.shutil.rmtree", looking)
    build(load(recipes / "sample.yaml", known_sources()), known_sources(), raw, tmp_path / "out")
    assert seen == [False]


def test_a_file_that_a_worker_alone_cannot_read_is_no_reject(raw: Path, tmp_path: Path) -> None:
    picture = next(raw.rglob("*.jpg"))
    problem = {0: ("image_unreadable", "No such file or directory")}
    check_unreadable([str(tmp_path / "gone.jpg")], problem)
    check_unreadable([str(picture)], {0: ("image_damaged", "")})
    with pytest.raises(VlmixError, match="every node has it at this path"):
        check_unreadable([str(picture)], problem)
