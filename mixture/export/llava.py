"""`llava-json`: LLaVA's JSON list. `id, image?, conversations [{from, value}]`, as `llava/train/train.py` reads it."""

import json
from pathlib import Path
from typing import Any

from mixture.errors import VlmixError
from mixture.export.rows import LooseImages, rows
from mixture.files import atomic
from mixture.pool import Progress, silent
from mixture.reader import open as open_mixture
from mixture.samples import origin_of


def llava_json(folder: str | Path, out: Path, images: Path | None = None, progress: Progress = silent) -> int:
    """Write the mixture as LLaVA's JSON list to the file `out`; returns the number of rows.

    Rows that came from such a file come back as they were: id types, unknown keys, key order, white space. A mixture
    of natural order is written in that order. A sample with `repeat` n is written n times. With `images`, the stored
    images are written below that folder under the paths that the rows name.
    """
    mixture = open_mixture(folder)
    if out.exists():
        raise VlmixError(f"{out} exists already; choose another --out or remove it")
    loose = LooseImages(mixture, images, shared=True) if images is not None else None
    count = 0
    with atomic(out) as file:
        file.write(b"[")
        for row in rows(mixture, progress):
            text = json.dumps(llava_row(row), ensure_ascii=False).encode()
            for _ in range(row["repeat"]):
                file.write((b",\n" if count else b"") + text)
                count += 1
            if loose is not None:
                loose.add(row)
        file.write(b"]\n")
    return count


def llava_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of samples.parquet as a row of LLaVA's JSON.

    `origin` is a JSON object: with a `conversations` key it is the whole original row, to be filled with the texts,
    else it holds the keys that differ from what the sample's id and image say.
    """
    turns: list[dict[str, Any]] = row["conversations"]
    origin = origin_of(row)
    if "conversations" in origin:
        extra = origin["conversations"] or [{} for _ in turns]
        return {**origin, "conversations": [{**more, **turn} for more, turn in zip(extra, turns)]}
    plain: dict[str, Any] = {"id": row["id"].partition("/")[2].partition("#")[0]}
    if row["image"]:
        plain["image"] = row["image"]
    return {**plain, **origin, "conversations": turns}
