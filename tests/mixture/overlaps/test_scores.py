"""Scores by parts, against official files that are cut down to the questions of a part."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlmix.builders import benchmark_named
from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Matched
from vlmix.mixture.dataset.view import save_view
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.overlaps import table
from vlmix.mixture.overlaps.scores import Part, overlaps_of, scores, within
from vlmix.mixture.overlaps.table import FORMAT, SCHEMA, About, Checked, Overlaps


def overlaps(
    name: str, questions: Iterable[str], rows: Sequence[tuple[str, str, str]], manifest: str = "", not_listed: int = 0
) -> Overlaps:
    """`rows` are (question, level, sample)."""
    plain = [{"benchmark": name, "split": "", "other": q, "level": level, "id": id} for q, level, id in rows]
    checked = Checked(benchmark=name, split="", levels=["id", "text"], questions=list(questions), not_listed=not_listed)
    about = About(format=FORMAT, mixture="mine", manifest=manifest, near=56, checked=[checked])
    return Overlaps(about, pa.Table.from_pylist(plain, schema=SCHEMA))


def _cut_pope(source: Path, out: Path, kept: set[str]) -> None:
    offsets = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
    for split, offset in offsets.items():
        lines = (source / "coco" / f"coco_pope_{split}.json").read_text().splitlines()
        part = [line for line in lines if str(json.loads(line)["question_id"] + offset) in kept]
        (out / f"coco_pope_{split}.json").write_text("".join(f"{line}\n" for line in part))


def _cut_gqa(source: Path, out: Path, kept: set[str]) -> None:
    for file in source.glob("testdev_balanced_questions.json"):
        found = json.loads(file.read_text())
        (out / file.name).write_text(json.dumps({id: row for id, row in found.items() if id in kept}))


def _cut_vqav2(source: Path, out: Path, kept: set[str]) -> None:
    for name, key in (
        ("v2_OpenEnded_mscoco_val2014_questions.json", "questions"),
        ("v2_mscoco_val2014_annotations.json", "annotations"),
    ):
        whole = json.loads((source / name).read_text())
        whole[key] = [row for row in whole[key] if str(row["question_id"]) in kept]
        (out / name).write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("name", "cut"), [("pope", _cut_pope), ("gqa", _cut_gqa), ("vqav2", _cut_vqav2)], ids=["pope", "gqa", "vqav2"]
)
def test_a_part_has_the_score_of_files_that_hold_it_alone(name: str, cut: Any, raw: Path, tmp_path: Path) -> None:
    benchmark, draw = benchmark_named(name), np.random.default_rng(7)
    questions, labels = benchmark.questions(raw / name), benchmark.labels(raw / name)
    texts = {q.id: labels[q.id][0] if draw.random() < 0.6 else draw.choice(["yes", "no"]) for q in questions}
    answers = Answers([Answer(question_id=q.id, text=str(texts[q.id]), prompt=q.text) for q in questions])
    pictures, said = ({q.id for q in questions if draw.random() < 0.3} for _ in range(2))
    assert pictures & said
    rows = [(id, "id", "s") for id in pictures] + [(id, "text", "s") for id in said]
    found = scores(benchmark, answers, raw / name, "", overlaps(name, texts, rows))
    parts = {"picture_seen": pictures, "text_seen": said, "clean": texts.keys() - pictures - said}
    assert found.by_name().keys() == parts.keys()
    for part, ids in parts.items():
        folder = tmp_path / part
        folder.mkdir()
        cut(raw / name, folder, ids)
        alone = benchmark.score(Answers([row for row in answers.rows if row.question_id in ids]), folder)
        told = found.by_name()[part]
        assert told is not None and (told.questions, told.answered) == (len(ids), len(ids))
        assert told.score == pytest.approx(alone.score)
        assert told.interval == pytest.approx(alone.interval)


def test_a_part_without_questions_or_answers_has_no_score(raw: Path) -> None:
    gqa = benchmark_named("gqa")
    first, second, *others = (q.id for q in gqa.questions(raw / "gqa"))
    known = overlaps("gqa", [first, second, *others], [(first, "text", "s")])
    found = scores(gqa, Answers([Answer(question_id=second, text="yes")]), raw / "gqa", "", known)
    assert found.picture_seen is None
    assert found.text_seen == Part(questions=1, answered=0, score=None)
    assert found.clean is not None and (found.clean.questions, found.clean.answered) == (1 + len(others), 1)
    asked = Answers([Answer(question_id=second, text="yes")], asked=frozenset([first, second]))
    clean = scores(gqa, asked, raw / "gqa", "", known).clean
    assert clean is not None and clean.questions == 1


def test_a_rule_that_scores_all_questions_together_has_no_parts() -> None:
    matched = Matched(texts={}, meant=[], answered=2, missing=0, duplicates=0, unknown=0)
    whole = Benchmark(
        name="whole", title="", metric="", homepage="", files=(), splits=(), read_questions=lambda *_: [],
        score_answers=lambda *_: matched.report("whole", "", 50.0, {}, []),
    )  # fmt: skip
    with pytest.raises(VlmixError, match="whole: its rule scores all questions together"):
        scores(whole, Answers([]), Path(), "", overlaps("whole", ["a", "b"], [("a", "text", "s")]))


def test_a_view_has_seen_what_its_own_samples_show(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    ids = whole.column("id").to_pylist()
    view = tmp_path / "view"
    save_view(whole.select(np.arange(0, len(whole), 2)), view, [])
    known = overlaps(
        "gqa", "abc", [("a", "text", ids[0]), ("b", "id", ids[1]), ("c", "id", ids[3]), ("c", "text", ids[2])],
        table.identity(whole),
    )  # fmt: skip
    assert within(known, open_mixture(view)).seen("gqa", "") == {"a", "c"}
    assert within(known, open_mixture(view)).seen("gqa", "", table.PICTURES) == frozenset()
    file, other = tmp_path / "known.parquet", tmp_path / "other.parquet"
    table.write(file, known)
    assert overlaps_of(file, whole).seen("gqa", "") == {"a", "b", "c"}
    assert overlaps_of(file, open_mixture(view)).seen("gqa", "") == {"a", "c"}
    table.write(other, overlaps("gqa", "abc", [], "0" * 64))
    with pytest.raises(VlmixError, match="other.parquet is of mine as it was built then, not of .*view"):
        overlaps_of(other, open_mixture(view))


def test_a_question_whose_list_was_cut_off_is_not_called_clean(mixture: Path) -> None:
    """Of five samples that ask `a` two are listed; the part may have one of the others."""
    whole = open_mixture(mixture)
    ids = whole.column("id").to_pylist()
    rows = [("a", "text", ids[0]), ("a", "text", ids[1]), ("b", "text", ids[0]), ("c", "text", ids[4])]
    cut = within(overlaps("gqa", "abcd", rows, not_listed=3), whole.select(np.arange(2, 9)))
    assert cut.seen("gqa", "") == {"c"}
    checked = cut.checked("gqa", "")
    assert checked.left_out == ["a"] and checked.unchecked["text"].startswith("1 of 4 questions left out")
    listed = within(overlaps("gqa", "abcd", rows), whole.select(np.arange(2, 9)))
    assert listed.checked("gqa", "").left_out == []
