"""Whole runs: by the library in this process, and by the real command in processes of their own."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader

from tests.helpers import VLMIX, forge, hashes, vlmix, vlmix_here
from tests.train.nano import NANO, nano
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.locks import exclusive_lock
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.metrics import read
from vlmix.train.run import train

TIMES = ("tokens_per_second", "step_seconds", "data_wait", "tflops", "mfu")


def rows(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read(run)]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read(run)]


@pytest.fixture(scope="module")
def whole(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six packed steps of everything, never interrupted, in one process."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(nano(mixture=str(mixture), out=str(out))) == 0
    return out


@pytest.fixture()
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "nano.yaml"
    path.write_text(yaml.safe_dump(NANO))
    return path


def test_padded_accumulation_is_the_same_training_as_packed(whole: Path, mixture: Path, tmp_path: Path) -> None:
    padded = tmp_path / "padded"
    in_parts: dict[str, Any] = {
        "batch": {"pack_length": 0, "micro_size": 3},
        "loss_chunk": 16,
        "reduce_gradients": "each",
    }
    train(nano(mixture=str(mixture), out=str(padded), **in_parts))
    assert np.allclose(losses(padded), losses(whole), rtol=0, atol=2e-6)
    assert np.allclose([r["grad_norm"] for r in read(padded)], [r["grad_norm"] for r in read(whole)], atol=1e-5)
    assert all(row["padding_waste"] > 0 for row in read(padded))
    assert all(row["padding_waste"] == 0 for row in read(whole))
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (whole, padded))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5


def test_what_saves_memory_or_time_may_change_when_a_run_resumes(whole: Path, mixture: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    common: dict[str, Any] = {"mixture": str(mixture), "out": str(tmp_path / "run")}
    other: dict[str, Any] = {"loss_chunk": 7, "shard_size": 1, "reduce_gradients": "each", "profile": [1, 2]}
    events: list[str] = []
    assert train(nano(**common, **other), lambda event, facts: events.append(event)) == 0
    assert "resumed" in events
    with pytest.raises(VlmixError, match="is a run of another recipe: seed was 0, here it is 1"):
        train(nano(**common, **other, seed=1))


def test_losses_of_the_sources_add_up_and_the_run_folder_holds_what_it_says(whole: Path) -> None:
    for row in read(whole):
        tokens = sum(part["tokens"] for part in row["sources"].values())
        assert tokens == row["target_tokens"]
        total = sum(part["loss"] * part["tokens"] for part in row["sources"].values())
        assert total / tokens == pytest.approx(row["loss"], rel=1e-6)
    assert read(whole)[-1]["total"]["samples"] == 96
    assert {path.name for path in whole.iterdir()} - {"tensorboard"} == {
        "checkpoints",
        "connector.safetensors",
        "data.json",
        "lengths.npz",
        "metrics.jsonl",
        "model",
        "recipe.yaml",
        "tokenizer",
    }
    parts = json.loads((whole / "data.json").read_text())["parts"]
    assert parts.keys() == {"connector", "lm", "vision_tower"} and all(part["trained"] for part in parts.values())
    assert yaml.safe_load((whole / "recipe.yaml").read_text())["optim"]["max_grad_norm"] == 1.0


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_on_two_and_on_one(
    whole: Path, mixture: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """The real command: SIGKILL to all in the middle; resumed on two ranks, the numbers are the same bit for
    bit, on one the same training, and the same as one process from the start."""
    straight, killed, other = tmp_path / "straight", tmp_path / "killed", tmp_path / "other"
    common = ["train", str(recipe_file), f"mixture={mixture}", "checkpoint={interval: 2, keep: 9}"]
    done = vlmix(*common, f"out={straight}", "--nproc", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["last"]["step"] == 6
    assert np.allclose(losses(straight), losses(whole), rtol=0, atol=2e-6)

    process = subprocess.Popen([*VLMIX, *common, f"out={killed}", "--nproc", "2"], stderr=subprocess.DEVNULL)
    while not (killed / "checkpoints" / "step-00000002").exists() and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None
    for member in running_with(f"out={killed}"):
        os.kill(member, signal.SIGKILL)
    process.wait()
    assert not (killed / "checkpoints" / "step-00000006").exists()
    shutil.copytree(killed, other)
    # Started by torchrun, it is the same run.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    again = subprocess.run([*torchrun, *VLMIX, *common, f"out={killed}"], capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and re.search("resumes from step [24]", again.stderr), again.stderr[-3000:]
    assert rows(killed) == rows(straight)
    assert hashes(killed / "model") == hashes(straight / "model")
    train(nano(mixture=str(mixture), out=str(other), checkpoint={"interval": 2, "keep": 9}))
    assert [row["samples"] for row in read(other)] == [row["samples"] for row in read(straight)]
    assert np.allclose(losses(other), losses(straight), rtol=0, atol=2e-6)


def running_with(argument: str) -> list[int]:
    """Processes that were started with an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "group", "nproc"), [(signal.SIGTERM, False, "2"), (signal.SIGINT, True, "1")])
