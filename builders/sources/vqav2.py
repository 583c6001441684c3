"""VQAv2: short answers about COCO images (visualqa.org)."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from vlmix.builders import layout
from vlmix.builders.schemas.vqa import Id
from vlmix.builders.sources.vqa import Answer, merge, read_annotations, read_questions, read_share
from vlmix.builders.text import Split, majority
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.json_pieces import Share
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation


class VqaV2Options(Options, frozen=True, kw_only=True):
    split: Annotated[Split, Meta(description="official split")] = "train"
    capitalize: Annotated[bool, Meta(description="answers through str.capitalize(), as in LLaVA's rows")] = True


class Annotation(Struct, gc=False):
    question_id: Id
    multiple_choice_answer: str | None = None
    answers: msgspec.Raw = msgspec.Raw()  # decoded only where a copy of the release left the first field out


class Annotations(Struct):
    annotations: list[Annotation]


_answers = msgspec.json.Decoder(list[Answer])


def read(raw: RawFolder, options: VqaV2Options, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per image with all its questions; the answer is `multiple_choice_answer`, the majority of the
    ten where that field is missing."""
    year = f"{options.split}2014"
    questions = read_questions(raw, f"v2_OpenEnded_mscoco_{year}_questions.json", "v2.0 of the VQA", year, digits=3)
    path = raw.require(f"v2_mscoco_{year}_annotations.json")

    def answer(annotation: Annotation) -> str:
        if annotation.multiple_choice_answer is not None:
            return annotation.multiple_choice_answer
        try:
            return majority(a.answer for a in _answers.decode(annotation.answers)) if annotation.answers else ""
        except msgspec.DecodeError:
            return ""

    if raw.share is None:
        annotations = read_annotations(raw, path, Annotations, Annotation, answer)
    else:
        questions, annotations = read_share(raw, path, Annotations, Annotation, answer, raw.share, questions)
    yield from merge("vqav2", options.split, questions, annotations, options.capitalize, reject)


def split(raw: RawFolder, options: VqaV2Options, name: str) -> Sequence[Share | None]:
    """The annotations in shares; each share reads all questions."""
    return raw.shares(f"v2_mscoco_{options.split}2014_annotations.json")


SOURCE = Source(
    name="vqav2",
    title="VQAv2",
    homepage="https://visualqa.org/download.html",
    license="annotations CC BY 4.0; images COCO (Flickr terms)",
    response_formats=("short_answer",),
    files=(
        RawFile("v2_OpenEnded_mscoco_{split}2014_questions.json", "questions"),
        RawFile("v2_mscoco_{split}2014_annotations.json", "ten answers each, and the most frequent"),
    ),
    read=read,
    split=split,
    options=VqaV2Options,
    images=layout.COCO,
)
