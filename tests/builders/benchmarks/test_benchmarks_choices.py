"""Yes/no, letters and boxes: POPE, MME, ScienceQA, SEED-Bench, MMBench, RefCOCO, against cases computed by hand."""

import base64
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import dump
from vlmix.builders import known_benchmarks
from vlmix.builders.benchmarks import mmbench, mme, pope, refcoco, scienceqa
from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.benchmark import Report
from vlmix.mixture.boxes import square_text
from vlmix.mixture.errors import VlmixError

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def answers(texts: dict[Any, str]) -> Answers:
    return Answers([Answer(question_id=str(id), text=text) for id, text in texts.items()])


def score(name: str, folder: Path, texts: dict[Any, str], split: str = "") -> Report:
    return known_benchmarks()[name].score(answers(texts), folder, split)


# POPE


@pytest.mark.parametrize("text", ["No", "no, there is none", "It is not. Yes", "No.", "is no", " no", "There is, no"])
def test_pope_reads_no(text: str) -> None:
    assert not pope.says_yes(text)


@pytest.mark.parametrize("text", ["Yes", "NO", "Not", "none", "", "no\n", "There is. no", "Nope", "nothing", "no-one"])
def test_pope_reads_all_else_as_yes(text: str) -> None:
    assert pope.says_yes(text)


@pytest.fixture
def pope_folder(tmp_path: Path) -> Path:
    for name in pope.OFFSETS:
        rows = [
            {
                "question_id": n,
                "image": "COCO_val2014_000000310196.jpg",
                "text": f"Is there a {name} in the image?",
                "label": label,
            }
            for n, label in enumerate(["yes", "yes", "no", "no"], 1)
        ]
        path = tmp_path / "coco" / f"coco_pope_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


POPE_TEXTS = {
    1: "Yes", 2: "No, there is no such thing.", 3: "no\n", 4: "NO",
    10_000_001: "Yes", 10_000_002: "yes", 10_000_003: "No", 10_000_004: "no",
    20_000_001: "Not", 20_000_002: "none", 20_000_003: "", 20_000_004: "yes",
}  # fmt: skip


def test_pope_is_the_mean_f1_of_the_splits(pope_folder: Path) -> None:
    report = score("pope", pope_folder, POPE_TEXTS)
    # adversarial: yes no yes yes against yes yes no no: TP 1, FP 2, TN 0, FN 1. popular: four times yes.
    assert report.metrics["adversarial/precision"] == pytest.approx(100 / 3)
    assert report.metrics["adversarial/recall"] == 50.0
    assert report.metrics["adversarial/f1"] == pytest.approx(40.0)
    assert report.metrics["adversarial/accuracy"] == 25.0
    assert report.metrics["adversarial/yes ratio"] == 75.0
    assert report.metrics["random/f1"] == 100.0
    assert report.metrics["popular/f1"] == pytest.approx(100 * 2 / 3)
    assert report.score == pytest.approx((40 + 100 + 200 / 3) / 3)
    assert report.metrics["by id, not by place"] == pytest.approx(report.score)


def test_pope_as_lmms_eval_counts_it(pope_folder: Path) -> None:
    metrics = score("pope", pope_folder, POPE_TEXTS).metrics
    # Only a bare yes or no counts: adversarial 3 of 4 right, random 4, popular 0; TP 3, FP 1, FN 0.
    assert metrics["lmms-eval/accuracy"] == pytest.approx(100 * 7 / 12)
    assert metrics["lmms-eval/precision"] == 75.0
    assert metrics["lmms-eval/recall"] == 100.0
    assert metrics["lmms-eval/f1"] == pytest.approx(100 * 2 * 0.75 / 1.75)
    assert metrics["lmms-eval/yes ratio"] == 50.0  # of the labels


