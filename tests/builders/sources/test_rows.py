import base64
import itertools
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec import convert

import vlmix
from tests.builders import tables
from tests.helpers import hashes
from vlmix.builders import known_sources
from vlmix.builders.rows.known_rows import known_rows
from vlmix.builders.sources.rows import RowsOptions
from vlmix.mixture.build.build import build
from vlmix.mixture.build.extract import conversations
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.dataset.verify import verify
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.record import Conversation
from vlmix.mixture.render import render


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tables.write_all(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def built(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(own, tmp_path_factory.mktemp("built") / "mixture", tables.ENTRIES)


def made(raw: Path, out: Path, entries: dict[str, Any], workers: int = 1, **recipe: Any) -> Path:
    plain = {"name": "own", "samples_per_shard": 20, "sources": entries, **recipe}
    build(parse(plain, known_sources()), known_sources(), raw, out, workers=workers)
    return out


def read(folder: Path, path: str, **options: Any) -> tuple[list[Conversation], list[Reject]]:
    chosen = convert({"path": path, **options}, RowsOptions)
    found, _, rejects = conversations(known_sources()["rows"], chosen, folder, name="mine")
    return list(found), rejects.rows


def one(tmp_path: Path, *rows: Any, **options: Any) -> tuple[list[Conversation], list[Reject]]:
    """Rows as JSONL, read."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read(tmp_path, "rows.jsonl", **options)


def test_rows_of_every_form_and_container_become_samples(built: Path) -> None:
    opened = vlmix.open(built)
    assert opened.sources == tables.COUNTS and not opened.manifest.rejects
    assert verify(built).problems == []
    assert Counter(opened.column("num_images").to_pylist()) == Counter(
        [
            *(number % 6 for number in [*range(24), *range(9)]),
            *(int(number % 3 != 0) for number in range(12)),
            *[1, 0, 2, 3, *[1] * 6, *[1] * 6, *[2] * 6, *[1] * 5],
        ]
    )


def test_images_are_those_of_their_rows_in_order_and_unchanged(built: Path) -> None:
    opened = vlmix.open(built)
    for number in range(24):
        sample = opened[f"texts/train-{number // 12:05d}-of-00002/{number % 12}"]
        assert list(sample.jpegs) == [tables.picture(10 * number + i) for i in range(number % 6)]
        assert [turn.value for turn in sample.conversations][1] == f"It is {number}.0."
        assert sample.conversations[0].value == "<image>\n" * (number % 6) + f"What is {number}.0?"
    for number in range(6):
        sample = opened[f"webdataset/a/{number:04d}"]
        assert list(sample.jpegs) == [tables.picture(2 * number), tables.picture(2 * number + 1)]
        assert sample.conversations[0].value == f"<image>\nOr <image>, {number}?"
        choice = opened[f"choices/choices/{number}"]
        assert choice.jpeg == tables.picture(number) and choice.conversations[1].value == "ABC"[number % 3]
    transforms = {
        row["source"]: row["images"][0]["transform"] for row in opened.samples.collect().to_dicts() if row["images"]
    }
    assert transforms["qa"] == transforms["captions"] == "reencoded" and transforms["texts"] == "none"


def test_what_rows_say_of_themselves_travels(built: Path) -> None:
    frame = pl.read_parquet(built / "samples.parquet")
    types = {name: frame.schema[name] for name in ("relevance_min", "origin", "score", "data_source", "row_width")}
    assert types == {
        "relevance_min": pl.Int64, "origin": pl.String, "score": pl.Float64, "data_source": pl.String,
        "row_width": pl.Int64,
    }  # fmt: skip
    mine = frame.filter(pl.col("source") == "texts").sort("natural_index")
    assert mine["relevance_min"].to_list() == [tables.texts_row(number)["relevance_min"] for number in range(24)]
    assert mine["score"].null_count() == 24
    answers = frame.filter(pl.col("source") == "qa")["conversations"].list.get(1).struct.field("value")
    assert sorted(answers) == [f"{number:03d}" for number in range(6)], "text stays text"
    assert len(vlmix.open(built).subset(where="relevance_min >= 4")) == sum(
        1 + n % 5 >= 4 and n != 3 for n in [*range(24), *range(9)]
    )
    assert set(vlmix.open(built).subset(where="score > 1").column("source").to_pylist()) == {"webdataset"}


def test_the_bytes_do_not_depend_on_workers(own: Path, built: Path, tmp_path: Path) -> None:
    assert hashes(made(own, tmp_path / "two", tables.ENTRIES, workers=2)) == hashes(built)


def test_files_are_read_in_parts_and_make_the_same_mixture(tmp_path: Path, monkeypatch: Any) -> None:
    from vlmix.builders.sources import rows as module

    tables.write_texts(tmp_path / "docs", 60, 6)
    entries = {
        "docs": {"builder": "rows", "path": "docs", "where": "num_images < 5", "expect": 61},
        "more": {"builder": "rows", "path": "docs/train-00002*", "fields": {"image": "images"}},
    }
    cut = made(tmp_path, tmp_path / "cut", entries, workers=2)
    monkeypatch.setattr(module, "_MOST_PARTS", 1)
    assert hashes(made(tmp_path, tmp_path / "whole", entries)) == hashes(cut)
    opened = vlmix.open(cut)
    assert len(opened) == 50 + 10 and opened.manifest.rejects == {"docs": {"fewer_rows": 1}}
    for sample in opened:
        file, _, row = sample.id.rpartition("/")
        number = 10 * int(file.partition("train-")[2][:5]) + int(row)
        assert list(sample.jpegs) == [tables.picture(10 * number + i) for i in range(number % 6)]


def test_the_same_rows_in_two_parts_are_told(tmp_path: Path) -> None:
    tables.write_texts(tmp_path / "docs", 12, 3)
    same_rows(tmp_path)
    with pytest.raises(VlmixError, match=r"train-00007-of-00008\.parquet has the same rows as .*train-00000-of-00003"):
        made(tmp_path, tmp_path / "out", {"docs": {"builder": "rows", "path": "docs"}})


def test_a_killed_build_copies_nothing_twice(own: Path, built: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from vlmix.mixture.build import build as module

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_shards", killed)
        with pytest.raises(KeyboardInterrupt):
            made(own, tmp_path / "out", tables.ENTRIES)
    copies = list((tmp_path / "out.partial").rglob("*.images"))
    assert copies
    for copy in copies:
        os.utime(copy, ns=(1, 1))
    seen: set[int] = set()
    write = module._write_shards

    def watched(*args: Any) -> Any:
        seen.update(copy.stat().st_mtime_ns for copy in copies)
        return write(*args)

    monkeypatch.setattr(module, "_write_shards", watched)
    assert hashes(made(own, tmp_path / "out", tables.ENTRIES)) == hashes(built) and seen == {1}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_file_that_is_added_after_a_kill_is_read(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    from vlmix.mixture.build import build as module

    def write(number: int) -> None:
        rows = [{"question": f"{number} {i}?", "answer": "b"} for i in range(5)]
        if kind == "parquet":
            tables.write_parquet(tmp_path / f"set/{number:02d}.parquet", rows)
        else:
            (tmp_path / f"set/{number:02d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    (tmp_path / "set").mkdir()
    for number in (0, 2, 3):
        write(number)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, tmp_path / "out", {"set": {"builder": "rows", "path": "set"}})
    write(1)
    assert len(vlmix.open(made(tmp_path, tmp_path / "out", {"set": {"builder": "rows", "path": "set"}}))) == 20


def spoiled(path: Path, keep: set[int]) -> None:
    """Overwrite the images in all row groups but those to `keep`."""
    metadata = pq.ParquetFile(path).metadata
    with path.open("r+b") as file:
        for group in set(range(metadata.num_row_groups)) - keep:
            for number in range(metadata.num_columns):
                column = metadata.row_group(group).column(number)
                if column.path_in_schema.endswith(".bytes"):
                    start = column.dictionary_page_offset or column.data_page_offset
                    file.seek(start)
                    file.write(b"\xff" * column.total_compressed_size)


def test_planning_reads_no_image_and_a_build_only_row_groups_it_picks_from(tmp_path: Path) -> None:
    tables.write_texts(tmp_path / "docs", 24, 1, group=4)
    path = next((tmp_path / "docs").iterdir())
    entries = {"docs": {"builder": "rows", "path": "docs", "take": 2, "where": "num_images > 0"}}
    whole = made(tmp_path, tmp_path / "whole", entries)
    ids = vlmix.open(whole).column("id").to_pylist()
    picked = {int(id.rpartition("/")[2]) // 4 for id in ids}
    assert len(picked) < 6
    spoiled(path, picked)
    assert vlmix.open(made(tmp_path, tmp_path / "again", entries)).column("id").to_pylist() == ids
    spoiled(path, set())
    found, rejects = read(tmp_path, "docs")
    assert len(found) == 24 and not rejects


def test_an_id_is_the_place_of_the_row_or_its_content_or_a_column(tmp_path: Path) -> None:
    rows = [{"question": "a?", "answer": "b", "name": "x"}, {"question": "c?", "answer": "d", "name": "y"}]
    by_place, _ = one(tmp_path, *rows)
    assert [talk.id for talk in by_place] == ["mine/rows/0", "mine/rows/1"]
    by_column, _ = one(tmp_path, *rows, {**rows[0], "name": "x"}, ids="name")
    assert [talk.id for talk in by_column] == ["mine/x", "mine/y", "mine/x~2"]
    by_content, _ = one(tmp_path, *rows, ids="content")
    moved, _ = one(tmp_path, *reversed(rows), rows[0], ids="content")
    assert [talk.id for talk in moved] == [by_content[1].id, by_content[0].id, f"{by_content[0].id}~2"]
    with pytest.raises(VlmixError, match=r"ids: there is no column 'nam'; did you mean 'name'"):
        one(tmp_path, *rows, ids="nam")


def test_images_of_equal_texts_tell_rows_apart_by_content(tmp_path: Path) -> None:
    rows = [{"image": tables.embedded(tables.picture(i)), "question": "a?", "answer": "b"} for i in (1, 2, 1)]
    tables.write_parquet(tmp_path / "rows.parquet", rows)
    found, _ = read(tmp_path, "rows.parquet", ids="content")
    assert found[0].id != found[1].id and found[2].id == f"{found[0].id}~2"


def test_rounds_are_dropped_by_their_ratings_and_stay_without_one(own: Path) -> None:
    found, rejects = read(own, "docs", where_rounds="relevance_ratings >= 3")
    rows = [tables.texts_row(number) for number in range(24)]
    low = [
        (number, i) for number, row in enumerate(rows) for i, r in enumerate(row["relevance_ratings"]) if r and r < 3
    ]
    named = [(r.id, r.round) for r in rejects if r.reason == "where_rounds"]
    assert sorted(named) == sorted((f"mine/train-{n // 12:05d}-of-00002/{n % 12}", i) for n, i in low)
    empty = sum(all(r and r < 3 for r in row["relevance_ratings"]) for row in rows)
    assert len(found) == 24 - empty and sum(r.reason == "no_rounds" for r in rejects) == empty
    unrated = next(talk for talk in found if talk.id.endswith("00000-of-00002/3"))
    assert len(unrated.rounds) == len(rows[3]["texts"])


@pytest.mark.parametrize(
    ("condition", "said"),
    [("relevance_ratings >>= 3", "where_rounds"), ("relevnce >= 3", "names no column of lists")],
)
def test_a_condition_on_rounds_that_is_none_is_told(own: Path, condition: str, said: str) -> None:
    with pytest.raises(VlmixError, match=said):
        read(own, "docs", where_rounds=condition)


QUESTION = {"question": "What?", "answer": "That."}
IMAGES: dict[str, tuple[Any, str | int]] = {
    "null": (None, 0),
    "no list": ([], 0),
    "empty text": ("", 0),
    "a path": ("a.jpg", 1),
    "paths": (["a.jpg", "b.jpg"], 2),
    "short base64": (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
        1,
    ),
    "a data URL": ("data:image/png;base64,iVBORw0KGgo=", 1),
    "bytes and path": ({"bytes": None, "path": "a.jpg"}, 1),
    "a null in a list": (["a.jpg", None], "bad_image"),
    "a number": (5, "bad_image"),
    "nothing inside": ({"bytes": None, "path": None}, "bad_image"),
    "a URL": ("https://example.org/a.jpg", "image_url"),
    "absolute": ("/etc/passwd.jpg", "unsafe_path"),
    "outside": ("../a.jpg", "unsafe_path"),
    "too many": (["a.jpg"] * 65, "too_many_images"),
    "both": (["a.jpg", "data:image/png;base64,iVBORw0KGgo="], "bad_image"),
}


@pytest.mark.parametrize("what", IMAGES)
def test_what_a_row_says_of_its_images(what: str, tmp_path: Path) -> None:
    value, expected = IMAGES[what]
    lead = {**QUESTION, "image": "lead.jpg"}
    found, rejects = one(tmp_path, lead, {**QUESTION, "image": value})
    if isinstance(expected, str):
        assert [reject.reason for reject in rejects] == [expected] and len(found) == 1
        assert json.loads(rejects[0].record or "{}") or rejects[0].reason == "unsafe_path"
    else:
        assert not rejects and len(found[1].images) == expected


TURNS: dict[str, tuple[list[tuple[str, str]], str | list[str]]] = {
    "a system turn": ([("system", "Be brief."), ("user", "a?"), ("assistant", "b")], ["Be brief.\n\na?", "b"]),
    "a blank system turn": ([("system", " "), ("user", "a?"), ("assistant", "b")], ["a?", "b"]),
    "a system turn later": ([("user", "a?"), ("assistant", "b"), ("system", "c"), ("user", "d"), ("assistant", "e")],
                            "unknown_role"),
    "a tool": ([("user", "a?"), ("tool", "b"), ("assistant", "c")], "unknown_role"),
    "two questions": ([("user", "a?"), ("user", "b?"), ("assistant", "c")], "role_order"),
    "an answer first": ([("assistant", "a"), ("user", "b?")], "role_order"),
    "no answer": ([("user", "a?")], "odd_turns"),
    "a last question": ([("user", "a?"), ("assistant", "b"), ("user", "c?")], ["a?", "b"]),
    "no turns": ([], "no_rounds"),
    "an empty answer": ([("user", "a?"), ("assistant", " "), ("user", "c?"), ("assistant", "d")], ["c?", "d"]),
    "only an empty answer": ([("user", "a?"), ("assistant", "\u200b")], "no_rounds"),
}  # fmt: skip


@pytest.mark.parametrize("what", TURNS)
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_turns_follow_a_rule(what: str, form: str, tmp_path: Path) -> None:
    said, expected = TURNS[what]
    role, text = ("role", "content") if form == "messages" else ("from", "value")
    rename = {"user": "human", "assistant": "gpt"} if form == "conversations" else {}
    lead = {
        form: [{role: rename.get("user", "user"), text: "x?"}, {role: rename.get("assistant", "assistant"), text: "y"}]
    }
    found, rejects = one(tmp_path, lead, {form: [{role: rename.get(who, who), text: words} for who, words in said]})
    if isinstance(expected, str):
        whole = [reject for reject in rejects if reject.round < 0]
        assert [reject.reason for reject in whole] == [expected] and len(found) == 1
    else:
        assert render(found[1]) == expected
        assert sum(len(talk.rounds) for talk in found) + len(rejects) == 1 + sum(1 for who, _ in said if who == "user")


TOKENS: dict[str, tuple[int, list[str], str | list[str]]] = {
    "none, one image": (1, ["a?", "b"], ["<image>\na?", "b"]),
    "none, two images": (2, ["a?", "b"], ["<image>\n<image>\na?", "b"]),
    "in front": (1, ["<image>\na?", "b"], ["<image>\na?", "b"]),
    "behind": (1, ["a?\n<image>", "b"], ["a?\n<image>", "b"]),
    "inside": (1, ["a <image>?", "b"], ["a <image>?", "b"]),
    "later": (1, ["a?", "b", "<image>\nc?", "d"], ["a?", "b", "<image>\nc?", "d"]),
    "two in their places": (2, ["a <image>?", "b", "c <image>?", "d"], ["a <image>?", "b", "c <image>?", "d"]),
    "one of two": (2, ["a <image>?", "b"], ["a <image>?", "b"]),
    "doubled": (1, ["<image><image>\na?", "b"], "image_token"),
    "in an answer": (1, ["a?", "b <image>"], "image_token"),
    "without an image": (0, ["<image>\na?", "b"], "image_token"),
    "alone": (1, ["<image>", "b"], ["<image>", "b"]),
    "in an empty round": (1, ["<image>\na?", " ", "c?", "d"], "empty_text"),
}


@pytest.mark.parametrize("what", TOKENS)
@pytest.mark.parametrize("form", ["texts", "conversations"])
def test_image_tokens_follow_a_rule(what: str, form: str, tmp_path: Path) -> None:
    images, texts, expected = TOKENS[what]
    pairs = list(zip(texts[::2], texts[1::2]))
    turns: list[dict[str, str]] = [{"user": q, "assistant": a} for q, a in pairs]
    if form == "conversations":
        turns = [{"from": who, "value": text} for who, text in zip(itertools.cycle(("human", "gpt")), texts)]
    row = {"images": [f"{i}.jpg" for i in range(images)], form: turns}
    lead = {"images": ["x.jpg"], form: turns[:0] or [{"user": "x", "assistant": "y"}] if form == "texts" else
            [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}  # fmt: skip
    found, rejects = one(tmp_path, lead, row)
    if isinstance(expected, str):
        assert [reject.reason for reject in rejects if reject.round < 0] == [expected] and len(found) == 1
    else:
        assert not rejects and render(found[1]) == expected and len(found[1].images) == images


def test_blocks_place_their_images(own: Path) -> None:
    found, rejects = read(own, "messages.parquet")
    assert not rejects
    assert [render(talk) for talk in found] == [
        ["<image>\nWhat?", "That."],
        ["Hello.", "Hi."],
        ["Be short.\n\n<image>\n<image>\nWhich?", "Both."],
        ["First <image> then <image>?", "Yes.", "And <image>?", "No."],
    ]


def test_blocks_may_hold_their_images(tmp_path: Path) -> None:
    url = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/"}}
    path = {"type": "image", "image": "a.jpg", "metadata": {"width": 5}}
    web = {"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}
    video = {"type": "video", "video": "a.mp4"}
    several = {"type": "image", "image": ["a.jpg", "b.jpg"]}
    rows = [
        {
            "messages": [
                {"role": "user", "content": [block, {"type": "text", "text": "a?"}]},
                {"role": "assistant", "content": "b"},
            ]
        }
        for block in (path, url, web, video, several)
    ]
    found, rejects = one(tmp_path, *rows)
    assert [image.path for image in found[0].images] == ["mine/a.jpg"]
    assert found[1].place is not None and len(found[1].images) == 1
    assert [reject.reason for reject in rejects] == ["image_url", "unread_media", "bad_image"]


CHOICES: dict[str, tuple[Any, str | None]] = {
    "an index": (1, "B"), "a letter": ("B", "B"), "a letter in brackets": ("(b)", "B"),
    "a letter with a stop": ("B.", "B"), "its text": ("dog", "B"), "digits": ("1", "B"),
    "another text": ("horse", None), "an index too far": (3, None), "a letter too far": ("D", None),
    "nothing": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("what", CHOICES)
@pytest.mark.parametrize(
    "options", [["cat", "dog", "cow"], "['cat', 'dog', 'cow']", {"A": "cat", "B": "dog", "C": "cow"}]
)
def test_choices_are_answered_by_index_letter_or_text(what: str, options: Any, tmp_path: Path) -> None:
    answer, expected = CHOICES[what]
    lead = {"question": "x?", "options": options, "answer": "A"}
    found, rejects = one(tmp_path, lead, {"question": "a?", "options": options, "answer": answer})
    if expected is None:
        assert [reject.reason for reject in rejects] == ["bad_choice"]
    else:
        assert render(found[1])[1] == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["a", "b", "b"], "b"),
        ("['x', 'y', 'x']", "['x', 'y', 'x']"),
        ("[0.1, 0.2]", "[0.1, 0.2]"),
        ("[]", "[]"),
        ([{"answer": "p"}, {"answer": "p"}], "p"),
        (7, "7"),
        (True, None),
    ],
)
def test_the_most_given_answer_is_taken(answers: Any, expected: str | None, tmp_path: Path) -> None:
    found, rejects = one(tmp_path, QUESTION, {"question": "a?", "answer": answers})
    if expected is None:
        assert [reject.reason for reject in rejects if reject.round < 0] == ["bad_answer"]
    else:
        assert found[1].rounds[0].answer == expected


def test_a_printed_list_of_answers_is_one_in_a_column_of_several(tmp_path: Path) -> None:
    found, _ = one(tmp_path, {"question": "a?", "answers": "['x', 'y', 'x']"}, {"question": "a?", "answers": "[x](y)"})
    assert [talk.rounds[0].answer for talk in found] == ["x", "[x](y)"]


def test_numbers_are_no_answers_to_choose_from(tmp_path: Path) -> None:
    _, rejects = one(tmp_path, {"question": "a?", "answer": [0.1, 0.2, 0.3, 0.4]})
    assert [reject.reason for reject in rejects] == ["bad_answer"]


LABELLED: dict[str, tuple[dict[str, Any], str | None]] = {
    "a label that is a number": ({"choices": {"label": ["1", "2"], "text": ["x", "y"]}, "answer": "1"}, "x"),
    "labels in another order": ({"choices": {"B": "b", "A": "a"}, "answer": "B"}, "b"),
    "labels without a choice": ({"choices": {"A": "a", "B": "b", "C": None}, "answer": "B"}, "b"),
    "an empty choice": ({"choices": ["a", None, "c"], "answer": "C"}, None),
    "a number that is a place and a text": ({"choices": ["2", "3", "1"], "answer": 1}, None),
    "a number that is a place": ({"choices": ["2", "3", "1"], "correct_choice_idx": 1}, "3"),
    "a whole number with a point": ({"choices": ["a", "b"], "answer": 1.0}, "b"),
    "digits without end": ({"choices": ["a", "b"], "answer": "9" * 5000}, None),
    "an index as text": ({"choices": ["2", "1", "0"], "correct_choice_idx": "2"}, "0"),
}


@pytest.mark.parametrize("what", LABELLED)
def test_an_answer_names_one_choice_or_none(what: str, tmp_path: Path) -> None:
    row, expected = LABELLED[what]
    found, rejects = one(tmp_path, {"question": "a?", **row})
    assert [talk.rounds[0].answer for talk in found] == ([expected] if expected else [])
    assert [reject.reason for reject in rejects] == ([] if expected else ["bad_choice"])


def test_no_choices_leave_an_open_question(tmp_path: Path) -> None:
    found, _ = one(tmp_path, *({"question": "a?", "choices": none, "answer": "b"} for none in ("[]", [], None, {})))
    assert [talk.rounds[0].answer for talk in found] == ["b"] * 4


def test_what_only_late_rows_have_is_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**QUESTION, "image": None, "n": i} for i in range(60)]
    late = {"image": "a.jpg", "picture_2": "b.jpg", "choices": ["a", "That."], "score": 3}
    found, rejects = one(tmp_path, *rows, {**QUESTION, **late})
    assert not rejects and [image.path for image in found[60].images] == ["mine/a.jpg", "mine/b.jpg"]
    assert found[60].rounds[0].choices == ("a", "That.") and found[60].columns == {"n": None, "score": 3}


def test_columns_that_only_another_file_has_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(QUESTION) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({**QUESTION, "options": ["That.", "x"], "image": "a.jpg", "n": 1}))
    found, _ = read(tmp_path, "*.jsonl")
    assert [len(talk.images) for talk in found] == [0, 1] and found[1].rounds[0].choices == ("That.", "x")
    assert [talk.columns for talk in found] == [{"n": None}, {"n": 1}]


def test_files_of_one_name_have_rows_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(QUESTION) + "\n")
    (tmp_path / "a.json").write_text(json.dumps([{**QUESTION, "question": "Which?"}]))
    found, rejects = read(tmp_path, "a.*")
    assert [talk.id for talk in found] == ["mine/a.json/0", "mine/a.jsonl/0"] and not rejects


def test_questions_of_one_image_may_stand_in_one_row(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "questions": ["a?", "b?"], "answers": ["c", "d"]}
    found, rejects = one(tmp_path, row, {**row, "answers": ["c"]}, response_format="short_answer")
    assert [qa.answer for qa in found[0].rounds] == ["c", "d"]
    assert render(found[0])[0].endswith("Answer the question using a single word or phrase.")
    assert [reject.reason for reject in rejects] == ["bad_answer"]


def test_two_types_for_a_column_are_told_with_the_remedy(tmp_path: Path) -> None:
    numbers, words = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    numbers.write_text(json.dumps({**QUESTION, "grade": 1}) + "\n")
    words.write_text(json.dumps({**QUESTION, "grade": "good"}) + "\n")
    entries = {name: {"builder": "rows", "path": f"{name}.jsonl"} for name in "ab"}
    with pytest.raises(
        VlmixError, match=r"sources\.b: column 'grade' holds numbers|column 'grade' holds .*columns: {new_name: grade}"
    ):
        made(tmp_path, tmp_path / "out", entries)
    entries["b"]["columns"] = {"verdict": "grade"}  # type: ignore[assignment]
    frame = pl.read_parquet(made(tmp_path, tmp_path / "out", entries) / "samples.parquet")
    assert frame.schema["grade"] == pl.Int64 and frame.schema["verdict"] == pl.String


def test_whole_and_other_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({**QUESTION, "grade": grade}) + "\n" for grade in (1, 2.5, None)))
    frame = pl.read_parquet(
        made(tmp_path, tmp_path / "out", {"a": {"builder": "rows", "path": "a.jsonl"}}) / "samples.parquet"
    )
    assert sorted(frame["grade"].to_list(), key=str) == [1.0, 2.5, None]


def test_a_reserved_name_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**QUESTION, "shard": 1}) + "\n")
    with pytest.raises(
        VlmixError, match=r"column 'shard' has the name of a column of every mixture; .*columns: {new_name: shard}"
    ):
        made(tmp_path, tmp_path / "out", {"a": {"builder": "rows", "path": "a.jsonl"}})


def test_a_copy_that_lost_rows_is_told(own: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    _, rejects = read(own, "docs", expect=29)
    assert [(r.reason, r.detail[:22]) for r in rejects] == [("fewer_rows", "24 rows of the 29 that")]
    assert not read(own, "docs", expect=24)[1]
    made(own, tmp_path / "out", {"docs": {"builder": "rows", "path": "docs", "expect": "finevision/docvqa"}})
    assert f"24 rows of the {known_rows()['finevision/docvqa']:,}" in caplog.text
    with pytest.raises(VlmixError, match=r"no known subset 'finevision/docvka'; did you mean 'finevision/docvqa'"):
        read(own, "docs", expect="finevision/docvka")


def test_known_sizes_are_those_that_were_published() -> None:
    known = known_rows()
    assert sum(rows for name, rows in known.items() if name.startswith("finevision/")) == 24_322_193
    assert known["finevision/aokvqa"] == 16_539 and len([n for n in known if n.startswith("finevision/")]) == 185


def truncated_parquet(folder: Path) -> None:
    path = next((folder / "docs").glob("*0-of*"))
    path.write_bytes(path.read_bytes()[:-200])


def truncated_tar(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 100])


def other_column(folder: Path) -> None:
    path = next((folder / "docs").glob("*1-of*"))
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["pictures", *table.column_names[1:]]), path)


def other_type(folder: Path) -> None:
    path = next((folder / "docs").glob("*1-of*"))
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "texts": "a"} for row in rows]), path)


def same_rows(folder: Path) -> None:
    path = next((folder / "docs").glob("*0-of*"))
    pq.write_table(pq.read_table(path), path.with_name("train-00007-of-00008.parquet"), compression="zstd")


def packed(folder: Path) -> None:
    for path in (folder / "docs").iterdir():
        path.rename(path.with_suffix(".parquet.gz"))


def two_splits(folder: Path) -> None:
    path = next((folder / "docs").glob("*0-of*"))
    path.rename(path.with_name("test-00000-of-00001.parquet"))


DAMAGES: dict[str, tuple[Any, str, str]] = {
    "a truncated Parquet file": (
        truncated_parquet,
        "docs",
        r"train-00000-of-00002\.parquet: .*damaged or was not copied whole",
    ),
    "a truncated tar": (truncated_tar, "shard-000000.tar", r"shard-000000\.tar: .*damaged or was not copied whole"),
    "a column of another name": (
        other_column,
        "docs",
        r"has no column 'images', which train-00000-of-00002\.parquet has",
    ),
    "a column of another type": (other_type, "docs", r"column 'texts' is list<.*> in .* string in .*00001-of"),
    "the same rows twice": (
        same_rows,
        "docs",
        r"train-00007-of-00008\.parquet has the same rows as .*train-00000-of-00002",
    ),
    "packed files": (packed, "docs", r"packed files are not read; unpack it first"),
    "two splits": (two_splits, "docs", r"holds the splits test, train; name one"),
    "nothing": (lambda folder: None, "nowhere/*.parquet", r"there is no such file or folder; looked at"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_an_error_that_names_the_file(what: str, tmp_path: Path) -> None:
    damage, path, said = DAMAGES[what]
    tables.write_texts(tmp_path / "docs")
    tables.write_tar(tmp_path / "shard-000000.tar")
    damage(tmp_path)
    with pytest.raises(VlmixError, match=said):
        read(tmp_path, path)


def test_malformed_rows_are_rejects_and_the_others_samples(tmp_path: Path) -> None:
    lines = [json.dumps({**QUESTION, "id": number}) for number in range(3000)]
    for number in range(0, 3000, 300):
        lines[number] = lines[number][:-3]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found, rejects = read(tmp_path, "rows.jsonl")
    assert [(r.reason, r.id) for r in rejects] == [("bad_row", f"mine/rows/{number}") for number in range(0, 3000, 300)]
    assert len(found) == 2990 and rejects[0].record.strip('"') == lines[0].replace('"', '\\"')


def test_a_member_that_leaves_its_folder_is_a_reject(tmp_path: Path) -> None:
    tables.write_tar(tmp_path / "good.tar", 2)
    with tarfile.open(tmp_path / "good.tar", "a") as tar:
        for name, data in (("../evil.jpg", tables.picture(1)), ("../evil.json", b'{"conversations": []}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            import io

            tar.addfile(info, io.BytesIO(data))
    found, rejects = read(tmp_path, "good.tar")
    assert len(found) == 2 and [reject.reason for reject in rejects] == ["unsafe_path"]


def test_a_csv_line_of_other_length_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\n"a?",b\nc,d,e\nf?,g\n')
    found, rejects = read(tmp_path, "a.csv")
    assert [talk.rounds[0].answer for talk in found] == ["b", "g"]
    assert [(reject.reason, reject.id) for reject in rejects] == [("bad_row", "mine/a/1")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fields": {"question": "qestion"}}, "fields` has question: qestion, but there are only"),
        ({"fields": {"questoin": "question"}}, "`fields` names 'questoin'; what a row may say is"),
        ({"fields": {"image": "photo"}}, "`fields` has image: photo, and rows.jsonl has no such column"),
        ({"columns": {"x": "y"}}, "`columns` has x: y, there is no such column"),
        ({"columns": {"x": "list"}}, "`columns` has x: list, which holds no numbers, texts or booleans"),
        ({"columns": {"more": "grade"}}, "`columns` has more: grade, and the rows have a column 'more'"),
        ({"without": ["gade"]}, "`without` has gade, there is no such column; did you mean 'grade'"),
        ({"columns": {"shard": "grade"}}, "'shard' is the name of a column of every mixture"),
        ({"form": "texts"}, "no texts are recognised in the columns question, answer, grade"),
        ({"image_root": "nowhere"}, "image_root nowhere: there is no such folder"),
    ],
)
def test_options_that_name_nothing_are_told(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match=said):
        one(tmp_path, {**QUESTION, "grade": 1, "more": 2, "list": [3]}, **options)


def test_images_beside_a_table_are_those_of_its_own_folder(tmp_path: Path) -> None:
    """Two tables name the same path, and mean files of their own."""
    for name, number in (("a", 1), ("b", 2)):
        (tmp_path / name / "img").mkdir(parents=True)
        (tmp_path / name / "img/1.jpg").write_bytes(tables.picture(number))
        (tmp_path / name / "t.jsonl").write_text(json.dumps({**QUESTION, "image": "./img/1.jpg"}) + "\n")
    entries = {name: {"builder": "rows", "path": f"{name}/t.jsonl"} for name in "ab"}
    opened = vlmix.open(made(tmp_path, tmp_path / "out", entries))
    assert {sample.source: sample.jpeg for sample in opened} == {"a": tables.picture(1), "b": tables.picture(2)}


def test_a_path_is_below_the_folder_of_its_own_table(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(tables.picture(number))
        (tmp_path / name / "t.jsonl").write_text(json.dumps({**QUESTION, "image": "1.jpg", "n": number}) + "\n")
    opened = vlmix.open(made(tmp_path, tmp_path / "out", {"mine": {"builder": "rows", "path": "*/t.jsonl"}}))
    assert {sample.id: sample.jpeg for sample in opened} == {
        "mine/a/t/0": tables.picture(1), "mine/b/t/0": tables.picture(2)
    }  # fmt: skip


def in_blocks(number: int) -> dict[str, Any]:
    data = base64.b64encode(tables.picture(number)).decode()
    block = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
    asked = {"role": "user", "content": [block, {"type": "text", "text": f"{number}?"}]}
    return {"messages": [asked, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize("ids", ["row", "content"])
def test_images_in_blocks_are_not_those_of_another_column(ids: str, tmp_path: Path) -> None:
    other = base64.b64encode(tables.picture(9)).decode()
    rows = [{**in_blocks(number), "image": other if number else None} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    opened = vlmix.open(
        made(tmp_path, tmp_path / "out", {"mine": {"builder": "rows", "path": "rows.jsonl", "ids": ids}})
    )
    asked = {int(sample.conversations[0].value.split("\n")[-1][:-1]): sample.jpeg for sample in opened}
    assert asked == {number: tables.picture(number) for number in range(3)}


def test_an_unanswered_last_question_with_an_image_is_a_reject(tmp_path: Path) -> None:
    turns = ["<image>\na?", "b", "<image>\nc?"]
    said = [{"from": who, "value": text} for who, text in zip(("human", "gpt", "human"), turns)]
    found, rejects = one(tmp_path, {"images": ["a.jpg", "b.jpg"], "conversations": said})
    assert not found and [reject.reason for reject in rejects] == ["odd_turns"]


@pytest.mark.parametrize(("name", "sign"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_images_inside_a_csv_are_those_of_their_rows(name: str, sign: str, tmp_path: Path) -> None:
    images = [base64.b64encode(tables.picture(number)).decode() for number in range(4)]
    lines = [sign.join(("image", "question", "answer"))]
    lines += [sign.join((image, f"{number}?", "b")) for number, image in enumerate(images)]
    lines[2:2] = ["", sign.join(("x", "y"))]
    (tmp_path / name).write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    opened = vlmix.open(made(tmp_path, tmp_path / "out", {"mine": {"builder": "rows", "path": name}}))
    asked = {int(sample.conversations[0].value.split("\n")[-1][:-1]): sample.jpeg for sample in opened}
    assert asked == {number: tables.picture(number) for number in range(4)}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_images_inside_json_survive_a_byte_order_mark_and_half_an_emoji(name: str, tmp_path: Path) -> None:
    rows = [{**QUESTION, "image": base64.b64encode(tables.picture(i)).decode(), "question": f"x{i}"} for i in range(3)]
    text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.replace("x1", "x\\ud8001").encode())
    opened = vlmix.open(made(tmp_path, tmp_path / "out", {"mine": {"builder": "rows", "path": name}}))
    assert {int(sample.id[-1]): sample.jpeg for sample in opened} == {i: tables.picture(i) for i in range(3)}


def test_numbers_of_a_csv_are_numbers_and_codes_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,code,n,x\na?,b,007,1,2\nlost\nc?,d,012,-2,.5\n")
    found, _ = read(tmp_path, "a.csv")
    assert [talk.columns for talk in found] == [{"code": "007", "n": 1, "x": 2.0}, {"code": "012", "n": -2, "x": 0.5}]


def test_a_row_without_an_id_is_called_after_its_place(tmp_path: Path) -> None:
    found, _ = one(tmp_path, {**QUESTION, "name": "x"}, {**QUESTION, "name": None}, ids="name")
    assert [talk.id for talk in found] == ["mine/x", "mine/rows/1"]


def test_ratings_for_other_rounds_are_a_reject(tmp_path: Path) -> None:
    texts = [{"user": f"{i}?", "assistant": "a"} for i in range(2)]
    rows = [
        {"texts": texts, "ratings": ratings, "least": 1} for ratings in ([1, 5], "[1, 5]", [5], [1, 5, 5], [], None)
    ]
    found, rejects = one(tmp_path, *rows, where_rounds="ratings >= 3")
    assert [len(talk.rounds) for talk in found] == [1, 1, 2, 2]
    assert [reject.id for reject in rejects if reject.round < 0] == ["mine/rows/2", "mine/rows/3"]
    for condition, said in (("least >= 3", "holds no lists; `where` takes"), ("ratings", "is not a condition")):
        with pytest.raises(VlmixError, match=said):
            one(tmp_path, *rows, where_rounds=condition)


def test_a_column_may_stay_behind(tmp_path: Path) -> None:
    rows = [{**QUESTION, "grade": 1}, {**QUESTION, "grade": "good"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry: dict[str, Any] = {"builder": "rows", "path": "a.jsonl"}
    with pytest.raises(VlmixError, match=r"without: \[grade\]"):
        made(tmp_path, tmp_path / "out", {"a": entry})
    assert len(vlmix.open(made(tmp_path, tmp_path / "out", {"a": {**entry, "without": ["grade"]}}))) == 2


def test_paths_of_another_machine_are_found_by_their_ends(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_bytes(tables.picture(1))
    row = {**QUESTION, "image": "/mnt/pics/set/1.jpg"}
    _, rejects = one(tmp_path, row)
    assert [reject.reason for reject in rejects] == ["unsafe_path"] and "image_prefix" in rejects[0].detail
    entry = {"builder": "rows", "path": "rows.jsonl", "image_root": "photos", "image_prefix": "/mnt/pics/set"}
    assert [sample.jpeg for sample in vlmix.open(made(tmp_path, tmp_path / "out", {"a": entry}))] == [tables.picture(1)]


def test_a_few_rows_without_their_image_are_rejects(tmp_path: Path) -> None:
    rows = [*[{**QUESTION, "n": number} for number in range(20)], {**QUESTION, "image": "gone.jpg"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = made(tmp_path, tmp_path / "out", {"a": {"builder": "rows", "path": "rows.jsonl"}})
    opened = vlmix.open(out)
    assert len(opened) == 20 and opened.manifest.rejects == {"a": {"image_missing": 1}}
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**QUESTION, "image": "gone.jpg", "n": n}) + "\n" for n in range(3))
    )
    with pytest.raises(VlmixError, match=r"none of its 3 images is there.*`image_root` in sources\.a"):
        made(tmp_path, tmp_path / "none", {"a": {"builder": "rows", "path": "rows.jsonl"}})


def test_a_column_of_two_types_in_one_set_is_told_with_its_file(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", "x")):
        tables.write_parquet(
            tmp_path / f"{name}.parquet", [{**QUESTION, "n": value, "of": f"{name}{i}"} for i in range(2)]
        )
    entry: dict[str, Any] = {"builder": "rows", "path": "*.parquet"}
    with pytest.raises(
        VlmixError,
        match=r"column 'n' is int64 in a\.parquet, string in .*b\.parquet; leave it out with `without: \[n\]`",
    ):
        made(tmp_path, tmp_path / "out", {"m": entry})
    assert len(vlmix.open(made(tmp_path, tmp_path / "out", {"m": {**entry, "without": ["n"]}}))) == 4


def test_a_repeated_id_takes_nobodys_name(tmp_path: Path) -> None:
    found, rejects = one(tmp_path, *({**QUESTION, "id": id} for id in ("a~2", "a", "a", "a~2")))
    assert [talk.id for talk in found] == ["mine/a~2", "mine/a", "mine/a~3", "mine/a~2~2"] and not rejects
    found, rejects = one(tmp_path, *({**QUESTION, "id": id} for id in ("a", "a", "a~2")))
    assert [talk.id for talk in found] == ["mine/a", "mine/a~2", "mine/a~2~2"] and not rejects


def test_a_csv_may_list_its_images(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("images,question,answer\n\"['1.jpg', '2.jpg']\",a?,b\n[],c?,d\n")
    found, _ = read(tmp_path, "a.csv")
    assert [[image.path for image in talk.images] for talk in found] == [["mine/1.jpg", "mine/2.jpg"], []]


def test_two_files_of_one_row_are_told(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("question,answer\nq,a\n")
    with pytest.raises(VlmixError, match=r"b\.csv has the same rows as .*a\.csv"):
        read(tmp_path, "*.csv")


def test_the_recipe_says_which_of_two_forms_is_meant(tmp_path: Path) -> None:
    row = {**QUESTION, "image": "a.jpg", "caption": "A thing.", "video": None}
    asked, _ = one(tmp_path, row)
    told, _ = one(tmp_path, row, form="captions")
    assert (asked[0].rounds[0].answer, told[0].rounds[0].answer) == ("That.", "A thing.")
    assert set(asked[0].columns) == {"caption"} and set(told[0].columns) == {"question", "answer"}


def test_a_broken_image_inside_a_row_is_replaced_by_the_next(tmp_path: Path) -> None:
    rows = [
        {"image": tables.embedded(tables.picture(i) if i % 2 else b"GIF87a broken"), **QUESTION, "n": i}
        for i in range(12)
    ]
    tables.write_parquet(tmp_path / "rows.parquet", rows, group=3)
    out = made(tmp_path, tmp_path / "out", {"mine": {"builder": "rows", "path": "rows.parquet", "take": 5}})
    opened = vlmix.open(out)
    assert len(opened) == 5 and all(int(id.rpartition("/")[2]) % 2 for id in opened.column("id").to_pylist())
    frame = pl.read_parquet(out / "rejects.parquet")
    assert set(frame["reason"]) <= {"image_damaged", "image_unknown"} and len(frame)


def test_rows_of_the_hub_come_from_its_cache(own: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import huggingface_hub.constants as constants

    folder = tmp_path / "datasets--owner--name"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0" * 40)
    tables.write_texts(snapshot / "docvqa(x)")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found, _ = read(tmp_path, "hf://datasets/owner/name/docvqa(x)")
    assert len(found) == 24
    with pytest.raises(VlmixError, match=r"Offline, fetch it beforehand \(hf download owner/other"):
        read(tmp_path, "hf://datasets/owner/other")
