"""What comes from data is shown as text: no terminal obeys it, no markup is read in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.helpers import dump
from vlmix.builders import known_sources
from vlmix.cli import main, show
from vlmix.mixture.build.build import build
from vlmix.mixture.build.plan import PlanRow
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.visible import visible, visible_json
from vlmix.mixture.mixture import open as open_mixture

# A clipboard write, a title, colours, a C1 control sequence, an override of direction, a separator, rich's markup.
HOSTILE = "a\x1b]52;c;ZXZpbA==\x07\x1b]0;t\x07\x1b[31m\x9b2J\x7f\u202eb\u2066\u200f\u2028\r[/x][red][link=http://evil]c[/link]"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SHOWN = r"a\x1b]52;c;ZXZpbA==\x07\x1b]0;t\x07\x1b[31m\x9b2J\x7f\u202eb\u2066\u200f\u2028\x0d[/x][red][link=http://evil]c[/link]"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal without colours, so that every control in what is printed comes from the text."""
    monkeypatch.setattr(show, "out", Console(highlight=False, width=2000, force_terminal=True, color_system=None))
    monkeypatch.setattr(show, "_err", Console(stderr=True, width=2000, force_terminal=True, color_system=None))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")

    def row(id: str, *values: str) -> dict[str, Any]:
        turns = [{"from": who, "value": value} for who, value in zip(("human", "gpt"), values)]
        return {"id": id, "conversations": turns}

    rows = [row(HOSTILE, f"q {HOSTILE}", f"first\n\tsecond {HOSTILE}"), row(f"lost{HOSTILE}", HOSTILE)]
    dump(folder / "llava_json" / "x.json", rows)
    recipe = parse({"name": HOSTILE, "sources": {"llava_json": {"path": "x.json"}}}, known_sources())
    build(recipe, known_sources(), folder, folder / "mix")
    return folder / "mix"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert not OBEYED.search(re.sub("first\n\t", "", out + err))
    return out + err


def test_a_sample_is_shown_as_it_is_stored(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    id = open_mixture(hostile).column("id").to_pylist()[0]
    main.inspect(str(hostile), id=id)
    text = printed(capsys)
    assert f"q {SHOWN}\n" in text and f"second {SHOWN}\n" in text
    main.inspect(str(hostile), id=id, as_json=True)
    assert json.loads(printed(capsys))["conversations"][1]["value"] == f"first\n\tsecond {HOSTILE}"


def test_samples_are_shown_as_they_are_stored(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    id = open_mixture(hostile).column("id").to_pylist()[0]
    main.inspect(str(hostile), where="num_rounds = 1")
    text = printed(capsys)
    assert f"q {SHOWN}\n" in text and f"second {SHOWN}\n" in text
    main.inspect(str(hostile), limit=5, as_json=True)
    (row,) = json.loads(printed(capsys))
    assert row["id"] == id and row["conversations"][1]["value"] == f"first\n\tsecond {HOSTILE}"
    with pytest.raises(VlmixError) as error:
        main.inspect(str(hostile), source=[HOSTILE])
    show.line(str(error.value))
    assert "has no source" in printed(capsys)


def test_rejects_are_shown_as_they_are_stored(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.inspect(str(hostile), rejects=True)
    assert f"lost{SHOWN}" in printed(capsys)
    main.inspect(str(hostile), rejects=True, as_json=True)
    assert HOSTILE in json.loads(printed(capsys))[0]["id"]


def test_compositions_and_batches_are_shown_as_text(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.inspect(str(hostile))
    assert SHOWN in printed(capsys)
    main.batches(str(hostile), global_batch=1, image_tokens=576, steps=1, epoch=0, start=0, world=1, length_window=1)
    assert SHOWN in printed(capsys)
    row = PlanRow(source=HOSTILE, license=HOSTILE, samples=1, samples_per_epoch=1, rounds=1, words=1, images=0,
                  missing=0, rejects=0, bytes=1)  # fmt: skip
    show.plan(HOSTILE, [row], [HOSTILE], False)
    assert printed(capsys).count(SHOWN) == 2
    show.rows(["method", HOSTILE], [[HOSTILE, "1"]])
    assert printed(capsys).count(SHOWN) == 2
    show.note(HOSTILE)
    assert SHOWN in printed(capsys)


def test_a_cell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show.rows(["method"], [["a\nforged"]])
    assert [line.strip() for line in printed(capsys).splitlines()] == ["method", r"a\x0aforged"]


def test_messages_are_shown_as_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise VlmixError(f"{HOSTILE}: file\udcff\nsecond problem")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert printed(capsys) == f"vlmix: {SHOWN}: file\\udcff\nsecond problem\n"


def test_progress_shows_labels_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    with show.progress() as progress:
        progress("[/x]a\x1b]0;t\x07", 1, 2)
    assert r"[/x]a\x1b]0;t\x07" in capsys.readouterr().err


def test_every_character_that_is_obeyed_is_replaced() -> None:
    import unicodedata

    for number in range(0x110000):
        letter = chr(number)
        obeyed = unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "B"
        ) or number in (0x200E, 0x200F, 0x61C)  # fmt: skip
        assert (visible(letter) != letter) == obeyed, hex(number)
    assert visible("a\n\tb", lines=True) == "a\n\tb"
    assert json.loads(visible_json(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE
