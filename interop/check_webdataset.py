"""Stock webdataset and HF datasets on mixtures, on shards with other tools' files beside them, and on `--to hf`."""

import json
import tempfile

import datasets
import webdataset
from common import MADE, cases, repeated, report, run_docs, same, sha256

datasets.disable_progress_bars()

for case in ("whole", "repeated"):
    samples = json.loads((MADE / f"{case}.json").read_text(encoding="utf-8"))
    wanted = {sample["id"]: sample for sample in samples}
    shards = sorted(str(path) for path in (MADE / "mixtures" / case / "train").glob("*.tar"))
    count = 0
    for found in webdataset.WebDataset(shards, shardshuffle=False).decode():
        row = found["json"]
        sample = wanted[row["id"]]
        same(f"{case}: {row['id']}: texts", row["conversations"], sample["conversations"])
        count += 1
    for found in webdataset.WebDataset(shards, shardshuffle=False):
        sample = wanted[json.loads(found["json"])["id"]]
        same(f"{sample['id']}: image", sha256(found["jpg"]) if "jpg" in found else None, sample["sha256"])
    same(f"{case}: samples", count, len(samples))
    report("webdataset", case, samples, count)

# dali and wids leave files beside the tars that datasets takes for data unless the card says what data is.
for folder in ("mixtures/whole", "whole/energon", "whole/dali", "whole/wids"):
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset(str(MADE / folder), split="train", cache_dir=cache)
        samples = json.loads((MADE / "whole.json").read_text(encoding="utf-8"))
        wanted = {sample["id"]: sample for sample in samples}
        for found in data:
            sample = wanted.pop(found["json"]["id"])
            same(f"{sample['id']}: texts", found["json"]["conversations"], sample["conversations"])
            size = found["jpg"].size if found["jpg"] else (0, 0)
            same(f"{sample['id']}: size", size, (sample["width"], sample["height"]))
        same(f"{folder}: samples left", list(wanted), [])
        report("datasets", folder, samples, len(data))

for case, folder, samples in cases("hf"):
    with tempfile.TemporaryDirectory() as cache:
        for streaming in (False, True):
            data = datasets.load_dataset(str(folder), split="train", cache_dir=cache, streaming=streaming)
            raw = data.cast_column("images", datasets.List(datasets.Image(decode=False)))
            same(f"{case}: rows", sum(1 for _ in raw), len(repeated(samples)))
            for found, sample in zip(raw, repeated(samples)):
                same(f"{case}: id", found["id"], sample["id"])
                for name in ("source", "width", "height", "conversations", "response_formats", "boxes"):
                    same(f"{case}: {sample['id']}: {name}", found[name], sample[name])
                shas = [sha256(image["bytes"]) for image in found["images"]]
                same(f"{case}: {sample['id']}: images", shas, [sample["sha256"]] if sample["sha256"] else [])
            for found in data:
                sizes = [image.size for image in found["images"]]
                same(f"{found['id']}: sizes", sizes, [(found["width"], found["height"])] if found["width"] else [])
    report("datasets, --to hf", case, samples, len(repeated(samples)))

run_docs("webdataset", {"mixture": "mixtures/whole"})
run_docs("HF datasets", {"mixture": "mixtures/whole", "hf": "whole/hf"})
