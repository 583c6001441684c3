"""`trl`: Parquet with `messages` and `images` for TRL's SFTTrainer.

    OUT/train-00000-of-0000N.parquet    messages [{role, content}], images list<struct<bytes, path>>, id, source

Rules, from TRL 1.16 (`data_utils.prepare_multimodal_messages`): with plain strings as content, all images are put
before the first user turn, so the `<image>` of LLaVA's rows goes, with its line break; `images` is `[]` for text.
Where a sample has images elsewhere, the content of all rows is lists of blocks instead, `{type: image}` at the place of
each image and `{type: text, text}`, because a column has one type, and TRL counts a row of both kinds wrongly. Images
stand in the rows because TRL takes no paths; an image block that had a field for one would count as filled. A sample
with `repeat` n is n rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmix.mixture.dataset.groups import Stored
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.export._jobs import write_tables
from vlmix.mixture.export._rows import (
    Part,
    blocks,
    leading_images,
    messages,
    open_whole,
    parts,
    plain,
    texts,
    whole_column,
)
from vlmix.mixture.export.hf import IMAGES, embedded, featured
from vlmix.mixture.io.pool import Pool, Progress
from vlmix.mixture.io.staging import new_folder
from vlmix.mixture.record import IMAGE_TOKEN

BLOCKS = pa.list_(pa.struct({"type": pa.string(), "text": pa.string()}))


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    mixture = open_whole(folder)
    whole = _all_plain(mixture, progress, workers)
    said = messages_type(pa.string() if whole else BLOCKS)
    schema = featured({"messages": said, "images": IMAGES, "id": pa.string(), "source": pa.string()})
    with new_folder(out) as partial:
        return write_tables(partial, mixture, progress, workers, _Converted(Stored(mixture), whole), schema)


@dataclass(frozen=True)
class _Converted:
    pictures: Stored
    whole: bool

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        contents: Any = without_tokens(row) if self.whole else [blocks(text) for text in texts(row)]
        said = messages(contents)
        return {"id": row["id"], "source": row["source"], "images": embedded(self.pictures, row), "messages": said}


def _all_plain(mixture: Reader, progress: Progress, workers: int) -> bool:
    """Whether `without_tokens` has texts for every sample."""
    done, total = 0, len(mixture)
    with Pool(min(workers, mixture.root_index().num_row_groups)) as pool:
        for part, is_plain in pool.map(_part_is_plain, parts(mixture)):
            progress("looking for images inside texts", done, total)
            done += len(part.rows)
            if not is_plain:
                return False
    return True


def _part_is_plain(part: Part) -> bool:
    table = part.table()
    said, images = whole_column(table["conversations"]), table["num_images"].to_numpy()
    counts, texts = pc.list_value_length(said).to_numpy(), said.flatten().field("value")
    starts = np.cumsum(counts) - counts
    tokens = np.add.reduceat(pc.count_substring(texts, IMAGE_TOKEN).to_numpy(), starts)
    first = texts.take(pa.array(starts))
    outside = pc.or_(pc.starts_with(first, IMAGE_TOKEN), pc.ends_with(first, f"\n{IMAGE_TOKEN}"))
    # The rest is looked at text by text.
    sure = (images == 0) | (tokens == 0) | ((images == 1) & (tokens == 1) & outside.to_numpy(zero_copy_only=False))
    return all(without_tokens(row) is not None for row in plain(table.filter(pa.array(~sure))))


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
