"""Hostile pickles end in one line, in little memory, and run nothing."""

import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import read
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.pickles import load_plain

ROOT = Path(__file__).parents[3]
HOSTILE = {
    "a nested tuple as a key": b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"K\x01u.",
    "a frozenset of tuples": b"\x80\x04(" + b")" + b"\x85" * 1_000_000 + b"\x91.",
    "a memo of 34 GB": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a memo of 34 GB as text": b"(lp2147483647\n.",
    "bytes of 20 GB": b"\x80\x05\x96" + (20 * 2**30).to_bytes(8, "little") + b"x.",
    "text of 20 GB": b"\x80\x04\x8d" + (20 * 2**30).to_bytes(8, "little") + b"x.",
    "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "a command": b"cos\nsystem\n(S'touch ran'\ntR.",
    "a command by another name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",
    "an object outside": b"\x80\x02K\x01Q.",
    "a frame of 20 GB": b"\x80\x04\x95" + (20 * 2**30).to_bytes(8, "little") + b"cos\nsystem\n.",
    "an id of 5,000 digits": b"\x80\x02\x8b" + (2100).to_bytes(4, "little") + b"\x01" * 2100 + b".",
    "an id of 5,000 digits as text": b"L" + b"1" * 5000 + b"L\n.",
    "a list in itself": b"\x80\x02]q\0h\0a.",
    "half of a character": b"\x80\x02]X\x03\0\0\0\xed\xa0\xbda.",
    "half of a character as text": b"(lV\\ud83d\na.",
    "half": b"\x80\x02](K\x01K\x02",
    "nothing": b"",
    "text": b"<html>404</html>",
}


@pytest.mark.processes
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_one_line(kind: str, tmp_path: Path) -> None:
    """In a process with 1 GB, which a crash would end."""
    path = tmp_path / "refs.p"
    path.write_bytes(HOSTILE[kind])
    code = (
        "import sys; from pathlib import Path; from vlmix import VlmixError\n"
        "from vlmix.mixture.io.pickles import *\n"
        "path = Path(sys.argv[1])\n"
        "try: load_plain(path.read_bytes(), path)\n"
        "except VlmixError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith(str(path)) and len(done.stdout) < 500 and done.stdout.count("\n") == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_data_comes_back(protocol: int) -> None:
    shared = "the lady"
    data = [{"sent": shared, "raw": shared, "ids": [1, 2**40, -3, 2.5, None, True], "other": {"a": "é漢"}}] * 300
    assert load_plain(pickle.dumps(data, protocol=protocol), Path("x")) == data


def test_text_of_python_2_is_read() -> None:
    text = b"(lp1\n(dp2\nS'sent'\np3\nS'the lady'\np4\nsS'sent_id'\np5\nI7\nsa."
    assert load_plain(text, Path("x")) == [{"sent": "the lady", "sent_id": 7}]


@pytest.mark.parametrize("text", [rb"S'caf\xc3\xa9'" + b"\n", rb"S'caf\xe9'" + b"\n", b"U\x04caf\xe9"])
def test_text_of_python_2_that_is_not_ascii_is_read(text: bytes) -> None:
    data = b"(lp1\n" + text + b"a."
    assert load_plain(data, Path("x")) == pickle.loads(data, encoding="latin1")


def test_text_that_is_shared_is_read() -> None:
    shared = "the lady in the blue shirt on the left, the second one"
    data = [{"sent": shared, "raw": shared, "split": "train"} for _ in range(1000)]
    assert load_plain(pickle.dumps(data, protocol=2), Path("x")) == data


SENTENCE = {"sent_id": 1, "sent": "a", "raw": "a", "tokens": ["a"]}
SHARING = {
    "a list of sentences": lambda ref: [{**ref, "sentences": s} for s in [[SENTENCE] * 20_000] for _ in range(20_000)],
    "a sentence of 2 MB": lambda ref: [
        {**ref, "sentences": [{"sent_id": n, "sent": s, "raw": s} for n in range(20_000)]} for s in ["x" * 2_000_000]
    ],
    "lists of lists": lambda ref: [doubled(40)],
}


def doubled(times: int) -> list[Any]:
    """2 ** times lists, in 3 bytes for each doubling."""
    inner: list[Any] = []
    for _ in range(times):
        inner = [inner, inner]
    return inner


@pytest.mark.parametrize("kind", SHARING)
def test_refs_that_share_what_they_hold_are_refused(raw: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(raw / "refcoco", tmp_path / "refcoco")
    path = tmp_path / "refcoco/refcoco/refs(unc).p"
    ref = next(ref for ref in pickle.loads(path.read_bytes()) if ref["split"] == "train")
    path.write_bytes(pickle.dumps(SHARING[kind](ref), protocol=2))
    with pytest.raises(VlmixError, match="its parts share others"):
        read("refcoco", tmp_path)
