"""vlmix.torch against the trainer: same ids, and a loss over the same tokens; and docs/your_own_loop.md, run."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoProcessor

import vlmix
from tests.train.nano import nano
from vlmix.torch import ProcessorCollator, messages
from vlmix.train.run import train
from vlmix.train.tokens import Encoder, template

ROOT = Path(__file__).parents[1]
LOOPS = ("Plain PyTorch", "Hugging Face's Trainer", "Accelerate", "A stateful loader")


@pytest.fixture(scope="module")
def model(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(nano(mixture=str(mixture), out=str(out), max_steps=1))
    return out / "model"


def test_inputs_and_labels_are_the_trainers(mixture: Path, model: Path) -> None:
    opened, processor = vlmix.open(mixture), AutoProcessor.from_pretrained(model)
    encoder = Encoder(processor.tokenizer, template("vicuna", processor.tokenizer))
    collate = ProcessorCollator(processor, max_length=10**6)
    places = {sample.image != "": [] for sample in opened}
    for position, sample in enumerate(opened):
        places[sample.image != ""].append(position)
    for image, positions in places.items():
        samples = [opened[position] for position in positions[:60]]
        batch = collate(samples)
        assert ("pixel_values" in batch) == image
        for sample, ids, mask, labels in zip(samples, batch["input_ids"], batch["attention_mask"], batch["labels"]):
            whole = encoder.encode([turn.value for turn in sample.conversations], [4] if image else [])
            length = int(mask.sum())
            assert ids[:length].tolist() == whole.ids.tolist()
            assert labels[:length].tolist() == np.where(whole.loss_mask, whole.ids, -100).tolist()
            assert (labels[length:] == -100).all()


def test_long_samples_are_cut_and_never_through_an_image(mixture: Path, model: Path) -> None:
    opened, processor = vlmix.open(mixture), AutoProcessor.from_pretrained(model)
    sample = next(sample for sample in opened if sample.image)
    whole = ProcessorCollator(processor)([sample])
    width = whole["input_ids"].shape[1]
    short = ProcessorCollator(processor, max_length=width - 3)([sample])
    for name in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(short[name], whole[name][:, : width - 3])
    assert torch.equal(short["pixel_values"], whole["pixel_values"])
    with pytest.raises(vlmix.VlmixError, match=re.escape(sample.id) + ".*cuts through its image"):
        ProcessorCollator(processor, max_length=30)([sample])


def test_messages_hold_the_image_where_the_text_has_it(mixture: Path) -> None:
    sample = next(sample for sample in vlmix.open(mixture) if sample.conversations[0].value.startswith("<image>\n"))
    first = messages(sample)[0]
    text = sample.conversations[0].value.removeprefix("<image>\n")
    assert first == {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    assert [turn["role"] for turn in messages(sample)] == ["user", "assistant"] * (len(sample.conversations) // 2)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_loops_of_the_page_run(
    loop: str,
    mixture: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs/your_own_loop.md").read_text()
    shared = re.findall(r"```python\n(.*?)```", page.partition("\n## ")[0], re.DOTALL)
    section = re.search(rf"\n## {loop}\n(.*?)(?=\n## |\Z)", page, re.DOTALL)
    assert section
    code = "\n".join([*shared, *re.findall(r"```python\n(.*?)```", section.group(1), re.DOTALL)])
    code = code.replace('"runs/tiny/model"', repr(str(model))).replace('"demo/mixture"', repr(str(mixture)))
    script = tmp_path / "loop.py"
    script.write_text(code + ASKED[loop])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert "as scheduled" in capsys.readouterr().out


_LAST = """
expected = StepDataset(mixture, schedule, collate)[3]
assert all(bool((batch[name] == expected[name]).all()) for name in expected)
assert bool(loss > 0) if "loss" in globals() else True
print("as scheduled")
"""

ASKED = {
    "Plain PyTorch": _LAST,
    "Accelerate": _LAST,
    "Hugging Face's Trainer": """
assert trainer.state.global_step == 4 and trainer.state.log_history[-1]["train_loss"] > 0
print("as scheduled")
""",
    "A stateful loader": """
expected = steps[1]
assert all(bool((second[name] == expected[name]).all()) for name in expected)
print("as scheduled")
""",
}
