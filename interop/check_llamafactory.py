"""LLaMA-Factory's own parser, loader, converter and placeholder count on `--to llama-factory`."""

import json
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

# Imported for sound, which no mixture has; the wheel is built against CUDA.
sys.modules["torchaudio"] = ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

from common import cases, repeated, report, same, sha256, sha256s, sizes, texts  # noqa: E402
from llamafactory.data.loader import _load_single_dataset  # noqa: E402
from llamafactory.data.mm_plugin import get_mm_plugin  # noqa: E402
from llamafactory.data.parser import get_dataset_list  # noqa: E402
from llamafactory.hparams import DataArguments, ModelArguments  # noqa: E402

plugin = get_mm_plugin("llava", "<image>")

for case, folder, samples in cases("llama-factory"):
    with tempfile.TemporaryDirectory() as cache:
        (name,) = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        arguments = DataArguments(dataset=name, dataset_dir=str(folder))
        model = ModelArguments(model_name_or_path="none", cache_dir=cache)
        training = SimpleNamespace(local_process_index=0, dataloader_num_workers=0)
        (described,) = get_dataset_list(arguments.dataset, arguments.dataset_dir)
        data = _load_single_dataset(described, model, arguments, training)
        wanted = repeated(samples)
        same(f"{case}: rows", len(data), len(wanted))
        for row, sample in zip(data, wanted):
            said = row["_prompt"] + row["_response"]
            same(f"{case}: {sample['id']}: texts", [message["content"] for message in said], texts(sample))
            same(f"{case}: {sample['id']}: roles", [m["role"] for m in said], ["user", "assistant"] * (len(said) // 2))
            images = row["_images"] or []
            plugin._validate_messages(said, images, [], [])
            shas = [sha256(Path(path).read_bytes()) for path in images]
            same(f"{case}: {sample['id']}: images", shas, sha256s(sample))
            loaded = plugin._regularize_images(images, image_max_pixels=10**9, image_min_pixels=1)["images"]
            same(f"{case}: {sample['id']}: sizes", [image.size for image in loaded], sizes(sample))
        report("llama-factory", case, samples, len(data))
