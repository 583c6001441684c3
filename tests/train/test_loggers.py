"""Weights & Biases beside metrics.jsonl, by its own client, offline."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("wandb")

import wandb

from tests.train.nano import nano
from vlmix.mixture.errors import VlmixError
from vlmix.train.metrics import read
from vlmix.train.run import train


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, by wandb's own schema: LevelDB's log of blocks of 32 KiB, behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7]) if room >= 7 else (0, 0)
        if not kind:
            at += room
            continue
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def of_kind(kind: str, path: Path) -> list[Any]:
    return [getattr(record, kind) for record in records(path) if record.WhichOneof("record_type") == kind]


def history(path: Path) -> list[dict[str, float]]:
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        for row in of_kind("history", path)
    ]
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        elif value is not None:
            found[prefix + name] = value
    return found


@pytest.mark.slow
def test_wandb_has_the_rows_of_metrics_in_one_run_that_is_resumed(mixture: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common: dict[str, Any] = {
        "mixture": str(mixture),
        "out": str(out),
        "log_interval": 2,
        "checkpoint": {"interval": 2},
        "optim": {"lr": 1e-3, "lr_scheduler": "constant", "warmup_ratio": 0},
    }
    events: list[tuple[str, dict[str, Any]]] = []
    recipe = nano(**common, wandb={"project": "mine"})

    def stop_after_two(event: str, facts: dict[str, Any]) -> None:
        events.append((event, facts))
        if event == "step" and facts["step"] == 2 and not (out / "stopped").exists():
            (out / "stopped").touch()
            raise VlmixError("enough")

    with pytest.raises(VlmixError, match="enough"):
        train(recipe, stop_after_two)
    wandb.teardown()
    assert train(recipe, stop_after_two) == 0
    folders = sorted((out / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime_ns)
    (id,) = {folder.name.rpartition("-")[2] for folder in folders}
    assert json.loads((out / "wandb.json").read_text()) == {"id": id}
    files = [folder / f"run-{id}.wandb" for folder in folders]
    rows = [row for file in files for row in history(file)]
    by_step = {row["step"]: row for row in rows}
    assert [row for _, row in sorted(by_step.items())] == [pytest.approx(flat(row)) for row in read(out)]
    assert [row["step"] for row in read(out)] == [2, 4, 6]
    for file in files:
        (run,) = of_kind("run", file)
        assert (run.project, run.run_id, run.display_name) == ("mine", id, "run")
        assert json.loads({item.key: item.value_json for item in run.config.update}["optim"])["lr"] == 1e-3
        assert {(metric.glob_name, metric.step_metric) for metric in of_kind("metric", file)} >= {("*", "step")}
    told = [facts for event, facts in events if event == "wandb"]
    assert len(told) == 2 and all(not each["why"] and str(out / "wandb") in each["out"] for each in told)


def test_a_network_that_fails_ends_no_training(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and later: what is left is on the disk."""

    init = wandb.init

    def unreachable(**arguments: Any) -> Any:
        if arguments.get("settings") is None or arguments["settings"].mode != "offline":
            raise wandb.errors.CommError("no route to host")
        return init(**arguments)

    def broken(*_: Any, **__: Any) -> None:
        raise BrokenPipeError("the service is gone")

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", unreachable)
    monkeypatch.setattr(wandb, "init", unreachable)
    told: list[dict[str, Any]] = []

    def report(event: str, facts: dict[str, Any]) -> None:
        if event == "wandb":
            told.append(facts)
        if event == "step" and facts["step"] == 2:
            monkeypatch.setattr(wandb.Run, "log", broken)

    out = tmp_path / "run"
    assert train(nano(mixture=str(mixture), out=str(out), max_steps=4, wandb={}), report) == 0
    wandb.teardown()
    assert [facts["why"] for facts in told] == ["no route to host", "the service is gone"]
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    assert [row["step"] for row in history(file)] == [1, 2]
    assert [row["step"] for row in read(out)] == [1, 2, 3, 4]


def test_without_a_key_or_with_a_wrong_mode_the_run_does_not_start(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    recipe = nano(mixture=str(mixture), out=str(tmp_path / "run"), wandb={})
    with pytest.raises(VlmixError, match="no API key; run `wandb login`, or log offline with wandb.mode=offline"):
        train(recipe)
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(VlmixError, match=r"wandb: its settings in the environment \(WANDB_MODE and others\) are wrong"):
        train(recipe)
    monkeypatch.setattr("vlmix.train.loggers.find_spec", lambda name: None)
    with pytest.raises(VlmixError, match="`wandb` needs wandb: pip install"):
        train(recipe)


def test_wandb_is_imported_only_if_a_recipe_asks(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    train(nano(mixture=str(mixture), out=str(tmp_path / "run"), max_steps=1))
    assert not (tmp_path / "run" / "wandb").exists()
