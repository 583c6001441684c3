"""`hf`: Parquet for HF datasets, ready for `huggingface-cli upload`.

    OUT/README.md                             card: composition, licenses, `configs:`
    OUT/data/train-00000-of-0000N.parquet     images list<struct<bytes, path>> (`[]` for text), conversations in LLaVA's
                                              form, formats, boxes in pixels of the stored image, …

The features stand in the files' own metadata under `huggingface`, so that images decode wherever the files are opened
from. Row groups are of 100 rows, which the Hub's viewer pages through. A sample with `repeat` n is n rows.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.dataset.card import opening
from vlmix.mixture.dataset.manifest import Manifest
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.schema import SAMPLES
from vlmix.mixture.export._folder import new_folder
from vlmix.mixture.export._rows import open_whole, write_tables
from vlmix.mixture.io.pool import Progress

IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
_KEPT = ["id", "source", "width", "height", "num_words", "conversations", "response_formats", "boxes"]


def write(folder: str | Path, out: Path, progress: Progress) -> int:
    mixture = open_whole(folder)
    fields = {name: SAMPLES.field(name).type for name in _KEPT}
    schema = featured({"id": fields.pop("id"), "images": IMAGES, **fields})

    def converted(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "images": embedded(mixture, row)}

    with new_folder(out) as partial:
        total = write_tables(partial / "data", mixture, progress, converted, schema)
        (partial / "README.md").write_text(_card(mixture.manifest), encoding="utf-8")
    return total


def embedded(mixture: Reader, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The sample's images with their bytes."""
    jpegs = mixture.raw(row["position"]).jpegs if row["images"] else ()
    return [{"bytes": jpeg, "path": image["path"]} for jpeg, image in zip(jpegs, row["images"])]


def featured(fields: dict[str, pa.DataType]) -> pa.Schema:
    """A schema that says to HF datasets what its columns are; a list of `IMAGES` is a list of images."""
    features = {name: _feature(type_) for name, type_ in fields.items()}
    return pa.schema(fields).with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(type_: pa.DataType) -> Any:
    if type_ == IMAGES:
        return [{"_type": "Image"}]
    if pa.types.is_list(type_):
        return [_feature(type_.value_type)]
    if pa.types.is_struct(type_):
        return {field.name: _feature(field.type) for field in type_}
    return {"dtype": {"double": "float64"}.get(str(type_), str(type_)), "_type": "Value"}


def _card(manifest: Manifest) -> str:
    config = {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    head = {"configs": [config], "license": "other", "pretty_name": manifest.name}
    about = (
        "A vision-language mixture: `images` (empty for text-only samples), `conversations` in LLaVA's form, `boxes` "
        "in pixels of the image with the number of their round. A sample to be seen several times per epoch is as "
        "many rows."
    )
    lines = opening(head, manifest, about)
    return "\n".join([*lines, "", "Every source keeps its own license; the mixture adds none.", ""])
