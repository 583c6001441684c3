"""POPE and MME's task existence: is a kind of thing in the picture? As many answers are yes as no."""

import json
from random import Random

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.files import Folder
from vlmix.builders.miniature.scenes import KINDS, Scene, draw_scene
from vlmix.builders.miniature.stock import coco_scene
from vlmix.builders.miniature.texts import article, other_than

MOST_PAIRS = 3
"""Things that are there, and things that are not, that POPE asks for in a picture."""


def kinds(scene: Scene) -> list[str]:
    """The kinds in a scene, each once."""
    return list(dict.fromkeys(thing.kind for thing in scene.things))


def absent(split: str, present: list[str], pictures: list[list[str]], rng: Random) -> list[str]:
    """The kinds that are not in a picture, in the order in which POPE's split asks for them: at random, those that most
    pictures have first, or those that most often stand beside the kinds of this picture."""
    others = rng.sample([kind for kind in KINDS if kind not in present], len(KINDS) - len(present))
    if split == "popular":
        others.sort(key=lambda kind: -sum(kind in picture for picture in pictures))
    if split == "adversarial":
        others.sort(
            key=lambda kind: -sum(kind in picture for picture in pictures for other in present if other in picture)
        )
    return others


def write_pope(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """Three question files over COCO's validation pictures, which they know under the names of 2014."""
    pictures = [kinds(coco_scene(seed, "val", index)) for index in range(sizes["coco_val"])]
    for split in ("random", "popular", "adversarial"):
        rows: list[str] = []
        for index, present in enumerate(pictures):
            there = Random(f"{seed}/pope/{index}").sample(present, min(MOST_PAIRS, len(present)))
            missing = absent(split, present, pictures, Random(f"{seed}/pope/{split}/{index}"))
            pairs = [(kind, label) for pair in zip(there, missing) for kind, label in zip(pair, ("yes", "no"))]
            for kind, label in pairs:
                row = {
                    "question_id": len(rows) + 1,
                    "image": f"COCO_val2014_{ids.coco('val', index):012d}.jpg",
                    "text": f"Is there {article(kind)} in the image?",
                    "label": label,
                }
                rows.append(f"{json.dumps(row)}\n")
        folder.text(f"pope/coco/coco_pope_{split}.json", "".join(rows), len(rows))


def write_mme(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """MME's task existence: pictures of its own, and beside each its two questions."""
    for index in range(sizes["mme_existence"]):
        scene, rng = coco_scene(seed, "mme", index), Random(f"{seed}/mme/existence/{index}")
        present = kinds(scene)
        asked = (rng.choice(present), "Yes"), (other_than(rng, list(KINDS), set(present)), "No")
        path = f"mme/MME_Benchmark_release_version/existence/{ids.coco('mme', index):012d}"
        folder.picture(f"{path}.jpg", draw_scene(scene))
        lines = [
            f"Is there {article(kind)} in this image? Please answer yes or no.\t{answer}\n" for kind, answer in asked
        ]
        folder.text(f"{path}.txt", "".join(lines), len(lines))
