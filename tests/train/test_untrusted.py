"""Runs and models that somebody else made: reading them runs no code of theirs."""

import ast
import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex  # noqa: E402

from tests.helpers import vlmix_here  # noqa: E402
from tests.train.nano import nano  # noqa: E402
from vlmix.mixture.errors import VlmixError  # noqa: E402
from vlmix.train.checkpoint import _Unpickler  # noqa: E402
from vlmix.train.run import train  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def begun(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not finished: one checkpoint and no model."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train(nano(mixture=str(mixture), out=str(out), max_steps=2))
    shutil.rmtree(out / "model")
    return out


def copied(begun: Path, tmp_path: Path) -> tuple[Path, Path]:
    out = tmp_path / "run"
    shutil.copytree(begun, out)
    return out, next((out / "checkpoints").glob("step-*"))


def payload(tmp_path: Path) -> Any:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    return Payload()


def test_a_checkpoints_metadata_runs_no_code(begun: Path, mixture: Path, tmp_path: Path) -> None:
    out, step = copied(begun, tmp_path)
    (step / ".metadata").write_bytes(pickle.dumps(payload(tmp_path)))
    with pytest.raises(VlmixError, match=r"asks for posix.system.*remove this checkpoint"):
        train(nano(mixture=str(mixture), out=str(out), max_steps=2))
    assert not (tmp_path / "ran").exists()


def test_what_a_checkpoint_declares_as_bytes_runs_no_code(begun: Path, mixture: Path, tmp_path: Path) -> None:
    out, step = copied(begun, tmp_path)
    metadata = pickle.loads((step / ".metadata").read_bytes())
    name = next(name for name in metadata.state_dict_metadata if name.endswith(".lr"))
    assert isinstance(metadata.state_dict_metadata[name], BytesStorageMetadata)
    index = next(index for index in metadata.storage_data if index == MetadataIndex(name))
    stored = io.BytesIO()
    torch.save(payload(tmp_path), stored)
    shard = step / metadata.storage_data[index].relative_path
    metadata.storage_data[index].offset, metadata.storage_data[index].length = shard.stat().st_size, stored.tell()
    with shard.open("ab") as file:
        file.write(stored.getvalue())
    (step / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(VlmixError, match="remove this checkpoint"):
        train(nano(mixture=str(mixture), out=str(out), max_steps=2))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "os"),
        ("torch", "load"),
        ("torch", "hub.load"),
        ("torch.serialization", "os.system"),
        ("pathlib", "os.system"),
    ],
)
def test_no_other_name_is_admitted(module: str, name: str) -> None:
    text = [bytes([0x8C, len(part)]) + part.encode() for part in (module, name)]
    with pytest.raises(pickle.UnpicklingError, match="asks for"):
        _Unpickler(io.BytesIO(b"\x80\x04" + b"".join(text) + b"\x93.")).load()


def test_a_damaged_checkpoint_is_one_line(begun: Path, mixture: Path, tmp_path: Path) -> None:
    out, step = copied(begun, tmp_path)
    (step / ".metadata").write_bytes(b"garbage")
    done = vlmix_here("train", out / "recipe.yaml", f"out={out}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "remove this checkpoint" in done.stderr


def test_a_models_own_code_is_never_run_and_nobody_is_asked(
    begun: Path, mixture: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    out, _ = copied(begun, tmp_path)
    train(nano(mixture=str(mixture), out=str(out), max_steps=2))
    shutil.copytree(out / "model", model)
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass P: pass\n")
    for name, keys in (
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.P"}, "processor_class": "EvilP"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.P", "evil.P"]}, "tokenizer_class": "EvilT"}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.P", "AutoModelForImageTextToText": "evil.P"}}),
    ):
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    done = vlmix_here("evaluate", "gqa", "--model", model, "--data", raw, "--out", tmp_path / "answers", "--limit", "1")
    assert not (tmp_path / "ran").exists()
    assert "y/N" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_every_load_says_that_no_code_is_to_run() -> None:
    """Of a file that vlmix wrote itself a moment ago as well: it costs nothing to say."""
    missing = []
    for path in [*ROOT.glob("train/**/*.py"), *ROOT.glob("cli/*.py"), *ROOT.glob("perf/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in ("from_pretrained", "from_config") and not any(
                word.arg == "trust_remote_code" for word in node.keywords
            ):
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not missing
