"""`wids`: shards with an index of kind `wids-shard-index-v1`.

    OUT/wids.json                  shardlist: [{url, nsamples, filesize}]
    OUT/train/train-000000.tar …

Rules, from wids in webdataset 0.2.100 (`wids_specs.py`): `wids_version` 1; relative urls are resolved against the
index's own folder. A url may stand several times, so where samples have unlike `repeat`, they lie in shards of one
`repeat` each, listed that often; else OUT is still a vlmix mixture. Shard names are unique, as its cache demands.
"""

from pathlib import Path

from vlmix.mixture.export._folder import write_json
from vlmix.mixture.export._rows import open_whole, row_count
from vlmix.mixture.export._tars import place
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.staging import new_folder


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    mixture = open_whole(folder)
    with new_folder(out) as partial:
        listed = []
        for tar in place(mixture, partial, progress, workers):
            size = (partial / tar.path).stat().st_size
            listed += [{"url": tar.path, "nsamples": len(tar.samples), "filesize": size}] * tar.repeat
        index = {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": mixture.manifest.name,
            "shardlist": listed,
        }
        write_json(partial / "wids.json", index)
    return row_count(mixture)
