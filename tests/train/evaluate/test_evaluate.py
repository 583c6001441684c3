"""Evaluation over the miniature releases, with a model that is real and small."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vlmix.builders import benchmark_named

pytest.importorskip("transformers")

import torch

from tests.train.nano import nano
from vlmix.builders import known_benchmarks
from vlmix.mixture.benchmark.benchmark import Report
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.locks import exclusive_lock
from vlmix.train.evaluate.evaluate import Task, Unscored, evaluate
from vlmix.train.evaluate.generate import Generator
from vlmix.train.run import train


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_batched_answers_are_those_of_one_at_a_time_and_come_in_the_questions_order(
    model: Path, raw: Path, tmp_path: Path
) -> None:
    def ask(batch: int) -> list[dict[str, Any]]:
        out = tmp_path / str(batch)
        task = Task(benchmark=benchmark_named("vqav2"), data=raw, limit=20, batch_size=batch, max_new_tokens=6)
        (report,) = evaluate(str(model), [task], out)
        assert isinstance(report, Report) and report.answered == 20
        return answers(out / "vqav2")

    exclusive_lock, together = ask(1), ask(7)
    assert exclusive_lock == together
    questions = known_benchmarks()["vqav2"].questions(raw / "vqav2")[:20]
    assert [row["question_id"] for row in exclusive_lock] == [question.id for question in questions]


def test_a_part_is_scored_as_a_part_and_by_one_evaluation_at_a_time(model: Path, raw: Path, tmp_path: Path) -> None:
    task = Task(benchmark=benchmark_named("vqav2"), data=raw, limit=10, max_new_tokens=2)
    (before,) = evaluate(str(model), [task], tmp_path)
    assert isinstance(before, Report) and (before.answered, before.missing) == (10, 0)
    annotations = json.loads((raw / "vqav2" / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    common = {str(row["question_id"]): row["multiple_choice_answer"] for row in annotations}
    part = tmp_path / "vqav2" / "part-00000.jsonl"
    rows = [{**row, "text": common[row["question_id"]]} for row in answers(tmp_path / "vqav2")]
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (report,) = evaluate(str(model), [task], tmp_path)
    assert isinstance(report, Report) and report.score > 60, "of all 168 questions it would be 6"
    assert "the first 10 questions alone" in report.notes
    with exclusive_lock(tmp_path / "vqav2") as mine:
        assert mine
        with pytest.raises(VlmixError, match="is being written by another evaluation"):
            evaluate(str(model), [task], tmp_path)


def test_an_interrupted_evaluation_asks_only_what_is_left(model: Path, raw: Path, tmp_path: Path) -> None:
    task = Task(benchmark=benchmark_named("gqa"), data=raw, limit=12, batch_size=4, max_new_tokens=4)
    evaluate(str(model), [task], tmp_path)
    folder = tmp_path / "gqa"
    whole = answers(folder)
    part = folder / "part-00000.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:5]) + lines[5][:20])  # as a kill in the middle of a line leaves it
    asked: list[int] = []
    evaluate(str(model), [task], tmp_path, lambda name, done, total: asked.append(total))
    assert set(asked) == {7}
    assert answers(folder) == whole


def test_answers_of_another_model_are_not_mixed_in(model: Path, mixture: Path, raw: Path, tmp_path: Path) -> None:
    task = Task(benchmark=benchmark_named("gqa"), data=raw, limit=2, max_new_tokens=2)
    evaluate(str(model), [task], tmp_path)
    other = tmp_path / "other"
    train(nano(mixture=str(mixture), out=str(other), max_steps=1, seed=3))
    with pytest.raises(VlmixError, match="holds answers with other model; choose another --out"):
        evaluate(str(other), [task], tmp_path)
    with pytest.raises(VlmixError, match="other max_new_tokens and questions"):
        evaluate(str(model), [Task(benchmark=benchmark_named("gqa"), data=raw, limit=3, max_new_tokens=3)], tmp_path)


def test_an_image_that_is_not_there_is_named(model: Path, raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "gqa", tmp_path / "data" / "gqa", ignore=shutil.ignore_patterns("images"))
    with pytest.raises(VlmixError, match="no readable image gqa/images/.* --images names the folder"):
        evaluate(str(model), [Task(benchmark=benchmark_named("gqa"), data=tmp_path / "data")], tmp_path / "out")


def test_answers_whose_labels_are_not_there_are_kept_and_the_reason_told(
    model: Path, raw: Path, tmp_path: Path
) -> None:
    data = tmp_path / "gqa"
    data.mkdir()
    rows = json.loads((raw / "gqa" / "testdev_balanced_questions.json").read_text())
    few = {key: {k: v for k, v in row.items() if k != "answer"} for key, row in list(rows.items())[:3]}
    (data / "testdev_balanced_questions.json").write_text(json.dumps(few))
    task = Task(benchmark=benchmark_named("gqa"), data=data, images=(raw,), max_new_tokens=2)
    (found,) = evaluate(str(model), [task], tmp_path / "out")
    assert isinstance(found, Unscored) and "answer" in found.why, found
    assert len(answers(tmp_path / "out" / "gqa")) == 3


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("text_config", "num_hidden_layers", 10**11, "describes 100,000,000,000 layers"),
        ("text_config", "vocab_size", 10**10, "its weights hold"),
        ("vision_config", "image_size", 10**8, "its weights hold"),
    ],
)
def test_a_configuration_that_is_far_larger_than_the_weights_allocates_nothing(
    model: Path, tmp_path: Path, part: str, key: str, value: int, message: str
) -> None:
    shutil.copytree(model, tmp_path / "run")
    path = tmp_path / "run/model/config.json"
    config = json.loads(path.read_text())
    config[part][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(VlmixError, match=message):
        Generator(str(tmp_path / "run"), torch.device("cpu"))
