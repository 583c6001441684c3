"""A small file in the manner of llava_v1_5_mix665k.json over the sample's own images, with that file's quirks.

Written from the sample's release files, by the recipe's rules spelled out once more: a pipeline that rebuilds these
rows can be compared against them, so nothing here is shared with the builders.
"""

from collections import defaultdict
from collections.abc import Iterable

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import MISSING_COCO, MIX, RECORD
from vlmix.builders.miniature.files import Folder, Record, turns
from vlmix.builders.miniature.refcoco import refs_of, scene_of

Pair = tuple[str, str]

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image.\nReference OCR token: "
DESCRIBE = "Please provide a short description for this region: {}."
LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: {}."


def row(key: str | int, image: str, pairs: Iterable[Pair], tail: str = "") -> Record:
    """An image row: `<image>` before the first question, `tail` (the format prompt) behind it."""
    conversations = turns(pairs)
    conversations[0]["value"] = f"<image>\n{conversations[0]['value']}{tail}"
    return {"id": key, "image": image, "conversations": conversations}


def coco_row(image_id: int, pairs: Iterable[Pair], tail: str = "") -> Record:
    return row(f"{image_id:012d}", f"coco/train2017/{image_id:012d}.jpg", pairs, tail)


def box_text(box: list[float], width: int, height: int) -> str:
    """A pixel box x, y, w, h as corners on the padded square, two decimals."""
    x, y, w, h = box
    long = max(width, height)
    dx, dy = (long - width) // 2, (long - height) // 2
    return str([round(value / long, 2) for value in (x + dx, y + dy, x + w + dx, y + h + dy)])


def region_pairs(regions: list[tuple[str, str]]) -> list[Pair]:
    """Phrases and box texts as turns, the two prompts in alternation."""
    return [
        (LOCATE.format(phrase), box) if number % 2 else (DESCRIBE.format(box), f"{phrase.capitalize()}.")
        for number, (phrase, box) in enumerate(regions)
    ]


def _train(*indices: int) -> list[int]:
    return [ids.coco("train", index) for index in indices]


def _vqav2(folder: Folder) -> list[Record]:
    annotations = folder.load("vqav2/v2_mscoco_train2014_annotations.json")["annotations"]
    answers = {a["question_id"]: a["multiple_choice_answer"].capitalize() for a in annotations}
    images: dict[int, list[Pair]] = defaultdict(list)
    for question in folder.load("vqav2/v2_OpenEnded_mscoco_train2014_questions.json")["questions"]:
        if answer := answers.get(question["question_id"]):
            images[question["image_id"]].append((question["question"], answer))
    return [coco_row(image_id, images[image_id], SHORT) for image_id in _train(24, 25, 26, 27, 50)]


def _okvqa(folder: Folder) -> list[Record]:
    annotations = folder.load("okvqa/mscoco_train2014_annotations.json")["annotations"]
    answers = {a["question_id"]: a["answers"][0]["answer"].capitalize() for a in annotations}
    questions = folder.load("okvqa/OpenEnded_mscoco_train2014_questions.json")["questions"]
    return [
        coco_row(q["image_id"], [(q["question"], answers[q["question_id"]])], SHORT)
        for q in questions
        if q["image_id"] in _train(9, 10, 24)
    ]


def _aokvqa(folder: Folder) -> list[Record]:
    question = folder.load("aokvqa/aokvqa_v1p0_train.json")[5]
    rows = []
    for turn in range(4):  # the four rotations of the choices
        choices = question["choices"][turn:] + question["choices"][:turn]
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
        answer = "ABCD"[(question["correct_choice_idx"] - turn) % 4]
        rows.append(coco_row(question["image_id"], [("\n".join([question["question"], *lines]), answer)], LETTER))
    return rows


def _gqa(folder: Folder) -> list[Record]:
    images: dict[str, list[Pair]] = defaultdict(list)
    for question in folder.load("gqa/train_balanced_questions.json").values():
        images[question["imageId"]].append((question["question"], question["answer"].capitalize()))
    keys = [ids.gqa("train", index) for index in (1, 4, 5, 6)]
    return [row(int(key), f"gqa/images/{key}.jpg", images[key], SHORT) for key in keys]


