"""The question and annotation files that VQAv2 and OK-VQA share: two lists, joined on `question_id`."""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from msgspec import Struct

from vlmix.builders.layout import coco
from vlmix.builders.schemas.vqa import Question, Questions
from vlmix.builders.sources.duplicates import unique
from vlmix.builders.text import Split, short, text_problem
from vlmix.mixture.build.source import RawFolder, Rejects
from vlmix.mixture.record import Conversation, ImageRef, Round


class Answer(Struct, gc=False):
    """One worker's answer; `raw_answer` is OK-VQA's."""

    answer: str
    raw_answer: str = ""


class Annotated(Protocol):
    """An annotation of a question."""

    question_id: int


A = TypeVar("A", bound=Annotated)


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
    annotations: list[A],
    answer: Callable[[A], str],
    capitalize: bool,
    reject: Rejects,
) -> Iterator[Conversation]:
    """One conversation per image, its questions in file order (LLaVA-1.5, appendix A.2)."""
    images: dict[int, list[Round]] = {}
    by_question = unique(
        annotations,
        lambda a: a.question_id,
        reject,
        lambda a: f"{source}/question/{a.question_id}",
        "annotation",
        answer,
    )
    for question in unique(
        questions, lambda q: q.question_id, reject, lambda q: f"{source}/{q.image_id:012d}", "question"
    ).values():
        annotation = by_question.pop(question.question_id, None)
        if annotation is None:
            problem: tuple[str, str] | None = ("no_annotation", "it has no annotation")
        else:
            text = short(answer(annotation), capitalize)
            problem = text_problem(question.question, text)
        if problem is not None:
            detail = f"question {question.question_id}: {problem[1]}"
            reject(f"{source}/{question.image_id:012d}", problem[0], detail, round=0)
            continue
        qa = Round(question.question, text, "short_answer")
        if (rounds := images.get(question.image_id)) is None:
            images[question.image_id] = [qa]
        else:
            rounds.append(qa)
    for question_id in by_question:
        reject(f"{source}/question/{question_id}", "no_question", f"annotation {question_id} has no question")
    for image_id, rounds in images.items():
        yield Conversation(
            id=f"{source}/{image_id:012d}",
            source=source,
            rounds=tuple(rounds),
            images=(ImageRef(coco(split, image_id)),),
        )
