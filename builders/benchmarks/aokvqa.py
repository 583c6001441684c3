"""A-OKVQA, direct answers and multiple choice, by the rule of allenai/aokvqa `eval_predictions.py`."""

from collections.abc import Sequence
from pathlib import Path

from vlmix.builders import layout
from vlmix.builders.benchmarks.normalise import Memo, evalai
from vlmix.builders.benchmarks.vqa import AS_SUBMITTED, DIGITS, Human, HumanAnswers, TextCache
from vlmix.builders.schemas.aokvqa import Record
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Question, Scored, match, percent
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import LETTERS, OPTION_LETTER, SHORT_ANSWER

_AOK_FILE = "aokvqa_v1p0_{split}.json"


def _aok_file(files: OfficialFiles, split: str) -> tuple[Path, list[Record]]:
    path = files.main(_AOK_FILE, split or "val")
    rows = files.json(path, list[Record])
    if not rows:
        raise files.wrong(path, "it has no questions")
    return path, rows


def _aokvqa_questions(files: OfficialFiles, split: str) -> list[Question]:
    return [
        Question(row.question_id, layout.coco(row.split, row.image_id), f"{row.question}\n{SHORT_ANSWER}")
        for row in _aok_file(files, split)[1]
    ]


def _aokvqa_labels(files: OfficialFiles, split: str) -> Labels:
    path, rows = _aok_file(files, split)
    labels = {row.question_id: tuple(row.direct_answers) for row in rows if row.direct_answers}
    if not labels:
        raise files.wrong(path, "it has no direct_answers, as in the test split")
    return labels


def _score_aokvqa(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    path, rows = _aok_file(files, split)
    rows = [row for row in rows if answers.asks(row.question_id)]
    for row in rows:
        if not row.direct_answers:
            raise files.wrong(path, f"question {row.question_id} has no direct_answers, as in the test split")
    matched = match(answers, dict.fromkeys(row.question_id for row in rows), path)
    easy = [row for row in rows if not row.difficult_direct_answer]
    processed, words = Memo(evalai), TextCache()
    tallies = Tallies()
    for row in easy:
        text = matched.texts.get(row.question_id, "")
        humans = [Human(answer, number) for number, answer in enumerate(row.direct_answers or ())]
        shares = [
            ("", _thirds(processed[text], row.direct_answers)),
            ("raw text", _thirds(text, row.direct_answers)),
            ("VQA accuracy", HumanAnswers(humans, words).accuracy(processed[text])),
        ]
        tallies.add_shares(shares, row.question_id, str(row.image_id), row.question_id in matched.texts)
    metrics = tallies.percents()
    score = metrics.pop("", 0.0)
    metrics["VQA accuracy"] = round(metrics.get("VQA accuracy", 0.0), DIGITS)
    notes = [
        "direct answers by A-OKVQA's own rule: min(1, equal answers / 3), nobody left out, answers as they stand",
        AS_SUBMITTED,
    ]
    if len(easy) < len(rows):
        notes.append(f"{len(rows) - len(easy):,} questions marked difficult_direct_answer are left out, as officially")
    return matched.report("aokvqa", rows[0].split, score, metrics, notes, tallies)


def _thirds(text: str, answers: Sequence[str] | None) -> float:
    return min(1.0, (answers or ()).count(text) / 3)


AOKVQA = Benchmark(
    name="aokvqa",
    title="A-OKVQA, direct answers",
    metric="A-OKVQA's soft accuracy",
    homepage="https://github.com/allenai/aokvqa",
    files=(RawFile(_AOK_FILE, "questions with choices and ten direct answers"),),
    splits=("val", "train", "test"),
    read_questions=_aokvqa_questions,
    read_labels=_aokvqa_labels,
    score_answers=_score_aokvqa,
    images=layout.COCO,
)


def _choice_questions(files: OfficialFiles, split: str) -> list[Question]:
    return [
        Question(
            row.question_id,
            layout.coco(row.split, row.image_id),
            "\n".join(
                [row.question, *(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(row.choices)), OPTION_LETTER]
            ),
        )
        for row in _aok_file(files, split)[1]
    ]


def _choice_labels(files: OfficialFiles, split: str) -> Labels:
    path, rows = _aok_file(files, split)
    labels = {row.question_id: (LETTERS[row.correct_choice_idx],) for row in rows if row.correct_choice_idx is not None}
    if not labels:
        raise files.wrong(path, "it has no correct choices, as in the test split")
    return labels


def _rate_choices(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    path, rows = _aok_file(files, split)
    rows = [row for row in rows if answers.asks(row.question_id)]
    for row in rows:
        if row.correct_choice_idx is None or not 0 <= row.correct_choice_idx < len(row.choices):
            raise files.wrong(path, f"question {row.question_id} has no correct choice, as in the test split")
    matched = match(answers, dict.fromkeys(row.question_id for row in rows), path)
    tallies = Tallies()
    for row in rows:
        text = matched.texts.get(row.question_id, "").strip()
        assert row.correct_choice_idx is not None
        letter = text[:1] == LETTERS[row.correct_choice_idx] and text[1:2] in ("", ".")
        shares = [("", letter or text == row.choices[row.correct_choice_idx]), ("letter alone", letter)]
        tallies.add_shares(shares, row.question_id, str(row.image_id), row.question_id in matched.texts)
    metrics = tallies.percents()
    score = metrics.pop("")
    chance = percent(sum(1 / len(row.choices) for row in rows), len(rows))
    note = (
        "right: the letter, a full stop after it allowed, or the text of the right choice, as the official rule has it"
    )
    return matched.report("aokvqa-choice", rows[0].split, score, metrics, [note], tallies, chance)


AOKVQA_CHOICE = Benchmark(
    name="aokvqa-choice",
    title="A-OKVQA, multiple choice",
    metric="accuracy",
    homepage=AOKVQA.homepage,
    files=AOKVQA.files,
    splits=AOKVQA.splits,
    read_questions=_choice_questions,
    read_labels=_choice_labels,
    score_answers=_rate_choices,
    images=layout.COCO,
)

BENCHMARKS = (AOKVQA, AOKVQA_CHOICE)
