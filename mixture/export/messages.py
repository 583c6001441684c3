"""`messages`: Parquet of chats with content blocks, as TRL, ms-swift, lmms-engine and Qwen's processors read them.

    OUT/README.md                             card: composition, licenses, `configs:`
    OUT/data/train-00000-of-0000N.parquet     messages [{role, content [{type, text}]}], images list<struct<bytes,
                                              path>> (`[]` for text), id, source, the columns that sources gave

Every content is a list of blocks: `{type: image}` (its `text` null) at the place of each image, in the order of
`images`, and `{type: text, text}`. Nothing else is in a block: TRL takes an image block with a field for the image for
filled. Images that lead a turn stand before its text without the line breaks of their tokens. A system message that was
joined to the first question when the mixture was built (`extra` of the sample) is a message again; ms-swift takes that
as plain text alone, so where there are any, it needs its own form. lmms-engine wants the column of images called
`image`. A sample with `repeat` n is n rows.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.dataset.schema import extra_of
from vlmix.mixture.export._rows import blocks, leading_images, messages, texts
from vlmix.mixture.export.hf import IMAGES, write_dataset
from vlmix.mixture.export.trl import BLOCKS, messages_type
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.record import IMAGE_TOKEN

_FIELDS = {"messages": messages_type(BLOCKS), "images": IMAGES, "id": pa.string(), "source": pa.string()}
_ABOUT = (
    "A vision-language mixture: `messages` with blocks as content, an image block for each of `images` (empty for "
    "text-only samples), in their order."
)


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    return write_dataset(folder, out, progress, workers, _FIELDS, _converted, _ABOUT)


def _converted(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "source": row["source"], "messages": with_system(row)}


def with_system(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The sample's messages, the system message first if it came with one."""
    values = texts(row)
    system = extra_of(row).get("system")
    count, rest = leading_images(values[0])
    first = []
    if isinstance(system, str) and rest.startswith(f"{system}\n\n"):
        values[0] = f"{IMAGE_TOKEN}\n" * count + rest.removeprefix(f"{system}\n\n")
        first = [{"role": "system", "content": [{"type": "text", "text": system}]}]
    return first + messages([blocks(text) for text in values])
