"""TRL's own `prepare_multimodal_messages` and vision collator on `--to trl` and `--to messages`."""

import tempfile
from typing import Any

import datasets
import torch
from common import cases, chat, repeated, report, same, sha256, sha256s
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


def before_all(said: list[tuple[str, str]], images: int) -> list[tuple[str, str]]:
    """The messages where TRL puts the images before the first question, the line breaks of their tokens gone."""
    (role, text), *others = said
    return [
        (role, "<image>" * images + text.replace("<image>", "").rstrip("\n" if text.endswith("<image>") else "")),
        *others,
    ]


for form in ("trl", "messages"):
    for case, folder, samples in cases(form):
        with tempfile.TemporaryDirectory() as cache:
            files = str(folder / "**" / "*.parquet")
            data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
            same(f"{case}: columns of images", data.features["images"], datasets.List(datasets.Image()))
            wanted = repeated(samples)
            same(f"{case}: rows", len(data), len(wanted))
            raw = data.cast_column("images", datasets.List(datasets.Image(decode=False)))
            several = any(len(sample["images"]) > 1 for sample in samples)
            for row, found, sample in zip(data, raw, wanted):
                same(f"{case}: id", row["id"], sample["id"])
                assert is_conversational(row)
                shas = [sha256(image["bytes"]) for image in found["images"]]
                same(f"{case}: {row['id']}: images", shas, sha256s(sample))
                plain = form == "trl" and not several
                same(f"{case}: plain text", isinstance(row["messages"][0]["content"], str), plain)
                said, pictures = [], []
                for message in prepare_multimodal_messages(row["messages"], images=row["images"]):
                    parts = message["content"]
                    pictures += [part["image"] for part in parts if part["type"] == "image"]
                    texts = ["<image>" if part["type"] == "image" else part["text"] for part in parts]
                    said.append((message["role"], "".join(texts)))
                same(f"{case}: {row['id']}: order", [id(one) for one in pictures], [id(one) for one in row["images"]])
                told = chat(sample, with_system=form == "messages")
                same(f"{case}: {row['id']}: texts", said, before_all(told, len(pictures)) if plain else told)
            processor = Recorder()
            collator = DataCollatorForVisionLanguageModeling(processor)
            for start in range(0, len(data), 8):  # image rows and text-only rows side by side
                collator([data[i] for i in range(start, min(start + 8, len(data)))])
            same(f"{case}: collated", len(processor.seen), len(wanted))
            report(f"trl, --to {form}", case, samples, len(data))
