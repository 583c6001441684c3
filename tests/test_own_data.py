"""Rows of one's own all the way: a table, a recipe, a mixture, a trained model, its answer, and rows again."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.builders import tables
from tests.helpers import vlmix
from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.export import export


def done(*arguments: object, cwd: Path | None = None) -> str:
    """What a command prints; it must end well."""
    process = vlmix(*arguments, cwd=cwd)
    assert process.returncode == 0, process.stderr
    return process.stdout


def made(raw: Path, out: Path, entry: dict[str, Any]) -> Path:
    plain = {"name": "own", "order": "natural", "sources": {"mine": {"builder": "rows", **entry}}}
    build(parse(plain, known_sources()), known_sources(), raw, out)
    return out


@pytest.mark.slow
@pytest.mark.processes
def test_a_csv_becomes_a_trained_model_without_code(tmp_path: Path) -> None:
    tables.write_csv(tmp_path, 8)
    seen = done("peek", "questions.csv", "--recipe", "mine.yaml", cwd=tmp_path)
    assert "8 of the 8 rows looked at would be samples: 8 with 1 image" in seen
    before = (tmp_path / "mine.yaml").read_text()
    assert " 8 " in done("plan", "mine.yaml", "--raw", ".", cwd=tmp_path)
    done("build", "mine.yaml", "--raw", ".", "--out", "mixture", cwd=tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == before
    done("train", "tiny", "mixture=mixture", "out=run", "max_steps=1", cwd=tmp_path)
    assert (tmp_path / "run/model/config.json").exists()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of all forms and containers, its samples of 0 to 5 images."""
    folder = tables.write_all(tmp_path_factory.mktemp("own"))
    (folder / "own.yaml").write_text(yaml.safe_dump({"name": "own", "sources": tables.ENTRIES}))
    done("build", folder / "own.yaml", "--raw", folder, "--out", folder / "mixture")
    return folder / "mixture"


@pytest.mark.slow
@pytest.mark.processes
def test_all_forms_train_packed_and_padded_and_the_export_answers_about_two_images(
    everything: Path, tmp_path: Path
) -> None:
    common = ("train", "tiny", f"mixture={everything}", "max_steps=6", "log_interval=1", "batch.global_size=8")
    done(*common, f"out={tmp_path / 'packed'}", "--nproc", "2")
    done(*common, f"out={tmp_path / 'padded'}", "batch.pack_length=0", "batch.micro_size=4", "--nproc", "2")
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            if "loss" in line
        ]
        for name in ("packed", "padded")
    ]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-4)

    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tmp_path / "packed/model"
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    blocks = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is larger?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": blocks}], add_generation_prompt=True)
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * (64 // 16) ** 2
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_texts_come_back_as_they_were(tmp_path: Path) -> None:
    rows = tables.write_texts(tmp_path / "docs")
    export(made(tmp_path, tmp_path / "mixture", {"path": "docs"}), "texts", tmp_path / "out")
    back = [row for path in sorted((tmp_path / "out").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len(back) == len(rows)
    for was, row in zip(rows, back):
        assert row["texts"] == was["texts"]
        assert [image["bytes"] for image in row["images"]] == [image["bytes"] for image in was["images"] or []]
        assert row["relevance_min"] == was["relevance_min"] and row["origin"] == was["source"]


def test_messages_come_back_as_they_were(tmp_path: Path) -> None:
    rows = tables.write_messages(tmp_path / "rows.parquet")
    export(made(tmp_path, tmp_path / "mixture", {"path": "rows.parquet"}), "messages", tmp_path / "out")
    back = [row for path in sorted((tmp_path / "out").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["messages"] for row in back] == [row["messages"] for row in rows]
    assert [[image["bytes"] for image in row["images"]] for row in back] == [
        [image["bytes"] for image in row["images"]] for row in rows
    ]


def test_conversations_come_back_as_they_were(tmp_path: Path) -> None:
    rows = tables.write_conversations(tmp_path / "rows.parquet")
    mixture = made(tmp_path, tmp_path / "mixture", {"path": "rows.parquet"})
    export(mixture, "llava-json", tmp_path / "out.json", images=tmp_path / "images")
    back = json.loads((tmp_path / "out.json").read_text())
    assert [row["conversations"] for row in back] == [row["conversations"] for row in rows]
    assert [row["id"] for row in back] == [row["id"] for row in rows]
    for was, row in zip(rows, back):
        data = (tmp_path / "images" / row["image"]).read_bytes() if "image" in row else None
        assert data == (was["image"] and was["image"]["bytes"])
    export(mixture, "hf", tmp_path / "hf")
    again = [row for path in sorted((tmp_path / "hf").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [row["conversations"] for row in again] == [row["conversations"] for row in rows]
