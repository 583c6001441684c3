import json
from collections import Counter
from pathlib import Path

from builders import known
from mixture.build import build
from mixture.export import llava_json
from mixture.recipe import parse
from tests.helpers import dump, read, rows

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
    build(parse(recipe, known()), known(), raw, tmp_path / "mix")
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
        "few": {"builder": "llava_json", "path": SAMPLE, "only": ["gqa"], "take": 2},
        "rest": {"builder": "llava_json", "path": SAMPLE, "only": ["vqav2", "sharegpt"]},
    }
    manifest = build(parse({"name": "x", "sources": both}, known()), known(), raw, tmp_path / "mix")
    before = Counter(talk.source for talk in read("llava_json", raw, path=SAMPLE)[0])
    counts = {name: info.counts.samples for name, info in manifest.sources.items()}
    assert counts == {"gqa": 2, "vqav2": before["vqav2"], "sharegpt": before["sharegpt"]}
