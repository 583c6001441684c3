"""`llava-next`: a YAML of JSON lists with sampling strategies, as LLaVA-NeXT's `LazySupervisedDataset` reads them.

    OUT/data.yaml          datasets: [{json_path, sampling_strategy: all}], one for each source
    OUT/<source>.json      rows in LLaVA's form; `image` is a path, a list of several, and absent for text
    OUT/images/…

Rules, from `llava/train/train.py`: `json_path` is opened relative to the working directory, and images relative to
`--image_folder`, so training starts in OUT; a row has an image if it has the key; exactly one `<image>` for each image,
which it pairs by a running count over the whole batch and never checks. The strategy is always `all`:
`random:` draws from an unseeded generator in every rank, `first:` takes the head of a file, and vlmix draws better
before the export. A sample with `repeat` n is n rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmix.mixture.export._folder import IMAGES, json_text, write_yaml
from vlmix.mixture.export._jobs import Entry, write_sources
from vlmix.mixture.export._rows import LooseImages, conversations, open_whole, row_count
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.staging import new_folder


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    mixture = open_whole(folder)
    with new_folder(out) as partial:
        entry = _Entry(LooseImages(mixture, partial / IMAGES))
        names, _ = write_sources(partial, mixture, progress, workers, ".json", entry, "[", ",\n", "]\n")
        entries = [{"json_path": name, "sampling_strategy": "all"} for name in names.values()]
        write_yaml(partial / "data.yaml", {"datasets": entries})
    return row_count(mixture)


@dataclass(frozen=True)
class _Entry:
    images: LooseImages

    def __call__(self, row: dict[str, Any]) -> Entry:
        named = self.images.add(row)
        image = {"image": named if len(named) > 1 else named[0]} if named else {}
        fields = {"id": row["id"], **image, "conversations": conversations(row)}
        return Entry(row["source"], json_text(fields), row["repeat"])
