"""VQA accuracy, and VQAv2 and OK-VQA, which go by it.

The rule is that of GT-Vision-Lab/VQA `vqaEval.py`: of ten human answers each is left out in turn, a prediction is worth
min(1, equal answers among the other nine / 3), and the mean of the ten counts.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from vlmix.builders import layout
from vlmix.builders.benchmarks.normalise import Memo, clean, evalai, soft_accuracy, vqa
from vlmix.builders.schemas.vqa import Info, Questions
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Matched, Question, Scored, match
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import SHORT_ANSWER

DIGITS = 2  # the official evaluator rounds percentages
AS_SUBMITTED = "predictions through LLaVA's answer processor, as it submits them; `raw text` is without"


class Human(Struct, gc=False):
    """One worker's answer, with the fields that the official evaluator compares too."""

    answer: str
    answer_id: int | None = None
    answer_confidence: str | None = None
    raw_answer: str | None = None


class TextCache:
    """What texts are in one scoring: `clean`ed, and normalised after that."""

    def __init__(self) -> None:
        self.clean = Memo(clean)
        self.normal = Memo(vqa)


class HumanAnswers:
    """The answers of a question's workers, ready to be compared with predictions.

    Where all cleaned answers are the same they stay as they are, and so does the prediction: "Yes" is worth nothing
    against ten times "yes". Else both are normalised. Leaving one out means leaving out every equal record, id and
    confidence included; records without ids (`by_position` false) that say the same thus go together.
    """

    __slots__ = ("_answers", "_twins", "_unanimous", "_words")

    def __init__(self, humans: Sequence[Human], words: TextCache, by_position: bool = False) -> None:
        answers = [words.clean[human.answer] for human in humans]
        self._words = words
        self._unanimous = len(set(answers)) == 1
        self._answers = answers if self._unanimous else [words.normal[answer] for answer in answers]
        self._twins: Counter[tuple[str, int | None, str | None]] | None = None
        if not by_position and len({human.answer_id for human in humans}) < len(humans):
            self._twins = Counter(
                (answer, human.answer_id, human.answer_confidence) for answer, human in zip(self._answers, humans)
            )

    def accuracy(self, prediction: str) -> float:
        """0..1."""
        text = self._words.clean[prediction]
        if not self._unanimous:
            text = self._words.normal[text]
        count, equal = len(self._answers), self._answers.count(text)
        if self._twins is None:
            return soft_accuracy(equal, count)
        thirds = (count - equal) * min(3, equal)
        for (answer, _, _), size in self._twins.items():
            thirds += size * min(3, equal - size) if answer == text else 0
        return thirds / (3 * count)


class Item(NamedTuple):
    """A question's id, its image, its workers, and the groups in which its score is counted."""

    id: str
    image: str
    humans: Sequence[Human]
    groups: tuple[str, ...] = ()


def rate(
    name: str,
    split: str,
    items: list[Item],
    matched: Matched,
    notes: list[str],
    by_position: bool = False,
    more: Mapping[str, Callable[[Item, str], float]] | None = None,
) -> Scored:
    """The report on all `items`; a question without an answer counts as answered with "", as LLaVA submits it. `more`
    are metrics by name, which score a question's item and answer with 0..1."""
    words, processed = TextCache(), Memo(evalai)
    tallies = Tallies()
    for item in items:
        crowd = HumanAnswers(item.humans, words, by_position)
        text = matched.texts.get(item.id, "")
        answered = item.id in matched.texts
        score = crowd.accuracy(processed[text])
        shares = [("", score), *((group, score) for group in item.groups), ("raw text", crowd.accuracy(text))]
        shares += [(name, metric(item, processed[text])) for name, metric in (more or {}).items()]
        tallies.add_shares(shares, item.id, item.image, answered)
    metrics = tallies.percents(DIGITS)
    if matched.missing:
        notes.append("missing answers count as empty ones; the official evaluator refuses such a file")
    return matched.report(name, split, metrics.pop("", 0.0), metrics, [AS_SUBMITTED, *notes], tallies)


class _AnnotatedRow(Struct, gc=False):
    question_id: int
    image_id: int | str = ""
    answers: list[Human] | None = None
    question_type: str = ""
    answer_type: str = ""


class _Annotated(Struct):
    annotations: list[_AnnotatedRow]
    info: Info = Info()
    data_subtype: str = ""
    question_types: dict[str, str] = {}


F = TypeVar("F", Questions, _Annotated)

_YEARS = {"val": "val2014", "train": "train2014", "test-dev": "test-dev2015", "test": "test2015"}
_SPLITS = {year: split for split, year in _YEARS.items()}


def _opened(files: OfficialFiles, pattern: str, split: str, type: type[F], dataset: str) -> tuple[Path, F, str]:
    """(path, file, split). VQAv2, VQA v1 and OK-VQA share file names and schema; the description says which."""
    path = files.main(pattern, _YEARS[split or "val"])
    file = files.json(path, type)
    said = file.info.description
    if said and dataset not in said:
        raise files.wrong(path, f"its info says {said!r}, expected {dataset!r}")
    found = _SPLITS.get(file.data_subtype, split or "val")
    if split and found != split:
        raise files.wrong(path, f"its data_subtype is {file.data_subtype!r}, and split {split!r} was asked for")
    return path, file, found


