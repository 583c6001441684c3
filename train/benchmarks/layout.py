"""Where the images of evaluation splits lie, in LLaVA's image layout, and under which other names people keep them."""

from mixture.images import ImageFolder

# Evaluation sets were drawn in 2014; all of val2014 is in train2017 or val2017, with the same ids.
COCO = {
    "coco/val2017": (
        ImageFolder("coco/val2014", "COCO_val2014_"),
        ImageFolder("coco/train2017"),
        ImageFolder("coco/images/val2017"),
        ImageFolder("coco/images/train2017"),
        ImageFolder("coco/images/val2014", "COCO_val2014_"),
        ImageFolder("pope/val2014", "COCO_val2014_"),
    ),
    "coco/train2017": (
        ImageFolder("coco/train2014", "COCO_train2014_"),
        ImageFolder("coco/val2017"),
        ImageFolder("coco/images/train2017"),
        ImageFolder("coco/images/train2014", "COCO_train2014_"),
        ImageFolder("refcoco/images/mscoco/images/train2014", "COCO_train2014_"),
    ),
    "coco/test2015": (ImageFolder("vqav2/test2015"),),
    "coco/test2017": (ImageFolder("coco/images/test2017"),),
}
GQA = {"gqa/images": (ImageFolder("gqa/images/images"), ImageFolder("gqa/data/images"), ImageFolder("gqa"))}
TEXTVQA = {
    "textvqa/train_images": (
        ImageFolder("textcaps/train_images"),
        ImageFolder("textvqa/train_val_images/train_images"),
        ImageFolder("textcaps/train_val_images/train_images"),
    ),
    "textvqa/test_images": (ImageFolder("textcaps/test_images"),),
}


def coco(split: str, image_id: int) -> str:
    """Path of a COCO image: `coco/val2017/000000000042.jpg`, `coco/test2015/COCO_test2015_000000000042.jpg`. Train
    and val go by 2017 names in LLaVA's layout, whatever year's annotations ask for them."""
    if split == "test2015":
        return f"coco/test2015/COCO_test2015_{image_id:012d}.jpg"
    return f"coco/{split}2017/{image_id:012d}.jpg"
