"""Raw files that are not what they should be: a clear error that names the file and the remedy, or a reject."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.helpers import dump, read, reasons, rows
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.errors import VlmixError

TURNS = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]


def copied(raw: Path, tmp_path: Path, name: str) -> Path:
    shutil.copytree(raw / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", sorted(set(known_sources()) - {"llava_json", "rows"}))
def test_a_missing_file_is_named_with_its_home_page(tmp_path: Path, name: str) -> None:
    with pytest.raises(VlmixError) as error:
        read(name, tmp_path)
    assert str(tmp_path / name) in str(error.value) and known_sources()[name].homepage in str(error.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vqav2", "v2_mscoco_train2014_annotations.json"),
        ("gqa", "train_balanced_questions.json"),
        ("okvqa", "OpenEnded_mscoco_train2014_questions.json"),
        ("aokvqa", "aokvqa_v1p0_train.json"),
        ("ocrvqa", "dataset.json"),
        ("textcaps", "TextVQA_Rosetta_OCR_v0.2_train.json"),
        ("vg", "region_descriptions.json"),
        ("refcoco", "refcoco/instances.json"),
        ("refcoco", "refcoco+/refs(unc).p"),
        ("llava_instruct", "llava_instruct_150k.json"),
        ("sharegpt", "ShareGPT_V3_unfiltered_cleaned_split.json"),
        ("lcs558k", "blip_laion_cc_sbu_558k.json"),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "empty", "html", "other"])
def test_a_damaged_file_is_named(raw: Path, tmp_path: Path, name: str, file: str, damage: str) -> None:
    path = copied(raw, tmp_path, name) / name / file
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[: len(data) * 2 // 3], "empty": b"", "html": b"<html>404</html>", "other": b'{"a": [1, 2]}'}[
            damage
        ]
    )
    with pytest.raises(VlmixError, match=re.escape(str(path))):
        read(name, tmp_path)


def test_a_file_of_another_dataset_under_the_same_name_is_told(raw: Path, tmp_path: Path) -> None:
    folder = copied(raw, tmp_path, "okvqa") / "okvqa"
    path = folder / "OpenEnded_mscoco_train2014_questions.json"
    data = json.loads(path.read_text())
    dump(path, {**data, "info": {"description": "This is v1.0 of the VQA dataset."}})
    with pytest.raises(VlmixError, match=r"v1\.0 of the VQA dataset.*expected 'OK-VQA'"):
        read("okvqa", tmp_path)
    questions = [{**q, "question_id": q["image_id"] * 1000} for q in data["questions"]]
    dump(path, {"questions": questions})
    with pytest.raises(VlmixError, match="does not belong to image"):
        read("okvqa", tmp_path)


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"),
    [
        (
            "textcaps",
            "TextVQA_Rosetta_OCR_v0.2_train.json",
            "TextVQA_Rosetta_OCR_v0.2_val.json",
            "none of the captions",
        ),
        ("textcaps", "TextCaps_0.1_train.json", "TextCaps_0.1_val.json", "dataset_type is 'val'"),
        ("aokvqa", "aokvqa_v1p0_train.json", "aokvqa_v1p0_val.json", "split 'val'"),
        (
            "vqav2",
            "v2_OpenEnded_mscoco_train2014_questions.json",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            "data_subtype is 'val2014'",
        ),
    ],
)
def test_another_splits_file_is_told(
    raw: Path, tmp_path: Path, name: str, right: str, wrong: str, message: str
) -> None:
    folder = copied(raw, tmp_path, name) / name
    shutil.copy(folder / wrong, folder / right)
    with pytest.raises(VlmixError, match=message):
        read(name, tmp_path)


def test_a_missing_file_of_a_folder_of_files_is_told(raw: Path, tmp_path: Path) -> None:
    folder = copied(raw, tmp_path, "gqa") / "gqa"
    (folder / "train_all_questions/train_all_questions_0.json").unlink()
    with pytest.raises(VlmixError, match=r"train_all_questions_0\.json is missing"):
        read("gqa", tmp_path, questions="all")


def test_hostile_numbers_urls_and_depths_are_told(raw: Path, tmp_path: Path) -> None:
    folder = copied(raw, tmp_path, "vg") / "vg"
    pictures = json.loads((folder / "image_data.json").read_text())
    pictures[0]["url"] = "x.jpg"
    dump(folder / "image_data.json", pictures)
    assert "bad_url" in reasons(read("vg", tmp_path)[1])
    regions = json.loads((folder / "region_descriptions.json").read_text())
    regions[1]["regions"][0]["x"] = 10**30
    dump(folder / "region_descriptions.json", regions)
    with pytest.raises(VlmixError, match="record 1: .*regions"):
        read("vg", tmp_path)
    (folder / "region_descriptions.json").write_text("[" * 100_000)
    with pytest.raises(VlmixError, match="region_descriptions"):
        read("vg", tmp_path)
    captions = {"data": [{"image_id": "a", "caption_str": "A", "image_width": 10**12, "image_height": 3}]}
    dump(tmp_path / "textcaps/TextCaps_0.1_train.json", captions)
    assert reasons(read("textcaps", tmp_path, ocr=False)[1]) == {"bad_size"}


def test_a_byte_order_mark_is_skipped(raw: Path, tmp_path: Path) -> None:
    path = copied(raw, tmp_path, "aokvqa") / "aokvqa/aokvqa_v1p0_train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read("aokvqa", tmp_path)[0]) == 256


def test_long_white_space_takes_no_time(tmp_path: Path) -> None:
    """Quadratic patterns took ten seconds for each of these."""
    from vlmix.builders.sources.sharegpt import _cleaned
    from vlmix.builders.text import phrase

    blank = "\n" * 200_000
    assert phrase(f"the man{' ' * 200_000}in red") == f"the man{' ' * 200_000}in red"
    assert _cleaned(f"a{blank}b") == f"a{blank}b"
    assert phrase("two\n  lines") == "two lines"


def test_a_tokenizer_is_an_input(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    from vlmix.mixture.build.extract import conversations

    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    chat = {"id": "a_0", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    dump(tmp_path / "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json", [chat])
    source = known_sources()["sharegpt"]
    found, folder, _ = conversations(source, source.options(tokenizer=str(tmp_path / "tokenizer.json")), tmp_path)
    assert len(list(found)) == 1 and tmp_path / "tokenizer.json" in folder.opened


def test_a_test_split_without_answers_is_told(raw: Path, tmp_path: Path) -> None:
    questions = json.loads((raw / "gqa/train_balanced_questions.json").read_text())
    without = {k: {"question": q["question"], "imageId": q["imageId"]} for k, q in questions.items()}
    dump(tmp_path / "gqa/train_balanced_questions.json", without)
    with pytest.raises(VlmixError, match="no answers"):
        read("gqa", tmp_path)


def test_an_archives_own_folder_is_found_and_two_of_them_are_not_guessed(raw: Path, tmp_path: Path) -> None:
    inside = tmp_path / "aokvqa" / "aokvqa_v1p0"
    inside.mkdir(parents=True)
    shutil.copy(raw / "aokvqa/aokvqa_v1p0_train.json", inside)
    assert read("aokvqa", tmp_path)[0]
    shutil.copytree(inside, tmp_path / "aokvqa" / "copy")
    with pytest.raises(VlmixError, match="more than once"):
        read("aokvqa", tmp_path)


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/vlmix-was-here"),))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused(raw: Path, tmp_path: Path, protocol: int) -> None:
    folder = copied(raw, tmp_path, "refcoco") / "refcoco"
    for hostile in ([Hostile()], [{"ref_id": Hostile()}]):
        (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps(hostile, protocol))
        with pytest.raises(VlmixError, match="refused, the pickle is not plain data"):
            read("refcoco", tmp_path)
    assert not Path("/tmp/vlmix-was-here").exists()


def test_python_2_pickles_are_read(raw: Path, tmp_path: Path) -> None:
    """Protocol 0, as Python 2 wrote it: byte strings, no unicode."""
    folder = copied(raw, tmp_path, "refcoco") / "refcoco"
    path = folder / "refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    before = rows(read("refcoco", tmp_path)[0])
    text = pickle.dumps(refs, 0)
    # Python 3 writes V (unicode) opcodes; Python 2 wrote S (str).
    as_python2 = re.sub(
        rb"^V(.*)$", lambda m: b"S" + repr(m[1].decode("raw-unicode-escape")).encode(), text, flags=re.MULTILINE
    )
    assert as_python2 != text
    path.write_bytes(as_python2)
    assert rows(read("refcoco", tmp_path)[0]) == before


def test_boxes_that_are_no_boxes_are_rejected(raw: Path, tmp_path: Path) -> None:
    folder = copied(raw, tmp_path, "refcoco") / "refcoco"
    instances = json.loads((folder / "refcoco/instances.json").read_text())
    bad = {"reversed": [50, 50, -10, 20], "empty": [10, 10, 0, 5], "outside": [5000, 10, 20, 20]}
    annotations = {a["id"]: a for a in instances["annotations"]}
    refs = pickle.loads((folder / "refcoco/refs(unc).p").read_bytes())
    train = [ref for ref in refs if ref["split"] == "train"]
    for ref, box in zip(train, bad.values(), strict=False):
        annotations[ref["ann_id"]]["bbox"] = box
    dump(folder / "refcoco/instances.json", instances)
    _, rejects = read("refcoco", tmp_path, sets=["refcoco/unc"])
    assert {"box_reversed", "box_empty", "box_outside"} <= reasons(rejects)


def test_unknown_split_of_a_set_is_told(raw: Path) -> None:
    with pytest.raises(VlmixError, match=r"no split 'testA', only test, train, val"):
        read("refcoco", raw, split="testA")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": 1, "image": ["a.jpg", "b.jpg"], "conversations": 3 * TURNS}, "image_token"),
        ({"id": 1, "image": ["a.jpg", 7], "conversations": TURNS}, "bad_image"),
        ({"id": 1, "image": ["a.jpg", "../../etc/x.jpg"], "conversations": TURNS}, "unsafe_path"),
        ({"id": 1, "image": 7, "conversations": TURNS}, "bad_image"),
        ({"id": 1, "image": "../../etc/x.jpg", "conversations": TURNS}, "unsafe_path"),
        ({"id": 1, "image": "/etc/x.jpg", "conversations": TURNS}, "unsafe_path"),
        ({"id": 1, "image": "a.jpg", "conversations": TURNS[:1]}, "odd_turns"),
        ({"id": 1, "image": "a.jpg", "conversations": TURNS[::-1]}, "role_order"),
        ({"id": 1, "image": "a.jpg", "conversations": [{"from": "robot", "value": "x"}]}, "unknown_role"),
        ({"id": 1, "image": "a.jpg", "conversations": [{"from": "human"}]}, "bad_turn"),
        ({"id": 1, "image": "a.jpg", "conversations": []}, "no_rounds"),
        ({"id": 1, "image": "a.jpg"}, "bad_turn"),
    ],
)
def test_llava_rows_that_are_no_sample_are_kept_with_the_rejects(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    dump(tmp_path / "mix.json", [row, {"id": 2, "image": "b.jpg", "conversations": TURNS}])
    found, rejects = read("llava_json", tmp_path, path="mix.json")
    assert len(found) == 1 and reasons(rejects) == {reason}
    record = json.loads(rejects[0].record)
    if reason != "unsafe_path":
        assert record == row


def test_an_answer_that_is_empty_in_effect_survives_the_round_trip(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nQ\nAnswer the question using a single word or phrase."},
        {"from": "gpt", "value": ""},
    ]
    dump(
        tmp_path / "mix.json",
        [{"id": "000000178275", "image": "coco/train2017/000000178275.jpg", "conversations": turns}],
    )
    found, rejects = read("llava_json", tmp_path, path="mix.json", recognize=True)
    assert not rejects and rows(found)[0][1] == "" and found[0].source == "okvqa"


def test_half_an_emoji_is_mended_and_told(tmp_path: Path) -> None:
    turns = r'{"from": "human", "value": "hi \ud83d"}, {"from": "gpt", "value": "\ud83d\ude00"}'
    chats = f'[{{"id": "a_0", "conversations": [{turns}]}}]'
    path = tmp_path / "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json"
    path.parent.mkdir()
    path.write_text(chats)
    found, rejects = read("sharegpt", tmp_path)
    assert rows(found) == [["hi \ufffd", "\U0001f600"]]
    assert [reject.reason for reject in rejects] == ["lone_surrogate"]


def test_text_that_holds_an_image_token_is_rejected(tmp_path: Path) -> None:
    books = {
        "1": {"questions": ["What is <image>?"], "answers": ["A tag"], "split": 1},
        "2": {"questions": ["Q"], "answers": ["A"], "split": 1},
    }
    dump(tmp_path / "ocrvqa/dataset.json", books)
    found, rejects = read("ocrvqa", tmp_path)
    assert len(found) == 1 and reasons(rejects) == {"image_token"}


def test_equal_ids_are_told(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    chats = [{"id": id, "conversations": turns} for id in ("a_0", "b_0", "a_0", "c_0", "a_0")]
    dump(tmp_path / "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json", chats)
    recipe = parse({"name": "chats", "sources": {"sharegpt": {}}}, known_sources())
    made = build(recipe, known_sources(), tmp_path, tmp_path / "out", annotations_only=True)
    assert made.samples == 3 and made.rejects == {"sharegpt": {"duplicate_id": 2}}
    rows = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert {row["id"] for row in rows} == {"sharegpt/a_0"} and "conversation" in rows[0]["detail"]
    assert all(json.loads(row["record"])["rounds"][0]["question"] == "Q" for row in rows)


def test_unequal_question_and_answer_lists_are_told(tmp_path: Path) -> None:
    books = {
        "1": {"questions": ["Q", "R"], "answers": ["A"], "split": 1},
        "2": {"questions": ["Q"], "answers": ["A"], "split": 1},
    }
    dump(tmp_path / "ocrvqa/dataset.json", books)
    assert reasons(read("ocrvqa", tmp_path)[1]) == {"unequal_lists"}


@pytest.mark.parametrize("role", [[], {}, 7, None])
def test_a_chat_whose_speaker_is_no_text_is_rejected(raw: Path, tmp_path: Path, role: Any) -> None:
    path = copied(raw, tmp_path, "sharegpt") / "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json"
    chats = json.loads(path.read_text(encoding="utf-8"))
    before = len(read("sharegpt", tmp_path)[0])
    chats.append({"id": "odd_0", "conversations": [{"from": role, "value": "q"}, {"from": "gpt", "value": "a"}]})
    dump(path, chats)
    found, rejects = read("sharegpt", tmp_path)
    assert len(found) == before
    assert [reject.reason for reject in rejects if "odd_0" in reject.id] == ["unknown_role"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sharegpt", "ShareGPT_V3_unfiltered_cleaned_split.json"),
        ("llava_json", "llava_v1_5_mix_sample.json"),
    ],
)
def test_a_latin_1_byte_in_a_text_names_the_file(raw: Path, tmp_path: Path, name: str, file: str) -> None:
    path = copied(raw, tmp_path, name) / name / file
    data = path.read_bytes()
    at = data.index(b'"value":') + len(b'"value": "')
    path.write_bytes(data[:at] + b"\xe9" + data[at:])
    with pytest.raises(VlmixError, match=re.escape(str(path))) as error:
        read(name, tmp_path, **({"path": file} if name == "llava_json" else {}))
    assert "\n" not in str(error.value)
