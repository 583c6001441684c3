"""wids' own `ShardListDataset` on `--to wids`."""

import tempfile

from common import cases, members, report, run_docs, same, same_counts, sha256, sha256s, sizes
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
            same(f"{case}: {sample['id']}: sizes", [image.size for image in members(row, ".")], sizes(sample))
        raw = ShardListDataset(str(folder / "wids.json"), cache_dir=cache, keep=True, transformations=[])
        for i, row in enumerate(found):
            shas = [sha256(stream.read()) for stream in members(raw[i], ".")]
            same(f"{case}: {row['.json']['id']}: images", shas, sha256s(wanted[row[".json"]["id"]]))
    report("wids", case, samples, len(found))

run_docs("wids", {"wids": "whole/wids"})
