"""ms-swift's own `load_dataset`, template inputs and box scaling on `--to ms-swift`, its loader on `--to messages`."""

import os
import re
import tempfile
from typing import Any

from common import cases, chat, repeated, report, same, sha256, sha256s, sizes, texts

cache = tempfile.TemporaryDirectory()
os.environ["MODELSCOPE_CACHE"] = cache.name

from swift.dataset import load_dataset  # noqa: E402
from swift.template import Template  # noqa: E402
from swift.template.template_inputs import StdTemplateInputs  # noqa: E402
from swift.template.vision_utils import load_image  # noqa: E402


class Scaled(Template):
    """What of a template box scaling needs, for models that count in thousandths of each image."""

    norm_bbox = "norm1000"

    def __init__(self) -> None: ...


def square(box: list[float], size: tuple[int, int]) -> str:
    """A box in LLaVA's notation."""
    side = max(size)
    dx, dy = (side - size[0]) // 2, (side - size[1]) // 2
    corners = ((box[0] + dx) / side, (box[1] + dy) / side, (box[2] + dx) / side, (box[3] + dy) / side)
    return repr([round(corner, 2) for corner in corners])


def check(about: str, folder: Any, row: dict[str, Any], sample: dict[str, Any]) -> None:
    same(f"{about}: channel", row["channel"], sample["source"])
    paths = [image["path"] for image in row["images"] or []]
    same(f"{about}: images", [sha256((folder / path).read_bytes()) for path in paths], sha256s(sample))
    os.environ["ROOT_IMAGE_DIR"] = str(folder)
    same(f"{about}: sizes", [load_image(path).size for path in paths], sizes(sample))
    inputs = StdTemplateInputs.from_dict(row)
    before = [message["content"] for message in inputs.messages]
    Template._add_default_tags(inputs)
    said = [message["content"] for message in inputs.messages]
    same(f"{about}: image tags that ms-swift had to add", said, before)
    same(f"{about}: image tags", "".join(said).count("<image>"), len(paths))
    boxes = [[box[c] for c in ("x1", "y1", "x2", "y2")] for box in sample["boxes"]]
    objects = row["objects"] or {}
    # Its own storage keeps 15 digits.
    found = [[round(c, 9) for c in b] for b in objects.get("bbox") or []]
    same(f"{about}: boxes", found, [[round(c, 9) for c in b] for b in boxes])
    numbers = [box["image"] for box in sample["boxes"]]
    same(f"{about}: images of the boxes", objects.get("image_id") or [], numbers)
    same(f"{about}: <bbox>", "\n".join(said).count("<bbox>"), len(boxes))
    same(f"{about}: <ref-object>", "\n".join(said).count("<ref-object>"), len(objects.get("ref") or []))
    if boxes:
        of = [sizes(sample)[number] for number in numbers]
        kept = [list(box) for box in objects["bbox"]]
        inputs.objects |= {"width": [s[0] for s in sizes(sample)], "height": [s[1] for s in sizes(sample)]}
        Scaled().normalize_bbox(inputs)
        thousandths = [[round(c / s * 1000) for c, s in zip(box, size * 2)] for box, size in zip(kept, of)]
        same(f"{about}: boxes in thousandths of their own image", inputs.objects["bbox"], thousandths)
    # What ms-swift makes of the placeholders, with LLaVA's own notation put in, are the texts of the sample.
    refs, places = iter(objects.get("ref") or []), iter(zip(boxes, numbers))

    def filled(hole: re.Match[str]) -> str:
        if hole[0] == "<ref-object>":
            return str(next(refs))
        box, number = next(places)
        return square(box, sizes(sample)[number])

    same(f"{about}: texts", [re.sub("<bbox>|<ref-object>", filled, text) for text in said], texts(sample))


for case, folder, samples in cases("ms-swift"):
    data, _ = load_dataset(str(folder / "train.jsonl"), strict=True)
    wanted = repeated(samples)
    led = next(i for i, sample in enumerate(wanted) if sample["boxes"])
    times = wanted[led]["repeat"]
    wanted = wanted[led : led + times] + wanted[:led] + wanted[led + times :]
    same(f"{case}: rows", len(data), len(wanted))
    for row, sample in zip(data, wanted):
        check(f"{case}: {sample['id']}", folder, row, sample)
    report("ms-swift", case, samples, len(data))

for case, folder, samples in cases("messages"):
    parts = [load_dataset(str(path), strict=True)[0] for path in sorted((folder / "data").glob("*.parquet"))]
    rows = [row for part in parts for row in part]
    wanted = repeated(samples)
    same(f"{case}: rows", len(rows), len(wanted))
    for row, sample in zip(rows, wanted):
        inputs = StdTemplateInputs.from_dict(row)
        told = [(m["role"], m["content"]) for m in inputs.messages]
        if inputs.system:  # left as blocks, which its templates cannot format: see mixture/export/messages.py
            told.insert(0, ("system", "".join(block["text"] for block in inputs.system)))
        same(f"{case}: {sample['id']}: texts", told, chat(sample, with_system=True))
        # It decodes the column and encodes anew.
        seen = [load_image(image["bytes"]).size for image in row["images"] or []]
        same(f"{case}: {sample['id']}: sizes", seen, sizes(sample))
    report("ms-swift, --to messages", case, samples, len(rows))
