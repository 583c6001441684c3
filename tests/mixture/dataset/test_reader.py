import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import vlmix
from tests.helpers import hashes
from vlmix import Mixture, VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.subset import Selection, subsample


def shard(folder: Path, number: int = 0) -> Path:
    return folder / f"train/train-{number:06d}.tar"


@pytest.fixture
def copy(mixture: Path, tmp_path: Path) -> Path:
    shutil.copytree(mixture, tmp_path / "copy")
    return tmp_path / "copy"


def test_samples_are_those_of_the_index(mixture: Path) -> None:
    opened = vlmix.open(mixture)
    frame = pl.read_parquet(mixture / "samples.parquet")
    assert len(opened) == len(frame) == 840
    for sample, row in zip(opened, frame.to_dicts(), strict=True):
        turns = [{"from": turn.from_, "value": turn.value} for turn in sample.conversations]
        assert (sample.key, sample.id, sample.source, turns) == (
            row["key"],
            row["id"],
            row["source"],
            row["conversations"],
        )
        assert (sample.jpeg is None) == (row["image"] == "")
        assert [len(jpeg) for jpeg in sample.jpegs] == [image["size"] for image in row["images"]]
    last = opened[-1]
    assert last == opened[839] == opened[opened.index_of(last.id)]
    assert opened.samples.select(pl.len()).collect().item() == 840
    with pytest.raises(IndexError):
        opened[840]
    with pytest.raises(KeyError):
        opened.index_of("gqa/0")


def test_parts_are_mixtures_too(mixture: Path) -> None:
    opened = open_mixture(mixture)
    tail = opened[800:]
    assert isinstance(tail, Mixture) and len(tail) == 40 and tail[3] == opened[803]
    assert tail[-5:][0] == opened[835] and [s.id for s in opened[::-1]][:2] == [opened[839].id, opened[838].id]
    assert tail.samples.collect()["id"].to_list() == [sample.id for sample in tail]
    assert tail.column("id").to_pylist() == [sample.id for sample in tail]


def test_subsets_in_memory_are_those_of_the_command(mixture: Path, tmp_path: Path) -> None:
    subsample(mixture, tmp_path / "tenth", Selection(ratio=0.1))
    opened = open_mixture(mixture)
    tenth = opened.subset(ratio=0.1)
    tenth.save(tmp_path / "saved")
    on_disk = hashes(tmp_path / "tenth")["samples.parquet"]
    assert hashes(tmp_path / "saved")["samples.parquet"] == on_disk
    again = open_mixture(tmp_path / "saved")
    assert [s.id for s in again] == [s.id for s in tenth] and again[7] == tenth[7]
    inner = opened.subset(ratio=0.5).subset(total=84)
    assert set(inner.column("id").to_pylist()) == set(tenth.column("id").to_pylist())
    few = again.subset(where="num_rounds > 2", sources={"gqa": 2})
    few.save(tmp_path / "few")
    assert open_mixture(tmp_path / "few")[0] == few[0]
    with pytest.raises(VlmixError, match="keeps no sample"):
        opened.subset(ratio=0.0001)


def test_views_open_where_their_root_is(mixture: Path, tmp_path: Path) -> None:
    open_mixture(mixture).subset(ratio=0.2).save(tmp_path / "view")
    view = open_mixture(tmp_path / "view")
    assert view.local_root == mixture
    assert [s.id for s in view] == pl.read_parquet(tmp_path / "view/samples.parquet")["id"].to_list()
    assert view[5:][0] == view[5]


def _ids(opened: Mixture) -> list[str]:
    return [sample.id for sample in opened]


@pytest.mark.processes
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_by_themselves(mixture: Path, method: str) -> None:
    opened = open_mixture(mixture)
    expected = _ids(opened)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_ids, [opened, opened]) == [expected, expected]
    assert _ids(pickle.loads(pickle.dumps(opened[:10]))) == expected[:10]


def test_threads_share_a_mixture(mixture: Path) -> None:
    opened = open_mixture(mixture)
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 840, 4000).tolist()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: opened[i].id, positions))
    ids = opened.column("id").to_pylist()
    assert found == [ids[i] for i in positions]
    assert threading.active_count() < 20


