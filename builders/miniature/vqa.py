"""VQAv2, OK-VQA and A-OKVQA: three question sets over the COCO pictures."""

from collections.abc import Iterable
from random import Random

from vlmix.builders.miniature import ids, texts
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder, Record
from vlmix.builders.miniature.scenes import COLORS, KINDS, PLACES, Scene
from vlmix.builders.miniature.stock import coco_scene

QUESTION_TYPES = (
    "what color is the",
    "how many",
    "is there a",
    "is there",
    "is the",
    "is this",
    "what is on the",
    "what is the",
    "where is the",
    "what",
    "none of the above",
)
"""Those of VQAv2's 65 question prefixes that the sample's questions have."""

CONFIDENCE = ("yes", "yes", "yes", "yes", "maybe", "no")


def question_type(question: str) -> str:
    """The longest of VQAv2's question prefixes that fits."""
    words = f"{' '.join(question.lower().split())} "
    fits = [prefix for prefix in QUESTION_TYPES if words.startswith(f"{prefix} ")]
    return max(fits, key=len, default="none of the above")


def ten_answers(rng: Random, fact: texts.Fact) -> list[str]:
    """Ten people's answers: at least seven agree, the others doubt."""
    doubts = rng.randint(0, 3) if fact.doubts else 0
    answers = [fact.answer] * (10 - doubts) + [rng.choice(fact.doubts) for _ in range(doubts)]
    rng.shuffle(answers)
    return answers


def write_pair(
    folder: Folder, prefix: str, part: str, description: str, questions: list[Record], annotations: list[Record]
) -> None:
    """The files of a split's questions and annotations. Only `description` says which release of VQA they are."""
    head = {"info": {"description": description}, "data_subtype": f"{part}2014"}
    path = f"{prefix}OpenEnded_mscoco_{part}2014_questions.json"
    folder.json(path, {**head, "questions": questions}, len(questions))
    path = f"{prefix}mscoco_{part}2014_annotations.json"
    folder.json(path, {**head, "annotations": annotations}, len(annotations))


def vqav2_annotation(rng: Random, question: Record, fact: texts.Fact, answers: Iterable[str]) -> Record:
    return {
        "question_type": question_type(fact.question),
        "multiple_choice_answer": fact.answer,
        "answers": [
            {"answer": answer, "answer_confidence": rng.choice(CONFIDENCE), "answer_id": number}
            for number, answer in enumerate(answers, 1)
        ],
        "image_id": question["image_id"],
        "answer_type": fact.answer_type,
        "question_id": question["question_id"],
    }


