import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlmix
from tests.helpers import dump, read, rows
from vlmix.builders import known_sources
from vlmix.builders.llava_rows import UNREAD_MEDIA
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.manifest import Manifest
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import llava_json
from vlmix.mixture.mixture import open as open_mixture

SAMPLE = "llava_json/llava_v1_5_mix_sample.json"


def test_official_rows_are_recognised(real: Path, tmp_path: Path) -> None:
    official = [json.loads(line) for line in (real / "mix665k/examples.jsonl").read_text().splitlines()]
    kinds = [row.pop("kind") for row in official]
    dump(tmp_path / "llava_v1_5_mix665k.json", official)
    found, rejects = read("llava_json", tmp_path)
    assert not rejects
    assert [talk.source for talk in found] == kinds
    assert rows(found) == [[turn["value"] for turn in row["conversations"]] for row in official]


def test_official_rows_can_be_rendered_without_format_prompts(real: Path, tmp_path: Path) -> None:
    official = [json.loads(line) for line in (real / "mix665k/examples.jsonl").read_text().splitlines()]
    dump(tmp_path / "llava_v1_5_mix665k.json", official)
    found, _ = read("llava_json", tmp_path)
    for talk, plain, style in zip(found, rows(found, "plain"), rows(found), strict=True):
        first = style[0].removesuffix("\nAnswer the question using a single word or phrase.")
        assert plain[0] == first.removesuffix("\nAnswer with the option's letter from the given choices directly.")
        assert (plain[0] != style[0]) == (talk.source in {"vqav2", "okvqa", "gqa", "ocrvqa", "aokvqa"})
        assert plain[1:] == style[1:]


def round_trip(raw: Path, tmp_path: Path, shard: int, **options: object) -> list[object]:
    sources = {"mine": {"builder": "llava_json", "path": SAMPLE, **options}}
    recipe = {"name": "x", "order": "natural", "samples_per_shard": shard, "sources": sources}
    build(parse(recipe, known_sources()), known_sources(), raw, tmp_path / "mix")
    llava_json(tmp_path / "mix", tmp_path / "out.json")
    return json.loads((tmp_path / "out.json").read_text())


def test_the_way_back_changes_no_row(raw: Path, tmp_path: Path) -> None:
    before = json.loads((raw / SAMPLE).read_text())
    after = round_trip(raw, tmp_path, shard=7)
    assert [json.dumps(row) for row in after] == [json.dumps(row) for row in before], "key order and types included"
    assert any(isinstance(row["id"], int) for row in before)
    assert any("markdown" in turn for row in before for turn in row["conversations"])
    assert any(turn["value"] != turn["value"].strip() for row in before for turn in row["conversations"])


def test_text_rows_in_front_come_back_in_front(raw: Path, tmp_path: Path) -> None:
    """In the shards image samples lead, because HF datasets infers types from the first five."""
    before = json.loads((raw / SAMPLE).read_text())
    before.sort(key=lambda row: "image" in row)
    other = tmp_path / "raw"
    other.mkdir()
    for folder in raw.iterdir():
        (other / folder.name).symlink_to(folder)
    (other / "llava_json").unlink()
    dump(other / SAMPLE, before)
    assert round_trip(other, tmp_path, shard=20) == before


def test_only_keeps_named_sources_and_two_entries_may_share_a_file(raw: Path, tmp_path: Path) -> None:
    both = {
        "few": {"builder": "llava_json", "path": SAMPLE, "recognize": True, "only": ["gqa"], "take": 2},
        "rest": {"builder": "llava_json", "path": SAMPLE, "recognize": True, "only": ["vqav2", "sharegpt"]},
    }
    manifest = build(parse({"name": "x", "sources": both}, known_sources()), known_sources(), raw, tmp_path / "mix")
    before = Counter(talk.source for talk in read("llava_json", raw, path=SAMPLE, recognize=True)[0])
    counts = {name: info.counts.samples for name, info in manifest.sources.items()}
    assert counts == {"gqa": 2, "vqav2": before["vqav2"], "sharegpt": before["sharegpt"]}