def _questions(files: OfficialFiles, split: str, pattern: str, dataset: str) -> list[Question]:
    _, file, split = _opened(files, pattern, split, Questions, dataset)
    folder = "test2015" if split.startswith("test") else split
    return [
        Question(str(row.question_id), layout.coco(folder, row.image_id), f"{row.question}\n{SHORT_ANSWER}")
        for row in file.questions
    ]


def _annotations(files: OfficialFiles, split: str, pattern: str, dataset: str) -> tuple[Path, _Annotated, str]:
    path, file, split = _opened(files, pattern, split, _Annotated, dataset)
    if not file.annotations:
        raise files.wrong(path, "it has no annotations")
    for row in file.annotations:
        if not row.answers:
            raise files.wrong(path, f"question {row.question_id} has no answers, as in a test split")
    return path, file, split


def _labels(files: OfficialFiles, split: str, pattern: str, dataset: str) -> Labels:
    rows = _annotations(files, split, pattern, dataset)[1].annotations
    return {str(row.question_id): tuple(human.answer for human in row.answers or ()) for row in rows}


def _items(file: _Annotated, groups: Callable[[_AnnotatedRow], Iterable[str]]) -> list[Item]:
    return [
        Item(str(row.question_id), str(row.image_id or row.question_id), row.answers or [], tuple(groups(row)))
        for row in file.annotations
    ]


_V2_QUESTIONS = "v2_OpenEnded_mscoco_{split}_questions.json"
_V2_ANNOTATIONS = "v2_mscoco_{split}_annotations.json"
_V2 = "v2.0 of the VQA"


def _vqav2_groups(row: _AnnotatedRow) -> Iterable[str]:
    if row.answer_type:
        yield row.answer_type
    if row.question_type:
        yield f"question type/{row.question_type}"


def _asked(answers: Answers, items: list[Item], path: Path) -> tuple[list[Item], Matched]:
    """The items that were asked, and the answers to them."""
    items = [item for item in items if answers.asks(item.id)]
    return items, match(answers, dict.fromkeys(item.id for item in items), path)


def _rate_vqav2(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    path, file, split = _annotations(files, split, _V2_ANNOTATIONS, _V2)
    items = _items(file, _vqav2_groups)
    items, matched = _asked(answers, items, path)
    return rate("vqav2", split, items, matched, [])


def _submit_vqav2(answers: Answers, files: OfficialFiles, split: str, out: Path) -> str:
    questions = _questions(files, split or "test", _V2_QUESTIONS, _V2)
    processed = Memo(evalai)
    matched = match(answers, dict.fromkeys(question.id for question in questions), files.path)
    rows = [
        {
            "question_id": int(question.id),
            "answer": processed[matched.texts[question.id]] if question.id in matched.texts else "",
        }
        for question in questions
    ]
    with atomic_write(out) as file:
        file.write(msgspec.json.encode(rows))
    return f"{out}: {len(rows):,} answers, {matched.missing:,} of them empty for want of one"


VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2",
    metric="VQA accuracy",
    homepage="https://visualqa.org/download.html",
    files=(
        RawFile(_V2_QUESTIONS, "questions; for test-dev and test too"),
        RawFile(_V2_ANNOTATIONS, "ten answers each; val and train only"),
    ),
    splits=("val", "train", "test-dev", "test"),
    read_questions=lambda files, split: _questions(files, split, _V2_QUESTIONS, _V2),
    read_labels=lambda files, split: _labels(files, split, _V2_ANNOTATIONS, _V2),
    score_answers=_rate_vqav2,
    submit=_submit_vqav2,
    images=layout.COCO,
)

_OK_QUESTIONS = "OpenEnded_mscoco_{split}_questions.json"
_OK_ANNOTATIONS = "mscoco_{split}_annotations.json"


def _rate_okvqa(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    path, file, split = _annotations(files, split, _OK_ANNOTATIONS, "OK-VQA")
    types = file.question_types
    items = _items(file, lambda row: [f"question type/{types.get(row.question_type, row.question_type)}"])
    items, matched = _asked(answers, items, path)
    words = TextCache()

    def as_typed(item: Item, text: str) -> float:
        humans = [msgspec.structs.replace(human, answer=human.raw_answer or human.answer) for human in item.humans]
        return HumanAnswers(humans, words).accuracy(text)

    notes = ["against the stemmed `answer`, as the official files say"]
    return rate("okvqa", split, items, matched, notes, more={"as typed": as_typed})


OKVQA = Benchmark(
    name="okvqa",
    title="OK-VQA",
    metric="VQA accuracy",
    homepage="https://okvqa.allenai.org/download.html",
    files=(RawFile(_OK_QUESTIONS, "questions"), RawFile(_OK_ANNOTATIONS, "ten answers each, stemmed and as typed")),
    splits=("val", "train"),
    read_questions=lambda files, split: _questions(files, split, _OK_QUESTIONS, "OK-VQA"),
    read_labels=lambda files, split: _labels(files, split, _OK_ANNOTATIONS, "OK-VQA"),
    score_answers=_rate_okvqa,
    images=layout.COCO,
)

BENCHMARKS = (VQAV2, OKVQA)