def _vqav2_dirt(questions: list[Record], annotations: list[Record]) -> None:
    by_id = {str(question["question_id"]): question for question in questions}
    outer, double = by_id[RECORD["vqav2-outer-spaces"]], by_id[RECORD["vqav2-double-spaces"]]
    outer["question"] = f" {outer['question']}  "
    double["question"] = double["question"].replace(" ", "  ", 1)
    titles = ("drawing", "picture", "shapes", "art", "illustration", "toys", "cartoon", "painting", "graphic", "image")
    extra = {
        "vqav2-no-majority": (texts.Fact("What would you call this?", titles[0], "other"), titles),
        "vqav2-empty-answer": (texts.Fact("What is written here?", "", "other"), ("?",) * 10),
        "vqav2-not-annotated": (texts.Fact("Is this a nice place?", "", "yes/no"), ()),
    }
    for name, (fact, answers) in extra.items():
        question_id = int(RECORD[name])
        question = {"image_id": question_id // 1000, "question": fact.question, "question_id": question_id}
        last = max(at for at, other in enumerate(questions) if other["image_id"] == question["image_id"])
        questions.insert(last + 1, question)
        if answers:
            annotations.append(vqav2_annotation(Random(name), question, fact, answers))


def write_vqav2(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """Questions and annotations of both splits; annotations stand in another order, as they must be joined by id."""
    for part, count in (("train", sizes["coco_train"]), ("val", sizes["coco_val"])):
        questions: list[Record] = []
        annotations: list[Record] = []
        for index in range(count):
            rng = Random(f"{seed}/vqav2/{part}/{index}")
            image_id = ids.coco(part, index)
            # Upstream never has fewer than three questions on an image, and 5.4 on average.
            for number, fact in enumerate(texts.visual_facts(coco_scene(seed, part, index), rng, rng.randint(3, 8))):
                question = {"image_id": image_id, "question": fact.question, "question_id": ids.vqav2(image_id, number)}
                questions.append(question)
                annotations.append(vqav2_annotation(rng, question, fact, ten_answers(rng, fact)))
        if part == "train":
            _vqav2_dirt(questions, annotations)
        Random(f"{seed}/vqav2/{part}/order").shuffle(annotations)
        write_pair(folder, "vqav2/v2_", part, "This is v2.0 of the VQA dataset.", questions, annotations)


def knowledge(scene: Scene, rng: Random) -> tuple[str, list[str]]:
    """A question that needs the picture and common knowledge; the answer as three people might type it."""
    named = [(thing, called) for thing in scene.things if (called := texts.kindless(scene, thing))]
    if not named or rng.random() < 0.25:
        season = PLACES[scene.place].season
        return "In which season would people like this place most?", [season, season, f"in {season}"]
    thing, called = rng.choice(named)
    kind = KINDS[thing.kind]
    if rng.random() < 0.5:
        return f"Where are real things like the {called} usually found?", [kind.found, kind.found, f"{kind.found}s"]
    return f"Who would need the {called} most?", [kind.user, kind.user, f"{kind.user}s"]


def write_okvqa(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """Questions and annotations of both splits: one question per image, two on one of them."""
    seasons = ["spring", "summer", "summer", "spring", "fall"]
    irregular: dict[str, tuple[str, list[str], list[str]]] = {
        RECORD["okvqa-article"]: ("Which letter comes first in the alphabet?", ["a", "a", "A", "a", "a"], [""] * 5),
        RECORD["okvqa-tie"]: ("In which season would a picnic here be nicest?", seasons, seasons),
    }
    two = RECORD["okvqa-two-questions"]
    for part, count in (("train", sizes["okvqa_train"]), ("val", sizes["okvqa_val"])):
        questions: list[Record] = []
        annotations: list[Record] = []
        for index in range(count):
            image_id = ids.coco(part, index)
            for number in range(2 if str(ids.okvqa(image_id, 1)) == two else 1):
                rng = Random(f"{seed}/okvqa/{part}/{index}/{number}")
                key = {"image_id": image_id, "question_id": ids.okvqa(image_id, number)}
                text, (stem, *forms) = knowledge(coco_scene(seed, part, index), rng)
                typed = rng.sample([stem, stem, stem, *rng.choices([stem, *forms], k=2)], 5)
                text, typed, stems = irregular.get(str(key["question_id"]), (text, typed, [stem] * 5))
                # Five people's answers, each counted twice; no multiple_choice_answer.
                answers = [
                    {"answer_id": 2 * person + turn, "raw_answer": raw, "answer_confidence": "yes", "answer": stem}
                    for person, (raw, stem) in enumerate(zip(typed, stems, strict=True))
                    for turn in (1, 2)
                ]
                questions.append({**key, "question": text})
                kind = rng.choice(("one", "two", "five", "other"))
                annotations.append({**key, "answer_type": "other", "question_type": kind, "answers": answers})
        write_pair(folder, "okvqa/", part, "This is v1.0 of the OK-VQA dataset.", questions, annotations)


def choice_question(scene: Scene, rng: Random) -> tuple[str, str, list[str]]:
    """A question, its answer, and three wrong answers of the same sort."""
    thing = rng.choice(scene.things)
    sorts: list[tuple[str, str, list[str]]] = [
        ("Where could this scene be?", scene.place, ["field", "beach", "room", "station"]),
        ("How many objects are standing here?", texts.NUMBER_WORDS[len(scene.things)], list(texts.NUMBER_WORDS[1:])),
    ]
    if called := texts.colorless(scene, thing):
        sorts += [(f"Which color does the {called} have?", thing.color, list(COLORS))] * 2
    if called := texts.kindless(scene, thing):
        sorts += [(f"What is the {called}?", thing.kind, list(KINDS))] * 2
        sorts += [(f"Who would use the {called} most?", KINDS[thing.kind].user, [kind.user for kind in KINDS.values()])]
    question, answer, options = rng.choice(sorts)
    return question, answer, rng.sample([option for option in options if option != answer], 3)


def write_aokvqa(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """The three splits; test has neither the right choice nor direct answers."""
    spans = {
        "train": range(24, 24 + sizes["aokvqa_train"]),
        "val": range(8, 8 + sizes["aokvqa_val"]),
        "test": range(sizes["coco_test"]),
    }
    for part, span in spans.items():
        records: list[Record] = []
        for index in span:
            for number in range(2 if ids.aokvqa(part, index, 1) == RECORD["aokvqa-two-questions"] else 1):
                rng = Random(f"{seed}/aokvqa/{part}/{index}/{number}")
                question, answer, wrong = choice_question(coco_scene(seed, part, index), rng)
                record: Record = {"split": part, "image_id": ids.coco(part, index), "question": question}
                record["question_id"] = ids.aokvqa(part, index, number)
                if record["question_id"] == RECORD["aokvqa-duplicate-choices"]:
                    wrong[1] = wrong[0]
                right = rng.randrange(4)
                record["choices"] = [*wrong[:right], answer, *wrong[right:]]
                if part != "test":
                    record["correct_choice_idx"] = right
                    record["direct_answers"] = [answer] * 9 + [rng.choice((answer, answer, f"the {answer}"))]
                    record["difficult_direct_answer"] = False
                records.append(record)
        folder.json(f"aokvqa/aokvqa_v1p0_{part}.json", records, len(records))
