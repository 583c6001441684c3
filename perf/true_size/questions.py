"""Questions about photographs: VQAv2, OK-VQA, A-OKVQA, GQA."""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from random import Random

from true_size.catalogue import ANNOTATIONS, QUESTIONS, Catalogue
from true_size.texts import ASKS, LOOKS, PLACES, THINGS, paragraphs, texts, write

VQA_QUESTIONS = 443_757
OKVQA_IMAGES, OKVQA_QUESTIONS = 8_998, 9_009
AOKVQA_IMAGES, AOKVQA_QUESTIONS = 16_540, 17_056
GQA_IMAGES, GQA_QUESTIONS, GQA_FILES = 72_140, 943_000, 148_854
_KINDS = (("is the", "yes/no"), ("how many", "number"), ("what color is the", "other"), ("none of the above", "other"))


def vqav2(raw: Path, images: Catalogue) -> None:
    """Questions and annotations with upstream's keys, key order and spacing (about 800 bytes an annotation)."""
    rng = images.rng("vqav2")
    asked = texts(ASKS, 20_000, rng)
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

    write(raw / QUESTIONS, head + '"task_type": "Open-Ended", "questions": [', questions(), "]}")
    write(raw / ANNOTATIONS, head + '"annotations": [', annotations(), "]}")


def _answers(rng: Random) -> tuple[str, str]:
    """The fields of an annotation before and after its ids."""
    start, kind = rng.choices(_KINDS, weights=(38, 12, 30, 20))[0]
    pool = {"yes/no": ["yes", "no"], "number": ["1", "2", "3", "4"]}.get(kind) or (LOOKS + " " + THINGS).split()
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
    """VQA's form; five workers' answers, each twice, and no majority written down. A few images
    have a second question."""
    rng = images.rng("okvqa")
    asked, typed = texts(ASKS, 5_000, rng), (THINGS + " " + PLACES).split()
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
    write(file, head + '"task_type": "Open-Ended", "questions": [', questions, "]}")
    annotations = (annotation(*each) for each in named)
    write(raw / "okvqa/mscoco_train2014_annotations.json", head + '"annotations": [', annotations, "]}")


def aokvqa(raw: Path, images: Catalogue) -> None:
    """One list of questions with four choices, ten answers and three rationales; some images have a second question."""
    rng = images.rng("aokvqa")
    asked, reasons = texts(ASKS, 5_000, rng), paragraphs(rng, 2_000, 1, 3)
    chosen = rng.sample(images.coco, images.count(AOKVQA_IMAGES))
    named = chosen + chosen[: images.count(AOKVQA_QUESTIONS) - len(chosen)]
    words = (THINGS + " " + LOOKS).split()

    def record(image: int) -> str:
        choices, right = rng.sample(words, 4), rng.randrange(4)
        key = "".join(rng.choices(string.ascii_letters + string.digits, k=22))
        answers = [*[choices[right]] * 7, *rng.sample(words, 3)]
        return (
            f'{{"split": "train", "image_id": {image}, "question_id": "{key}", "question": "{rng.choice(asked)}", '
            f'"choices": {json.dumps(choices)}, "correct_choice_idx": {right}, '
            f'"direct_answers": {json.dumps(answers)}, '
            f'"difficult_direct_answer": false, "rationales": ["{""", """.join(rng.choices(reasons, k=3))}"]}}'
        )

    write(raw / "aokvqa/aokvqa_v1p0_train.json", "[", map(record, named), "]")


def gqa(raw: Path, images: Catalogue) -> None:
    """One object keyed by question ids with leading zeros; programs, entailed questions and annotations of tokens."""
    rng = images.rng("gqa")
    total, many = images.count(GQA_QUESTIONS), images.count(GQA_IMAGES)
    asked, answers = texts(ASKS, 20_000, rng), (THINGS + " " + LOOKS + " yes no left right").split()
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

    write(raw / "gqa/train_balanced_questions.json", "{", records(), "}")


def _program(question: str, answer: str, rng: Random) -> tuple[str, str]:
    """The fields of a question before and after its ids."""
    thing, place = rng.choice(THINGS.split()), rng.choice(PLACES.split())
    one, two = rng.randrange(10**6, 4 * 10**6), rng.randrange(10**6, 4 * 10**6)
    steps = [("select", [], f"{place} ({one})"), ("relate", [0], f"{thing},next to,s ({two})"), ("query", [1], "name")]
    if rng.random() < 0.5:
        steps.insert(1, ("filter color", [0], f"{rng.choice(LOOKS.split())} "))
    semantic = json.dumps([{"operation": o, "dependencies": d, "argument": a} for o, d, a in steps])
    program = "->".join(f"{o}: {a} {d}" for o, d, a in steps)
    before = f'"semantic": {semantic}'
    group = f'"{thing}"' if rng.random() < 0.7 else "null"
    after = (
        f'"isBalanced": true, "groups": {{"global": {group}, "local": "06-{place}_{thing}"}}, "answer": "{answer}", '
        f'"semanticStr": "{program}", "annotations": {{"answer": {{"0": "{two}"}}, "question": {{"4": "{one}"}}, '
        f'"fullAnswer": {{"1": "{two}", "6": "{one}"}}}}, "types": {{"detailed": "relS", "semantic": "rel", '
        f'"structural": "query"}}, "fullAnswer": "The {answer} {thing} is next to the {place}.", '
        f'"question": "{question}"'
    )
    return before, after
