"""The builders on real records of the sources."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import dump, read, reasons, rows

BOX = re.compile(r"^\[(\d\.\d{1,2}), (\d\.\d{1,2}), (\d\.\d{1,2}), (\d\.\d{1,2})\]$")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def link(raw: Path, name: str, target: Path) -> None:
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.resolve())


@pytest.mark.parametrize(
    ("version", "name"), [("1.2", "region_descriptions.json"), ("1.0", "region_descriptions_v1.json")]
)
def test_visual_genome_images_1_to_5(real: Path, tmp_path: Path, version: str, name: str) -> None:
    link(tmp_path, "vg/image_data.json", real / "visual_genome/image_data.json")
    link(tmp_path, f"vg/{name}", real / "visual_genome" / name)
    found, rejects = read("vg", tmp_path, version=version)
    assert [c.id for c in found] == ["vg/VG_100K_2/1", *(f"vg/VG_100K/{i}" for i in range(2, 6))]
    sizes = {p["image_id"]: (p["width"], p["height"]) for p in load(real / "visual_genome/image_data.json")}
    raw_regions = {
        (region["x"], region["y"], region["x"] + region["width"], region["y"] + region["height"])
        for image in load(real / "visual_genome" / name)
        for region in image["regions"]
    }
    for talk, texts in zip(found, rows(found), strict=True):
        assert 6 <= len(talk.rounds) <= 10
        assert (talk.images[0].width, talk.images[0].height) == sizes[int(talk.id.split("/")[-1])]
        assert texts[0].startswith("<image>\n") and "".join(texts).count("<image>") == 1
        for qa, question, answer in zip(talk.rounds, texts[::2], texts[1::2], strict=True):
            assert qa.boxes[0] in raw_regions
            box = answer if qa.format == "grounding" else question.partition(": ")[2][:-1]
            phrase = question if qa.format == "grounding" else answer
            numbers = BOX.match(box)
            assert numbers and float(numbers[1]) <= float(numbers[3]) and float(numbers[2]) <= float(numbers[4])
            assert re.search(r"[^.\s]\.$", phrase) and "\n" not in phrase.removeprefix("<image>\n")
            if qa.format == "region_caption":
                assert answer == answer.capitalize()
    assert reasons(rejects) <= {"box_tiny"}


def test_okvqa_train_has_8998_conversations_of_9009_questions(real: Path, tmp_path: Path) -> None:
    link(
        tmp_path,
        "okvqa/OpenEnded_mscoco_train2014_questions.json",
        real / "okvqa/OpenEnded_mscoco_train2014_questions.json",
    )
    annotations = []
    for record in load(real / "okvqa/lxmert_train.json"):
        # Soft labels back to votes: 1 is three of the ten or more, 0.667 two. Stemming made "" of the article "a".
        votes = [a for a, score in record["label"].items() for _ in range({1: 4, 0.667: 2}.get(score, 1))]
        answers = [{"answer_id": i + 1, "answer": a, "raw_answer": a or "a"} for i, a in enumerate(votes[:10])]
        annotations.append({"question_id": record["question_id"], "answers": answers})
    dump(tmp_path / "okvqa/mscoco_train2014_annotations.json", {"annotations": annotations})
    found, rejects = read("okvqa", tmp_path)
    assert len(found) == 8998 and not rejects
    assert sum(len(talk.rounds) for talk in found) == 9009
    by_id = {talk.id: talk for talk in found}
    assert rows([by_id["okvqa/000000051606"]]) == [
        [
            "<image>\nWhat is the hairstyle of the blond called?\nAnswer the question using a single word or phrase.",
            "Pony tail",
        ]
    ]
    # The released mixture has an empty answer here, its row 245,723.
    assert by_id["okvqa/000000178275"].rounds[0].answer == "A"
    official = [json.loads(line) for line in (real / "mix665k/examples.jsonl").read_text().splitlines()]
    official = [row for row in official if row["kind"] == "okvqa"]
    assert len(official) == 4
    for row in official:
        texts = [turn["value"] for turn in row["conversations"]]
        made = rows([by_id[f"okvqa/{row['id']}"]])[0]
        # These labels hold "poles" where the annotation file's stemmed answer, and so the mixture, says "pole".
        assert [text.replace("Poles", "Pole") for text in made] == texts


def test_gqa_records_from_a_file_and_from_a_folder_of_files(real: Path, tmp_path: Path) -> None:
    link(tmp_path, "gqa/train_balanced_questions.json", real / "gqa/questions.json")
    for number in (0, 1):
        name = f"gqa/train_all_questions/train_all_questions_{number}.json"
        link(tmp_path, name, real / f"gqa/questions{number}.json")
    prompt = "\nAnswer the question using a single word or phrase."
    single, _ = read("gqa", tmp_path)
    assert rows(single) == [[f"<image>\nWhat is hanging above the chalkboard?{prompt}", "Picture"]]
    assert (single[0].id, single[0].image, single[0].extra) == ("gqa/n578564", "gqa/images/n578564.jpg", "")
    both, _ = read("gqa", tmp_path, questions="all")
    assert [talk.id for talk in both] == ["gqa/n578564", "gqa/n166008"]


def test_vqav2_records_without_multiple_choice_answer(real: Path, tmp_path: Path) -> None:
    link(tmp_path, "vqav2/v2_OpenEnded_mscoco_train2014_questions.json", real / "vqav2/questions.json")
    link(tmp_path, "vqav2/v2_mscoco_train2014_annotations.json", real / "vqav2/annotations.json")
    found, rejects = read("vqav2", tmp_path)
    assert not rejects and [talk.image for talk in found] == ["coco/train2017/000000458752.jpg"]
    assert rows(found) == [
        [
            "<image>\nWhat is this photo taken looking through?\nAnswer the question using a single word or phrase.",
            "Net",
            "What position is this man playing?",
            "Pitcher",
            "What color is the players shirt?",
            "Orange",
        ]
    ]


def test_llava_instruct_rows_keep_their_text(real: Path, tmp_path: Path) -> None:
    link(tmp_path, "llava_instruct/llava_instruct_150k.json", real / "llava_instruct/llava_instruct_100.json")
    found, rejects = read("llava_instruct", tmp_path)
    raw = load(real / "llava_instruct/llava_instruct_100.json")
    assert not rejects and len(found) == 100
    assert rows(found) == [[turn["value"] for turn in row["conversations"]] for row in raw]
    assert [talk.image for talk in found] == [f"coco/train2017/{row['image']}" for row in raw]
    assert {talk.image_at for talk in found} == {"front", "back"}


def test_sharegpt_chats_are_cleaned_cut_or_named(real: Path, tmp_path: Path) -> None:
    files = sorted((real / "sharegpt/conversations").iterdir())
    chats = [load(file) for file in files]
    dump(tmp_path / "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json", chats)
    found, rejects = read("sharegpt", tmp_path)
    assert len(found) + len(rejects) == len(chats)
    by_id = {chat["id"]: chat["conversations"] for chat in chats}
    for talk, texts in zip(found, rows(found), strict=True):
        turns = [turn for turn in by_id[talk.id.removeprefix("sharegpt/")] if turn["from"] != "system"]
        assert texts == [turn["value"] for turn in turns][: len(texts)]
        assert talk.image == "" and talk.id.endswith("_0")
    why = {reject.id.removeprefix("sharegpt/"): reject.reason for reject in rejects}
    assert why["9UBG3yo_0"] == why["YJeVMgN_0"] == why["v0OlhmB_0"] == "empty_text"  # U+200B is all they say
    assert why["vH636g3_0"] == "too_short" and why["3D3oQC0_71"] == "continuation"
    assert "sharegpt/ufsbA0x_0" in {talk.id for talk in found}, "a system prompt in front is left out"


def test_a_tokenizer_decides_where_a_chat_is_cut(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"word": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    turns = [{"from": role, "value": " ".join(["word"] * 44)} for _ in range(30) for role in ("human", "gpt")]
    dump(tmp_path / "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json", [{"id": "abc", "conversations": turns}])
    found, _ = read("sharegpt", tmp_path, tokenizer=str(tmp_path / "tokenizer.json"), max_tokens=1000)
    assert len(found[0].rounds) == 10  # a turn is 44 words + 6
    assert found[0].id == "sharegpt/abc_0"


def test_textvqa_token_lists_render_as_in_llavas_question_file(real: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (real / "textvqa/llava_textvqa_val_ocr_50.jsonl").read_text().splitlines()]
    seen = 0
    for number, line in enumerate(lines):
        ocr = line["text"].split("\n")[1]
        tokens = ocr.removeprefix("Reference OCR token: ")
        raw = tmp_path / str(number)
        entry = {"image_id": "0123456789abcdef", "caption_str": "A sign"}
        dump(raw / "textcaps/TextCaps_0.1_train.json", {"data": [entry]})
        listed = [{"image_id": entry["image_id"], "ocr_tokens": tokens.split(", ") if tokens else []}]
        dump(raw / "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json", {"data": listed})
        found, _ = read("textcaps", raw)
        assert rows(found)[0][0].split("\n")[2] == ocr
        seen += 1
    assert seen == 50
