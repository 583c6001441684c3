"""Answer files, normalisation, and the benchmarks of short answers, against cases computed by hand."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import dump
from vlmix.builders import known_benchmarks
from vlmix.builders.benchmarks.normalise import CONTRACTIONS, evalai, vqa
from vlmix.builders.benchmarks.textvqa import asked
from vlmix.builders.benchmarks.vqa import Human, HumanAnswers, TextCache
from vlmix.mixture.benchmark.answers import Answer, Answers, read_answers
from vlmix.mixture.benchmark.benchmark import Report
from vlmix.mixture.errors import VlmixError

SHORT = "\nAnswer the question using a single word or phrase."


def answers(texts: dict[Any, str]) -> Answers:
    return Answers([Answer(question_id=str(id), text=text) for id, text in texts.items()])


def score(name: str, folder: Path, texts: dict[Any, str], split: str = "") -> Report:
    return known_benchmarks()[name].score(answers(texts), folder, split)


@pytest.mark.processes
def test_scoring_needs_no_torch() -> None:
    heavy = {"torch", "transformers", "rich", "typer"}
    code = (
        f"import sys; from vlmix.builders import known_benchmarks as known; known(); print(*{heavy} & {{*sys.modules}})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_the_twelve_and_the_held_out_checks_are_registered() -> None:
    assert list(known_benchmarks()) == [
        "vqav2",
        "gqa",
        "vizwiz",
        "scienceqa",
        "textvqa",
        "pope",
        "mme",
        "mmbench",
        "mmbench-cn",
        "seed",
        "llava-bench",
        "mm-vet",
        "aokvqa",
        "aokvqa-choice",
        "okvqa",
        "refcoco",
    ]
    assert [name for name, benchmark in known_benchmarks().items() if benchmark.needs_judge] == [
        "llava-bench",
        "mm-vet",
    ]


# Answer files


@pytest.mark.parametrize(
    "content",
    [
        '{"question_id": 7, "prompt": "?", "text": "red", "metadata": {}}\n\n{"question_id": "8", "text": ""}\n',
        '[{"question_id": 7, "answer": "red"}, {"question_id": 8, "answer": ""}]',
        '[\n {"questionId": "7", "prediction": "red"},\n {"questionId": "8", "prediction": ""}\n]',
        '\ufeff{\n  "7": "red",\n  "8": ""\n}',
        '{"7": "red", "8": ""}',
    ],
)
def test_answer_files_of_all_tools_are_read(tmp_path: Path, content: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content, encoding="utf-8")
    read = read_answers(path)
    assert [(row.question_id, row.text) for row in read.rows] == [("7", "red"), ("8", "")]


def test_damaged_lines_are_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    good = '{"question_id": 1, "text": "a"}'
    path.write_text("\n".join([good, '{"question_id": 2, "te', good, '{"text": "no id"}', "[]", *["x"] * 5]))
    with pytest.raises(VlmixError, match=r"answers.jsonl: lines 2, 4, 5, 6, 7 and 3 more of 10: no answer"):
        read_answers(path)
    lenient = read_answers(path, strict=False)
    assert len(lenient) == 2
    assert lenient.damaged == (2, 4, 5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "holds no answers"),
        (b" \n\n", "holds no answers"),
        (b"[]", "holds no answers"),
        (b"{}", "holds no answers"),
        (b"\x80\x04\x95", "line 1 of 1: no answer"),
        (b'[{"question_id": 1, "answer": "a"}', "expected a JSON list"),
        (b'[{"question_id": 1}]', "record 1 of 1: no answer"),
    ],
)
def test_files_without_answers_are_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(VlmixError, match=match):
        read_answers(path)
    with pytest.raises(VlmixError, match="absent"):
        read_answers(tmp_path / "absent.jsonl")


# Normalisation


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("two", "2"),
        ("None", "0"),
        ("The cat.", "cat"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("p.m.", "pm"),
        ("U.S. Mail", "us mail"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("yes, it is", "yes it is"),
        ("1,000-2", "10002"),
        ("-5", "5"),
        ("St. Mary's", "st mary's"),
        ("a", ""),
        ("Im", "im"),
        ("." * 40, "." * 8),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("it's", "it's"),
        ("a:b c'd $5.00 50% #1 a&b*", "a:b c'd $5.00 50% #1 a&b*"),
        ("red - blue-green", "red bluegreen"),
        ("ten THE An dogs", "10 dogs"),
    ],
)
def test_vqa_normalisation(text: str, normal: str) -> None:
    assert vqa(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("it's", "it 's"),
        ("St. Mary's", "st mary 's"),
        ("1,000-2", "1000 2"),
        ("Yes", "yes"),
        ("What?", "what"),
        ("  The\n10,000\tdogs ", "10000 dogs"),
        ("none", "0"),
        ("." * 40, "." * 8),
    ],
)
def test_evalai_normalisation(text: str, normal: str) -> None:
    assert evalai(text) == normal


# VQA accuracy


def crowd(*texts: str, ids: bool = True, confidence: list[str] | None = None) -> HumanAnswers:
    sure = confidence or ["yes"] * len(texts)
    return HumanAnswers(
        [Human(text, n if ids else None, c) for n, (text, c) in enumerate(zip(texts, sure))], TextCache()
    )


@pytest.mark.parametrize(("equal", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_each_human_is_left_out_in_turn(equal: int, accuracy: float) -> None:
    people = crowd(*["red"] * equal, *["blue"] * (10 - equal))
    assert people.accuracy("red") == pytest.approx(accuracy)
    assert people.accuracy("The Red.") == pytest.approx(accuracy)


def test_unanimous_answers_are_compared_as_they_are() -> None:
    assert crowd(*["yes"] * 10).accuracy("Yes") == 0
    assert crowd(*["yes"] * 10).accuracy(" yes\n") == 1
    assert crowd(*["Yes\n"] * 10).accuracy("Yes") == 1
    assert crowd(*["yes"] * 9, "no").accuracy("Yes") == 1
    assert crowd(*["two"] * 10).accuracy("2") == 0


def test_equal_records_without_ids_are_left_out_together() -> None:
    people = crowd(*["red"] * 3, *["blue"] * 7, ids=False)
    assert people.accuracy("red") == pytest.approx(0.7)  # the seven that said blue see three red
    assert people.accuracy("blue") == pytest.approx(0.3)
    assert crowd(*["red"] * 10, ids=False).accuracy("red") == 0
    # Equal once normalised: "red", "a red" and "red" are one record three times, unless their confidence differs.
    people = crowd("red", "a red", "red", *["blue"] * 7, ids=False, confidence=["yes", "yes", "maybe", *["no"] * 7])
    assert people.accuracy("red") == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 7) / 10)


def official() -> Any:
    path = Path(__file__).parents[3] / "perf" / "official_vqa.py"
    spec = importlib.util.spec_from_file_location("official_vqa", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OfficialEvaluator


OFFICIAL = official()
WORD = st.sampled_from(
    ["yes", "Yes", "two", "2", "a", "the", "cat", "Cat.", "dont", "it's", "1,000", "3.5", "p.m.", ""]
)
TEXT = st.one_of(
    WORD,
    st.lists(WORD, max_size=3).map(" ".join),
    st.text(alphabet="aT1,.-/'? \n\t!;0", max_size=8),
    st.text(max_size=5),
)


@settings(max_examples=400)
@given(
    st.lists(TEXT, min_size=1, max_size=4).flatmap(
        lambda pool: st.tuples(st.lists(st.sampled_from(pool), min_size=1, max_size=10), st.sampled_from(pool) | TEXT)
    ),
    st.booleans(),
)
def test_accuracy_is_that_of_the_official_steps(case: tuple[list[str], str], ids: bool) -> None:
    texts, prediction = case
    records = [
        {"answer": text, "answer_confidence": "yes", **({"answer_id": n} if ids else {})}
        for n, text in enumerate(texts)
    ]
    people = HumanAnswers([Human(text, n if ids else None, "yes") for n, text in enumerate(texts)], TextCache())
    expected = OFFICIAL(CONTRACTIONS, {}, {}).accuracy(records, prediction)
    assert people.accuracy(prediction) == pytest.approx(expected, abs=1e-12)


# VQAv2

HUMANS = [["red"] * 3 + ["blue"] * 7, ["yes"] * 10, ["it's"] * 10, ["a"] * 5 + ["the"] * 5]


@pytest.fixture
def vqav2(tmp_path: Path) -> Path:
    tmp_path = tmp_path / "releases" / "vqav2"
    info = {"info": {"description": "This is v2.0 of the VQA dataset."}, "data_subtype": "val2014"}
    asked = [{"image_id": 42, "question": f"Which {n}?", "question_id": 42000 + n} for n in range(4)]
    annotations = [
        {
            "question_id": 42000 + n,
            "image_id": 42,
            "question_type": "which",
            "answer_type": ["other", "yes/no", "other", "other"][n],
            "multiple_choice_answer": texts[0],
            "answers": [{"answer": t, "answer_confidence": "yes", "answer_id": i} for i, t in enumerate(texts, 1)],
        }
        for n, texts in enumerate(HUMANS)
    ]
    dump(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {**info, "questions": asked})
    dump(tmp_path / "v2_mscoco_val2014_annotations.json", {**info, "annotations": annotations})
    return tmp_path


def test_vqav2_scores_predictions_as_llava_submits_them(vqav2: Path) -> None:
    report = score("vqav2", vqav2, {42000: "Red", 42001: "Yes", 42002: "it's", 42003: "dog"})
    # "Yes" is sent as "yes", "it's" as "it 's", which no longer matches.
    assert report.score == round(100 * (0.9 + 1 + 0 + 0) / 4, 2) == 47.5
    assert report.metrics == {
        "other": 30.0,
        "question type/which": 47.5,
        "yes/no": 100.0,
        "raw text": round(100 * (0.9 + 0 + 1 + 0) / 4, 2),
    }
    assert (report.answered, report.missing, report.duplicates, report.unknown) == (4, 0, 0, 0)


def test_vqav2_missing_answers_count_as_empty_double_ones_by_the_last(vqav2: Path) -> None:
    rows = [(42001, "no"), (42001, "yes"), (7, "yes"), (42000, "blue")]
    found = known_benchmarks()["vqav2"].score(Answers([Answer(question_id=str(i), text=t) for i, t in rows]), vqav2)
    # The ten articles of question 3 normalise to nothing, and an empty answer matches them.
    assert found.score == 75.0
    assert (found.answered, found.missing, found.duplicates, found.unknown) == (2, 2, 1, 1)
    assert any("missing answers count as empty" in note for note in found.notes)


def test_vqav2_questions_are_llavas(vqav2: Path) -> None:
    questions = known_benchmarks()["vqav2"].questions(vqav2)
    assert [q.id for q in questions] == ["42000", "42001", "42002", "42003"]
    assert questions[1].text == "Which 1?" + SHORT
    assert questions[1].image == "coco/val2017/000000000042.jpg"
    test = {
        "info": {},
        "data_subtype": "test2015",
        "questions": [{"image_id": 1, "question": "A?", "question_id": 1000}],
    }
    path = dump(vqav2 / "v2_OpenEnded_mscoco_test2015_questions.json", test)
    assert (
        known_benchmarks()["vqav2"].questions(vqav2, "test")[0].image == "coco/test2015/COCO_test2015_000000000001.jpg"
    )
    assert known_benchmarks()["vqav2"].questions(path) == known_benchmarks()["vqav2"].questions(vqav2, "test")


def test_vqav2_submission_has_every_question_processed(vqav2: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "submission.json"
    said = known_benchmarks()["vqav2"].submission(answers({42000: "The U.S. Mail", 42001: "it's"}), vqav2, out, "val")
    assert json.loads(out.read_text()) == [
        {"question_id": 42000, "answer": "us mail"},
        {"question_id": 42001, "answer": "it 's"},
        {"question_id": 42002, "answer": ""},
        {"question_id": 42003, "answer": ""},
    ]
    assert "4 answers, 2 of them empty" in said


def test_a_file_with_another_name_is_taken_where_it_is_named(vqav2: Path) -> None:
    path = vqav2 / "v2_mscoco_val2014_annotations.json"
    part = json.loads(path.read_text())
    part["annotations"] = part["annotations"][:1]
    assert score("vqav2", dump(vqav2 / "mine.json", part), {42000: "blue"}).score == 100.0
    # Another of the official files leads to the one that is wanted.
    assert score("vqav2", vqav2 / "v2_OpenEnded_mscoco_val2014_questions.json", {42000: "blue"}).missing == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda p: p.unlink(),
            r"v2_mscoco_val2014_annotations.json is missing \(the folder has .*get it from https://visualqa.org",
        ),
        (lambda p: p.write_bytes(b""), "annotations.json is empty; .*get it again"),
        (lambda p: p.write_bytes(p.read_bytes()[:-50]), "annotations.json: Input data was truncated; .*get it again"),
        (lambda p: p.write_text("{}"), "missing required field `annotations`; this is not the VQAv2 file"),
        (lambda p: p.write_text(p.read_text().replace("v2.0 of the VQA", "OK-VQA")), "its info says .*expected 'v2.0"),
        (lambda p: dump(p, {"annotations": [{"question_id": 42000}]}), "42000 has no answers, as in a test split"),
    ],
)
def test_files_that_are_not_the_official_ones_are_refused(vqav2: Path, change: Any, match: str) -> None:
    change(vqav2 / "v2_mscoco_val2014_annotations.json")
    with pytest.raises(VlmixError, match=match):
        score("vqav2", vqav2, {42000: "red"})


def test_answers_of_another_benchmark_are_refused(vqav2: Path) -> None:
    with pytest.raises(VlmixError, match=r"none of its 2 answers is for a question of .*'n1'.*'42000'"):
        score("vqav2", vqav2, {"n1": "red", "n2": "red"})
    with pytest.raises(VlmixError, match="no split 'vall'; did you mean 'val'"):
        score("vqav2", vqav2, {42000: "red"}, "vall")
    with pytest.raises(VlmixError, match="does not exist"):
        score("vqav2", vqav2 / "absent", {42000: "red"})


def test_files_are_found_in_an_archives_own_folder_if_only_once(vqav2: Path) -> None:
    assert score("vqav2", vqav2.parent, {42000: "blue"}).answered == 1
    shutil.copytree(vqav2, vqav2.with_name("copy"))
    with pytest.raises(VlmixError, match=r"is there more than once \(.*; keep one"):
        score("vqav2", vqav2.parent, {42000: "blue"})


# OK-VQA, A-OKVQA, VizWiz


def test_okvqa_is_scored_against_stems_and_against_typed_answers(tmp_path: Path) -> None:
    people = [{"answer": "surf", "raw_answer": "surfing", "answer_confidence": "yes", "answer_id": n} for n in range(9)]
    people.append({"answer": "swim", "raw_answer": "swim", "answer_confidence": "yes", "answer_id": 9})
    annotations = {
        "question_id": 425,
        "image_id": 42,
        "answers": people,
        "question_type": "four",
        "answer_type": "other",
    }
    info = {"info": {"description": "This is v1.0 of the OK-VQA dataset."}, "question_types": {"four": "Sports"}}
    dump(tmp_path / "mscoco_val2014_annotations.json", {**info, "annotations": [annotations]})
    report = score("okvqa", tmp_path, {425: "Surf"})
    assert report.score == 100.0
    assert report.metrics["as typed"] == 0.0
    assert report.metrics["question type/Sports"] == 100.0
    assert score("okvqa", tmp_path, {425: "surfing"}).metrics["as typed"] == 100.0


def test_aokvqa_counts_equal_answers_as_they_stand_without_difficult_questions(tmp_path: Path) -> None:
    rows = [
        ("q1", ["surf"] * 2 + ["Surf"] * 8, False),
        ("q2", ["the sea"] * 5 + ["sea"] * 5, False),
        ("q3", ["x"] * 10, True),
    ]
    records = [
        {
            "split": "val",
            "image_id": 42,
            "question_id": id,
            "question": "Which?",
            "choices": ["surf", "sea", "x", "y"],
            "correct_choice_idx": 1,
            "direct_answers": texts,
            "difficult_direct_answer": difficult,
        }
        for id, texts, difficult in rows
    ]
    dump(tmp_path / "aokvqa_v1p0_val.json", records)
    report = score("aokvqa", tmp_path, {"q1": "Surf", "q2": "the sea", "q3": "x"})
    assert report.score == pytest.approx(100 * (2 / 3 + 1) / 2)  # sent as "surf" and "sea"
    assert report.metrics["raw text"] == 100.0
    assert report.metrics["VQA accuracy"] == 100.0  # by VQA's rule capitals and articles do not matter
    assert any("1 questions marked difficult" in note for note in report.notes)
    choices = score("aokvqa-choice", tmp_path, {"q1": "B", "q2": "B. sea", "q3": "sea"})
    assert (choices.score, choices.metrics["letter alone"]) == (100.0, pytest.approx(200 / 3))
    assert score("aokvqa-choice", tmp_path, {"q1": "b", "q2": "Because", "q3": "A"}).score == 0
    question = known_benchmarks()["aokvqa-choice"].questions(tmp_path)[0]
    assert question.text.splitlines()[1:] == [
        "A. surf",
        "B. sea",
        "C. x",
        "D. y",
        "Answer with the option's letter from the given choices directly.",
    ]


@pytest.fixture
def vizwiz(tmp_path: Path) -> Path:
    def row(number: int, texts: list[str]) -> dict[str, Any]:
        people = [{"answer": text, "answer_confidence": "yes"} for text in texts]
        return {
            "image": f"VizWiz_val_{number:08}.jpg",
            "question": "what IS this? please.",
            "answers": people,
            "answer_type": "other" if number else "unanswerable",
            "answerable": number,
        }

    dump(tmp_path / "val.json", [row(0, ["unanswerable"] * 10), row(1, ["Soda can"] * 2 + ["soda can"] * 8)])
    test = [{"image": f"VizWiz_test_{n:08}.jpg", "question": "Hi?"} for n in range(2)]
    dump(tmp_path / "test.json", test)
    return tmp_path


def test_vizwiz_tells_people_apart_by_position(vizwiz: Path) -> None:
    report = score("vizwiz", vizwiz, {0: "Unanswerable", 1: "The soda can"})
    assert report.score == 100.0
    assert report.metrics["unanswerable"] == 100.0
    assert report.metrics["VizWiz API"] == 100.0
    assert score("vizwiz", vizwiz, {"VizWiz_val_00000001.jpg": "soda can"}).score == 50.0


def test_vizwiz_of_the_first_questions_misses_none_of_the_others(vizwiz: Path) -> None:
    first = answers({0: "Unanswerable"})
    first.asked = frozenset(["0"])
    report = known_benchmarks()["vizwiz"].score(first, vizwiz)
    assert (report.score, report.answered, report.missing) == (100.0, 1, 0)
    assert not any("missing" in note for note in report.notes)


def test_vizwiz_questions_and_submission(vizwiz: Path, tmp_path: Path) -> None:
    question = known_benchmarks()["vizwiz"].questions(vizwiz)[1]
    assert question.id == "1"
    assert question.image == "vizwiz/val/VizWiz_val_00000001.jpg"
    assert question.text == (
        "What is this? please.\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT
    )
    out = tmp_path / "vizwiz.json"
    known_benchmarks()["vizwiz"].submission(answers({0: "Two.", 1: "it's"}), vizwiz, out)
    assert json.loads(out.read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "2"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "it 's"},
    ]
    with pytest.raises(VlmixError, match="1 of 2 questions have no answer, the first is 1 .*whole files only"):
        known_benchmarks()["vizwiz"].submission(answers({0: "Two."}), vizwiz, out)
    with pytest.raises(VlmixError, match="has no answers, as in the test split"):
        score("vizwiz", vizwiz, {0: "x"}, "test")


# TextVQA

DAKOTA = ["nous les gosses", "dakota", "clos culombu", "dakota digital", "dakota"]
DAKOTA += ["dakota", "dakota digital", "dakota digital", "dakota", "dakota"]


@pytest.fixture
def textvqa(tmp_path: Path) -> Path:
    rows = [
        {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "what is the Brand?", "answers": DAKOTA},
        {"question_id": 34603, "image_id": "003a8ae2ef43b901", "question": "what year?", "answers": ["1,000-2"] * 10},
        {"question_id": 34604, "image_id": "00000000000000ff", "question": "who?", "answers": ["St. Mary's"] * 10},
    ]
    dump(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows, "dataset_type": "val"})
    ocr = [
        {"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL"]},
        {"image_id": "00000000000000ff", "ocr_tokens": []},
    ]
    dump(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    return tmp_path


def test_textvqa_always_normalises_and_scores_by_m4c(textvqa: Path) -> None:
    for text, expected in {"Dakota.": 1.0, "the dakota digital": 0.9, "Nous les gosses": 0.3, "camera": 0.0}.items():
        assert score("textvqa", textvqa, {34602: text}).score == pytest.approx(100 * expected)
    assert score("textvqa", textvqa, {34603: "1000 2"}).score == 100.0
    assert score("textvqa", textvqa, {34603: "10002"}).score == 0.0
    assert score("textvqa", textvqa, {34604: "st mary's"}).score == 100.0


def test_textvqa_joins_llavas_files_on_image_and_question(textvqa: Path) -> None:
    image = "003a8ae2ef43b901"
    rows = [
        Answer(question_id=image, prompt="What is the brand?\nReference OCR token: DAKOTA" + SHORT, text="dakota"),
        Answer(question_id=image, prompt="What year?" + SHORT, text="x"),
        Answer(question_id=image, prompt="What year?" + SHORT, text="1000 2"),
        Answer(question_id=image, prompt="What month?" + SHORT, text="x"),
        Answer(question_id=image, prompt="one line", text="x"),
    ]
    report = known_benchmarks()["textvqa"].score(Answers(rows), textvqa)
    assert (report.answered, report.missing, report.duplicates, report.unknown) == (2, 1, 1, 2)
    assert report.score == pytest.approx(
        100 * (1 + 0 + 1) / 3
    )  # a double answer counts twice, a missing one not at all
    assert report.metrics["missing as wrong"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Who?\nReference OCR token: A, B" + SHORT, "who?"),
        ("Reference OCR token: A\nWho?" + SHORT, "who?"),
        ("Who?" + SHORT, "who?"),
        ("OCR tokens: A, B. Question: Who? Short answer:", "who?"),
        ("Who?", None),
        ("Who?\nA\nB\nReference OCR token: ", None),
    ],
)
def test_textvqa_finds_the_question_in_the_prompt(prompt: str, question: str | None) -> None:
    assert asked(prompt) == question


def test_textvqa_questions_keep_an_empty_token_line(textvqa: Path) -> None:
    first, _, third = known_benchmarks()["textvqa"].questions(textvqa)
    assert (first.id, first.image) == ("34602", "textvqa/train_images/003a8ae2ef43b901.jpg")
    assert first.text == "What is the brand?\nReference OCR token: DAKOTA, DIGITAL" + SHORT
    assert third.text == "Who?\nReference OCR token: " + SHORT


def test_textvqa_asserts_ten_answers(textvqa: Path) -> None:
    path = textvqa / "TextVQA_0.5.1_val.json"
    path.write_text(path.read_text().replace('"nous les gosses", ', ""))
    with pytest.raises(VlmixError, match="question 34602 has 9 answers, the evaluator takes 10"):
        score("textvqa", textvqa, {34602: "x"})


def test_textvqa_questions_are_those_of_llavas_own_file(real: Path, tmp_path: Path) -> None:
    lines = (real / "textvqa/llava_textvqa_val_ocr_50.jsonl").read_text().splitlines()
    theirs = {(row["question_id"], row["text"].split("\n")[0].lower()): row["text"] for row in map(json.loads, lines)}
    tokens = {}
    for (image, _), text in theirs.items():
        listed = text.split("\n")[1].removeprefix("Reference OCR token: ")
        tokens[image] = listed.split(", ") if listed else []
    data = json.loads((real / "textvqa/TextVQA_0.5.1_val.json").read_text())
    dump(tmp_path / "TextVQA_0.5.1_val.json", data)
    ocr = [{"image_id": image, "ocr_tokens": words} for image, words in tokens.items()]
    dump(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    ours = known_benchmarks()["textvqa"].questions(tmp_path)
    compared = 0
    for question, row in zip(ours, data["data"]):
        if (key := (row["image_id"], row["question"].lower())) in theirs:
            assert question.text == theirs[key]
            compared += 1
    assert compared


# GQA


def gqa_row(
    question: str, answer: str, structural: str = "query", group: str | None = None, **more: Any
) -> dict[str, Any]:
    steps = [("select", "chair (1)"), ("relate", "_,left of,s (2)"), ("query", "name")]
    return {
        "semantic": [{"operation": o, "argument": a, "dependencies": []} for o, a in steps],
        "imageId": "n161313",
        "question": question,
        "isBalanced": True,
        "answer": answer,
        "types": {"structural": structural, "semantic": "rel", "detailed": "x"},
        "groups": {"global": group, "local": "x"},
        **more,
    }


@pytest.fixture
def gqa(tmp_path: Path) -> Path:
    rows = {
        "1": gqa_row("What color is it?", "red", group="color"),
        "2": gqa_row("What color is the dog?", "red", group="color"),
        "3": gqa_row("What color is the cat?", "blue", group="color"),
        "4": gqa_row("What is it?", "chair", group="furniture"),
        "5": gqa_row("Is it so?", "yes", "verify"),
        "6": gqa_row("Is it so?", "yes", "verify", isBalanced=False),
    }
    dump(tmp_path / "testdev_balanced_questions.json", rows)
    return tmp_path


def test_gqa_is_exact_match_after_llavas_two_changes(gqa: Path) -> None:
    report = score("gqa", gqa, {1: "Red.", 2: "blue", 3: "BLUE...", 4: "chair", 5: "a yes", 6: "no"})
    assert report.score == 60.0
    assert report.metrics["open"] == 75.0
    assert report.metrics["binary"] == 0.0
    assert report.metrics["structural/verify"] == 0.0
    assert report.metrics["semantic/rel"] == 60.0
    assert report.metrics["words/04"] == 100.0
    assert report.metrics["steps/02"] == 60.0  # "query: name" is no step
    # color: gold 2 red, 1 blue; predicted 1 red, 2 blue: (1 - 2)²/2 + (2 - 1)²/1 = 1.5, three questions; furniture: 0.
    assert report.metrics["distribution (lower is better)"] == pytest.approx((1.5 * 3 + 0 * 1) / 4 / 100)


@pytest.mark.parametrize("text", [" red", "red,", "a red", "red ."])
def test_gqa_normalises_nothing_else(gqa: Path, text: str) -> None:
    assert score("gqa", gqa, {1: text}).score == 0.0


def test_gqa_missing_balanced_answers_are_wrong_and_told(gqa: Path) -> None:
    report = score("gqa", gqa, {1: "red", 6: "yes"})
    assert report.score == 20.0
    assert any(note.startswith("4 balanced questions without an answer") for note in report.notes)


def test_gqa_falls_back_to_val(gqa: Path, tmp_path: Path) -> None:
    folder = tmp_path / "only"
    dump(folder / "questions1.2" / "val_balanced_questions.json", {"1": gqa_row("Is it?", "yes", "verify")})
    assert score("gqa", folder, {1: "Yes"}).split == "val_balanced"
    assert score("gqa", gqa, {1: "red"}).split == "testdev_balanced"
    question = known_benchmarks()["gqa"].questions(folder, "val")[0]
    assert (question.image, question.text) == ("gqa/images/n161313.jpg", "Is it?" + SHORT)
    with pytest.raises(VlmixError, match="testdev_balanced_questions.json is missing"):
        known_benchmarks()["gqa"].questions(folder, "testdev")


# The miniature releases


@pytest.mark.parametrize("name", ["vqav2", "okvqa", "aokvqa", "aokvqa-choice", "gqa", "refcoco", "textvqa"])
def test_the_miniature_releases_are_asked_and_scored(raw: Path, name: str) -> None:
    folder = raw / {"aokvqa-choice": "aokvqa", "textvqa": "textcaps"}.get(name, name)
    questions = known_benchmarks()[name].questions(folder)
    assert len({question.id for question in questions}) == len(questions) > 20
    report = score(name, folder, {question.id: "No" for question in questions})
    assert (report.answered, report.missing, report.unknown) == (len(questions), 0, 0)
    assert 0 <= report.score < 100


def test_true_answers_of_the_miniature_releases_score_high(raw: Path) -> None:
    annotations = json.loads((raw / "vqav2/v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    assert (
        score("vqav2", raw / "vqav2", {t["question_id"]: t["multiple_choice_answer"] for t in annotations}).score > 95
    )
    rows = json.loads((raw / "gqa/val_balanced_questions.json").read_text())
    truth = {id: row["answer"].capitalize() for id, row in rows.items()}
    assert score("gqa", raw / "gqa", truth, "val").score == 100.0
    records = json.loads((raw / "aokvqa/aokvqa_v1p0_val.json").read_text())
    letters = {record["question_id"]: "ABCD"[record["correct_choice_idx"]] for record in records}
    assert score("aokvqa-choice", raw / "aokvqa", letters).score == 100.0


def test_images_of_the_miniature_releases_are_where_questions_say(raw: Path) -> None:
    from vlmix.mixture.io.image_index import ImageIndex

    for name in ("vqav2", "okvqa", "aokvqa", "gqa", "refcoco", "textvqa"):
        benchmark = known_benchmarks()[name]
        index = ImageIndex([raw], benchmark.images)
        folder = raw / {"textvqa": "textcaps"}.get(name, name)
        found = [bool(index.candidates(question.image)) for question in benchmark.questions(folder)]
        assert sum(found) / len(found) > 0.9, name


def test_an_answer_cut_inside_an_emoji_is_an_answer(tmp_path: Path) -> None:
    """Python reads the line; the half becomes the character for what is none."""
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"question_id": 1, "text": "so nice \ud83d"}) + "\n")
    (row,) = read_answers(path).rows
    assert row.text == "so nice \ufffd"
