"""GQA's question files: balanced train, val and testdev, and all train questions as a directory of two shards."""

from random import Random
from typing import Any

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder
from vlmix.builders.miniature.gqa_program import Draft, program_text
from vlmix.builders.miniature.gqa_questions import Asker
from vlmix.builders.miniature.stock import gqa_scene

Record = dict[str, Any]


def _mentions(text: str, objects: dict[str, str]) -> dict[str, str]:
    # Token index to object id, for the first mention of each kind.
    words = [word.strip(".,?").lower() for word in text.split()]
    return {str(words.index(kind)): number for kind, number in objects.items() if kind in words}


def question_record(asker: Asker, draft: Draft, image_id: str, entailed: list[str], key: str, balanced: bool) -> Record:
    """One question with documented fields in upstream's order."""
    objects = {thing.kind: asker.object_id(thing) for thing in draft.things}
    answered = {draft.answered.kind: asker.object_id(draft.answered)} if draft.answered else {}
    structural, semantic, detailed = draft.types
    return {
        "semantic": [
            {"operation": operation, "dependencies": at, "argument": argument}
            for operation, at, argument in draft.steps
        ],
        "entailed": entailed,
        "equivalent": [key],
        "question": draft.question,
        "imageId": image_id,
        "isBalanced": balanced,
        "groups": {"global": draft.group, "local": draft.local},
        "answer": draft.answer,
        "semanticStr": program_text(draft.steps),
        "annotations": {
            "answer": {"0": asker.object_id(draft.answered)} if draft.answered else {},
            "question": _mentions(draft.question, objects),
            "fullAnswer": _mentions(draft.full, {**answered, **objects}),
        },
        "types": {"detailed": detailed, "semantic": semantic, "structural": structural},
        "fullAnswer": draft.full,
    }


def image_questions(seed: int, part: str, index: int) -> dict[str, Record]:
    """All questions of one image by key: 1 to 20 balanced ones, then three that balancing dropped."""
    rng = Random(f"{seed}/gqa/{part}/{index}")
    asker = Asker(gqa_scene(seed, part, index), 1_000_000 + 10 * index, rng)
    drafts = asker.drafts()
    # Upstream: 13 per image on average, rarely below five.
    count = min(len(drafts) - 3, rng.choice((1, 4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20)))
    keys = [ids.gqa_question(part, index, number) for number in range(count + 3)]
    if part == "train" and index == 1:
        keys[0] = RECORD["gqa-leading-zero-twin"]
    records = {}
    for number, (key, draft) in enumerate(zip(keys, drafts, strict=False)):
        entailed = [
            other for other, sibling in zip(keys, drafts, strict=False) if sibling.topic == draft.topic and other != key
        ]
        records[key] = question_record(asker, draft, ids.gqa(part, index), entailed, key, balanced=number < count)
    return records


def _gqa_dirt(questions: dict[str, Record]) -> None:
    questions[RECORD["gqa-global-null"]]["groups"]["global"] = None
    spaced = questions[RECORD["gqa-argument-space"]]
    spaced["semantic"][-1]["argument"] += " "
    spaced["semanticStr"] = program_text(
        [(step["operation"], step["dependencies"], step["argument"]) for step in spaced["semantic"]]
    )


def write_gqa(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """The three balanced files and the two shards of all train questions."""
    for part in ("train", "val", "testdev"):
        everything: dict[str, Record] = {}
        for index in range(sizes[f"gqa_{part}"]):
            everything |= image_questions(seed, part, index)
        if part == "train":
            _gqa_dirt(everything)
            items = list(everything.items())
            for shard, chunk in enumerate((items[: len(items) // 2], items[len(items) // 2 :])):
                folder.json(f"gqa/train_all_questions/train_all_questions_{shard}.json", dict(chunk), len(chunk))
        balanced = {key: record for key, record in everything.items() if record["isBalanced"]}
        folder.json(f"gqa/{part}_balanced_questions.json", balanced, len(balanced))
