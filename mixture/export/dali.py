"""`dali`: shards with the index files of DALI's `fn.readers.webdataset`.

    OUT/train/train-000000.tar, train-000000.idx …

Form v1.2, as DALI's `wds2idx` writes it: `v1.2 <samples>`, then per sample `ext offset size name` for each member,
offsets of the data. An index is a list of places, so a sample with `repeat` n is listed n times in a row. Text-only
samples have no `jpg`: `missing_component_behavior="empty"`. OUT is still a vlmix mixture.
"""

from pathlib import Path

from vlmix.mixture.export._rows import open_whole, row_count
from vlmix.mixture.export._tars import Tar, place
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.staging import new_folder


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    mixture = open_whole(folder)
    with new_folder(out) as partial:
        for tar in place(mixture, partial, progress, workers, whole_shards=False):
            (partial / tar.path).with_suffix(".idx").write_text(_index(tar), encoding="ascii")
    return row_count(mixture)


def _index(tar: Tar) -> str:
    lines = [f"v1.2 {tar.repeats.sum()}"]
    for (_, members), repeat in zip(tar.samples, tar.repeats):
        places = (f"{m.name.partition('.')[2]} {m.offset} {m.size} {m.name}" for m in members)
        lines += [" ".join(places)] * int(repeat)
    return "\n".join(lines) + "\n"
