"""nanoVLM's own `VQADataset` on `--to texts`.

nanoVLM is no package: its code is the checkout that VLMIX_NANOVLM names (a folder with `data/datasets.py`), or else the
pinned commit, fetched. Of its imports, torchvision, einops and transformers are for image tiles and tokenizers alone,
in whose place this check has its own.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import datasets
import torch
from common import ROOT, cases, repeated, report, same, sizes
from PIL.Image import Image

COMMIT = "4e0c0961846135c2217f95e54cb4c2d66eb55e42"
URL = "https://github.com/huggingface/nanoVLM"
SKIPPED = 77
datasets.disable_progress_bars()


def checkout() -> Path:
    """The folder of nanoVLM's code; ends the check as skipped if it cannot be had."""
    if given := os.environ.get("VLMIX_NANOVLM"):
        if not (Path(given) / "data" / "datasets.py").is_file():
            sys.exit(f"VLMIX_NANOVLM is {given}, which has no data/datasets.py")
        return Path(given)
    folder = ROOT / ".interop" / "nanovlm.git"
    if not (folder / "data" / "datasets.py").is_file():
        subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
        fetched = True
        for command in (["fetch", "--quiet", "--depth", "1", URL, COMMIT], ["checkout", "--quiet", COMMIT]):
            environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
            fetched = fetched and not subprocess.run(["git", "-C", str(folder), *command], env=environment).returncode
        if not fetched:
            print(f"skipped: {URL} cannot be fetched; VLMIX_NANOVLM names a checkout", flush=True)
            sys.exit(SKIPPED)
    return folder


class Letters:
    """In place of a tokenizer, which would have to be downloaded: a token for each character, nanoVLM's chat form."""

    image_token, global_image_token = "<|image|>", "<|global_image|>"

    def __getattr__(self, name: str) -> str:
        if name[0] == "r" and "c" in name:  # of a tile
            return f"<{name}>"
        raise AttributeError(name)

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, **options: Any) -> Any:
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        ids = self.encode(text)
        if not tokenize:
            return text
        return {"input_ids": ids, "attention_mask": [1] * len(ids)} if options.get("return_dict") else ids

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


SEEN: list[tuple[int, int]] = []


def tiles(image: Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """In place of its image processor: the image is one tile."""
    SEEN.append(image.size)
    return torch.zeros(1, 3, 1, 1), (1, 1)


sys.path.insert(0, str(checkout()))
stubs = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "einops", "transformers")
with patch.dict(sys.modules, {name: MagicMock() for name in stubs}):
    from data.datasets import VQADataset

for case, folder, samples in cases("texts"):
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
        reader = VQADataset(data, Letters(), tiles, 1)
        wanted = repeated(samples)
        same(f"{case}: rows", len(reader), len(wanted))
        for number, sample in enumerate(wanted):
            about = f"{case}: {sample['id']}"
            SEEN.clear()
            found = reader[number]
            same(f"{about}: sizes", SEEN, sizes(sample))
            same(f"{about}: images", len(found["images"]), len(sample["images"]))
            count = len(sample["images"])
            names = [f"<image: {i}>" if count > 1 else "" for i in range(count)]
            shown = "".join(name + Letters.global_image_token + Letters.image_token for name in names)
            said = [turn["value"] for turn in sample["conversations"]]
            if "inline" not in sample["extra"]:
                front, back = "<image>\n" * count, "\n<image>" * count
                said[0] = said[0].removeprefix(front) if said[0].startswith(front) else said[0].removesuffix(back)
            roles = ("user", "assistant") * len(said)
            turns = [
                f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, [shown + said[0], *said[1:]])
            ]
            same(f"{about}: texts", "".join(map(chr, found["input_ids"].tolist())), "".join(turns))
            # Its labels are the answers with their ends, one token to the left.
            answers = [turn.removeprefix("<|im_start|>assistant\n") for turn in turns[1::2]]
            same(f"{about}: labels", "".join(chr(i) for i in found["labels"].tolist() if i >= 0), "".join(answers))
        report("nanoVLM", case, samples, len(reader))
