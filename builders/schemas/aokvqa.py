"""A-OKVQA's question files."""

from msgspec import Struct


class Record(Struct):
    split: str
    image_id: int
    question_id: str
    question: str
    choices: list[str]
    correct_choice_idx: int | None = None
    direct_answers: list[str] | None = None
    difficult_direct_answer: bool = False
