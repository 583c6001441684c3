"""`vlmix inspect` over some of the samples."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.helpers import VLMIX, dump, vlmix_here
from vlmix.builders import known_sources
from vlmix.cli import main
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("           id  ")]


def test_samples_come_in_mixture_order_a_page_at_a_time(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = pl.read_parquet(mixture / "samples.parquet")
    gqa = index.filter((pl.col("source") == "gqa") & (pl.col("num_rounds") > 3))["id"].to_list()
    assert len(gqa) > 7
    main.inspect(str(mixture), source=["gqa"], where="num_rounds > 3", limit=5)
    assert listed(capsys) == gqa[:5]
    main.inspect(str(mixture), source=["gqa"], where="num_rounds > 3", limit=5, offset=5)
    assert listed(capsys) == gqa[5:10]
    main.inspect(str(mixture), offset=20)
    assert listed(capsys) == index["id"].to_list()[20:30]
    main.inspect(str(mixture), limit=1)
    assert capsys.readouterr().out.endswith(f"\n1 to 1 of {len(index):,} samples; --offset 1 shows the next\n")
    both = index.filter(pl.col("source").is_in(["gqa", "vqav2"]))["id"].to_list()
    main.inspect(str(mixture), source=["vqav2", "gqa"], limit=10_000, as_json=True)
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == both

    open_mixture(mixture).subset(ratio=0.2).save(tmp_path / "view")
    mine = set(open_mixture(tmp_path / "view").column("id").to_pylist())
    main.inspect(str(tmp_path / "view"), source=["gqa"], limit=10_000, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == [id for id in both if id.startswith("gqa/") and id in mine]
    assert all(row["conversations"] for row in rows), "a view's texts are its root's"


def test_a_sample_is_shown_as_by_its_id(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    id = open_mixture(mixture).column("id").to_pylist()[7]
    main.inspect(str(mixture), id=id)
    alone = capsys.readouterr().out
    main.inspect(str(mixture), where=f"id = '{id}'")
    assert alone in capsys.readouterr().out
    main.inspect(str(mixture), id=id, as_json=True)
    row = json.loads(capsys.readouterr().out)
    main.inspect(str(mixture), where=f"id = '{id}'", as_json=True)
    assert json.loads(capsys.readouterr().out) == [row]


def test_long_turns_are_cut_and_lines_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"from": "human", "value": "word " * 200_000}, {"from": "gpt", "value": "a " * 400 + "end"}]
    dump(tmp_path / "llava_json" / "x.json", [{"id": "a", "conversations": turns}])
    recipe = parse({"name": "long", "sources": {"llava_json": {"path": "x.json"}}}, known_sources())
    build(recipe, known_sources(), tmp_path, tmp_path / "mix")
    main.inspect(str(tmp_path / "mix"), limit=1)
    text = capsys.readouterr().out
    assert len(text) < 6000 and "… 996,000 more characters; --id shows all" in text
    assert f"   gpt: {'a ' * 400}end\n" in text, "a pipe gets lines as they are stored"
    main.inspect(str(tmp_path / "mix"), id=open_mixture(tmp_path / "mix").column("id").to_pylist()[0])
    assert "word " * 200_000 in capsys.readouterr().out


def test_what_shows_nothing_says_so(mixture: Path) -> None:
    for options, message in (
        ({"source": ["gqq"]}, "has no source 'gqq'; did you mean 'gqa'"),
        ({"where": "num_rounds > 9999"}, "no sample matches `where` 'num_rounds > 9999'"),
        ({"source": ["gqa"], "where": "num_images = 0"}, "no sample of gqa matches `where` 'num_images = 0'"),
        ({"where": "num_roundz > 3"}, "did you mean 'num_rounds'"),
        ({"where": "read_csv('x')"}, "the function read_csv is not admitted"),
        ({"offset": 10**9}, "--offset 1000000000: there are only "),
    ):
        with pytest.raises(VlmixError, match=message.replace("(", r"\(").replace("?", r"\?")):
            main.inspect(str(mixture), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--id", "x", "--limit", "3"], "--id and --limit do not go together"),
        (["--id", "x", "--rejects"], "--id and --rejects do not go together"),
        (["--licenses", "--where", "1 = 1", "--offset", "0"], "--licenses and --where and --offset"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(mixture: Path, options: list[str], message: str) -> None:
    done = vlmix_here("inspect", mixture, *options)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()) and not done.stdout


@pytest.mark.processes
def test_a_terminal_gets_a_pager(mixture: Path, tmp_path: Path) -> None:
    """The command on a terminal of its own, with a pager that marks what it is given."""
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\nsed 's/^/paged:/'\n")
    pager.chmod(0o755)
    environment = {**os.environ, "PAGER": str(pager), "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("MANPAGER", None)

    def on_terminal(*options: str) -> list[str]:
        ours, theirs = pty.openpty()
        command = [*VLMIX, "inspect", str(mixture), *options]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, env=environment) as child:
            os.close(theirs)
            text = b""
            with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
                while data := os.read(ours, 65536):
                    text += data
            os.close(ours)
        assert child.returncode == 0, text
        return text.decode().splitlines()

    lines = on_terminal("--source", "gqa", "--limit", "2")
    assert len(lines) > 10 and all(line.startswith("paged:") for line in lines), lines
    assert not any(line.startswith("paged:") for line in on_terminal("--source", "gqa", "--limit", "2", "--json"))
