"""Benchmarks of one's own: tables and mixtures as questions, against the official scorers and by hand."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from vlmix.builders import benchmark_named, benchmarks_named, known_benchmarks
from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Report
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.render import OPTION_LETTER, SHORT_ANSWER

ROWS: list[dict[str, Any]] = [
    {"question": "What colour is it?", "answer": "red", "image": "0.jpg", "category": "colour"},
    {"question": "Is it a fern?", "answer": "yes", "image": "0.jpg", "category": "kind"},
    {"question": "How many leaves?", "answer": "3", "image": "1.jpg", "category": "count"},
]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def own(folder: Path, rows: list[dict[str, Any]] | None = None, allow_code: bool = False, **recipe: Any) -> Benchmark:
    """A benchmark `plants` of `rows`."""
    folder.mkdir(exist_ok=True)
    if rows is not None:
        (folder / "plants.json").write_text(json.dumps(rows))
    plain = {"name": "plants", "questions": "plants.json", "metric": "exact", **recipe}
    (folder / "plants.yaml").write_text(yaml.safe_dump(plain))
    return benchmark_named(str(folder / "plants.yaml"), allow_code)


def score(benchmark: Benchmark, *texts: str | None) -> Report:
    """Of `texts`, one a question in their order, None being no answer."""
    ids = [question.id for question in benchmark.questions()]
    rows = [Answer(question_id=id, text=text) for id, text in zip(ids, texts, strict=True) if text is not None]
    return benchmark.score(Answers(rows))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_table_of_any_kind_is_asked_and_scored(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"plants.{kind}"
    if kind == "csv":
        write_csv(path, ROWS)
    elif kind == "tsv":
        path.write_text("".join("\t".join(cells) + "\n" for cells in [list(ROWS[0]), *(row.values() for row in ROWS)]))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    benchmark = own(tmp_path, questions=path.name, note="drawn by hand")
    asked = benchmark.questions()
    assert [(q.id, q.image, q.text) for q in asked] == [
        (str(number), row["image"], f"{row['question']}\n{SHORT_ANSWER}") for number, row in enumerate(ROWS)
    ]
    report = score(benchmark, "Red.", "no", None)
    assert report.score == pytest.approx(100 / 3)
    assert report.metrics == {"category/colour": 100, "category/count": 0, "category/kind": 0}
    assert (report.benchmark, report.split, report.answered, report.missing) == ("plants", "all", 2, 1)
    assert report.clusters == 2, "two of the questions share their image"
    assert report.notes[-1] == "drawn by hand"


def test_an_official_scorer_gives_vqav2_exported_as_a_table_the_same_score(raw: Path, tmp_path: Path) -> None:
    """Of the same answers: human ones, some of them in other words, and none."""
    official = known_benchmarks()["vqav2"]
    rows = json.loads((raw / "vqav2/v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    asked = {question.id: question for question in official.questions(raw / "vqav2")}
    table = [
        {
            "question_id": row["question_id"],
            "question": asked[str(row["question_id"])].text.partition("\n")[0],
            "image": asked[str(row["question_id"])].image,
            "answers": row["answers"],
        }
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "vqa.parquet")
    write_csv(tmp_path / "vqa.csv", [{**row, "answers": json.dumps(row["answers"])} for row in table])
    dice = random.Random(0)
    said = []
    for row in rows:
        human = dice.choice(row["answers"])["answer"]
        text = dice.choice([human, human, f"{human}.", human.upper(), f"the {human}", "two"])
        said += [Answer(question_id=str(row["question_id"]), text=text)] if dice.random() < 0.9 else []
    expected = official.score(Answers(said), raw / "vqav2")
    assert 20 < expected.score < 95 and expected.missing > 3
    for questions in ("vqa.parquet", "vqa.csv"):
        benchmark = own(tmp_path, questions=questions, metric="vqa")
        order = {question.id: (question.text, question.image) for question in benchmark.questions()}
        assert order == {id: (question.text, question.image) for id, question in asked.items()}
        report = benchmark.score(Answers(said))
        assert round(report.score, 2) == expected.score
        assert report.interval == expected.interval and report.clusters == expected.clusters


def test_pope_as_a_table_has_its_accuracy(raw: Path, tmp_path: Path) -> None:
    lines = (raw / "pope/coco/coco_pope_random.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    (tmp_path / "pope.jsonl").write_text("".join(line + "\n" for line in lines))
    # LLaVA's rows call the question `text` and the answer `label`.
    benchmark = own(tmp_path, questions="pope.jsonl", fields={"question": "text", "answer": "label"})
    dice = random.Random(1)
    said = [Answer(question_id=str(row["question_id"]), text=dice.choice(["Yes", "no", "No."])) for row in rows]
    expected = known_benchmarks()["pope"].score(Answers(said), raw / "pope", "random")
    (accuracy,) = (
        value for name, value in expected.metrics.items() if name.endswith("accuracy") and "lmms" not in name
    )
    assert 30 < accuracy < 70
    assert benchmark.score(Answers(said)).score == pytest.approx(accuracy)


def test_the_best_of_several_accepted_answers_counts(tmp_path: Path) -> None:
    rows = [{"question": "What is it?", "answers": ["a fern", "fern"]}, {"question": "How many?", "answers": [3.0]}]
    assert score(own(tmp_path, rows), "Fern", "3").score == 100
    assert score(own(tmp_path, rows, metric="contains"), "It is a fern.", "13").score == 50
    assert score(own(tmp_path, rows, metric="anls"), "a ferm", "3").score == pytest.approx(100 * (5 / 6 + 1) / 2)


OPTIONS = ["2", "0", "1"]


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ([{"choices": OPTIONS, "answer": "B"}, {"choices": OPTIONS, "answer": "A"}], "BA"),
        ([{"choices": OPTIONS, "answer": "(b)"}, {"choices": OPTIONS, "answer": "C."}], "BC"),
        (
            [{"options": json.dumps(OPTIONS), "answer_index": 1}, {"options": json.dumps(OPTIONS), "answer_index": 0}],
            "BA",
        ),
        # Each may be an option's text or its number, but only as texts do all mean one.
        ([{"choices": ["5", "3", "4"], "answer": "4"}, {"choices": ["1", "0", "2"], "answer": "1"}], "CA"),
        ([{"choices": ["no", "yes"], "answer": 1}, {"choices": ["yes", "no"], "answer": 0}], "BA"),
        ([{"choices": ["no", "yes"], "answer": 1.0}, {"choices": ["yes", "no"], "answer": 0.0}], "BA"),
        # As VLMEvalKit's files have them, and with labels, as those of AI2 have.
        ([{"A": "fern", "B": "moss", "C": None, "answer": "B"}, {"A": "a", "B": "b", "C": "c", "answer": "C"}], "BC"),
        ([{"choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answer": "1"}] * 2, "AA"),
    ],
)
def test_the_right_option_is_a_letter_a_text_or_a_number(tmp_path: Path, rows: list[Any], right: str) -> None:
    rows = [{"question": f"Which {number}?", **row} for number, row in enumerate(rows)]
    benchmark = own(tmp_path, rows, metric="choice")
    assert score(benchmark, *right).score == 100
    wrong = ["B" if letter == "A" else "A" for letter in right]
    assert score(benchmark, *wrong).score == 0


def test_options_are_lettered_matched_as_in_mmbench_and_may_be_guessed(tmp_path: Path) -> None:
    rows = [
        {"question": "Which?", "choices": ["fern", "moss"], "answer": "A"},
        {"question": "Which?", "choices": ["oak", "elm", "ash", "fir"], "answer": "C"},
        {"question": "Which?", "choices": ["oak", "elm", "ash", "fir"], "answer": "D"},
    ]
    benchmark = own(tmp_path, rows, metric="choice")
    assert benchmark.questions()[0].text == f"Which?\nA. fern\nB. moss\n{OPTION_LETTER}"
    report = score(benchmark, "The answer is A.", "It is the ash", "A or D")
    assert report.score == pytest.approx(200 / 3)
    assert report.chance == pytest.approx(100 * (1 / 2 + 1 / 4 + 1 / 4) / 3)


def test_the_prompt_names_columns(tmp_path: Path) -> None:
    rows = [{"query": "Which?", "hint": None, "options": ["fern", "moss"], "answer": "A", "n": 3}]
    prompt = "{hint}{question} {{of {n}}}\n{options}\n{query}"
    text = own(tmp_path, rows, metric="choice", prompt=prompt).questions()[0].text
    assert text == "Which? {of 3}\nA. fern\nB. moss\nWhich?"


def test_where_and_fields_choose_rows_and_columns(tmp_path: Path) -> None:
    rows = [{**row, "level": level, "plot": f"p{level}", "kind": "x"} for row, level in zip(ROWS, (9, 10, 2))]
    write_csv(tmp_path / "plants.csv", rows)
    benchmark = own(
        tmp_path,
        questions="plants.csv",
        where="level >= 9 AND category <> 'colour'",
        fields={"question": "answer", "answer": "question", "id": "level", "cluster": "plot"},
    )
    assert [(question.id, question.text.partition("\n")[0]) for question in benchmark.questions()] == [("10", "yes")]
    report = score(benchmark, "is it a fern?")
    assert (report.score, report.clusters, report.metrics) == (100, 1, {}), (
        "one question, and sub-scores that say no more"
    )


def test_categories_are_told_apart_whatever_is_in_their_names(tmp_path: Path) -> None:
    rows = [{**row, "q/type": "open", "q/topic": topic, "q": "x/y"} for row, topic in zip(ROWS, ("a/b", "c", "c"))]
    benchmark = own(tmp_path, rows, fields={"category": ["q/type", "q/topic", "q"]})
    assert score(benchmark, "red", "yes", "4").metrics == {"q/topic/a/b": 100, "q/topic/c": 50}


def jpeg(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("form", ["bytes", "struct", "base64"])
def test_images_inside_rows_are_read_when_they_are_needed_and_known_again(tmp_path: Path, form: str) -> None:
    import base64

    pictures = [jpeg("red"), jpeg("blue"), jpeg("red")]
    made: dict[str, Callable[[bytes], Any]] = {
        "bytes": lambda data: data,
        "struct": lambda data: {"bytes": data, "path": None},
        "base64": lambda data: base64.b64encode(data).decode(),
    }
    rows = [{"question": f"{n}?", "answer": "x", "image": made[form](data)} for n, data in enumerate(pictures)]
    if form == "base64":
        write_csv(tmp_path / "plants.csv", rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "plants.parquet", row_group_size=2)
    benchmark = own(tmp_path, questions="plants.csv" if form == "base64" else "plants.parquet")
    found = [question.image_bytes for question in benchmark.questions()]
    assert [read() for read in found if callable(read)] == pictures
    assert score(benchmark, "x", "x", "y").clusters == 2


@pytest.mark.parametrize(
    ("rows", "recipe", "message"),
    [
        ([{"id": "a"}, {"id": "b"}, {"id": "a"}], {}, "row 2: its id 'a' is that of row 0 too; give each its own"),
        ([{"id": "a"}, {"id": None}], {}, "row 1: it has no id in column 'id'; write one, or take"),
        ([{"answer": None}], {}, "row 0: its answer in column 'answer' is empty"),
        ([{"answer": True}], {}, "row 0: its answer is true; write it as text"),
        ([{"answer": {"a": 1}}], {}, "row 0: its answer in column 'answer' is empty"),
        ([{"question": "  "}], {}, "row 0: its question in column 'question' is empty"),
        ([{"question": ["a?", "b?"]}], {}, "row 0: column 'question' holds several questions; write one a row"),
        ([{"question": "What is <image> here?"}], {}, "row 0: its text has <image> inside"),
        ([{"image": ["0.jpg", "1.jpg"]}], {}, "row 0: it has 2 images, and a question has one"),
        ([{"image": "https://x.org/0.jpg"}], {}, "row 0: its image https://x.org/0.jpg is a URL; download"),
        ([{"image": "../0.jpg"}], {}, "row 0: image path '../0.jpg' leaves its root; paths are below `images`"),
        ([{"image": "/x/0.jpg"}], {}, "row 0: image path '/x/0.jpg' is absolute"),
        ([{"answers": ["a", "a"], "answer": None}], {"metric": "vqa", "fields": {"answer": "answers"}},
         "row 0: it has 2 answers, and vqa counts how many of at least 3 people agree; take `metric: exact`"),
        ([{}], {"metric": "choice"}, "metric choice needs the options: a column `choices`"),
        ([{"choices": ["a"]}], {"metric": "choice"}, "row 0: it has 1 options; expected are 2 to 26"),
        ([{"choices": ["a", "", "c"]}], {"metric": "choice"}, "row 0: option 2 is empty"),
        ([{"choices": ["a", "b"], "answer": "E"}], {"metric": "choice"}, "the answer 'E' is none of its 2 options"),
        ([{"choices": ["1", "0"], "answer": 1}, {"choices": ["2", "1"], "answer": 1}], {"metric": "choice"},
         "row 0: the answer 1 may mean option A or B of 1, 0; write letters, or if it is the number of an op"),
        ([{"choices": ["B", "A"], "answer": "A"}], {"metric": "choice"}, "'A' may mean option A or B of B, A"),
        ([{"choices": ["x", "y", "x"], "answer": "x"}], {"metric": "choice"}, "'x' may mean option A or C of x, y, x"),
        ([{}], {"metric": "exactly"}, "metric: there is no metric 'exactly'; did you mean 'exact'"),
        ([{}], {"metric": "os:remove"}, "its metric is code, os:remove, which is run only with --allow-code"),
        ([{}], {"prompt": "{hint}?"}, "prompt: there is no column 'hint'; known: answer"),
        ([{}], {"prompt": "{question.__class__}"}, "prompt: there is no column 'question.__class__'"),
        ([{}], {"prompt": "{question!r}"}, "prompt: there is no column 'question!r'"),
        ([{}], {"prompt": "{question"}, "prompt: .*; write a brace that is none as {{ or }}"),
        ([{"extra": [1]}], {"prompt": "{extra}"}, "row 0: column 'extra', which the prompt names, is list"),
        ([{}], {"fields": {"options": "x"}}, "`fields` names 'options'; what a row may say is id, question, an"),
        ([{}], {"fields": {"category": "kind"}}, "`fields` has category: kind, there is no such column"),
        ([{}], {"fields": {"cluster": ["question", "answer"]}}, "`fields` has several columns for cluster; name one"),
        ([{}], {"fields": {"question": "q"}}, "`fields` has question: q, but there are only"),
        ([{}], {"where": "level > 3"}, "where: 'level > 3': there is no column 'level'"),
        ([{}], {"where": "question = 'x'"}, "where: \"question = 'x'\" is true of none of its 1 rows"),
        ([{}], {"without": "view"}, "without goes with a mixture"),
        ([{}], {"questions": "nowhere.csv"}, "nowhere.csv: there is no such file or folder"),
        ([{}], {"name": "pope"}, "name: pope is the name of a benchmark of vlmix; take another"),
        ([{}], {"name": "../x"}, "name: '../x' is to name a folder"),
        ([{}], {"metrics": "exact"}, "unknown key 'metrics'; did you mean 'metric'"),
        ([{}], {"max_new_tokens": 0}, "max_new_tokens"),
        ([], {}, "there are no questions"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_or_scored_is_told(
    tmp_path: Path, rows: list[dict[str, Any]], recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(VlmixError, match=message):
        own(tmp_path, [{"question": "Which?", "answer": "a", **row} for row in rows], **recipe).questions()


def test_a_broken_row_and_a_missing_column_are_told(tmp_path: Path) -> None:
    (tmp_path / "plants.csv").write_text("question,answer\nWhich?,a\nWhich?,a,b\n")
    with pytest.raises(VlmixError, match="row 1: line 3 has 3 fields, the header has 2; correct the file"):
        own(tmp_path, questions="plants.csv").questions()
    with pytest.raises(VlmixError, match="columns ask, say; expected is a question with an answer. Name"):
        own(tmp_path, [{"ask": "x", "say": "y"}]).questions()
    (tmp_path / "plants.csv").write_text("question,answer\n")
    with pytest.raises(VlmixError, match="plants.csv: there are no questions in it"):
        own(tmp_path, questions="plants.csv").questions()


def test_benchmarks_have_names_of_their_own(tmp_path: Path) -> None:
    own(tmp_path / "a", ROWS), own(tmp_path / "b", ROWS)
    paths = [str(tmp_path / name / "plants.yaml") for name in "ab"]
    assert list(benchmarks_named(["pope", paths[0], paths[0]])) == ["pope", "plants"]
    with pytest.raises(VlmixError, match="another benchmark is called plants, too"):
        benchmarks_named(paths)
    with pytest.raises(VlmixError, match="there is no benchmark 'popes'; did you mean 'pope'.*or name a YAML file"):
        benchmark_named("popes")
    plants = benchmark_named(paths[0])
    with pytest.raises(VlmixError, match="plants.yaml names its questions itself; leave .* out"):
        plants.questions(tmp_path)
    with pytest.raises(VlmixError, match="plants has no splits; leave 'val' out"):
        plants.questions(split="val")
    with pytest.raises(VlmixError, match="pope: name the folder of its official files"):
        benchmark_named("pope").questions()


FUNCTIONS = """
import numpy as np
def length(prediction, answers, row):
    if row["category"] == "count":
        return row["question"] == "x"
    return np.float32(min(1, len(prediction) / len(answers[0])))
