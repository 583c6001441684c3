import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.helpers import forge
from vlmix.mixture.dataset.manifest import read
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.storage import locate

TAR = "train/train-000003.tar"


@pytest.fixture
def copy(mixture: Path, tmp_path: Path) -> Path:
    shutil.copytree(mixture, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def image_offset(folder: Path, shard: str) -> int:
    frame = pl.read_parquet(folder / "samples.parquet").filter(pl.col("shard") == shard, pl.col("num_images") > 0)
    image = frame["images"][0][0]
    return int(image["offset"]) + int(image["size"]) // 2


def truncate(folder: Path) -> None:
    path = folder / TAR
    path.write_bytes(path.read_bytes()[:-15_000])


def rewrite_index(folder: Path) -> None:
    frame = pl.read_parquet(folder / "samples.parquet")
    frame.with_columns(pl.lit("x").alias("id")).write_parquet(folder / "samples.parquet")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / TAR).unlink(), f"{TAR}: missing"),
        (truncate, f"{TAR}: .*truncated"),
        (lambda f: flip(f / TAR, 0), "checksum"),
        (lambda f: flip(f / TAR, image_offset(f, TAR)), "differs from the hash in the index"),
        (lambda f: flip(f / "README.md", 3), "README.md: its bytes differ"),
        (lambda f: (f / "rejects.parquet").unlink(), "rejects.parquet: missing"),
        (rewrite_index, "samples.parquet: its bytes differ"),
        (lambda f: (f / "train/more.tar").write_bytes(b""), "train/more.tar: not part of the mixture"),
    ],
)
def test_every_damage_is_found(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    assert not verify(copy).problems
    damage(copy)
    problems = "\n".join(verify(copy).problems)
    if damage is truncate:
        assert "\n".join(verify(copy, workers=2).problems) == problems
    assert re.search(message, problems), problems


def test_hidden_files_of_other_tools_are_no_damage_and_stray_folders_are(copy: Path) -> None:
    (copy / ".gitattributes").write_text("*.tar filter=lfs")
    assert not verify(copy).problems
    (copy / "work").mkdir()
    assert verify(copy).problems == ["work: not part of the mixture"]


def test_a_damaged_manifest_is_an_error(copy: Path) -> None:
    path = copy / "manifest.json"
    text = path.read_text()
    for changed, message in [
        (text[: len(text) // 2], "the manifest is damaged"),
        (text.replace('"format_version": 3', '"format_version": 5'), "newer than the 4"),
        (text.replace('"format_version": 3', '"format_version": 2'), "older than the 4"),
        (text.replace('"seed": 0', '"seed": 1'), "differ from its own checksum"),
    ]:
        assert changed != text
        path.write_text(changed)
        with pytest.raises(VlmixError, match=message):
            read(locate(copy))
    data = json.loads(text)
    for change, message in [
        ({"samples": 0}, "0 samples"),
        ({"shards": [{**data["shards"][0], "path": "../../outside.tar"}, *data["shards"][1:]]}, "leaves the folder"),
        ({"sources": {}}, "its sources add up to 0"),
        ({"recipe": {}}, "its recipe has no 'name'"),
        ({"kind": "view"}, "a view names its parent"),
        ({"shards": data["shards"][:-1]}, "its shards hold"),
    ]:
        forge(copy, {**data, **change})
        with pytest.raises(VlmixError, match=message):
            read(locate(copy))
    path.unlink()
    with pytest.raises(VlmixError, match="not a mixture"):
        read(locate(copy))
