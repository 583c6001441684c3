"""ms-swift's own `load_dataset`, template inputs and box scaling on `--to ms-swift`."""

import os
import tempfile

from common import cases, repeated, report, same, sha256

cache = tempfile.TemporaryDirectory()
os.environ["MODELSCOPE_CACHE"] = cache.name

from swift.dataset import load_dataset  # noqa: E402
from swift.template import Template  # noqa: E402
from swift.template.template_inputs import StdTemplateInputs  # noqa: E402
from swift.template.vision_utils import load_image  # noqa: E402

for case, folder, samples in cases("ms-swift"):
    data, _ = load_dataset(str(folder / "train.jsonl"), strict=True)
    wanted = repeated(samples)
    led = next(i for i, sample in enumerate(wanted) if sample["boxes"])
    times = wanted[led]["repeat"]
    wanted = wanted[led : led + times] + wanted[:led] + wanted[led + times :]
    same(f"{case}: rows", len(data), len(wanted))
    for row, sample in zip(data, wanted):
        about = f"{case}: {sample['id']}"
        same(f"{about}: channel", row["channel"], sample["source"])
        paths = [image["path"] for image in row["images"] or []]
        shas = [sha256((folder / path).read_bytes()) for path in paths]
        same(f"{about}: images", shas, [sample["sha256"]] if sample["sha256"] else [])
        os.environ["ROOT_IMAGE_DIR"] = str(folder)
        sizes = [load_image(path).size for path in paths]
        same(f"{about}: sizes", sizes, [(sample["width"], sample["height"])] if sample["image"] else [])
        inputs = StdTemplateInputs.from_dict(row)
        before = [message["content"] for message in inputs.messages]
        Template._add_default_tags(inputs)
        said = [message["content"] for message in inputs.messages]
        same(f"{about}: image tags that ms-swift had to add", said, before)
        boxes = [[box[c] for c in ("x1", "y1", "x2", "y2")] for box in sample["boxes"]]
        objects = row["objects"] or {}
        # Its own storage keeps 15 digits.
        same(
            f"{about}: boxes",
            [[round(c, 9) for c in b] for b in objects.get("bbox") or []],
            [[round(c, 9) for c in b] for b in boxes],
        )
        same(f"{about}: <bbox>", "\n".join(said).count("<bbox>"), len(boxes))
        same(f"{about}: <ref-object>", "\n".join(said).count("<ref-object>"), len(objects.get("ref") or []))
        # What ms-swift makes of the placeholders, with LLaVA's own notation put in, are the texts of the sample.
        side = max(sample["width"], sample["height"], 1)
        dx, dy = (side - sample["width"]) // 2, (side - sample["height"]) // 2
        refs, places = iter(objects.get("ref") or []), iter(boxes)
        for number, text in enumerate(said):
            while "<bbox>" in text or "<ref-object>" in text:
                if "<bbox>" in text and not (
                    "<ref-object>" in text and text.index("<ref-object>") < text.index("<bbox>")
                ):
                    x1, y1, x2, y2 = next(places)
                    corners = ((x1 + dx) / side, (y1 + dy) / side, (x2 + dx) / side, (y2 + dy) / side)
                    text = text.replace("<bbox>", repr([round(corner, 2) for corner in corners]), 1)
                else:
                    text = text.replace("<ref-object>", next(refs), 1)
            said[number] = text
        same(f"{about}: texts", said, [turn["value"] for turn in sample["conversations"]])
    report("ms-swift", case, samples, len(data))