def fails(prediction, answers, row):
    return [][3]
def nan(prediction, answers, row):
    return float("nan")
def nothing(prediction, answers, row):
    pass
def percent(prediction, answers, row):
    return 100
def held_by(prediction, answers, row):
    return row.get(prediction) == answers[0]
"""


def test_a_function_may_be_the_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/own_metric.py").write_text(FUNCTIONS)
    (tmp_path / "site/own_broken.py").write_text("raise SystemExit(3)")
    (tmp_path / "site/own_needs.py").write_text("import own_absent")
    monkeypatch.syspath_prepend(tmp_path / "site")
    recipe = {"allow_code": True, "metric": "own_metric:length"}
    assert score(own(tmp_path, ROWS, **recipe), "re", "yes", "x").score == pytest.approx(100 * (2 / 3 + 1) / 3)
    for name, message in {
        "own_metric:fails": "question 0: own_metric:fails failed: IndexError: list index out of range .own_metric.py,",
        "own_metric:nan": "question 0: own_metric:nan returned nan, expected a number from 0 to 1",
        "own_metric:nothing": "question 0: own_metric:nothing returned NoneType 'None', expected a number",
        "own_metric:percent": "question 0: own_metric:percent returned 100, expected a number from 0 to 1",
        "own_metric:none": "own_metric has no function none",
        "own_broken:f": "own_broken cannot be imported: SystemExit: 3",
        "own_needs:f": "own_needs cannot be imported: ModuleNotFoundError: No module named 'own_absent'",
        "own_absent:f": "there is no module own_absent; install it, or put its folder on PYTHONPATH",
        "own_metric.absent:f": "there is no module own_metric.absent; install it",
    }.items():
        with pytest.raises(VlmixError, match=message):
            score(own(tmp_path, ROWS, allow_code=True, metric=name), "red", None, None)


def test_a_function_is_given_the_image_in_the_column_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "held_by.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    images = {"image_1": [None, "b.jpg"], "image_2": ["./a.jpg", None]}
    table = pa.table({"question": ["a?", "b?"], "answer": ["a.jpg", "b.jpg"], **images})
    pq.write_table(table, tmp_path / "plants.parquet")
    for rows in (None, table.to_pylist()):
        questions = "plants.json" if rows else "plants.parquet"
        benchmark = own(tmp_path, rows, questions=questions, allow_code=True, metric="held_by:held_by")
        assert score(benchmark, "image_2", "image_1").score == 100


def test_rounds_of_a_mixture_are_questions_but_for_those_of_the_samples_trained_on(
    mixture: Path, tmp_path: Path
) -> None:
    whole = open_mixture(mixture)
    whole.subset(ratio=0.5).save(tmp_path / "half")
    trained = set(open_mixture(tmp_path / "half").column("id").to_pylist())
    where = "source IN ('vqav2', 'aokvqa', 'textcaps')"
    benchmark = own(tmp_path, questions=str(mixture), without=str(tmp_path / "half"), where=where)
    asked = benchmark.questions()
    samples = {
        sample.id: sample for sample in whole if sample.source in ("vqav2", "aokvqa") and sample.id not in trained
    }
    assert list(dict.fromkeys(q.id.rpartition("#")[0] for q in asked)) == list(samples), "none has captions"
    assert len(asked) == sum(len(sample.conversations) // 2 for sample in samples.values()) > len(samples)
    answers = []
    for question in asked:
        id, _, number = question.id.rpartition("#")
        sample = samples[id]
        turn, answer = sample.conversations[2 * int(number)], sample.conversations[2 * int(number) + 1]
        bare = turn.value.removeprefix("<image>\n").removesuffix("\n<image>")
        prompt = OPTION_LETTER if "\nA. " in bare else SHORT_ANSWER
        assert question.text == (bare if bare.endswith(prompt) else f"{bare}\n{prompt}")
        assert callable(question.image_bytes) and question.image_bytes() == sample.jpeg
        answers.append(answer.value)
    report = score(benchmark, *answers)
    assert report.score == 100 and set(report.metrics) == {"source/aokvqa", "source/vqav2"}
    assert report.clusters == len({sample.image for sample in samples.values()})
    everything = own(tmp_path, questions=str(mixture))
    notes = score(everything, *["x"] * len(everything.questions())).notes
    assert "questions of all its samples: a model that was trained on them has seen them" in notes[1]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"metric": "choice"}, "metric choice needs a column of options, which a mixture has not; take exact"),
        ({"metric": "vqa"}, "metric vqa needs several answers of people"),
        ({"prompt": "{question}"}, "prompt goes with a table"),
        ({"fields": {"answer": "x"}}, "`fields` names 'answer'; of a mixture it may name category and cluster"),
        ({"fields": {"category": ["source", "id"]}}, "`fields` has several columns for category; name one"),
        ({"where": "source = 'textcaps'"}, "no sample of .* has a round with a short answer or a choice and one image"),
        ({"where": "source = 'none'"}, "keeps no sample"),
        ({"without": "whole"}, "without: all of its .* samples are in"),
        ({"without": "nowhere"}, "nowhere is not a mixture: it has no manifest.json"),
    ],
)
def test_what_goes_with_tables_alone_is_told(mixture: Path, tmp_path: Path, recipe: Any, message: str) -> None:
    (tmp_path / "whole").symlink_to(mixture)
    with pytest.raises(VlmixError, match=message):
        own(tmp_path, questions="whole", **recipe).questions()
