"""VizWiz-VQA: questions of blind people about their photographs, by VQA accuracy."""

from pathlib import Path

import msgspec
from msgspec import Struct

from vlmix.builders.benchmarks.normalise import Memo, evalai, soft_accuracy
from vlmix.builders.benchmarks.vqa import Human, Item, TextCache, rate
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Matched, Question, Scored, match
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import SHORT_ANSWER, UNANSWERABLE


class _VizWizRow(Struct):
    image: str
    question: str
    answers: list[Human] | None = None
    answer_type: str = ""


_VIZWIZ_FILE = "{split}.json"


def _vizwiz_file(files: OfficialFiles, split: str) -> tuple[Path, list[_VizWizRow], str]:
    path = files.main(_VIZWIZ_FILE, *([split] if split else ["val", "test"]))
    rows = files.json(path, list[_VizWizRow])
    if not rows:
        raise files.wrong(path, "it has no questions")
    return path, rows, split or rows[0].image.removeprefix("VizWiz_").partition("_")[0]


def _vizwiz_questions(files: OfficialFiles, split: str) -> list[Question]:
    _, rows, _ = _vizwiz_file(files, split)
    return [
        Question(str(number), _vizwiz_image(row.image), f"{row.question.capitalize()}\n{UNANSWERABLE}\n{SHORT_ANSWER}")
        for number, row in enumerate(rows)
    ]


def _vizwiz_labels(files: OfficialFiles, split: str) -> Labels:
    path, rows, _ = _vizwiz_file(files, split)
    labels = {str(n): tuple(human.answer for human in row.answers) for n, row in enumerate(rows) if row.answers}
    if not labels:
        raise files.wrong(path, "its questions have no answers, as in the test split")
    return labels


def _vizwiz_image(name: str) -> str:
    return f"vizwiz/{name.removeprefix('VizWiz_').partition('_')[0]}/{name}"


def _vizwiz_match(answers: Answers, names: dict[str, str], path: Path) -> Matched:
    """`names` are the questions' ids by the names of their images."""
    ids = dict.fromkeys(names.values())
    return match(answers, ids, path, lambda row: names.get(row.question_id, row.question_id))


def _rate_vizwiz(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    path, rows, split = _vizwiz_file(files, split)
    items = []
    for number, row in enumerate(rows):
        if not row.answers:
            raise files.wrong(path, f"{row.image} has no answers, as in the test split, whose labels the server keeps")
        items.append(Item(str(number), row.image, row.answers, (row.answer_type,) if row.answer_type else ()))
    items = [item for item in items if answers.asks(item.id)]
    matched = _vizwiz_match(answers, {item.image: item.id for item in items}, path)
    note = "workers are identified by position, as VizWiz gives no ids; `VizWiz API` leaves their answers as typed"
    words = TextCache()

    def as_typed(item: Item, text: str) -> float:
        text = words.normal[words.clean[text]]
        return soft_accuracy(sum(human.answer == text for human in item.humans), len(item.humans))

    return rate("vizwiz", split, items, matched, [note], by_position=True, more={"VizWiz API": as_typed})


def _submit_vizwiz(answers: Answers, files: OfficialFiles, split: str, out: Path) -> str:
    path, rows, _ = _vizwiz_file(files, split or "test")
    matched = _vizwiz_match(answers, {row.image: str(number) for number, row in enumerate(rows)}, path)
    processed = Memo(evalai)
    submitted = []
    for number, row in enumerate(rows):
        if str(number) not in matched.texts:
            raise VlmixError(
                f"{answers.path}: {matched.missing:,} of {len(rows):,} questions have no answer, the first is {number} "
                f"({row.image}); the server takes whole files only: answer them first"
            )
        submitted.append({"image": row.image, "answer": processed[matched.texts[str(number)]]})
    with atomic_write(out) as file:
        file.write(msgspec.json.encode(submitted))
    return f"{out}: {len(submitted):,} answers"


VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz-VQA",
    metric="VQA accuracy",
    homepage="https://vizwiz.org/tasks-and-datasets/vqa/",
    files=(RawFile(_VIZWIZ_FILE, "questions and, except for test, ten answers each (Annotations.zip)"),),
    splits=("val", "train", "test"),
    read_questions=_vizwiz_questions,
    read_labels=_vizwiz_labels,
    score_answers=_rate_vizwiz,
    submit=_submit_vizwiz,
)

BENCHMARKS = (VIZWIZ,)
