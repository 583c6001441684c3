"""RefCOCO, RefCOCO+ and RefCOCOg: expressions for one object of a COCO picture, as refs pickles and instances.json.

The evaluation splits have pictures of their own (`ids.COCO_FIRST["refs"]`). Sentences about an object fit no other one.
"""

from random import Random
from typing import Any

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder
from vlmix.builders.miniature.scenes import KINDS, PLACES, Scene, Thing, outline
from vlmix.builders.miniature.stock import coco_scene
from vlmix.builders.miniature.texts import (
    colorless,
    corner,
    described,
    kin,
    kindless,
    look,
    only,
    relation,
    side,
)

Record = dict[str, Any]
FloatBox = tuple[float, float, float, float]

EVALUATION = 100
"""Image indices from here on count the pictures of the evaluation splits."""

SPANS = {"refcoco": range(72), "refcoco+": range(12, 84), "refcocog": range(24, 92)}
"""Train pictures of each set: they overlap, as upstream."""

GROUND, EDGE = 8, 9
"""Object numbers of the ground and of the picture's left edge: targets of irregular refs."""

VAGUE = "thing in the picture"


def _is(irregular: str, index: int, number: int) -> bool:
    # True when object `number` of the picture is the named irregularity's ref or annotation.
    return RECORD[irregular] in (str(ids.reference(index, number)), str(ids.annotation(index, number)))


def scene_of(seed: int, index: int) -> Scene:
    """Scene of a picture; indices from EVALUATION on belong to the evaluation splits."""
    return coco_scene(seed, "refs", index - EVALUATION) if index >= EVALUATION else coco_scene(seed, "train", index)


def image_id_of(index: int) -> int:
    """COCO image id of a picture."""
    return ids.coco("refs", index - EVALUATION) if index >= EVALUATION else ids.coco("train", index)


def split_of(flavour: str, index: int, number: int) -> str:
    """Split of object `number` of a picture under unc, umd or google."""
    if index < EVALUATION:
        # The google split cuts by object, so its train and val share pictures.
        return "val" if flavour == "google" and (index % 8 == 0 and number > 0) else "train"
    names = {"unc": ("val", "testA", "testB"), "umd": ("val", "test", "test"), "google": ("val", "val", "val")}
    return names[flavour][(index - EVALUATION) % 3]


def sentences(variant: str, scene: Scene, thing: Thing, rng: Random) -> list[str]:
    """One to three expressions: RefCOCO may say where, RefCOCO+ may not, RefCOCOg speaks in full phrases."""
    if variant == "refcocog":
        other = next((other for other in scene.things if other != thing and relation(thing, other)), None)
        tail = f"{relation(thing, other)} {described(other)}" if other else PLACES[scene.place].phrase
        return [
            f"{described(thing)} {tail}",
            *([f"the {look(thing)} {corner(scene, thing)} of the picture"] * rng.randint(0, 1)),
        ]
    found = [look(thing), f"{thing.size} {look(thing)}"]
    if variant == "refcoco":
        found += [text for text in (colorless(scene, thing), kindless(scene, thing)) if text]
        if only(scene, lambda other: other.kind == thing.kind and side(scene, other) == side(scene, thing)):
            found.append(f"{thing.kind} {side(scene, thing)}")
    else:
        found += [
            f"the {thing.kind} that is {thing.color}",
            *([f"the {thing.kind}"] if len(kin(scene, thing.kind)) == 1 else []),
        ]
    unique = list(dict.fromkeys(found))
    return rng.sample(unique, min(len(unique), rng.randint(2, 3)))


def _sentence(ref_id: int, number: int, text: str, raw: str) -> Record:
    return {"tokens": text.split(), "raw": raw, "sent_id": 10 * ref_id + number, "sent": text}


def _ref(
    variant: str, flavour: str, index: int, number: int, category: int, texts: list[str], raws: list[str]
) -> Record:
    ref_id, image_id = ids.reference(index, number), image_id_of(index)
    suffix = 16 if str(ref_id) == RECORD["refcoco-file-name"] else number
    values: Record = {
        "sent_ids": [10 * ref_id + at for at in range(len(texts))],
        "file_name": f"COCO_train2014_{image_id:012d}_{suffix}.jpg",
        "ann_id": ids.annotation(index, number),
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split_of(flavour, index, number),
        "sentences": [_sentence(ref_id, at, text, raw) for at, (text, raw) in enumerate(zip(texts, raws, strict=True))],
        "category_id": category,
    }
    order = (
        ("image_id", "split", "sentences", "file_name", "category_id", "ann_id", "sent_ids", "ref_id")
        if variant == "refcocog"
        else values
    )
    return {key: values[key] for key in order}


