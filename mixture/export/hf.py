"""`hf`: Parquet for HF datasets, ready for `huggingface-cli upload`.

    OUT/README.md                             card: composition, licenses, `configs:`
    OUT/data/train-00000-of-0000N.parquet     images list<struct<bytes, path>> (`[]` for text), conversations in LLaVA's
                                              form, formats, boxes in pixels of the stored image that they lie in, the
                                              columns that sources gave, …

`width` and `height` are those of the first image. Texts are as the mixture has them; an `<image>` that they lack is put
first, so there is one for each image at least. The features stand in the files' own metadata under
`huggingface`, so that images decode wherever the files are opened from. Row groups are of 100 rows, which the Hub's
viewer pages through. A sample with `repeat` n is n rows.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmix.mixture.dataset.card import opening
from vlmix.mixture.dataset.groups import Stored
from vlmix.mixture.dataset.manifest import Manifest
from vlmix.mixture.dataset.schema import SAMPLES
from vlmix.mixture.export._jobs import write_tables
from vlmix.mixture.export._rows import open_whole, own_columns, placed_turns
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.staging import new_folder

IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
_KEPT = ["id", "source", "width", "height", "num_words", "conversations", "response_formats", "boxes"]
_ABOUT = (
    "A vision-language mixture: `images` (empty for text-only samples), `conversations` in LLaVA's form, `boxes` in "
    "pixels, with the numbers of their round and image."
)


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    fields = {name: SAMPLES.field(name).type for name in _KEPT}
    fields = {"id": fields.pop("id"), "images": IMAGES, **fields}
    return write_dataset(folder, out, progress, workers, fields, _converted, _ABOUT)


def _converted(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "conversations": placed_turns(row)}


def write_dataset(
    folder: str | Path,
    out: Path,
    progress: Progress,
    workers: int,
    fields: dict[str, pa.DataType],
    converted: Callable[[dict[str, Any]], dict[str, Any]],
    about: str,
) -> int:
    """A folder that HF datasets opens: a card, and Parquet of the columns `fields`, among them `images`, of which
    `converted`, a function of a module, makes the others, and of the columns that sources gave; returns the number of
    rows."""
    mixture = open_whole(folder)
    added = own_columns(mixture, fields)

    filled = _Filled(Stored(mixture), list(added), converted)
    with new_folder(out) as partial:
        schema = featured({**fields, **added})
        total = write_tables(partial / "data", mixture, progress, workers, filled, schema)
        (partial / "README.md").write_text(_card(mixture.manifest, about), encoding="utf-8")
    return total


@dataclass(frozen=True)
class _Filled:
    pictures: Stored
    added: list[str]
    converted: Callable[[dict[str, Any]], dict[str, Any]]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        own = {name: row[name] for name in self.added}
        return {**own, **self.converted(row), "images": embedded(self.pictures, row)}


def embedded(pictures: Stored, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The sample's images with their bytes."""
    return [{"bytes": jpeg, "path": image["path"]} for jpeg, image in zip(pictures.of(row), row["images"])]


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


def _card(manifest: Manifest, about: str) -> str:
    config = {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    head = {"configs": [config], "license": "other", "pretty_name": manifest.name}
    lines = opening(head, manifest, f"{about} A sample to be seen several times per epoch is as many rows.")
    return "\n".join([*lines, "", "Every source keeps its own license; the mixture adds none.", ""])
