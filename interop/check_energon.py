"""Megatron-Energon's own index, lint and loader on `--to energon`."""

import json
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner
from common import cases, members, report, run_docs, same, same_counts, sha256, sha256s, sizes
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.tools.lint import command as lint_command

ENERGON = str(Path(sys.executable).with_name("energon"))


@edataclass
class Row(Sample):
    """A sample as it lies in the shard; no images for text."""

    json: Any
    images: list[Any]


@stateless
def cook(sample: dict[str, Any]) -> Row:
    return Row(**basic_sample_keys(sample), json=sample["json"], images=members(sample))


class Decoded(DefaultTaskEncoder[Row, Row, Row, Row]):
    cookers = (Cooker(cook),)


class Raw(Decoded):
    """The bytes of the members."""

    decoder = None


def load(path: Path, encoder: Any, workers: int = 0) -> list[Row]:
    """One epoch in the loader's own order."""
    dataset = get_train_dataset(
        path,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=encoder,
        repeat=False,
    )
    return list(get_loader(dataset))


def tables(folder: Path) -> tuple[Any, ...]:
    """Everything in the index, the tars by name."""
    info = json.loads((folder / ".nv-meta/.info.json").read_text())
    names = list(info["shard_counts"])
    with sqlite3.connect(folder / ".nv-meta/index.sqlite") as database:
        samples = [(names[r[0]], *r[1:]) for r in database.execute("SELECT * FROM samples")]
        parts = [(names[r[0]], *r[1:]) for r in database.execute("SELECT * FROM sample_parts")]
        form = sorted(r[0] for r in database.execute("SELECT name FROM sqlite_master"))
    places = {path.name: path.read_bytes() for path in sorted((folder / "train").glob("*.tar.idx"))}
    return sorted(info["shard_counts"].items()), sorted(samples), sorted(parts), form, places


for case, folder, samples in cases("energon"):
    # The command as such asserts on any crude dataset, because nobody can give it a cooker.
    with patch.object(DefaultTaskEncoder, "cookers", Decoded.cookers):
        lint = CliRunner().invoke(lint_command, [str(folder)])
    if lint.exit_code or "Error" in lint.output:
        sys.exit(f"{case}: energon lint: {lint.output}{lint.exception}")

    # The same shards indexed by energon itself.
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary)
        (own / "train").mkdir()
        for tar in (folder / "train").glob("*.tar"):
            (own / "train" / tar.name).symlink_to(tar.resolve())
        prepare = [
            "prepare",
            "--non-interactive",
            "--split-parts",
            "train:train/.*",
            "--sample-type",
            "CrudeWebdataset",
        ]
        subprocess.run([ENERGON, *prepare, str(own)], check=True, capture_output=True, input="")
        for what, mine, theirs in zip(("counts", "samples", "parts", "form", "tar.idx"), tables(folder), tables(own)):
            same(f"{case}: {what} of the index", mine, theirs)

    wanted = {sample["id"]: sample for sample in samples}
    once = load(folder, Raw())
    same_counts(
        f"{case}: all shards once", [json.loads(s.json)["id"] for s in once], [{**s, "repeat": 1} for s in samples]
    )
    blended = load(folder / "metadataset.yaml", Raw(), workers=2)
    same_counts(f"{case}: an epoch", [json.loads(s.json)["id"] for s in blended], samples)
    for found in blended:
        row = json.loads(found.json)
        sample = wanted[row["id"]]
        same(f"{case}: {row['id']}: texts", row["conversations"], sample["conversations"])
        same(f"{case}: {row['id']}: images", [sha256(jpeg) for jpeg in found.images], sha256s(sample))
    decoded = load(folder / "metadataset.yaml", Decoded())
    for found in decoded:
        sample = wanted[found.json["id"]]
        found_sizes = [tuple(image.shape[1:])[::-1] for image in found.images]
        same(f"{case}: {sample['id']}: sizes", found_sizes, sizes(sample))
    report("energon", case, samples, len(blended))

run_docs("Energon", {"energon": "whole/energon"})
