"""Visual Genome: image_data and region descriptions."""

from random import Random

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder, Record
from vlmix.builders.miniature.scenes import PLACES, Box, Scene, Thing, parts
from vlmix.builders.miniature.stock import vg_scene
from vlmix.builders.miniature.texts import article, colorless, described, look, relation, side


def union(first: Box, second: Box) -> Box:
    x, y = min(first[0], second[0]), min(first[1], second[1])
    right = max(first[0] + first[2], second[0] + second[2])
    bottom = max(first[1] + first[3], second[1] + second[3])
    return x, y, right - x, bottom - y


def regions_of(scene: Scene, thing: Thing) -> list[tuple[str, Box]]:
    """Three phrases for one object, and one per part."""
    called = colorless(scene, thing)
    color = f"the {called} is {thing.color}" if called else f"the {thing.kind} has a {thing.color} color"
    whole = [article(look(thing)), f"{described(thing)} {side(scene, thing)}", color]
    return [
        *((phrase, thing.box) for phrase in whole),
        *((f"{part} of the {look(thing)}", box) for part, box in parts(thing)),
    ]


def describe(scene: Scene, rng: Random) -> list[tuple[str, Box]]:
    """12 to 20 phrases with their boxes, in random order, about a fifth of them with a capital."""
    place, horizon = PLACES[scene.place], scene.horizon
    must = [region for thing in scene.things for region in regions_of(scene, thing)[:4]]
    more = [region for thing in scene.things for region in regions_of(scene, thing)[4:]]
    more += [
        (place.above, (0, 0, scene.width, horizon)),
        (place.below, (0, horizon, scene.width, scene.height - horizon)),
    ]
    for thing, other in zip(scene.things, scene.things[1:], strict=False):
        if words := relation(thing, other):
            more.append((f"{look(thing)} {words} the {look(other)}", union(thing.box, other.box)))
    rng.shuffle(more)
    chosen = [*must, *more][: rng.randint(14, 20)]
    rng.shuffle(chosen)
    return [(phrase[0].upper() + phrase[1:] if rng.random() < 0.2 else phrase, box) for phrase, box in chosen]


def _region(index: int, number: int, phrase: str, box: Box) -> Record:
    key = {"region_id": ids.vg_region(index, number), "image_id": ids.vg(index), "phrase": phrase}
    return key | dict(zip(("x", "y", "width", "height"), box, strict=True))


def _vg_dirt(index: int, scene: Scene, regions: list[Record]) -> None:
    w, h, horizon = scene.width, scene.height, scene.horizon
    above = PLACES[scene.place].above
    first = regions[0]
    extra: dict[str, tuple[str, Box]] = {
        RECORD["vg-negative-y"]: (above, (0, -7, w, horizon + 7)),
        RECORD["vg-outside"]: (above, (10, h + 40, 30, 20)),
        RECORD["vg-zero-width"]: ("left edge", (0, 0, 0, h)),
        RECORD["vg-over-edge"]: (PLACES[scene.place].below, (0, horizon, w + 5, h - horizon)),
        RECORD["vg-phrase-duplicate"]: (first["phrase"], (first["x"], first["y"], first["width"], first["height"])),
        RECORD["vg-phrase-empty"]: ("", (0, 0, w, horizon)),
    }
    if added := extra.get(str(ids.vg_region(index, 99))):
        regions.append(_region(index, 99, *added))
    changed = {
        RECORD["vg-phrase-newline"]: first["phrase"] + "\n",
        RECORD["vg-phrase-double-space"]: first["phrase"].replace(" ", "  ", 1),
        RECORD["vg-phrase-full-stop"]: first["phrase"] + ".",
    }
    first["phrase"] = changed.get(str(first["region_id"]), first["phrase"])


def write_vg(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    image_data: list[Record] = []
    images: list[Record] = []
    for index in range(sizes["vg"]):
        scene, image_id = vg_scene(seed, index), ids.vg(index)
        # The folder of an image is the second-last part of its url; the host is not the real one on purpose.
        url = f"https://example.org/{ids.vg_folder(index)}/{image_id}.jpg"
        image_data.append({"width": scene.width, "url": url, "height": scene.height, "image_id": image_id})
        phrases = describe(scene, Random(f"{seed}/vg/{index}"))
        regions = [_region(index, number, *region) for number, region in enumerate(phrases)]
        _vg_dirt(index, scene, regions)
        images.append({"regions": regions, "id": image_id})
    folder.json("vg/image_data.json", image_data, len(image_data))
    folder.json("vg/region_descriptions.json", images, sum(len(image["regions"]) for image in images))