def test_models_are_compared_by_the_questions_of_pope_not_by_places(pope_folder: Path) -> None:
    """A model that leaves out a question would be wrong from there on."""
    answers = Answers([Answer(question_id=str(id), text="Yes" if id % 10 < 3 else "No") for id in (2, 3, 4)])
    scored = known_benchmarks()["pope"].scored(answers, pope_folder, "adversarial")
    assert scored.values is not None and scored.report.score < 100 == scored.values.score()
    assert scored.values.ids().to_pylist() == ["2", "3", "4"]


def test_pope_compares_by_place_and_tells_where_ids_part(pope_folder: Path) -> None:
    texts = {10_000_001: "Yes", 10_000_003: "No", 10_000_004: "No"}
    report = score("pope", pope_folder, texts, "random")
    # By place: yes no no against yes yes no: TP 1, FN 1, TN 1. By id all three are right.
    assert report.metrics["random/f1"] == report.score == pytest.approx(100 * 2 / 3)
    assert report.metrics["by id, not by place"] == 100.0
    assert report.missing == 1
    assert any(
        "random: the 3 answers and the 4 labels of coco_pope_random.json part at place 2" in n for n in report.notes
    )


def test_pope_without_a_yes_scores_nothing_instead_of_stopping(pope_folder: Path) -> None:
    report = score("pope", pope_folder / "coco" / "coco_pope_random.json", dict.fromkeys(range(1, 5), "No"))
    assert (report.score, report.split) == (0.0, "random")
    assert any("divides by zero" in note for note in report.notes)


def test_pope_questions_have_llavas_ids_and_images(pope_folder: Path) -> None:
    questions = known_benchmarks()["pope"].questions(pope_folder)
    assert [question.id for question in questions[::4]] == ["1", "10000001", "20000001"]
    assert questions[4].text == "Is there a random in the image?" + SHORT
    assert questions[0].image == "coco/val2017/000000310196.jpg"
    (pope_folder / "coco" / "coco_pope_popular.json").unlink()
    assert any("without popular" in note for note in score("pope", pope_folder, POPE_TEXTS).notes)
    with pytest.raises(VlmixError, match=r"coco_pope_popular.json is missing"):
        known_benchmarks()["pope"].questions(pope_folder, "popular")


# MME


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("yes, it is", "yes"),
        (" Yes", "yes"),
        ("No.", "no"),
        ("now yes", "no"),
        ("noyes", "no"),
        ("a yes", "other"),
        ("The answer is yes", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_the_first_four_characters(text: str, said: str) -> None:
    assert mme.verdict(text) == said


@pytest.fixture
def mme_folder(tmp_path: Path) -> Path:
    root = tmp_path / "MME_Benchmark_release_version"
    for name in ("a", "b"):
        path = root / "existence" / "questions_answers_YN" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"Is there an {name}? Please answer yes or no.\tYes\nIs there a z?  Please answer yes or no.\tNo\n"
        )
        image = root / "existence" / "images" / f"{name}.jpg"
        image.parent.mkdir(exist_ok=True)
        image.touch()
    code = root / "code_reasoning"
    code.mkdir()
    (code / "0001.txt").write_text("Is it 1? Please answer yes or no.\tYes\nIs it 2? Please answer yes or no.\tNo\n")
    (code / "0001.png").touch()
    return tmp_path


def test_mme_adds_accuracy_and_accuracy_plus(mme_folder: Path) -> None:
    texts = {
        "existence/images/a.jpg#1": "Yes",
        "existence/images/a.jpg#2": "No.",
        "existence/images/b.jpg#1": "yes, there is",
        "existence/images/b.jpg#2": "The answer is no",
        "code_reasoning/0001.png#1": "I say yes",
        "code_reasoning/0001.png#2": "No",
    }
    report = score("mme", mme_folder, texts)
    assert report.score == report.metrics["perception"] == report.metrics["existence"] == 75 + 50
    assert (report.metrics["existence/acc"], report.metrics["existence/acc+"]) == (75.0, 50.0)
    assert report.metrics["cognition"] == 50 + 0
    assert any("without count, position" in note for note in report.notes)
    assert any("2 answers are neither yes nor no" in note for note in report.notes)
    assert score("mme", mme_folder, texts, "cognition").score == 50.0


