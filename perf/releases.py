"""Releases of true size: the raw files of LLaVA-1.5's ten sources, drawn from a seed, in their official schemas.

Sizes and cardinalities are the official ones (443,757 questions on 82,783 images, 5,408,689 regions, ...), texts are drawn
from pools. `recipes/llava-1.5-665k.yaml` makes 665,298 samples of them at scale 1, with the ten counts of the paper. Two of
these are properties of the generator and no evidence about the real releases: RefCOCO's 48,447 (expressions move
between images until the segments of at most ten are as many) and ShareGPT's 40,688 (the number of chats that fit).

With `--images small` a valid grey JPEG of 1 to 3 KB lies behind every name, with `--images photos` one of about 100 KB, each of the
size that the annotations state: 900 files, hard-linked. The known damages are there: covers that are missing, GIF, PNG or
cut, empty files of Visual Genome whose good copy is in the other folder.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import string
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import numpy as np

Size = tuple[int, int]

QUESTIONS = "vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "vqav2/v2_mscoco_train2014_annotations.json"
IMAGE_DATA = "vg/image_data.json"
REGIONS = "vg/region_descriptions.json"

TRAIN2014, TRAIN2017 = 82_783, 118_287
VQA_QUESTIONS = 443_757
OKVQA_IMAGES, OKVQA_QUESTIONS = 8_998, 9_009
AOKVQA_IMAGES, AOKVQA_QUESTIONS = 16_540, 17_056
INSTRUCT = {"conversation": 56_681, "detail": 23_240, "reasoning": 77_791}  # 157,712 rows
GQA_IMAGES, GQA_QUESTIONS, GQA_FILES = 72_140, 943_000, 148_854
VG_IMAGES, VG_REGIONS, VG_SECOND, VG_EMPTY, VG_UNLISTED = 108_077, 5_408_689, 43_903, 170, 2
BOOKS, TRAIN_BOOKS, VAL_BOOKS, BOOK_QUESTIONS = 207_572, 166_022, 20_731, 1_002_146
COVERS_MISSING, COVERS_GIF, COVERS_PNG, COVERS_CUT = 737, 861, 40, 2
SIGNS, VAL_SIGNS = 21_953, 3_166
CHUNKS, CHATS, FITTING_CHATS = 94_145, 52_143, 40_688
REF_SEGMENTS, REF_TURNS = 48_447, 10
TAKES = {"ocrvqa": 80_000, "vg": 86_417}
"""Samples that the recipe draws from a source, which `--scale` scales too."""

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

COCO_SIZES: tuple[Size, ...] = ((640, 480), (640, 427), (480, 640), (427, 640), (500, 375))
VG_SIZES: tuple[Size, ...] = ((800, 600), (500, 375), (1024, 768), (500, 333), (375, 500), (640, 480))
SIGN_SIZES: tuple[Size, ...] = ((1024, 768), (1024, 683), (768, 1024), (683, 1024))
COVER_SIZES: tuple[Size, ...] = ((331, 500), (386, 500), (500, 500))
PICTURES = 900

_THINGS = "man woman dog cat bus train table clock plate pizza horse umbrella boat zebra laptop bench kite skateboard"
_LOOKS = "red blue small white tall old wooden green shiny empty striped yellow large brown black open plastic wet"
_PLACES = "street kitchen field beach room sidewalk counter grass wall window water fence snow shelf road tree"
_ASKS = (
    "What color is the {look} {thing}?",
    "Is the {thing} {look}?",
    "How many {thing}s are on the {place}?",
    "What is the {thing} next to the {place} doing?",
    "Is there a {look} {thing} in the {place}?",
    "Where is the {thing}?",
    "What kind of {thing} is this?",
    "Does the {thing} look {look} to you?",
)
_SAYS = (
    "a {look} {thing} on the {place}",
    "the {thing} is {look}",
    "{look} {thing}",
    "a {thing} near the {look} {place} ",  # 7 % of the real phrases have outer white space
    "The {thing} is next to the {place}.",
    "{thing} standing by a {look} {place}",
    "A {look} {place}",
    "part of a {look} {thing}\\n",
)
_SENTENCES = (
    "The image shows a {look} {thing} in front of the {place}, and several people walk past it.",
    "There is also a {thing} on the {place}, which suggests that the picture was taken during the day.",
    "A {look} {thing} stands out among the other objects.",
    "You could try to put the {thing} on the {place} first, then look at the {look} one again.",
    "In the background, the {place} is partly hidden by a {thing}, so only its {look} side is visible.",
    "That depends on how {look} the {thing} is.",
)
_CAPTIONS = (
    "A {look} sign on the {place} behind a {thing} that says {thing} in {look} letters",
    "the {look} {place} has a sign with the word {thing} on it and a {look} {thing} next to it.",
)
_TITLES = (
    "The {look} {thing} of the {place}: A Novel",
    "A {place} and its {thing}s: Stories of a {look} Year in the Life of a {place}",
    "{thing} & {place}: The {look} Guide to Everything, 2nd ed.",
)
_NAMES = "Anna Bruno Clara David Elena Frank Grace Henry Irene Jonas Kate Liam Maria Noah Olga Paul Rosa Simon".split()
_GENRES = "Calendars Romance Travel History Law Teen Science Cookbooks Sports Religion Health Comics Humor".split()
_SIGN_WORDS = 'STOP Open 24 HOTEL "TEA" Harry, BUS $5 50% No EXIT Café 7UP lane SALE coca-cola LTD. A WAY #1'.split()
_KINDS = (("is the", "yes/no"), ("how many", "number"), ("what color is the", "other"), ("none of the above", "other"))
_CODE = "```python\ndef scale(value):\n    return 3 * value  # a {look} {thing}\n```"
_RESIDUE = "```pythonCopy code\nprint('{thing}')\n```\nIt prints the {thing}."
_FOREIGN = "Das {thing} steht neben der {place}, und für die Größe gibt es keine Erklärung. 请告诉我颜色。"


class Catalogue:
    """The images of all sources with their sizes, on which annotations and pictures agree; a function of seed and scale.

    Images are in the order of their ids' draw, train2014's before those of val2014 that train2017 has.
    """

    def __init__(self, scale: float, seed: int = 0) -> None:
        self.scale, self.seed = scale, seed
        rng = self.rng("catalogue")
        count = self.count(TRAIN2017)
        self.coco = rng.sample(range(1, max(581_922, 4 * count)), count)
        self.train2014 = self.coco[: self.count(TRAIN2014)]
        self.coco_sizes = rng.choices(COCO_SIZES, k=count)
        self.vg = list(range(2_300_000, 2_300_000 + self.count(VG_IMAGES)))
        self.vg_sizes = rng.choices(VG_SIZES, k=len(self.vg))
        second = set(rng.sample(self.vg, self.count(VG_SECOND)))
        self.vg_folders = [f"VG_100K{'_2' * (image in second)}" for image in self.vg]
        self.signs = [f"{number:016x}" for number in rng.sample(range(2**62), self.count(SIGNS + VAL_SIGNS))]
        self.sign_sizes = rng.choices(SIGN_SIZES, k=len(self.signs))
        self.books = [_isbn(number) for number in rng.sample(range(10**9), self.count(BOOKS))]
        endings = [(".gif", COVERS_GIF), (".png", COVERS_PNG), ("", COVERS_MISSING), (".cut", COVERS_CUT)]
        odd = [ending for ending, many in endings for _ in range(self.count(many))]
        self.odd_covers = dict(zip(rng.sample(self.books, len(odd)), odd))

    def count(self, official: int) -> int:
        """`official` at the catalogue's scale, at least 1."""
        return max(round(official * self.scale), 1)

    def rng(self, name: str) -> Random:
        return Random(f"{self.seed}/{name}")