def test_many_shards_do_not_run_out_of_descriptors(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmix.mixture.dataset import reader

    monkeypatch.setattr(reader, "_MOST_OPEN", 2)
    opened = open_mixture(mixture)
    assert len(_ids(opened)) == 840 and len([d for d in opened._open.values() if d is not None]) == 2


@pytest.mark.processes
def test_it_needs_neither_polars_nor_any_of_the_build(mixture: Path) -> None:
    """What a trainer's node has: torch, transformers, pyarrow, pillow, msgspec and what these bring along."""
    code = f"""
import sys
for name in ("polars", "xxhash", "typer", "rich", "datasets", "webdataset", "yaml", "PIL"):
    sys.modules[name] = None
import vlmix
opened = vlmix.open({str(mixture)!r})
assert opened[0].id and len(opened.schedule(8).batch(3)) == 8
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def missing(folder: Path) -> None:
    shard(folder).unlink()


def truncated(folder: Path) -> None:
    os.truncate(shard(folder), 5000)


def longer(folder: Path) -> None:
    with shard(folder).open("ab") as file:
        file.write(b"\0" * 512)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(missing, "is missing"), (truncated, "truncated or changed"), (longer, "truncated or changed")],
)
def test_a_shard_that_is_not_the_indexed_one_is_told(copy: Path, damage: object, message: str) -> None:
    damage(copy)
    opened = open_mixture(copy)
    with pytest.raises(VlmixError, match=f"train-000000.tar.*{message}.*vlmix verify"):
        opened[0]
    assert opened[839].id, "the other shards are read"


def test_a_shard_of_the_same_length_from_elsewhere_is_told(copy: Path) -> None:
    other = shard(copy, 1).read_bytes()
    size = shard(copy).stat().st_size
    shard(copy).write_bytes(other[:size].ljust(size, b"\0"))
    with pytest.raises(VlmixError, match="changed since the index was made"):
        open_mixture(copy)[99]


def test_a_shard_truncated_under_the_reader_is_told(copy: Path) -> None:
    opened = open_mixture(copy)
    assert opened[0].id
    os.truncate(shard(copy), 5000)
    with pytest.raises(VlmixError, match="truncated since it was opened"):
        opened[50]


def test_altered_text_is_told(copy: Path) -> None:
    row = pl.read_parquet(copy / "samples.parquet").row(0, named=True)
    with shard(copy).open("r+b") as file:
        file.seek(row["json_offset"])
        file.write(b"\xff\xff\xff")
    with pytest.raises(VlmixError, match="sample 000000000.*vlmix verify"):
        open_mixture(copy)[0]


def test_an_index_of_another_version_is_told(copy: Path) -> None:
    path = copy / "samples.parquet"
    whole = pl.read_parquet(path)
    whole.drop("images").write_parquet(path)
    with pytest.raises(VlmixError, match="no column 'images': it does not match the format version"):
        open_mixture(copy)[0]
    whole.head(10).write_parquet(path)
    with pytest.raises(VlmixError, match="10 rows, the manifest says 840"):
        open_mixture(copy)[0]
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(VlmixError, match=r"samples\.parquet"):
        open_mixture(copy)[0]
    path.unlink()
    with pytest.raises(VlmixError, match="is missing"):
        open_mixture(copy)[0]


def test_annotations_alone_have_an_index_and_no_samples(raw: Path, tmp_path: Path) -> None:
    from vlmix.builders import known_sources
    from vlmix.mixture.build.build import build
    from vlmix.mixture.build.recipe import parse

    recipe = parse({"name": "x", "sources": {"okvqa": {}}}, known_sources())
    build(recipe, known_sources(), raw, tmp_path / "text", annotations_only=True)
    opened = open_mixture(tmp_path / "text")
    assert len(opened) == 64 and opened.samples.collect()["conversations"].len() == 64
    assert opened.schedule(8).steps_per_epoch == 8
    with pytest.raises(VlmixError, match="--annotations-only"):
        opened[0]


class Flaky(MemoryFileSystem):
    """A store that fails every other request once."""

    protocol = "flaky"
    store: ClassVar[dict[str, object]] = {}
    requests = 0
    failures = 1

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: object) -> bytes:
        Flaky.requests += 1
        if Flaky.requests % (Flaky.failures + 1):
            raise ConnectionError("the store is busy")
        return super().cat_file(path, start, end, **more)


@pytest.fixture
def stored(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The mixture and a view of it in a store that fails."""
    from vlmix.mixture.io import storage as location

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(location, "_FIRST_WAIT", 0.001)
    open_mixture(mixture).subset(ratio=0.1).save(mixture.parent / "remote-view")
    files = Flaky()
    for folder in (mixture, mixture.parent / "remote-view"):
        for path in folder.rglob("*"):
            if path.is_file():
                files.pipe_file(f"/bucket/{folder.name}/{path.relative_to(folder)}", path.read_bytes())
    shutil.rmtree(mixture.parent / "remote-view")
    yield "flaky://bucket"
    Flaky.store.clear()
    Flaky.failures = 1


def test_urls_open_and_failures_are_tried_again(mixture: Path, stored: str) -> None:
    local, remote = open_mixture(mixture), open_mixture(f"{stored}/mixture")
    assert Flaky.requests > 1
    for position in (0, 417, 839):
        assert remote[position] == local[position]
    Flaky.failures, before = 0, Flaky.requests
    assert remote[1] == local[1] and Flaky.requests == before + 1, (
        "one request for all members, none for the shard again"
    )
    Flaky.failures = 1
    view = open_mixture(f"{stored}/remote-view")
    assert view[3] == local[local.index_of(view[3].id)]
    assert remote.samples.collect().equals(local.samples.collect())
    with pytest.raises(VlmixError, match="not a mixture"):
        open_mixture(f"{stored}/nothing")


def test_a_short_answer_is_asked_for_again(mixture: Path, stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, sizes, read = open_mixture(f"{stored}/mixture"), [], Flaky.cat_file

    def short(self: Flaky, path: str, start: int | None = None, end: int | None = None, **more: object) -> bytes:
        whole = read(self, path, start, end, **more)
        if start is None:
            return whole
        sizes.append(len(whole))
        return whole[: -1 if len(sizes) < 4 else None]

    monkeypatch.setattr(Flaky, "cat_file", short)
    assert remote[5] == open_mixture(mixture)[5] and len(sizes) == 4


def test_a_store_that_keeps_failing_is_told(stored: str) -> None:
    remote = open_mixture(f"{stored}/mixture")
    Flaky.failures = 10**9
    with pytest.raises(VlmixError, match=r"the store is busy \(tried 8 times\)"):
        remote[0]


@pytest.mark.processes
def test_two_processes_read_at_once(mixture: Path) -> None:
    code = f"import vlmix; print(sum(len(j) for s in vlmix.open({str(mixture)!r}) for j in s.jpegs))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    images = pl.read_parquet(mixture / "samples.parquet")["images"].explode().drop_nulls()
    image_bytes = images.struct.field("size").sum()
    sums = {process.communicate()[0] for process in running}
    assert sums == {f"{image_bytes}\n"}
