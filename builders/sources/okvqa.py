"""OK-VQA: questions that need outside knowledge, about COCO images (okvqa.allenai.org)."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from vlmix.builders import layout
from vlmix.builders.schemas.vqa import Id
from vlmix.builders.sources.vqa import Answer, merge, read_annotations, read_questions
from vlmix.builders.text import Split, majority
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation, is_blank


class OkVqaOptions(Options, frozen=True, kw_only=True):
    split: Annotated[Split, Meta(description="official split")] = "train"
    answer: Annotated[
        Literal["answer", "raw_answer"],
        Meta(description="field whose majority is the answer: stemmed, as LLaVA's rows fit, or as typed"),
    ] = "answer"
    capitalize: Annotated[bool, Meta(description="answers through str.capitalize(), as in LLaVA's rows")] = True


class Annotation(Struct):
    question_id: Id
    answers: list[Answer]


class Annotations(Struct):
    annotations: list[Annotation]


def read(raw: RawFolder, options: OkVqaOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per image; the answer is the majority of the ten, the first of them on ties.

    Stemming takes articles away, so a vote for "a" ("a type a or b person?") is stored as ""; LLaVA's mixture has such
    an empty answer. Where the majority is blank, the words that those workers typed are taken instead.
    """
    year = f"{options.split}2014"
    questions = read_questions(raw, f"OpenEnded_mscoco_{year}_questions.json", "OK-VQA", year, digits=1)
    path = raw.require(f"mscoco_{year}_annotations.json")

    def answer(annotation: Annotation) -> str:
        chosen = majority(getattr(a, options.answer) for a in annotation.answers)
        if is_blank(chosen):
            return majority(a.raw_answer for a in annotation.answers if is_blank(getattr(a, options.answer)))
        return chosen

    annotations = read_annotations(raw, path, Annotations, Annotation, answer)
    yield from merge("okvqa", options.split, questions, annotations, options.capitalize, reject)


SOURCE = Source(
    name="okvqa",
    title="OK-VQA",
    homepage="https://okvqa.allenai.org/download.html",
    license="annotations CC BY 4.0; images COCO (Flickr terms)",
    response_formats=("short_answer",),
    files=(
        RawFile("OpenEnded_mscoco_{split}2014_questions.json", "questions (VQA v1 has files of this name too)"),
        RawFile("mscoco_{split}2014_annotations.json", "ten answers each, as typed and stemmed"),
    ),
    read=read,
    options=OkVqaOptions,
    images=layout.COCO,
)