def turns(question: str = "<image>\nWhat is it?", answer: str = "A dog.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def own_mixture(folder: Path, sources: dict[str, list[dict[str, Any]]], **keys: Any) -> Manifest:
    """A mixture of files of one's own, an entry each, with an image at every path that any row names."""
    entries = {}
    for name, listed in sources.items():
        dump(folder / f"raw/{name}.json", listed)
        entries[name] = {"builder": "llava_json", "path": f"{name}.json", **keys}
        for path in re.findall(r"[a-z_/]+\.jpg", json.dumps(listed)):
            (folder / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), "green").save(folder / "raw" / path)
    recipe = {"name": "x", "order": "natural", "sources": entries}
    return build(parse(recipe, known_sources()), known_sources(), folder / "raw", folder / "mix")


def test_images_in_a_list_are_read_and_come_back(tmp_path: Path) -> None:
    listed = [
        {"id": 1, "images": ["a.jpg"], "conversations": turns()},
        {"id": 2, "conversations": turns(), "images": "b.jpg", "video": None, "videos": []},
        {"id": 3, "image": ["c.jpg"], "conversations": turns("What?\n<image>")},
        {"id": 4, "image": "d.jpg", "images": ["d.jpg"], "conversations": turns()},
        {"id": 5, "images": [], "image": None, "conversations": turns("What?")},
        {"id": 6, "images": None, "conversations": turns("What?", "An <image> of it.")},
        {"id": 7, "image": "", "conversations": turns("Why does <video> need a source?")},
        {"id": 8, "image": ["e.jpg", "f.jpg"], "conversations": turns("Is <image> like <image>?")},
        {"id": 9, "images": ["f.jpg", "e.jpg", "f.jpg"], "conversations": turns("<image>\nWhat?") + turns("So?")},
        {"id": 10, "image": ["e.jpg", "f.jpg"], "images": ["e.jpg", "f.jpg"], "conversations": turns("Two?")},
        {"id": 11, "image": ["e.jpg"] * 5, "conversations": turns("5 <image>", "<image>") + turns("<image> <image>")},
    ]
    manifest = own_mixture(tmp_path, {"own": listed})
    assert manifest.total.samples == 11 and manifest.total.images == 16 and not manifest.rejects
    llava_json(tmp_path / "mix", tmp_path / "out.json")
    after = json.loads((tmp_path / "out.json").read_text())
    assert [json.dumps(row) for row in after] == [json.dumps(row) for row in listed]


@pytest.mark.parametrize(
    ("row", "reason", "names"),
    [
        (
            {"images": ["a.jpg", "b.jpg"], "conversations": turns("<image><image> or <image>?")},
            "image_token",
            "3 <image>",
        ),
        ({"image": ["a.jpg", "b.jpg"], "conversations": turns(2 * "<image>", "<image>")}, "image_token", "2 images"),
        ({"image": ["a.jpg", "b.jpg"], "images": ["b.jpg", "a.jpg"]}, "conflicting_images", "'b.jpg', 'a.jpg'"),
        ({"images": ["a.jpg", ""]}, "bad_image", "'images'"),
        ({"images": ["a.jpg", ["b.jpg"]]}, "bad_image", "'images'"),
        ({"image": "a.jpg", "images": ["b.jpg"]}, "conflicting_images", "a.jpg"),
        ({"images": [{"bytes": ""}]}, "bad_image", "'images'"),
        ({"images": [None]}, "bad_image", "'images'"),
        ({"image": 7}, "bad_image", "7"),
        *[({"image": "a.jpg", key: "x"}, "unread_media", repr(key)) for key in UNREAD_MEDIA],
        ({"conversations": turns()}, "image_token", "<image>"),
        ({"conversations": turns("What?") + turns("And <image> here?")}, "image_token", "question 1"),
        ({"images": [], "conversations": turns("What?\n<image>")}, "image_token", "<image>"),
        ({"conversations": turns("<video>\nWhat?")}, "unread_media", "<video>"),
        ({"image": "a.jpg", "conversations": turns("<image>\nWhat?<audio>\n")}, "unread_media", "<audio>"),
    ],
)
def test_media_that_cannot_be_read_reject_the_row(tmp_path: Path, row: dict[str, Any], reason: str, names: str) -> None:
    row = {"id": "x", "conversations": turns(), **row}
    dump(tmp_path / "own.json", [row, {"id": 2, "conversations": turns("What?")}])
    found, rejects = read("llava_json", tmp_path, path="own.json")
    assert len(found) == 1 and [reject.reason for reject in rejects] == [reason]
    assert names in rejects[0].detail and json.loads(rejects[0].record) == row


