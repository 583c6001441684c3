"""Miniature releases of all sources, and of POPE and MME's existence, in upstream's file formats, as far as they are
read, with generated pictures.

Same seed, same bytes. Ids do not depend on the seed, so `DIRT` names the irregular records of every sample.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlmix.builders.miniature.dirt import DIRT, Dirt
from vlmix.builders.miniature.files import Folder
from vlmix.builders.miniature.gqa import write_gqa
from vlmix.builders.miniature.instruct import write_instruct, write_lcs
from vlmix.builders.miniature.mix import write_mix
from vlmix.builders.miniature.ocrvqa import write_ocrvqa
from vlmix.builders.miniature.presence import write_mme, write_pope
from vlmix.builders.miniature.refcoco import write_refcoco
from vlmix.builders.miniature.sharegpt import write_sharegpt
from vlmix.builders.miniature.stock import write_coco_images, write_gqa_images, write_vg_images, write_web_images
from vlmix.builders.miniature.textcaps import write_textcaps
from vlmix.builders.miniature.vg import write_vg
from vlmix.builders.miniature.vqa import write_aokvqa, write_okvqa, write_vqav2

__all__ = ["DIRT", "SIZES", "Dirt", "SampleReport", "write_sample"]

SIZES: dict[str, int] = {
    "coco_train": 96,
    "coco_refs": 24,
    "coco_val": 32,
    "coco_test": 6,
    "okvqa_train": 64,
    "okvqa_val": 24,
    "aokvqa_train": 64,
    "aokvqa_val": 24,
    "gqa_train": 48,
    "gqa_val": 16,
    "gqa_testdev": 8,
    "ocrvqa_train": 48,
    "ocrvqa_val": 12,
    "textcaps_train": 48,
    "textcaps_val": 16,
    "vg": 60,
    "lcs558k": 64,
    "sharegpt": 40,
    "mme_existence": 30,
}
"""Images (chats for sharegpt) per source and split."""

Step = tuple[str, Callable[[Folder, int, dict[str, int]], None]]

STEPS: tuple[Step, ...] = (
    ("coco images", write_coco_images),
    ("vg images", write_vg_images),
    ("gqa images", write_gqa_images),
    ("lcs558k images", write_web_images),
    ("vqav2", write_vqav2),
    ("okvqa", write_okvqa),
    ("aokvqa", write_aokvqa),
    ("gqa", write_gqa),
    ("ocrvqa", write_ocrvqa),
    ("textcaps", write_textcaps),
    ("vg", write_vg),
    ("refcoco", write_refcoco),
    ("llava_instruct", write_instruct),
    ("lcs558k", write_lcs),
    ("sharegpt", write_sharegpt),
    ("llava_json", write_mix),
    ("pope", write_pope),
    ("mme", write_mme),
)


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What was written."""

    root: Path
    records: dict[str, int]
    """Records per annotation file, by path relative to the root."""
    images: dict[str, int]
    """Files per image folder, by path relative to the root."""
    bytes: int
    dirt: tuple[Dirt, ...]


def write_sample(raw: Path, *, seed: int = 0, progress: Callable[[str, int, int], None] | None = None) -> SampleReport:
    """Write the sample into `raw`, which must not exist or be empty.

    The files are written into a sibling folder `<raw>.partial` that takes the name `raw` at the end; what a killed run
    left there is replaced. `progress` gets the step's name, the number of finished steps and their total.

    Raises FileExistsError when `raw` is a file or a folder with anything in it.
    """
    if raw.exists() and (not raw.is_dir() or any(raw.iterdir())):
        raise FileExistsError(f"{raw} exists and is not an empty folder: remove it or choose another place")
    partial = raw.absolute().with_name(f"{raw.absolute().name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    folder = Folder(partial)
    for done, (name, step) in enumerate(STEPS, 1):
        step(folder, seed, SIZES)
        if progress:
            progress(name, done, len(STEPS))
    if raw.exists():
        raw.rmdir()
    partial.rename(raw)
    return SampleReport(raw, folder.records, dict(folder.images), folder.bytes, DIRT)
