"""The irregularities of the real releases, each in its known record of the miniature ones."""

import io
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from vlmix.builders import known_sources
from vlmix.builders.miniature.dirt import RECORD
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture

SOURCES = [
    "llava_instruct",
    "vqav2",
    "okvqa",
    "gqa",
    "ocrvqa",
    "aokvqa",
    "textcaps",
    "refcoco",
    "vg",
    "sharegpt",
    "lcs558k",
]


@pytest.fixture(scope="module")
def everything(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """All of every source, without sampling; all regions of an image."""
    out = tmp_path_factory.mktemp("dirt") / "mixture"
    sources = {name: {} for name in SOURCES} | {"vg": {"regions_per_image": 100, "min_regions": 1, "min_side": 0}}
    build(parse({"name": "all", "sources": sources}, known_sources()), known_sources(), raw, out)
    return open_mixture(out)


@pytest.fixture(scope="module")
def samples(everything: Mixture) -> dict[str, dict[str, object]]:
    return {row["id"].partition("#")[0]: row for row in everything.samples.collect().to_dicts()}


@pytest.fixture(scope="module")
def rejects(everything: Mixture) -> list[dict[str, str]]:
    return pl.read_parquet(everything.local_root / "rejects.parquet").to_dicts()


def rejected(rejects: list[dict[str, str]], id: str) -> set[str]:
    return {row["reason"] for row in rejects if row["id"].partition("#")[0] == id}


def coco(record: str, digits: int) -> str:
    return f"{int(record) // 10**digits:012d}"


def words(row: dict[str, object]) -> str:
    return "\n".join(turn["value"] for turn in row["conversations"])


def picture(everything: Mixture, row: dict[str, object]) -> Image.Image:
    return Image.open(io.BytesIO(everything[everything.index_of(row["id"])].jpeg))


@pytest.mark.parametrize(
    ("dirt", "id", "reason"),
    [
        ("vqav2-not-annotated", f"vqav2/{coco(RECORD['vqav2-not-annotated'], 3)}", "no_annotation"),
        ("vqav2-empty-answer", f"vqav2/{coco(RECORD['vqav2-empty-answer'], 3)}", "empty_answer"),
        ("vqav2-image-missing", f"vqav2/{RECORD['vqav2-image-missing'][:12]}", "image_missing"),
        ("ocrvqa-image-missing", f"ocrvqa/{RECORD['ocrvqa-image-missing'][:-4]}", "image_missing"),
        ("ocrvqa-image-truncated", f"ocrvqa/{RECORD['ocrvqa-image-truncated'][:-4]}", "image_damaged"),
        ("sharegpt-single-turn", f"sharegpt/{RECORD['sharegpt-single-turn']}", "too_short"),
        ("sharegpt-not-alternating", f"sharegpt/{RECORD['sharegpt-not-alternating']}", "role_order"),
        ("sharegpt-zero-width", f"sharegpt/{RECORD['sharegpt-zero-width']}", "empty_text"),
        ("sharegpt-unknown-role", f"sharegpt/{RECORD['sharegpt-unknown-role']}", "unknown_role"),
        ("sharegpt-continuation", f"sharegpt/{RECORD['sharegpt-continuation']}", "continuation"),
        ("sharegpt-html", f"sharegpt/{RECORD['sharegpt-html']}", "html"),
        ("instruct-odd-turns", f"llava_instruct/{RECORD['instruct-odd-turns']}", "odd_turns"),
        ("instruct-empty-value", f"llava_instruct/{RECORD['instruct-empty-value']}", "empty_text"),
    ],
)
def test_what_is_dropped_is_written_down(rejects: list[dict[str, str]], dirt: str, id: str, reason: str) -> None:
    assert reason in rejected(rejects, id), dirt


@pytest.mark.parametrize(
    ("dirt", "reason"),
    [("vg-outside", "box_outside"), ("vg-zero-width", "box_empty"), ("vg-phrase-empty", "empty_phrase")],
)
def test_unusable_regions_are_written_down_with_their_record(
    rejects: list[dict[str, str]], dirt: str, reason: str
) -> None:
    found = [row for row in rejects if row["source"] == "vg" and str(row["round"]) == RECORD[dirt]]
    assert [row["reason"] for row in found] == [reason]
    assert f'"region_id":{RECORD[dirt]}' in found[0]["record"]


def test_nothing_else_is_dropped(rejects: list[dict[str, str]]) -> None:
    assert len(rejects) == 13 + 3 + 2  # with the empty expression and the box without area of RefCOCO
    assert {row["reason"] for row in rejects if row["source"] == "refcoco"} == {"empty_phrase", "box_empty"}


def test_okvqa_votes_that_stemming_emptied_are_taken_as_typed(samples: dict[str, dict[str, object]]) -> None:
    row = samples[f"okvqa/{coco(RECORD['okvqa-article'], 1)}"]
    assert row["conversations"][1]["value"].strip()


def test_questions_of_an_image_are_merged(samples: dict[str, dict[str, object]]) -> None:
    assert samples[f"okvqa/{coco(RECORD['okvqa-two-questions'], 1)}"]["num_rounds"] == 2


def test_duplicate_choices_rotate_by_index(everything: Mixture) -> None:
    rotations = [row for row in everything.samples.collect().to_dicts() if row["source"] == "aokvqa"]
    by_image: dict[str, list[dict[str, object]]] = {}
    for row in rotations:
        by_image.setdefault(row["image"], []).append(row)
    duplicates = 0
    for copies in by_image.values():
        copies.sort(key=lambda row: str(row["id"]))
        assert len(copies) == 4
        right = set()
        for shift, row in enumerate(copies):
            question, answer = (turn["value"] for turn in row["conversations"][:2])
            options = [line[3:] for line in question.split("\n") if line[1:3] == ". "]
            assert len(options) == 4
            duplicates += len(set(options)) < 4
            right.add((options["ABCD".index(answer)], ("ABCD".index(answer) + shift) % 4))
        assert len(right) == 1, "the letter points at the same option in all copies"
    assert duplicates == 4


def test_gqa_keys_that_are_equal_as_numbers_are_two_questions(raw: Path, samples: dict[str, dict[str, object]]) -> None:
    import json

    questions = json.loads((raw / "gqa/train_balanced_questions.json").read_text())
    for name in ("gqa-leading-zero", "gqa-leading-zero-twin", "gqa-global-null", "gqa-argument-space"):
        record = questions[RECORD[name]]
        assert record["question"] in words(samples[f"gqa/{record['imageId']}"])
    assert sum(int(row["num_rounds"]) for id, row in samples.items() if id.startswith("gqa/")) == len(questions)


@pytest.mark.parametrize("dirt", ["ocrvqa-gif", "ocrvqa-png"])
def test_covers_in_other_formats_are_stored_as_jpeg(
    everything: Mixture, samples: dict[str, dict[str, object]], dirt: str
) -> None:
    key = RECORD[dirt].partition(".")[0]
    row = samples[f"ocrvqa/{key}"]
    assert row["image"] == f"ocr_vqa/images/{key}.jpg" and row["images"][0]["transform"] == "reencoded"
    assert picture(everything, row).format == "JPEG"


def test_book_keys_stay_as_they_are(samples: dict[str, dict[str, object]]) -> None:
    for name in ("ocrvqa-key-lost-zero", "ocrvqa-key-x", "ocrvqa-key-b0", "ocrvqa-author-star", "ocrvqa-author-empty"):
        assert f"ocrvqa/{RECORD[name]}" in samples
    assert "title" in words(samples[f"ocrvqa/{RECORD['ocrvqa-author-empty']}"]).split("\n")[1]
    assert "*" in words(samples[f"ocrvqa/{RECORD['ocrvqa-author-star']}"]).split("\n")


def test_ocr_lines(raw: Path, samples: dict[str, dict[str, object]]) -> None:
    import json

    data = json.loads((raw / "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json").read_text())["data"]
    tokens = {entry["image_id"]: entry["ocr_tokens"] for entry in data}
    for name in ("textcaps-no-token", "textcaps-token-comma", "textcaps-token-quotes", "textcaps-token-not-ascii"):
        line = words(samples[f"textcaps/{RECORD[name]}"]).split("\n")[2]
        assert line == "Reference OCR token: " + ", ".join(tokens[RECORD[name]])
    assert tokens[RECORD["textcaps-no-token"]] == []


@pytest.mark.parametrize("dirt", ["textcaps-grey", "lcs-cmyk", "lcs-grey"])
def test_jpegs_of_any_colour_space_are_untouched(
    raw: Path, everything: Mixture, samples: dict[str, dict[str, object]], dirt: str
) -> None:
    stem = RECORD[dirt].partition(".")[0]
    row = samples[f"{'textcaps' if dirt.startswith('text') else 'lcs558k'}/{stem}"]
    stored = everything[everything.index_of(row["id"])].jpeg
    assert stored == (raw / str(row["image"])).read_bytes() and row["images"][0]["transform"] == "none"


def regions(row: dict[str, object]) -> str:
    return words(row)


def by_stem(samples: dict[str, dict[str, object]], stem: str) -> dict[str, object]:
    return next(row for id, row in samples.items() if id.startswith("vg/") and id.endswith(f"/{stem}"))


def test_an_empty_file_gives_way_to_the_good_copy(everything: Mixture, samples: dict[str, dict[str, object]]) -> None:
    row = by_stem(samples, RECORD["vg-empty-file"].partition(".")[0])
    assert str(row["image"]).startswith("vg/VG_100K_2/")
    picture(everything, row).load()


def test_a_rotated_photograph_agrees_with_its_boxes(everything: Mixture, samples: dict[str, dict[str, object]]) -> None:
    row = by_stem(samples, RECORD["vg-exif-rotated"].partition(".")[0])
    image = picture(everything, row)
    assert row["images"][0]["transform"] == "rotated" and image.size == (row["width"], row["height"])
    assert image.getexif().get(0x0112, 1) == 1
    for box in row["boxes"]:
        assert 0 <= box["x1"] < box["x2"] <= image.width and 0 <= box["y1"] < box["y2"] <= image.height


def test_boxes_are_clipped_to_the_image(samples: dict[str, dict[str, object]]) -> None:
    boxes = 0
    for row in samples.values():
        for box in row["boxes"]:
            boxes += 1
            assert 0 <= box["x1"] < box["x2"] <= row["width"], row["id"]
            assert 0 <= box["y1"] < box["y2"] <= row["height"], row["id"]
    assert boxes > 1000


def test_phrases_end_with_one_full_stop_and_keep_double_spaces(
    raw: Path, samples: dict[str, dict[str, object]]
) -> None:
    import json

    phrases = {}
    for image in json.loads((raw / "vg/region_descriptions.json").read_text()):
        for region in image["regions"]:
            phrases[str(region["region_id"])] = (image["id"], region["phrase"])
    for name in ("vg-phrase-newline", "vg-phrase-double-space", "vg-phrase-full-stop"):
        image, phrase = phrases[RECORD[name]]
        text = words(by_stem(samples, str(image))).lower()
        assert f"{phrase.strip().rstrip('.').lower()}." in text
    everything = "\n".join(words(row) for row in samples.values() if row["source"] in ("vg", "refcoco"))
    assert ".." not in everything


def test_images_under_their_2014_names_are_found(samples: dict[str, dict[str, object]]) -> None:
    for name, record in RECORD.items():
        if name.startswith("coco-2014-name"):
            stem = record.removesuffix(".jpg").rpartition("_")[2]
            assert samples[f"vqav2/{stem}"]["image"] == f"coco/train2017/{stem}.jpg"


def test_chats_are_mended_where_a_rule_can(samples: dict[str, dict[str, object]]) -> None:
    for name in ("gpt-first", "system-first", "user-chatgpt", "extra-keys", "odd-human", "escaped"):
        row = samples[f"sharegpt/{RECORD[f'sharegpt-{name}']}"]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * int(row["num_rounds"])
    assert "\\_" in words(samples[f"sharegpt/{RECORD['sharegpt-escaped']}"])


def test_long_chats_are_cut_before_the_pair_that_is_too_much(samples: dict[str, dict[str, object]]) -> None:
    from vlmix.builders.sources.sharegpt import estimate_tokens

    row = samples[f"sharegpt/{RECORD['sharegpt-long']}"]
    texts = [turn["value"] for turn in row["conversations"]]
    total = sum(estimate_tokens(text) + 6 for text in texts)
    assert 10 <= int(row["num_rounds"]) < 40 and 1800 < total <= 2048


def test_image_tokens_stay_at_their_end_of_the_question(samples: dict[str, dict[str, object]]) -> None:
    row = samples[f"llava_instruct/{RECORD['instruct-image-back']}"]
    assert row["conversations"][0]["value"].endswith("\n<image>")
    first = samples[f"lcs558k/{RECORD['lcs-image-first']}"]["conversations"][0]["value"]
    last = samples[f"lcs558k/{RECORD['lcs-image-last']}"]["conversations"][0]["value"]
    assert first.startswith("<image>\n") and last.endswith("\n<image>")
    assert samples[f"lcs558k/{RECORD['lcs-trailing-spaces']}"]["conversations"][1]["value"].endswith(" ")
