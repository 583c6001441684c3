"""The card of an exported model, by the hub's own loader."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import yaml
from huggingface_hub import ModelCard
from PIL import Image

from tests.train.nano import nano
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.card import card
from vlmix.train.config import Recipe, parse
from vlmix.train.metrics import read
from vlmix.train.run import export_model, train

PATH = re.compile(r"(?<![\w./:<])/\w")
"""The beginning of an absolute path."""


def recipe_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r"^`{3,}yaml\n(.*?)^`{3,}$", text, re.MULTILINE | re.DOTALL)
    plain: dict[str, Any] = yaml.safe_load(found)
    return plain


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_an_exported_model_says_what_it_was_trained_on(mixture: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes: dict[str, Any] = {
        "max_steps": 4,
        "validation": {"holdout": 0.1, "interval": 2, "samples": 20},
        "checkpoint": {"interval": 2},
        "wandb": None,
    }
    recipe = nano(mixture=str(mixture), out=str(out), **changes)
    train(recipe)
    loaded = ModelCard.load(out / "model" / "README.md")
    assert (loaded.data.library_name, loaded.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert (loaded.data.license, loaded.data.base_model) == ("other", None)
    hub = {"liuhaotian/LLaVA-Instruct-150K", "anon8231489123/ShareGPT_Vicuna_unfiltered"}
    assert set(loaded.data.datasets) == hub
    told = sections(loaded.text)
    index, manifest = json.loads((out / "data.json").read_text()), open_mixture(mixture).manifest
    assert sum(source["samples"] for source in index["sources"].values()) == index["samples"] < 840
    for name, source in index["sources"].items():
        row = next(line for line in told["Data"].splitlines() if line.startswith((f"| [{name}]", f"| {name} ")))
        assert [cell.strip() for cell in row.split("|")][2] == f"{source['samples']:,}"
        assert manifest.sources[name].license.split(";")[0].replace("_", "\\_") in row
    last = read(out)[-1]
    assert f"4 of 4 steps, {last['epoch']:.2f} epochs: {last['total']['samples']:,.0f} samples" in told["Training"]
    assert f"{last['total']['target_tokens']:,.0f} of them target tokens" in told["Training"]
    loss = last["validation"]
    assert f"{loss['loss']:.4f} ({loss['low']:.4f} to {loss['high']:.4f})" in told["Measured"]
    assert "No benchmark was asked" in told["Not run"] and "No loss was measured" not in told["Not run"]
    text = (out / "model" / "README.md").read_text()
    assert str(tmp_path) not in text and not PATH.search(text) and socket.gethostname() not in text
    again = parse(recipe_of(text))
    assert again == parse({**recipe.resolved(), "mixture": "mixture", "out": ""})

    earlier = ModelCard.load(export_model(out, step=2) / "README.md")
    first = read(out)[1]["validation"]
    assert "2 of 4 steps" in earlier.text and f"{first['loss']:.4f}" in sections(earlier.text)["Measured"]


def test_its_code_asks_the_model(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(nano(mixture=str(mixture), out=str(tmp_path / "run"), max_steps=1, precision="bf16"))
    monkeypatch.chdir(tmp_path / "run" / "model")
    Image.new("RGB", (20, 30), "red").save("picture.jpg")
    (code,) = re.findall(r"^```python\n(.*?)^```$", Path("README.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("max_new_tokens=100", "max_new_tokens=3"), names)
    assert 1 <= len(names["answer"]) <= 3


def written(run: Path, rows: list[dict[str, Any]], sources: dict[str, Any], **data: Any) -> Path:
    run.mkdir()
    plain = {"mixture": "mine + other", "samples": 9, "steps": 40, "sources": sources, **data}
    plain["parts"] = {"lm": {"trained": 0, "frozen": 1200}, "connector": {"trained": 30, "frozen": 0}}
    (run / "data.json").write_text(json.dumps(plain))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def row(step: int, **more: Any) -> dict[str, Any]:
    total = {"samples": 16 * step, "tokens": 1000 * step, "target_tokens": 10 * step}
    return {"step": step, "epoch": step / 40, "loss": 2.5, "total": total, **more}


def pretrained(**changes: Any) -> Recipe:
    """Of parts on the hub, from data whose places are nobody's business."""
    plain = nano().resolved()
    model = {**plain["model"], "lm": "Qwen/Qwen3-0.6B", "vision_tower": "openai/clip-vit-large-patch14-336"}
    model |= {"tokenizer": None, "init_connector_from": "/home/me/runs/stage-one"}
    return parse(
        {
            **plain,
            "name": "hub",
            "model": model,
            "trainable": ["connector", "lm"],
            "mixture": {"s3://secret-bucket/data/mine": 0.7, "/mnt/disk/other": 0.3},
            "evaluate": {"benchmarks": {"gqa": {"data": "/mnt/eval"}, "pope": {"limit": 5}}, "limit": 20},
            "wandb": {"entity": "somebody"},
            **changes,
        }
    )