def _ocrvqa(folder: Folder) -> list[Record]:
    books = folder.load("ocrvqa/dataset.json")
    rows = []
    for key in (ids.book(index) for index in (1, 2, 5, 10)):
        pairs = zip(books[key]["questions"], books[key]["answers"], strict=True)
        rows.append(row(key, f"ocr_vqa/images/{key}.jpg", pairs, SHORT))
        if key == RECORD["mix-row-key"]:
            rows[-1]["source_url"] = "http://example.org/books"
    return rows


def _textcaps(folder: Folder) -> list[Record]:
    captions: dict[str, str] = {}
    for record in folder.load("textcaps/TextCaps_0.1_train.json")["data"]:
        captions.setdefault(record["image_id"], record["caption_str"])
    rosetta = folder.load("textcaps/TextVQA_Rosetta_OCR_v0.2_train.json")["data"]
    tokens = {record["image_id"]: ", ".join(record["ocr_tokens"]) for record in rosetta}
    rows = []
    for key in (ids.sign(index) for index in (0, 1, 2, 5)):
        pair = (CAPTION + tokens[key], f"{captions[key].removesuffix('.')}.")
        rows.append(row(key, f"textvqa/train_images/{key}.jpg", [pair]))
    return rows


def _refcoco(folder: Folder, seed: int) -> list[Record]:
    annotations = {record["id"]: record for record in folder.load("refcoco/refcoco/instances.json")["annotations"]}
    rows = []
    for index in (24, 30, 31, 32):
        scene = scene_of(seed, index)
        regions = [
            (sentence["sent"], box_text(annotations[ref["ann_id"]]["bbox"], scene.width, scene.height))
            for ref in refs_of("refcoco", "unc", seed, index)
            for sentence in ref["sentences"]
        ]
        rows.append(coco_row(ids.coco("train", index), region_pairs(regions[:8])))
    return rows


def _vg(folder: Folder) -> list[Record]:
    data = {image["image_id"]: image for image in folder.load("vg/image_data.json")}
    regions = {image["id"]: image["regions"] for image in folder.load("vg/region_descriptions.json")}
    rows = []
    for index in (1, 3, 4):
        key, home = ids.vg(index), ids.vg_folder(index)
        size = data[key]["width"], data[key]["height"]
        texts = [(r["phrase"], box_text([r["x"], r["y"], r["width"], r["height"]], *size)) for r in regions[key][:10]]
        rows.append(row(f"{home}/{key}", f"vg/{home}/{key}.jpg", region_pairs(texts)))
    return rows


def _instruct(folder: Folder) -> list[Record]:
    skipped = {RECORD["instruct-odd-turns"], RECORD["instruct-empty-value"], f"{ids.coco('train', MISSING_COCO):012d}"}
    rows = [r for r in folder.load("llava_instruct/llava_instruct_150k.json") if r["id"] not in skipped]
    # Rows of all three parts; train image 24 gives the id that other sources repeat.
    repeated = [r for r in rows if r["id"] == RECORD["mix-duplicate-id"]]
    return [r | {"image": f"coco/train2017/{r['image']}"} for r in (*rows[:3], *rows[24:26], *repeated, rows[40])]


def _sharegpt(folder: Folder) -> list[Record]:
    rows = folder.load("sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json")[:8]
    for record in rows:
        if record["id"] == RECORD["mix-turn-keys"]:
            value = record["conversations"][1]["value"]
            markdown = {"type": "text", "index": 0, "answer": value}
            record["conversations"][1] = {"from": "gpt", "text": value, "value": value, "markdown": markdown}
    return [{"id": record["id"], "model": "", "conversations": record["conversations"]} for record in rows]


def write_mix(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """About 40 rows, the sources one after the other and text last, as upstream. Needs the release files in place."""
    rows = [record for make in (_instruct, _vqav2, _okvqa, _aokvqa) for record in make(folder)]
    rows += _refcoco(folder, seed)
    rows += [record for make in (_gqa, _ocrvqa, _textcaps, _vg, _sharegpt) for record in make(folder)]
    folder.json(MIX, rows, len(rows))