def test_an_mme_task_is_a_split_and_the_tasks_add_up(tmp_path: Path) -> None:
    """Against MME's paper: a task has at most 200 points, the ten of perception 2,000, the four of cognition 800."""
    parts = {"perception": mme.PERCEPTION, "cognition": mme.COGNITION}
    for name in (*mme.PERCEPTION, *mme.COGNITION):
        folder = tmp_path / "MME_Benchmark_release_version" / name
        folder.mkdir(parents=True)
        for image in ("a", "b"):
            (folder / f"{image}.txt").write_text(f"Is it {name}?\tYes\nIs it not?\tNo\n")
            (folder / f"{image}.jpg").touch()
    benchmark = known_benchmarks()["mme"]
    gold = {q.id: "Yes" if q.id.endswith("#1") else "No" for q in benchmark.questions(tmp_path)}
    some = {id: text if number % 7 else "Yes" for number, (id, text) in enumerate(gold.items())}
    for texts, full in ((gold, True), (some, False)):
        for part, tasks in parts.items():
            reports = {name: score("mme", tmp_path, texts, name) for name in tasks}
            assert sum(report.score for report in reports.values()) == score("mme", tmp_path, texts, part).score
            assert not full or {report.score for report in reports.values()} == {200.0}
    assert [q.id for name in mme.PERCEPTION for q in benchmark.questions(tmp_path, name)] == [
        q.id for q in benchmark.questions(tmp_path, "perception")
    ]
    report = score("mme", tmp_path, gold, "existence")
    assert (report.split, report.answered, report.missing) == ("existence", 4, 0)
    assert report.metrics.keys() == {"existence", "existence/acc", "existence/acc+"}
    assert report.notes[0] == "acc and acc+ of the task existence alone, at most 200: this is not the published sum"
    with pytest.raises(VlmixError, match="no split 'existense'; did you mean 'existence'"):
        benchmark.questions(tmp_path, "existense")
    for file in (tmp_path / "MME_Benchmark_release_version" / "count").iterdir():
        file.unlink()
    file.parent.rmdir()
    with pytest.raises(VlmixError, match="it has no task count"):
        benchmark.questions(tmp_path, "count")


def test_mme_knows_llavas_rows_by_image_and_question(mme_folder: Path) -> None:
    image = "existence/images/a.jpg"
    rows = [
        Answer(question_id=image, prompt="Is there an a?" + SHORT, text="Yes"),
        Answer(question_id=image, prompt="Is there a z?" + SHORT, text="No"),
        Answer(question_id=image, prompt="Is there a z? Please answer yes or no.", text="Yes"),
        Answer(question_id=image, prompt="Is there a q?" + SHORT, text="Yes"),
    ]
    report = known_benchmarks()["mme"].score(Answers(rows), mme_folder, "perception")
    assert (report.answered, report.missing, report.duplicates, report.unknown) == (2, 2, 1, 1)
    assert report.score == 25 + 0
    assert any("pairs lines by place" in note for note in report.notes)


def test_mme_questions_drop_the_request_for_yes_or_no(mme_folder: Path) -> None:
    questions = known_benchmarks()["mme"].questions(mme_folder)
    assert questions[1].id == "existence/images/a.jpg#2"
    assert questions[1].text == "Is there a z?" + SHORT
    assert questions[1].image == "MME_Benchmark_release_version/existence/images/a.jpg"
    assert questions[-1].image == "MME_Benchmark_release_version/code_reasoning/0001.png"
    inside = known_benchmarks()["mme"].questions(mme_folder / "MME_Benchmark_release_version")
    assert inside[1].image == "existence/images/a.jpg"
    assert [question.id for question in inside] == [question.id for question in questions]


