"""RefCOCO, RefCOCO+ and RefCOCOg: is the box that an answer names the object's? Right from an IoU of 0.5."""

import re

import msgspec
from msgspec import Struct

from vlmix.builders import layout
from vlmix.builders.schemas.refcoco import Instances, Ref
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Question, Scored, match
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.boxes import clip, from_square
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.io.pickles import load_plain
from vlmix.mixture.record import Box
from vlmix.mixture.render import GROUNDING

_ENOUGH = 0.5
_AUTHORS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
_SPLITS = {
    "val": tuple(_AUTHORS),
    "testA": ("refcoco", "refcoco+"),
    "testB": ("refcoco", "refcoco+"),
    "test": ("refcocog",),
}
_NUMBER = r"(-?\d+(?:\.\d*)?|-?\.\d+)"
_BOX = re.compile(rf"{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}")


class Expression(Struct, frozen=True):
    """A referring expression: `id` is `refcoco/unc/<sent_id>`, `box` is in pixels of a `width` x `height` image."""

    id: str
    text: str
    box: Box
    image_id: int
    width: int
    height: int


def box_in(text: str, width: int, height: int) -> Box | None:
    """The first four numbers in a row of an answer, `[x1, y1, x2, y2]` on the padded square as LLaVA writes boxes, in
    pixels of the unpadded image (the way back of `mixture.boxes.square_text`). None if there are none."""
    found = _BOX.search(text)
    if found is None:
        return None
    x1, y1, x2, y2 = map(float, found.groups())
    return from_square((x1, y1, x2, y2), width, height)


def iou(one: Box, other: Box) -> float:
    """Intersection over union, 0..1; 0 for a box whose corners are the wrong way round."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    if min(areas) <= 0:
        return 0.0
    return width * height / (sum(areas) - width * height)


def _opened(files: OfficialFiles, split: str) -> dict[str, list[Expression]]:
    """Set -> its expressions: of `val`, `testA` … those of every set that is there, of `refcoco+/val` one set's."""
    if files.folder.name in _AUTHORS and (files.folder / "instances.json").is_file():
        files = files.within(files.folder.parent)  # one set's folder lies beside the others'
    name, _, part = split.rpartition("/")
    part = part or "val"
    wanted = (name,) if name else _SPLITS[part]
    there = [name for name in wanted if files.find(f"{name}/instances.json")]
    if not there:
        raise files.missing(*(f"{name}/instances.json" for name in wanted))
    return {name: _expressions(files, name, part) for name in there}


def _expressions(files: OfficialFiles, name: str, split: str) -> list[Expression]:
    instances = files.json(files.require(f"{name}/instances.json"), Instances)
    pictures = {picture.id: picture for picture in instances.images}
    boxes = {annotation.id: annotation.bbox for annotation in instances.annotations}
    path = files.require(f"{name}/refs({_AUTHORS[name]}).p")
    try:
        refs = msgspec.convert(load_plain(files.read(path), path), list[Ref])
    except msgspec.ValidationError as error:
        raise files.wrong(path, str(error)) from None
    found = []
    for ref in refs:
        if ref.split != split:
            continue
        picture, xywh = pictures.get(ref.image_id), boxes.get(ref.ann_id)
        if picture is None or xywh is None:
            absent = f"image {ref.image_id}" if picture is None else f"annotation {ref.ann_id}"
            raise files.wrong(path, f"ref {ref.ref_id} names {absent}, which instances.json does not have")
        x, y, w, h = xywh
        box = clip((x, y, x + w, y + h), picture.width, picture.height) or (x, y, x + w, y + h)
        for sentence in ref.sentences:
            found.append(
                Expression(
                    f"{name}/{_AUTHORS[name]}/{sentence.sent_id}",
                    sentence.sent.strip().rstrip(". "),
                    box,
                    picture.id,
                    picture.width,
                    picture.height,
                )
            )
    if not found:
        raise files.wrong(path, f"it has no split {split!r}, only {', '.join(sorted({ref.split for ref in refs}))}")
    return found


def _questions(files: OfficialFiles, split: str) -> list[Question]:
    return [
        # All splits are of train2014.
        Question(expression.id, layout.coco("train", expression.image_id), f"{GROUNDING}{expression.text}.")
        for expressions in _opened(files, split).values()
        for expression in expressions
    ]


def _score_answers(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    opened = {
        name: counted
        for name, found in _opened(files, split).items()
        if (counted := [expression for expression in found if answers.asks(expression.id)])
    }
    expressions = {expression.id: expression for found in opened.values() for expression in found}
    matched = match(answers, expressions, files.path)
    tallies, unread = Tallies(), 0
    for name, found in opened.items():
        for expression in found:
            text = matched.texts.get(expression.id)
            box = None if text is None else box_in(text, expression.width, expression.height)
            unread += text is not None and box is None
            found_iou = 0.0 if box is None else iou(box, expression.box)
            image = str(expression.image_id)
            shares = [("", found_iou >= _ENOUGH), (name, found_iou >= _ENOUGH), ("mean IoU", found_iou)]
            tallies.add_shares(shares, expression.id, image, text is not None)
    metrics = tallies.percents()
    score = metrics.pop("")
    notes = [f"IoU of at least {_ENOUGH} in pixels, over {len(expressions):,} expressions of {', '.join(opened)}"]
    if unread:
        notes.append(f"{unread:,} answers hold no box [x1, y1, x2, y2] and are wrong")
    return matched.report("refcoco", split or "val", score, metrics, notes, tallies)


REFCOCO = Benchmark(
    name="refcoco",
    title="RefCOCO, RefCOCO+, RefCOCOg",
    metric="accuracy at IoU 0.5",
    homepage="https://github.com/lichengunc/refer",
    files=(
        RawFile("refcoco/instances.json, refcoco/refs(unc).p", "RefCOCO: boxes, expressions"),
        RawFile("refcoco+/instances.json, refcoco+/refs(unc).p", "RefCOCO+"),
        RawFile("refcocog/instances.json, refcocog/refs(umd).p", "RefCOCOg"),
    ),
    splits=(*_SPLITS, *(f"{name}/{split}" for split, names in _SPLITS.items() for name in names)),
    read_questions=_questions,
    score_answers=_score_answers,
    images=layout.COCO,
)

BENCHMARKS = (REFCOCO,)
