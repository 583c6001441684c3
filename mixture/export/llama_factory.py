"""`llama-factory`: `dataset_info.json` and rows in its ShareGPT form.

    OUT/dataset_info.json                  one data set, called as the mixture
    OUT/rows/train-00000-of-0000N.parquet  conversations [{from, value}], images [path]
    OUT/images/…

Rules, from LLaMA-Factory 0.9.5 (`data/parser.py`, `converter.py`, `mm_plugin.py`): the folder is both `dataset_dir` and
`media_dir`; `images` is a list, `[]` for text; one `<image>` for each image, in any turn; human and gpt in turns. The
rows are Parquet because its JSON is typed by the first 10 MB alone, and a list that is empty in all of them breaks the
load.
`num_samples` draws at random with replacement, so a sample with `repeat` n is n rows instead.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.export._folder import IMAGES, write_json
from vlmix.mixture.export._jobs import write_tables
from vlmix.mixture.export._rows import LooseImages, conversations, open_whole
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.staging import new_folder

_TURN = pa.struct({"from": pa.string(), "value": pa.string()})
SCHEMA = pa.schema(
    {"id": pa.string(), "source": pa.string(), "conversations": pa.list_(_TURN), "images": pa.list_(pa.string())}
)
_ROWS = "rows"


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    mixture = open_whole(folder)
    with new_folder(out) as partial:
        converted = _Converted(LooseImages(mixture, partial / IMAGES))
        total = write_tables(partial / _ROWS, mixture, progress, workers, converted, SCHEMA, 100_000, 1000)
        columns = {"messages": "conversations", "images": "images"}
        entry = {"file_name": _ROWS, "formatting": "sharegpt", "columns": columns}
        write_json(partial / "dataset_info.json", {mixture.manifest.name: entry})
    return total


@dataclass(frozen=True)
class _Converted:
    images: LooseImages

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        listed = [f"{IMAGES}/{image}" for image in self.images.add(row)]
        return {"id": row["id"], "source": row["source"], "images": listed, "conversations": conversations(row)}