def test_mme_refuses_a_broken_pair(mme_folder: Path) -> None:
    path = mme_folder / "MME_Benchmark_release_version" / "code_reasoning" / "0001.txt"
    path.write_text("Is it 1?\tYes\n")
    with pytest.raises(VlmixError, match="0001.txt: it is not two lines of question, tab, Yes or No"):
        score("mme", mme_folder, {"x": "Yes"})
    with pytest.raises(VlmixError, match="MME_Benchmark_release_version/existence is missing"):
        score("mme", mme_folder / "MME_Benchmark_release_version" / "existence" / "images", {"x": "Yes"})


# ScienceQA


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("E", "E"),
        ("F", None),
        ("a", None),
        ("B. a liquid", "B"),
        ("B.", None),
        ("B) a liquid", None),
        ("The answer is D.", "D"),
        ("The answer is D!", "D"),
        ("The answer is D", None),
        ("So: The answer is A. The answer is B.", None),
        ("The answer is Z.", "Z"),
        ("", None),
    ],
)
def test_scienceqa_finds_the_letter(text: str, letter: str | None) -> None:
    assert scienceqa.chosen(text) == letter


@pytest.fixture
def science(tmp_path: Path) -> Path:
    def problem(answer: int, image: str | None, hint: str = "") -> dict[str, Any]:
        return {
            "question": "Which?",
            "choices": ["x", "y"],
            "answer": answer,
            "hint": hint,
            "image": image,
            "subject": "natural science",
        }

    problems = {
        "1": problem(0, "image.png", "A hint."),
        "2": problem(1, "image.png"),
        "3": problem(0, "image.png"),
        "4": problem(0, None),
    }
    dump(tmp_path / "problems.json", problems)
    dump(tmp_path / "pid_splits.json", {"test": ["1", "2", "3", "4"], "val": []})
    return tmp_path


def test_scienceqa_counts_answered_image_questions(science: Path) -> None:
    report = score("scienceqa", science, {1: "A", 2: "C", 4: "A. x"})
    assert report.score == 50.0  # 1 and 2; 3 has no answer and drops out
    assert report.metrics["all questions"] == 50.0
    assert report.metrics["image/natural science"] == 50.0
    assert report.missing == 1


def test_scienceqa_goes_by_the_image_token_of_prompts_that_have_it(science: Path) -> None:
    rows = [
        Answer(question_id="1", prompt="<image>\nWhich?", text="A"),
        Answer(question_id="2", prompt="Which?", text="A"),
        Answer(question_id="4", prompt="<image>\nWhich?", text="B"),
    ]
    assert known_benchmarks()["scienceqa"].score(Answers(rows), science).score == 50.0


def test_scienceqa_prompts(science: Path) -> None:
    questions = known_benchmarks()["scienceqa"].questions(science)
    assert questions[0].text == f"Context: A hint.\nWhich?\nA. x\nB. y\n{LETTER}"
    assert questions[0].image == "images/test/1/image.png"
    assert questions[3].text == f"Which?\nA. x\nB. y\n{LETTER}"
    assert questions[3].image == ""
    with pytest.raises(VlmixError, match="it has no split 'val'"):
        known_benchmarks()["scienceqa"].questions(science, "val")


# SEED-Bench


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    def row(id: str, kind: str, type_id: int, answer: str) -> dict[str, Any]:
        choices = {f"choice_{letter}": letter * 2 for letter in "abcd"}
        return {
            "question_id": id,
            "question": "What?",
            **choices,
            "answer": answer,
            "data_id": "1_2",
            "data_type": kind,
            "question_type_id": type_id,
        }

    rows = [
        row("101", "image", 1, "A"),
        row("102", "image", 1, "B"),
        row("103", "image", 2, "B"),
        row("v0", "video", 10, "C"),
    ]
    dump(
        tmp_path / "SEED-Bench.json",
        {"questions": rows, "question_type": {"Scene Understanding": 1, "Instance": 2, "Action": 10}},
    )
    return tmp_path


