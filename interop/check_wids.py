"""wids' own `ShardListDataset` on `--to wids`."""

import tempfile

from common import cases, report, run_docs, same, same_counts, sha256
from wids import ShardListDataset

for case, folder, samples in cases("wids"):
    wanted = {sample["id"]: sample for sample in samples}
    with tempfile.TemporaryDirectory() as cache:
        data = ShardListDataset(str(folder / "wids.json"), cache_dir=cache, keep=True)
        found = [data[i] for i in range(len(data))]
        same_counts(f"{case}: an epoch", [sample[".json"]["id"] for sample in found], samples)
        for row in found:
            sample = wanted[row[".json"]["id"]]
            same(f"{case}: {sample['id']}: texts", row[".json"]["conversations"], sample["conversations"])
            size = row[".jpg"].size if ".jpg" in row else (0, 0)
            same(f"{case}: {sample['id']}: size", size, (sample["width"], sample["height"]))
        raw = ShardListDataset(str(folder / "wids.json"), cache_dir=cache, keep=True, transformations=[])
        for i, row in enumerate(found):
            image = sha256(raw[i][".jpg"].read()) if ".jpg" in row else None
            same(f"{case}: {row['.json']['id']}: image", image, wanted[row[".json"]["id"]]["sha256"])
    report("wids", case, samples, len(found))

run_docs("wids", {"wids": "whole/wids"})