def test_scores_with_intervals_and_parts_from_the_hub(tmp_path: Path) -> None:
    scores = {
        "gqa": {"score": 51.234, "low": 45.0, "high": 57.5, "questions": 20},
        "pope": {"score": 80.0, "questions": 5},
    }
    sources = {
        "mine/rows": {"samples": 6, "license": "MIT", "homepage": "", "datasets": ["owner/rows"]},
        "other/<b>|x": {"samples": 3, "license": "a | b", "homepage": "javascript:x", "datasets": []},
    }
    both = [
        {"name": "mine", "weight": 0.7, "samples": 6, "trained_samples": 28, "epochs": 4.7},
        {"name": "other", "weight": 0.3, "samples": 3, "trained_samples": 12, "epochs": 4.0},
    ]
    rows = [
        row(10, evaluate={"gqa": {"score": 1.0, "questions": 20}}),
        row(20, evaluate=scores),
        row(30, evaluate=scores),
    ]
    run = written(tmp_path / "run", rows, sources, mixtures=both)
    text = card(pretrained(), run, 20)
    loaded = ModelCard(text)
    assert loaded.data.base_model == ["Qwen/Qwen3-0.6B", "openai/clip-vit-large-patch14-336"]
    assert loaded.data.datasets == ["owner/rows"]
    told = sections(loaded.text)
    assert "| gqa | 51.23 (45.00 to 57.50) | 20 |" in told["Measured"] and "| pope | 80.00 | 5 |" in told["Measured"]
    assert "after 20 steps" in told["Measured"] and "20 of 40 steps" in told["Training"]
    assert "LM 1,200 (frozen)" in told["Training"] and "connector 30 (trained)" in told["Training"]
    assert "- gqa was asked its first 20 questions only." in told["Not run"]
    assert "- pope was asked its first 5 questions only." in told["Not run"]
    assert "No loss was measured on data that the model was not trained on" in told["Not run"]
    assert "weight 0.7, 6 samples, 28 of them trained on" in told["Data"]
    assert r"| other/\<b\>\|x | 3 | a \| b |" in told["Data"], "text stays text"
    for private in ("secret-bucket", "/mnt", "/home", "somebody", "s3://"):
        assert private not in text
    assert not PATH.search(text)
    plain = recipe_of(text)
    assert plain["mixture"] == {"mine": 0.7, "other": 0.3}
    assert plain["model"]["init_connector_from"] == "stage-one"
    assert plain["evaluate"]["benchmarks"]["gqa"]["data"] == "eval"


def test_parts_that_lie_here_are_no_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "lm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    model = {**pretrained().resolved()["model"], "lm": "models/lm", "vision_tower": "package://towers/clip.onnx"}
    recipe = pretrained(model=model, evaluate=None)
    text = card(recipe, written(tmp_path / "run", [], {}), 0)
    assert ModelCard(text).data.base_model is None
    assert "No benchmark was asked" in text and "Nothing but the loss" in text
    (tmp_path / "run" / "data.json").write_text("{")
    with pytest.raises(VlmixError, match=r"data\.json"):
        card(recipe, tmp_path / "run", 0)
