"""OCR-VQA: questions about book covers (ocr-vqa.github.io)."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from vlmix.builders import layout
from vlmix.builders.sources.duplicates import reject_repeated
from vlmix.builders.text import short, text_problem
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation, ImageRef, Round

_SPLITS = {"train": 1, "val": 2, "test": 3}


class OcrVqaOptions(Options, frozen=True, kw_only=True):
    split: Annotated[
        Literal["train", "val", "test"],
        Meta(description="official split; which 80,000 train books LLaVA took is unknown, `take` draws them by seed"),
    ] = "train"


class Book(Struct):
    questions: list[str]
    answers: list[str]
    split: int


def read(raw: RawFolder, options: OcrVqaOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per book, its questions in dataset order (author, title, genre, yes, no), its answers raw."""
    books = raw.keyed(raw.require("dataset.json"), Book, "questions")
    reject_repeated(books.repeated(), "ocrvqa", "book", reject)
    for key, book in (pair for piece in books for pair in piece.items()):
        if book.split != _SPLITS[options.split]:
            continue
        identity = f"ocrvqa/{key}"
        if len(book.questions) != len(book.answers):
            detail = f"{len(book.questions)} questions and {len(book.answers)} answers"
            reject(identity, "unequal_lists", detail, record=book)
            continue
        rounds = []
        for number, (question, answer) in enumerate(zip(book.questions, book.answers)):
            if problem := text_problem(question, answer):
                reject(identity, *problem, round=number)
            else:
                rounds.append(Round(question, short(answer, capitalize=False), "short_answer"))
        if rounds:
            images = (ImageRef(f"ocr_vqa/images/{key}.jpg"),)
            yield Conversation(id=identity, source="ocrvqa", rounds=tuple(rounds), images=images)


SOURCE = Source(
    name="ocrvqa",
    title="OCR-VQA",
    homepage="https://ocr-vqa.github.io",
    license="not stated; covers (c) their publishers, research use",
    response_formats=("short_answer",),
    files=(RawFile("dataset.json", "books with questions, answers and the URL of the cover"),),
    read=read,
    options=OcrVqaOptions,
    images=layout.OCR_VQA,
)
