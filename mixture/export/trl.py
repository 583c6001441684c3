"""`trl`: Parquet with `messages` and `images` for TRL's SFTTrainer.

    OUT/train-00000-of-0000N.parquet    messages [{role, content}], images list<struct<bytes, path>>, id, source

Rules, from TRL 1.16 (`data_utils.prepare_multimodal_messages`): with plain strings as content, all images are put
before the first user turn, so the `<image>` of LLaVA's rows goes, with its line break; `images` is `[]` for text.
Images stand in the rows because TRL takes no paths. A sample with `repeat` n is n rows.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.export._folder import new_folder
from vlmix.mixture.export._rows import messages, open_whole, texts, write_tables
from vlmix.mixture.export.hf import IMAGES, embedded, featured
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.record import IMAGE_TOKEN

_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
SCHEMA = featured({"messages": _MESSAGES, "images": IMAGES, "id": pa.string(), "source": pa.string()})


def write(folder: str | Path, out: Path, progress: Progress) -> int:
    mixture = open_whole(folder)

    def converted(row: dict[str, Any]) -> dict[str, Any]:
        said = messages([without_token(text) for text in texts(row)])
        return {"id": row["id"], "source": row["source"], "images": embedded(mixture, row), "messages": said}

    with new_folder(out) as partial:
        return write_tables(partial, mixture, progress, converted, SCHEMA)


def without_token(text: str) -> str:
    """`text` without the image token and the line break that set it apart."""
    before, token, after = text.partition(IMAGE_TOKEN)
    if not token:
        return text
    return before.removesuffix("\n") + after if not after else before + after.removeprefix("\n")
