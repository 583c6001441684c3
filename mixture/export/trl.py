"""`trl`: Parquet with `messages` and `images` for TRL's SFTTrainer.

    OUT/train-00000-of-0000N.parquet    messages [{role, content}], images list<struct<bytes, path>>, id, source

Rules, from TRL 1.16 (`data_utils.prepare_multimodal_messages`): with plain strings as content, all images are put
before the first user turn, so the `<image>` of LLaVA's rows goes, with its line break; `images` is `[]` for text.
Where a sample has images elsewhere, the content of all rows is lists of blocks instead, `{type: image}` at the place of
each image and `{type: text, text}`, because a column has one type, and TRL counts a row of both kinds wrongly. Images
stand in the rows because TRL takes no paths; an image block that had a field for one would count as filled. A sample
with `repeat` n is n rows.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.export._rows import blocks, leading_images, messages, open_whole, rows, texts, write_tables
from vlmix.mixture.export.hf import IMAGES, embedded, featured
from vlmix.mixture.io.pool import Progress, silent
from vlmix.mixture.io.staging import new_folder
from vlmix.mixture.record import IMAGE_TOKEN

BLOCKS = pa.list_(pa.struct({"type": pa.string(), "text": pa.string()}))


def write(folder: str | Path, out: Path, progress: Progress) -> int:
    mixture = open_whole(folder)
    whole = all(without_tokens(row) is not None for row in rows(mixture, silent))

    def converted(row: dict[str, Any]) -> dict[str, Any]:
        contents: Any = without_tokens(row) if whole else [blocks(text) for text in texts(row)]
        said = messages(contents)
        return {"id": row["id"], "source": row["source"], "images": embedded(mixture, row), "messages": said}

    said = messages_type(pa.string() if whole else BLOCKS)
    schema = featured({"messages": said, "images": IMAGES, "id": pa.string(), "source": pa.string()})
    with new_folder(out) as partial:
        return write_tables(partial, mixture, progress, converted, schema)


def messages_type(content: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct({"role": pa.string(), "content": content}))


def without_tokens(row: dict[str, Any]) -> list[str] | None:
    """The texts without image tokens, if all stand at the front of the first question, or a single one at its end; None
    where images before the first question would be elsewhere."""
    question, *others = texts(row)
    count, rest = leading_images(question)
    if count == len(row["images"]):
        return [rest, *others]
    if len(row["images"]) == 1 and question.endswith(f"\n{IMAGE_TOKEN}"):
        return [question.removesuffix(f"\n{IMAGE_TOKEN}"), *others]
    return None
