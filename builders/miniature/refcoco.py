"""RefCOCO, RefCOCO+ and RefCOCOg: expressions for one object of a COCO picture, as refs pickles and instances.json.

The evaluation splits have pictures of their own (`ids.COCO_FIRST["refs"]`). Sentences about an object fit no other one.
"""

from random import Random

from vlmix.builders.miniature import ids, texts
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder, Record
from vlmix.builders.miniature.scenes import PLACES, Scene, Thing
from vlmix.builders.miniature.stock import coco_scene

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


def _picture(index: int) -> tuple[str, int]:
    # Part of COCO and index therein; indices from EVALUATION on belong to the evaluation splits.
    return ("refs", index - EVALUATION) if index >= EVALUATION else ("train", index)


def scene_of(seed: int, index: int) -> Scene:
    return coco_scene(seed, *_picture(index))


def split_of(flavour: str, index: int, number: int) -> str:
    """Split of object `number` of a picture under unc, umd or google."""
    if index < EVALUATION:
        # The google split cuts by object, so its train and val share pictures.
        return "val" if flavour == "google" and (index % 8 == 0 and number > 0) else "train"
    names = {"unc": ("val", "testA", "testB"), "umd": ("val", "test", "test"), "google": ("val", "val", "val")}
    return names[flavour][(index - EVALUATION) % 3]


def sentences(variant: str, scene: Scene, thing: Thing, rng: Random) -> list[str]:
    """One to three expressions: RefCOCO may say where, RefCOCO+ may not, RefCOCOg speaks in full phrases."""
    look = texts.look(thing)
    if variant == "refcocog":
        other = next((other for other in scene.things if other != thing and texts.relation(thing, other)), None)
        tail = f"{texts.relation(thing, other)} {texts.described(other)}" if other else PLACES[scene.place].phrase
        where = f"the {look} {texts.corner(scene, thing)} of the picture"
        return [f"{texts.described(thing)} {tail}", where][: 1 + rng.randint(0, 1)]
    found: list[str | None] = [look, f"{thing.size} {look}"]
    if variant == "refcoco":
        side = texts.side(scene, thing)
        found += [texts.colorless(scene, thing), texts.kindless(scene, thing)]
        if texts.only(scene, lambda other: other.kind == thing.kind and texts.side(scene, other) == side):
            found.append(f"{thing.kind} {side}")
    else:
        found.append(f"the {thing.kind} that is {thing.color}")
        if len(texts.kin(scene, thing.kind)) == 1:
            found.append(f"the {thing.kind}")
    unique = list(dict.fromkeys(filter(None, found)))
    return rng.sample(unique, min(len(unique), rng.randint(2, 3)))


def _ref(flavour: str, index: int, number: int, sents: list[str], raws: list[str]) -> Record:
    ref_id, image_id = ids.reference(index, number), ids.coco(*_picture(index))
    suffix = 16 if str(ref_id) == RECORD["refcoco-file-name"] else number
    return {
        "file_name": f"COCO_train2014_{image_id:012d}_{suffix}.jpg",
        "ann_id": ids.annotation(index, number),
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split_of(flavour, index, number),
        "sentences": [
            {"raw": raw, "sent_id": 10 * ref_id + at, "sent": sent}
            for at, (sent, raw) in enumerate(zip(sents, raws, strict=True))
        ],
    }


def refs_of(variant: str, flavour: str, seed: int, index: int) -> list[Record]:
    """All refs of one picture, irregular ones included in RefCOCO."""
    scene = scene_of(seed, index)
    refs = []
    for number, thing in enumerate(scene.things):
        rng = Random(f"{seed}/{variant}/{index}/{number}")
        sents = sentences(variant, scene, thing, rng)
        raws = [rng.choice((text, text, text.capitalize(), f"{text} ")) for text in sents]
        if variant == "refcoco" and _is("refcoco-capitals", index, number):
            raws = [raw.upper() for raw in raws]
        more = []
        if variant == "refcoco" and _is("refcoco-empty-expression", index, number):
            more = [""]
        if variant == "refcoco" and number == 0 and _is("refcoco-equal-sentences", index, GROUND):
            more = [VAGUE]
        refs.append(_ref(flavour, index, number, sents + more, raws + more))
    ground = PLACES[scene.place].below
    extra = [
        ("refcoco", "refcoco-over-edge", GROUND, ground),
        ("refcoco", "refcoco-equal-sentences", GROUND, VAGUE),
        ("refcoco", "refcoco-zero-area", EDGE, "left edge"),
        ("refcocog", "refcoco-google-overlap", GROUND, ground),
    ]
    for owner, irregular, number, text in extra:
        if variant == owner and _is(irregular, index, number):
            refs.append(_ref(flavour, index, number, [text], [text]))
    return refs


def annotations_of(seed: int, index: int) -> list[Record]:
    """COCO annotations of one picture; like hand-made ones, boxes are off by up to a fifth of a pixel."""
    scene = scene_of(seed, index)
    boxes: dict[int, FloatBox] = {}
    for number, thing in enumerate(scene.things):
        rng = Random(f"{seed}/instances/{index}/{number}")
        x, y = round(thing.x + rng.randint(0, 20) / 100, 2), round(thing.y + rng.randint(0, 20) / 100, 2)
        boxes[number] = (x, y, round(thing.w - 0.2, 2), round(thing.h - 0.2, 2))
    width = scene.width + 0.38 if _is("refcoco-over-edge", index, GROUND) else float(scene.width)
    grounds = ("refcoco-over-edge", "refcoco-equal-sentences", "refcoco-google-overlap")
    if any(_is(name, index, GROUND) for name in grounds):
        boxes[GROUND] = (0.0, float(scene.horizon), width, float(scene.height - scene.horizon))
    if _is("refcoco-zero-area", index, EDGE):
        boxes[EDGE] = (0.0, 0.0, 0.0, float(scene.height))
    image_id = ids.coco(*_picture(index))
    return [
        {"image_id": image_id, "bbox": list(box), "id": ids.annotation(index, number)} for number, box in boxes.items()
    ]


def _image(seed: int, index: int) -> Record:
    scene, image_id = scene_of(seed, index), ids.coco(*_picture(index))
    file_name = f"COCO_train2014_{image_id:012d}.jpg"
    return {"file_name": file_name, "height": scene.height, "width": scene.width, "id": image_id}


def write_refcoco(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    flavours = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
    for variant, span in SPANS.items():
        pictures = [*span, *range(EVALUATION, EVALUATION + sizes["coco_refs"])]
        annotations = [record for index in pictures for record in annotations_of(seed, index)]
        instances = {"images": [_image(seed, index) for index in pictures], "annotations": annotations}
        folder.json(f"refcoco/{variant}/instances.json", instances, len(annotations))
        for flavour in flavours[variant]:
            refs = [ref for index in pictures for ref in refs_of(variant, flavour, seed, index)]
            folder.refs(f"refcoco/{variant}/refs({flavour}).p", refs)
