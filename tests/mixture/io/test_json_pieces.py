"""Files read in pieces and shares give what Python's json reads of them, or an error that names the place."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import json_pieces
from vlmix.mixture.io.json_pieces import Pieces, Share, Unsplit
from vlmix.mixture.io.official import OfficialFiles

SIZES = [1, 37, 300, 5000]


class Whole(Struct):
    rows: list[dict[str, Any]]
    info: str = ""


@pytest.fixture(params=SIZES)
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(json_pieces, "PIECE", request.param)
    return int(request.param)


def files(folder: Path) -> OfficialFiles:
    return OfficialFiles("x", "X", "https://x", folder)


def records(count: int) -> list[dict[str, Any]]:
    """Records whose texts look like what stands between records, and whose lists hold records like them."""
    rng = random.Random(0)
    texts = ['a}, {"id": 1', '"}, {"id"', "]}, [{", 'é\\"}, {\\"id\\": "', "\U0001f600", "\n}\n,\n{", "", "\\"]
    inner = [[], [{"id": 1, "from": "x"}, {"id": 2, "from": '"}, {"id": 3'}], [{"from": "human", "value": "}, {"}] * 3]
    return [
        {"id": number, "text": rng.choice(texts), "turns": rng.choice(inner), "last": rng.choice([1, "x", None, [1]])}
        for number in range(count)
    ]


FORMS: dict[str, Callable[[Any], str]] = {
    "plain": json.dumps,
    "compact": lambda data: json.dumps(data, separators=(",", ":"), ensure_ascii=False),
    "indented": lambda data: json.dumps(data, indent=1),
    "blank": lambda data: f"\n {json.dumps(data, separators=(' , ', ' : '))} \n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_a_list_is_read_whole(tmp_path: Path, piece: int, form: str, count: int) -> None:
    path = tmp_path / "list.json"
    path.write_text(FORMS[form](records(count)), encoding="utf-8")
    assert list(files(tmp_path).elements(path, dict[str, Any])) == records(count)
    assert [row for _, row in files(tmp_path).rows(path)] == records(count)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of", [2, 3, 17])
def test_shares_make_the_list_or_say_that_they_cannot(tmp_path: Path, piece: int, form: str, of: int) -> None:
    path = tmp_path / "list.json"
    for data in (records(100), [{"id": number, "text": '"}, {"id": 7'} for number in range(100)]):
        path.write_text(FORMS[form](data), encoding="utf-8")
        found: list[Any] = []
        before = []
        try:
            for number in range(of):
                share = Share(number, of)
                before.append((files(tmp_path).rows_before(path, share), len(found)))
                found += files(tmp_path).elements(path, dict[str, Any], share)
        except Unsplit:
            assert "turns" in data[0]  # those hold records within records
            continue
        assert found == data and all(told == counted for told, counted in before)


@pytest.mark.parametrize("of", [2, 5])
def test_shares_of_lines(tmp_path: Path, piece: int, of: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, records(50))) + "\n\n")
    found: list[Any] = []
    for number in range(of):
        own = files(tmp_path)
        own.own = "lines"
        assert own.rows_before(path, Share(number, of)) == len(found)
        found += [row for _, row in own.rows(path, Share(number, of))]
    assert found == records(50)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [True, False])
def test_a_list_in_an_object(tmp_path: Path, piece: int, form: str, before: bool) -> None:
    path = tmp_path / "object.json"
    told = {"info": 'the "rows": [1]', "other": {"a": [1]}}
    whole = {**told, "rows": records(30)} if before else {"rows": records(30), **told}
    path.write_text(FORMS[form](whole), encoding="utf-8")
    read = list(files(tmp_path).listed(path, Whole, "rows", dict[str, Any]))
    assert [row for _, rows in read for row in rows] == records(30)
    assert [last.info for last, _ in read if last is not None] == [told["info"]]


def test_a_list_that_is_there_twice_is_told(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "object.json"
    rows = json.dumps(records(9))
    path.write_text(f'{{"rows": {rows}, "rows": {rows}}}')
    with pytest.raises(VlmixError, match="object.json"):
        list(files(tmp_path).listed(path, Whole, "rows", dict[str, Any]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [0, 1, 40])
def test_an_object_of_records(tmp_path: Path, piece: int, form: str, count: int) -> None:
    path = tmp_path / "object.json"
    whole = {f"0{number}": record for number, record in enumerate(records(count))}
    path.write_text(FORMS[form](whole), encoding="utf-8")
    entries = files(tmp_path).keyed(path, dict[str, Any], "text")
    assert [pair for found in entries for pair in found.items()] == list(whole.items())
    assert entries.repeated() == []


@pytest.mark.parametrize("far", [True, False])
def test_keys_that_are_repeated(tmp_path: Path, piece: int, far: bool) -> None:
    path = tmp_path / "object.json"
    members = [(f"k{number}", {"text": f"t{number}"}) for number in range(40)]
    members.insert(39 if far else 1, members[0])
    members.insert(20, ("k19", {"text": "another"}))
    path.write_text("{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in members) + "}")
    entries = files(tmp_path).keyed(path, dict[str, Any], "text")
    assert [(each.key, each.count, each.agree) for each in entries.repeated()] == [("k0", 2, True), ("k19", 2, False)]
    assert [key for found in entries for key in found] == [f"k{number}" for number in range(40) if number != 19]


def test_halves_of_surrogate_pairs_are_counted_where_they_stand(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "list.json"
    halves = [r"\ud83d", r"a\ude00", r"\ud83d\ude00", r"\\ud83d", r"\ud83d\ud83d\ude00", "plain"]
    texts = [f'{{"text": "{half}", "skipped": "{half}"}}' for half in halves * 5]
    path.write_text(f"[{', '.join(texts)}]")
    whole = json.loads(path.read_text())

    def mended(text: str) -> str:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8", "replace").decode()

    read = files(tmp_path)
    assert [row["text"] for row in read.elements(path, dict[str, str])] == [mended(row["text"]) for row in whole]
    assert read.mended == {path: 2 * 5 * 3}


@pytest.mark.parametrize("of", [None, 3])
def test_a_byte_order_mark(tmp_path: Path, piece: int, of: int | None) -> None:
    path = tmp_path / "list.json"
    plain = [{"id": number, "text": "é"} for number in range(30)]
    path.write_text(json.dumps(plain), encoding="utf-8-sig")
    shares = [Share(number, of) for number in range(of)] if of else [None]
    assert [row for share in shares for row in files(tmp_path).elements(path, dict[str, Any], share)] == plain


def test_a_number_that_only_python_reads_is_a_row_of_its_own(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "list.json"
    path.write_text('[{"a": 1}, {"a": NaN}, {"a": 1e999}, {"a": 2}]')
    assert [row for _, row in files(tmp_path).rows(path)] == [{"a": 1}, None, None, {"a": 2}]


@pytest.mark.parametrize("cut", [1, 2, 30, 500, 997])
def test_a_truncated_file_is_told(tmp_path: Path, piece: int, cut: int) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"id": number, "text": "x"} for number in range(50)])[:cut])
    with pytest.raises(VlmixError, match=r"list\.json: .*get it again"):
        list(files(tmp_path).elements(path, dict[str, Any]))
    with pytest.raises(VlmixError):
        for number in range(3):
            list(files(tmp_path).elements(path, dict[str, Any], Share(number, 3)))


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_a_file_without_its_end_is_told_before_it_is_read(tmp_path: Path, piece: int, brackets: str) -> None:
    """The damage before its end, which reading would come upon first, is not what is told."""
    path, cut = tmp_path / "list.json", '[{"id": 0}, {"id": ?}, {"id": 2}, {"id": 3'
    path.write_text(cut if brackets == "[]" else f'{{"rows": {cut}')
    told = rf"list\.json: ends at byte {path.stat().st_size} without the `\{brackets[1]}` .*get it again"
    for share in (None, Share(0, 2), Share(1, 2)):
        with pytest.raises(VlmixError, match=told):
            if brackets == "[]":
                next(files(tmp_path).elements(path, Typed, share))
            else:
                next(files(tmp_path).listed(path, TypedWhole, "rows", Typed, share))


class Typed(Struct):
    id: int


class TypedWhole(Struct):
    rows: list[Typed]


@pytest.mark.parametrize("wrong", ['"seven"', "7.5", "null"])
def test_the_record_that_is_wrong_is_numbered(tmp_path: Path, piece: int, wrong: str) -> None:
    path = tmp_path / "list.json"
    text = json.dumps([{"id": number} for number in range(40)]).replace('"id": 33', f'"id": {wrong}')
    path.write_text(text)
    with pytest.raises(VlmixError, match=r"record 33: Expected `int`"):
        list(files(tmp_path).elements(path, Typed))
    with pytest.raises(Unsplit):
        list(files(tmp_path).elements(path, Typed, Share(1, 2)))
    path.write_text(f'{{"rows": {text}}}')
    with pytest.raises(VlmixError, match=r"record 33: Expected `int`"):
        list(files(tmp_path).listed(path, TypedWhole, "rows", Typed))


def test_a_byte_that_no_json_has_is_named_by_its_place_in_the_file(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "list.json"
    text = json.dumps([{"id": number} for number in range(40)]).replace('"id": 33', '"id": ?')
    path.write_text(text)
    with pytest.raises(VlmixError, match=rf"\(byte {text.index('?')}\)"):
        list(files(tmp_path).elements(path, Typed))


def test_pieces_are_about_as_large_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [{"regions": [{"id": n, "x": 1}, {"id": n + 1, "x": 2}], "id": n} for n in range(1000)]
    text = memoryview(json.dumps(data).encode())
    pieces, at, ends = Pieces(text), 1, []
    while at < len(text):
        ends.append(pieces.piece(at, len(text), 500).end)
        at = ends[-1] + 1
    assert len(ends) > len(text) // 600
    assert sum(len(json.loads(f"[{bytes(text[a + 1 : b]).decode()}]")) for a, b in zip([0, *ends], ends[:-1])) > 900
