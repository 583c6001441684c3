"""Commands that read mixtures, of stores behind a proxy that makes trouble, against the same on disk."""

import gc
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import vlmix
from tests.helpers import hashes, reseal, vlmix_here
from tests.stores import BUCKET, Proxy, Store
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.verify import Rows, verify
from vlmix.mixture.export import export
from vlmix.mixture.io import storage
from vlmix.mixture.io.storage import Remote

pytestmark = [pytest.mark.slow, pytest.mark.processes]
FIRST, SECOND = "train/train-000000.tar", "train/train-000001.tar"
SOURCES = {"vqav2": {"take": 8}, "refcoco": {"take": 4}, "ocrvqa": {"take": 3}, "sharegpt": {}}
MORE = {"gqa": {"take": 9}, "textcaps": {"take": 4, "repeat": 1.5}}


@pytest.fixture(scope="module")
def small(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of five samples, and beside them a view, a mixture of annotations and one more. Read only."""
    folder = tmp_path_factory.mktemp("folders")
    recipe = parse({"name": "small", "sources": SOURCES, "samples_per_shard": 5}, known_sources())
    build(recipe, known_sources(), raw, folder / "small")
    build(recipe, known_sources(), raw, folder / "texts", annotations_only=True)
    other = parse({"name": "more", "sources": MORE, "samples_per_shard": 5}, known_sources())
    build(other, known_sources(), raw, folder / "more")
    vlmix.open(folder / "small").subset(total=7).save(folder / "view")
    return folder / "small"


@pytest.fixture(scope="module")
def address(moto: Store, small: Path) -> str:
    for name in ("view", "texts", "more"):
        moto.put_folder(small.with_name(name), f"commands/{name}")
    return moto.put_folder(small, "commands/small")


def both(moto: Store, folder: Path) -> tuple[list[str], list[str]]:
    """The problems of a folder, and of its copy in the store, in the same order."""
    for key in moto.objects("verified"):
        moto.client().delete_object(Bucket=BUCKET, Key=f"verified/{key}")
    moto.put_folder(folder.parent, "verified")
    url = f"s3://{BUCKET}/verified/{folder.name}"
    said = [problem.replace(f"s3://{BUCKET}/verified/", f"{folder.parent}/") for problem in verify(url).problems]
    return verify(folder).problems, sorted(said)


@pytest.mark.parametrize("name", ["small", "view", "texts"])
def test_a_sound_mixture_is_sound_behind_a_store_in_trouble(
    proxy: Proxy, address: str, name: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    proxy.set(fail=0.1, cut=0.1, seed=1)
    url = address.replace("small", name)
    there, here = (vlmix_here("verify", place) for place in (url, small.with_name(name)))
    assert there.returncode == 0 and proxy.troubled, there.stderr
    assert there.stdout.split(": ")[1:] == here.stdout.split(": ")[1:] and there.stdout.startswith(f"{url}: ")
    assert not list(tmp_path.iterdir())


def test_workers_check_shards_of_a_store_without_conditional_puts(
    rclone: Store, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = rclone.put_folder(small, "small")
    rclone.use(monkeypatch)
    assert verify(url, workers=2) == verify(small)


def torn(folder: Path) -> None:
    path = folder / SECOND
    path.write_bytes(path.read_bytes()[:-15_000])


def flipped(name: str, at: float = 0.5) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(at * len(data))] ^= 0xFF
        (folder / name).write_bytes(data)

    return flip


def strays(folder: Path) -> None:
    (folder / "train/more.tar").write_bytes(b"x")
    (folder / "work/deep").mkdir(parents=True)
    (folder / "work/deep/file").write_text("x")
    (folder / ".gitattributes").write_text("x")
    (folder / SECOND).unlink()


def edited(folder: Path) -> None:
    """The manifest, and then a member."""
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    flipped(FIRST, 0.3)(folder)
    (folder / "rejects.parquet").unlink()


def forged(folder: Path) -> None:
    """An index that was sealed again: what it says of members is not what they are."""
    frame = pl.read_parquet(folder / "samples.parquet")
    frame = frame.with_columns(pl.col("json_offset") + 512, id=pl.lit("x"))
    frame.write_parquet(folder / "samples.parquet", row_group_size=5)
    reseal(folder)


@pytest.mark.parametrize(
    "damage",
    [torn, strays, edited, forged, flipped("samples.parquet"), flipped("README.md"), flipped("manifest.json", 0.9)],
)
def test_damage_is_told_as_on_disk(
    proxy: Proxy, moto: Store, small: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(small, tmp_path / "small")
    damage(tmp_path / "small")
    here, there = both(moto, tmp_path / "small")
    assert here and there == here


def test_damage_to_a_view_and_its_root_is_told_as_on_disk(
    proxy: Proxy, moto: Store, small: Path, tmp_path: Path
) -> None:
    for name in ("small", "view"):
        shutil.copytree(small.with_name(name), tmp_path / name)
    torn(tmp_path / "small")
    flipped("README.md")(tmp_path / "view")
    here, there = both(moto, tmp_path / "view")
    assert len(here) > 1 and there == here
    flipped("samples.parquet")(tmp_path / "small")
    here, there = both(moto, tmp_path / "view")
    assert any("../small/samples.parquet: missing, or differs" in problem for problem in here) and there == here


def test_rows_are_read_from_the_store_where_workers_have_no_copy(proxy: Proxy, address: str, small: Path) -> None:
    there, here = Remote(f"{address}/samples.parquet"), storage.Local(small / "samples.parquet")
    assert [Rows(there, group, "a").read() for group in (1, 0)] == [Rows(here, group, "a").read() for group in (1, 0)]
    assert len([line for line, _ in proxy.requests if line.startswith("GET")]) == 1


@pytest.mark.parametrize("only", ["", "list-type", r"\.tar", "samples.parquet"])
def test_a_refusal_is_an_error_at_once(proxy: Proxy, address: str, only: str) -> None:
    proxy.set(fail=1.0, status=403, only=only)
    done = vlmix_here("verify", address, "--workers", "1")
    assert done.returncode == 1 and "the store refuses: " in done.stderr and not done.stdout
    assert proxy.troubled == 1


def test_an_outage_is_no_damage(proxy: Proxy, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.001)
    for only in ("manifest", "000001.tar"):
        proxy.set(fail=1.0, only=only)
        with pytest.raises(vlmix.VlmixError, match=rf"{only}.*tried 8 times"):
            verify(address)


def test_what_is_no_mixture_is_told(proxy: Proxy, address: str) -> None:
    with pytest.raises(vlmix.VlmixError, match=f"{address}/train is not a mixture"):
        verify(f"{address}/train")


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("small", ["hf", "llava-json", "trl", "wids", "energon"]),
        ("view", ["llava-next", "messages", "wids"]),
        ("more", ["wids"]),
    ],
)
def test_exports_are_those_from_disk(
    proxy: Proxy,
    address: str,
    small: Path,
    tmp_path: Path,
    name: str,
    forms: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    proxy.set(fail=0.1, cut=0.1, seed=2)
    for form in forms:
        for where, place in (("here", small.with_name(name)), ("there", address.replace("small", name))):
            out = tmp_path / where / form
            more = ["--images", out.with_name("images")] if form == "llava-json" else []
            done = vlmix_here("export", place, "--to", form, "--out", out, "--workers", 1, *more)
            assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here") and proxy.troubled
    gc.collect()
    assert not list((tmp_path / "tmp").iterdir())


def test_workers_export_from_a_store(proxy: Proxy, address: str, small: Path, tmp_path: Path) -> None:
    for where, place in (("here", str(small)), ("there", address)):
        export(place, "texts", tmp_path / where, workers=2)
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")


@pytest.mark.parametrize("form", ["hf", "ms-swift", "llava-next"])
def test_images_of_an_export_are_read_together(proxy: Proxy, address: str, tmp_path: Path, form: str) -> None:
    export(address, form, tmp_path / "out")
    shards = len(vlmix.open(address).manifest.shards)
    read = [line for line, _ in proxy.requests if line.startswith("GET") and ".tar" in line]
    assert shards - 1 <= len(read) <= shards + 1  # one of texts alone is not read, and a leader is written first


@pytest.mark.parametrize("name", ["small", "view", "texts"])
def test_pages_are_those_from_disk(proxy: Proxy, address: str, small: Path, tmp_path: Path, name: str) -> None:
    proxy.set(fail=0.1, cut=0.1, seed=3)
    for where, place in (("here", small.with_name(name)), ("there", address.replace("small", name))):
        done = vlmix_here("browse", place, "--out", tmp_path / where, "--workers", 1)
        assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here") and proxy.troubled


def test_a_refusal_makes_no_page_without_pictures(proxy: Proxy, address: str, tmp_path: Path) -> None:
    proxy.set(fail=1.0, status=403, only=r"\.tar")
    done = vlmix_here("browse", address, "--out", tmp_path / "pages", "--workers", 1)
    assert done.returncode == 1 and "the store refuses: " in done.stderr and not (tmp_path / "pages").exists()


@pytest.mark.parametrize("name", ["small", "view"])
def test_overlaps_are_those_on_disk_and_shown_beside_them(
    proxy: Proxy, address: str, moto: Store, small: Path, tmp_path: Path, name: str
) -> None:
    proxy.set(fail=0.1, cut=0.1, seed=4)
    for where, place in (("here", small.with_name(name)), ("there", address.replace("small", name))):
        done = vlmix_here("overlaps", place, "--out", tmp_path / where, "--workers", 1)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    if name == "view":
        return
    shutil.copytree(small, tmp_path / "small")
    shutil.copy(tmp_path / "here", tmp_path / "small/overlaps.parquet")
    url = moto.put_folder(tmp_path / "small", "compared/small")
    for out, place in (("a", tmp_path / "small"), ("b", url)):
        done = vlmix_here("browse", place, "--out", tmp_path / out, "--workers", 1)
        assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert "overlaps.parquet" in (tmp_path / "a/index.html").read_text()


@pytest.mark.parametrize(
    ("mixtures", "workers"), [("{small: {ratio: 0.6}, more: {}}", 1), ("{view: {}, more: {repeat: 1.5}}", 2)]
)
def test_a_merge_is_that_from_disk(
    proxy: Proxy, address: str, small: Path, tmp_path: Path, mixtures: str, workers: int
) -> None:
    proxy.set(fail=0.1, cut=0.1, seed=5)
    for where, place in (("here", str(small.parent)), ("there", address.rpartition("/")[0])):
        named = re.sub(r"(small|view|more):", rf"{place}/\1:", mixtures)
        done = vlmix_here("merge", named, "--out", tmp_path / where, "--workers", workers)
        assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here") and proxy.troubled
    assert not verify(tmp_path / "there").problems


@pytest.mark.parametrize(
    ("name", "message"), [(FIRST, "has another sha256|differs from"), ("samples.parquet", "differ")]
)
def test_a_merge_of_damage_is_an_error(
    proxy: Proxy, address: str, moto: Store, small: Path, tmp_path: Path, name: str, message: str
) -> None:
    shutil.copytree(small, tmp_path / "small")
    flipped(name)(tmp_path / "small")
    url = moto.put_folder(tmp_path / "small", f"merged-{name[0]}/small")
    done = vlmix_here("merge", url, address.replace("small", "more"), "--out", tmp_path / "both", "--workers", 1)
    assert done.returncode == 1 and re.search(f"{url}/{name}.*{message}", done.stderr), done.stderr
    assert not (tmp_path / "both").exists() and not list(tmp_path.glob("both.partial/work/copies-*"))


def test_a_local_view_of_a_store_is_verified_and_merged(
    proxy: Proxy, address: str, small: Path, tmp_path: Path
) -> None:
    for where, place in (("here", small), ("there", address)):
        vlmix.open(place).subset(total=7).save(tmp_path / where / "view")
        assert not verify(tmp_path / where / "view").problems
        done = vlmix_here(
            "merge", tmp_path / where / "view", small.with_name("more"), "--out", tmp_path / where / "both"
        )
        assert done.returncode == 0, done.stderr
    theirs = hashes(tmp_path / "there/both"), hashes(tmp_path / "here/both")
    assert {name: one for name, one in theirs[0].items() if theirs[1][name] != one}.keys() <= {"manifest.json"}
