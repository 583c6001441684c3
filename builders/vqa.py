"""The question and annotation files that VQAv2 and OK-VQA share: two lists, joined on `question_id`."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from msgspec import Struct

from builders.layout import coco
from builders.text import Split, short, text_problem
from mixture.record import Conversation, Exchange
from mixture.source import RawFolder, Rejects


class Info(Struct, frozen=True):
    description: str = ""


class Question(Struct, gc=False):
    image_id: int
    question: str
    question_id: int


class Questions(Struct):
    questions: list[Question]
    info: Info = Info()
    data_subtype: str = ""


class Answer(Struct, gc=False):
    """One worker's answer; `raw_answer` is OK-VQA's."""

    answer: str
    raw_answer: str = ""


A = TypeVar("A")


def read_questions(raw: RawFolder, name: str, dataset: str, year: str, digits: int) -> list[Question]:
    """The questions of a file that really is `dataset`'s: OK-VQA and VQA v1 share their file names, so the description
    is looked at, and the arithmetic of the ids (image id followed by `digits` digits)."""
    path = raw.require(name)
    file = raw.json(path, Questions)
    said = file.info.description
    if said and dataset not in said:
        raise raw.wrong(path, f"its info says {said!r}, expected {dataset!r}")
    if file.data_subtype not in ("", year):
        raise raw.wrong(path, f"its data_subtype is {file.data_subtype!r}, expected {year!r}")
    for question in file.questions[:1]:
        if question.question_id // 10**digits != question.image_id:
            raise raw.wrong(path, f"question id {question.question_id} does not belong to image {question.image_id}")
    return file.questions


def merge(
    source: str,
    split: Split,
    questions: list[Question],
    annotations: dict[int, A],
    answer: Callable[[A], str],
    capitalize: bool,
    reject: Rejects,
) -> Iterator[Conversation]:
    """One conversation per image, its questions in file order (LLaVA-1.5, appendix A.2)."""
    images: dict[int, list[Exchange]] = {}
    seen: set[int] = set()
    for question in questions:
        if question.question_id in seen:
            detail = f"question {question.question_id} stands twice in the file"
            reject(f"{source}/{question.image_id:012d}", "duplicate_question", detail, exchange=0)
            continue
        seen.add(question.question_id)
        annotation = annotations.pop(question.question_id, None)
        where = f"{source}/{question.image_id:012d}"
        if annotation is None:
            reject(where, "no_annotation", f"question {question.question_id} has no annotation", exchange=0)
            continue
        text = short(answer(annotation), capitalize)
        if problem := text_problem(question.question, text):
            reject(where, problem[0], f"question {question.question_id}: {problem[1]}", exchange=0)
        else:
            exchange = Exchange(question.question, text, "short_answer")
            images.setdefault(question.image_id, []).append(exchange)
    for question_id in annotations:
        reject(f"{source}/question/{question_id}", "no_question", f"annotation {question_id} has no question")
    for image_id, exchanges in images.items():
        yield Conversation(
            id=f"{source}/{image_id:012d}", source=source, exchanges=tuple(exchanges), image=coco(split, image_id)
        )
