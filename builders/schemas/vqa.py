"""VQA's question files, which VQAv2, OK-VQA and VQA v1 share."""

from typing import Annotated

from msgspec import Meta, Struct

Id = Annotated[int, Meta(ge=-(2**62), lt=2**62)]


class Info(Struct, frozen=True):
    description: str = ""


class Question(Struct, gc=False):
    image_id: Id
    question: str
    question_id: Id


class Questions(Struct):
    questions: list[Question]
    info: Info = Info()
    data_subtype: str = ""
