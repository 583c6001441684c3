"""LLaVA-Instruct's three parts (conversation, detail, complex reasoning) and LCS-558K's captions."""

from random import Random

from vlmix.builders.miniature import ids, texts
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder, Record, turns
from vlmix.builders.miniature.scenes import KINDS, PLACES, Scene
from vlmix.builders.miniature.stock import coco_scene, web_scene

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
    place, total = PLACES[scene.place], texts.NUMBER_WORDS[len(scene.things)]
    be, noun = ("is", "object") if len(scene.things) == 1 else ("are", "objects")
    listed = texts.join([texts.described(thing) for thing in scene.things])
    scenery = f"{place.phrase.split(' ', 1)[1]} with {place.below}"
    pairs = [
        ("How many objects are in the image?", f"There {be} {total} {noun} in the image: {listed}."),
        ("What kind of place does the image show?", f"The image shows {scenery}."),
    ]
    for thing in scene.things:
        if called := texts.colorless(scene, thing):
            pairs.append((f"What color is the {called}?", f"The {called} is {thing.color}."))
        if called := texts.kindless(scene, thing):
            pairs.append((f"What is the {called}?", f"The {called} is a {thing.size} {thing.kind}."))
        pairs.append(
            (
                f"Where is the {texts.look(thing)}?",
                f"The {texts.look(thing)} is {texts.corner(scene, thing)} of the image.",
            )
        )
    return rng.sample(pairs, min(len(pairs), rng.randint(3, 5)))


def reasoning(scene: Scene, rng: Random) -> tuple[str, str]:
    thing = rng.choice(scene.things)
    kind, place = KINDS[thing.kind], PLACES[scene.place]
    choices = [
        (
            f"If {texts.article(kind.user)} came here, which object would interest them most?",
            f"The {texts.look(thing)} would interest the {kind.user} most. It is {texts.corner(scene, thing)} of the "
            f"image, and the usual place of such a thing is the {kind.found}.",
        ),
        (
            "In which season would people enjoy this place most, and why?",
            f"Most people would enjoy it in {place.season}. The image shows {place.above} and {place.below}, so it "
            f"was drawn as {place.phrase.split(' ', 1)[1]}.",
        ),
    ]
    if len(scene.things) == 1:
        return rng.choice(choices)
    first = min(scene.things, key=lambda other: other.x)
    if texts.only(scene, lambda other: other.x == first.x):
        answer = (
            f"You would meet the {texts.name(scene, first)} first. Its left edge is closest to the left border of the "
            "image, and every other object begins further to the right."
        )
        choices.append(("Which object would you meet first when you cross the image from left to right?", answer))
    one, two = scene.things[:2]
    if words := texts.relation(one, two):
        question = f"How could you explain to a friend where the {texts.look(one)} is, without pointing at it?"
        answer = (
            f"You could use the {texts.look(two)} as a landmark: the {texts.look(one)} is {words} it. You could also "
            f"say that it is {texts.corner(scene, one)} of the image."
        )
        choices.append((question, answer))
    return rng.choice(choices)


def _row(key: str, image: str, pairs: list[tuple[str, str]], first: bool) -> Record:
    conversations = turns(pairs)
    question = conversations[0]["value"]
    conversations[0]["value"] = f"<image>\n{question}" if first else f"{question}\n<image>"
    return {"id": key, "image": image, "conversations": conversations}


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
                sentences = [f"The image shows {texts.caption(scene, sizes=False)}.", *texts.inventory(scene)]
                pairs = [(rng.choice(DETAIL), " ".join(sentences))]
            else:
                pairs = [reasoning(scene, rng)]
            key, first = f"{ids.coco('train', index):012d}", rng.random() >= 0.5
            row = _row(key, f"{key}.jpg", pairs, first and key != RECORD["instruct-image-back"])
            if key == RECORD["instruct-odd-turns"]:
                row["conversations"].append({"from": "human", "value": "Is there anything else in the image?"})
            if key == RECORD["instruct-empty-value"]:
                row["conversations"][1]["value"] = ""
            records.append(row)
        folder.json(f"llava_instruct/{part}.json", records, len(records))
        rows += records
    folder.json("llava_instruct/llava_instruct_150k.json", rows, len(rows))


def write_lcs(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    rows: list[Record] = []
    grey = RECORD["lcs-grey"].removesuffix(".jpg")
    for index in range(sizes["lcs558k"]):
        key, rng = ids.web(index), Random(f"{seed}/lcs558k/{index}")
        text = web_caption(web_scene(seed, index), rng, grey=key == grey)
        first = {RECORD["lcs-image-first"]: True, RECORD["lcs-image-last"]: False}.get(key, rng.random() < 0.5)
        prompt = rng.choice(BRIEF)
        value = f"{text}  " if key == RECORD["lcs-trailing-spaces"] else text
        rows.append(_row(key, f"{key[:5]}/{key}.jpg", [(prompt, value)], first))
    folder.json("lcs558k/blip_laion_cc_sbu_558k.json", rows, len(rows))


def web_caption(scene: Scene, rng: Random, *, grey: bool) -> str:
    """A short lower-case caption as alt texts are, at times with a spaced hyphen; no colours for a grey picture."""
    if grey:
        return f"{texts.join([f'a {thing.size} {thing.kind}' for thing in scene.things])} , black - and - white picture"
    text = texts.caption(scene, sizes=rng.random() < 0.5)
    return f"{text} , flat - color drawing" if rng.random() < 0.2 else text
