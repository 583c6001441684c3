"""Writing one shard: a slice of the mixture order to a tar, and its rows of samples.parquet."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
from msgspec import Struct

from vlmix.mixture.build.extract import CandidateReader
from vlmix.mixture.build.images import StoredForm, plan_storage, scaled, stored_bytes
from vlmix.mixture.dataset.schema import SampleJson, turns
from vlmix.mixture.dataset.shards import Row, ShardDone, ShardTask, store_rows
from vlmix.mixture.io.images import ImageInfo, image_xxh3
from vlmix.mixture.record import Conversation, ImageRef
from vlmix.mixture.render import StyleName, count_words, render


class Pick(Struct, frozen=True):
    """One sample of a shard: where its candidate is, its place in the natural order, the files of its images."""

    entry: int
    row: int
    natural_index: int
    repeat: int
    facts: tuple[ImageInfo, ...]


class ShardJob(ShardTask, frozen=True):
    """A shard to write; without `images` only the index rows are made."""

    picks: list[Pick]
    candidates: list[list[Path]]
    prompts: StyleName
    images: bool
    schema: bytes
    """Of the index, as Arrow writes it."""


def write_shard(job: ShardJob) -> ShardDone:
    """Write the tar and its index rows; runs in a worker. Both appear whole or not at all, the rows last."""
    readers: dict[int, CandidateReader] = {}

    def rows() -> Iterator[Row]:
        for pick in job.picks:
            if pick.entry not in readers:
                readers[pick.entry] = CandidateReader(job.candidates[pick.entry])
            yield make_row(readers[pick.entry][pick.row], pick, job.prompts, job.images)

    schema = pa.ipc.read_schema(pa.py_buffer(job.schema))
    return store_rows(rows(), job.number, job.first, job.out, job.work, schema, with_tar=job.images)


def make_row(conversation: Conversation, pick: Pick, prompts: StyleName, with_image: bool) -> Row:
    """Text, boxes and image bytes of a sample."""
    data: list[bytes] = []
    forms: list[StoredForm] = []
    if with_image:
        for number, facts in enumerate(pick.facts):
            form = image_fit(conversation, number, facts)
            assert form is not None, "samples whose images do not fit are rejected before the order is made"
            forms.append(form)
        data = [stored_bytes(facts, form) for facts, form in zip(pick.facts, forms)]
        conversation = scaled(conversation, forms)
    texts = render(conversation, prompts)
    first = conversation.images[0] if conversation.images else ImageRef("")
    sample = SampleJson(
        id=conversation.id,
        source=conversation.source,
        image=first.path,
        width=first.width,
        height=first.height,
        images=list(conversation.images),
        conversations=turns(texts),
        extra=conversation.extra,
    )
    columns = {
        **conversation.columns,
        "id": sample.id,
        "source": sample.source,
        "image": sample.image,
        "width": sample.width,
        "height": sample.height,
        "num_images": len(sample.images),
        "images": [
            {
                "path": image.path,
                "width": image.width,
                "height": image.height,
                "xxh3": image_xxh3(data[number]) if data else "",
                "transform": forms[number].transform if data else "none",
            }
            for number, image in enumerate(sample.images)
        ],
        "num_rounds": len(conversation.rounds),
        "num_words": count_words(texts),
        "repeat": pick.repeat,
        "natural_index": pick.natural_index,
        "conversations": [{"from": turn.from_, "value": turn.value} for turn in sample.conversations],
        "response_formats": [qa.format for qa in conversation.rounds],
        "boxes": [
            {"round": i, "image": image, "x1": box[0], "y1": box[1], "x2": box[2], "y2": box[3]}
            for i, qa in enumerate(conversation.rounds)
            for image, box in zip(qa.box_images or (0,) * len(qa.boxes), qa.boxes)
        ],
        "extra": sample.extra,
    }
    return Row(sample.source, columns, msgspec.json.encode(sample), data)


def image_fit(conversation: Conversation, number: int, facts: ImageInfo) -> StoredForm | None:
    """How `facts` serves as an image of the conversation; None if boxes were made on a picture of another shape."""
    boxed = any(number in (qa.box_images or (0,)) for qa in conversation.rounds if qa.boxes)
    image = conversation.images[number]
    return plan_storage(facts, image.width, image.height, boxed)
