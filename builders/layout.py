"""LLaVA's image layout, and the other folders in which people keep the same files."""

import re
from pathlib import PurePosixPath

from vlmix.mixture.io.image_index import ImageFolder

_COCO_2014 = (
    ImageFolder("coco/train2014", "COCO_train2014_"),
    ImageFolder("coco/val2014", "COCO_val2014_"),
    ImageFolder("coco/train2017", "COCO_train2014_"),
    # lichengunc/refer keeps train2014 in a tree of its own
    ImageFolder("refcoco/images/mscoco/images/train2014", "COCO_train2014_"),
    ImageFolder("coco/images/train2014", "COCO_train2014_"),
    ImageFolder("coco/images/val2014", "COCO_val2014_"),
    ImageFolder("pope/val2014", "COCO_val2014_"),
)
# val2017 and 35,504 images of train2017 are val2014's; the ids did not change. Evaluation sets were sampled in 2014.
COCO = {
    "coco/train2017": (*_COCO_2014, ImageFolder("coco/val2017"), ImageFolder("coco/images/train2017")),
    "coco/val2017": (
        *_COCO_2014,
        ImageFolder("coco/train2017"),
        ImageFolder("coco/images/val2017"),
        ImageFolder("coco/images/train2017"),
    ),
    "coco/test2015": (ImageFolder("vqav2/test2015"),),
    "coco/test2017": (ImageFolder("coco/images/test2017"),),
}
GQA = {"gqa/images": (ImageFolder("gqa/images/images"), ImageFolder("gqa/data/images"), ImageFolder("gqa"))}
OCR_VQA = {"ocr_vqa/images": (ImageFolder("ocrvqa/images"), ImageFolder("ocr_vqa"))}
TEXTVQA = {
    "textvqa/train_images": (
        ImageFolder("textcaps/train_images"),
        ImageFolder("textvqa/train_val_images/train_images"),
        ImageFolder("textcaps/train_val_images/train_images"),
    ),
    "textvqa/test_images": (ImageFolder("textcaps/test_images"),),
}
# 172 more files than images lie in the two folders, and 170 of VG_100K_2 are empty while VG_100K has a good copy.
VISUAL_GENOME = {
    "vg/VG_100K": (ImageFolder("vg/VG_100K_2"), ImageFolder("vg/VG_100K_2/VG_100K_2")),
    "vg/VG_100K_2": (ImageFolder("vg/VG_100K"), ImageFolder("vg/VG_100K_2/VG_100K_2")),
}
LCS = {"lcs558k/images": (ImageFolder("lcs558k"), ImageFolder("images"), ImageFolder("LLaVA-Pretrain/images"))}

EVERYTHING = {**COCO, **GQA, **OCR_VQA, **TEXTVQA, **VISUAL_GENOME}


def coco(split: str, image_id: int) -> str:
    """Path of a COCO image in LLaVA's layout, which uses 2017 folders for 2014's train and val too:
    `coco/val2017/000000000042.jpg`, but `coco/test2015/COCO_test2015_000000000042.jpg`."""
    if split == "test2015":
        return f"coco/test2015/COCO_test2015_{image_id:012d}.jpg"
    return f"coco/{split}2017/{image_id:012d}.jpg"


_DATASETS = {
    "coco": re.compile(
        r"(?:.*/)?(?:(?:train|val)20(?:14|17)/(?:COCO_(?:train|val)2014_)?|COCO_(?:train|val)2014_)0*(\d+)\.\w+"
    ),
    "coco test": re.compile(r"(?:.*/)?(?:test20(?:15|17)/(?:COCO_test2015_)?|COCO_test2015_)0*(\d+)\.\w+"),
    "vg": re.compile(r"(?:vg/VG_100K(?:_2)?|gqa/images)/0*(\d+)\.\w+"),
}
_FOLDERS = tuple(f"{folder}/" for folder in (*GQA, *OCR_VQA, *TEXTVQA, *VISUAL_GENOME, *LCS))


def picture_id(path: str) -> str:
    """Which picture of which dataset a path in LLaVA's layout is: `coco/9` in every split and year of COCO's labelled
    images, wherever their folders or names stand, `vg/9` for GQA's copy too, and in the other folders of the layout the
    path without its extension. "" elsewhere: two files of one name in folders of anybody's are no one picture."""
    for name, pattern in _DATASETS.items():
        if match := pattern.fullmatch(path):
            return f"{name}/{match[1]}"
    return str(PurePosixPath(path).with_suffix("")) if path.startswith(_FOLDERS) else ""
