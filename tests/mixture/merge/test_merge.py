"""The oracle of a merge is the build that makes the same mixture at once, from the raw files."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import vlmix
from tests.helpers import VLMIX, hashes, reseal, vlmix_here
from tests.helpers import vlmix as command
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.tar import scan
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.merge import merge as merging
from vlmix.mixture.merge.recipe import typed

FIRST: dict[str, Any] = {"vqav2": {}, "okvqa": {}}
SECOND: dict[str, Any] = {"ocrvqa": {"take": 30}, "textcaps": {"repeat": 2.5}, "sharegpt": {}}
SAME = ["id", "source", "image", "width", "height", "num_images", "num_rounds", "num_words", "repeat"]
SAME += ["conversations", "response_formats", "boxes", "extra"]


def make(raw: Path, out: Path, sources: dict[str, Any], *, only_text: bool = False, **keys: Any) -> Path:
    plain = {"name": out.name, "sources": sources, "samples_per_shard": 20, **keys}
    build(parse(plain, known_sources()), known_sources(), raw, out, annotations_only=only_text)
    return out


@pytest.fixture(scope="module")
def mixes(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `first` and `second`, and `both`, built at once. Read only."""
    folder = tmp_path_factory.mktemp("merged")
    make(raw, folder / "first", FIRST)
    make(raw, folder / "second", SECOND)
    make(raw, folder / "both", {**FIRST, **SECOND})
    return folder


def merged(out: Path, *arguments: object, **options: Any) -> merging.Merged:
    return merging.merge(typed([str(argument) for argument in arguments]), out, **options)


def index(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "samples.parquet").sort("id")


def bytes_of(folder: Path) -> dict[str, tuple[bytes, tuple[bytes, ...]]]:
    """id -> JSON and images, as the reader finds them."""
    mixture = vlmix.open(folder)
    ids = mixture.column("id").to_pylist()
    return {id: (raw.json, raw.jpegs) for id, raw in zip(ids, map(mixture.raw, range(len(mixture))))}


def test_it_holds_what_a_build_of_all_sources_does(mixes: Path, tmp_path: Path) -> None:
    made = merged(tmp_path / "out", mixes / "first", mixes / "second")
    assert (made.copied, made.written) == (0, 0) and made.linked == len(made.manifest.shards)
    assert index(tmp_path / "out").select(SAME).equals(index(mixes / "both").select(SAME))
    assert bytes_of(tmp_path / "out") == bytes_of(mixes / "both")
    assert not verify(tmp_path / "out").problems
    whole = vlmix.open(mixes / "both").manifest
    card = (tmp_path / "out/README.md").read_text()
    assert f"Merged from `first` ({vlmix.open(mixes / 'first').manifest.samples} samples), `second`" in card
    assert made.manifest.total == whole.total and made.manifest.rejects == whole.rejects
    for name, info in whole.sources.items():
        assert made.manifest.sources[name] == info
    by = ["source", "id", "round", "reason", "detail"]
    rejects = [pl.read_parquet(folder / "rejects.parquet").sort(by) for folder in (tmp_path / "out", mixes / "both")]
    assert rejects[0].equals(rejects[1])


def test_shards_are_links_that_outlive_the_mixtures(mixes: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(mixes / name, tmp_path / name)
    made = merged(tmp_path / "out", tmp_path / "first", tmp_path / "second")
    inodes = {p.stat().st_ino for name in ("first", "second") for p in (tmp_path / name).glob("train/*.tar")}
    assert {(tmp_path / "out" / shard.path).stat().st_ino for shard in made.manifest.shards} == inodes
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "second")
    assert not verify(tmp_path / "out").problems and bytes_of(tmp_path / "out") == bytes_of(mixes / "both")


def test_shards_of_both_alternate(mixes: Path, tmp_path: Path) -> None:
    """Who reads shards one after the other meets both mixtures all along."""
    merged(tmp_path / "out", mixes / "first", mixes / "second")
    sources = pl.read_parquet(tmp_path / "out/samples.parquet")["source"].to_list()
    own = [source in FIRST for source in sources]
    share = np.mean(own)
    assert all(abs(np.mean(own[:end]) - share) < 0.2 for end in range(60, len(own)))


