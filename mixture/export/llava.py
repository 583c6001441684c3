"""Mixtures in other tools' forms."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixture.errors import VlmixError
from mixture.files import atomic
from mixture.manifest import SAMPLES_NAME
from mixture.pool import Progress, silent
from mixture.reader import Mixture
from mixture.reader import open as open_mixture
from mixture.record import unsafe_path

_COLUMNS = ["id", "image", "conversations", "origin", "ordinal", "repeat", "image_size"]


def llava_json(folder: Path, out: Path, images: Path | None = None, progress: Progress = silent) -> int:
    """Write the mixture as LLaVA's JSON list to the file `out`; returns the number of rows.

    Rows that came from such a file come back as they were: id types, unknown keys, key order, white space. A mixture
    of natural order is written in that order. A sample with `repeat` n is written n times. With `images`, the stored
    images are written below that folder under the paths that the rows name.
    """
    mixture = open_mixture(folder)
    if out.exists():
        raise VlmixError(f"{out} exists already; choose another --out or remove it")
    count, total = 0, len(mixture)
    with atomic(out) as file:
        file.write(b"[")
        for number, row in enumerate(_rows(mixture)):
            text = json.dumps(llava_row(row), ensure_ascii=False).encode()
            for _ in range(row["repeat"]):
                file.write((b",\n" if count else b"") + text)
                count += 1
            if images is not None and row["image_size"]:
                _write_image(mixture, row, images)
            if number % 1000 == 0:
                progress("exporting", number, total)
        file.write(b"]\n")
    progress("exporting", total, total)
    return count


def llava_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of samples.parquet as a row of LLaVA's JSON.

    `origin` is a JSON object: with a `conversations` key it is the whole original row, to be filled with the texts,
    else it holds the keys that differ from what the sample's id and image say.
    """
    turns: list[dict[str, Any]] = row["conversations"]
    origin: dict[str, Any] = json.loads(row["origin"]) if row["origin"] else {}
    if "conversations" in origin:
        extra = origin["conversations"] or [{} for _ in turns]
        return {**origin, "conversations": [{**more, **turn} for more, turn in zip(extra, turns)]}
    plain: dict[str, Any] = {"id": row["id"].partition("/")[2].partition("#")[0]}
    if row["image"]:
        plain["image"] = row["image"]
    return {**plain, **origin, "conversations": turns}


def _rows(mixture: Mixture) -> Iterator[dict[str, Any]]:
    """Rows with their texts: in the natural order where the recipe's is, else in mixture order."""
    natural = mixture.manifest.recipe["order"] == "natural"
    wanted = mixture.rows
    file = pq.ParquetFile(mixture.local_root / SAMPLES_NAME)
    start = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        positions = np.flatnonzero((wanted >= start) & (wanted < start + size))
        if len(positions):
            rows = file.read_row_group(group, columns=_COLUMNS).take(wanted[positions] - start)
            rows = rows.append_column("position", pa.array(positions))
            # In the natural order only the first images of a shard were moved, so sorting each shard restores it.
            yield from (rows.sort_by("ordinal") if natural else rows).to_pylist()
        start += size


def _write_image(mixture: Mixture, row: dict[str, Any], images: Path) -> None:
    if problem := unsafe_path(row["image"]):
        raise VlmixError(f"sample {row['id']}: {problem}")
    path = images / PurePosixPath(row["image"])
    if not path.exists():
        with atomic(path) as file:
            file.write(mixture.raw(row["position"]).jpeg or b"")
