import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.helpers import hashes
from vlmix.mixture.dataset.manifest import Manifest, read
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.storage import locate
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.subset import Selection, parse_amounts, parse_ratio, subsample


def ids(folder: Path) -> list[str]:
    return pl.read_parquet(folder / "samples.parquet")["id"].to_list()


def subset(mixture: Path, out: Path, materialize: bool = False, workers: int = 1, **selection: object) -> Manifest:
    return subsample(mixture, out, Selection(**selection), materialize=materialize, workers=workers)


@pytest.mark.parametrize(
    ("data", "said"), [(None, "is missing"), (b"PAR1", "lists all damage"), (b"x" * 999, "lists all damage")]
)
def test_a_damaged_index_is_told(data: bytes | None, said: str, mixture: Path, tmp_path: Path) -> None:
    shutil.copytree(mixture, tmp_path / "mixture")
    (tmp_path / "mixture/samples.parquet").unlink()
    if data is not None:
        (tmp_path / "mixture/samples.parquet").write_bytes(data)
    with pytest.raises(VlmixError, match=f"samples.parquet.*{said}"):
        subset(tmp_path / "mixture", tmp_path / "out", ratio=0.1)


def test_views_nest_keep_the_order_and_copy_nothing(mixture: Path, tmp_path: Path) -> None:
    before = hashes(mixture)
    for ratio in (0.1, 0.3, 0.9):
        manifest = subset(mixture, tmp_path / f"{ratio}", ratio=ratio)
        assert manifest.samples == len(ids(tmp_path / f"{ratio}")) == int(840 * ratio)
    small, middle, large = (ids(tmp_path / name) for name in ("0.1", "0.3", "0.9"))
    assert set(small) < set(middle) < set(large) < set(ids(mixture))
    assert large == [id for id in ids(mixture) if id in set(large)]
    assert {p.name for p in (tmp_path / "0.1").iterdir()} == {"README.md", "manifest.json", "samples.parquet"}
    assert hashes(mixture) == before


def test_a_view_of_a_view_is_a_view_of_the_root(mixture: Path, tmp_path: Path) -> None:
    subset(mixture, tmp_path / "deep/half", ratio=0.5)
    subset(tmp_path / "deep/half", tmp_path / "tenth", total=84)
    subset(mixture, tmp_path / "direct", total=84)
    assert ids(tmp_path / "tenth") == ids(tmp_path / "direct"), "the same prefix of the same order"
    opened = open_mixture(tmp_path / "tenth")
    assert opened.local_root == mixture and len(opened.manifest.selections) == 2
    assert not verify(tmp_path / "tenth").problems
    assert [sample.id for sample in opened] == ids(tmp_path / "tenth")


def test_stratified_subsets_keep_the_shares(mixture: Path, tmp_path: Path) -> None:
    whole = read(locate(mixture)).sources
    for name, info in subset(mixture, tmp_path / "tenth", ratio=0.1).sources.items():
        assert abs(info.counts.samples - whole[name].counts.samples / 10) < 1
    loose = subset(mixture, tmp_path / "loose", ratio=0.1, stratify=False)
    assert loose.samples == 84
    other = subset(mixture, tmp_path / "other", ratio=0.1, seed=1)
    assert other.samples == 84 and set(ids(tmp_path / "other")) != set(ids(tmp_path / "tenth"))


def test_sources_are_cut_by_name(mixture: Path, tmp_path: Path) -> None:
    amounts = dict(parse_amounts(["gqa=10", "aokvqa=12.5%", "vqav2=0", "okvqa=0.5"]))
    manifest = subset(mixture, tmp_path / "a", sources=amounts)
    counts = {name: info.counts.samples for name, info in manifest.sources.items()}
    assert (counts["gqa"], counts["aokvqa"], counts["okvqa"], counts["refcoco"]) == (10, 32, 32, 165)
    assert "vqav2" not in counts
    assert subset(mixture, tmp_path / "b", where="num_rounds >= 4 AND source = 'gqa'").total.rounds >= 4


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"ratio": 0.0001}, "keeps no sample"),
        ({"ratio": 0.0}, "above 0"),
        ({"ratio": 1.5}, "at most 1"),
        ({"total": 10_000}, "more than the 840"),
        ({"total": -1}, "at least 1"),
        ({"ratio": 0.1, "total": 3}, "exclude"),
        ({"sources": {"vqa2": 3}}, "did you mean 'vqav2'"),
        ({"sources": {"gqa": 49}}, "more than its 48"),
        ({"sources": {"gqa": 1.5}}, "neither a count nor a share"),
        ({"where": "num_rounds >"}, "where"),
        ({"where": "num_rounds > 1000"}, "keeps no sample"),
    ],
)
def test_impossible_selections_are_told(
    mixture: Path, tmp_path: Path, selection: dict[str, object], message: str
) -> None:
    with pytest.raises(VlmixError, match=message):
        subset(mixture, tmp_path / "x", **selection)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", ["gqa", "gqa=", "=3", "gqa=many", "gqa=1.5x"])
