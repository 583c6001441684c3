"""VQA's question files, which VQAv2, OK-VQA and VQA v1 share."""

from msgspec import Struct


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