def refs_of(variant: str, flavour: str, seed: int, index: int) -> list[Record]:
    """All refs of one picture, irregular ones included in RefCOCO."""
    scene = scene_of(seed, index)
    refs = []
    for number, thing in enumerate(scene.things):
        rng = Random(f"{seed}/{variant}/{index}/{number}")
        texts = sentences(variant, scene, thing, rng)
        raws = [rng.choice((text, text, text.capitalize(), f"{text} ")) for text in texts]
        if variant == "refcoco":
            if _is("refcoco-empty-expression", index, number):
                texts, raws = [*texts, ""], [*raws, ""]
            if _is("refcoco-capitals", index, number):
                raws = [raw.upper() for raw in raws]
            if _is("refcoco-equal-sentences", index, GROUND) and number == 0:
                texts, raws = [*texts, VAGUE], [*raws, VAGUE]
        refs.append(_ref(variant, flavour, index, number, list(KINDS).index(thing.kind) + 1, texts, raws))
    ground = PLACES[scene.place].below
    extra = [
        ("refcoco", "refcoco-over-edge", GROUND, ground),
        ("refcoco", "refcoco-equal-sentences", GROUND, VAGUE),
        ("refcoco", "refcoco-zero-area", EDGE, "left edge"),
        ("refcocog", "refcoco-google-overlap", GROUND, ground),
    ]
    for owner, irregular, number, text in extra:
        if variant == owner and _is(irregular, index, number):
            refs.append(_ref(variant, flavour, index, number, len(KINDS) + 1, [text], [text]))
    return refs


def run_lengths(width: int, height: int, box: tuple[int, int, int, int]) -> list[int]:
    """COCO's uncompressed run lengths of a filled box: down the columns, beginning with the outside."""
    x, y, w, h = box
    runs = [x * height + y]
    for _ in range(w - 1):
        runs += [h, height - h]
    return [*runs, h, (width - x - w) * height + height - y - h]


def _area(points: list[tuple[float, float]]) -> float:
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2


def _annotation(scene: Scene, index: int, number: int, category: int, box: FloatBox, kind: str | None) -> Record:
    x, y, w, h = box
    points = outline(kind, box) if kind else [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    ann_id = ids.annotation(index, number)
    segmentation: Any = [[round(value, 2) for point in points for value in point]]
    if str(ann_id) == RECORD["refcoco-rle"]:
        thing = scene.things[number]
        segmentation = {
            "counts": run_lengths(scene.width, scene.height, thing.box),
            "size": [scene.height, scene.width],
        }
    return {
        "segmentation": segmentation,
        "area": round(_area(points), 4),
        "iscrowd": 0,
        "image_id": image_id_of(index),
        "bbox": list(box),
        "category_id": category,
        "id": ann_id,
    }


def annotations_of(seed: int, index: int) -> list[Record]:
    """COCO annotations of one picture; like hand-made ones, boxes are off by up to a fifth of a pixel."""
    scene = scene_of(seed, index)
    found = []
    for number, thing in enumerate(scene.things):
        rng = Random(f"{seed}/instances/{index}/{number}")
        x, y = round(thing.x + rng.randint(0, 20) / 100, 2), round(thing.y + rng.randint(0, 20) / 100, 2)
        box = (x, y, round(thing.w - 0.2, 2), round(thing.h - 0.2, 2))
        found.append(_annotation(scene, index, number, list(KINDS).index(thing.kind) + 1, box, thing.kind))
    ground = (0.0, float(scene.horizon), float(scene.width), float(scene.height - scene.horizon))
    if _is("refcoco-over-edge", index, GROUND):
        ground = (*ground[:2], scene.width + 0.38, ground[3])
    if any(
        _is(name, index, GROUND) for name in ("refcoco-over-edge", "refcoco-equal-sentences", "refcoco-google-overlap")
    ):
        found.append(_annotation(scene, index, GROUND, len(KINDS) + 1, ground, None))
    if _is("refcoco-zero-area", index, EDGE):
        found.append(_annotation(scene, index, EDGE, len(KINDS) + 1, (0.0, 0.0, 0.0, float(scene.height)), None))
    return found


def _image(seed: int, index: int) -> Record:
    scene, image_id = scene_of(seed, index), image_id_of(index)
    file_name = f"COCO_train2014_{image_id:012d}.jpg"
    return {
        "license": 1 + index % 8,
        "file_name": file_name,
        "coco_url": f"http://example.org/coco/{file_name}",
        "height": scene.height,
        "width": scene.width,
        "flickr_url": f"http://example.org/flickr/{image_id}.jpg",
        "id": image_id,
        "date_captured": "2013-11-18 02:53:27",
    }


def write_refcoco(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """The three folders with their instances.json and refs pickles."""
    info = {
        "description": "This is stable 1.0 version of the 2014 MS COCO dataset.",
        "url": "http://mscoco.org",
        "version": "1.0",
        "year": 2014,
        "contributor": "Microsoft COCO group",
        "date_created": "2015-01-27 09:11:52.357475",
    }
    licenses = [
        {"url": f"http://example.org/licenses/{number}/", "id": number, "name": f"License {number}"}
        for number in range(1, 9)
    ]
    categories = [{"supercategory": "object", "id": number, "name": kind} for number, kind in enumerate(KINDS, 1)]
    categories.append({"supercategory": "background", "id": len(KINDS) + 1, "name": "background"})
    flavours = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
    for variant, span in SPANS.items():
        pictures = [*span, *range(EVALUATION, EVALUATION + sizes["coco_refs"])]
        annotations = [record for index in pictures for record in annotations_of(seed, index)]
        instances = {
            "info": info,
            "images": [_image(seed, index) for index in pictures],
            "licenses": licenses,
            "annotations": annotations,
            "categories": categories,
        }
        folder.json(f"refcoco/{variant}/instances.json", instances, len(annotations))
        for flavour in flavours[variant]:
            refs = [ref for index in pictures for ref in refs_of(variant, flavour, seed, index)]
            folder.refs(f"refcoco/{variant}/refs({flavour}).p", refs)
