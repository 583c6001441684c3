"""Builds that drop duplicates and what evaluation sets show: the plan of the test says which samples those are."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageOps

from tests.helpers import hashes, planted_benchmark, vlmix, vlmix_here
from tests.mixture.build.test_build import start
from tests.mixture.overlaps.test_overlaps import KINDS, jpeg, picture
from vlmix.builders import benchmark_named, known_sources
from vlmix.builders.layout import picture_id
from vlmix.mixture.benchmark.benchmark import Benchmark, EvaluationSet, Question
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.manifest import Manifest
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.overlaps import table
from vlmix.mixture.overlaps.find import find
from vlmix.mixture.overlaps.fingerprints import fingerprints
from vlmix.mixture.overlaps.questions import Asked

AGAIN = {15, 16, 17, 18, 19}
"""Pictures that both sources have, with the same text: the first three under another quality."""
ASKED = {3: "near", 7: "bytes", 9: "id"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("planted") / "raw"
    (raw / "coco/train2017").mkdir(parents=True)
    (raw / "EVAL").mkdir()
    for name, first, numbers in (("one", 0, range(20)), ("two", 100, range(15, 35))):
        rows = []
        for number in numbers:
            path = f"coco/train2017/{first + number:012d}.jpg"
            again = name == "two" and number in (15, 16, 17)
            (raw / path).write_bytes(jpeg(picture(number), 40 if again else 90))
            said = [
                {"from": "human", "value": f"<image>\nWhich field is  {'It' if again else 'it'}?"},
                {"from": "gpt", "value": f"Field {number}."},
            ]
            rows.append({"id": f"{name}-{number}", "image": path, "conversations": said})
        (raw / f"{name}.json").write_text(json.dumps(rows))
    (raw / "EVAL/3.jpg").write_bytes(jpeg(KINDS["half"](picture(3)), 30))
    (raw / "EVAL/7.jpg").write_bytes(jpeg(picture(7)))
    (raw / "EVAL/coco/val2014").mkdir(parents=True)
    (raw / "EVAL/coco/val2014/COCO_val2014_000000000009.jpg").write_bytes(jpeg(picture(99)))
    return raw


def evaluation_set(name: str, *images: str) -> Benchmark:
    questions = [Question(id=image, image=image, text="What is it?") for image in images]
    return planted_benchmark(name, questions, {question.id: ["no field"] for question in questions})


IMAGES = "3.jpg", "7.jpg", "coco/val2017/000000000009.jpg"
SETS = {"planted": evaluation_set("planted", *IMAGES), "gone": evaluation_set("gone", "3.jpg", "nowhere.jpg")}
BY_ALL = {"benchmark": "planted", "data": "EVAL", "drop": ["id", "bytes", "near"]}


def make(
    raw: Path, out: Path, takes: dict[str, Any], workers: int = 1, only_text: bool = False, **keys: Any
) -> Manifest:
    sources = {name: {"builder": "llava_json", "path": f"{name}.json", **more} for name, more in takes.items()}
    return build(
        parse({"name": "x", "sources": sources, **keys}, known_sources()),
        known_sources(),
        raw,
        out,
        workers=workers,
        annotations_only=only_text,
        benchmark=SETS.__getitem__,
        picture_id=picture_id,
    )


def names(folder: Path) -> set[str]:
    return {short(id) for id in pl.read_parquet(folder / "samples.parquet")["id"]}


def short(id: str) -> str:
    return id.rpartition("/")[2].partition("#")[0]


def dropped(folder: Path) -> dict[str, str]:
    rows = pl.read_parquet(folder / "rejects.parquet").to_dicts()
    return {short(row["id"]): f"{row['reason']}: {row['detail']}" for row in rows}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_decontaminated_mixture_differs_in_the_named_samples_and_their_replacements(
    planted: Path, tmp_path: Path, workers: int
) -> None:
    takes: dict[str, Any] = {"one": {"take": 12}, "two": {"take": 12}}
    make(planted, tmp_path / "plain", takes)
    make(planted, tmp_path / "clean", takes, workers, decontaminate=[BY_ALL])
    before, after, named = names(tmp_path / "plain"), names(tmp_path / "clean"), dropped(tmp_path / "clean")
    assert named.keys() == {f"one-{number}" for number in ASKED}
    assert all(ASKED[number] in named[f"one-{number}"] for number in ASKED)
    assert "shows the picture of question 7.jpg of planted (bytes" in named["one-7"]
    assert len(after) == 24 and before - after == before & named.keys()
    assert not after & named.keys()
    # The next in rank: those that a larger take without them would have brought.
    make(planted, tmp_path / "more", {"one": {"take": 12 + len(before & named.keys())}, "two": {"take": 12}})
    assert after - before <= names(tmp_path / "more") | {f"one-{n}" for n in range(20)} and after - before
    rest = {"decontaminate": [BY_ALL], "total": None}
    make(planted, tmp_path / "fewer", {"one": {"take": 5}, "two": {"take": 12}}, **{k: v for k, v in rest.items() if v})
    assert names(tmp_path / "fewer") < after


def test_workers_change_no_byte(planted: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"decontaminate": [BY_ALL], "dedup": {"drop": ["bytes", "near"]}}
    make(planted, tmp_path / "one", {"one": {}, "two": {}}, 1, **keys)
    make(planted, tmp_path / "two", {"one": {}, "two": {}}, 2, **keys)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    for name in ("README.md", "manifest.json"):
        assert str(planted) not in (tmp_path / "one" / name).read_text()


@pytest.mark.parametrize("first", ["one", "two"])
def test_of_duplicates_the_one_of_the_first_source_stays(planted: Path, tmp_path: Path, first: str) -> None:
    second = {"one": "two", "two": "one"}[first]
    make(planted, tmp_path / "out", {first: {}, second: {"take": 15}}, dedup={"drop": ["near"]})
    named = dropped(tmp_path / "out")
    assert named.keys() == {f"{second}-{number}" for number in AGAIN}
    assert all("duplicate_content: says the same as " in why for why in named.values())
    assert {why.rpartition(" ")[2] for why in named.values()} == {"(near)", "(bytes)"}
    assert names(tmp_path / "out") == {f"{first}-{n}" for n in (range(20) if first == "one" else range(15, 35))} | {
        f"{second}-{n}" for n in set(range(20) if second == "one" else range(15, 35)) - AGAIN
    }


def test_nearly_the_same_text_of_one_picture_is_a_duplicate_if_asked_for(planted: Path, tmp_path: Path) -> None:
    long = "A field of soft colours lies under a low sky, and a narrow road leads from its near edge to a small house."
    texts = {
        "first": long,
        "comma": long.replace(",", " -"),
        "word": long.replace("small", "tiny"),
        "other": long[::-1],
    }
    said = [{"from": "human", "value": "<image>\nWhat is there?"}]
    rows = [
        {
            "id": name,
            "image": "coco/train2017/000000000001.jpg",
            "conversations": [*said, {"from": "gpt", "value": f"{text} {long.upper()}"}],
        }
        for name, text in texts.items()
    ]
    (planted / "texts.json").write_text(json.dumps(rows))
    make(planted, tmp_path / "near", {"texts": {}}, dedup={"drop": ["near"]})
    assert len(names(tmp_path / "near")) == 4
    levels = [row["level"] for row in table.read(tmp_path / "near/overlaps.parquet").rows.to_pylist()]
    assert levels == ["near_text", "near_text"]
    make(planted, tmp_path / "text", {"texts": {}}, dedup={"drop": ["near_text"]})
    assert "other" in names(tmp_path / "text") and len(names(tmp_path / "text")) == 2


def test_levels_that_are_not_dropped_are_reported_as_the_command_reports_them(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    keys: dict[str, Any] = {"decontaminate": [{**BY_ALL, "drop": ["bytes"]}], "dedup": {"drop": ["bytes"]}}
    make(planted, out, {"one": {}, "two": {"take": 14}}, **keys)
    assert dropped(out).keys() == {"one-7", "two-18", "two-19"}
    mixture = Reader.open(out)
    inside = table.read(out / "overlaps.parquet", mixture)
    asked = Asked(EvaluationSet(benchmark=SETS["planted"], data=planted / "EVAL"))
    outside = find(out, [asked], picture_id=picture_id)
    assert inside.rows.equals(outside.rows.cast(table.SCHEMA)) and inside.rows.num_rows
    assert inside.about == outside.about
    assert {short(row["id"]) for row in inside.rows.to_pylist() if not row["benchmark"]} <= {
        "two-15",
        "two-16",
        "two-17",
    }
    left = {(short(row["id"]), row["level"]) for row in inside.rows.to_pylist() if row["benchmark"]}
    assert left == {("one-3", "near"), ("one-9", "id")}
    assert vlmix_here("verify", out).returncode == 0
    built = msgspec.structs.replace(inside.about, manifest="")
    table.write(out / "overlaps.parquet", table.Overlaps(built, inside.rows.slice(1)))
    with pytest.raises(VlmixError, match="was built with"):
        table.read(out / "overlaps.parquet", mixture)


def test_what_is_only_reported_changes_no_sample(planted: Path, tmp_path: Path) -> None:
    make(planted, tmp_path / "plain", {"one": {"take": 9}})
    make(planted, tmp_path / "out", {"one": {"take": 9}}, dedup={}, decontaminate=[{**BY_ALL, "drop": []}])
    same = {"samples.parquet", "rejects.parquet"} | {name for name in hashes(tmp_path / "out") if "train" in name}
    plain, out = hashes(tmp_path / "plain"), hashes(tmp_path / "out")
    assert {name: plain[name] for name in same} == {name: out[name] for name in same}
    assert "overlaps.parquet" in out and "overlaps.parquet" not in plain


def test_without_images_ids_and_texts_are_compared(
    planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(planted, tmp_path / "out", {"one": {}}, only_text=True, decontaminate=[BY_ALL])
    assert dropped(tmp_path / "out").keys() == {"one-9"}
    assert "nothing is dropped by bytes and near" in caplog.text
    checked = table.read(tmp_path / "out/overlaps.parquet").checked("planted", "")
    assert checked.unchecked.keys() == {"id", "bytes", "near"}, "3.jpg is no picture of a known dataset"


def test_pictures_that_lead_from_one_to_another_are_no_duplicates_of_each_other(planted: Path, tmp_path: Path) -> None:
    """Fields that turn into another step by step: neighbours are near, the ends are not."""
    (planted / "chain").mkdir()
    steps = [Image.blend(picture(60), picture(61), step / 16) for step in range(17)]
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A field."}]
    rows = []
    for number, step in enumerate(steps):
        (planted / f"chain/{number}.jpg").write_bytes(jpeg(step))
        rows.append({"id": f"step-{number}", "image": f"chain/{number}.jpg", "conversations": said})
    (planted / "chain.json").write_text(json.dumps(rows))
    prints = [fingerprints((planted / f"chain/{number}.jpg").read_bytes()) for number in range(len(steps))]

    def apart(one: int, other: int) -> int:
        return int(np.bitwise_count(prints[one][:, None] ^ prints[other][None]).sum(axis=2).min())

    assert all(apart(n, n + 1) <= 56 for n in range(16)) and apart(0, 16) > 56
    make(planted, tmp_path / "out", {"chain": {}}, dedup={"drop": ["near"]})
    stay = sorted(int(name.removeprefix("step-")) for name in names(tmp_path / "out"))
    said_of = {int(name.removeprefix("step-")): why for name, why in dropped(tmp_path / "out").items()}
    assert 1 < len(stay) < 17 and all(apart(a, b) > 56 for a in stay for b in stay if a != b)
    for number, why in said_of.items():
        other = int(why.partition("step-")[2].partition("#")[0].split()[0])
        assert other in stay and apart(number, other) <= 56


def test_a_source_that_is_dropped_whole_is_told(planted: Path, tmp_path: Path) -> None:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A field."}]
    row = {"id": "seven", "image": "coco/train2017/000000000007.jpg", "conversations": said}
    (planted / "seven.json").write_text(json.dumps([row]))
    with pytest.raises(VlmixError, match="no sample is left"):
        make(planted, tmp_path / "out", {"seven": {}}, decontaminate=[BY_ALL], dedup={"drop": ["near"]})


def test_mirrors_are_duplicates_if_asked_for(planted: Path, tmp_path: Path) -> None:
    (planted / "mirror").mkdir()
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A field."}]
    for name, image in (("plain", picture(70)), ("mirror", ImageOps.mirror(picture(70)))):
        (planted / f"mirror/{name}.jpg").write_bytes(jpeg(image))
    rows = [{"id": name, "image": f"mirror/{name}.jpg", "conversations": said} for name in ("plain", "mirror")]
    (planted / "mirror.json").write_text(json.dumps(rows))
    for flipped in (False, True):
        out = tmp_path / str(flipped)
        make(planted, out, {"mirror": {}}, dedup={"drop": ["near"], "flipped": flipped})
        assert len(names(out)) == 2 - flipped


def test_the_picture_at_fault_is_named_and_what_decides_nothing_is_told(
    planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = [{"from": "human", "value": "<image><image>\nWhich?"}, {"from": "gpt", "value": "Both."}]
    images = ["coco/train2017/000000000001.jpg", "coco/train2017/000000000007.jpg"]
    (planted / "both.json").write_text(json.dumps([{"id": "both", "image": images, "conversations": said}]))
    (planted / "EVAL/broken.jpg").write_bytes(jpeg(picture(8))[:300])
    SETS["broken"] = evaluation_set("broken", "7.jpg", "broken.jpg")
    sources: dict[str, Any] = {"both": {}, "two": {"take": 3}}
    make(planted, tmp_path / "out", sources, decontaminate=[{**BY_ALL, "benchmark": "broken", "drop": ["near"]}])
    [row] = pl.read_parquet(tmp_path / "out/rejects.parquet").to_dicts()
    assert row["image"] == images[1] and row["detail"].startswith(images[1])
    assert "1 of its pictures do not decode" in caplog.text and "broken.jpg" in caplog.text
    assert table.read(tmp_path / "out/overlaps.parquet").checked("broken", "").left_out == ["broken.jpg"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"decontaminate": [{**BY_ALL, "benchmark": "gone", "drop": ["near"]}]},
            "gone: 1 of its 2 pictures were not found",
        ),
        ({"decontaminate": [{**BY_ALL, "benchmark": "gone", "drop": ["id"]}]}, "no ids in a dataset"),
        ({"decontaminate": [{"benchmark": "planted", "data": "NOWHERE"}]}, "NOWHERE does not exist"),
        ({"decontaminate": [{"benchmark": "planted"}]}, "name their folder as its `data`"),
        ({"decontaminate": [{**BY_ALL, "drops": []}]}, "unknown key 'drops'; did you mean 'drop'"),
        ({"decontaminate": [{**BY_ALL, "drop": ["looks"]}]}, "expected one of"),
        ({"decontaminate": [BY_ALL, BY_ALL]}, "planted is there twice"),
        ({"dedup": {"images": "drop"}}, "unknown key 'images'"),
        ({"dedup": "drop"}, "dedup"),
    ],
)
def test_what_cannot_be_compared_is_told_before_the_work(
    planted: Path, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(VlmixError, match=said):
        make(planted, tmp_path / "out", {"one": {}}, **keys)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_builds_without_what_benchmarks_show_and_goes_on_after_a_kill(raw: Path, tmp_path: Path) -> None:
    """POPE's pictures are COCO's, as VQAv2's are; the ids in its official files are the oracle."""
    sets = json.dumps([{"benchmark": "pope", "data": str(raw), "drop": ["id", "near"]}])
    changes = [f"decontaminate={sets}", 'dedup={"drop": ["near"]}', "samples_per_shard=5"]
    whole = vlmix("build", "sample", "--raw", raw, "--out", tmp_path / "whole", *changes)
    assert whole.returncode == 0, whole.stderr
    assert "pope" in whole.stdout and "questions" in whole.stdout
    assert "overlap with `pope` by id or near were left out" in (tmp_path / "whole/README.md").read_text()
    shown = {picture_id(q.image) for q in benchmark_named("pope").questions(raw / "pope")}
    left = pl.read_parquet(tmp_path / "whole/samples.parquet")
    assert shown and not shown & {picture_id(path) for path in left["image"]}
    process = start(raw, tmp_path / "killed", *changes[:2])
    for _ in range(2_000):
        if list(tmp_path.glob("killed.partial/work/prints/*.prints")):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = vlmix("build", "sample", "--raw", raw, "--out", tmp_path / "killed", *changes, "--workers", 2)
    assert again.returncode == 0, again.stderr
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
