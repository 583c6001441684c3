"""Hostile pickles end in one line, in little memory, and run nothing."""

import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mixture.errors import VlmixError
from mixture.pickles import load_plain

ROOT = Path(__file__).parents[2]
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
    "half": b"\x80\x02](K\x01K\x02",
    "nothing": b"",
    "text": b"<html>404</html>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_one_line(kind: str, tmp_path: Path) -> None:
    """In a process with 1 GB, which a crash would end."""
    path = tmp_path / "refs.p"
    path.write_bytes(HOSTILE[kind])
    code = (
        "import sys; from pathlib import Path; from mixture.errors import VlmixError; from mixture.pickles import *\n"
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


def test_refs_that_share_their_sentences_are_refused(raw: Path, tmp_path: Path) -> None:
    import shutil

    from tests.helpers import read

    shutil.copytree(raw / "refcoco", tmp_path / "refcoco")
    path = tmp_path / "refcoco/refcoco/refs(unc).p"
    ref = next(ref for ref in pickle.loads(path.read_bytes()) if ref["split"] == "train")
    sentences = [ref["sentences"][0]] * 20_000
    path.write_bytes(pickle.dumps([{**ref, "sentences": sentences} for _ in range(20_000)], protocol=2))
    with pytest.raises(VlmixError, match="share sentences"):
        read("refcoco", tmp_path)


def test_half_a_character_in_a_sentence_is_one_line(raw: Path, tmp_path: Path) -> None:
    import shutil

    from tests.helpers import read

    shutil.copytree(raw / "refcoco", tmp_path / "refcoco")
    path = tmp_path / "refcoco/refcoco/refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    for ref in refs:
        ref["sentences"][0]["sent"] = "half \ud83d"
    path.write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(VlmixError, match="half of a character"):
        read("refcoco", tmp_path)
