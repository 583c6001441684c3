"""The builders against rows of the released 665K mixture: raw records are made from a row's own questions, boxes and
captions, read by the builder, and rendered; the text must be the row's, letter for letter."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import dump, read, rows

Row = dict[str, Any]
Builder = Callable[[Row, Path], Iterator[list[str]]]
SHORT = "\nAnswer the question using a single word or phrase."


def texts(row: Row) -> list[str]:
    return [turn["value"] for turn in row["conversations"]]


def pairs(row: Row) -> list[tuple[str, str]]:
    """Questions without image token and format prompts, and answers."""
    values = texts(row)
    values[0] = values[0].removeprefix("<image>\n").removesuffix(SHORT)
    return list(zip(values[::2], values[1::2], strict=True))


def vqa(row: Row, raw: Path, questions_name: str, annotations_name: str, about: str, factor: int) -> None:
    image = int(row["id"])
    listed = pairs(row)
    questions = [
        {"image_id": image, "question": q, "question_id": image * factor + n} for n, (q, _) in enumerate(listed)
    ]
    annotations = [
        {
            "question_id": image * factor + n,
            "multiple_choice_answer": a.lower(),
            "answers": [{"answer": a.lower(), "raw_answer": "not this", "answer_id": i} for i in range(10)],
        }
        for n, (_, a) in enumerate(listed)
    ]
    dump(raw / questions_name, {"info": {"description": about}, "questions": questions})
    dump(raw / annotations_name, {"annotations": annotations[::-1]})


def from_vqav2(row: Row, raw: Path) -> Iterator[list[str]]:
    names = "vqav2/v2_OpenEnded_mscoco_train2014_questions.json", "vqav2/v2_mscoco_train2014_annotations.json"
    vqa(row, raw, *names, "This is v2.0 of the VQA dataset.", 1000)
    yield from rows(read("vqav2", raw)[0])


def from_okvqa(row: Row, raw: Path) -> Iterator[list[str]]:
    names = "okvqa/OpenEnded_mscoco_train2014_questions.json", "okvqa/mscoco_train2014_annotations.json"
    vqa(row, raw, *names, "This is v1.0 of the OK-VQA dataset.", 10)
    yield from rows(read("okvqa", raw)[0])


def from_gqa(row: Row, raw: Path) -> Iterator[list[str]]:
    questions = {
        f"0{n}": {"imageId": str(row["id"]), "question": q, "answer": a.lower(), "isBalanced": True}
        for n, (q, a) in enumerate(pairs(row))
    }
    dump(raw / "gqa/train_balanced_questions.json", questions)
    yield from rows(read("gqa", raw)[0])


def from_ocrvqa(row: Row, raw: Path) -> Iterator[list[str]]:
    questions, answers = zip(*pairs(row), strict=True)
    dump(raw / "ocrvqa/dataset.json", {row["id"]: {"questions": questions, "answers": answers, "split": 1}})
    yield from rows(read("ocrvqa", raw)[0])


def from_aokvqa(row: Row, raw: Path) -> Iterator[list[str]]:
    question, *options = texts(row)[0].removeprefix("<image>\n").split("\n")[:-1]
    choices = [option[3:] for option in options]
    record = {
        "split": "train",
        "image_id": int(row["id"]),
        "question_id": "22MexNkBPpdZGX6sxbxVBH",
        "question": question,
        "choices": choices[2:] + choices[:2],  # the row is one of the rotations of the raw record
        "correct_choice_idx": ("ABCD".index(texts(row)[1]) + 2) % 4,
    }
    dump(raw / "aokvqa/aokvqa_v1p0_train.json", [record])
    found = rows(read("aokvqa", raw)[0])
    assert len(found) == 4
    yield from found


def from_textcaps(row: Row, raw: Path) -> Iterator[list[str]]:
    question, caption = texts(row)
    tokens = question.rpartition("Reference OCR token: ")[2]
    entry = {"image_id": row["id"], "caption_str": caption.removesuffix("."), "image_path": f"train/{row['id']}.jpg"}
    dump(
        raw / "textcaps/TextCaps_0.1_train.json",
        {"dataset_name": "textcaps", "data": [entry, {**entry, "caption_str": "no"}]},
    )
    ocr = {"image_id": row["id"], "ocr_tokens": tokens.split(", ") if tokens else []}
    dump(raw / "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json", {"data": [ocr]})
    yield from rows(read("textcaps", raw)[0])


def from_llava_instruct(row: Row, raw: Path) -> Iterator[list[str]]:
    dump(raw / "llava_instruct/llava_instruct_150k.json", [{**row, "image": row["image"].split("/")[-1]}])
    yield from rows(read("llava_instruct", raw)[0])


OFFICIAL: dict[str, Builder] = {
    "vqav2": from_vqav2,
    "okvqa": from_okvqa,
    "gqa": from_gqa,
    "ocrvqa": from_ocrvqa,
    "aokvqa": from_aokvqa,
    "textcaps": from_textcaps,
    "llava_instruct": from_llava_instruct,
}


def official(real: Path, kind: str) -> list[Row]:
    found = [json.loads(line) for line in (real / "mix665k" / "examples.jsonl").read_text().splitlines()]
    return [row for row in found if row.pop("kind") == kind]


@pytest.mark.parametrize("kind", OFFICIAL)
def test_rows_are_the_official_ones(real: Path, tmp_path: Path, kind: str) -> None:
    examples = official(real, kind)
    assert len(examples) == 4
    for number, row in enumerate(examples):
        assert texts(row) in list(OFFICIAL[kind](row, tmp_path / str(number)))


def regions(row: Row) -> list[tuple[str, list[float]]]:
    """(phrase, normalised box) of each turn."""
    found = []
    for question, answer in pairs(row):
        in_question = question.startswith("Please provide a short description for this region: ")
        box = json.loads(question.partition(": ")[2].removesuffix(".") if in_question else answer)
        phrase = answer.removesuffix(".").lower() if in_question else question.partition(": ")[2].removesuffix(".")
        found.append((phrase, box))
    return found


def frame(boxes: list[list[float]]) -> tuple[int, int, int, int]:
    """(width, height, x offset, y offset) of an image in whose padded square of 1000 pixels the boxes lie."""
    if all(0.13 <= v <= 0.87 for box in boxes for v in box[1::2]):
        return 1000, 750, 0, 125
    if all(0.13 <= v <= 0.87 for box in boxes for v in box[::2]):
        return 750, 1000, 125, 0
    return 1000, 1000, 0, 0


def turns_over_seeds(name: str, raw: Path, **options: Any) -> set[tuple[str, str]]:
    """Every (question, answer) that the builder makes of a file: seeds decide order and direction."""
    made = set()
    for seed in range(24):
        for values in rows(read(name, raw, seed, **options)[0]):
            values[0] = values[0].removeprefix("<image>\n")
            made |= set(zip(values[::2], values[1::2], strict=True))
    return made


def test_visual_genome_regions_are_the_official_ones(real: Path, tmp_path: Path) -> None:
    for number, row in enumerate(official(real, "vg")):
        raw, found = tmp_path / str(number), regions(row)
        width, height, dx, dy = frame([box for _, box in found])
        folder, image = row["id"].split("/")
        listed = []
        for i, (phrase, box) in enumerate(found):
            x1, y1, x2, y2 = (round(1000 * v) for v in box)
            region = {"region_id": i, "x": x1 - dx, "y": y1 - dy, "width": x2 - x1, "height": y2 - y1}
            listed.append({**region, "phrase": f" {phrase}.\n", "image_id": int(image)})
        url = f"https://cs.stanford.edu/people/rak248/{folder}/{image}.jpg"
        dump(raw / "vg/image_data.json", [{"image_id": int(image), "url": url, "width": width, "height": height}])
        dump(raw / "vg/region_descriptions.json", [{"id": int(image), "regions": listed}])
        conversations, _ = read("vg", raw, min_regions=1)
        assert conversations[0].image == row["image"]
        assert set(pairs(row)) <= turns_over_seeds("vg", raw, min_regions=1)


def test_referring_expressions_are_the_official_ones(real: Path, tmp_path: Path) -> None:
    import pickle

    for number, row in enumerate(official(real, "refcoco")):
        raw, found = tmp_path / str(number) / "refcoco", regions(row)
        width, height, dx, dy = frame([box for _, box in found])
        image = int(row["id"])
        annotations, refs = [], []
        for i, (phrase, box) in enumerate(found):
            x1, y1, x2, y2 = (1000.0 * v for v in box)
            annotations.append({"id": i, "bbox": [x1 - dx, y1 - dy, x2 - x1, y2 - y1], "image_id": image})
            sentence = {"sent_id": i, "sent": phrase, "raw": phrase.upper(), "tokens": phrase.split()}
            refs.append(
                {
                    "ref_id": i,
                    "ann_id": i,
                    "image_id": image,
                    "split": "train",
                    "sentences": [sentence],
                    "file_name": "x_1.jpg",
                }
            )
        dump(
            raw / "refcoco/instances.json",
            {"images": [{"id": image, "width": width, "height": height}], "annotations": annotations},
        )
        (raw / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
        options = {"sets": ["refcoco/unc"]}
        conversations, _ = read("refcoco", raw.parent, **options)
        assert conversations[0].image == row["image"]
        assert set(pairs(row)) <= turns_over_seeds("refcoco", raw.parent, **options)
