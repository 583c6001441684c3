"""LLaVA-Instruct's three parts (conversation, detail, complex reasoning) and LCS-558K's captions."""

from random import Random
from typing import Any

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder
from vlmix.builders.miniature.scenes import KINDS, PLACES, Scene
from vlmix.builders.miniature.stock import coco_scene, web_scene
from vlmix.builders.miniature.texts import (
    NUMBER_WORDS,
    article,
    caption,
    colorless,
    corner,
    described,
    inventory,
    join,
    kindless,
    look,
    name,
    relation,
)

Record = dict[str, Any]

PARTS = {"conversation_58k": range(24), "detail_23k": range(8, 20), "complex_reasoning_77k": range(4, 28)}
"""COCO train pictures of each part; most ids occur in more than one part, as upstream."""

DETAIL = (
    "Describe the image in detail.",
    "What do you see happening in this image?",
    "Can you describe the main features of this image for me?",
)
BRIEF = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
)


def conversation(scene: Scene, rng: Random) -> list[tuple[str, str]]:
    """Three to five questions with answers in full sentences."""
    pairs = []
    total = NUMBER_WORDS[len(scene.things)]
    noun = "object" if len(scene.things) == 1 else "objects"
    verb = "is" if len(scene.things) == 1 else "are"
    pairs.append(
        (
            "How many objects are in the image?",
            f"There {verb} {total} {noun} in the image: {join([described(thing) for thing in scene.things])}.",
        )
    )
    pairs.append(
        (
            "What kind of place does the image show?",
            f"The image shows {PLACES[scene.place].phrase.split(' ', 1)[1]} with {PLACES[scene.place].below}.",
        )
    )
    for thing in scene.things:
        if called := colorless(scene, thing):
            pairs.append((f"What color is the {called}?", f"The {called} is {thing.color}."))
        if called := kindless(scene, thing):
            pairs.append((f"What is the {called}?", f"The {called} is a {thing.size} {thing.kind}."))
        pairs.append((f"Where is the {look(thing)}?", f"The {look(thing)} is {corner(scene, thing)} of the image."))
    return rng.sample(pairs, min(len(pairs), rng.randint(3, 5)))


def reasoning(scene: Scene, rng: Random) -> tuple[str, str]:
    """One question whose answer gives its reasons."""
    thing = rng.choice(scene.things)
    kind, place = KINDS[thing.kind], PLACES[scene.place]
    interest = (
        f"If {article(kind.user)} came here, which object would interest them most?",
        f"The {look(thing)} would interest the {kind.user} most. It is {corner(scene, thing)} of the image, and the "
        f"usual place of such a thing is the {kind.found}.",
    )
    season = (
        "In which season would people enjoy this place most, and why?",
        f"Most people would enjoy it in {place.season}. The image shows {place.above} and {place.below}, so it was "
        f"drawn as {place.phrase.split(' ', 1)[1]}.",
    )
    choices = [interest, season]
    first = min(scene.things, key=lambda other: other.x)
    if sum(other.x == first.x for other in scene.things) == 1 and len(scene.things) > 1:
        crossing = (
            "Which object would you meet first when you cross the image from left to right?",
            f"You would meet the {name(scene, first)} first. Its left edge is closest to the left border of the image, "
            "and every other object begins further to the right.",
        )
        choices.append(crossing)
    if len(scene.things) > 1 and (words := relation(scene.things[0], scene.things[1])):
        one, two = scene.things[:2]
        landmark = (
            f"How could you explain to a friend where the {look(one)} is, without pointing at it?",
            f"You could use the {look(two)} as a landmark: the {look(one)} is {words} it. You could also say that it "
            f"is {corner(scene, one)} of the image.",
        )
        choices.append(landmark)
    return rng.choice(choices)


def _row(image_id: int, pairs: list[tuple[str, str]], back: bool) -> Record:
    turns = []
    for number, (question, answer) in enumerate(pairs):
        if number == 0:
            question = f"{question}\n<image>" if back else f"<image>\n{question}"
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"{image_id:012d}", "image": f"{image_id:012d}.jpg", "conversations": turns}


def write_instruct(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """The three parts and their concatenation; train pictures only, as upstream."""
    rows: list[Record] = []
    for part, span in PARTS.items():
        records = []
        for index in span:
            rng = Random(f"{seed}/llava_instruct/{part}/{index}")
            scene = coco_scene(seed, "train", index)
            if part == "conversation_58k":
                pairs = conversation(scene, rng)
            elif part == "detail_23k":
                pairs = [
                    (
                        rng.choice(DETAIL),
                        " ".join([f"The image shows {caption(scene, sizes=False)}.", *inventory(scene)]),
                    )
                ]
            else:
                pairs = [reasoning(scene, rng)]
            row = _row(ids.coco("train", index), pairs, rng.random() < 0.5)
            records.append(_instruct_dirt(row, pairs))
        folder.json(f"llava_instruct/{part}.json", records, len(records))
        rows += records
    folder.json("llava_instruct/llava_instruct_150k.json", rows, len(rows))


def _instruct_dirt(row: Record, pairs: list[tuple[str, str]]) -> Record:
    if row["id"] == RECORD["instruct-image-back"]:
        return _row(int(row["id"]), pairs, back=True)
    if row["id"] == RECORD["instruct-odd-turns"]:
        row["conversations"].append({"from": "human", "value": "Is there anything else in the image?"})
    if row["id"] == RECORD["instruct-empty-value"]:
        row["conversations"][1]["value"] = ""
    return row


def write_lcs(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """LCS-558K: one short caption per picture, and the meta file with its BLIP caption."""
    rows: list[Record] = []
    meta: list[Record] = []
    grey = RECORD["lcs-grey"].removesuffix(".jpg")
    for index in range(sizes["lcs558k"]):
        key, rng = ids.web(index), Random(f"{seed}/lcs558k/{index}")
        text = web_caption(web_scene(seed, index), rng, grey=key == grey)
        first = {RECORD["lcs-image-first"]: True, RECORD["lcs-image-last"]: False}.get(key, rng.random() < 0.5)
        prompt = rng.choice(BRIEF)
        value = f"{text}  " if key == RECORD["lcs-trailing-spaces"] else text
        turns = [
            {"from": "human", "value": f"<image>\n{prompt}" if first else f"{prompt}\n<image>"},
            {"from": "gpt", "value": value},
        ]
        image = f"{key[:5]}/{key}.jpg"
        rows.append({"id": key, "image": image, "conversations": turns})
        meta.append({"id": key, "image": image, "blip_caption": text, "url": f"http://example.org/web/{key}.jpg"})
    folder.json("lcs558k/blip_laion_cc_sbu_558k.json", rows, len(rows))
    folder.json("lcs558k/blip_laion_cc_sbu_558k_meta.json", meta, len(meta))


def web_caption(scene: Scene, rng: Random, *, grey: bool) -> str:
    """A short lower-case caption as alt texts are, at times with a spaced hyphen; no colours for a grey picture."""
    if grey:
        return f"{join([f'a {thing.size} {thing.kind}' for thing in scene.things])} , black - and - white picture"
    text = caption(scene, sizes=rng.random() < 0.5)
    return f"{text} , flat - color drawing" if rng.random() < 0.2 else text
