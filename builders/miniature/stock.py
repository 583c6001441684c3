"""The picture stock: which scene lies behind which image id, and the files of COCO, Visual Genome, GQA and LCS.

A scene belongs to an image, not to a release: VQAv2, OK-VQA, A-OKVQA, RefCOCO and LLaVA-Instruct ask about the same
COCO picture, and the first GQA train images are Visual Genome's photographs. Train and evaluation scenes come from one
distribution and from different keys.
"""

from random import Random

from PIL import Image

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import MISSING_COCO, ONLY_2014, RECORD
from vlmix.builders.miniature.files import Folder
from vlmix.builders.miniature.scenes import SIZES, Scene, compose, draw_scene

EXIF_ORIENTATION = 0x0112


def coco_scene(seed: int, part: str, index: int) -> Scene:
    """Scene of a COCO image; `part` as in `ids.COCO_FIRST`."""
    return compose(Random(f"{seed}/scene/coco/{part}/{index}"))


def vg_scene(seed: int, index: int) -> Scene:
    """Scene of a Visual Genome image: three or four things, so a dozen regions. The turned one is not square."""
    turned = f"{ids.vg(index)}.jpg" == RECORD["vg-exif-rotated"]
    return compose(Random(f"{seed}/scene/vg/{index}"), least=3, shapes=SIZES[:2] if turned else SIZES)


def gqa_scene(seed: int, part: str, index: int) -> Scene:
    """Scene of a GQA image, shared with Visual Genome where the image is."""
    if part == "train" and index < ids.GQA_OWN:
        return vg_scene(seed, index)
    return compose(Random(f"{seed}/scene/gqa/{part}/{index}"), least=3)


def web_scene(seed: int, index: int) -> Scene:
    return compose(Random(f"{seed}/scene/lcs558k/{index}"), most=3)


def write_coco_images(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """COCO pictures in LLaVA's layout; a few train pictures only under their 2014 name, one nowhere."""
    for part in ("train", "refs", "val", "test"):
        home = "train2017" if part == "refs" else f"{part}2017"
        for index in range(sizes[f"coco_{part}"]):
            name = f"{home}/{ids.coco(part, index):012d}.jpg"
            if part == "train" and index == MISSING_COCO:
                continue
            if part == "train" and index in ONLY_2014:
                name = f"train2014/COCO_train2014_{ids.coco(part, index):012d}.jpg"
            folder.picture(f"coco/{name}", draw_scene(coco_scene(seed, part, index)))


def write_vg_images(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """Visual Genome pictures in the folder that image_data's url names, with one empty and one turned file."""
    for index in range(sizes["vg"]):
        home, name = ids.vg_folder(index), f"{ids.vg(index)}.jpg"
        picture = draw_scene(vg_scene(seed, index))
        if name == RECORD["vg-empty-file"]:
            folder.image(f"vg/{home}/{name}", b"")
            home = "VG_100K"
        options = {}
        if name == RECORD["vg-exif-rotated"]:
            options["exif"] = exif = Image.Exif()
            exif[EXIF_ORIENTATION] = 6  # a viewer turns the stored pixels by 90 degrees clockwise
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        folder.picture(f"vg/{home}/{name}", picture, **options)


def write_gqa_images(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    for part in ("train", "val", "testdev"):
        for index in range(sizes[f"gqa_{part}"]):
            folder.picture(f"gqa/images/{ids.gqa(part, index)}.jpg", draw_scene(gqa_scene(seed, part, index)))


def write_web_images(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """LCS-558K pictures, one of them CMYK and one grey."""
    modes = {RECORD["lcs-cmyk"]: "CMYK", RECORD["lcs-grey"]: "L"}
    for index in range(sizes["lcs558k"]):
        name = f"{ids.web(index)}.jpg"
        picture = draw_scene(web_scene(seed, index)).convert(modes.get(name, "RGB"))
        folder.picture(f"lcs558k/images/{name[:5]}/{name}", picture)
