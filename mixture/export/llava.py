"""`llava-json`: LLaVA's JSON list. `id, image?, conversations [{from, value}]`, as `llava/train/train.py` reads it.

Several images are a list under `image`, which LLaVA-NeXT and others read, LLaVA's own trainer does not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmix.mixture.dataset.llava_row import llava_row
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import extra_of
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export._jobs import Entry, texts_in_order
from vlmix.mixture.export._rows import LooseImages, placed_turns
from vlmix.mixture.io import exact_json
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.pool import Progress, silent


def llava_json(
    folder: str | Path, out: Path, images: Path | None = None, progress: Progress = silent, workers: int = 1
) -> int:
    """Write the mixture as LLaVA's JSON list to the file `out`; returns the number of rows.

    Rows that came from such a file come back as they were: id types, unknown keys, key order, white space. In all
    others, an `<image>` that the text lacks is put first, so that there is one for each image at least. A mixture
    of natural order is written in that order. A sample with `repeat` n is written n times. With `images`, the stored
    images are written below that folder under the paths that the rows name.
    """
    mixture = Reader.open(folder)
    if out.exists():
        raise VlmixError(f"{out} exists already; choose another --out or remove it")
    entry = _Entry(LooseImages(mixture, images, shared=True) if images is not None else None)
    count = 0
    with atomic_write(out) as file:
        file.write(b"[")
        for _, text, rows in texts_in_order(mixture, progress, workers, entry, ",\n"):
            file.write((b",\n" if count else b"") + text)
            count += rows
        file.write(b"]\n")
    return count


@dataclass(frozen=True)
class _Entry:
    images: LooseImages | None

    def __call__(self, row: dict[str, Any]) -> Entry:
        if self.images is not None:
            self.images.add(row)
        origin = extra_of(row)
        if "conversations" not in origin and origin.get("form") != "conversations":
            row["conversations"] = placed_turns(row)
        return Entry("", exact_json.dumps(llava_row(row)), row["repeat"])
