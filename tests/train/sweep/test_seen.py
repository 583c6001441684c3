"""A sweep's scores on the questions that its subsets show, against answers that are cut down by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("transformers")

import yaml

from tests.mixture.overlaps.test_scores import overlaps
from tests.train.sweep.made import sweep_file, untrained
from vlmix.builders import benchmark_named
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.overlaps import table
from vlmix.train.evaluate.evaluate import Task, _finish
from vlmix.train.sweep.recipe import load
from vlmix.train.sweep.report import summarise, write
from vlmix.train.sweep.report.wording import notes, seen_table
from vlmix.train.sweep.sweep import Backend, run


def answering() -> Backend:
    """Models that need no training, and answer by their name."""

    def evaluate(model: str, tasks: list[Task], out: Path) -> list[Any]:
        (task,) = tasks
        questions, folder = task.asked(), out / task.benchmark.name
        folder.mkdir(parents=True)
        draw = np.random.default_rng(sum(map(ord, "/".join(Path(model).parts[-3:]))))
        texts = draw.choice(["yes", "no"], len(questions)).tolist()
        rows = [{"question_id": q.id, "prompt": q.text, "text": text} for q, text in zip(questions, texts)]
        (folder / "part-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [_finish(task.benchmark, questions, task, folder)]

    return msgspec.structs.replace(untrained(lambda _: 0), evaluate=evaluate)


@pytest.fixture()
def spec(mixture: Path, raw: Path, tmp_path: Path) -> Path:
    plain = {"name": "seen", "ratios": [0.2, 0.6, 1.0], "seeds": [0, 1], "evaluate": {"gqa": {"data": str(raw)}}}
    return sweep_file(tmp_path, mixture, 8, **plain)


@pytest.fixture()
def pairs(mixture: Path, raw: Path) -> list[tuple[str, str, str]]:
    """Every second question is asked by a sample of its own, every fourth shows the picture of one."""
    ids = open_mixture(mixture).column("id").to_pylist()
    questions = [question.id for question in benchmark_named("gqa").questions(raw / "gqa")]
    assert len(ids) > 3 * len(questions)
    texts = [(question, "text", ids[3 * at]) for at, question in enumerate(questions) if at % 2]
    return texts + [(question, "id", ids[3 * at + 1]) for at, question in enumerate(questions) if at % 4 == 0]


def with_overlaps(spec: Path, name: str = "gqa", *, rows: list[tuple[str, str, str]], of: str = "") -> Path:
    data = yaml.safe_load(spec.read_text())
    file = spec.parent / f"overlaps-{name}-{of}.parquet"
    questions = [q.id for q in benchmark_named("gqa").questions(Path(data["evaluate"]["gqa"]["data"]) / "gqa")]
    manifest = of or table.identity(open_mixture(data["mixture"]))
    table.write(file, overlaps(name, questions, rows, manifest))
    spec.write_text(yaml.safe_dump({**data, "overlaps": str(file)}))
    return file


def test_every_subset_has_seen_what_its_own_samples_show(
    spec: Path, pairs: list[tuple[str, str, str]], raw: Path, mixture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plain = run(load(spec, benchmark_named), out, answering())
    assert all(not row.seen for row in plain)
    with_overlaps(spec, rows=pairs)
    rows = run(load(spec, benchmark_named), out, answering())  # may be added to a sweep that is there
    labels = json.loads((raw / "gqa" / "testdev_balanced_questions.json").read_text())
    counts = {}
    for row in rows:
        home = out / "runs" / row.run
        held = set(open_mixture(home / "subset" if row.ratio < 1 else mixture).column("id").to_pylist())
        answers = [json.loads(line) for line in (home / "answers/gqa/answers.jsonl").read_text().splitlines()]
        right = {each["question_id"]: labels[each["question_id"]]["answer"] == each["text"] for each in answers}
        texts = {question for question, level, id in pairs if level == "text" and id in held}
        pictures = {question for question, level, id in pairs if level == "id" and id in held}
        parts = {"text_seen": texts, "picture_seen": pictures, "clean": right.keys() - texts - pictures}
        for name, ids in parts.items():
            told = row.seen["gqa"].by_name()[name]
            assert told is not None and told.questions == len(ids), (row.run, name)
            assert told.score == pytest.approx(100 * sum(right[id] for id in ids) / len(ids))
        counts[row.ratio, row.seed] = len(texts), len(pictures)
    assert len(set(counts.values())) > 4, "subsets and seeds have seen different questions"

    summary = summarise(rows)
    write(out, "seen", summary, {})
    page = (out / "report.html").read_text()
    assert "Seen and clean questions" in page and "<li>gqa: clean by id, text.</li>" in page
    header, cells = seen_table(summary)
    assert header == ["benchmark", "subset", "all", "picture seen", "text seen", "clean"]
    small, most = sorted(counts[0.2, seed][0] for seed in (0, 1))
    assert cells[0][1] == "random, 20 %"
    assert cells[0][4].endswith(f"({small} to {most})" if small < most else f"({small})")
    with (out / "seen.csv").open() as file:
        lines = {(line["subset"], line["part"]): line for line in csv.DictReader(file)}
    assert len(lines) == 3 * 4
    assert all(float(line["low"]) >= 0 for (_, part), line in lines.items() if part != "all")
    means = [row.seen["gqa"].clean.score for row in rows if row.ratio == 0.6]  # type: ignore[union-attr]
    assert float(lines["random, 60 %", "clean"]["mean"]) == pytest.approx(sum(means) / 2)  # type: ignore[arg-type]
    assert float(lines["random, 60 %", "text_seen"]["questions"]) == sum(counts[0.6, s][0] for s in (0, 1)) / 2


def test_what_was_not_compared_is_a_note(spec: Path, pairs: list[tuple[str, str, str]], tmp_path: Path) -> None:
    file = with_overlaps(spec, rows=pairs)
    known = table.read(file)
    checked = msgspec.structs.replace(known.about.checked[0], unchecked={"near": "no pictures"}, unreadable=["a", "b"])
    about = msgspec.structs.replace(known.about, checked=[checked])
    table.write(file, table.Overlaps(about, known.rows))
    said = list(notes(summarise(run(load(spec, benchmark_named, ["seeds=[0]"]), tmp_path / "out", answering()))))
    assert "gqa: not compared by near: no pictures." in said
    assert "gqa: 2 pictures do not decode, so they are not compared by near." in said


def test_scores_by_parts_are_made_again_for_another_file_alone(
    spec: Path, pairs: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    out, kept = tmp_path / "out", "runs/random-1-seed0/answers/gqa/overlaps.json"
    with_overlaps(spec, rows=pairs)
    first = run(load(spec, benchmark_named), out, answering())
    stamp = (out / kept).stat().st_mtime_ns
    assert run(load(spec, benchmark_named), out, answering()) == first
    assert (out / kept).stat().st_mtime_ns == stamp
    with_overlaps(spec, rows=[])
    again = run(load(spec, benchmark_named), out, answering())
    assert all(row.seen["gqa"].text_seen is None for row in again)


def test_overlaps_that_do_not_fit_are_told_before_anything_is_trained(spec: Path, tmp_path: Path) -> None:
    text = spec.read_text()
    for name, of, message in (
        ("vqav2", "", "the overlaps are with .*vqav2, not with gqa"),
        ("gqa", "0" * 64, "is of mine as it was built then"),
    ):
        spec.write_text(text)
        with_overlaps(spec, name, rows=[], of=of)
        with pytest.raises(VlmixError, match=message):
            run(load(spec, benchmark_named), tmp_path / "out", answering())
    with pytest.raises(VlmixError, match="nowhere.parquet does not exist"):
        run(load(spec, benchmark_named, ["overlaps=nowhere.parquet"]), tmp_path / "out", answering())
    assert not (tmp_path / "out").exists()
    data = yaml.safe_load(text)
    del data["mixture"]
    built = {**data, "build": {"recipe": "sample", "raw": "raw"}, "overlaps": "known.parquet"}
    spec.write_text(yaml.safe_dump(built))
    with pytest.raises(VlmixError, match="overlaps: the mixtures that a sweep builds have no file yet"):
        load(spec, benchmark_named)
