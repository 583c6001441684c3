"""Writing one shard: a slice of the mixture order to a tar, and its rows of samples.parquet."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmix.mixture.build.extract import CandidateReader
from vlmix.mixture.build.facts import DECIDE, Facts, copy_path, unpack
from vlmix.mixture.build.images import StoredForm, contents, plan_storage, scaled, stored_bytes
from vlmix.mixture.dataset.schema import ROLES, SAMPLES, SampleJson, turns
from vlmix.mixture.dataset.shards import Members, Places, ShardDone, ShardTask, listed, store_rows, structs
from vlmix.mixture.io.image_index import file_path
from vlmix.mixture.io.images import ImageInfo, image_xxh3
from vlmix.mixture.record import Conversation, ImageRef
from vlmix.mixture.render import StyleName, render

_TOGETHER = 256  # samples whose images are read one after the other


class ImageFiles(msgspec.Struct, frozen=True):
    """The images of a shard's samples, one sample's after the other's: what they are, and where they lie."""

    facts: Facts
    locations: list[tuple[str, str]]
    extensions: list[str]
    location: NDArray[np.int64]
    """[m] number of each image's location; -1: it was copied out of a container."""
    extension: NDArray[np.int64]
    copies: Path
    full: bool

    def deciding(self) -> bytes:
        """What decides the stored bytes: of files that were read their own, of the others the signs of a change."""
        names = DECIDE if self.full else [*DECIDE, "mtime_ns", "ctime_ns", "inode"]
        return b"".join(self.facts[name].tobytes() for name in names)

    def infos(self, start: int, names: Sequence[str]) -> list[ImageInfo]:
        """The images from number `start` on, whose paths in LLaVA's layout are `names`."""
        part = slice(start, start + len(names))
        facts, paths, copied = self.facts[part], [], []
        for name, at, end, key in zip(names, self.location[part], self.extension[part], facts["key"]):
            copied.append(str(copy_path(self.copies, bytes(key))) if at < 0 else "")
            paths.append(copied[-1] or file_path(self.locations[at], name, self.extensions[end]))
        return unpack(facts, paths, copied)


class ShardJob(ShardTask, frozen=True):
    """A shard to write, its samples [n] by their candidates; without `images` only the index rows are made."""

    parts: list[Path]
    part: NDArray[np.int64]
    row: NDArray[np.int64]
    natural_index: NDArray[np.int64]
    repeat: NDArray[np.int32]
    num_words: NDArray[np.int32]
    prompts: StyleName
    images: ImageFiles | None
    schema: bytes
    """Of the index, as Arrow writes it."""


def write_shard(job: ShardJob) -> ShardDone:
    """Write the tar and its index rows; runs in a worker. Both appear whole or not at all, the rows last."""
    schema = pa.ipc.read_schema(pa.py_buffer(job.schema))
    rows = ShardRows(job, schema)
    return store_rows(rows.samples(), rows.columns, job, schema, with_tar=job.images is not None)


