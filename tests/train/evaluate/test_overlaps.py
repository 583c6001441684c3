"""`vlmix evaluate --overlaps`: whose mixture a file is of, and the scores that are kept."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("transformers")

from tests.helpers import vlmix_here
from tests.mixture.overlaps.test_scores import overlaps
from vlmix.builders import benchmark_named
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.overlaps import table
from vlmix.mixture.overlaps.scores import Parts
from vlmix.mixture.selection.subset import Selection, save, select
from vlmix.train.evaluate.evaluate import Task
from vlmix.train.evaluate.overlaps import check, seen_by


@pytest.fixture()
def known(mixture: Path, raw: Path, tmp_path: Path) -> Path:
    """Every third question of GQA is in the mixture by its text."""
    whole = open_mixture(mixture)
    ids = [question.id for question in benchmark_named("gqa").questions(raw / "gqa")]
    rows = [(id, "text", whole.column("id")[0].as_py()) for id in ids[::3]]
    table.write(tmp_path / "known.parquet", overlaps("gqa", ids, rows, table.identity(whole)))
    return tmp_path / "known.parquet"


def test_the_command_tells_and_keeps_the_scores_of_the_parts(
    model: Path, raw: Path, known: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--model", model, "--data", raw, "--out", out, "--limit", 20, "--max-new-tokens", 3]
    shown = vlmix_here("evaluate", "gqa", *options, "--overlaps", known)
    assert shown.returncode == 0 and "clean by id, text" in shown.stdout, shown.stderr
    assert "not known" not in shown.stderr
    official = json.loads((raw / "gqa" / "testdev_balanced_questions.json").read_text())
    answers = [json.loads(line) for line in (out / "gqa" / "answers.jsonl").read_text().splitlines()]
    right = {row["question_id"]: official[row["question_id"]]["answer"] == row["text"].lower() for row in answers}
    seen = [id for id in right if id in {*list(official)[::3]}]
    kept = msgspec.json.decode((out / "gqa" / "overlaps.json").read_bytes(), type=Parts)
    assert kept.text_seen and kept.clean and kept.picture_seen is None
    assert (kept.text_seen.questions, kept.clean.questions) == (len(seen), 20 - len(seen))
    assert kept.text_seen.score == pytest.approx(100 * sum(right[id] for id in seen) / len(seen))
    said = json.loads(vlmix_here("evaluate", "gqa", *options, "--overlaps", known, "--json").stdout)["gqa"]
    assert said["clean"] == msgspec.to_builtins(kept.clean, builtin_types=()) | {"interval": [*kept.clean.interval]}
    assert said["all"]["answered"] == 20


def test_a_file_of_another_mixture_is_refused_and_an_unknown_one_told(
    model: Path, mixture: Path, known: Path, tmp_path: Path
) -> None:
    assert seen_by(known, str(model))[1] == seen_by(known, str(model / "model"))[1] == ""
    shutil.copytree(model / "model", tmp_path / "alone")
    for stranger in (str(tmp_path / "alone"), "llava-hf/llava-1.5-7b-hf"):
        assert "is not known" in seen_by(known, stranger)[1]
    other = tmp_path / "other.parquet"
    table.write(other, overlaps("gqa", [], [], "0" * 64))
    with pytest.raises(VlmixError, match="other.parquet is of mine as it was built then, not of .*mixture"):
        seen_by(other, str(model))
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(model / "recipe.yaml", run)
    data = json.loads((model / "data.json").read_text())
    assert data["manifests"] == [table.identity(open_mixture(mixture))]
    (run / "data.json").write_text(json.dumps(data | {"manifests": ["1" * 64]}))  # rebuilt since
    with pytest.raises(VlmixError, match="was trained on sample, with 111111111111…, which is not at"):
        seen_by(known, str(run))
    (run / "data.json").write_text(json.dumps(data | {"manifests": ["1" * 64, "2" * 64]}))
    with pytest.raises(VlmixError, match="was trained on 2 mixtures"):
        seen_by(known, str(run))


def test_a_run_on_a_view_has_seen_the_samples_of_the_view(
    model: Path, mixture: Path, known: Path, tmp_path: Path
) -> None:
    view, run = tmp_path / "view", tmp_path / "run"
    whole = open_mixture(mixture)
    save(select(whole, Selection(where=f"id != '{whole.column('id')[0].as_py()}'")), view)
    run.mkdir()
    recipe = (model / "recipe.yaml").read_text()
    assert str(mixture) in recipe
    (run / "recipe.yaml").write_text(recipe.replace(str(mixture), str(view)))
    data = json.loads((model / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(data | {"manifests": [table.identity(open_mixture(view))]}))
    overlaps, doubt = seen_by(known, str(run))
    assert overlaps.seen("gqa", "") == frozenset() and doubt == ""
    assert seen_by(known, str(model))[0].seen("gqa", "")


def test_questions_that_were_not_compared_are_told(raw: Path, tmp_path: Path) -> None:
    task = Task(benchmark=benchmark_named("gqa"), data=raw, limit=3)
    first, second, third = (question.id for question in task.asked())
    check(overlaps("gqa", [first, second, third], []), task)
    with pytest.raises(VlmixError, match=f"question {third} was not compared"):
        check(overlaps("gqa", [first, second], []), task)
