"""RefCOCO, RefCOCO+ and RefCOCOg: expressions for one object of a photograph."""

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from true_size.catalogue import Catalogue
from true_size.texts import SAYS, spread, texts, write

REF_SEGMENTS, REF_TURNS = 48_447, 10

# Set: author, first train image, annotations, and per split its images, refs and expressions.
REFS: dict[str, tuple[str, int, int, dict[str, tuple[int, int, int]]]] = {
    "refcoco": (
        "unc",
        0,
        196_771,
        {
            "train": (16_994, 42_404, 120_624),
            "val": (1_500, 3_811, 10_834),
            "testA": (750, 1_975, 5_657),
            "testB": (750, 1_810, 5_095),
        },
    ),
    "refcoco+": (
        "unc",
        0,
        196_737,
        {
            "train": (16_992, 42_278, 120_191),
            "val": (1_500, 3_805, 10_758),
            "testA": (750, 1_975, 5_726),
            "testB": (750, 1_798, 4_889),
        },
    ),
    "refcocog": (
        "umd",
        6_259,
        208_960,
        {"train": (21_899, 42_226, 80_512), "val": (1_300, 2_573, 4_896), "test": (2_600, 5_023, 9_602)},
    ),
}


def refcoco(raw: Path, images: Catalogue) -> None:
    """The three sets: COCO's instances with polygons, and refs as pickles of protocol 2."""
    rng = images.rng("refcoco")
    said = [
        texts((*SAYS[:3], "{thing} by {place}", "{look} one on the left"), 20_000, rng),
        texts(("the {look} {thing} that stands on the {place} next to a {thing}",), 20_000, rng),  # RefCOCOg's
    ]
    drawn = {name: _refs(images, name, rng) for name in REFS}
    _cut_into(images.count(REF_SEGMENTS), [drawn[name]["train"] for name in REFS])
    next_ref = next_sentence = 0
    for name, (author, _, annotations, _) in REFS.items():
        refs = []
        boxed: list[int] = []  # the image of each annotation
        for split, (owners, sentences) in drawn[name].items():
            for place, count in zip(owners.tolist(), sentences.tolist()):
                image = images.train2014[place]
                first, next_sentence = next_sentence, next_sentence + count
                phrases = rng.choices(said[name == "refcocog"], k=count)
                refs.append(
                    {
                        "sent_ids": list(range(first, next_sentence)),
                        "file_name": f"COCO_train2014_{image:012d}_{len(boxed)}.jpg",
                        "ann_id": len(boxed),
                        "ref_id": next_ref,
                        "image_id": image,
                        "split": split,
                        "sentences": [
                            # Each a string of its own, as upstream: pickle would write one that is shared once.
                            {
                                "tokens": text.split(),
                                "raw": text.upper(),
                                "sent_id": first + i,
                                "sent": " ".join(text.split()),
                            }
                            for i, text in enumerate(phrases)
                        ],
                        "category_id": 1 + place % 90,
                    }
                )
                boxed.append(place)
                next_ref += 1
        shown = sorted(set(boxed))
        boxed += rng.choices(shown, k=max(images.count(annotations) - len(boxed), 0))
        _instances(raw / f"refcoco/{name}/instances.json", images, shown, boxed, rng)
        (raw / f"refcoco/{name}/refs({author}).p").write_bytes(pickle.dumps(refs, protocol=2))


def _refs(images: Catalogue, name: str, rng: Random) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per split, the image (its place in train2014) and the number of sentences of each ref; an image's first ref is at
    the image's own place. The images of the evaluation splits come after those of all train splits."""
    _, first, _, splits = REFS[name]
    after = images.count(6_259) + images.count(21_899)
    drawn = {}
    for split, (pictures, refs, expressions) in splits.items():
        many, of = images.count(pictures), images.count(refs)
        start = images.count(first) if split == "train" and first else 0 if split == "train" else after
        if split != "train":
            after += many
        more = np.random.default_rng(rng.getrandbits(32)).integers(many, size=of - many)
        owners = start + np.concatenate([np.arange(many), more])
        drawn[split] = owners, spread(images.count(expressions), of, rng)
    return drawn


def _cut_into(target: int, sets: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Move sentences between the images of the first set, in place, until the segments of at most REF_TURNS expressions
    of all sets together are `target`."""
    images = 1 + max(int(owners.max()) for owners, _ in sets)
    spare = sets[0][1]
    movable = 1 + int(sets[0][0].max())
    while True:
        total = sum(np.bincount(owners, weights=held, minlength=images) for owners, held in sets)
        over = total[:movable].astype(int) % REF_TURNS
        lacking = target - int(np.ceil(total / REF_TURNS).sum())
        if not lacking:
            return
        # A sentence more opens a segment where all are full, one less closes it where the last has just one; where no
        # image is there yet, those that are nearest come one nearer.
        away = (-over if lacking > 0 else over - 1) % REF_TURNS
        nearest = away == away.min()
        takes = nearest if lacking > 0 else over > 1
        gives = (over > 1 if lacking > 0 else nearest) & (spare[:movable] > 1) & ~takes
        moves = min(abs(lacking), takes.sum(), gives.sum())
        if not moves:
            raise SystemExit(f"refcoco cannot be cut into {target} segments")
        spare[np.flatnonzero(takes)[:moves]] += 1
        spare[np.flatnonzero(gives)[:moves]] -= 1


def _instances(path: Path, images: Catalogue, shown: list[int], boxed: list[int], rng: Random) -> None:
    def pictures() -> Iterator[str]:
        for place in shown:
            image, (width, height) = images.train2014[place], images.coco_sizes[place]
            name = f"COCO_train2014_{image:012d}.jpg"
            yield (
                f'{{"license": 1, "file_name": "{name}", "coco_url": "http://mscoco.org/images/{image}", '
                f'"height": {height}, "width": {width}, "date_captured": "2013-11-18 02:53:27", "id": {image}, '
                f'"flickr_url": "http://farm5.staticflickr.com/4153/{image}_z.jpg"}}'
            )

    def annotations() -> Iterator[str]:
        for number, place in enumerate(boxed):
            width, height = images.coco_sizes[place]
            x, y = round(rng.random() * width * 0.7, 2), round(rng.random() * height * 0.7, 2)
            w, h = (
                round((width - x) * (0.2 + 0.8 * rng.random()), 2),
                round((height - y) * (0.2 + 0.8 * rng.random()), 2),
            )
            outline = f"{x}, {y}, {x + w:.2f}, {y}, {x + w:.2f}, {y + h:.2f}, {x}, {y + h:.2f}, "
            polygon = (outline * rng.randint(1, 8))[:-2]
            yield (
                f'{{"segmentation": [[{polygon}]], "area": {w * h:.4f}, "iscrowd": 0, "bbox": [{x}, {y}, {w}, {h}], '
                f'"category_id": {1 + place % 90}, "image_id": {images.train2014[place]}, "id": {number}}}'
            )

    path.parent.mkdir(parents=True, exist_ok=True)
    head = '{"info": {"description": "This is stable 1.0 version of the 2014 MS COCO dataset."}, "images": ['
    write(path, head, pictures(), "], ")
    rest = path.with_suffix(".annotations")
    write(rest, '"licenses": [], "categories": [], "annotations": [', annotations(), "]}")
    with path.open("ab") as whole, rest.open("rb") as more:
        shutil.copyfileobj(more, whole, 2**20)
    rest.unlink()
