"""What an official file names twice is reported, and dropped where nobody can say which is right."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import read

Change = Callable[[Any], Any]


def text(path: Path, change: Change) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def repeated_key(path: Path, change: Change) -> None:
    """The first member of a JSON object once more at its end."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    key, value = next(iter(plain.items()))
    body = json.dumps(plain)[1:-1]
    path.write_text("{" + body + ", " + json.dumps({key: change(value)})[1:], encoding="utf-8")


def repeated(*at: str) -> Callable[[Path, Change], None]:
    """The first element of a JSON list once more at its end."""

    def damage(path: Path, change: Change) -> None:
        plain = json.loads(path.read_text(encoding="utf-8"))
        listed = plain
        for key in at:
            listed = listed[key]
        listed.append(change(json.loads(json.dumps(listed[0]))))
        path.write_text(json.dumps(plain), encoding="utf-8")

    return damage


def repeated_sentence(path: Path, change: Change) -> None:
    refs = pickle.loads(path.read_bytes())
    ref = next(ref for ref in refs if ref["split"] == "train")
    ref["sentences"].append(change(dict(ref["sentences"][0])))
    path.write_bytes(pickle.dumps(refs, protocol=2))


def other(**keys: Any) -> Change:
    return lambda record: {**record, **keys}


CASES: dict[str, tuple[str, str, Callable[[Path, Change], None], Change, str]] = {
    "vqav2 annotation": (
        "vqav2", "v2_mscoco_train2014_annotations.json", repeated("annotations"),
        other(multiple_choice_answer="WRONG"), "annotation",
    ),
    "vqav2 question": (
        "vqav2", "v2_OpenEnded_mscoco_train2014_questions.json", repeated("questions"),
        other(question="Why?"), "question",
    ),
    "okvqa annotation": (
        "okvqa", "mscoco_train2014_annotations.json", repeated("annotations"),
        other(answers=[{"answer": "WRONG", "raw_answer": "WRONG"}]), "annotation",
    ),
    "aokvqa question": ("aokvqa", "aokvqa_v1p0_train.json", repeated(), other(question="Why?"), "question"),
    "gqa question": ("gqa", "train_balanced_questions.json", repeated_key, other(answer="WRONG"), "question"),
    "ocrvqa book": ("ocrvqa", "dataset.json", repeated_key, other(answers=["a"], questions=["b"]), "book"),
    "textcaps tokens": (
        "textcaps", "TextVQA_Rosetta_OCR_v0.2_train.json", repeated("data"), other(ocr_tokens=["WRONG"]), "ocr",
    ),
    "refcoco box": (
        "refcoco", "refcoco/instances.json", repeated("annotations"), other(bbox=[0, 0, 9, 9]), "annotation",
    ),
    "refcoco image": ("refcoco", "refcoco/instances.json", repeated("images"), other(width=9), "image"),
    "refcoco sentence": ("refcoco", "refcoco/refs(unc).p", repeated_sentence, other(sent="wrong"), "sentence"),
    "vg image": ("vg", "image_data.json", repeated(), other(width=9), "image"),
}  # fmt: skip


def rounds(name: str, raw: Path) -> tuple[int, list[str], dict[str, int]]:
    found, rejects = read(name, raw, **({"regions_per_image": 1} if name == "vg" else {}))
    texts = sorted(f"{e.question} {e.answer} {e.boxes}" for c in found for e in c.rounds)
    reasons: dict[str, int] = {}
    for reject in rejects:
        reasons[reject.reason] = reasons.get(reject.reason, 0) + 1
    return len(texts), texts, reasons


@pytest.mark.parametrize("case", CASES)
def test_duplicates_that_agree_lose_nothing_and_are_reported(raw: Path, tmp_path: Path, case: str) -> None:
    name, file, damage, _, what = CASES[case]
    shutil.copytree(raw / name, tmp_path / name)
    before = rounds(name, tmp_path)
    damage(tmp_path / name / file, lambda record: record)
    after = rounds(name, tmp_path)
    assert after[:2] == before[:2]
    assert after[2].get(f"duplicate_{what}", 0) == before[2].get(f"duplicate_{what}", 0) + 1


@pytest.mark.parametrize("case", CASES)
def test_of_duplicates_that_differ_none_is_used(raw: Path, tmp_path: Path, case: str) -> None:
    name, file, damage, change, _ = CASES[case]
    shutil.copytree(raw / name, tmp_path / name)
    count, texts, reasons = rounds(name, tmp_path)
    damage(tmp_path / name / file, change)
    left, kept, counts = rounds(name, tmp_path)
    assert left <= count and not any("wrong" in each.lower() for each in kept)
    assert all(each in texts for each in kept) or name == "vg"
    assert counts["conflicting_duplicate"] == reasons.get("conflicting_duplicate", 0) + 2
