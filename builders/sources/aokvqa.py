"""A-OKVQA: multiple choice with common sense, about COCO images (github.com/allenai/aokvqa)."""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from vlmix.builders import layout
from vlmix.builders.layout import coco
from vlmix.builders.schemas.aokvqa import Record
from vlmix.builders.sources.duplicates import unique
from vlmix.builders.text import Split
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation, ImageRef, Round


class AokVqaOptions(Options, frozen=True, kw_only=True):
    split: Annotated[Split, Meta(description="official split")] = "train"
    rotate: Annotated[
        bool,
        Meta(description="one copy per cyclic rotation of the choices (LLaVA-1.5, A.2); false: the raw order once"),
    ] = True


def read(raw: RawFolder, options: AokVqaOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """The questions of an image are merged first, then the row is copied once per rotation; all its questions rotate
    together and the copies stand next to each other."""
    path = raw.require(f"aokvqa_v1p0_{options.split}.json")
    images: dict[int, list[Record]] = {}
    records = list(raw.elements(path, Record))
    for record in unique(
        records, lambda r: r.question_id, reject, lambda r: f"aokvqa/{r.image_id:012d}", "question"
    ).values():
        if record.split != options.split:
            raise raw.wrong(path, f"question {record.question_id} is of the split {record.split!r}")
        correct = record.correct_choice_idx
        if correct is None or not 0 <= correct < len(record.choices):
            detail = f"question {record.question_id}: correct_choice_idx {correct} of {len(record.choices)} choices"
            reject(f"aokvqa/{record.image_id:012d}", "bad_choice", detail, round=0, record=record)
            continue
        images.setdefault(record.image_id, []).append(record)
    for image_id, asked in images.items():
        copies = max(len(record.choices) for record in asked) if options.rotate else 1
        for shift in range(copies):
            yield Conversation(
                id=f"aokvqa/{image_id:012d}#{shift}",
                source="aokvqa",
                rounds=tuple(_rotated(record, shift) for record in asked),
                images=(ImageRef(coco(options.split, image_id)),),
            )


def _rotated(record: Record, shift: int) -> Round:
    count = len(record.choices)
    assert record.correct_choice_idx is not None
    # The index moves with the options; searching for the answer's text would fail on duplicate options.
    choices = tuple(record.choices[(i + shift) % count] for i in range(count))
    correct = (record.correct_choice_idx - shift) % count
    return Round(record.question, choices[correct], "choice", choices=choices, correct=correct)


SOURCE = Source(
    name="aokvqa",
    title="A-OKVQA",
    homepage="https://github.com/allenai/aokvqa",
    license="Apache-2.0; images COCO (Flickr terms)",
    response_formats=("choice",),
    files=(RawFile("aokvqa_v1p0_{split}.json", "questions with four choices"),),
    read=read,
    options=AokVqaOptions,
    images=layout.COCO,
)
