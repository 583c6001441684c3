"""`vlmix score`, called as a command."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.helpers import dump
from vlmix.builders import known_benchmarks
from vlmix.cli.score import score_command
from vlmix.mixture.errors import VlmixError

app = typer.Typer()
app.command()(score_command)


def score(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, VlmixError):
        raise result.exception
    return result


@pytest.fixture
def answered(raw: Path, tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    questions = known_benchmarks()["vqav2"].questions(raw / "vqav2")
    rows = [{"question_id": int(question.id), "prompt": question.text, "text": "Yes"} for question in questions[1:]]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {"question_id": 5, "text": "x"}]))
    return path


def test_the_table_has_scores_counts_and_notes(raw: Path, answered: Path) -> None:
    shown = score("vqav2", "--answers", answered, "--annotations", raw / "vqav2")
    assert shown.exit_code == 0
    report = known_benchmarks()["vqav2"].score(_read(answered), raw / "vqav2")
    assert "VQAv2, val" in shown.stdout
    assert f"{report.score:.2f}" in shown.stdout
    assert "yes/no" in shown.stdout
    assert f"{report.answered} questions answered, 1 missing, 1 duplicate, 1 unknown" in shown.stdout
    assert "missing answers count as empty ones" in shown.stdout


def test_how_an_interval_was_made_is_said(raw: Path, tmp_path: Path) -> None:
    """All wrong: the exact interval of none of as many images, although the questions share them."""
    asked = known_benchmarks()["pope"].questions(raw / "pope")
    rows = [{"question_id": question.id, "prompt": question.text, "text": "No"} for question in asked]
    (tmp_path / "no.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = score("pope", "--answers", tmp_path / "no.jsonl", "--annotations", raw / "pope").stdout
    images = len({question.image for question in asked})
    assert images < len(asked) and f"0.00 [0.00, {100 * (1 - 0.025 ** (1 / images)):.2f}]" in shown
    assert f"interval over {images} images or questions that stand alone: exact (Clopper-Pearson)\n" in shown


def test_json_is_the_report(raw: Path, answered: Path) -> None:
    shown = json.loads(score("vqav2", "--answers", answered, "--annotations", raw / "vqav2", "--json").stdout)
    assert shown["benchmark"] == "vqav2"
    assert shown["split"] == "val"
    assert (shown["missing"], shown["duplicates"], shown["unknown"]) == (1, 1, 1)
    assert set(shown["metrics"]) >= {"yes/no", "number", "other", "raw text"}


def test_a_submission_needs_no_labels(raw: Path, answered: Path, tmp_path: Path) -> None:
    out = tmp_path / "submission.json"
    arguments = ("vqav2", "--answers", answered, "--questions", raw / "vqav2", "--split", "val", "--submission", out)
    assert "answers, 1 of them empty" in score(*arguments).stdout
    rows = json.loads(out.read_text())
    assert {row["answer"] for row in rows} == {"", "yes"}
    both = score(*arguments, "--annotations", raw / "vqav2")
    assert "VQA accuracy" in both.stdout
    assert "submission.json" in both.stdout


def test_wrong_usage_and_unknown_benchmarks(answered: Path, tmp_path: Path) -> None:
    usage = score("vqav2", "--answers", answered)
    assert usage.exit_code == 2
    assert "--annotations or --submission" in " ".join(usage.output.split())
    assert score("vqav2", "--answers", answered, "--submission", tmp_path / "x").exit_code == 2
    with pytest.raises(VlmixError, match="there is no benchmark 'vqa2'; did you mean 'vqav2'"):
        score("vqa2", "--answers", answered, "--annotations", tmp_path)
    with pytest.raises(
        VlmixError, match="gqa: .*/testdev_balanced_questions.json or val_balanced_questions.json is missing"
    ):
        score("gqa", "--answers", answered, "--annotations", tmp_path)


def test_a_judged_benchmark_is_scored_from_saved_judgements(tmp_path: Path) -> None:
    question = {"imagename": "x.png", "question": "?", "answer": "a", "capability": ["rec"]}
    data = dump(tmp_path / "mm-vet.json", {"v1_0": question})
    given = dump(tmp_path / "answers.json", {"v1_0": "a"})
    saved = tmp_path / "j.jsonl"
    saved.write_text('{"question_id": 0, "tuple": [0.7]}\n')
    assert "70.00" in score("mm-vet", "--answers", given, "--annotations", data, "--judgements", saved).stdout
    with pytest.raises(VlmixError, match="mm-vet needs a judge"):
        score("mm-vet", "--answers", given, "--annotations", data)
    with pytest.raises(VlmixError, match="no model is named; --judge-model"):
        score("mm-vet", "--answers", given, "--annotations", data, "--judge", "http://127.0.0.1:1/v1")


def _read(path: Path) -> Any:
    from vlmix.mixture.benchmark.answers import read_answers

    return read_answers(path)