def test_amounts_are_parsed_strictly(text: str) -> None:
    with pytest.raises(VlmixError, match="NAME=1000"):
        parse_amounts([text])


def test_materialized_shards_hold_the_same_samples(mixture: Path, tmp_path: Path) -> None:
    subset(mixture, tmp_path / "view", ratio=0.3)
    subset(tmp_path / "view", tmp_path / "one", total=200, materialize=True)
    subset(mixture, tmp_path / "two", total=200, materialize=True, workers=2)
    assert not verify(tmp_path / "one").problems and not verify(tmp_path / "two").problems
    assert {k: v for k, v in hashes(tmp_path / "one").items() if "train" in k or "samples" in k} == {
        k: v for k, v in hashes(tmp_path / "two").items() if "train" in k or "samples" in k
    }
    source, copy = open_mixture(mixture), open_mixture(tmp_path / "two")
    assert copy.manifest.kind == "mixture" and len(copy.manifest.shards) == 2
    for sample in copy:
        old = source[source.index_of(sample.id)]
        assert (sample.conversations, sample.jpeg) == (old.conversations, old.jpeg)
    both = pl.read_parquet(tmp_path / "two/samples.parquet").join(pl.read_parquet(mixture / "samples.parquet"), on="id")
    assert both["boxes"].equals(both["boxes_right"], check_names=False)


def test_a_view_whose_root_is_gone_or_new_says_so(mixture: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(mixture, root)
    subset(root, tmp_path / "view", ratio=0.1)
    manifest = root / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"seed"', '"seed" '))
    with pytest.raises(VlmixError, match="built anew since"):
        open_mixture(tmp_path / "view")
    shutil.rmtree(root)
    with pytest.raises(VlmixError, match="is gone"):
        open_mixture(tmp_path / "view")


def test_a_view_behind_a_link_finds_its_root(mixture: Path, tmp_path: Path) -> None:
    subset(mixture, tmp_path / "deep/down/view", ratio=0.1)
    (tmp_path / "link").symlink_to(tmp_path / "deep/down/view")
    assert len(open_mixture(tmp_path / "link")[3:5]) == 2 and not verify(tmp_path / "link").problems


def test_root_and_view_may_move_together(mixture: Path, tmp_path: Path) -> None:
    shutil.copytree(mixture, tmp_path / "here/root")
    subset(tmp_path / "here/root", tmp_path / "here/view", ratio=0.1)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert not verify(tmp_path / "there/view").problems


def test_only_views_are_overwritten(mixture: Path, tmp_path: Path) -> None:
    out = tmp_path / "view"
    opened = open_mixture(mixture)
    opened.subset(ratio=0.5).save(out)
    opened.subset(ratio="10%").save(out, overwrite=True)
    assert len(open_mixture(out)) == 84
    with pytest.raises(VlmixError, match="exists already"):
        opened.save(out)
    copy = tmp_path / "copy"
    subset(mixture, copy, ratio=0.01, materialize=True)
    (tmp_path / "notes").mkdir()
    (out / "mine.txt").write_text("keep")
    for kept in (copy, tmp_path / "notes", out):
        before = hashes(kept)
        with pytest.raises(VlmixError, match="only views are replaced"):
            opened.save(kept, overwrite=True)
        assert hashes(kept) == before and kept.exists()


@pytest.mark.parametrize(
    ("selection", "cause"),
    [
        ({"ratio": 0.0001}, "ratio 0.0001 of 840 is less than one; raise it"),
        ({"where": "num_words > 99999"}, "none matches `where` 'num_words > 99999'"),
        ({"where": "num_words > 99999", "ratio": 0.5}, "none matches `where`"),
    ],
)
def test_an_empty_selection_names_its_cause(mixture: Path, selection: dict[str, Any], cause: str) -> None:
    with pytest.raises(VlmixError, match=re.escape(cause)):
        open_mixture(mixture).subset(**selection)


def test_a_view_whose_replacement_fails_is_kept(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "view"
    part = open_mixture(mixture).subset(ratio=0.5)
    part.save(out)
    before = hashes(out)
    with monkeypatch.context() as patch:
        patch.setattr("vlmix.mixture.dataset.view.finalize", lambda *_: (_ for _ in ()).throw(VlmixError("disk full")))
        with pytest.raises(VlmixError, match="disk full"):
            part.subset(ratio=0.5).save(out, overwrite=True)
    assert hashes(out) == before
    part.subset(ratio=0.5).save(out, overwrite=True)
    assert len(open_mixture(out)) == 210 and [path.name for path in tmp_path.iterdir()] == ["view"]


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.35%", 0.0035), ("7 %", 0.07), ("0.1", 0.1), ("100%", 1.0)]
)
def test_a_percentage_is_the_share_that_it_says(text: str, share: float) -> None:
    """0.35 / 100 is 0.0034999999999999996, which is 3 of 1,000 and not 4."""
    assert parse_ratio(text) == share == parse_amounts([f"gqa={text}"])["gqa"]
    for wrong in ("", "%", "ten", "1e%", "0.1%%"):
        with pytest.raises(VlmixError, match=r"write 0\.1 or 10%"):
            parse_ratio(wrong)
