"""Writing one shard: a slice of the mixture order to a tar, and its rows of samples.parquet."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from mixture.convert import CandidateReader
from mixture.files import atomic, file_digest, sha256
from mixture.images import Fit, ImageFacts, content_hash, fit, scaled, stored_bytes
from mixture.manifest import Counts, Shard
from mixture.record import Conversation
from mixture.render import StyleName, count_words, values
from mixture.samples import SAMPLES, SampleJson, turns
from mixture.tar import TarWriter


def shard_path(number: int) -> str:
    return f"train/train-{number:06d}.tar"


def sample_key(position: int) -> str:
    return f"{position:09d}"


class Pick(Struct, frozen=True):
    """One sample of a shard: where its candidate is, its place in the natural order, its image's file."""

    entry: int
    row: int
    ordinal: int
    repeat: int
    facts: ImageFacts | None


class ShardJob(Struct, frozen=True):
    """A shard to write. `first` is the mixture position of its first sample; `work` the folder of the stage before;
    without `images` only the index rows are made."""

    number: int
    first: int
    picks: list[Pick]
    candidates: list[Path]
    prompts: StyleName
    out: Path
    work: Path
    images: bool


class ShardDone(Struct, frozen=True):
    """The result of a ShardJob; also kept beside the rows, so that a resumed build need not write it again."""

    shard: Shard | None
    counts: dict[str, Counts]
    rows: str
    """xxh3-128 of the file of index rows."""


class Row(Struct, frozen=True):
    """A sample ready to be stored: everything but its place."""

    source: str
    columns: dict[str, Any]
    json: bytes
    image: bytes | None


def rows_path(work: Path, number: int) -> Path:
    return work / f"rows-{number:06d}.arrow"


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
    texts = values(conversation, prompts)
    sample = SampleJson(
        id=conversation.id,
        source=conversation.source,
        image=conversation.image,
        width=conversation.width,
        height=conversation.height,
        conversations=turns(texts),
        origin=conversation.origin,
    )
    columns = {
        "id": sample.id,
        "source": sample.source,
        "image": sample.image,
        "width": sample.width,
        "height": sample.height,
        "exchanges": len(conversation.exchanges),
        "words": count_words(texts),
        "repeat": pick.repeat,
        "ordinal": pick.ordinal,
        "image_hash": content_hash(data) if data is not None else "",
        "image_change": adapted.change if adapted else "",
        "conversations": [{"from": turn.from_, "value": turn.value} for turn in sample.conversations],
        "formats": [exchange.format for exchange in conversation.exchanges],
        "boxes": [
            {"exchange": i, "x1": box[0], "y1": box[1], "x2": box[2], "y2": box[3]}
            for i, exchange in enumerate(conversation.exchanges)
            for box in exchange.boxes
        ],
        "origin": sample.origin,
    }
    return Row(sample.source, columns, msgspec.json.encode(sample), data)


def store_rows(rows: Iterator[Row], number: int, first: int, out: Path, work: Path, *, with_tar: bool) -> ShardDone:
    """Append samples to a tar under the keys `first`, `first + 1`, … and keep their index rows in `work`."""
    name = shard_path(number) if with_tar else ""
    stored: list[dict[str, Any]] = []
    counts: dict[str, Counts] = {}

    def index(add: Callable[[str, bytes], tuple[int, int]]) -> None:
        for position, row in enumerate(rows, start=first):
            key = sample_key(position)
            image = add(f"{key}.jpg", row.image) if row.image is not None else (0, 0)
            text = add(f"{key}.json", row.json)
            columns = row.columns
            places = {"image_offset": image[0], "image_size": image[1], "json_offset": text[0], "json_size": text[1]}
            stored.append({**columns, **places, "key": key, "shard": name})
            counts[row.source] = counts.get(row.source, Counts()) + Counts(
                1, columns["repeat"], columns["exchanges"], columns["words"], int(bool(columns["image"]))
            )

    shard = None
    if with_tar:
        path = out / name
        with atomic(path) as file:
            tar = TarWriter(file)

            def add(member: str, data: bytes) -> tuple[int, int]:
                placed = tar.add(member, data)
                return placed.offset, placed.size

            index(add)
            tar.close()
        shard = Shard(name, len(stored), path.stat().st_size, sha256(path))
    else:
        index(lambda member, data: (0, 0))
    batch = pa.RecordBatch.from_pylist(stored, SAMPLES)
    with atomic(rows_path(work, number)) as file, pa.ipc.new_file(file, SAMPLES) as writer:
        writer.write_batch(batch)
    done = ShardDone(shard, counts, file_digest(rows_path(work, number)))
    with atomic(rows_path(work, number).with_suffix(".done")) as file:
        file.write(msgspec.msgpack.encode(done))
    return done


def image_fit(conversation: Conversation, facts: ImageFacts) -> Fit | None:
    """How `facts` serves the conversation; None if its boxes were made on a picture of another shape."""
    boxed = any(exchange.boxes for exchange in conversation.exchanges)
    return fit(facts, conversation.width, conversation.height, boxed)
