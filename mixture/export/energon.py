"""`energon`: shards with Megatron-Energon's metadata, a `CrudeWebdataset` for a cooker to read.

    OUT/.nv-meta/dataset.yaml, split.yaml, .info.json, index.sqlite, index.uuid
    OUT/train/train-000000.tar, train-000000.tar.idx …
    OUT/metadataset.yaml    what to give to `get_train_dataset`: the shards with their repetitions

What `energon prepare` 7.4.1 writes (`flavors/webdataset/prepare.py`, `indexing.py`, `itar.py`), but for index.uuid,
which is derived from the mixture's manifest instead of the clock. `.tar.idx` is native uint64 x (samples + 1). It
knows a key once, so a sample is never in two places: samples of unlike `repeat` lie in shards of their own and parts
`repeat-1`, `repeat-2` … of the split, which `metadataset.yaml` blends by whole repetitions (`blend_epochized`: give
`repeat=False` to the loader for epochs). `train` is all shards, `val` and `test` are empty. Where all samples have the
same `repeat`, OUT is still a vlmix mixture. HF datasets takes the `.idx` files for data unless a card says otherwise,
which the mixture's does.
"""

import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np

from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.export._folder import write_json, write_yaml
from vlmix.mixture.export._rows import open_whole, row_count
from vlmix.mixture.export._tars import Tar, place
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.staging import new_folder

VERSION = "7.4.1"
_NAMES = uuid.uuid5(uuid.NAMESPACE_URL, "vlmix:energon")
_TABLES = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER
);
CREATE TABLE sample_parts (
    tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
    content_byte_offset INTEGER, content_byte_size INTEGER
);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    mixture = open_whole(folder)
    with new_folder(out) as partial:
        meta = partial / ".nv-meta"
        meta.mkdir()
        counts: dict[str, int] = {}
        parts: dict[int, list[str]] = {}
        with closing(sqlite3.connect(meta / "index.sqlite")) as database, database:
            database.executescript(_TABLES)
            for number, tar in enumerate(place(mixture, partial, progress, workers)):
                counts[tar.path] = len(tar.samples)
                parts.setdefault(tar.repeat, []).append(tar.path)
                np.asarray(tar.bounds, dtype=np.uint64).tofile((partial / tar.path).with_suffix(".tar.idx"))
                _index(database, number, tar)
            database.executescript(_INDEXES)
        splits: dict[str, list[str]] = {"train": _braced(list(counts)), "val": [], "test": []}
        if len(parts) > 1:
            splits |= {f"repeat-{repeat}": _braced(paths) for repeat, paths in parts.items()}
        blend = [
            {"path": ".", **({"split_part": f"repeat-{repeat}"} if len(parts) > 1 else {}), "repetitions": repeat}
            for repeat in parts
        ]
        write_yaml(meta / "dataset.yaml", {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"})
        write_yaml(meta / "split.yaml", {"split_parts": splits, "exclude": []})
        write_json(meta / ".info.json", {"energon_version": VERSION, "shard_counts": counts})
        identity = mixture.folder.join(manifests.NAME).whole()
        (meta / "index.uuid").write_text(str(uuid.uuid5(_NAMES, identity.hex())))
        kind = {"__module__": "megatron.energon", "__class__": "MetadatasetV2"}
        write_yaml(partial / "metadataset.yaml", {**kind, "splits": {"train": {"blend_epochized": blend}}})
    return row_count(mixture)


def _index(database: sqlite3.Connection, number: int, tar: Tar) -> None:
    bounds = tar.bounds
    database.executemany(
        "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
        ((number, key, i, bounds[i], bounds[i + 1] - bounds[i]) for i, (key, _) in enumerate(tar.samples)),
    )
    database.executemany(
        "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
        (
            (number, i, member.name.partition(".")[2], member.offset, member.size)
            for i, (_, members) in enumerate(tar.samples)
            for member in members
        ),
    )


def _braced(paths: list[str]) -> list[str]:
    """Consecutive shards in brace notation."""
    first, last = (Path(path).name.removesuffix(".tar").removeprefix("train-") for path in (paths[0], paths[-1]))
    return paths if first == last else [f"train/train-{{{first}..{last}}}.tar"]
