"""Rosetta's OCR tokens, which TextCaps and TextVQA share."""

from msgspec import Struct


class Ocr(Struct):
    image_id: str
    ocr_tokens: list[str]


class Rosetta(Struct):
    data: list[Ocr]
