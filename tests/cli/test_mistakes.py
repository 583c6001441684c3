"""Mistakes that people make: each ends with one line that names the cause and the remedy, and writes nothing.

A case is (arguments, what the line holds). The folder that they run in holds `raw`, `mix`, `run` and the files below.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import VLMIX, hashes, vlmix, vlmix_each
from vlmix.cli import main

GOOD_ROW = '{"id":"a","conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}]}'
ABSOLUTE = GOOD_ROW.replace('"a",', '"%d","image":"/abs/p.jpg",', 1).replace('"q"', '"<image>\\nq"')
FILES: dict[str, str | bytes] = {
    "big.json": '[{"id":"x","score":' + "9" * 400 + "}]",
    "deep.json": "[" * 200_000,
    "text.csv": "id,score\n" + "x" * 10_000 + ",abc\n",
    "quality.csv": "id,quality\na,1\n",
    "list.yaml": "- a\n",
    "empty.yaml": "",
    "infinite.yaml": "name: x\ntotal: 10\nsources: {gqa: {weight: .inf}}",
    "builder.yaml": "name: x\nsources: {x: {builder: [gqa]}}",
    "latin.yaml": b"name: \xe9\n",
    "tab.yaml": "name: x\n\tsources: {}",
    "twice.yaml": "name: x\nname: y\nsources: {gqa: {}}",
    "deep/manifest.json": "[" * 100_000,
    "binary/manifest.json": b"\xff\xfe",
    "answers.jsonl": '{"question_id": 1, "text": "x"}\n',
    "binary.jsonl": b"\xff\xff\n",
    "own/llava_json/latin.json": f"[{GOOD_ROW}]".encode().replace(b'"q"', b'"\xe9"'),
    "own/llava_json/table.csv": "image,question,answer\na.jpg,q,a\n",
    "own/llava_json/coco.json": '{"images": [], "annotations": []}',
    "own/llava_json/parquet.json": b"PAR1\x15\x04",
    "own/llava_json/absolute.json": "[" + ",".join(ABSOLUTE % number for number in range(60)) + "]",
    "own/llava_json/empty.json": "",
    "own/llava_json/role.json": f"[{GOOD_ROW.replace('human', 'z' * 2_000_000)}]",
    "column.csv": "id," + "x" * 2_000_000 + "\na,1\n",
    "key.jsonl": '{"id": "a", "' + "x" * 2_000_000 + '": 1}\n',
}


def own(name: str) -> list[str]:
    return ["build", "llava-json", "--raw", "own", "--out", "out", f"sources.llava_json.path={name}"]


def build(*arguments: str) -> list[str]:
    return ["build", "sample", "--raw", "raw", "--out", "out", *arguments]


LONG = "x" * 300
CASES: list[tuple[list[str], str]] = [
    (["build", "sampel", "--raw", "raw", "--out", "out"], "did you mean 'sample'"),
    (["build", "tiny", "--raw", "raw", "--out", "out"], "tiny is a recipe for `vlmix train`"),
    (["build", "none.yaml", "--raw", "raw", "--out", "out"], "none.yaml: No such file"),
    (["build", "raw", "--raw", "raw", "--out", "out"], "there is no recipe 'raw'"),
    (["build", "list.yaml", "--raw", "raw", "--out", "out", "seed=1"], "the recipe is not a mapping"),
    (["build", "empty.yaml", "--raw", "raw", "--out", "out"], "a recipe is a mapping"),
    (["build", "infinite.yaml", "--raw", "raw", "--out", "out"], "sources.gqa: `weight`: expected `float` <= 10"),
    (["build", "builder.yaml", "--raw", "raw", "--out", "out"], "there is no builder ['gqa']; did you mean 'gqa'"),
    (["build", "latin.yaml", "--raw", "raw", "--out", "out"], "latin.yaml: not a text file"),
    (["build", "tab.yaml", "--raw", "raw", "--out", "out"], "tab.yaml: while scanning"),
    (["build", "twice.yaml", "--raw", "raw", "--out", "out"], "key 'name' is a duplicate"),
    (["build", "quality.csv", "--raw", "raw", "--out", "out"], "a recipe is a mapping"),
    (["build", LONG, "--raw", "raw", "--out", "out"], "File name too long"),
    (["build", "sample", "--raw", LONG, "--out", "out"], "File name too long"),
    (["build", "sample", "--raw", "raw", "--out", LONG], "File name too long"),
    (["build", "sample", "--raw", "raw", "--out", "o-\udcff"], "is not UTF-8; choose another"),
    (["build", "sample", "--raw", "nowhere", "--out", "out"], "nowhere does not exist"),
    (["build", "sample", "--raw", "big.json", "--out", "out"], "big.json is not a folder"),
    (["build", "sample", "--raw", "raw/gqa", "--out", "out"], "did you mean"),
    (["build", "sample", "--raw", ".", "--out", "out"], "llava_instruct does not exist, but raw/llava_instruct does"),
    (["build", "sample", "--raw", "raw", "--out", "mix"], "mix exists already"),
    (["build", "sample", "raw", "--raw", "raw", "--out", "out"], "did you mean --raw raw?"),
    (build("sede=1"), "unknown key 'sede'; did you mean 'seed'"),
    (build("seed"), "seed: write key=value"),
    (build("=1"), "=1: write key=value"),
    (build("seed=1.5"), "`seed`: expected `int`, got 1.5"),
    (build("seed=-1"), "`seed`: expected `int` >= 0, got -1"),
    (build("total=abc"), "`total`: expected `int | null`, got 'abc'"),
    (build("total=" + "9" * 5000), "total=999"),
    (build("total=100000000"), "asks for more than the"),
    (build("prompts=lava"), "expected one of instructblip, llava, plain, got 'lava'"),
    (build("order=random"), "expected one of natural, shuffled, got 'random'"),
    (build("sources.vqav22.take=1"), "there is no builder 'vqav22'; did you mean 'vqav2'"),
    (build("sources.vqav2.takes=1"), "unknown key 'takes'; did you mean 'take'"),
    (build("sources.vqav2.take=0"), "`take`: expected `int` >= 1, got 0"),
    (build("sources.vqav2.take=100000"), "lower `take`, add `repeat`"),
    (build("sources.vqav2.ratio=2"), "`ratio`: expected `float` <= 1.0, got 2"),
    (build("sources.vqav2.where=num_roundz > 3"), "there is no column 'num_roundz'; did you mean 'num_rounds'"),
    (build("sources.vqav2.where=num_rounds >"), "unable to parse"),
    (build("sources.vqav2.where=read_csv('x')"), "the function read_csv is not admitted"),
    (own("table.csv"), "expected is LLaVA's form"),
    (own("coco.json"), "no list of turns in `conversations`"),
    (own("parquet.json"), "expected is LLaVA's form"),
    (own("latin.json"), "record 0"),
    (own("empty.json"), "is empty"),
    (own("nothing.json"), "there is no such file"),
    (own("absolute.json"), "60 unsafe_path"),
    (["plan", "llava-1.5-665k", "--raw", "raw", "sources.vg.take=1"], "or accept it with `allow_fewer: true`"),
    (["sample", "mix"], "mix exists already"),
    (["sample", LONG], "File name too long"),
    (["sample", "big.json/x"], "Not a directory"),
    (["sources", "vqa2"], "did you mean 'vqav2'"),
    (["recipes", "sampel"], "did you mean 'sample'"),
    (["docs", "select"], "did you mean 'selection'"),
    (["demo", "mix"], "mix exists already"),
    (["inspect", "nowhere"], "nowhere is not a mixture"),
    (["inspect", "."], "is not a mixture"),
    (["inspect", LONG], "File name too long"),
    (["inspect", "deep"], "the manifest is damaged"),
    (["inspect", "binary"], "binary/manifest.json"),
    (["inspect", "mix", "--id", "nope"], "has no sample 'nope'"),
    (["inspect", "gs://bucket/x"], "gcsfs"),
    (["inspect", "mix", "--id", "2317133"], "did you mean 'gqa/2317133'"),
    (["sources", "VQAv2"], "did you mean 'vqav2'"),
    (["build", "sample", "--raw", "raw", "--out", "dangling"], "dangling exists already"),
    (["subsample", "mix", "--by", "column.csv", "--ratio", "0.1", "--out", "out"], "column.csv: "),
    (["subsample", "mix", "--by", "key.jsonl", "--ratio", "0.1", "--out", "out"], "key.jsonl: "),
    (own("role.json"), "unknown_role"),
    (["verify", "nowhere"], "nowhere is not a mixture"),
    (["verify", "raw"], "raw is not a mixture"),
    (["subsample", "mix", "--out", "out"], "say what to keep"),
    (["subsample", "mix", "--ratio", "2", "--out", "out"], "it must be above 0 and at most 1"),
    (["subsample", "mix", "--ratio", "nan", "--out", "out"], "it must be above 0 and at most 1"),
    (["subsample", "mix", "--ratio", "ten", "--out", "out"], "write 0.1 or 10%"),
    (["subsample", "mix", "--total", "0", "--out", "out"], "total 0: at least 1"),
    (["subsample", "mix", "--total", "99999", "--out", "out"], "99999"),
    (["subsample", "mix", "--source", "gqq=5", "--out", "out"], "did you mean 'gqa'"),
    (["subsample", "mix", "--source", "gqa", "--out", "out"], "write NAME=1000"),
    (["subsample", "mix", "--where", "words > 3", "--out", "out"], "did you mean 'num_words'"),
    (["subsample", "mix", "--where", "num_words > 99999999", "--out", "out"], "keeps no sample"),
    (["subsample", "mix", "--ratio", "0.5", "--out", "raw"], "raw exists already"),
    (["subsample", "mix", "--by", "none.csv", "--ratio", "0.1", "--out", "out"], "there is no such file"),
    (["subsample", "mix", "--by", "quality.csv", "--ratio", "0.1", "--out", "out"], "--column quality"),
    (["subsample", "mix", "--by", "text.csv", "--total", "1", "--out", "out"], "'abc' is not a number"),
    (["subsample", "mix", "--by", "big.json", "--total", "1", "--out", "out"], "too large for a float"),
    (["subsample", "mix", "--by", "deep.json", "--total", "1", "--out", "out"], "deep.json"),
    (["subsample", "mix", "--by", "clusters", "--ratio", "0.1", "--out", "out"], "name an embedding file"),
    (["subsample", "mix", "--by", "clusters", "--embeddings", "text.csv", "--ratio", "0.1", "--out", "out"], "Parquet"),
    (["batches", "mix", "--global-batch", "0"], "global batch 0: at least 1"),
    (["batches", "{mix: 0, other: 1}", "--global-batch", "8"], "mix: a weight is above 0"),
    (["batches", "{mix: 1, other", "--global-batch", "8"], "while parsing a flow mapping"),
    (["batches", "mix", "--global-batch", "100000"], "larger than the 840 samples"),
    (["batches", "mix", "--global-batch", "7", "--world", "2"], "cannot be shared evenly by 2 ranks"),
    (["export", "mix", "--to", "llava-jsn", "--out", "out"], "did you mean 'llava-json'"),
    (["export", "mix", "--to", "hf", "--out", "raw"], "raw exists already"),
    (["score", "gqaa", "--answers", "answers.jsonl", "--annotations", "raw/gqa"], "did you mean 'gqa'"),
    (["score", "gqa", "--answers", "none.jsonl", "--annotations", "raw/gqa"], "none.jsonl: No such file"),
    (["score", "gqa", "--answers", "binary.jsonl", "--annotations", "raw/gqa"], "no answer"),
    (["score", "gqa", "--answers", "answers.jsonl", "--annotations", "nowhere"], "does not exist"),
]
NEED_TORCH: list[tuple[list[str], str]] = [
    (["train", "nope"], "there is no recipe 'nope'"),
    (["train", "sample"], "sample is a recipe for `vlmix plan` and `build`"),
    (["train", "tiny"], "add mixture=FOLDER"),
    (["train", "tiny", "mix"], "did you mean mixture=mix?"),
    (["train", "tiny", "mixture=nowhere", "out=out"], "nowhere is not a mixture"),
    (["train", "tiny", "data=mix"], "unknown key 'data'; did you mean 'mixture'"),
    (["train", "tiny", "gradient_accumulation_steps=4"], "'gradient_accumulation_steps'; it follows from the batch"),
    (
        ["train", "tiny", "batch.gradient_accumulation=4"],
        "in micro-batches of batch.pack_length tokens, or of batch.micro",
    ),
    (["train", "tiny", "mixture=mix", "optim.lrr=1"], "unknown key 'lrr'; did you mean 'lr'"),
    (["train", "tiny", "mixture=mix", "optim.lr=fast"], "`optim.lr`: expected `float`, got 'fast'"),
    (["train", "tiny", "mixture=mix", "epochs=-1"], "`epochs`: expected `float` > 0.0, got -1"),
    (["train", "tiny", "mixture=mix", "model.image_aspect_ratio=square"], "expected one of"),
    (["train", "tiny", "mixture=mix", "out=out", "model.vision_tower=towers/x"], "towers/x"),
    (["evaluate", "gqaa", "--model", "run", "--data", "raw", "--out", "out"], "did you mean 'gqa'"),
    (["evaluate", "gqa", "--model", "runs/t2", "--data", "raw", "--out", "out"], "runs/t2: no such folder"),
    (["evaluate", "gqa", "--model", "typo", "--data", "raw", "--out", "out"], "typo: there is no such folder here"),
    (["evaluate", "gqa", "--model", "raw", "--data", "raw", "--out", "out"], "raw holds no model"),
    (["evaluate", "gqa", "--model", "run", "--data", "raw", "--out", "mix"], "mix is a mixture"),
    (["train", "tiny", "mixture=mix", "epochs=1e300"], "`epochs`: expected `float` <= 1000000.0"),
    (["embed", "mix", "--vision-tower", "nowhere/x", "--out", "out"], "nowhere/x"),
    (["sweep", "demoo"], "did you mean 'demo'"),
    (["sweep", "demo", "mixture=mix", "ratios=[2]", "--out", "out"], "`ratios[0]`: expected `float` <= 1.0, got 2"),
    (["sweep", "demo", "mixture=mix", "grid=x", "--out", "out"], "`grid`: expected `object`, got 'x'"),
]
WRONG_USAGE = [["biuld"], ["train", "tiny", "--gpu", "H100"], ["train", "tiny", "--dry-run", "--gpu", "H100"],
               ["build", "sample", "--rwa", "raw"], ["build", "sample", "--raw", "raw"], ["build"],
               build("--workers", "0"), ["batches", "mix"],
               ["batches", "mix", "--global-batch", "8", "--world", "0"],
               ["batches", "mix", "--global-batch", "8", "--image-tokens", "9" * 19],
               ["subsample", "mix", "--total", "many", "--out", "out"],
               ["score", "gqa", "--answers", "answers.jsonl"]]  # fmt: skip


@pytest.fixture(scope="module")
def place(raw: Path, mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to make mistakes in."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "raw").symlink_to(raw)
    (folder / "mix").symlink_to(mixture)
    (folder / "dangling").symlink_to("nowhere/there")
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    yield place
    for path in [*place.glob("*.partial"), place / "out"]:  # what a resumed build would take up; a run that began
        shutil.rmtree(path, ignore_errors=True)
    assert sorted(path.name for path in place.iterdir()) == before, "nothing is left"


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["vlmix", *arguments])
    if "build" in arguments or "plan" in arguments:
        monkeypatch.setattr(sys, "argv", ["vlmix", *arguments, "--workers", "1"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0)


def name_of(case: object) -> str:
    return " ".join(case)[:60] if isinstance(case, list) else ""


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=name_of)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = run(arguments, monkeypatch)
    assert arguments[0] == "train" or not (inside / "out").exists()
    printed = capsys.readouterr()
    if arguments[0] == "verify" and not printed.err:
        printed = printed._replace(err=f"vlmix: {printed.out}")
    assert status == 1, printed
    assert message in printed.err and printed.err.startswith("vlmix: ") and printed.err.count("\n") == 1, printed.err
    assert len(printed.err) < 5000


@pytest.mark.parametrize(("arguments", "message"), NEED_TORCH, ids=name_of)
def test_a_mistake_in_training_is_one_line(
    arguments: list[str],
    message: str,
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    test_a_mistake_is_one_line(arguments, message, inside, monkeypatch, capsys)


@pytest.mark.parametrize("arguments", WRONG_USAGE, ids=name_of)
def test_wrong_usage_is_told_with_status_2(
    arguments: list[str], inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "score":
        assert run(arguments, monkeypatch) == 2
    else:
        monkeypatch.setattr(sys, "argv", ["vlmix", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_names_its_line_and_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken() -> None:
        raise KeyError("Answer\nmore")

    monkeypatch.setattr(main, "app", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run([], monkeypatch) == 70
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "KeyError" in line and "test_mistakes.py, line" in line
    (log,) = tmp_path.glob("vlmix-*.log")
    assert str(log) in line and "Traceback" in log.read_text()
    monkeypatch.setenv("VLMIX_DEBUG", "1")
    assert run([], monkeypatch) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.processes
def test_streams_that_are_closed_or_full(raw: Path, tmp_path: Path) -> None:
    def shell(line: str) -> subprocess.CompletedProcess[str]:
        command = f'"$0" -c "$1" {line}'
        return subprocess.run(["sh", "-c", command, *VLMIX[:1], VLMIX[2]], capture_output=True, text=True, timeout=120)

    assert shell("sources >&-").returncode == 0
    full = shell("sources >/dev/full")
    assert full.returncode == 1 and os.strerror(errno.ENOSPC) in full.stderr and full.stderr.count("\n") == 1
    (tmp_path / "one.yaml").write_text("name: one\nsources: {okvqa: {}}")
    silent = shell(f"build {tmp_path / 'one.yaml'} --raw {raw} --out {tmp_path / 'a'} --workers 1 2>&-")
    assert silent.returncode == 0 and "64 samples" in silent.stdout
    assert hashes(tmp_path / "a")
    assert shell("sources nothing 2>&-").returncode == 1
    assert "Traceback" not in shell("sources | head -1").stderr


@pytest.mark.processes
def test_without_torch_the_remedy_names_packages(tmp_path: Path) -> None:
    """A torch that does not import, found before the real one. One process has all the commands."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')")
    commands = [["train", "tiny"], ["evaluate", "gqa", "--model", "x", "--data", "x", "--out", "x"],
                ["embed", "x", "--vision-tower", "x", "--out", "x"], ["sweep", "demo"], ["demo", "d"]]  # fmt: skip
    path = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    for done in vlmix_each(*commands, cwd=tmp_path, env=path):
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert "needs torch: pip install" in done.stderr and "'torch>=" in done.stderr


@pytest.mark.processes
def test_a_failing_build_with_workers_ends_in_one_line(raw: Path, tmp_path: Path) -> None:
    """The thread of its pool may not meet closed pipes at the end of the interpreter, and complain."""
    (tmp_path / "one.yaml").write_text("name: one\nsources: {okvqa: {where: nothing > 3}}")
    for _ in range(4):
        done = vlmix("build", tmp_path / "one.yaml", "--raw", raw, "--out", tmp_path / "x", "--workers", 2)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr


def test_a_panic_of_a_library_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import polars as pl

    def panics() -> None:
        raise pl.exceptions.PanicException("called `Result::unwrap()` on an `Err` value")

    monkeypatch.setattr(main, "app", panics)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run([], monkeypatch) == 70 and capsys.readouterr().err.count("\n") == 1
