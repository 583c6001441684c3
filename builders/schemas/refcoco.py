"""The referring expressions of lichengunc/refer: COCO's instances, and the pickled refs."""

from msgspec import Struct


class Picture(Struct):
    id: int
    width: int
    height: int


class Annotation(Struct):
    id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels


class Instances(Struct):
    images: list[Picture]
    annotations: list[Annotation]


class Sentence(Struct):
    sent_id: int
    sent: str
    raw: str = ""


class Ref(Struct):
    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: list[Sentence]
