"""Writing one shard: a slice of the mixture order to a tar, and its rows of samples.parquet."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from vlmix.mixture.build.extract import CandidateReader
from vlmix.mixture.build.images import StoredForm, plan_storage, scaled, stored_bytes
from vlmix.mixture.dataset.schema import SampleJson, turns
from vlmix.mixture.dataset.shards import Row, ShardDone, ShardTask, store_rows
from vlmix.mixture.io.images import ImageInfo, image_xxh3
from vlmix.mixture.record import Conversation
from vlmix.mixture.render import StyleName, count_words, render


class Pick(Struct, frozen=True):
    """One sample of a shard: where its candidate is, its place in the natural order, its image's file."""

    entry: int
    row: int
    natural_index: int
    repeat: int
    facts: ImageInfo | None


class ShardJob(ShardTask, frozen=True):
    """A shard to write; without `images` only the index rows are made."""

    picks: list[Pick]
    candidates: list[Path]
    prompts: StyleName
    images: bool


def write_shard(job: ShardJob) -> ShardDone:
    """Write the tar and its index rows; runs in a worker. Both appear whole or not at all, the rows last."""
    readers: dict[int, CandidateReader] = {}

    def rows() -> Iterator[Row]:
        for pick in job.picks:
            if pick.entry not in readers:
                readers[pick.entry] = CandidateReader(job.candidates[pick.entry])
            yield make_row(readers[pick.entry][pick.row], pick, job.prompts, job.images)

    return store_rows(rows(), job.number, job.first, job.out, job.work, with_tar=job.images)


def make_row(conversation: Conversation, pick: Pick, prompts: StyleName, with_image: bool) -> Row:
    """Text, boxes and image bytes of a sample."""
    data, adapted = None, None
    if conversation.image and with_image and pick.facts is not None:
        adapted = image_fit(conversation, pick.facts)
        assert adapted is not None, "samples whose image does not fit are rejected before the order is made"
        data = stored_bytes(pick.facts, adapted)
        conversation = scaled(conversation, adapted)
    texts = render(conversation, prompts)
    sample = SampleJson(
        id=conversation.id,
        source=conversation.source,
        image=conversation.image,
        width=conversation.width,
        height=conversation.height,
        conversations=turns(texts),
        extra=conversation.extra,
    )
    columns = {
        "id": sample.id,
        "source": sample.source,
        "image": sample.image,
        "width": sample.width,
        "height": sample.height,
        "num_rounds": len(conversation.rounds),
        "num_words": count_words(texts),
        "repeat": pick.repeat,
        "natural_index": pick.natural_index,
        "image_hash": image_xxh3(data) if data is not None else "",
        "image_change": adapted.change if adapted else "",
        "conversations": [{"from": turn.from_, "value": turn.value} for turn in sample.conversations],
        "response_formats": [qa.format for qa in conversation.rounds],
        "boxes": [
            {"round": i, "x1": box[0], "y1": box[1], "x2": box[2], "y2": box[3]}
            for i, qa in enumerate(conversation.rounds)
            for box in qa.boxes
        ],
        "extra": sample.extra,
    }
    return Row(sample.source, columns, msgspec.json.encode(sample), data)


def image_fit(conversation: Conversation, facts: ImageInfo) -> StoredForm | None:
    """How `facts` serves the conversation; None if its boxes were made on a picture of another shape."""
    boxed = any(qa.boxes for qa in conversation.rounds)
    return plan_storage(facts, conversation.width, conversation.height, boxed)