def _isbn(number: int) -> str:
    """A key of OCR-VQA: leading zeros are lost where it is numeric, and kept where it is no number."""
    check = sum((place + 1) * int(digit) for place, digit in enumerate(f"{number:09d}")) % 11
    if number % 12 == 5:
        return f"B{number:09d}"
    return f"{number:09d}X" if check == 10 else str(int(f"{number:09d}{check}"))


def _texts(forms: tuple[str, ...], count: int, rng: Random) -> list[str]:
    words = _THINGS.split(), _LOOKS.split(), _PLACES.split()
    things, looks, places = (rng.choices(w, k=count) for w in words)
    said = zip(rng.choices(forms, k=count), things, looks, places)
    return [form.replace("{thing}", a).replace("{look}", b).replace("{place}", c) for form, a, b, c in said]


def _paragraphs(rng: Random, count: int, least: int, most: int) -> list[str]:
    """Texts of `least` to `most` sentences, escaped as in JSON, without the quotes."""
    pool = _texts(_SENTENCES, 5_000, rng)
    return [json.dumps(" ".join(rng.choices(pool, k=rng.randint(least, most))))[1:-1] for _ in range(count)]


def _spread(total: int, over: int, rng: Random) -> np.ndarray:
    """`total` in `over` parts of at least 1, drawn evenly."""
    drawn = np.random.default_rng(rng.getrandbits(32)).integers(over, size=total - over)
    return 1 + np.bincount(drawn, minlength=over)


