"""TRL's own `prepare_multimodal_messages` and vision collator on `--to trl`."""

import tempfile
from typing import Any

import datasets
import torch
from common import cases, repeated, report, same, sha256, without_token
from trl.data_utils import is_conversational, prepare_multimodal_messages
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

datasets.disable_progress_bars()


class Recorder:
    """In place of a model's processor, whose weights would have to be downloaded: keeps what the collator gives it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def apply_chat_template(self, messages: list[Any], **options: Any) -> dict[str, torch.Tensor]:
        self.seen += messages
        ones = torch.ones(len(messages), 1, dtype=torch.long)
        return {"input_ids": ones, "attention_mask": ones}


for case, folder, samples in cases("trl"):
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=cache)
        same(f"{case}: columns of images", data.features["images"], datasets.List(datasets.Image()))
        wanted = repeated(samples)
        same(f"{case}: rows", len(data), len(wanted))
        raw = data.cast_column("images", datasets.List(datasets.Image(decode=False)))
        for row, found, sample in zip(data, raw, wanted):
            same(f"{case}: id", row["id"], sample["id"])
            assert is_conversational(row)
            shas = [sha256(image["bytes"]) for image in found["images"]]
            same(f"{case}: {row['id']}: images", shas, [sample["sha256"]] if sample["sha256"] else [])
            blocks = prepare_multimodal_messages(row["messages"], images=row["images"])
            same(
                f"{case}: {row['id']}: roles",
                [block["role"] for block in blocks],
                [{"human": "user", "gpt": "assistant"}[turn["from"]] for turn in sample["conversations"]],
            )
            kinds = [part["type"] for block in blocks for part in block["content"]]
            same(f"{case}: {row['id']}: image blocks", kinds.count("image"), int(bool(sample["image"])))
            said = [part["text"] for block in blocks for part in block["content"] if part["type"] == "text"]
            same(f"{case}: {row['id']}: texts", said, without_token(sample))
        processor = Recorder()
        collator = DataCollatorForVisionLanguageModeling(processor)
        for start in range(0, len(data), 8):  # image rows and text-only rows side by side
            collator([data[i] for i in range(start, min(start + 8, len(data)))])
        same(f"{case}: collated", len(processor.seen), len(wanted))
        report("trl", case, samples, len(data))