def test_seed_takes_the_letter_alone(seed: Path) -> None:
    report = score("seed", seed, {101: "A", 102: "B.", 103: "b", "v0": "C"})
    assert report.score == 50.0
    assert report.metrics == {
        "image only": pytest.approx(100 / 3),
        "video only": 100.0,
        "type/Scene Understanding": 50.0,
        "type/Instance": 0.0,
        "type/Action": 100.0,
    }
    assert score("seed", seed, {101: "A"}).score == 25.0
    assert score("seed", seed, {101: "A"}, "image").score == pytest.approx(100 / 3)


def test_seed_questions_and_submission(seed: Path, tmp_path: Path) -> None:
    image, *_, video = known_benchmarks()["seed"].questions(seed)
    assert image.text == f"What?\nA. aa\nB. bb\nC. cc\nD. dd\n{LETTER}"
    assert image.image == "SEED-Bench-image/1_2"
    assert video.image == "SEED-Bench-video-image/10_v0.png"
    out = tmp_path / "out.jsonl"
    known_benchmarks()["seed"].submission(answers({101: "A", 102: "B", 103: "C", "v0": "D"}), seed, out)
    assert [json.loads(line) for line in out.read_text().splitlines()][-1] == {"question_id": "v0", "prediction": "D"}
    with pytest.raises(VlmixError, match="3 of 4 questions have no answer, the first is 102"):
        known_benchmarks()["seed"].submission(answers({101: "A"}), seed, out)


# MMBench

CHOICES = {"A": "cat", "B": "dog", "C": "red bird", "D": "fish"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("(B)", "B"),
        ("C. red bird", "C"),
        ("I think: D!", "D"),
        ("A is what you see", None),  # five words, the letter the first of them
        ("A is what see", "A"),
        ("The correct answer is **C** because of what the picture shows here", "C"),
        ("A or B, but the answer is b", "B"),
        ("A or B", None),
        ("a", None),
        ("it is a dog", "B"),
        ("a cat and a dog", None),
        ("DOG", "B"),
        ("the dog that stands on the lawn beside the house", None),  # longer than twice all options
        ("Sorry, I can't help with images of people yet.", "Z"),
        ("Cannot determine the answer, A", "Z"),
        ("Z", "Z"),
        ("Failed to obtain answer via API dog", "B"),
        ("Failed to obtain answer via API. A", None),
        ("", None),
    ],
)
def test_mmbench_exact_matching(text: str, letter: str | None) -> None:
    assert mmbench.chosen(text, CHOICES) == letter


PIXEL = base64.b64encode(b"\xff\xd8 image").decode()
COLUMNS = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]


