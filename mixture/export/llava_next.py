"""`llava-next`: a YAML of JSON lists with sampling strategies, as LLaVA-NeXT's `LazySupervisedDataset` reads them.

    OUT/data.yaml          datasets: [{json_path, sampling_strategy: all}], one for each source
    OUT/<source>.json      rows in LLaVA's form; text-only rows have no `image`
    OUT/images/…

Rules, from `llava/train/train.py`: `json_path` is opened relative to the working directory, and images relative to
`--image_folder`, so training starts in OUT; a row has an image if it has the key. The strategy is always `all`:
`random:` draws from an unseeded generator in every rank, `first:` takes the head of a file, and vlmix draws better
before the export. A sample with `repeat` n is n rows.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import yaml

from vlmix.mixture.export._folder import IMAGES, file_names, json_text, new_folder
from vlmix.mixture.export._rows import LooseImages, conversations, open_whole, rows
from vlmix.mixture.io.pool import Progress


def write(folder: str | Path, out: Path, progress: Progress) -> int:
    mixture = open_whole(folder)
    names = file_names(mixture.manifest.sources)
    count = 0
    with new_folder(out) as partial:
        images = LooseImages(mixture, partial / IMAGES)
        with ExitStack() as stack:
            files: dict[str, TextIO] = {}
            for row in rows(mixture, progress):
                source = row["source"]
                first = source not in files
                if first:
                    path = partial / f"{names[source]}.json"
                    files[source] = stack.enter_context(path.open("w", encoding="utf-8"))
                image = images.add(row)
                found = {"id": row["id"], **({"image": image} if image else {}), "conversations": conversations(row)}
                text = json_text(found)
                files[source].write(("[" if first else ",\n") + ",\n".join([text] * row["repeat"]))
                count += row["repeat"]
            for file in files.values():
                file.write("]\n")
        entries = [
            {"json_path": f"{names[source]}.json", "sampling_strategy": "all"}
            for source in mixture.manifest.sources
            if source in files
        ]
        (partial / "data.yaml").write_text(yaml.safe_dump({"datasets": entries}, sort_keys=False), encoding="utf-8")
    return count
