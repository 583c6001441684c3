"""An index in parts is read as the same rows in one file are."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import polars as pl
import pytest

from tests.helpers import forge, hashes, split_index
from tests.mixture.dataset.test_altered_index import altered
from vlmix.mixture.browse.pages import Options, browse
from vlmix.mixture.browse.sides import sides_of
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset import card, schema, view
from vlmix.mixture.dataset.manifest import read
from vlmix.mixture.dataset.schema import SAMPLES, open_index
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.dataset.view import read_rows
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import export
from vlmix.mixture.io.storage import Local
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.subset import Selection, subsample


@pytest.fixture(scope="module")
def both(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A mixture, and the same one with its index in four parts. Read only."""
    folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(mixture, folder / "one/mixture")
    shutil.copytree(mixture, folder / "parts/mixture")
    assert len(split_index(folder / "parts/mixture", 250)) == 4
    return folder / "one/mixture", folder / "parts/mixture"


@pytest.fixture
def parts(both: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(both[1], tmp_path / "mixture")
    return tmp_path / "mixture"


def read_all(opened: Mixture) -> list[object]:
    """Everything that a reader gives."""
    counts, fields = opened.image_fields("path", "size")
    order = opened.schedule(min(32, len(opened)), length_window=3).epoch(1)
    return [
        *(opened[position] for position in (0, 1, len(opened) // 2, -1)),
        opened.samples.collect().to_dicts(),
        {name: opened.column(name).to_pylist() for name in ("id", "shard", "repeat", "image", "num_images")},
        [counts.tolist(), [field.to_pylist() for field in fields]],
        [(positions.tolist(), texts) for positions, texts in opened.texts()],
        [(positions.tolist(), formats) for positions, formats in opened.response_formats()],
        [opened.lengths(7).tolist(), opened.rows.tolist(), opened.sources],
        [order.samples.tolist(), order.starts.tolist(), order.images.tolist()],
        [opened.index_of(opened[5].id), opened[[opened[7].id, opened[3].id]].rows.tolist()],
        [sample.id for sample in opened[10:13]],
    ]


def test_readers_and_parts_of_them_read_the_same(both: tuple[Path, Path]) -> None:
    one, several = map(open_mixture, both)
    assert read_all(several) == read_all(one)
    chosen = np.array([839, 3, 400, 401, 250, 249, 7, 8])
    assert read_all(several[chosen]) == read_all(one[chosen])
    rows = [830, 1, 500, 249, 250]
    assert list(read_rows(both[1], rows)) == list(read_rows(both[0], rows))
    first, second = (open_index(folder / "samples.parquet") for folder in both)
    assert first.group_rows.tolist() == second.group_rows.tolist() and first.read().equals(second.read())
    sizes = first.group_rows.tolist()
    for at, (start, size, group) in enumerate(second.groups()):
        assert (start, size) == (sum(sizes[:at]), sizes[at]) and group().equals(first.read_row_group(at))


def test_views_and_copies_are_the_same(both: tuple[Path, Path], tmp_path: Path) -> None:
    for number, folder in enumerate(both):
        subsample(folder, tmp_path / f"{number}/view", Selection(ratio=0.3))
        subsample(folder, tmp_path / f"{number}/copy", Selection(total=30), materialize=True)
        assert not verify(tmp_path / f"{number}/view").problems
    one, several = (hashes(tmp_path / f"{number}") for number in range(2))
    of_parents = {"view/manifest.json", "view/README.md"}
    assert {name for name, digest in one.items() if several[name] != digest} == of_parents
    assert read_all(open_mixture(tmp_path / "1/view")) == read_all(open_mixture(tmp_path / "0/view"))


@pytest.mark.parametrize("form", ["llava-json", "hf", "wids"])
def test_exports_are_the_same(both: tuple[Path, Path], form: str, tmp_path: Path) -> None:
    made = []
    for number, folder in enumerate(both):
        export(folder, form, tmp_path / f"{number}")
        out = tmp_path / f"{number}"
        made.append(hashes(out) if out.is_dir() else out.read_bytes())
    if form == "wids":  # its folder holds the mixture
        made = [{name: digest for name, digest in each.items() if "parquet" not in name} for each in made]
        made = [{name: digest for name, digest in each.items() if name != "manifest.json"} for each in made]
    assert made[0] == made[1] and made[0]


def test_pages_are_the_same(both: tuple[Path, Path], tmp_path: Path) -> None:
    for number, folder in enumerate(both):
        browse(sides_of([open_mixture(folder)]), tmp_path / f"{number}", Options(samples=3))
        first = tmp_path / f"{number}/index.html"
        first.write_text(first.read_text().replace(read(Local(folder)).sha256[:16], "the manifest"))
    assert hashes(tmp_path / "0") == hashes(tmp_path / "1")


def test_a_view_of_many_samples_is_written_in_parts(
    both: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_mixture(both[1])
    whole[::2].save(tmp_path / "one")
    monkeypatch.setattr(schema, "PART_ROWS", 100)
    monkeypatch.setattr(view, "PART_ROWS", 100)
    whole[::2].save(tmp_path / "parts")
    assert len(list((tmp_path / "parts/samples.parquet").iterdir())) == 5
    assert not verify(tmp_path / "parts").problems
    one, several = open_mixture(tmp_path / "one"), open_mixture(tmp_path / "parts")
    assert read_all(several) == read_all(one)
    loaded = datasets.load_dataset(str(tmp_path / "parts"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"][:] == one.column("id").to_pylist()


@pytest.fixture
def annotations(raw: Path, tmp_path: Path) -> Iterator[Path]:
    """A mixture without shards."""
    known = {name: builder for name, builder in sources().items() if name in ("vqav2", "gqa")}
    recipe = parse({"name": "tiny", "samples_per_shard": 10, "sources": {name: {"take": 20} for name in known}}, known)
    build(recipe, known, raw, tmp_path / "annotations", annotations_only=True)
    yield tmp_path / "annotations"


def sources() -> dict[str, object]:
    from vlmix.builders import known_sources

    return known_sources()


def test_hf_datasets_opens_annotations_in_parts(annotations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = open_mixture(annotations).column("id").to_pylist()
    assert len(split_index(annotations, 20)) == 2
    assert not verify(annotations).problems
    monkeypatch.setattr(schema, "PART_ROWS", 20)
    (annotations / "README.md").write_text(card.card(read(Local(annotations)), 1))
    loaded = datasets.load_dataset(str(annotations), split="train", cache_dir=str(annotations.parent / "cache"))
    assert loaded["id"][:] == ids


def test_a_url_may_have_parts(both: tuple[Path, Path]) -> None:
    files = fsspec.filesystem("memory")
    for path in both[1].rglob("*"):
        if path.is_file():
            files.pipe_file(f"/parts/{path.relative_to(both[1])}", path.read_bytes())
    try:
        assert read_all(open_mixture("memory://parts")) == read_all(open_mixture(both[0]))
    finally:
        files.rm("/parts", recursive=True)


def without_a_part(folder: Path) -> None:
    (folder / "samples.parquet/part-00001.parquet").unlink()


def exchanged(folder: Path) -> None:
    one, other = (folder / f"samples.parquet/part-0000{number}.parquet" for number in (0, 1))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def exchanged_and_sealed(folder: Path) -> None:
    exchanged(folder)
    plain = json.loads((folder / "manifest.json").read_text())
    sums, names = plain["checksums"], [f"samples.parquet/part-0000{number}.parquet" for number in (0, 1)]
    sums[names[0]], sums[names[1]] = sums[names[1]], sums[names[0]]
    forge(folder, plain)


def unlisted(folder: Path) -> None:
    plain = json.loads((folder / "manifest.json").read_text())
    del plain["checksums"]["samples.parquet/part-00003.parquet"]
    forge(folder, plain)


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a part is missing": (
        without_a_part,
        "samples.parquet/part-00001.parquet: missing",
        "part-00001.parquet is missing",
    ),
    "parts are exchanged": (
        exchanged,
        "samples.parquet/part-00000.parquet: its bytes differ from the manifest's checksum",
        "places samples outside their shards",
    ),
    "parts are exchanged, and their checksums": (
        exchanged_and_sealed,
        "samples.parquet: shards and their sample counts differ from the manifest's",
        "places samples outside their shards",
    ),
    "the last part is not listed": (
        unlisted,
        "samples.parquet/part-00003.parquet: not part of the mixture",
        r"samples.parquet has \d+ rows, the manifest says 840",
    ),
    "a part of something else": (
        lambda folder: pl.DataFrame({"id": ["a"]}).write_parquet(folder / "samples.parquet/part-00002.parquet"),
        "samples.parquet/part-00002.parquet: its bytes differ from the manifest's checksum",
        "its columns are not those of the first part",
    ),
    "a part more": (
        lambda folder: (folder / "samples.parquet/part-00004.parquet").write_bytes(b""),
        "samples.parquet/part-00004.parquet: not part of the mixture",
        "",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_of_parts_is_found(parts: Path, name: str) -> None:
    damage, found, said = DAMAGE[name]
    damage(parts)
    assert found in verify(parts).problems
    opened = open_mixture(parts)
    if said:
        with pytest.raises(VlmixError, match=said):
            opened[0]
    else:
        assert opened[0]


def test_a_gap_between_parts_is_told_where_there_is_no_manifest_to_ask(parts: Path) -> None:
    without_a_part(parts)
    with pytest.raises(VlmixError, match=r"its parts are not part-00000.parquet and those after it"):
        open_index(parts / "samples.parquet")


FIRST_ID = "gqa/10000"


def late(row: dict[str, Any]) -> bool:
    return row["key"] >= "000000700" and row["image"] != ""


ALTERED = {
    "id of another part": altered("id", lambda old, row: FIRST_ID, late),
    "null id": altered("id", lambda old, row: None, late),
    "repeat of 0": altered("repeat", lambda old, row: 0, late),
    "ordinal of another part": altered("natural_index", lambda old, row: 5, late),
    "another width": altered("width", lambda old, row: old + 1, late),
    "no hash": altered("images", lambda old, row: [{**old[0], "xxh3": ""}], late),
    "another shard": altered("shard", lambda old, row: "train/train-000000.tar", late),
    "another source": altered("source", lambda old, row: "nobody", late),
    "another text": altered("conversations", lambda old, row: [*old[:-1], {"from": "gpt", "value": "no"}], late),
}


@pytest.mark.parametrize("name", ALTERED)
def test_verify_says_the_same_of_parts(mixture: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(mixture, tmp_path / "one")
    ALTERED[name](tmp_path / "one", SAMPLES)
    shutil.copytree(tmp_path / "one", tmp_path / "parts")
    split_index(tmp_path / "parts", 100)
    found = verify(tmp_path / "one").problems
    assert found and verify(tmp_path / "parts").problems == found