class ShardRows:
    """The rows of a shard: everything of a sample that is not its place, as columns that grow while it is written."""

    def __init__(self, job: ShardJob, schema: pa.Schema) -> None:
        self._job, self._schema = job, schema
        self._plain: list[tuple[Any, ...]] = []
        self._added: list[dict[str, Any]] = []
        self._images: list[tuple[Any, ...]] = []
        self._texts: list[str] = []
        self._formats: list[str] = []
        self._boxes: list[tuple[Any, ...]] = []
        self._counts: list[tuple[int, int, int, int]] = []

    def samples(self) -> Iterator[Members]:
        """The samples of the shard, whose rows are noted on the way."""
        job, readers = self._job, [CandidateReader(path) for path in self._job.parts]
        taken = 0
        for start in range(0, len(job.row), _TOGETHER):
            mine = slice(start, start + _TOGETHER)
            together = [readers[part][row] for part, row in zip(job.part[mine].tolist(), job.row[mine].tolist())]
            infos: list[ImageInfo] = []
            if job.images is not None:
                infos = job.images.infos(taken, [image.path for each in together for image in each.images])
                taken += len(infos)
            examined = zip(infos, contents(infos))
            for conversation in together:
                data: list[bytes] = []
                forms: list[StoredForm] = []
                if job.images is not None and conversation.images:
                    for number, (info, read) in enumerate(islice(examined, len(conversation.images))):
                        form = image_fit(conversation, number, info)
                        assert form is not None, "samples whose images do not fit are rejected before the order is made"
                        forms.append(form)
                        data.append(stored_bytes(read, form))
                    conversation = scaled(conversation, forms)
                texts = render(conversation, job.prompts)
                self.note(conversation, texts, forms, data)
                yield Members(_sample_json(conversation, texts) if job.images is not None else b"", data)

    def note(
        self, conversation: Conversation, texts: list[str], forms: Sequence[StoredForm], data: Sequence[bytes]
    ) -> None:
        """The next sample of the shard, its rendered turns and its images as they are stored."""
        images, rounds = conversation.images, conversation.rounds
        first = images[0] if images else _NO_IMAGE
        self._plain.append(
            (conversation.id, conversation.source, first.path, first.width, first.height, conversation.extra)
        )
        if conversation.columns:
            self._added.append(conversation.columns)
        elif len(self._schema) > len(SAMPLES):
            self._added.append({})
        hashes = map(image_xxh3, data) if data else [""] * len(images)
        transforms = [form.transform for form in forms] or ["none"] * len(images)
        self._images += [
            (image.path, image.width, image.height, xxh3, transform)
            for image, xxh3, transform in zip(images, hashes, transforms)
        ]
        self._texts += texts
        self._formats += [qa.format for qa in rounds]
        boxes = len(self._boxes)
        for number, qa in enumerate(rounds):
            if qa.boxes:
                held = qa.box_images or (0,) * len(qa.boxes)
                self._boxes += [(number, image, *box) for image, box in zip(held, qa.boxes)]
        self._counts.append((len(images), len(texts), len(rounds), len(self._boxes) - boxes))

    def columns(self, places: Places) -> dict[str, pa.Array]:
        """All columns but those of the samples' places."""
        job, types = self._job, {field.name: field.type for field in self._schema}
        images, texts, rounds, boxes = np.array(self._counts, dtype=np.int32).reshape(-1, 4).T
        spots = places.images if job.images is not None else np.zeros((len(self._images), 2), dtype=np.int64)
        path, width, height, xxh3, transform = _columns(self._images, 5)
        stored = (path, width, height, spots[:, 0], spots[:, 1], xxh3, transform)
        # A question, then its answer.
        turn = structs(types["conversations"].value_type, ((ROLES * len(self._formats)), self._texts))
        names = ("id", "source", "image", "width", "height", "extra")
        made = {name: pa.array(values, types[name]) for name, values in zip(names, _columns(self._plain, len(names)))}
        made |= {
            "num_images": pa.array(images),
            "images": listed(images, structs(types["images"].value_type, stored), types["images"]),
            "num_rounds": pa.array(rounds),
            "num_words": pa.array(job.num_words),
            "repeat": pa.array(job.repeat),
            "natural_index": pa.array(job.natural_index),
            "conversations": listed(texts, turn, types["conversations"]),
            "response_formats": listed(rounds, pa.array(self._formats, pa.string()), types["response_formats"]),
            "boxes": listed(boxes, structs(types["boxes"].value_type, _columns(self._boxes, 6)), types["boxes"]),
        }
        added = [field for field in self._schema if field.name not in SAMPLES.names]
        return made | {
            field.name: pa.array([row.get(field.name) for row in self._added], field.type) for field in added
        }


_NO_IMAGE = ImageRef("")


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> Sequence[Sequence[Any]]:
    return list(zip(*rows)) if rows else [()] * width


def _sample_json(conversation: Conversation, texts: list[str]) -> bytes:
    first = conversation.images[0] if conversation.images else _NO_IMAGE
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
    return msgspec.json.encode(sample)


def image_fit(conversation: Conversation, number: int, facts: ImageInfo) -> StoredForm | None:
    """How `facts` serves as an image of the conversation; None if boxes were made on a picture of another shape."""
    boxed = any(number in (qa.box_images or (0,)) for qa in conversation.rounds if qa.boxes)
    image = conversation.images[number]
    return plan_storage(facts, image.width, image.height, boxed)