def test_a_signal_saves_and_leaves(
    number: signal.Signals, group: bool, nproc: str, mixture: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """SIGTERM to the process that started two ranks; Ctrl-C, which a terminal sends to the loader's workers as well."""
    out = tmp_path / "run"
    command = [
        "train",
        str(recipe_file),
        f"mixture={mixture}",
        f"out={out}",
        "max_steps=4000",
        "loader_workers=1",
        "--nproc",
        nproc,
    ]
    process = subprocess.Popen([*VLMIX, *command], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 100
    while not ((out / "metrics.jsonl").exists() and len(read(out)) > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    (os.killpg if group else os.kill)(process.pid, number)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    stopped = int(re.search(r"stopped after step (\d+)", output).group(1))  # type: ignore[union-attr]
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{stopped:08d}"]
    assert [row["step"] for row in read(out)] == list(range(1, stopped + 1))


def test_what_is_frozen_stays_bit_for_bit_and_stage_two_starts_from_stage_one(
    whole: Path, mixture: Path, tmp_path: Path
) -> None:
    import transformers

    from vlmix.train.tokens import IMAGE

    lm, tower = tmp_path / "lm", tmp_path / "tower"
    exported = transformers.AutoModelForImageTextToText.from_pretrained(whole / "model")
    text = transformers.AutoModelForCausalLM.from_config(exported.config.text_config)
    text.model.load_state_dict(exported.model.language_model.state_dict())
    text.save_pretrained(lm)
    transformers.AutoTokenizer.from_pretrained(whole / "tokenizer").save_pretrained(lm)
    exported.model.vision_tower.save_pretrained(tower)
    images = mixture.parent / "images"
    if not images.exists():
        open_mixture(mixture).subset(where="image != ''").save(images)
    pretrained = {"lm": str(lm), "vision_tower": str(tower), "tokenizer": None}
    one, two = tmp_path / "one", tmp_path / "two"
    stage_one = nano(
        mixture=str(images), out=str(one), max_steps=3, model=pretrained, template="plain", trainable=["connector"]
    )
    events: list[tuple[str, Any]] = []
    train(stage_one, lambda event, facts: events.append((event, facts)))
    counts = dict(events)["model"]
    assert counts["lm"]["trained"] == counts["vision_tower"]["trained"] == 0 and counts["connector"]["frozen"] == 0
    assert not (one / "model").exists()
    connector = load_file(one / "connector.safetensors")
    assert connector.keys() == {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}
    saved = FileSystemReader(next((one / "checkpoints").glob("step-*"))).read_metadata().state_dict_metadata
    assert all("multi_modal_projector" in name or "param_groups" in name for name in saved)

    stage_two = nano(
        mixture=str(mixture),
        out=str(two),
        max_steps=2,
        model={**pretrained, "init_connector_from": str(one)},
        trainable=["connector", "lm"],
        optim={"lr": 1e-3, "connector_lr": 0.0},
    )
    train(stage_two)
    after, before = load_file(two / "model" / "model.safetensors"), load_file(whole / "model" / "model.safetensors")
    for name, tensor in after.items():
        if name.startswith("vision_tower."):
            assert torch.equal(tensor, before[name]), name
        elif name.startswith("multi_modal_projector."):  # at a rate of zero: as stage one left it
            assert torch.equal(tensor, connector[name.removeprefix("multi_modal_projector.")])
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert "language_model.model.embed_tokens.weight" in changed, "tied embeddings train"
    assert not any("lm_head" in name for name in after)
    assert IMAGE in transformers.AutoTokenizer.from_pretrained(two / "model").get_vocab()


def test_lora_trains_adapters_alone_and_merges_them(whole: Path, mixture: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "run"
    events: list[tuple[str, Any]] = []
    recipe = nano(mixture=str(mixture), out=str(out), max_steps=2, lora={"rank": 2, "alpha": 4})
    train(recipe, lambda event, facts: events.append((event, facts)))
    counts = dict(events)["model"]["lm"]
    assert 0 < counts["trained"] < counts["frozen"]
    weights = load_file(out / "model" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in weights)
    assert weights.keys() == load_file(whole / "model" / "model.safetensors").keys()
    resumed = nano(mixture=str(mixture), out=str(out), max_steps=2, lora={"rank": 2, "alpha": 4})
    assert train(resumed) == 0, "a finished run is exported again from its checkpoint"
    again = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_run_of_another_recipe_or_mixture_is_refused(whole: Path, mixture: Path, tmp_path: Path) -> None:
    before = hashes(whole)
    with pytest.raises(VlmixError, match=r"another recipe: optim\.lr was 0\.001, here it is 0\.5"):
        train(nano(mixture=str(mixture), out=str(whole), optim={"lr": 0.5}))
    half = tmp_path / "half"
    open_mixture(mixture).subset(ratio=0.5).save(half)
    with pytest.raises(VlmixError, match="a run on another mixture"):
        train(nano(mixture=str(half), out=str(whole)))
    assert hashes(whole) == before


def test_texts_that_changed_below_a_view_are_another_mixture(mixture: Path, tmp_path: Path) -> None:
    """A view's own index has no texts, so it is the same."""
    root, view, out = tmp_path / "root", tmp_path / "view", tmp_path / "run"
    shutil.copytree(mixture, root)
    open_mixture(root).subset(ratio=0.5).save(view)
    train(nano(mixture=str(view), out=str(out), max_steps=1))
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["checksums"]["samples.parquet"] = "0" * 64
    forge(root, manifest)
    shutil.rmtree(view)
    open_mixture(root).subset(ratio=0.5).save(view)
    with pytest.raises(VlmixError, match="a run on another mixture"):
        train(nano(mixture=str(view), out=str(out), max_steps=1))


def test_a_folder_of_something_else_is_not_trained_into(mixture: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(VlmixError, match=r"holds manifest.json and is no training run"):
        train(nano(mixture=str(mixture), out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_two_runs_in_one_folder_are_refused(mixture: Path, tmp_path: Path) -> None:
    with exclusive_lock(tmp_path) as mine:
        assert mine
        with pytest.raises(VlmixError, match="is being written by another run"):
            train(nano(mixture=str(mixture), out=str(tmp_path)))


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_samples(
    whole: Path, mixture: Path, tmp_path: Path
) -> None:
    start = tmp_path / "connector.safetensors"
    weights = load_file(whole / "connector.safetensors")
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}, start)
    out = tmp_path / "run"
    with pytest.raises(VlmixError, match=r"step \d+: the loss of \S+/.* is not finite; nothing was updated"):
        train(nano(mixture=str(mixture), out=str(out), model={"init_connector_from": str(start)}))
    assert not list((out / "checkpoints").glob("step-*"))


def damaged(mixture: Path, out: Path, count: int) -> Path:
    """A copy of a mixture, in which `count` images hold other bytes of the same number."""
    shutil.copytree(mixture, out)
    opened = open_mixture(mixture)
    index = opened._table(["shard", "images"]).to_pylist()
    for row in [row for row in index if row["images"]][:count]:
        with (out / row["shard"]).open("r+b") as file:
            file.seek(row["images"][0]["offset"])
            file.write(b"\0" * row["images"][0]["size"])
    return out


@pytest.mark.slow
def test_images_that_do_not_decode_are_counted_and_stop_a_run_past_the_threshold(mixture: Path, tmp_path: Path) -> None:
    data = damaged(mixture, tmp_path / "damaged", 80)
    events: list[tuple[str, Any]] = []
    out = tmp_path / "run"
    every = {"interval": 1, "keep": 9}
    recipe = nano(
        mixture=str(data), out=str(out), max_bad_images=99, batch={"global_size": 80}, max_steps=3, checkpoint=every
    )
    train(recipe, lambda event, facts: events.append((event, facts)))
    names = [name for event, facts in events if event == "unreadable" for name in facts["samples"]]
    assert names and len(names) == len(set(names)), "an image is reported once, however often it comes"
    seen = read(out)[-1]["total"]
    assert seen["samples"] == 240 and seen["unreadable"] == len(names)
    assert all(np.isfinite(losses(out)))
    with pytest.raises(VlmixError, match=r"\d+ images did not decode so far, the last of .*max_bad_images"):
        train(
            nano(
                mixture=str(data),
                out=str(tmp_path / "strict"),
                max_bad_images=2,
                batch={"global_size": 80},
                max_steps=3,
            )
        )
    # Resumed, it knows those of before.
    shutil.rmtree(out / "checkpoints" / "step-00000003")
    again: list[tuple[str, Any]] = []
    assert train(recipe, lambda event, facts: again.append((event, facts))) == 0
    assert dict(again)["resumed"]["step"] == 2
    assert read(out)[-1]["total"] == seen
    assert [facts for event, facts in again if event == "unreadable"] == [dict(events)["unreadable"]]


def with_small_files(limit: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command while no file may grow past `limit` bytes, as on a full disk. (Python ignores SIGXFSZ.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        return vlmix_here(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_space_for_a_checkpoint_is_told_and_leaves_no_half_of_one(
    mixture: Path, recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = with_small_files(100_000, "train", recipe_file, f"mixture={mixture}", f"out={out}", "max_steps=2")
    assert done.returncode == 1
    assert "cannot write the checkpoint" in done.stderr and "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((out / "checkpoints").iterdir())


def test_a_full_disk_at_the_next_start_leaves_the_run_as_it_was(
    mixture: Path, recipe_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(nano(mixture=str(mixture), out=str(out), max_steps=2))
    before = {name: digest for name, digest in hashes(out).items() if "tensorboard" not in name}
    done = with_small_files(100, "train", recipe_file, f"mixture={mixture}", f"out={out}", "max_steps=2")
    assert done.returncode == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert {name: digest for name, digest in hashes(out).items() if "tensorboard" not in name} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": ""}, "add mixture=FOLDER"),
        ({"template": "plain"}, "samples without an image, such as "),
        ({"batch": {"max_length": 20, "pack_length": 0}}, "or cut off by batch.max_length 20"),
        ({"batch": {"global_size": 100_000}}, "larger than the"),
        ({"model": {"init_connector_from": "nowhere"}}, "no connector.safetensors there"),
        ({"model": {"lm": {"model_type": "lama"}}}, "model.lm: "),
        ({"template": "chat"}, "no chat template"),
        (
            {"model": {"vision_feature_layer": -4}},
            "model.vision_feature_layer -4: the tower has 3 hidden states, -3 to -1",
        ),
        ({"model": {"lm": {**NANO["model"]["lm"], "max_position_embeddings": 64}}}, "knows 64 positions"),
        (
            {"model": {"lm": {**NANO["model"]["lm"], "model_type": "stablelm"}}},
            "would let packed samples see each other",
        ),
        (
            {"model": {"vision_tower": {"model_type": "siglip2_vision_model"}}},
            "model.vision_tower: a SigLIP2 of the NaFlex kind",
        ),
        ({"model": {"vision_tower": {"model_type": "siglip"}}}, "siglip is of two towers; take siglip_vision_model"),
        ({"model": {"vision_tower": {"model_type": "vit"}}}, "a model of type 'vit'"),
        ({"model": {"lm": {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}}}, "gpt2: it has no `layers`"),
    ],
)
def test_what_cannot_be_trained_is_told(changes: dict[str, Any], message: str, mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match=re.escape(message)):
        train(nano(**{"mixture": str(mixture), "out": str(tmp_path / "run"), **changes}))


def test_the_command_tells_bad_recipes(recipe_file: Path, mixture: Path) -> None:
    wrong = vlmix_here("train", recipe_file, f"mixture={mixture}", "optim.lrr=1")
    assert wrong.returncode == 1 and "did you mean 'lr'" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_two_ranks_tell_a_bad_recipe_once(recipe_file: Path) -> None:
    both = vlmix("train", recipe_file, "mixture=nowhere", "--nproc", "2")
    assert both.returncode == 1 and both.stderr.count("nowhere is not a mixture") == 1
    assert "Traceback" not in both.stderr
