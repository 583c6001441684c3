"""`vlmix compare`, called as a command, on answers to the miniature's questions."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.helpers import vlmix_here
from vlmix.builders import known_benchmarks
from vlmix.mixture.benchmark.answers import read_answers
from vlmix.mixture.benchmark.values import Values


def answered(path: Path, raw: Path, benchmark: str, say: Any) -> Path:
    questions = known_benchmarks()[benchmark].questions(raw / benchmark)
    rows = [
        {"question_id": question.id, "prompt": question.text, "text": text}
        for number, question in enumerate(questions)
        if (text := say(number)) is not None
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(folder: Path, raw: Path, benchmark: str, say: Any) -> Path:
    """What `vlmix evaluate` leaves behind."""
    answers = read_answers(answered(folder / benchmark / "answers.jsonl", raw, benchmark, say))
    report, values = known_benchmarks()[benchmark].scored(answers, raw / benchmark)
    assert values is not None
    values.write(folder / benchmark / "values.parquet")
    (folder / benchmark / "report.json").write_text(msgspec.json.encode(report).decode())
    return folder


def test_answer_files_are_compared_on_the_questions_that_both_answer(raw: Path, tmp_path: Path) -> None:
    labels = json.loads(next((raw / "gqa").rglob("testdev_balanced_questions.json")).read_text())
    gold = [row["answer"] for row in labels.values()]
    right = answered(tmp_path / "right.jsonl", raw, "gqa", lambda n: gold[n])
    half = answered(tmp_path / "half.jsonl", raw, "gqa", lambda n: None if n < 4 else gold[n] if n % 2 else "?")
    shown = vlmix_here("compare", half, right, "--benchmark", "gqa", "--annotations", raw / "gqa")
    assert shown.returncode == 0, shown.stderr
    assert f"{right}, compared with {half}" in shown.stdout.replace("\n", "") and "higher" in shown.stdout
    assert f"{len(gold) - 4} of {len(gold)}" in shown.stdout
    assert "scores are those of these questions" in shown.stdout
    plain = vlmix_here("compare", half, right, "--benchmark", "gqa", "--annotations", raw / "gqa", "--json")
    ((pair,)) = json.loads(plain.stdout)
    (only,) = pair["comparison"]["differences"]
    assert (only["a"], only["b"], only["difference"]["value"]) == (50.0, 100.0, 50.0)
    assert only["difference"]["p"] < 0.05 and pair["comparison"]["overall"]["value"] == pytest.approx(100)


def test_folders_of_evaluations_are_compared_by_all_their_benchmarks(raw: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, word in zip(folders, ("yes", "no", "no")):
        evaluated(folder, raw, "vqav2", lambda n, word=word: word)
        evaluated(folder, raw, "pope", lambda n, word=word: word)
    shown = vlmix_here("compare", *folders)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("compared with") == 2 and shown.stdout.count("overall, %") == 2
    assert "over questions alone" in shown.stdout
    same = vlmix_here("compare", *folders[1:])
    assert same.stdout.count("equal") == 3, "two benchmarks and the whole"


def test_scores_by_other_rules_are_not_compared(raw: Path, tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / name, raw, "pope", lambda n: "yes") for name in ("a", "b")]
    report = folders[1] / "pope" / "report.json"
    plain = report.read_text()
    report.write_text(json.dumps(json.loads(plain) | {"scorer_version": 9}))
    found = vlmix_here("compare", *folders)
    assert found.returncode == 1 and "by version 9; score both again" in " ".join(found.stderr.split())
    report.unlink()
    found = vlmix_here("compare", *folders)
    assert found.returncode == 1 and "report.json does not say what was scored" in " ".join(found.stderr.split())
    report.write_text(plain)
    shutil.copytree(folders[1] / "pope", folders[1] / "copy")
    found = vlmix_here("compare", *folders)
    assert found.returncode == 1 and "several folders hold scores of pope" in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: ["nothing", "nowhere"], "there is no nothing"),
        (lambda f: [f / "answers.jsonl", f / "answers.jsonl"], "--benchmark says to which questions"),
        (lambda f: [f, f], "there are no scored questions (values.parquet); `vlmix evaluate`"),
        (lambda f: [f / "old", f], "evaluate it again with this version"),
        (lambda f: [f], "two models or more are needed"),
        (lambda f: [f / "damaged", f / "damaged"], "values.parquet: no values of questions"),
    ],
)
def test_mistakes_are_told(make: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"question_id": 1, "text": "x"}\n')
    for name, file in (("old", "report.json"), ("damaged", "values.parquet")):
        (tmp_path / name / "gqa").mkdir(parents=True)
        (tmp_path / name / "gqa" / file).write_text("{}")
    found = vlmix_here("compare", *make(tmp_path), cwd=tmp_path)
    assert found.returncode in (1, 2) and message in " ".join(found.stderr.replace("│", " ").split())
    assert "Traceback" not in found.stderr


def test_values_are_a_readable_table(raw: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path, raw, "pope", lambda n: "yes")
    values = Values.read(folder / "pope" / "values.parquet")
    assert values.table.column_names == ["question", "cluster", "group", "value", "weight", "answered"]
    assert set(values.table["group"].to_pylist()) == {"adversarial", "popular", "random"}