def _write(path: Path, head: str, items: Iterable[str], tail: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", buffering=2**20) as file:
        rest = iter(items)
        file.write(head + next(rest))
        for item in rest:
            file.write(", ")
            file.write(item)
        file.write(tail)


def vqav2(raw: Path, images: Catalogue) -> None:
    """Questions and annotations with upstream's keys, key order and spacing (about 800 bytes an annotation)."""
    rng = images.rng("vqav2")
    asked = _texts(_ASKS, 20_000, rng)
    answered = [_answers(rng) for _ in range(20_000)]
    head = (
        '{"info": {"description": "This is v2.0 of the VQA dataset.", "url": "http://visualqa.org", "version": "2.0", '
        '"year": 2017, "contributor": "VQA Team", "date_created": "2017-04-26 17:07:13"}, "data_type": "mscoco", '
        '"data_subtype": "train2014", '
    )
    # The files list an image's questions together, images in no order of their ids.
    total, many = images.count(VQA_QUESTIONS), len(images.train2014)
    named = [
        (image, number)
        for place, image in enumerate(images.train2014)
        for number in range(total // many + (place < total % many))
    ]

    def questions() -> Iterator[str]:
        for image, number in named:
            text = rng.choice(asked)
            yield f'{{"image_id": {image}, "question": "{text}", "question_id": {image * 1000 + number}}}'

    def annotations() -> Iterator[str]:
        for image, number in named:
            before, after = rng.choice(answered)
            yield f'{{{before}, "image_id": {image}, {after}, "question_id": {image * 1000 + number}}}'

    _write(raw / QUESTIONS, head + '"task_type": "Open-Ended", "questions": [', questions(), "]}")
    _write(raw / ANNOTATIONS, head + '"annotations": [', annotations(), "]}")


def _answers(rng: Random) -> tuple[str, str]:
    """The fields of an annotation before and after its ids."""
    start, kind = rng.choices(_KINDS, weights=(38, 12, 30, 20))[0]
    pool = {"yes/no": ["yes", "no"], "number": ["1", "2", "3", "4"]}.get(kind) or (_LOOKS + " " + _THINGS).split()
    best, others = rng.choice(pool), rng.sample(pool, 2)
    given = [best if rng.random() < 0.7 else rng.choice(others) for _ in range(10)]
    listed = ", ".join(
        f'{{"answer": "{answer}", "answer_confidence": "{rng.choice(("yes", "maybe", "no"))}", "answer_id": {i}}}'
        for i, answer in enumerate(given, start=1)
    )
    common = max(given, key=given.count)
    before = f'"question_type": "{start}", "multiple_choice_answer": "{common}", "answers": [{listed}]'
    return before, f'"answer_type": "{kind}"'


def okvqa(raw: Path, images: Catalogue) -> None:
    """VQA's form; five workers' answers, each twice, and no majority written down. Some images have a second question."""
    rng = images.rng("okvqa")
    asked, typed = _texts(_ASKS, 5_000, rng), (_THINGS + " " + _PLACES).split()
    chosen = rng.sample(images.train2014, images.count(OKVQA_IMAGES))
    named = [(image, 10 * image + 5) for image in chosen]
    named += [(image, 10 * image + 6) for image in chosen[: images.count(OKVQA_QUESTIONS) - len(chosen)]]
    head = '{"info": {"description": "This is v1.0 of the OK-VQA dataset.", "version": "1.0", "year": 2019}, '
    head += '"data_type": "mscoco", "data_subtype": "train2014", '

    def annotation(image: int, number: int) -> str:
        given = rng.choices(rng.sample(typed, 3), weights=(5, 2, 1), k=5)
        listed = ", ".join(
            f'{{"answer_id": {i + 1}, "raw_answer": "{given[i // 2]}s", "answer_confidence": "yes", '
            f'"answer": "{given[i // 2]}"}}'
            for i in range(10)
        )
        of = f'"image_id": {image}, "answer_type": "other", "question_type": "four", "question_id": {number}'
        return f'{{{of}, "answers": [{listed}], "confidence": 3}}'

    questions = (f'{{"image_id": {i}, "question": "{rng.choice(asked)}", "question_id": {n}}}' for i, n in named)
    file = raw / "okvqa/OpenEnded_mscoco_train2014_questions.json"
    _write(file, head + '"task_type": "Open-Ended", "questions": [', questions, "]}")
    annotations = (annotation(*each) for each in named)
    _write(raw / "okvqa/mscoco_train2014_annotations.json", head + '"annotations": [', annotations, "]}")


def aokvqa(raw: Path, images: Catalogue) -> None:
    """One list of questions with four choices, ten answers and three rationales; some images have a second question."""
    rng = images.rng("aokvqa")
    asked, reasons = _texts(_ASKS, 5_000, rng), _paragraphs(rng, 2_000, 1, 3)
    chosen = rng.sample(images.coco, images.count(AOKVQA_IMAGES))
    named = chosen + chosen[: images.count(AOKVQA_QUESTIONS) - len(chosen)]
    words = (_THINGS + " " + _LOOKS).split()

    def record(image: int) -> str:
        choices, right = rng.sample(words, 4), rng.randrange(4)
        key = "".join(rng.choices(string.ascii_letters + string.digits, k=22))
        answers = [*[choices[right]] * 7, *rng.sample(words, 3)]
        return (
            f'{{"split": "train", "image_id": {image}, "question_id": "{key}", "question": "{rng.choice(asked)}", '
            f'"choices": {json.dumps(choices)}, "correct_choice_idx": {right}, "direct_answers": {json.dumps(answers)}, '
            f'"difficult_direct_answer": false, "rationales": ["{""", """.join(rng.choices(reasons, k=3))}"]}}'
        )

    _write(raw / "aokvqa/aokvqa_v1p0_train.json", "[", map(record, named), "]")


def gqa(raw: Path, images: Catalogue) -> None:
    """One object keyed by question ids with leading zeros; programs, entailed questions and annotations of tokens."""
    rng = images.rng("gqa")
    total, many = images.count(GQA_QUESTIONS), images.count(GQA_IMAGES)
    asked, answers = _texts(_ASKS, 20_000, rng), (_THINGS + " " + _LOOKS + " yes no left right").split()
    pool = [_program(question, rng.choice(answers), rng) for question in asked]
    width = len(str(10 * total))
    keys = [f"{number:0{width}d}" for number in rng.sample(range(10**width), total)]
    seen = [str(image) for image in rng.sample(images.vg, many)]
    seen += rng.choices(seen, k=total - many)
    rng.shuffle(seen)

    def records() -> Iterator[str]:
        for place, (key, image) in enumerate(zip(keys, seen)):
            entailed = '", "'.join(keys[max(place - rng.randrange(11), 0) : place])
            before, after = rng.choice(pool)
            listed = f'"entailed": ["{entailed}"]' if entailed else '"entailed": []'
            yield f'"{key}": {{{before}, {listed}, "equivalent": ["{key}"], "imageId": "{image}", {after}}}'

    _write(raw / "gqa/train_balanced_questions.json", "{", records(), "}")


def _program(question: str, answer: str, rng: Random) -> tuple[str, str]:
    """The fields of a question before and after its ids."""
    thing, place = rng.choice(_THINGS.split()), rng.choice(_PLACES.split())
    one, two = rng.randrange(10**6, 4 * 10**6), rng.randrange(10**6, 4 * 10**6)
    steps = [("select", [], f"{place} ({one})"), ("relate", [0], f"{thing},next to,s ({two})"), ("query", [1], "name")]
    if rng.random() < 0.5:
        steps.insert(1, ("filter color", [0], f"{rng.choice(_LOOKS.split())} "))
    semantic = json.dumps([{"operation": o, "dependencies": d, "argument": a} for o, d, a in steps])
    program = "->".join(f"{o}: {a} {d}" for o, d, a in steps)
    before = f'"semantic": {semantic}'
    group = f'"{thing}"' if rng.random() < 0.7 else "null"
    after = (
        f'"isBalanced": true, "groups": {{"global": {group}, "local": "06-{place}_{thing}"}}, "answer": "{answer}", '
        f'"semanticStr": "{program}", "annotations": {{"answer": {{"0": "{two}"}}, "question": {{"4": "{one}"}}, '
        f'"fullAnswer": {{"1": "{two}", "6": "{one}"}}}}, "types": {{"detailed": "relS", "semantic": "rel", '
        f'"structural": "query"}}, "fullAnswer": "The {answer} {thing} is next to the {place}.", "question": "{question}"'
    )
    return before, after


def vg(raw: Path, images: Catalogue) -> None:
    """Images and regions of version 1.2; one region in a thousand starts above its image, as upstream."""
    rng = images.rng("vg")
    phrases = _texts(_SAYS, 50_000, rng)
    counts = np.random.default_rng(rng.getrandbits(32)).integers(5, 96, len(images.vg))
    # As many as upstream: what the draw has too many or too few is spread over the first images.
    off = max(images.count(VG_REGIONS), len(images.vg)) - int(counts.sum())
    counts += off // len(counts)
    counts[: off % len(counts)] += 1

    def listed() -> Iterator[str]:
        for image, (width, height), folder in zip(images.vg, images.vg_sizes, images.vg_folders):
            size = f'"width": {width}, "url": "https://cs.stanford.edu/people/rak248/{folder}/{image}.jpg"'
            yield f'{{{size}, "height": {height}, "image_id": {image}, "coco_id": null, "flickr_id": null}}'

    def regions() -> Iterator[str]:
        number = 5_000_000
        for image, size, count in zip(images.vg, images.vg_sizes, counts.tolist()):
            held = ", ".join(_region(number + i, image, *size, phrases, rng.random) for i in range(count))
            number += count
            yield f'{{"regions": [{held}], "id": {image}}}'

    _write(raw / IMAGE_DATA, "[", listed(), "]")
    _write(raw / REGIONS, "[", regions(), "]")


def _region(number: int, image: int, width: int, height: int, phrases: list[str], draw: Callable[[], float]) -> str:
    x, y = int(draw() * width * 0.8), int(draw() * height * 0.8)
    w, h = 1 + int(draw() * (width - x)), 1 + int(draw() * (height - y))
    if draw() < 0.001:
        y = -y - 1
    return (
        f'{{"region_id": {number}, "width": {w}, "height": {h}, "image_id": {image}, '
        f'"phrase": "{phrases[int(draw() * len(phrases))]}", "y": {y}, "x": {x}}}'
    )


def ocrvqa(raw: Path, images: Catalogue) -> None:
    """One object keyed by book, 4.8 questions each; 7 % of the authors are empty."""
    rng = images.rng("ocrvqa")
    titles = [json.dumps(title) for title in _texts(_TITLES, 20_000, rng)]
    names = [f"{rng.choice(_NAMES)} {rng.choice(_NAMES)}son" for _ in range(5_000)]
    three = len(images.books) * 5 - images.count(BOOK_QUESTIONS)  # books with a question less
    fewer = set(rng.sample(range(len(images.books)), min(three, len(images.books))))
    train, val = images.count(TRAIN_BOOKS), images.count(VAL_BOOKS)

    def records() -> Iterator[str]:
        for place, key in enumerate(images.books):
            title, author, genre, other = rng.choice(titles), rng.choice(names), *rng.sample(_GENRES, 2)
            if rng.random() < 0.07:
                author = ""
            asked = '"Who wrote this book?", "What is the title of this book?", "What is the genre of this book?"'
            answered = f'"{author}", {title}, "{genre}", "Yes"'
            asked += f', "Is this book related to {genre}?"'
            if place not in fewer:
                asked, answered = f'{asked}, "Is this a {other} book?"', f'{answered}, "No"'
            url = f"http://ecx.images-amazon.com/images/I/61Y5cOdHJbL{_url_ending(images.odd_covers.get(key))}"
            split = 1 if place < train else 2 if place < train + val else 3
            yield (
                f'"{key}": {{"imageURL": "{url}", "questions": [{asked}], "answers": [{answered}], "title": {title}, '
                f'"authorName": "{author}", "genre": "{genre}", "split": {split}}}'
            )

    _write(raw / "ocrvqa/dataset.json", "{", records(), "}")


def _url_ending(odd: str | None) -> str:
    return odd if odd in (".gif", ".png") else ".jpg"


def textcaps(raw: Path, images: Catalogue) -> None:
    """One entry per caption, each with all five of its image; Rosetta's tokens with their boxes."""
    rng = images.rng("textcaps")
    said = _texts(_CAPTIONS, 9_000, rng)
    signs = list(zip(images.signs, images.sign_sizes))[: images.count(SIGNS)]

    def captions() -> Iterator[str]:
        number = 100_000_000
        for image, (width, height) in signs:
            five = rng.choices(said, k=5)
            tokens = [json.dumps(["<s>", *text.lower().split(), "</s>"]) for text in five]
            url = f"https://farm5.staticflickr.com/4052/{image}_o.jpg"
            head = (
                f'{{"image_id": "{image}", "image_classes": ["Clock", "Wall clock"], "flickr_original_url": "{url}", '
                f'"flickr_300k_url": "{url}", "image_width": {width}, "image_height": {height}, "set_name": "train", '
                f'"image_name": "{image}", "image_path": "train/{image}.jpg"'
            )
            tail = f'"reference_strs": {json.dumps(five)}, "reference_tokens": [{", ".join(tokens)}]}}'
            for text, split in zip(five, tokens):
                number += 1
                yield f'{head}, "caption_id": {number}, "caption_str": "{text}", "caption_tokens": {split}, {tail}'

    words = [json.dumps(word) for word in _SIGN_WORDS]

    def read() -> Iterator[str]:
        for image, _ in signs:
            held = rng.choices(words, k=0 if rng.random() < 0.023 else rng.randint(1, 25))
            info = ", ".join(
                f'{{"word": {word}, "bounding_box": {{"width": {rng.random():.16f}, "height": 0.0305272, "rotation": 0, '
                f'"roll": 0, "pitch": 0, "yaw": 0, "top_left_x": {rng.random():.16f}, "top_left_y": 0.3010416}}}}'
                for word in held
            )
            yield f'{{"image_id": "{image}", "ocr_tokens": [{", ".join(held)}], "ocr_info": [{info}]}}'

    head = '{"dataset_type": "train", "dataset_name": "textcaps", "dataset_version": 0.1, "data": ['
    _write(raw / "textcaps/TextCaps_0.1_train.json", head, captions(), "]}")
    _write(raw / "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json", '{"data": [', read(), "]}")


def llava_instruct(raw: Path, images: Catalogue) -> None:
    """The three parts in one file; the image token before or after the first question."""
    rng = images.rng("llava_instruct")
    asked = _texts(_ASKS, 20_000, rng)
    answers = {"conversation": (2, 8), "detail": (7, 13), "reasoning": (9, 17)}
    said = {part: _paragraphs(rng, 20_000, *of) for part, of in answers.items()}

    def rows() -> Iterator[str]:
        for part, count in INSTRUCT.items():
            for _ in range(images.count(count)):
                image = rng.choice(images.train2014)
                pairs = rng.randint(3, 5) if part == "conversation" else 1
                turns = []
                for number in range(pairs):
                    question = rng.choice(asked)
                    if not number:
                        question = f"<image>\\n{question}" if rng.random() < 0.46 else f"{question}\\n<image>"
                    turns.append(f'{{"from": "human", "value": "{question}"}}')
                    turns.append(f'{{"from": "gpt", "value": "{rng.choice(said[part])}"}}')
                row = f'"id": "{image:012d}", "image": "{image:012d}.jpg"'
                yield f'{{{row}, "conversations": [{", ".join(turns)}]}}'

    _write(raw / "llava_instruct/llava_instruct_150k.json", "[", rows(), "]")


def sharegpt(raw: Path, images: Catalogue) -> None:
    """Chunks of chats; a third of the later chunks begin with an answer. The first chunks that do not fit are too long,
    have two answers in a row, one turn, an empty text or a role that nobody knows."""
    rng = images.rng("sharegpt")
    asked = [json.dumps(text)[1:-1] for text in _texts((*_ASKS, *_SENTENCES, _FOREIGN), 10_000, rng)]
    said = _paragraphs(rng, 10_000, 2, 39)
    said += [json.dumps(text)[1:-1] for text in _texts((_CODE, _RESIDUE, _FOREIGN, *_SENTENCES), 3_000, rng)]
    endless = said[0] * (8_000 // len(said[0]) + 1)
    chats, fitting = images.count(CHATS), images.count(FITTING_CHATS)
    fits = [True] * fitting + [False] * (chats - fitting)
    rng.shuffle(fits)
    later = np.bincount(
        np.random.default_rng(rng.getrandbits(32)).integers(chats, size=images.count(CHUNKS) - chats), minlength=chats
    ).tolist()

    def turns(pairs: int) -> list[tuple[str, str]]:
        both = zip(rng.choices(asked, k=pairs), rng.choices(said, k=pairs))
        return [turn for question, answer in both for turn in (("human", question), ("gpt", answer))]

    def unfit() -> list[tuple[str, str]]:
        chat = turns(rng.randint(1, 8))
        match rng.randrange(8):
            case 0:
                return chat[1:2]
            case 1:
                return [*chat[:2], chat[1], *chat[2:]]
            case 2:
                return [chat[0], ("gpt", "\\u200b"), *chat[2:]]
            case 3:
                return [chat[0], ("tool", "ready"), *chat[1:]]
            case _:
                return [chat[0], ("gpt", endless), *chat[2:]]

    def chunk(key: str, held: list[tuple[str, str]]) -> str:
        listed = ", ".join(f'{{"from": "{role}", "value": "{text}"}}' for role, text in held)
        return f'{{"id": "{key}", "conversations": [{listed}]}}'

    def chunks() -> Iterator[str]:
        for number, (fit, more) in enumerate(zip(fits, later)):
            name = f"{_base62(number)}_"
            few = rng.random() < 0.3
            yield chunk(f"{name}0", turns(1 if few else rng.randint(2, 8)) if fit else unfit())
            for part in range(1, more + 1):
                yield chunk(f"{name}{part}", turns(rng.randint(2, 9))[rng.random() < 0.75 :])

    _write(raw / "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json", "[", chunks(), "]")


def _base62(number: int) -> str:
    letters = string.digits + string.ascii_letters
    number = number * 2_654_435_761 % 62**7  # odd and no multiple of 31, so no two numbers meet
    return "".join(letters[number // 62**place % 62] for place in range(7))


def refcoco(raw: Path, images: Catalogue) -> None:
    """The three sets: COCO's instances with polygons, and refs as pickles of protocol 2."""
    rng = images.rng("refcoco")
    said = [
        _texts((*_SAYS[:3], "{thing} by {place}", "{look} one on the left"), 20_000, rng),
        _texts(("the {look} {thing} that stands on the {place} next to a {thing}",), 20_000, rng),  # RefCOCOg's
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
                texts = rng.choices(said[name == "refcocog"], k=count)
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
                            for i, text in enumerate(texts)
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
        drawn[split] = owners, _spread(images.count(expressions), of, rng)
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
        # A sentence more opens a segment where all are full, one less closes it where the last has just one.
        takes = over == 0 if lacking > 0 else over > 1
        gives = (over > 1 if lacking > 0 else over == 1) & (spare[:movable] > 1)
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
                f'{{"license": 1, "file_name": "{name}", "coco_url": "http://mscoco.org/images/{image}", "height": {height}, '
                f'"width": {width}, "date_captured": "2013-11-18 02:53:27", "flickr_url": "http://farm5.staticflickr.com/'
                f'4153/{image}_z.jpg", "id": {image}}}'
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
                f'{{"segmentation": [[{polygon}]], "area": {w * h:.4f}, "iscrowd": 0, "image_id": '
                f'{images.train2014[place]}, "bbox": [{x}, {y}, {w}, {h}], "category_id": {1 + place % 90}, "id": {number}}}'
            )

    path.parent.mkdir(parents=True, exist_ok=True)
    head = '{"info": {"description": "This is stable 1.0 version of the 2014 MS COCO dataset."}, "images": ['
    _write(path, head, pictures(), "], ")
    rest = path.with_suffix(".annotations")
    _write(rest, '"licenses": [], "categories": [], "annotations": [', annotations(), "]}")
    with path.open("ab") as whole, rest.open("rb") as more:
        shutil.copyfileobj(more, whole, 2**20)
    rest.unlink()


RELEASES: dict[str, Callable[[Path, Catalogue], None]] = {
    make.__name__: make for make in (vg, gqa, sharegpt, vqav2, refcoco, llava_instruct, textcaps, ocrvqa, aokvqa, okvqa)
}


def pictures(raw: Path, images: Catalogue, photos: bool) -> None:
    """A valid file behind every name, by hard link, and the known damages."""
    rng = images.rng("pictures")
    drawn = raw / ".drawn"
    drawn.mkdir()
    sizes = sorted({*COCO_SIZES, *VG_SIZES, *SIGN_SIZES, *COVER_SIZES})
    files: dict[Size, list[str]] = {size: [] for size in sizes}
    noise = np.random.default_rng(images.seed)
    for number in range(PICTURES):
        size = sizes[number % len(sizes)]
        files[size].append(str(drawn / f"{number}.jpg"))
        Path(files[size][-1]).write_bytes(_photo(size, noise) if photos else _drawing(size, rng))
    covers = [path for size in COVER_SIZES for path in files[size]]
    odd = {".gif": [], ".png": [], ".cut": [], "": []}
    for path in covers[:50]:
        for ending, held in odd.items():
            held.append(f"{path}{ending}")
            _damage(path, ending)

    def link(folder: str, named: Iterable[tuple[str, str]]) -> None:
        (raw / folder).mkdir(parents=True, exist_ok=True)
        for name, source in named:
            os.link(source, f"{raw}/{folder}/{name}")

    def of(names: Iterable[object], many: Iterable[Size]) -> Iterator[tuple[str, str]]:
        return ((f"{name}.jpg", rng.choice(files[size])) for name, size in zip(names, many))

    link("coco/train2017", of((f"{image:012d}" for image in images.coco), images.coco_sizes))
    link("textvqa/train_images", of(images.signs, images.sign_sizes))
    link("gqa/images", of(images.vg, images.vg_sizes))
    others = images.count(GQA_FILES) - len(images.vg)
    link("gqa/images", of((f"n{100_000 + i}" for i in range(others)), rng.choices(VG_SIZES, k=others)))
    link(
        "ocr_vqa/images",
        (
            (f"{key}{_url_ending(ending)}", rng.choice(covers if ending is None else odd[ending]))
            for key in images.books
            if (ending := images.odd_covers.get(key)) != ""
        ),
    )
    placed = list(zip(images.vg, images.vg_sizes, images.vg_folders))
    empty = {image for image, _, folder in placed if folder == "VG_100K_2"}
    empty = set(rng.sample(sorted(empty), images.count(VG_EMPTY)))
    for folder in ("VG_100K", "VG_100K_2"):
        held = [each for each in placed if (each[2] == folder) != (each[0] in empty)]
        link(f"vg/{folder}", of([image for image, _, _ in held], [size for _, size, _ in held]))
    unlisted = range(1, 1 + VG_UNLISTED)
    link("vg/VG_100K", of(unlisted, [VG_SIZES[0]] * len(unlisted)))
    for image in empty:
        (raw / f"vg/VG_100K_2/{image}.jpg").touch()
    shutil.rmtree(drawn)


def _drawing(size: Size, rng: Random) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    picture = Image.new("L", size, rng.randrange(256))
    x, y = rng.randrange(size[0] // 2), rng.randrange(size[1] // 2)
    picture.paste(rng.randrange(256), (x, y, x + size[0] // 3, y + size[1] // 3))
    picture.save(out, "JPEG", quality=30, optimize=True)
    return out.getvalue()


def _photo(size: Size, rng: np.random.Generator) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    width, height = size
    coarse = Image.fromarray(rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)).resize(size, 3)
    noisy = np.asarray(coarse).astype(int) + rng.integers(-20, 21, (height, width, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def _damage(path: str, ending: str) -> None:
    from PIL import Image

    if ending == ".cut":
        data = Path(path).read_bytes()
        Path(f"{path}.cut").write_bytes(data[: len(data) * 3 // 5])
    elif ending:
        Image.open(path).save(f"{path}{ending}")


def _timed(name: str, raw: Path, images: Catalogue) -> str:
    start = time.perf_counter()
    RELEASES[name](raw, images)
    return f"{name} {time.perf_counter() - start:.0f} s"


def generate(
    raw: Path, scale: float, pictured: str = "none", seed: int = 0, names: Iterable[str] = tuple(RELEASES)
) -> Catalogue:
    """Write the releases `names` into `raw`, which must not hold any, two at a time, and pictures: `none`, `small` or
    `photos`."""
    images = Catalogue(scale, seed)
    raw.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        for done in [pool.submit(_timed, name, raw, images) for name in names]:
            print(done.result(), flush=True)
    if pictured != "none":
        pictures(raw, images, pictured == "photos")
    return images


def takes(scale: float) -> list[str]:
    """The `KEY=VALUE` arguments with which the 665K recipe fits releases of `scale`."""
    return [] if scale == 1 else [f"sources.{name}.take={round(take * scale)}" for name, take in TAKES.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the releases, new or empty")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the true size (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", choices=("none", "small", "photos"), default="none")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty")
    generate(args.out, args.scale, args.images, args.seed)
    print(" ".join(["vlmix build llava-1.5-665k", *takes(args.scale), f"--raw {args.out} --out MIXTURE"]))


if __name__ == "__main__":
    main()
