"""DALI's own webdataset reader on `--to dali`, and the same shards indexed by its own wds2idx."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import cases, report, run_docs, same, same_counts, sha256, sha256s
from nvidia.dali import fn, pipeline_def, types

IMAGES = ["jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]


@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def reader(tars, indexes):
    return tuple(
        fn.readers.webdataset(
            paths=tars,
            index_paths=indexes,
            ext=["json", *IMAGES],
            missing_component_behavior="empty",
            dtypes=[types.UINT8] * (1 + len(IMAGES)),
            name="reader",
        )
    )


for case, folder, samples in cases("dali"):
    wanted = {sample["id"]: sample for sample in samples}
    tars = sorted(str(path) for path in (folder / "train").glob("*.tar"))
    indexes = [tar.removesuffix(".tar") + ".idx" for tar in tars]
    if len({sample["repeat"] for sample in samples}) == 1:
        for tar, index in zip(tars, indexes):
            with tempfile.TemporaryDirectory() as temporary:
                own = Path(temporary) / "own.idx"
                wds2idx = Path(sys.executable).with_name("wds2idx")
                subprocess.run([sys.executable, str(wds2idx), tar, str(own)], check=True, capture_output=True)
                same(f"{case}: {index}", Path(index).read_text().split(), own.read_text().split())
    pipe = reader(tars, indexes)
    pipe.build()
    count = pipe.epoch_size("reader")
    found = []
    for _ in range(count):
        text, *jpegs = (output.at(0).tobytes() for output in pipe.run())
        row = json.loads(text)
        found.append(row["id"])
        same(f"{case}: {row['id']}: texts", row["conversations"], wanted[row["id"]]["conversations"])
        shas = [sha256(jpeg) if jpeg else None for jpeg in jpegs]
        same(f"{case}: {row['id']}: images", shas, (sha256s(wanted[row["id"]]) + [None] * len(IMAGES))[: len(IMAGES)])
    same_counts(f"{case}: an epoch", found, samples)
    report("dali", case, samples, count)

run_docs("DALI", {"dali": "whole/dali"})