def test_rows_of_a_file_of_ones_own_belong_to_its_entry(tmp_path: Path) -> None:
    folders = ["coco/train", "vg/x", "gqa/images", "textvqa/x", "ocr_vqa/images"]
    image_rows = [{"id": "1", "image": f"{folder}/a.jpg", "conversations": turns()} for folder in folders]
    chat = {"id": "1", "model": "", "conversations": turns("Hi", "Hello")}
    recipe = own_mixture(tmp_path, {"a": [*image_rows, chat], "b": image_rows})
    assert {name: (info.counts.samples, info.license) for name, info in recipe.sources.items()} == {
        "a": (6, "unknown"),
        "b": (5, "unknown"),
    }
    ids = open_mixture(tmp_path / "mix").samples.collect()["id"].to_list()
    assert len(set(ids)) == 11 and {i.partition("/")[0] for i in ids} == {"a", "b"}
    recognized, _ = read("llava_json", tmp_path / "raw", path="a.json", recognize=True)
    assert [talk.source for talk in recognized] == ["llava_instruct", "vg", "gqa", "textcaps", "ocrvqa", "sharegpt"]


def test_license_and_homepage_are_what_the_entry_says(tmp_path: Path) -> None:
    rows = [{"id": "1", "image": "coco/a.jpg", "conversations": turns()}]
    manifest = own_mixture(tmp_path, {"a": rows}, license="MIT", homepage="https://example.org/a")
    assert (manifest.sources["a"].license, manifest.sources["a"].homepage) == ("MIT", "https://example.org/a")
    assert "[a](https://example.org/a)" in (tmp_path / "mix/README.md").read_text()


def test_only_without_recognition_is_an_error(tmp_path: Path) -> None:
    dump(tmp_path / "own.json", [{"id": 1, "conversations": turns("What?")}])
    with pytest.raises(VlmixError, match="`only` needs `recognize: true`"):
        read("llava_json", tmp_path, path="own.json", only=["gqa"])


def test_numbers_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Python's json would write 100.0 for 1e2 and 1.1 for 1.10."""
    turns = '"conversations": [{"from": "human", "value": "q%d"}, {"from": "gpt", "value": "a", "score": 0.50}]'
    plain = '"conversations": [{"from": "human", "value": "q%d"}, {"from": "gpt", "value": "a"}]'
    numbers = ["1e2", "1.10", "-0", "-0.0", "1E+2", "123456789012345678901234567890", "0.1", "7"]
    numbers += ['[1.0, {"x": 2.50}]']
    texts = [f'{{"id": {number}, {(turns, plain)[at % 2] % at}}}' for at, number in enumerate(numbers)]
    (tmp_path / "raw/llava_json").mkdir(parents=True)
    (tmp_path / "raw/llava_json/x.json").write_text(f"[{', '.join(texts)}]")
    options = ["sources.llava_json.path=x.json", "order=natural"]
    vlmix.build("llava-json", tmp_path / "raw", tmp_path / "mix", options)
    llava_json(tmp_path / "mix", tmp_path / "out.json")
    lines = (tmp_path / "out.json").read_text().strip().removeprefix("[").removesuffix("]").split(",\n")
    # A turn's own text comes last: export fills it in.
    heads, wanted = ([line.split(', "conversations"')[0] for line in each] for each in (lines, texts))
    assert heads == wanted
    assert all('"score": 0.50' in line for line in lines[::2])


def test_a_number_that_is_not_json_costs_its_row_alone(tmp_path: Path) -> None:
    row = '{"id": "%s", "loss": %s, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}'
    texts = [row % ("a", "0.5"), row % ("b", "NaN"), row % ("c", "1e400"), row % ("d", "-Infinity"), row % ("e", "1")]
    for name, text in (("list.json", f" [\n{', '.join(texts)} ] "), ("lines.jsonl", "\n".join(texts))):
        folder = tmp_path / name
        (folder / "llava_json").mkdir(parents=True)
        (folder / "llava_json" / name).write_text(text)
        made = vlmix.build("llava-json", folder, folder / "mix", [f"sources.llava_json.path={name}"])
        assert sorted(id.partition("#")[0] for id in made.column("id").to_pylist()) == ["llava_json/a", "llava_json/e"]
        assert made.manifest.rejects == {"llava_json": {"bad_number": 3}}
