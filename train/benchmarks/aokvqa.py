"""A-OKVQA, direct answers and multiple choice, by the rule of allenai/aokvqa `eval_predictions.py`."""

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from mixture.render import LETTERS, OPTION_LETTER, SHORT_ANSWER
from mixture.source import RawFile
from train.benchmarks import layout
from train.benchmarks.common import Answers, Benchmark, Question, Report, match, percent
from train.benchmarks.files import Release
from train.benchmarks.normalise import Memo, evalai
from train.benchmarks.vqa import AS_SUBMITTED, Human, Item, rate


class _AokRow(Struct):
    split: str
    image_id: int
    question_id: str
    question: str
    choices: list[str]
    correct_choice_idx: int | None = None
    direct_answers: list[str] | None = None
    difficult_direct_answer: bool = False


_AOK_FILE = "aokvqa_v1p0_{split}.json"


def _aok_file(release: Release, split: str) -> tuple[Path, list[_AokRow]]:
    path = release.main(_AOK_FILE, split or "val")
    rows = release.json(path, list[_AokRow])
    if not rows:
        raise release.wrong(path, "it has no questions")
    return path, rows


def _aokvqa_questions(release: Release, split: str) -> list[Question]:
    return [
        Question(row.question_id, layout.coco(row.split, row.image_id), f"{row.question}\n{SHORT_ANSWER}")
        for row in _aok_file(release, split)[1]
    ]


def _rate_aokvqa(answers: Answers, release: Release, split: str) -> Report:
    path, rows = _aok_file(release, split)
    rows = [row for row in rows if answers.asks(row.question_id)]
    for row in rows:
        if not row.direct_answers:
            raise release.wrong(path, f"question {row.question_id} has no direct_answers, as in the test split")
    matched = match(answers, dict.fromkeys(row.question_id for row in rows), path)
    easy = [row for row in rows if not row.difficult_direct_answer]
    processed = Memo(evalai)
    score = raw = 0.0
    for row in easy:
        text = matched.texts.get(row.question_id, "")
        score += _thirds(processed[text], row.direct_answers)
        raw += _thirds(text, row.direct_answers)
    items = [Item(r.question_id, [Human(a, i) for i, a in enumerate(r.direct_answers or ())]) for r in easy]
    metrics = {
        "raw text": percent(raw, len(easy)),
        "VQA accuracy": rate("aokvqa", split, items, matched, []).score,
    }
    notes = [
        "direct answers by A-OKVQA's own rule: min(1, equal answers / 3), nobody left out, answers as they stand",
        AS_SUBMITTED,
    ]
    if len(easy) < len(rows):
        notes.append(f"{len(rows) - len(easy):,} questions marked difficult_direct_answer are left out, as officially")
    return matched.report("aokvqa", rows[0].split, percent(score, len(easy)), metrics, notes)


def _thirds(text: str, answers: Sequence[str] | None) -> float:
    return min(1.0, (answers or ()).count(text) / 3)


AOKVQA = Benchmark(
    name="aokvqa",
    title="A-OKVQA, direct answers",
    metric="A-OKVQA's soft accuracy",
    homepage="https://github.com/allenai/aokvqa",
    files=(RawFile(_AOK_FILE, "questions with choices and ten direct answers"),),
    splits=("val", "train", "test"),
    ask=_aokvqa_questions,
    rate=_rate_aokvqa,
    images=layout.COCO,
)


def _choice_questions(release: Release, split: str) -> list[Question]:
    return [
        Question(
            row.question_id,
            layout.coco(row.split, row.image_id),
            "\n".join(
                [row.question, *(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(row.choices)), OPTION_LETTER]
            ),
        )
        for row in _aok_file(release, split)[1]
    ]


def _rate_choices(answers: Answers, release: Release, split: str) -> Report:
    path, rows = _aok_file(release, split)
    rows = [row for row in rows if answers.asks(row.question_id)]
    for row in rows:
        if row.correct_choice_idx is None or not 0 <= row.correct_choice_idx < len(row.choices):
            raise release.wrong(path, f"question {row.question_id} has no correct choice, as in the test split")
    matched = match(answers, dict.fromkeys(row.question_id for row in rows), path)
    hits = letters = 0
    for row in rows:
        text = matched.texts.get(row.question_id, "").strip()
        assert row.correct_choice_idx is not None
        letter = text[:1] == LETTERS[row.correct_choice_idx] and text[1:2] in ("", ".")
        letters += letter
        hits += letter or text == row.choices[row.correct_choice_idx]
    metrics = {"letter alone": percent(letters, len(rows))}
    note = (
        "right: the letter, a full stop after it allowed, or the text of the right choice, as the official rule has it"
    )
    return matched.report("aokvqa-choice", rows[0].split, percent(hits, len(rows)), metrics, [note])


AOKVQA_CHOICE = Benchmark(
    name="aokvqa-choice",
    title="A-OKVQA, multiple choice",
    metric="accuracy",
    homepage=AOKVQA.homepage,
    files=AOKVQA.files,
    splits=AOKVQA.splits,
    ask=_choice_questions,
    rate=_rate_choices,
    images=layout.COCO,
)
