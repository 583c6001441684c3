import csv
import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmix.mixture.selection.kmeans as clusters_module
from tests.helpers import dump, vlmix_here
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.llava_row import row_sha256
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.export import llava_json
from vlmix.mixture.keyed import hash_order, keyed_order, ranked
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.embeddings import WIDEST, read_embeddings
from vlmix.mixture.selection.kmeans import cluster_count, directions, spherical_kmeans
from vlmix.mixture.selection.rankings import Offer, Report, by_clusters, by_lengths, image_codes
from vlmix.mixture.selection.score_file import read_listing
from vlmix.mixture.selection.subset import Selection, kept_rows, select, subsample

SAMPLE = "llava_json/llava_v1_5_mix_sample.json"


def ids(part: Mixture) -> list[str]:
    return part.column("id").to_pylist()


def selected(mixture: Path | Mixture, **selection: Any) -> tuple[list[str], Report]:
    opened = mixture if isinstance(mixture, Mixture) else open_mixture(mixture)
    result = select(opened, Selection(**{k: str(v) if isinstance(v, Path) else v for k, v in selection.items()}))
    assert result.report is not None
    return ids(result.mixture), result.report


def scores_of(names: list[str], digits: int = 3) -> dict[str, float]:
    """Some score for each id, the same in every run, with ties where `digits` is small."""
    return {name: round(int(hashlib.md5(name.encode()).hexdigest()[:8], 16) / 2**32, digits) for name in names}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the form that the ending says."""
    match path.suffix:
        case ".parquet":
            pl.DataFrame(rows).write_parquet(path)
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
        case ".json":
            dump(path, rows)
        case ".txt":
            path.write_text("\r\n".join(row["id"] for row in rows) + "\n\n")
    return path


# Files of ids and scores


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".json", ".txt"])
def test_a_list_of_ids_keeps_exactly_those(mixture: Path, tmp_path: Path, suffix: str) -> None:
    wanted = ids(open_mixture(mixture))[3::7]
    file = write_rows(tmp_path / f"list{suffix}", [{"id": id} for id in reversed(wanted)])
    kept, report = selected(mixture, by=file)
    assert kept == wanted, "in the order of the mixture"
    assert (report.by, report.rows, report.matched_by, report.kept) == (file.name, 120, {"id": 120}, 120)
    assert report.unmatched == report.duplicates == report.ambiguous == report.unscored == 0
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_json_list_of_bare_ids_is_one_too(mixture: Path, tmp_path: Path) -> None:
    wanted = ids(open_mixture(mixture))[:9]
    assert selected(mixture, by=dump(tmp_path / "a.json", wanted))[0] == wanted


def test_ratios_totals_and_quotas_are_of_what_a_list_names(mixture: Path, tmp_path: Path) -> None:
    named = [id for id in ids(open_mixture(mixture)) if id.startswith(("gqa/", "okvqa/"))]
    file = write_rows(tmp_path / "list.txt", [{"id": id} for id in named])
    half, _ = selected(mixture, by=file, ratio=0.5)
    assert len(half) == 56 and set(half) < set(named)
    assert set(selected(mixture, by=file, total=20)[0]) < set(half)
    assert Counter(id.split("/")[0] for id in selected(mixture, by=file, sources={"gqa": 5})[0]) == {
        "gqa": 5,
        "okvqa": 64,
    }
    with pytest.raises(VlmixError, match="more than the 112"):
        selected(mixture, by=file, total=113)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".json"])
@pytest.mark.parametrize("ascending", [False, True])
def test_scores_take_the_best_of_every_source(mixture: Path, tmp_path: Path, suffix: str, ascending: bool) -> None:
    whole = open_mixture(mixture)
    scores = scores_of(ids(whole), digits=1)
    rows = [{"id": id, "score": score} for id, score in scores.items()]
    kept, report = selected(whole, by=write_rows(tmp_path / f"s{suffix}", rows), ratio=0.2, ascending=ascending)
    assert len(kept) == 168 and report.matched_by == {"id": 840}
    by_rank = [ids(whole)[i] for i in keyed_order(ids(whole), 0)]
    order = sorted(by_rank, key=lambda id: scores[id] if ascending else -scores[id])  # stable: ties by rank
    random = Counter(id.split("/")[0] for id in ids(whole.subset(ratio=0.2)))
    for source, count in Counter(id.split("/")[0] for id in kept).items():
        mine = [id for id in order if id.startswith(source + "/")]
        assert {id for id in kept if id.startswith(source + "/")} == set(mine[:count])
        assert count == random[source], "scores change who is kept, not how many of a source"


def test_scores_without_strata_take_the_best_of_all(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    scores = scores_of(ids(whole), digits=6)
    file = write_rows(tmp_path / "s.csv", [{"id": id, "score": score} for id, score in scores.items()])
    kept, _ = selected(whole, by=file, total=50, stratify=False)
    assert set(kept) == set(sorted(scores, key=scores.__getitem__)[-50:])


def test_equal_scores_are_a_random_draw(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    file = write_rows(tmp_path / "s.parquet", [{"id": id, "score": 1.5} for id in ids(whole)])
    for seed in (0, 4):
        kept, report = selected(whole, by=file, ratio=0.3, seed=seed)
        assert kept == ids(whole.subset(ratio=0.3, seed=seed)) and report.random_overlap == 1


def test_the_overlap_is_with_a_random_draw_of_the_same_size(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    file = write_rows(tmp_path / "s.parquet", [{"id": k, "score": v} for k, v in scores_of(ids(whole)).items()])
    for selection in (
        {"ratio": 0.25},
        {"threshold": 0.6},
        {"sources": {"gqa": 4, "okvqa": 0.5}, "where": "num_words < 60"},
    ):
        kept, report = selected(whole, by=file, **selection)
        same = {k: v for k, v in selection.items() if k in ("sources", "where")}
        random = ids(whole.subset(**same, total=len(kept)))
        assert report.kept == len(kept) and report.random_overlap == round(len({*kept} & {*random}) / len(kept), 4) < 1


def test_samples_without_a_score_come_last(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    some = ids(whole)[: len(whole) // 2]
    file = write_rows(tmp_path / "s.jsonl", [{"id": id, "score": -1e300} for id in some])
    few, report = selected(whole, by=file, total=100, stratify=False)
    assert set(few) <= set(some) and (report.unscored, report.unscored_kept) == (420, 0)
    most, report = selected(whole, by=file, total=500, stratify=False)
    assert set(some) < set(most) and report.unscored_kept == 80
    rest = [id for id in ids(whole) if id not in set(some)]
    assert set(most) - set(some) == {rest[i] for i in keyed_order(rest, 0)[:80]}


def test_thresholds_keep_scores_from_there_on(mixture: Path, tmp_path: Path) -> None:
    scores = scores_of(ids(open_mixture(mixture))[::2], digits=1)
    file = write_rows(tmp_path / "s.parquet", [{"id": id, "score": score} for id, score in scores.items()])
    assert set(selected(mixture, by=file, threshold=0.7)[0]) == {id for id, score in scores.items() if score >= 0.7}
    low = selected(mixture, by=file, threshold=0.7, ascending=True)[0]
    assert set(low) == {id for id, score in scores.items() if score <= 0.7}
    half, _ = selected(mixture, by=file, threshold=0.5, ratio=0.5)
    assert set(half) < {id for id, score in scores.items() if score >= 0.5}
    with pytest.raises(VlmixError, match="loosen the threshold"):
        selected(mixture, by=file, threshold=2.0)


def test_where_and_a_list_both_hold(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    file = write_rows(tmp_path / "l.txt", [{"id": id} for id in ids(whole)[::2]])
    kept, report = selected(whole, by=file, where="source = 'gqa'")
    assert kept == [id for id in ids(whole)[::2] if id.startswith("gqa/")]
    assert report.unmatched == 0, "a row that `where` leaves out is matched all the same"


def test_doubled_and_missed_rows_are_told(mixture: Path, tmp_path: Path) -> None:
    first, second = ids(open_mixture(mixture))[:2]
    lost = [f"gqa/{i}?" for i in range(7)]
    kept, report = selected(mixture, by=dump(tmp_path / "l.json", [first, *lost, first, second, first]), total=2)
    assert kept == [first, second]
    assert (report.rows, report.duplicates, report.unmatched, report.unmatched_first) == (11, 2, 7, lost[:5])


def test_the_manifest_tells_of_the_selection_without_a_path(mixture: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "list.txt", [{"id": id} for id in [*ids(open_mixture(mixture))[:8], "gone"]])
    manifest = subsample(mixture, tmp_path / "view", Selection(by=str(file)))
    entry = manifest.selections[0]
    assert entry["by"] == "list.txt" and entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (entry["rows"], entry["matched_by"], entry["unmatched"], entry["kept"]) == (9, {"id": 8}, 1, 8)
    texts = [(tmp_path / "view" / name).read_text() for name in ("manifest.json", "README.md")]
    assert not any(str(tmp_path) in text or "gone" in text for text in texts)
    plain = subsample(mixture, tmp_path / "random", Selection(ratio=0.1)).selections[0]
    assert set(plain) == {"ratio", "total", "sources", "where", "stratify", "seed", "of"}


def test_the_command_and_the_method_agree(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    scores = scores_of(ids(whole)[:700])
    file = write_rows(tmp_path / "s.csv", [{"id": k, "score": v} for k, v in [*scores.items(), ("gone", 1)]])
    command = "subsample", mixture, "--by", file, "--ratio", "0.1", "--ascending", "--seed", 3
    shown = vlmix_here(*command, "--out", tmp_path / "a")
    assert shown.returncode == 0 and "701 rows, matched 700 by id" in shown.stdout, shown.stderr
    assert "1 rows without a matching sample: gone" in shown.stdout and "140 samples without a score" in shown.stdout
    report = json.loads(vlmix_here(*command, "--out", tmp_path / "b", "--json").stdout)["report"]
    assert report["unmatched_first"] == ["gone"] and report["kept"] == 84
    part = whole.subset(by=file, ratio=0.1, ascending=True, seed=3)
    assert ids(part) == ids(open_mixture(tmp_path / "a")) == ids(open_mixture(tmp_path / "b"))


# Rows of LLaVA's JSON


@pytest.fixture(scope="module")
def llava(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A mixture of a JSON in LLaVA's form with doubled rows and odd ids, and its rows. Read only."""
    folder = tmp_path_factory.mktemp("llava")
    rows = json.loads((raw / SAMPLE).read_text())
    rows += [rows[0], rows[0], {**rows[1], "id": 7}]
    rows.append(
        {"id": "cut", "conversations": [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "a\ud83d"}]}
    )
    path = dump(folder / "rows.json", rows)
    recipe = {"name": "x", "order": "natural", "sources": {"mine": {"builder": "llava_json", "path": str(path)}}}
    build(parse(recipe, known_sources()), known_sources(), raw, folder / "mixture", annotations_only=True)
    return folder / "mixture", rows


