"""GQA: exact match, by the official `eval.py` of the dataset's page, on LLaVA's form of the answers."""

from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from vlmix.builders import layout
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Question, Scored, match
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import SHORT_ANSWER

_FILE = "{split}_questions.json"
# Steps that only name what was found; they do not count as reasoning.
_NO_STEP = ("exist", "query: name", "choose name")


class _Step(Struct):
    operation: str = ""
    argument: str = ""


class _Types(Struct, frozen=True):
    structural: str | None = None
    semantic: str | None = None


class _Groups(Struct, frozen=True):
    global_: str | None = msgspec.field(default=None, name="global")


class _Row(Struct):
    imageId: str
    question: str
    answer: str | None = None
    isBalanced: bool = True
    types: _Types = _Types()
    groups: _Groups = _Groups()
    semantic: list[_Step] = []


def prediction(text: str) -> str:
    """An answer as LLaVA hands it to the official script: no final full stops, lower case, nothing else."""
    return text.rstrip(".").lower()


def _opened(files: OfficialFiles, split: str) -> tuple[Path, dict[str, _Row]]:
    path = files.main(_FILE, *(_names(split) if split else (*_names("testdev"), *_names("val"))))
    rows = files.json(path, dict[str, _Row])
    if not rows:
        raise files.wrong(path, "it has no questions")
    return path, rows


def _names(split: str) -> tuple[str, ...]:
    return (split,) if "_" in split else (f"{split}_balanced",)


def _questions(files: OfficialFiles, split: str) -> list[Question]:
    return [
        Question(id, f"gqa/images/{row.imageId}.jpg", f"{row.question}\n{SHORT_ANSWER}")
        for id, row in _opened(files, split)[1].items()
    ]


def _labels(files: OfficialFiles, split: str) -> Labels:
    path, rows = _opened(files, split)
    labels = {id: (row.answer,) for id, row in rows.items() if row.answer is not None}
    if not labels:
        raise files.wrong(path, "its questions have no answers, as in a test split")
    return labels


def _score_answers(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    path, rows = _opened(files, split)
    rows = {id: row for id, row in rows.items() if answers.asks(id)}
    matched = match(answers, rows, path)
    balanced = {id: row for id, row in rows.items() if row.isBalanced}
    missing = 0
    tallies, gold, predicted = Tallies(), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for id, row in balanced.items():
        if row.answer is None:
            raise files.wrong(path, f"question {id} has no answer, as in a test split")
        text = matched.texts.get(id)
        missing += text is None
        answer = None if text is None else prediction(text)
        hit = answer == row.answer
        names = (
            "",
            "open" if row.types.structural == "query" else "binary",
            f"structural/{row.types.structural}",
            f"semantic/{row.types.semantic}",
            f"words/{len(row.question.split()):02}",
            f"steps/{_steps(row):02}",
        )
        tallies.add_shares([(name, hit) for name in names], id, row.imageId, text is not None)
        if row.groups.global_ is not None:
            gold[row.groups.global_, row.answer] += 1
            if answer is not None:
                predicted[row.groups.global_, answer] += 1
    metrics = tallies.percents()
    score = metrics.pop("", 0.0)
    if gold:
        metrics["distribution (lower is better)"] = chi_square(gold, predicted) / 100
    notes = ["exact match of lower-cased answers without final full stop, over balanced questions"]
    if missing:
        notes.append(
            f"{missing:,} balanced questions without an answer count as wrong; the official script stops there"
        )
    return matched.report("gqa", _label(path, split), score, metrics, notes, tallies)


def _label(path: Path, split: str) -> str:
    return path.name.removesuffix("_questions.json") if path.name.endswith("_questions.json") else split or path.stem


def _steps(row: _Row) -> int:
    return sum(not any(name in f"{step.operation}: {step.argument}" for name in _NO_STEP) for step in row.semantic)


def chi_square(gold: Counter[tuple[str, str]], predicted: Counter[tuple[str, str]]) -> float:
    """How far predicted answers are from the true ones, by group: Σ (o - e)² / e over a group's true answers, groups
    weighted by their questions. Counts by (group, answer)."""
    sizes: Counter[str] = Counter()
    statistic: dict[str, float] = {}
    for (group, answer), expected in gold.items():
        statistic[group] = statistic.get(group, 0.0) + (predicted[group, answer] - expected) ** 2 / expected
        sizes[group] += expected
    return sum(statistic[group] * size for group, size in sizes.items()) / sizes.total()


def _submit(answers: Answers, files: OfficialFiles, split: str, out: Path) -> str:
    path, rows = _opened(files, split or "submission_all")
    matched = match(answers, rows, path)
    predictions = [{"questionId": id, "prediction": prediction(text)} for id, text in matched.texts.items()]
    with atomic_write(out) as file:
        file.write(msgspec.json.encode(predictions))
    return f"{out}: {len(predictions):,} predictions, {matched.missing:,} questions without one"


GQA = Benchmark(
    name="gqa",
    title="GQA",
    metric="accuracy, exact match",
    homepage="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    files=(RawFile(_FILE, "questions with answers: testdev_balanced, else val_balanced"),),
    splits=(
        "testdev_balanced",
        "val_balanced",
        "train_balanced",
        "testdev",
        "val",
        "testdev_all",
        "val_all",
        "test_balanced",
        "submission_all",
    ),
    read_questions=_questions,
    read_labels=_labels,
    score_answers=_score_answers,
    submit=_submit,
    images=layout.GQA,
)

BENCHMARKS = (GQA,)
