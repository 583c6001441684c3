"""A large file that several jobs read gives what one job reads of it, in the same order."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.helpers import dump
from vlmix.builders import known_sources
from vlmix.mixture.build import extract
from vlmix.mixture.build.extract import ConvertJob, conversations, convert
from vlmix.mixture.build.recipe import Entry
from vlmix.mixture.build.source import RawFolder
from vlmix.mixture.dataset.schema import Reject
from vlmix.mixture.io import json_pieces
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.json_pieces import Unsplit
from vlmix.mixture.record import Conversation

OPTIONS: dict[str, dict[str, Any]] = {
    "vg": {},
    "vqav2": {},
    "sharegpt": {},
    "llava_instruct": {},
    "lcs558k": {},
    "llava_json": {"path": "llava_v1_5_mix_sample.json", "recognize": True},
}
SIZES = {
    "vg": 20_000,
    "vqav2": 3_000,
    "sharegpt": 5_000,
    "llava_instruct": 5_000,
    "lcs558k": 2_000,
    "llava_json": 5_000,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(json_pieces, "PIECE", 3_000)
    yield


@pytest.fixture
def raws(raw: Path, tmp_path: Path) -> Path:
    """Releases of which shares can be read: miniature ones, but VQAv2's annotations are in the questions' order."""
    for name in OPTIONS:
        shutil.copytree(raw / name, tmp_path / name)
    ids = [image * 1000 + number for image in range(1, 200) for number in range(image % 4)]
    questions = [{"image_id": id // 1000, "question": f"What is {id}?", "question_id": id} for id in ids]
    annotations = [{"question_id": id, "multiple_choice_answer": f"a {id}", "answers": []} for id in ids]
    folder = tmp_path / "vqav2"
    dump(folder / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    dump(folder / "v2_mscoco_train2014_annotations.json", {"annotations": annotations})
    return tmp_path


def parts(name: str, raw: Path, **options: Any) -> tuple[int, list[Conversation], list[Reject], list[Path]]:
    """How many parts there are, and what they give one after the other."""
    source = known_sources()[name]
    chosen = msgspec.convert(options, source.options)
    found, rejects, hashed = [], [], []
    split = source.split(RawFolder(raw, source), chosen, name)
    for part in split:
        offered, folder, told = conversations(source, chosen, raw, part=part)
        found += offered
        rejects += told.rows
        hashed += [path for path in dict.fromkeys(folder.opened) if folder.hashes[path].result()]
    return len(split), found, sorted(rejects, key=repr), hashed


@pytest.mark.parametrize("name", OPTIONS)
def test_shares_give_what_the_whole_file_gives(raws: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, whole, rejects, hashed = parts(name, raws, **OPTIONS[name])
    monkeypatch.setattr(json_pieces, "SHARE", SIZES[name])
    several, found, told, again = parts(name, raws, **OPTIONS[name])
    assert one == 1 and several > 4
    assert found == whole and told == rejects
    assert again == hashed  # each file by one share alone


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("vg", "region_descriptions.json", "phrase"),
        ("vg", "image_data.json", "url"),
        ("vqav2", "v2_OpenEnded_mscoco_train2014_questions.json", "question"),
        ("vqav2", "v2_mscoco_train2014_annotations.json", "multiple_choice_answer"),
        ("sharegpt", "ShareGPT_V3_unfiltered_cleaned_split.json", "value"),
        ("llava_json", "llava_v1_5_mix_sample.json", "value"),
    ],
)
def test_halves_of_surrogate_pairs_are_counted_once(
    raws: Path, name: str, file: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raws / name / file
    text, count = re.subn(rf'("{key}": ?")', r"\1\\ud83d", path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")

    def mended(rejects: list[Reject]) -> int:
        told = [reject for reject in rejects if reject.reason == "lone_surrogate"]
        assert {reject.id for reject in told} == {file}
        return sum(int(reject.detail.split()[0]) for reject in told)

    _, whole, rejects, _ = parts(name, raws, **OPTIONS[name])
    monkeypatch.setattr(json_pieces, "SHARE", SIZES[name])
    _, found, told, _ = parts(name, raws, **OPTIONS[name])
    assert found == whole and mended(told) == mended(rejects) == count > 20


def test_questions_and_annotations_in_other_orders_are_read_whole(raws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, _, _ = parts("vqav2", raws)
    path = raws / "vqav2/v2_mscoco_train2014_annotations.json"
    data = json.loads(path.read_text())
    data["annotations"] = data["annotations"][::-1]
    dump(path, data)
    assert parts("vqav2", raws)[1] == whole
    monkeypatch.setattr(json_pieces, "SHARE", 20_000)
    with pytest.raises(Unsplit):
        parts("vqav2", raws)


def test_rows_without_ids_are_numbered_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [
        {
            "conversations": [
                {"from": "human", "value": f"Q{n}"},
                {"from": "gpt" if n % 7 else "robot", "value": f"A{n}"},
            ]
        }
        for n in range(60)
    ]
    for path, text in {"a.json": json.dumps(rows), "a.jsonl": "\n".join(map(json.dumps, rows))}.items():
        (tmp_path / path).write_text(text)
        _, whole, rejects, _ = parts("llava_json", tmp_path, path=path)
        with monkeypatch.context() as patch:
            patch.setattr(json_pieces, "SHARE", 1_000)
            several, found, told, _ = parts("llava_json", tmp_path, path=path)
        assert several > 4 and found == whole and told == rejects


def test_a_share_of_a_damaged_file_is_not_read(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "SHARE", 20_000)
    shutil.copytree(raw / "vg", tmp_path / "vg")
    path = tmp_path / "vg/region_descriptions.json"
    images = json.loads(path.read_text())
    images[len(images) // 2]["regions"][0]["x"] = "left"
    dump(path, images)
    with pytest.raises(Unsplit):
        parts("vg", tmp_path)


def test_a_touched_file_is_not_hashed_by_each_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = known_sources()["llava_json"], tmp_path / "a.json"
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    dump(path, [{"id": str(n), "conversations": turns} for n in range(60)])
    monkeypatch.setattr(json_pieces, "SHARE", 1_000)
    options = msgspec.convert({"path": "a.json"}, source.options)
    entry = Entry(builder="llava_json", options=options)
    shares = source.split(RawFolder(tmp_path, source), options, "llava_json")
    jobs = [
        ConvertJob("llava_json", entry, source, tmp_path, 0, "llava", 1, share, tmp_path / f"work-{n}.arrow")
        for n, share in enumerate(shares)
    ]
    before, hashed = [*map(convert, jobs)], list[Path]()
    path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(extract, "sha256", lambda file: hashed.append(file) or sha256(file))
        assert [*map(convert, jobs)] == before
    assert len(jobs) > 4 and hashed == [path]