@pytest.mark.parametrize("rest", [[], pytest.param(["total=90"], marks=pytest.mark.slow)])
def test_bytes_depend_neither_on_workers_nor_on_links(mixes: Path, tmp_path: Path, rest: list[str]) -> None:
    shutil.copytree(mixes / "second", tmp_path / "elsewhere" / "second")
    merged(tmp_path / "one", mixes / "first", mixes / "second", *rest)
    two = merged(tmp_path / "two", mixes / "first", tmp_path / "elsewhere" / "second", *rest, workers=2, copy=True)
    assert two.linked == 0 and hashes(tmp_path / "one") == hashes(tmp_path / "two")
    for text in ((tmp_path / "one" / name).read_text() for name in ("manifest.json", "README.md")):
        assert str(mixes) not in text and str(tmp_path) not in text


def test_a_file_system_without_links_gets_copies(mixes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    made = merged(tmp_path / "out", mixes / "first", mixes / "second")
    assert made.linked == 0 and made.copied == len(made.manifest.shards)
    monkeypatch.undo()
    merged(tmp_path / "linked", mixes / "first", mixes / "second")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "linked")


def test_links_in_a_mixture_are_followed(mixes: Path, tmp_path: Path) -> None:
    """As in the hub's cache, whose snapshots are links."""
    copy = tmp_path / "snapshot"
    shutil.copytree(mixes / "first", copy)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in copy.glob("train/*.tar"):
        path.rename(blobs / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    merged(tmp_path / "deep" / "out", copy, mixes / "second")
    assert not any(path.is_symlink() for path in (tmp_path / "deep/out/train").iterdir())
    assert not verify(tmp_path / "deep/out").problems


@pytest.mark.parametrize(
    ("share", "keys"),
    [
        ({"take": 21}, {}),
        ({"ratio": 0.35}, {}),
        ({"where": "num_words > 15", "ratio": 0.5}, {}),
        ({"repeat": 2.3}, {}),
        ({"take": 30, "repeat": 1.7}, {"seed": 5}),
        ({"weight": 3}, {"total": 60}),
    ],
)
def test_shares_are_those_of_a_recipe(
    raw: Path, mixes: Path, tmp_path: Path, share: dict[str, Any], keys: dict[str, Any]
) -> None:
    one, other = make(raw, tmp_path / "okvqa", {"okvqa": {}}), make(raw, tmp_path / "textcaps", {"textcaps": {}})
    more = {"weight": 1} if "weight" in share else {}
    made = make(raw, tmp_path / "made", {"okvqa": share, "textcaps": more}, **keys)
    changes = [f"{key}={value}" for key, value in keys.items()]
    vlmix.merge({str(one): share, str(other): more}, tmp_path / "out", changes)
    assert index(tmp_path / "out").select(SAME).equals(index(made).select(SAME))
    assert bytes_of(tmp_path / "out") == bytes_of(made) and not verify(tmp_path / "out").problems


def test_repeats_multiply_and_add_up_exactly(mixes: Path, tmp_path: Path) -> None:
    merged(tmp_path / "out", f"{{{mixes / 'first'}: {{}}, {mixes / 'second'}: {{repeat: 1.3}}}}")
    before, after = index(mixes / "second"), index(tmp_path / "out").filter(~pl.col("source").is_in([*FIRST]))
    assert 10 * after["repeat"].to_numpy().sum() == pytest.approx(13 * before["repeat"].to_numpy().sum(), abs=5)
    times = after["repeat"].to_numpy() / before["repeat"].to_numpy()
    assert times.min() == 1 and times.max() == 2
    assert not verify(tmp_path / "out").problems


def test_only_shards_that_lose_samples_are_written_anew(mixes: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(mixes / "first/samples.parquet")
    gone = frame["id"][45]
    condition = f"id != '{gone}'"
    made = merged(tmp_path / "out", f'{{{mixes / "first"}: {{where: "{condition}"}}, {mixes / "second"}: {{}}}}')
    assert made.written == 1 and made.linked == len(made.manifest.shards) - 1
    assert set(index(mixes / "both")["id"]) - set(index(tmp_path / "out")["id"]) == {gone}
    assert not verify(tmp_path / "out").problems


def test_a_shard_begins_with_images(mixes: Path, tmp_path: Path) -> None:
    made = merged(tmp_path / "out", mixes / "first", mixes / "second", "total=150")
    frame = pl.read_parquet(tmp_path / "out/samples.parquet")
    assert made.written == len(made.manifest.shards) > 3
    for shard in frame.partition_by("shard"):
        images = (shard["num_images"] > 0).to_numpy()
        assert images[: min(5, images.sum())].all()


# --- keys and readers


def test_keys_stay_those_of_the_shards(mixes: Path, tmp_path: Path) -> None:
    made = merged(tmp_path / "out", mixes / "first", mixes / "second")
    mixture = vlmix.open(tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out/samples.parquet")
    assert made.manifest.format_version == 4 and vlmix.open(mixes / "first").manifest.format_version == 3
    names: list[str] = []
    for shard in made.manifest.shards:
        with tarfile.open(tmp_path / "out" / shard.path) as tar:
            names += [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]
    assert names == frame["key"].to_list() == [sample.key for sample in mixture]
    assert len(set(zip(names, frame["shard"]))) == len(names) > len(set(names))


def test_a_changed_key_is_found(mixes: Path, tmp_path: Path) -> None:
    made = merged(tmp_path / "out", mixes / "first", mixes / "second", copy=True)
    path = tmp_path / "out" / next(shard.path for shard in made.manifest.shards if shard.first_key is not None)
    with tarfile.open(path) as tar:
        name = tar.getnames()[0]
    path.write_bytes(path.read_bytes().replace(name[:9].encode(), b"999999999"))
    mixture = vlmix.open(tmp_path / "out")
    position = mixture.column("shard").to_pylist().index(str(path.relative_to(tmp_path / "out")))
    with pytest.raises(VlmixError, match="was changed since the index was made"):
        mixture.raw(position)
    reseal(tmp_path / "out", lambda plain: [shard.pop("first_key", None) for shard in plain["shards"]])
    assert any("`key` is not the position" in problem for problem in verify(tmp_path / "out").problems)


def test_stock_webdataset_and_hf_read_every_sample(mixes: Path, tmp_path: Path) -> None:
    import datasets
    import webdataset

    made = merged(tmp_path / "out", mixes / "first", mixes / "second")
    expected = {id: images for id, (_, images) in bytes_of(mixes / "both").items()}
    tars = [str(tmp_path / "out" / shard.path) for shard in made.manifest.shards]
    found = [(json.loads(sample["json"])["id"], sample.get("jpg")) for sample in webdataset.WebDataset(tars, False)]
    assert dict(found) == {id: images[0] if images else None for id, images in expected.items()}
    assert len(found) == len(expected)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert sorted(row["json"]["id"] for row in loaded) == sorted(expected)


def test_a_view_of_a_merged_mixture_reads_and_verifies(mixes: Path, tmp_path: Path) -> None:
    vlmix.merge([mixes / "first", mixes / "second"], tmp_path / "out")
    vlmix.open(tmp_path / "out").subset(ratio=0.3).save(tmp_path / "view")
    assert not verify(tmp_path / "view").problems
    everything = bytes_of(mixes / "both")
    assert all(everything[id] == found for id, found in bytes_of(tmp_path / "view").items())


def test_it_is_trained_on_like_any_mixture(mixes: Path, tmp_path: Path) -> None:
    mixture = vlmix.merge([mixes / "first", mixes / "second"], tmp_path / "out")
    order = mixture.schedule(8)
    seen = np.concatenate([order.batch(step) for step in range(order.steps_per_epoch)])
    assert np.array_equal(np.bincount(seen, minlength=len(mixture)), mixture.column("repeat").to_numpy())


# --- what is merged


def test_views_give_their_samples(mixes: Path, tmp_path: Path) -> None:
    mixture = vlmix.open(mixes / "both")
    half = np.arange(len(mixture)) % 40 < 20
    mixture[half].save(tmp_path / "one")
    mixture[~half][::2].save(tmp_path / "other")
    made = merged(tmp_path / "out", tmp_path / "one", tmp_path / "other")
    assert made.linked and made.written  # every second shard is whole
    ids = {*vlmix.open(tmp_path / "one").column("id").to_pylist(), *mixture[~half][::2].column("id").to_pylist()}
    found, everything = bytes_of(tmp_path / "out"), bytes_of(mixes / "both")
    assert found == {id: everything[id] for id in ids} and not verify(tmp_path / "out").problems


def test_merged_mixtures_merge_again(raw: Path, mixes: Path, tmp_path: Path) -> None:
    third = make(raw, tmp_path / "third", {"refcoco": {}})
    merged(tmp_path / "two", mixes / "first", mixes / "second")
    made = merged(tmp_path / "three", tmp_path / "two", third, "name=all")
    at_once = merged(tmp_path / "flat", mixes / "first", mixes / "second", third)
    assert made.written == 0 and not verify(tmp_path / "three").problems
    assert bytes_of(tmp_path / "three") == bytes_of(tmp_path / "flat")
    assert made.manifest.total == at_once.manifest.total
    recipe = made.manifest.recipe["mixtures"]["two"]["recipe"]["mixtures"]["first"]["recipe"]
    assert recipe["sources"].keys() == FIRST.keys()
    assert [entry for entry in made.manifest.inputs if entry.startswith("two/first/")] == [
        f"two/first/{name}" for name in FIRST
    ]
    (manifest,) = made.manifest.inputs["two"]
    assert manifest.sha256 == hashes(tmp_path / "two")["manifest.json"]


def test_annotations_merge_with_annotations(raw: Path, mixes: Path, tmp_path: Path) -> None:
    for name, sources in (("first", FIRST), ("second", SECOND), ("both", {**FIRST, **SECOND})):
        make(raw, tmp_path / name, sources, only_text=True)
    merged(tmp_path / "out", tmp_path / "first", tmp_path / "second")
    assert index(tmp_path / "out").select(SAME).equals(index(tmp_path / "both").select(SAME))
    assert not verify(tmp_path / "out").problems
    merged(tmp_path / "less", f"{{{tmp_path / 'first'}: {{ratio: 0.5}}, {tmp_path / 'second'}: {{}}}}")
    assert not verify(tmp_path / "less").problems
    with pytest.raises(VlmixError, match="first was built with --annotations-only and second has shards"):
        merged(tmp_path / "no", tmp_path / "first", mixes / "second")


@pytest.mark.parametrize("share", ["{}", "{ratio: 0.8}"])
def test_natural_orders_follow_each_other(raw: Path, tmp_path: Path, share: str) -> None:
    first = make(raw, tmp_path / "first", FIRST, order="natural")
    second = make(raw, tmp_path / "second", SECOND, order="natural")
    made = merged(tmp_path / "out", f"{{{first}: {share}, {second}: {share}}}")
    assert made.manifest.recipe["order"] == "natural" and not verify(tmp_path / "out").problems
    frame = pl.read_parquet(tmp_path / "out/samples.parquet").sort("natural_index")
    assert frame["natural_index"].to_list() == list(range(len(frame)))
    own = [pl.read_parquet(folder / "samples.parquet").sort("natural_index")["id"] for folder in (first, second)]
    kept = set(frame["id"])
    assert frame["id"].to_list() == [id for ids in own for id in ids if id in kept]


def rated(folder: Path, name: str, column: str, values: list[Any]) -> Path:
    """A mixture of somebody's own rows with a column of `values`."""
    rows = [{"question": f"What is {name} {i}?", "answer": "A thing.", column: v} for i, v in enumerate(values)]
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sources = {name: {"builder": "rows", "path": f"{name}.jsonl", "license": f"{name}'s own"}}
    return make(folder, folder / name, sources)


def test_columns_of_sources_are_united(tmp_path: Path) -> None:
    one, other = rated(tmp_path, "one", "score", [1, 2, 3]), rated(tmp_path, "other", "grade", ["a", "b"])
    third = rated(tmp_path, "third", "score", [0.5, 1.5])
    merged(tmp_path / "out", one, other, third)
    frame = index(tmp_path / "out")
    assert frame["score"].to_list() == [1.0, 2.0, 3.0, None, None, 0.5, 1.5]
    assert frame["grade"].to_list() == [None, None, None, "a", "b", None, None]
    assert not verify(tmp_path / "out").problems
    text = rated(tmp_path, "text", "score", ["high", "low"])
    with pytest.raises(VlmixError, match="'score' holds int64 in one and string in text"):
        merged(tmp_path / "no", one, text)


def test_licenses_of_one_source_are_all_kept(tmp_path: Path) -> None:
    for team in ("a", "b"):
        (tmp_path / team).mkdir()
    one = rated(tmp_path / "a", "mine", "score", [1, 2])
    other = rated(tmp_path / "b", "mine", "score", [1, 2, 3])
    reseal(other, lambda plain: plain["sources"]["mine"].update(license="CC BY 4.0"))
    made = merged(tmp_path / "out", one, other, "duplicates=drop")
    assert made.manifest.sources["mine"].license == "mine's own; CC BY 4.0"
    assert [*made.manifest.recipe["mixtures"]] == ["a/mine", "b/mine"]


# --- samples of one id


def test_a_sample_in_two_mixtures_is_an_error_or_a_reject(raw: Path, mixes: Path, tmp_path: Path) -> None:
    other = make(raw, tmp_path / "other", {"okvqa": {"take": 12}, "refcoco": {}}, prompts="plain")
    both = set(index(mixes / "first")["id"]) & set(index(other)["id"])
    assert len(both) == 12
    with pytest.raises(VlmixError, match="first and other both hold okvqa/.* and 11 more; .*duplicates=drop"):
        merged(tmp_path / "out", mixes / "first", other, "prompts=mixed")
    assert not (tmp_path / "out.partial").exists()
    made = merged(tmp_path / "out", mixes / "first", other, "prompts=mixed", "duplicates=drop")
    frame, first = index(tmp_path / "out"), index(mixes / "first")
    assert frame["id"].is_unique().all() and set(frame["id"]) == {*first["id"], *index(other)["id"]}
    kept = frame.join(first.select("id"), on="id", how="semi", maintain_order="left")
    assert kept.select(SAME).equals(first.select(SAME))
    rejects = pl.read_parquet(tmp_path / "out/rejects.parquet").filter(pl.col("reason") == "duplicate_sample")
    assert set(rejects["id"]) == both and set(rejects["detail"]) == {"also in first"}
    assert made.manifest.rejects["okvqa"] == {"duplicate_sample": 12}
    assert not verify(tmp_path / "out").problems


def test_a_mixture_is_not_merged_with_itself(mixes: Path, tmp_path: Path) -> None:
    first = mixes / "first"
    with pytest.raises(VlmixError, match="named twice; .*repeat: 2"):
        merged(tmp_path / "out", first, first)
    with pytest.raises(VlmixError, match="are the same mixture"):
        merged(tmp_path / "out", first, f"{mixes}/./first")
    shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(VlmixError, match="first and copy both hold"):
        merged(tmp_path / "out", first, tmp_path / "copy")
    with pytest.raises(VlmixError, match="copy: all of its samples are in the mixtures before it"):
        merged(tmp_path / "out", first, tmp_path / "copy", "duplicates=drop")


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{first}"], "at least two mixtures"),
        (["{first}", "{nowhere}"], "nowhere is not a mixture"),
        (["{first}", "{second}", "totl=5"], "unknown key 'totl'; did you mean 'total'"),
        (["{first}", "{second}", "total=5000"], "total 5,000: first would give"),
        (["{first}", "{second}", "duplicates=keep"], "expected one of drop, error"),
        (["{{{first}: 0.8, {second}: 0.2}}"], "`weight` needs total=N"),
        (["{{{first}: 0.8, {second}: {{}}}}", "total=20"], "second: has no `weight`"),
        (["{{{first}: {{tak: 3}}, {second}: {{}}}}"], "unknown key 'tak'; did you mean 'take'"),
        (["{{{first}: {{take: 3, ratio: 0.1}}, {second}: {{}}}}"], "exclude each other"),
        (["{{{first}: {{take: 3000}}, {second}: {{}}}}"], "first: take 3,000 asks for more than the"),
        (["{{{first}: {{ratio: 0.001}}, {second}: {{}}}}"], "first: no sample of it is left"),
        (["{{{first}: {{where: num_words > 9999}}, {second}: {{}}}}"], "first: no sample passes"),
        (["{{{first}: {{where: no_column > 1}}, {second}: {{}}}}"], "first: where.*no_column"),
        (["{{{first}: {{repeat: 0.5}}, {second}: {{}}}}"], "`repeat`: expected `float` >= 1"),
        (["{{{first}: yes, {second}: {{}}}}"], "expected a weight or a mapping"),
        (["{{{first}: {{}}, {second}: {{repeat: 900}}}}"], "second: a sample would be seen"),
        (["memory://first", "{second}"], "not a mixture|needs a local folder"),
    ],
)
def test_what_cannot_be_asked(mixes: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    names = {name: mixes / name for name in ("first", "second", "nowhere")}
    with pytest.raises(VlmixError, match=message):
        merged(tmp_path / "out", *(text.format(**names) for text in arguments))
    assert list(tmp_path.iterdir()) == []


def test_styles_of_prompts_do_not_mix_by_accident(raw: Path, mixes: Path, tmp_path: Path) -> None:
    plain = make(raw, tmp_path / "plain", SECOND, prompts="plain")
    with pytest.raises(VlmixError, match="first has prompts of the style llava and plain of plain.*prompts=mixed"):
        merged(tmp_path / "out", mixes / "first", plain)
    made = merged(tmp_path / "out", mixes / "first", plain, "prompts=mixed")
    assert made.manifest.recipe["prompts"] == "mixed" and not verify(tmp_path / "out").problems


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _flip_in(path: Path, place: Callable[[dict[str, Any]], int]) -> None:
    """A bit of the last sample with an image in a shard."""
    frame = pl.read_parquet(path.parents[1] / "samples.parquet")
    row = frame.filter(pl.col("shard") == f"train/{path.name}", pl.col("num_images") > 0).to_dicts()[-1]
    data = bytearray(path.read_bytes())
    data[place(row)] ^= 1
    path.write_bytes(data)


def _flip_image(path: Path) -> None:
    _flip_in(path, lambda row: int(row["images"][0]["offset"]) + 100)


def _flip_text(path: Path) -> None:
    _flip_in(path, lambda row: int(row["json_offset"]) + 8)  # in the id


LESS = "{where: \"key != '000000020'\"}"  # so that the second shard is written anew


@pytest.mark.parametrize(
    ("name", "damage", "share", "message"),
    [
        ("train/train-000001.tar", Path.unlink, "{}", "train-000001.tar is missing"),
        ("train/train-000001.tar", Path.unlink, "{ratio: 0.5}", "train-000001.tar is missing"),
        ("train/train-000001.tar", _cut, "{}", "the manifest says"),
        ("train/train-000001.tar", _flip, "copy", "differs from the manifest's checksum"),
        ("train/train-000001.tar", _flip_image, LESS, "has other images for .* than the index"),
        ("train/train-000001.tar", _flip_text, LESS, "has another text for .* than the index"),
        ("samples.parquet", _flip, "{}", "samples.parquet: missing, or its bytes differ"),
        ("samples.parquet", Path.unlink, "{}", "samples.parquet"),
        ("rejects.parquet", _flip, "{}", "rejects.parquet: missing, or its bytes differ"),
        ("manifest.json", _flip, "{}", "manifest"),
    ],
)
def test_damage_is_not_carried_over(
    mixes: Path, tmp_path: Path, name: str, damage: Callable[[Path], object], share: str, message: str
) -> None:
    shutil.copytree(mixes / "first", tmp_path / "first")
    damage(tmp_path / "first" / name)
    how = "{}" if share == "copy" else share
    with pytest.raises(VlmixError, match=message):
        merged(tmp_path / "out", f"{{{tmp_path / 'first'}: {how}, {mixes / 'second'}: {{}}}}", copy=share == "copy")
    assert not (tmp_path / "out").exists()


# --- interruptions


def start(mixes: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    line = ["merge", mixes / "first", mixes / "second", "--out", out, "--workers", "1", *more]
    return subprocess.Popen([*VLMIX, *map(str, line)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("moment", "more"),
    [
        ("work/rows-000004.done", ["--copy"]),
        ("train/train-000005.tar", ["--copy"]),
        pytest.param("train/train-000005.tar", ["total=110"], marks=pytest.mark.slow),
        pytest.param("samples.parquet", [], marks=pytest.mark.slow),
        pytest.param("rejects.parquet", [], marks=pytest.mark.slow),
    ],
)
def test_a_killed_merge_goes_on_to_the_same_bytes(mixes: Path, tmp_path: Path, moment: str, more: list[str]) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    process = start(mixes, out, *more)
    deadline = time.monotonic() + 60
    while not (partial / moment).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    there = {path: path.stat().st_ino for path in partial.glob("train/*.tar")}
    again = vlmix_here("merge", mixes / "first", mixes / "second", "--out", out, "--workers", "1", *more)
    assert again.returncode == 0, again.stderr
    kept = [path for path, inode in there.items() if (out / "train" / path.name).stat().st_ino == inode]
    assert len(kept) >= len(there) - 1  # the last one may have had its tar but not yet its rows
    whole = merged(tmp_path / "whole", mixes / "first", mixes / "second", *(text for text in more if "=" in text))
    assert whole.manifest.samples and hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.processes
def test_a_full_disk_is_an_error_and_the_merge_goes_on(mixes: Path, tmp_path: Path) -> None:
    limit = max(path.stat().st_size for path in mixes.glob("*/train/*.tar")) - 1

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    line = ["merge", mixes / "first", mixes / "second", "--out", tmp_path / "out", "--copy", "--workers", "1"]
    failed = command(*line, preexec_fn=small_disk)
    assert failed.returncode == 1 and "cannot write" in failed.stderr and "free some space" in failed.stderr
    assert not (tmp_path / "out").exists() and not list((tmp_path / "out.partial").rglob("*.tmp"))
    assert vlmix_here(*line).returncode == 0
    merged(tmp_path / "whole", mixes / "first", mixes / "second")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_another_recipe_takes_nothing_over(mixes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise VlmixError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(merging, "finalize", fail)
        with pytest.raises(VlmixError, match="stopped"):
            merged(tmp_path / "out", mixes / "first", mixes / "second")
    assert list((tmp_path / "out.partial").glob("train/*.tar"))
    merged(tmp_path / "out", mixes / "second", mixes / "first", "total=70")
    merged(tmp_path / "whole", mixes / "second", mixes / "first", "total=70")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert not verify(mixes / "first").problems  # whose shards were linked, and removed again


# --- as commands


def test_the_command_says_what_was_done(mixes: Path, tmp_path: Path) -> None:
    shown = vlmix_here("merge", mixes / "first", mixes / "second", "--out", tmp_path / "out", "--workers", "1")
    assert shown.returncode == 0, shown.stderr
    count = len(vlmix.open(tmp_path / "out").manifest.shards)
    assert "first+second" in shown.stdout and f"shards: {count} hard-linked" in shown.stdout
    (tmp_path / "team.yaml").write_text(
        f"name: team\ntotal: 100\nmixtures:\n  {mixes / 'first'}: {{weight: 3}}\n  {mixes / 'second'}: {{weight: 1}}\n"
    )
    line = ["merge", tmp_path / "team.yaml", "total=40", "--out", tmp_path / "team", "--workers", "1", "--json"]
    report = json.loads(vlmix_here(*line).stdout)
    assert (
        report["name"] == "team"
        and report["samples"] == 40
        and report["placed"] == {"linked": 0, "copied": 0, "written": 3}
    )
    assert sum(info["counts"]["samples"] for name, info in report["sources"].items() if name in FIRST) == 30
    for shown in (
        vlmix_here("inspect", tmp_path / "out", "--limit", "2"),
        vlmix_here("inspect", tmp_path / "out", "--rejects"),
        vlmix_here("browse", tmp_path / "out", "--out", tmp_path / "pages", "--samples", "10", "--workers", "1"),
        vlmix_here("subsample", tmp_path / "out", "--ratio", "0.1", "--materialize", "--out", tmp_path / "tenth"),
    ):
        assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    "form", ["energon", "llava-json", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dali", "hf", "wids"))]
)
def test_exports_are_those_of_the_mixture_built_at_once(mixes: Path, tmp_path: Path, form: str) -> None:
    from vlmix.mixture.export import export

    vlmix.merge([mixes / "first", mixes / "second"], tmp_path / "out")
    assert export(tmp_path / "out", form, tmp_path / "x") == export(mixes / "both", form, tmp_path / "y")
    if form in ("energon", "wids", "dali"):
        keys = [member.name for tar in (tmp_path / "x").glob("train/*.tar") for member in scan(tar)]
        assert len(set(keys)) == len(keys)  # energon's index knows a key once
