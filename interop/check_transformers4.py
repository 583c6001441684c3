"""transformers 4's own classes on exported models: every weight found and none left over, the same tokens going in, and
the same coming out as with transformers 5."""

import json

import torch
import transformers
from common import MODELS, same
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

transformers.utils.logging.set_verbosity_error()
same("transformers", transformers.__version__.split(".")[0], "4")

for folder in sorted(path for path in MODELS.iterdir() if path.is_dir()):
    case, place = folder.name, folder / "model"
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    model, report = AutoModelForImageTextToText.from_pretrained(place, output_loading_info=True, dtype=torch.float32)
    same(f"{case}: keys", {what: list(keys) for what, keys in report.items() if keys}, {})
    dtypes = {p.dtype for p in AutoModelForImageTextToText.from_pretrained(place, dtype="auto").parameters()}
    same(f"{case}: dtype", dtypes, {getattr(torch, config["dtype"])})
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    same(f"{case}: tied", tied, config["tie_word_embeddings"])
    processor = AutoProcessor.from_pretrained(place)
    wanted = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    shown = [[Image.open(MODELS / name) for name in question["images"]] for question in wanted]
    same(f"{case}: images of a question", max(map(len, shown)), 2)
    for question, images in zip(wanted, shown):
        about = f"{case}: {', '.join(question['images'])}"
        inputs = processor(text=question["prompt"], images=images, return_tensors="pt")
        same(f"{about}: tokens in", inputs["input_ids"][0].tolist(), question["input_ids"])
        pixels = torch.tensor(question["pixels"])
        same(f"{about}: pixels", torch.allclose(inputs["pixel_values"].flatten()[::97], pixels, atol=1e-5), True)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        same(f"{about}: logits", torch.allclose(logits, torch.tensor(question["logits"]), atol=1e-3, rtol=1e-4), True)
        tokens = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        same(f"{about}: tokens out", tokens.tolist(), question["tokens"])
        same(f"{about}: ends", model.generation_config.eos_token_id, question["eos"])
    images = [image for images in shown for image in images]
    batch = processor(text=[q["prompt"] for q in wanted], images=images, padding=True, return_tensors="pt")
    tokens = model.generate(**batch, max_new_tokens=12)[:, batch["input_ids"].shape[1] :].tolist()
    short = [row[: len(question["tokens"])] for row, question in zip(tokens, wanted)]
    same(f"{case}: tokens out of a batch", short, [question["tokens"] for question in wanted])
    count = sum(len(question["tokens"]) for question in wanted)
    print(
        f"transformers {transformers.__version__}: {case}: no key missing, none left over, {count} tokens agree",
        flush=True,
    )