def tsv(path: Path, rows: list[dict[str, str]]) -> Path:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in '"\n\t') else text

    lines = ["\t".join(COLUMNS), *("\t".join(quoted(row.get(column, "")) for column in COLUMNS) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(index: int, answer: str, **more: str) -> dict[str, str]:
    base = {
        "question": "What?",
        "A": "cat",
        "B": "dog",
        "category": "x",
        "l2-category": "X",
        "image": PIXEL,
        "split": "dev",
    }
    return {**base, "index": str(index), "answer": answer, **more}


@pytest.fixture
def mmbench_folder(tmp_path: Path) -> Path:
    rows = [
        row(1, "A"),
        row(1_000_001, "B", A="dog", B="cat"),
        row(2, "B", category="y"),
        row(1_000_002, "A", A="dog", B="cat"),
        row(1_000_003, "A"),
    ]
    tsv(tmp_path / "mmbench_dev_20230712.tsv", rows)
    return tmp_path


def test_mmbench_wants_every_rotation(mmbench_folder: Path) -> None:
    report = score("mmbench", mmbench_folder, {1: "A", 1000001: "the cat", 2: "B", 1000002: "who knows"})
    assert report.score == 50.0
    assert report.split == "dev"
    assert report.metrics == {
        "category/x": 100.0,
        "category/y": 0.0,
        "l2-category/X": 50.0,
        "single rotations": 60.0,
    }
    assert any("1 answers match no option" in note for note in report.notes)
    assert any("1 groups have no unrotated row" in note for note in report.notes)
    assert score("mmbench", mmbench_folder, {1: "A"}).score == 0.0


def test_mmbench_options_end_at_the_first_that_is_none(tmp_path: Path) -> None:
    path = tsv(
        tmp_path / "mmbench_dev_20230712.tsv",
        [
            row(1, "D", hint='Look,\t"here"\nwell', C="nan", D="bird"),
            row(2, "A", hint="NaN", C="none", D="fish", image="1"),
        ],
    )
    first, second = known_benchmarks()["mmbench"].questions(tmp_path)
    assert first.text == f'Look,\t"here"\nwell\nWhat?\nA. cat\nB. dog\n{LETTER}'
    assert second.text == f"What?\nA. cat\nB. dog\n{LETTER}"
    assert first.image == ""
    assert first.image_bytes == second.image_bytes == b"\xff\xd8 image"  # a short cell names the row with the image
    assert known_benchmarks()["mmbench-cn"].questions(path)[1].text == "What?\nA. cat\nB. dog\n请直接回答选项字母。"
    # Matching leaves out what pandas reads as nothing: D counts although it was not asked, "none" is a word.
    assert score("mmbench", tmp_path, {1: "bird", 2: "x"}).score == 50.0
    assert score("mmbench", tmp_path, {1: "C", 2: "cat or none"}).score == 0.0


def test_mmbench_submission_is_a_sheet(mmbench_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "upload.xlsx"
    said = known_benchmarks()["mmbench"].submission(answers({1: "A & <B>", 2: "B\x07"}), mmbench_folder, out)
    assert "5 rows, 3 without a prediction" in said
    name = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        for part in archive.namelist():
            ElementTree.fromstring(archive.read(part))
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
        strings = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
    texts = ["".join(string.itertext()) for string in strings.iter(f"{name}si")]
    cells = {
        cell.attrib["r"]: texts[int(value)] if cell.attrib.get("t") == "s" else value
        for cell in sheet.iter(f"{name}c")
        if (value := "".join(cell.itertext()))
    }
    header = [cells[f"{letter}1"] for letter in "ABCDEFGHI"]
    assert header == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert (cells["A2"], cells["G2"], cells["G4"]) == ("1", "A & <B>", "B")
    assert "G3" not in cells
    assert "E2" not in cells  # no option C
    before = out.read_bytes()
    known_benchmarks()["mmbench"].submission(answers({1: "A & <B>", 2: "B\x07"}), mmbench_folder, out)
    assert out.read_bytes() == before


def test_mmbench_files_that_cannot_be_scored_are_told(tmp_path: Path) -> None:
    path = tmp_path / "mmbench_test_20230712.tsv"
    tsv(path, [row(1, "")])
    with pytest.raises(VlmixError, match="it has no answers: the server keeps the labels of test"):
        score("mmbench", tmp_path, {1: "A"}, "test")
    path.write_text("id\tquestion\n1\tWhat?\n")
    with pytest.raises(VlmixError, match="it has no column 'index'"):
        score("mmbench", tmp_path, {1: "A"}, "test")
    path.write_text("index\tquestion\tA\tB\n1\tWhat?\n")
    with pytest.raises(VlmixError, match="mmbench_test_20230712.tsv: "):
        score("mmbench", tmp_path, {1: "A"}, "test")
    tsv(path, [row(1, "A", image="no base64!" * 10)])
    with pytest.raises(VlmixError, match="question 1: its image is no base64 text"):
        known_benchmarks()["mmbench"].questions(tmp_path, "test")


# RefCOCO


def test_boxes_are_read_on_the_padded_square() -> None:
    # 640x480: the square has 640 pixels a side and 80 of padding above.
    assert refcoco.box_in("[0.1, 0.2, 0.5, 0.9]", 640, 480) == pytest.approx((64, 48, 320, 496))
    assert refcoco.box_in("It is at [.1,0.2, 0.5,1].", 480, 640) == pytest.approx((64 - 80, 128, 320 - 80, 640))
    assert refcoco.box_in("[0.1, 0.2, 0.5]", 640, 480) is None
    assert refcoco.box_in("no", 640, 480) is None


def test_iou_by_hand() -> None:
    assert refcoco.iou((0, 0, 10, 10), (0, 0, 10, 5)) == 0.5
    assert refcoco.iou((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)
    assert refcoco.iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert refcoco.iou((10, 10, 0, 0), (0, 0, 10, 10)) == 0


@given(st.integers(100, 1000), st.integers(100, 1000), st.data())
def test_boxes_survive_their_notation(width: int, height: int, data: st.DataObject) -> None:
    least = max(width, height) // 10
    x1 = data.draw(st.integers(0, width - least))
    y1 = data.draw(st.integers(0, height - least))
    x2, y2 = data.draw(st.integers(x1 + least, width)), data.draw(st.integers(y1 + least, height))
    found = refcoco.box_in(square_text((x1, y1, x2, y2), width, height), width, height)
    assert found is not None
    assert refcoco.iou(found, (x1, y1, x2, y2)) > 0.65  # a hundredth of the side, half of it lost on each edge


def test_refcoco_scores_the_sample_by_set(raw: Path) -> None:
    benchmark = known_benchmarks()["refcoco"]
    questions = benchmark.questions(raw / "refcoco")
    assert questions[0].text.startswith(
        "Please provide the bounding box coordinate of the region this sentence describes: "
    )
    assert questions[0].text.endswith(".")
    assert questions[0].image.startswith("coco/train2017/")
    opened = refcoco._opened(benchmark._official(raw / "refcoco"), "val")
    truth = {e.id: square_text(e.box, e.width, e.height) for found in opened.values() for e in found}
    report = benchmark.score(answers(truth), raw / "refcoco")
    assert report.score > 95
    assert set(report.metrics) == {"refcoco", "refcoco+", "refcocog", "mean IoU"}
    assert report.metrics["mean IoU"] > 85
    truth |= dict.fromkeys(list(truth)[:3], "nowhere")
    assert any("3 answers hold no box" in note for note in benchmark.score(answers(truth), raw / "refcoco").notes)


def test_refcoco_splits(raw: Path) -> None:
    benchmark = known_benchmarks()["refcoco"]
    assert {q.id.split("/")[0] for q in benchmark.questions(raw / "refcoco", "testA")} == {"refcoco", "refcoco+"}
    assert {q.id.split("/")[0] for q in benchmark.questions(raw / "refcoco", "test")} == {"refcocog"}
    assert {q.id.split("/")[0] for q in benchmark.questions(raw / "refcoco", "refcoco+/val")} == {"refcoco+"}
    assert benchmark.questions(raw / "refcoco" / "refcoco+") == benchmark.questions(raw / "refcoco")
    with pytest.raises(VlmixError, match="no split 'refcocog/testA'"):
        benchmark.questions(raw / "refcoco", "refcocog/testA")
    with pytest.raises(VlmixError, match="refcoco/instances.json or .* is missing"):
        benchmark.questions(raw / "gqa")


# ModelBundle


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("pope", "pope_folder"),
        ("mme", "mme_folder"),
        ("scienceqa", "science"),
        ("seed", "seed"),
        ("mmbench", "mmbench_folder"),
    ],
)
def test_questions_that_were_not_asked_do_not_count(name: str, folder: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(folder)
    asked = [question.id for question in known_benchmarks()[name].questions(data)][:2]
    given = answers(dict.fromkeys(asked, "Yes"))
    given.asked = frozenset(asked)
    report = known_benchmarks()[name].score(given, data)
    assert (report.answered, report.missing, report.unknown) == (2, 0, 0)
