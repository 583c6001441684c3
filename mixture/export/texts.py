"""`texts`: Parquet of rounds, as The Cauldron and FineVision have them and nanoVLM reads them.

    OUT/README.md                             card: composition, licenses, `configs:`
    OUT/data/train-00000-of-0000N.parquet     images list<struct<bytes, path>> (`[]` for text), texts [{user,
                                              assistant}], source, id, the columns that sources gave

Rules, from nanoVLM (`data/datasets.py`): `images` are decoded, which the features in the files' metadata see to; all of
them are put before the first question, whatever the text says. So the `<image>` tokens of all images go where they lead
the first question or, as LLaVA has it, end it. Tokens elsewhere are text to such readers, and stay: they say what the
question means. Rows that came in this form keep their texts as they are. A sample with `repeat` n is n rows.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.dataset.schema import extra_of
from vlmix.mixture.export._rows import placed
from vlmix.mixture.export.hf import IMAGES, write_dataset
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.record import IMAGE_TOKEN

_ROUND = pa.struct({"user": pa.string(), "assistant": pa.string()})
_FIELDS = {"images": IMAGES, "texts": pa.list_(_ROUND), "source": pa.string(), "id": pa.string()}
_ABOUT = "A vision-language mixture: `images` (empty for text-only samples), which come before the first of `texts`."


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    return write_dataset(folder, out, progress, workers, _FIELDS, _converted, _ABOUT)


def _converted(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "source": row["source"], "texts": rounds(row)}


def rounds(row: dict[str, Any]) -> list[dict[str, str]]:
    """The sample's rounds, without the tokens of images that stand before them all."""
    values = [turn["value"] for turn in row["conversations"]]
    origin = extra_of(row)
    if not (origin.get("form") == "texts" and origin.get("inline")):
        images, question = len(row["images"]), placed(row)[0]
        front, back = f"{IMAGE_TOKEN}\n" * images, f"\n{IMAGE_TOKEN}" * images
        leads = question.startswith(front)
        values[0] = question.removeprefix(front) if leads else values[0].removesuffix(back)
    return [{"user": user, "assistant": assistant} for user, assistant in zip(values[::2], values[1::2])]