def one_liner(row: dict[str, Any]) -> str:
    """As docs/selection.md has it."""
    said = [x for turn in row["conversations"] for x in (turn["from"], turn["value"])]
    text = json.dumps([row.get("image") or "", *said], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def numbers(kept: list[str], mixture: Path) -> list[int]:
    """The places of samples in the file that the mixture was made of."""
    frame = pl.read_parquet(mixture / "samples.parquet").filter(pl.col("id").is_in(kept))
    return sorted(frame["natural_index"].to_list())


def test_the_content_hash_is_pinned() -> None:
    """A change here orphans every selection that was published by hash."""
    row = {
        "id": 3,
        "image": "coco/1.jpg",
        "conversations": [{"from": "human", "value": "<image>\nä?"}, {"from": "gpt", "value": '"'}],
    }
    assert row_sha256("coco/1.jpg", ["<image>\nä?", '"']) == one_liner(row)
    assert one_liner(row) == "1d0356f7fae08f4095e33906aa5314875fbee01b0a739d9071e656ee28b74d29"


@given(st.text(), st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_content_hashes_are_those_of_the_standard_library(image: str, turns: list[tuple[str, str]]) -> None:
    row = {"image": image, "conversations": [{"from": role, "value": value} for role, value in turns]}
    assert row_sha256(image, [value for _, value in turns], [role for role, _ in turns]) == one_liner(row)


def test_rows_with_a_list_of_one_image_are_the_same_rows(llava: tuple[Path, list[Any]], tmp_path: Path) -> None:
    mixture, rows = llava
    part = rows[2:46:3]
    listed = [{"images": [row["image"]] if row.get("image") else [], **row} for row in part]
    listed = [{key: value for key, value in row.items() if key != "image"} for row in listed]
    assert any(row["images"] for row in listed)
    turns = [[{k: turn[k] for k in ("from", "value")} for turn in row["conversations"]] for row in part]
    frame = pl.DataFrame({"images": [row["images"] for row in listed], "conversations": turns})
    frame.write_parquet(tmp_path / "part.parquet")
    for file in (dump(tmp_path / "part.json", listed), tmp_path / "part.parquet"):
        kept, report = selected(mixture, by=file)
        assert numbers(kept, mixture) == list(range(2, 46, 3)) and report.matched_by == {"row_sha256": len(part)}


@pytest.mark.parametrize("form", [".json", ".jsonl", ".parquet", "hash.csv"])
def test_llava_rows_are_matched_by_what_they_say(llava: tuple[Path, list[Any]], tmp_path: Path, form: str) -> None:
    mixture, rows = llava
    part = rows[2:46:3]
    file = tmp_path / f"part{form}"
    if form == "hash.csv":
        write_rows(file, [{"row_sha256": one_liner(row).upper(), "score": 1} for row in part])
    elif form == ".parquet":
        turns = [[{k: turn[k] for k in ("from", "value")} for turn in row["conversations"]] for row in part]
        pl.DataFrame({"image": [row.get("image") for row in part], "conversations": turns}).write_parquet(file)
    else:
        write_rows(file, [{**row, "unique_idx": number} for number, row in enumerate(part)])
    kept, report = selected(mixture, by=file, threshold=1.0 if form == "hash.csv" else None)
    assert numbers(kept, mixture) == list(range(2, 46, 3)) and report.matched_by == {"row_sha256": len(part)}
    assert report.unmatched == report.ambiguous == report.duplicates == 0


def test_rows_that_an_export_wrote_come_back(mixture: Path, tmp_path: Path) -> None:
    llava_json(mixture, tmp_path / "all.json")
    rows = json.loads((tmp_path / "all.json").read_text())
    kept, report = selected(mixture, by=dump(tmp_path / "some.json", rows[::3]))
    assert len(kept) == 280 and report.matched_by == {"row_sha256": 280}
    subsample(mixture, tmp_path / "view", Selection(by=str(tmp_path / "some.json")))
    llava_json(tmp_path / "view", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert sorted(map(one_liner, again)) == sorted(map(one_liner, rows[::3])), "some samples say the same"


def test_equal_rows_are_taken_as_often_as_they_are_named(llava: tuple[Path, list[Any]], tmp_path: Path) -> None:
    mixture, rows = llava
    same = {0, 46, 47}
    for count in (1, 2, 3, 4):
        kept, report = selected(mixture, by=dump(tmp_path / f"{count}.json", [rows[0]] * count))
        assert len(kept) == min(count, 3) and set(numbers(kept, mixture)) <= same
        assert report.duplicates == max(count - 3, 0) and report.ambiguous == 0, "any of them is as good"


def test_a_row_cut_inside_an_emoji_is_read_as_the_build_did(llava: tuple[Path, list[Any]], tmp_path: Path) -> None:
    mixture, rows = llava
    for name in ("a.json", "a.jsonl"):
        kept, _ = selected(mixture, by=write_rows(tmp_path / name, [rows[5], rows[-1]]))
        assert numbers(kept, mixture) == [5, len(rows) - 1]


def test_rows_that_cannot_be_samples_are_missed_and_no_error(llava: tuple[Path, list[Any]], tmp_path: Path) -> None:
    odd = [{"id": "x", "conversations": [{"from": "human", "value": None}]}, {"id": "y", "conversations": []}]
    _, report = selected(llava[0], by=dump(tmp_path / "a.json", [llava[1][0], *odd]))
    assert (report.unmatched, report.unmatched_first, report.matched) == (2, ["x", "y"], 1)


def test_llavas_ids_take_as_many_as_rows_and_tell_what_is_open(llava: tuple[Path, list[Any]], tmp_path: Path) -> None:
    mixture, rows = llava
    held = Counter(str(row["id"]) for row in rows)
    shared = next(id for id, count in held.items() if count == 3)  # the doubled row
    alone = [row for row in rows if held[str(row["id"])] == 1][:5]
    kept, report = selected(mixture, by=dump(tmp_path / "a.json", [{"id": row["id"]} for row in alone] + [shared]))
    assert len(kept) == 6 and (report.ambiguous, report.ambiguous_first) == (1, [shared])
    assert report.matched_by == {"llava_id": 6}
    assert {rows.index(row) for row in alone} < set(numbers(kept, mixture))
    _, report = selected(mixture, by=dump(tmp_path / "b.json", [shared] * 3))
    assert report.ambiguous == 0, "three rows, three samples: nothing is open"
    scored = [{"id": shared, "score": score} for score in (1, 2, 3)]
    assert selected(mixture, by=dump(tmp_path / "c.json", scored), threshold=2)[1].ambiguous == 3


def test_images_tell_rows_of_one_id_apart(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    images = whole.column("image").to_pylist()
    at = next(i for i, id in enumerate(ids(whole)) if id.startswith("vg/"))
    other = {"id": ids(whole)[at].partition("/")[2], "image": "elsewhere.jpg"}
    kept, report = selected(whole, by=dump(tmp_path / "a.json", [{**other, "image": images[at]}, other]))
    assert kept == [ids(whole)[at]] and report.unmatched == 1


def test_a_file_that_names_nothing_shows_both_sides(mixture: Path, tmp_path: Path) -> None:
    first = ids(open_mixture(mixture))[0]
    with pytest.raises(VlmixError, match=r"none of its 2 rows.*id 'x'.*LLaVA's id") as caught:
        selected(mixture, by=dump(tmp_path / "a.json", ["x", "y"]))
    assert first in str(caught.value)
    with pytest.raises(VlmixError, match=r"row_sha256 'abc'.*row_sha256 '[0-9a-f]{64}'.*prompt style"):
        selected(mixture, by=dump(tmp_path / "b.json", [{"row_sha256": "abc"}]))


def test_row_numbers_are_recognised(llava: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """The release files of ICONS and COINCIDE hold numbers of rows; a few of them are ids by chance."""
    file = write_rows(tmp_path / "train_indices.txt", [{"id": str(number)} for number in range(5, 30)])
    with pytest.raises(VlmixError, match="row numbers of a JSON file.*vlmix docs selection"):
        selected(llava[0], by=file)
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]
    foreign = [{"id": number, "conversations": turns} for number in range(5)]
    _, report = selected(llava[0], by=dump(tmp_path / "rows.json", [llava[1][3], *foreign]))
    assert report.unmatched == 5, "whole rows may have such ids"
    hashes = [{"row_sha256": row_sha256(str(number), [])} for number in range(5)]
    assert selected(llava[0], by=dump(tmp_path / "h.json", [llava[1][3], *hashes]))[1].unmatched == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.npy", b"", "a selection is a .parquet, .csv"),
        ("a.json", b"", "no row in it"),
        ("a.json", b"[]", "no row in it"),
        ("a.txt", b"\n \n", "no row in it"),
        ("a.csv", b"", "no row in it"),
        ("a.csv", b"id,score\n", "no row in it"),
        ("a.txt", b"gqa/\xff\xfe", "not UTF-8 at byte 4"),
        ("a.json", b'{"id": 1}', "holds no list"),
        ("a.json", b'["a", ', "is damaged"),
        ("a.json", b'["a", [1]]', "row 2: Expected"),
        ("a.json", b'[{"id": "a"}, {"identity": "b"}]', "row 2 has none of id, row_sha256, conversations"),
        ("a.json", b'[{"id": 1.5}]', "id 1.5 is neither"),
        ("a.json", b'[{"id": "a", "score": "high"}]', "score 'high' is not a number"),
        ("a.json", b'[{"id": "a", "score": true}]', "score True is not a number"),
        ("a.json", b'[{"id": "a", "score": 1}, {"id": "b", "score": NaN}]', "row 2 has the score nan"),
        ("a.json", b'[{"id": "a", "score": 1}, {"id": "b"}]', "row 2 has no score, others have"),
        ("a.json", b'[{"id": "a", "score": 1e999}]', "row 1: Number out of range"),
        ("a.jsonl", b'{"id": "a"}\n{"id": "b', "row 2: .*is damaged"),
        ("a.csv", b"name,score\na,1\n", "no column names the samples.*it has name, score"),
        ("a.csv", b"id,score\na,1\nb,\n", "row 2 has no score"),
        ("a.csv", b"id,score\na,1\nb,nan\n", "row 2 has the score nan"),
        ("a.csv", b"id,score\na,1\nb,-inf\n", "row 2 has the score -inf"),
        ("a.csv", b"id,score\na,1\nb,best\n", "row 2: score 'best' is not a number"),
        ("a.csv", b"id,score\na,1,2,3\n", "damaged or is no CSV"),
        ("a.parquet", b"PAR1 and more", "the file is damaged"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(VlmixError, match=message) as caught:
        read_listing(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["a"]}, "no column names the samples"),
        ({"id": [1.0, 2.0]}, "column id is Float64"),
        ({"id": ["a"], "score": ["0.5"]}, "scores are not numbers"),
        ({"id": ["a", "b"], "score": [0.5, None]}, "row 2 has no score"),
        ({"id": ["a", "b"], "score": [0.5, float("nan")]}, "row 2 has the score nan"),
        ({"id": ["a", None]}, "row 2 has none of"),
        ({"conversations": ["hello"]}, "no LLaVA row"),
    ],
)
def test_bad_parquet_columns_are_told(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(VlmixError, match=message):
        read_listing(tmp_path / "a.parquet")


def test_missing_files_and_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    for name, message in (("a.json", "no such file"), ("a.parquet", "no such file"), ("folder.json", "directory")):
        with pytest.raises(VlmixError, match=message):
            read_listing(tmp_path / name)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"by": "SCORES"}, "say how much to keep"),
        ({"by": "SCORES", "where": "num_words > 1"}, "say how much to keep"),
        ({"by": "lengths"}, "say how much to keep"),
        ({"by": "IDS", "ascending": True}, "no `score`"),
        ({"by": "IDS", "threshold": 1.0}, "no `score`"),
        ({"by": "lengths", "threshold": 1.0, "ratio": 0.1}, "go with a file of scores"),
        ({"ascending": True, "ratio": 0.1}, "go with a file of scores"),
        ({"by": "clusters", "ratio": 0.1}, "name an embedding file"),
        ({"by": "lengths", "embeddings": "e.parquet", "ratio": 0.1}, "go with `by` clusters alone"),
        ({"by": "clusters", "embeddings": "e.parquet", "clusters": 0, "ratio": 0.1}, "0 clusters: at least 1"),
        ({"by": "lengths", "where": "num_words > 99999", "ratio": 0.1}, "none matches `where`"),
        ({"by": "SCORES", "where": "num_words > 99999", "ratio": 0.1}, "none matches `where`"),
        ({"by": "length", "ratio": 0.1}, "one of the words lengths, clusters"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    mixture: Path, tmp_path: Path, selection: dict[str, Any], message: str
) -> None:
    names = ids(open_mixture(mixture))
    files = {
        "SCORES": write_rows(tmp_path / "s.csv", [{"id": id, "score": 1} for id in names]),
        "IDS": write_rows(tmp_path / "i.csv", [{"id": id} for id in names]),
    }
    by = selection.get("by")
    with pytest.raises(VlmixError, match=message):
        selected(mixture, **{**selection, "by": files.get(by, by)})


def test_two_scores_for_one_id_are_an_error(mixture: Path, tmp_path: Path) -> None:
    first = ids(open_mixture(mixture))[0]
    rows = [{"id": first, "score": score} for score in (0.25, 0.5)]
    with pytest.raises(VlmixError, match=f"{first} has the scores 0.25 and 0.5"):
        selected(mixture, by=write_rows(tmp_path / "s.jsonl", rows), ratio=0.5)


# One way to choose


def frame_of(sizes: list[int], **columns: Any) -> pl.DataFrame:
    """An index of sources s0, s1, … of these sizes."""
    names = [(f"s{s}", f"s{s}/{i}") for s, size in enumerate(sizes) for i in range(size)]
    base = {"source": [s for s, _ in names], "id": [id for _, id in names]}
    extra = {"image": [f"{id}.jpg" for _, id in names], "num_words": [10] * len(names)}
    return pl.DataFrame({**base, **extra, **columns})


def offer_of(frame: pl.DataFrame, seed: int) -> Offer:
    names = frame["source"].unique(maintain_order=True).to_list()
    codes = np.array([names.index(source) for source in frame["source"]], dtype=np.int32)
    return Offer(ranked(frame["id"].to_arrow(), seed), codes, names)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=4), st.integers(0, 9), st.booleans(), st.data())
