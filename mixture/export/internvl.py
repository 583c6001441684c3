"""`internvl`: InternVL's meta JSON with one JSONL for each source.

    OUT/meta.json          {source: {root, annotation, data_augment, repeat_time, length}}
    OUT/<source>.jsonl     id, image?, width?, height?, conversations in LLaVA's form; several images are lists, with
                           width_list and height_list
    OUT/images/…           `root`

Rules, from `internvl/train/internvl_chat_finetune.py`: `annotation` and `root` are opened relative to the working
directory, so training starts in OUT; a row without `image` is text; exactly one `<image>` for one image, in questions
alone: one in an answer stays text, so such samples are refused. A list of images, even of one, keeps its tokens where
they are; a single path gets a token before the first question that has none. `repeat_time`
below 1 takes the head of the file and above 1 must be whole, so it says a source's `repeat` where all its samples have
the same; else it is 1 and a sample with `repeat` n is n rows. `length` counts the lines of the file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export._folder import IMAGES, json_text, write_json
from vlmix.mixture.export._jobs import Entry, write_sources
from vlmix.mixture.export._rows import LooseImages, conversations, open_whole, row_count
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.staging import new_folder
from vlmix.mixture.record import IMAGE_TOKEN


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    mixture = open_whole(folder)
    times = _times(mixture)
    with new_folder(out) as partial:
        entry = _Entry(LooseImages(mixture, partial / IMAGES), times)
        names, lengths = write_sources(partial, mixture, progress, workers, ".jsonl", entry)
        meta = {
            source: {
                "root": f"{IMAGES}/",
                "annotation": name,
                "data_augment": False,
                "repeat_time": times[source],
                "length": lengths[source],
            }
            for source, name in names.items()
        }
        write_json(partial / "meta.json", meta)
    return row_count(mixture)


@dataclass(frozen=True)
class _Entry:
    images: LooseImages
    times: dict[str, int]

    def __call__(self, row: dict[str, Any]) -> Entry:
        said, named, seen = conversations(row), self.images.add(row), {}
        if named and any(IMAGE_TOKEN in turn["value"] for turn in said[1::2]):
            raise VlmixError(
                f"sample {row['id']} has an image in an answer, for which InternVL's rows have no place; leave it "
                f"out (`vlmix subsample`, `--where \"id != '{row['id']}'\"`) or choose another form"
            )
        if len(named) == 1 and IMAGE_TOKEN in said[0]["value"]:
            seen = {"image": named[0], "width": row["width"], "height": row["height"]}
        elif named:
            sizes = {f"{side}_list": [image[side] for image in row["images"]] for side in ("width", "height")}
            seen = {"image": named, **sizes}
        line = json_text({"id": row["id"], **seen, "conversations": said}) + "\n"
        return Entry(row["source"], line, row["repeat"] // self.times[row["source"]])


def _times(mixture: Reader) -> dict[str, int]:
    """Source -> the `repeat` that all its samples have, else 1."""
    table = pa.table({"source": mixture.column("source"), "repeat": mixture.column("repeat")})
    bounds = table.group_by("source").aggregate([("repeat", "min"), ("repeat", "max")]).to_pylist()
    return {r["source"]: r["repeat_min"] if r["repeat_min"] == r["repeat_max"] else 1 for r in bounds}