def test_any_priorities_nest_and_the_highest_win(
    sizes: list[int], seed: int, stratify: bool, data: st.DataObject
) -> None:
    frame = frame_of(sizes)
    levels = st.lists(st.sampled_from([-np.inf, -1.5, 0.0, 2.0]), min_size=len(frame), max_size=len(frame))
    priority = np.array(data.draw(levels))
    large = data.draw(st.integers(1, len(frame)))
    small = data.draw(st.integers(1, large))
    inner, outer = (
        kept_rows(offer_of(frame, seed), Selection(total=n, stratify=stratify), priority) for n in (small, large)
    )
    assert (len(inner), len(outer)) == (small, large) and set(inner.tolist()) <= set(outer.tolist())
    rank = hash_order(frame["id"].to_list(), seed).tolist()
    for source in set(frame["source"]) if stratify else {None}:
        mine = [i for i in range(len(frame)) if source in (None, frame["source"][i])]
        order = sorted(mine, key=lambda i: (-priority[i], rank[i]))
        count = sum(i in set(outer.tolist()) for i in mine)
        assert {i for i in outer.tolist() if i in set(mine)} == set(order[:count])


@pytest.fixture(scope="module")
def embeddings(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of all samples with an image. Read only."""
    whole = open_mixture(mixture)
    names = [id for id, image in zip(ids(whole), whole.column("image").to_pylist()) if image]
    rows = np.random.default_rng(0).normal(size=(len(names), 12))
    return write_embeddings(tmp_path_factory.mktemp("embeddings") / "e.parquet", names, rows)


def write_embeddings(path: Path, names: list[str], rows: Any, kind: pa.DataType | None = None) -> Path:
    kind = kind or pa.list_(pa.float32(), len(rows[0]))
    pq.write_table(pa.table({"id": names, "embedding": pa.array([list(row) for row in rows], kind)}), path)
    return path


@pytest.mark.parametrize("by", ["lengths", "clusters", "scores"])
@pytest.mark.parametrize("stratify", [True, False])
def test_all_rankings_nest_on_a_mixture(
    mixture: Path, embeddings: Path, tmp_path: Path, by: str, stratify: bool
) -> None:
    whole = open_mixture(mixture)
    rows = [{"id": id, "score": score} for id, score in scores_of(ids(whole)[::2], digits=1).items()]
    how: dict[str, dict[str, Any]] = {
        "lengths": {"by": "lengths"},
        "clusters": {"by": "clusters", "embeddings": embeddings},
        "scores": {"by": write_rows(tmp_path / "s.csv", rows)},
    }
    parts = [selected(whole, **how[by], ratio=ratio, stratify=stratify)[0] for ratio in (0.1, 0.3, 0.6, 1.0)]
    assert [len(part) for part in parts] == [84, 252, 504, 840]
    assert all(set(small) < set(large) for small, large in pairwise(parts))
    assert parts[0] == selected(whole, **how[by], ratio=0.1, stratify=stratify)[0]
    other = selected(whole, **how[by], ratio=0.1, stratify=stratify, seed=5)[0]
    assert other != parts[0] and len(other) == 84


# Lengths


def text_codes(count: int, **same: int) -> np.ndarray:
    """Different texts but for positions `p3=1`: 3 says what 1 says."""
    codes = np.arange(count, dtype=np.uint64)
    for position, as_ in same.items():
        codes[int(position[1:])] = as_
    return codes


def lengths_of(
    frame: pl.DataFrame, texts: np.ndarray, seed: int, *, stratify: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    images = image_codes([pa.chunked_array([frame["image"].to_arrow()])])
    return by_lengths(offer_of(frame, seed), images, frame["num_words"].to_numpy(), texts, seed, stratify=stratify)


def test_repeated_texts_and_images_come_last() -> None:
    images = [f"{i}.jpg" for i in range(10)]
    images[7] = images[8] = images[2]
    frame = frame_of([10], image=images)
    priority, rounds = lengths_of(frame, text_codes(10, p5=4), seed=0)
    order = np.argsort(-priority)
    assert sorted(rounds.tolist()) == [0] * 7 + [1, 1, 2]
    assert rounds[order].tolist() == sorted(rounds.tolist())
    assert sorted(rounds[[2, 7, 8]].tolist()) == [0, 1, 2] and sorted(rounds[[4, 5]].tolist()) == [0, 1]
    rank = np.argsort(keyed_order(frame["id"].to_list(), 0))
    assert (rounds[4] == 0) == (rank[4] < rank[5]), "the first in hash order is the one that is kept"


def test_texts_of_other_sources_and_samples_without_image_repeat_nothing() -> None:
    frame = frame_of([3, 3], image=[""] * 6)
    assert lengths_of(frame, text_codes(6, p3=0), seed=0)[1].tolist() == [0] * 6
    assert lengths_of(frame, text_codes(6, p3=0), seed=0, stratify=False)[1].sum() == 1
    assert lengths_of(frame, text_codes(6, p1=0), seed=0)[1].sum() == 1


def test_texts_are_compared_without_case_space_and_punctuation(raw: Path, tmp_path: Path) -> None:
    def row(number: int, question: str, answer: str) -> dict[str, Any]:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"id": str(number), "image": f"coco/train2017/{number:012d}.jpg", "conversations": turns}

    same = [("<image>\nWhat is it?", "A dog."), ("What is  it\n<image>", "a DOG"), ("<image>\n«What is it»", "A dog!")]
    other = [("<image>\nWhat is it?", "A dog 2"), ("<image>\nA dog", "What is it?"), ("<image>\nWhat is", "it a dog")]
    rows = [row(i, *texts) for i, texts in enumerate([*same[:2], *other, same[2]])]
    path = dump(tmp_path / "rows.json", rows)
    shards = {"order": "natural", "samples_per_shard": 5}  # the last one lies in a row group of its own
    recipe = {"name": "x", **shards, "sources": {"mine": {"builder": "llava_json", "path": str(path)}}}
    build(parse(recipe, known_sources()), known_sources(), raw, tmp_path / "mix", annotations_only=True)
    _, report = selected(tmp_path / "mix", by="lengths", total=4)
    assert (report.repeated, report.repeated_kept) == (2, 0)
    assert selected(tmp_path / "mix", by="lengths", total=5)[1].repeated_kept == 1


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(0, 5), st.data())
def test_every_prefix_is_even_over_the_lengths(size: int, seed: int, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.integers(1, 12), min_size=size, max_size=size))
    frame = frame_of([size], num_words=words)
    priority, _ = lengths_of(frame, text_codes(size), seed)
    assert len(set(priority.tolist())) == size
    by_words = np.lexsort((np.argsort(keyed_order(frame["id"].to_list(), seed)), words))
    place = np.argsort(by_words)
    taken = data.draw(st.integers(1, size))
    prefix = place[np.argsort(-priority)[:taken]]
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    expected = taken * (end - start) / size
    assert abs(np.sum((prefix >= start) & (prefix < end)) - expected) <= 2 + np.log2(taken)


def test_half_of_a_source_is_every_other_length() -> None:
    frame = frame_of([64], num_words=list(range(64)))
    for seed in range(4):
        order = np.argsort(-lengths_of(frame, text_codes(64), seed)[0])
        for level in range(1, 6):
            prefix = np.sort(order[: 2**level])
            assert set(np.diff(prefix).tolist()) == {64 >> level}, "systematic at every power of two"
    starts = {int(np.argmax(lengths_of(frame, text_codes(64), seed)[0])) for seed in range(40)}
    assert len(starts) > 15, "the seed chooses which"


def test_lengths_depend_on_neither_row_order_nor_other_sources() -> None:
    frame = frame_of([40, 30], num_words=[i * 7 % 23 for i in range(70)])
    codes = text_codes(70, p9=3, p50=44)
    order = np.random.default_rng(0).permutation(70)
    before = dict(zip(frame["id"], lengths_of(frame, codes, 1)[0].tolist()))
    assert before == dict(zip(frame["id"][order], lengths_of(frame[order], codes[order], 1)[0].tolist()))
    alone = lengths_of(frame[:40], codes[:40], 1)[0].tolist()
    assert alone == [before[id] for id in frame["id"][:40]]


# Clusters


def test_sums_of_dot_products_are_exact_in_float32() -> None:
    """What makes the clusters the same on every machine."""
    scale, widest = clusters_module._SCALE, WIDEST
    assert (scale + widest**0.5 / 2) ** 2 < 2**24
    rng = np.random.default_rng(0)
    for rows in (rng.normal(size=(50, 768)), np.eye(9), np.ones((2, widest)), rng.exponential(size=(3, 40_000)) ** 4):
        vectors = directions(rows)
        exact = vectors.astype(np.int64) @ vectors.astype(np.int64).T
        assert np.abs(vectors.astype(np.int64)).astype(object).dot(np.abs(vectors[0]).astype(object)).max() < 2**24
        assert ((vectors.astype(np.float32) @ vectors.astype(np.float32).T).astype(np.int64) == exact).all()


@pytest.mark.parametrize("length", [1, 1e300, 1e-300])
def test_norms_do_not_overflow_or_vanish(tmp_path: Path, length: float) -> None:
    row = [3.0 * length, 4.0 * length, 0.0]
    found = read_embeddings(write_embeddings(tmp_path / "e.parquet", ["a"], [row], pa.list_(pa.float64())))
    assert [directions(rows).tolist() for rows in found.rows()] == [[[2100, 2800, 0]]]


def test_clusters_are_found_whatever_the_row_order() -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(6, 20))
    truth = rng.integers(0, 6, 900)
    rows = (centres[truth] + rng.normal(size=(900, 20)) * 0.05) * rng.uniform(0.1, 10, (900, 1))  # length is no matter
    vectors = directions(rows)
    names = [f"a/{i}" for i in range(900)]
    labels = spherical_kmeans(names, lambda: [vectors[:400], vectors[400:]], 24, seed=0)
    for cluster in np.unique(labels):
        assert len(set(truth[labels == cluster])) == 1
    order = rng.permutation(900)
    again = spherical_kmeans([names[i] for i in order], lambda: [vectors[order]], 24, seed=0)
    assert again.tolist() == labels[order].tolist()
    assert spherical_kmeans(names, lambda: [vectors], 24, seed=1).tolist() != labels.tolist()


def test_fewer_directions_than_clusters_give_fewer_clusters() -> None:
    vectors = directions(np.array([[1.0, 0], [0, 2.0], [0.5, 0], [0, 1.0]]))
    labels = spherical_kmeans(list("abcd"), lambda: [vectors], 3, seed=0)
    assert labels[0] == labels[2] != labels[1] == labels[3]


def test_cluster_counts() -> None:
    assert [cluster_count(n) for n in (1, 2, 100, 665_298, 5_000_000)] == [1, 1, 10, 816, 1024]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 5), st.data())
def test_clusters_of_a_source_are_served_by_turns(sizes: list[int], seed: int, data: st.DataObject) -> None:
    frame = frame_of([sum(sizes), 5])
    labels = np.array([c for c, size in enumerate(sizes) for _ in range(size)] + [0] * 5)
    priority = by_clusters(offer_of(frame, seed), labels)[: sum(sizes)]
    taken = data.draw(st.integers(1, sum(sizes)))
    counts = np.bincount(labels[np.argsort(-priority)[:taken]], minlength=len(sizes))
    full = max(counts)
    for count, size in zip(counts, sizes):
        assert count in (full, full - 1) or count == size, "as many of each, unless it has no more"


def test_samples_without_embedding_keep_their_share_of_the_source() -> None:
    labels = np.where(np.arange(160) % 4 == 0, -1, np.arange(160) % 10)
    offer = offer_of(frame_of([100, 60]), 0)
    for stratify in (True, False):
        priority = by_clusters(offer, labels, stratify=stratify)
        for total in (16, 40, 80):
            kept = kept_rows(offer, Selection(total=total, stratify=stratify), priority)
            assert abs((labels[kept] < 0).sum() - total / 4) <= 2


def test_text_only_samples_are_a_stratum_of_a_real_mixture(mixture: Path, embeddings: Path) -> None:
    whole = open_mixture(mixture)
    kept, report = selected(whole, by="clusters", embeddings=embeddings, ratio=0.4, clusters=9)
    texts = [id for id in kept if id.startswith("sharegpt/")]
    assert len(texts) == 14 == report.unscored_kept and report.unscored == 35
    assert texts == [id for id in ids(whole.subset(ratio=0.4)) if id.startswith("sharegpt/")], "the hash order"
    assert (report.rows, report.matched, report.unmatched, report.nonempty_clusters) == (805, 805, 0, 9)
    entry = subsample(
        mixture, embeddings.parent / "view", Selection(by="clusters", embeddings=str(embeddings), total=9)
    )
    assert (entry.selections[0]["by"], entry.selections[0]["embeddings"]) == ("clusters", "e.parquet")


def test_a_view_of_a_cluster_view_is_one_of_the_mixture(mixture: Path, embeddings: Path) -> None:
    whole = open_mixture(mixture)
    how = {"by": "clusters", "embeddings": embeddings, "stratify": False}
    images = whole.subset(where="image != ''")
    assert ids(images.subset(**how, total=300).subset(**how, total=60)) == ids(images.subset(**how, total=60))


def good(count: int = 2) -> dict[str, Any]:
    return {"id": [f"gqa/{i}" for i in range(count)], "embedding": [[1.0, 0.5]] * count}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"embedding": [[1.0]]}, "no column 'id'"),
        ({"id": ["a"]}, "no column 'embedding'"),
        ({"id": [1], "embedding": [[1.0]]}, "column id is int64"),
        ({"id": ["a"], "embedding": [1.0]}, "column embedding is double"),
        ({"id": ["a"], "embedding": [["x"]]}, "column embedding is list"),
        ({**good(), "id": ["a", "a"]}, "'a' is a duplicate"),
        ({**good(), "embedding": [[1.0, 2.0], None]}, "no id or no embedding"),
        ({**good(), "embedding": [[1.0, 2.0], [1.0]]}, "row 2 has 1 components, others have 2"),
        ({**good(), "embedding": pa.array([[], []], pa.list_(pa.float32()))}, "embeddings of 0 components"),
        ({**good(), "embedding": [[1.0, 2.0], [0.0, 0.0]]}, "row 2 is zero or not finite"),
        ({**good(), "embedding": [[1.0, 2.0], [float("nan"), 0.0]]}, "row 2 is zero or not finite"),
        ({**good(), "embedding": [[1.0, 2.0], [None, 0.0]]}, "row 2 is zero or not finite"),
    ],
)
def test_bad_embeddings_are_told(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(VlmixError, match=message):
        read_embeddings(tmp_path / "e.parquet")


def test_missing_damaged_empty_and_foreign_embeddings_are_told(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match="no such file"):
        read_embeddings(tmp_path / "e.parquet")
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    with pytest.raises(VlmixError, match="damaged or is no Parquet"):
        read_embeddings(tmp_path / "e.parquet")
    none = pa.schema({"id": pa.string(), "embedding": pa.list_(pa.float32(), 4)}).empty_table()
    pq.write_table(none, tmp_path / "e.parquet")
    with pytest.raises(VlmixError, match="no embedding in it"):
        read_embeddings(tmp_path / "e.parquet")
    write_embeddings(tmp_path / "e.parquet", ["x/1"], [[1.0]])
    with pytest.raises(VlmixError, match=r"no sample has an embedding.*'x/1'"):
        selected(mixture, by="clusters", embeddings=tmp_path / "e.parquet", ratio=0.5)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float64()), pa.large_list(pa.float32())])
def test_embeddings_are_read_in_any_list_form(tmp_path: Path, kind: pa.DataType) -> None:
    rows = [[3.0, 4.0, 0.0], [0.0, 0.0, -2.0]]
    found = read_embeddings(write_embeddings(tmp_path / "e.parquet", ["a", "b"], rows, kind))
    assert found.ids.to_pylist() == ["a", "b"] and np.concatenate([directions(r) for r in found.rows()]).tolist() == [
        [2100, 2800, 0],
        [0, 0, -3500],
    ]
    assert found.sha256 == hashlib.sha256((tmp_path / "e.parquet").read_bytes()).hexdigest()


def test_reports_record_counts_and_no_names() -> None:
    report = Report(by="a.txt", rows=3, unmatched=1, unmatched_first=["x"], kept=2, random_overlap=0.5)
    assert report.counts() == {"rows": 3, "unmatched": 1, "kept": 2, "random_overlap": 0.5}
    assert msgspec.to_builtins(report)["unmatched_first"] == ["x"]


# Scores in other columns

FORMS = [".parquet", ".csv", ".jsonl", ".json"]


@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("name", ["quality", "Score", "clip_score"])
def test_scores_of_another_name_are_chosen_and_not_taken_for_a_list(
    mixture: Path, tmp_path: Path, suffix: str, name: str
) -> None:
    """They were: a part of the list is the random subset."""
    scores = scores_of(ids(open_mixture(mixture)))
    file = write_rows(tmp_path / f"s{suffix}", [{"id": k, name: v, "note": "x"} for k, v in scores.items()])
    plain = write_rows(tmp_path / f"plain{suffix}", [{"id": k, "score": v} for k, v in scores.items()])
    with pytest.raises(VlmixError, match=rf"no column is called score.*id, {name}, note.*--column {name}") as caught:
        selected(mixture, by=file, ratio=0.1)
    assert str(file) in str(caught.value)
    kept, report = selected(mixture, by=file, column=name, ratio=0.1)
    assert kept == selected(mixture, by=plain, ratio=0.1)[0] and not report.same_as_random
    with pytest.raises(VlmixError, match=rf"no column nothing; it has id, {name}, note"):
        selected(mixture, by=file, column="nothing", ratio=0.1)
    with pytest.raises(VlmixError, match="note .*not (a number|numbers)"):
        selected(mixture, by=file, column="note", ratio=0.1)
    with pytest.raises(VlmixError, match="column id names the samples"):
        selected(mixture, by=file, column="id", ratio=0.1)


@pytest.mark.parametrize("suffix", FORMS)
def test_of_several_numbers_all_are_named_and_any_is_chosen(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": str(n), "score": 10 - n, "a": n / 2, "b": -n} for n in range(4)]
    file = write_rows(tmp_path / f"s{suffix}", rows)
    for column, name in ((None, "score"), ("score", "score"), ("a", "a"), ("b", "b")):
        assert read_listing(file, column).rows["score"].to_list() == [row[name] for row in rows]
    file = write_rows(tmp_path / f"t{suffix}", [{k: v for k, v in row.items() if k != "score"} for row in rows])
    with pytest.raises(VlmixError, match="there are numbers in a, b "):
        read_listing(file)


@pytest.mark.parametrize("suffix", FORMS)
def test_lists_with_other_columns_are_lists(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": n, "image": f"{n}.jpg", "row_sha256": f"{n}" * 64, "subset": "val"} for n in range(4)]
    assert not read_listing(write_rows(tmp_path / f"l{suffix}", rows)).scored
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]
    if suffix != ".csv":
        rows = [{"id": n, "conversations": turns, "unique_idx": n, "width": 640} for n in range(4)]
        assert not read_listing(write_rows(tmp_path / f"r{suffix}", rows)).scored
        rows = [{**row, "gpt_score": 4} for row in rows]
        with pytest.raises(VlmixError, match="--column gpt_score"):
            read_listing(write_rows(tmp_path / f"g{suffix}", rows))


def test_one_text_among_numbers_does_not_hide_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,quality\na,0.5\nb,n/a\nc,0.25\n")
    with pytest.raises(VlmixError, match="--column quality"):
        read_listing(tmp_path / "a.csv")
    with pytest.raises(VlmixError, match="row 2: quality 'n/a' is not a number"):
        read_listing(tmp_path / "a.csv", "quality")


@pytest.mark.parametrize("by", [None, "lengths", "clusters"])
def test_a_column_goes_with_a_file(mixture: Path, by: str | None) -> None:
    with pytest.raises(VlmixError, match="column goes with a file of scores"):
        select(open_mixture(mixture), Selection(by=by, column="quality", ratio=0.1))


def test_a_selection_equal_to_the_random_one_is_reported(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    file = write_rows(tmp_path / "all.txt", [{"id": id} for id in ids(whole)])
    report = selected(whole, by=file, ratio=0.1)[1]
    assert report.same_as_random and report.listed == 840
    random_part, warning = report.notes()
    assert "a random 10 % of the 840 samples it lists" in random_part
    assert "the 84 samples equal the random selection" in warning
    assert selected(whole, by=file)[1].notes() == selected(whole, by=file, ratio=1.0)[1].notes() == []
    half = write_rows(tmp_path / "half.txt", [{"id": id} for id in ids(whole)[::2]])
    report = selected(whole, by=half, total=42)[1]
    assert not report.same_as_random and report.notes() == [
        "half.txt has no scores: kept a random 10 % of the 420 samples it lists"
    ]
    shown = vlmix_here("subsample", mixture, "--by", file, "--ratio", "0.1", "--out", tmp_path / "v", "--json")
    assert json.loads(shown.stdout)["report"]["same_as_random"] is True and "warning: by all.txt" in shown.stderr


def test_the_column_is_recorded_and_the_command_takes_it(mixture: Path, tmp_path: Path) -> None:
    whole = open_mixture(mixture)
    file = write_rows(tmp_path / "s.csv", [{"id": k, "quality": v} for k, v in scores_of(ids(whole)).items()])
    command = "subsample", mixture, "--by", file, "--ratio", "0.1", "--out", tmp_path / "v"
    assert "--column quality" in vlmix_here(*command).stderr
    assert vlmix_here(*command, "--column", "quality").returncode == 0
    view = open_mixture(tmp_path / "v")
    assert ids(view) == ids(whole.subset(by=file, column="quality", ratio=0.1))
    assert view.manifest.selections[0]["column"] == "quality"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", b'[{"id": "x", "score": ' + b"9" * 400 + b"}]", "row 1: .*(too large|out of range|number)"),
        ("a.jsonl", b'{"id": "x", "score": ' + b"9" * 400 + b"}", "row 1: .*(too large|out of range|number)"),
        ("a.json", b'[{"id": "x", "score": ' + b"9" * 5000 + b"}]", "a.json: "),
        ("a.json", b"[" * 200_000, "damaged"),
        ("a.json", b'[{"id": "x", "more": ' + b"[" * 200_000 + b"}]", "damaged"),
        ("a.jsonl", b"[" * 200_000, "row 1: Expected"),
        ("a.jsonl", b'{"id": "x", "more": ' + b"[" * 200_000, "damaged"),
        ("a.csv", b"id,score\na," + b"x" * 1_000_000 + b"\n", "row 1: score 'x+"),
        ("a.csv", b"n" * 1_000_000 + b",score\na,1\n", "no column names the samples"),
        ("a.json", b'[{"id": "a", "score": "' + b"x" * 1_000_000 + b'"}]', "row 1: score 'x+"),
    ],
)
def test_hostile_files_give_one_short_line(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(VlmixError, match=message) as caught:
        read_listing(tmp_path / name)
    said = str(caught.value).replace(str(tmp_path), "")
    assert len(said) < 1000 and "\n" not in said


def test_an_embedding_id_that_is_not_utf_8_is_reported(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], "i4").tobytes()), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"id": bad, "embedding": pa.array([[1.0]])}), tmp_path / "e.parquet")
    with pytest.raises(VlmixError, match="damaged"):
        read_embeddings(tmp_path / "e.parquet")
