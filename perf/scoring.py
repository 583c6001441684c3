"""Scoring answers of VQAv2's size, 107,394 questions with ten human answers each, against the official steps.

The files are generated from a seed in the official schemas: 40 % yes/no, 15 % numbers and 45 % words of a long-tailed
vocabulary, part of them with punctuation, articles and contractions; people agree with each other about as often as in
the real files. Timed, each in a process of its own, imports excluded: reading both files, matching and scoring. `plain`
is `json.load` and the official steps, without LLaVA's processing of predictions; vlmix scores both with and without it.
All must find the same scores.
"""

import argparse
import json
import random
from typing import Any

from common import TIMES, Clock, Facts, alternate, machine, megabytes, parser, perform, run, spread, table, work_folder

QUESTIONS = 107_394
LINES = {"plain": "official steps", "vlmix": "vlmix"}
ANSWERS, ANNOTATIONS = "answers.jsonl", "v2_mscoco_val2014_annotations.json"
STARTS = ("is the", "how many", "what color is the", "what is the", "what", "are there any", "where is the", "why")
DRESS = ("{}", "{}", "{}", "{}", "{}", "{}", "a {}", "the {}", "{}.", "{}s", "on {}", "{}, yes", "{}/red", "dont {}")


def words(draw: random.Random, count: int) -> list[str]:
    return ["".join(draw.choices("abcdefghilmnoprstuw", k=draw.randint(3, 9))) for _ in range(count)]


def generate(args: argparse.Namespace) -> Facts:
    draw = random.Random(0)
    vocabulary = words(draw, 20_000)
    annotations: list[dict[str, Any]] = []
    answers = []
    for number in range(round(QUESTIONS * args.scale)):
        question = 1000 * number
        kind = draw.random()
        if kind < 0.4:
            answer_type, pool = "yes/no", ["yes", "no"]
        elif kind < 0.55:
            answer_type, pool = "number", ["1", "2", "3", "two", "none", "1,000"]
        else:
            answer_type, pool = "other", [vocabulary[min(int(draw.paretovariate(0.6)), 20_000) - 1] for _ in range(4)]
        truth = draw.choice(pool)
        said = []
        for _ in range(10):
            word = truth if draw.random() < 0.75 else draw.choice(pool)
            said.append(draw.choice(DRESS).format(word) if answer_type == "other" and draw.random() < 0.3 else word)
        annotations.append(
            {
                "question_type": draw.choice(STARTS),
                "multiple_choice_answer": truth,
                "answers": [
                    {"answer": answer, "answer_confidence": draw.choice(("yes", "maybe", "no")), "answer_id": place}
                    for place, answer in enumerate(said, 1)
                ],
                "image_id": number,
                "answer_type": answer_type,
                "question_id": question,
            }
        )
        guess = truth if draw.random() < 0.7 else draw.choice(vocabulary)
        prompt = "What is it?\nAnswer the question using a single word or phrase."
        answers.append({"question_id": question, "prompt": prompt, "text": guess.capitalize(), "model_id": "generated"})
    whole = {"info": {"description": "This is v2.0 of the VQA dataset."}, "data_subtype": "val2014"}
    (args.work / ANNOTATIONS).write_text(json.dumps({**whole, "annotations": annotations}))
    (args.work / ANSWERS).write_text("".join(json.dumps(row) + "\n" for row in answers))
    return {"seconds": 0.0, "cpu": 0.0}


def plain(args: argparse.Namespace) -> Facts:
    from official_vqa import OfficialEvaluator

    from vlmix.builders.benchmarks.normalise import CONTRACTIONS

    clock = Clock()
    with (args.work / ANNOTATIONS).open() as file:
        truth = {annotation["question_id"]: annotation for annotation in json.load(file)["annotations"]}
    with (args.work / ANSWERS).open() as file:
        results = {row["question_id"]: row["text"] for row in map(json.loads, file)}
    score, _, _ = OfficialEvaluator(CONTRACTIONS, truth, results).evaluate()
    return clock.facts(score=score)


def vlmix(args: argparse.Namespace) -> Facts:
    from vlmix.builders import known_benchmarks
    from vlmix.mixture.benchmark.answers import read_answers

    clock = Clock()
    report = known_benchmarks()["vqav2"].score(read_answers(args.work / ANSWERS), args.work)
    return clock.facts(score=report.metrics["raw text"], processed=report.score)


CONTENDERS = {"generate": generate, "plain": plain, "vlmix": vlmix}


def main() -> None:
    args = parser(__doc__, repeat=3).parse_args()
    if perform(args, CONTENDERS):
        return
    print(machine("vlmix", "msgspec"))
    with work_folder(args) as work:
        options = ("--scale", str(args.scale))
        run("generate", work, *options)
        sizes = ", ".join(f"{name} {megabytes((work / name).stat().st_size)}" for name in (ANSWERS, ANNOTATIONS))
        print(f"{round(QUESTIONS * args.scale):,} questions: {sizes}")
        measured = alternate(tuple(LINES), args.repeat, lambda name: run(name, work, *options))
    scores = {found.facts["score"] for found in measured.values()}
    if len(scores) != 1:
        raise SystemExit(f"the contenders disagree: {scores}")
    base = measured["plain"].seconds
    rows = [
        [
            LINES[name],
            *spread(found),
            f"{base / found.seconds:.1f}x",
            f"{found.facts['score']:.2f}",
            megabytes(found.anon),
        ]
        for name, found in measured.items()
    ]
    print(table(["scoring", *TIMES, "speed", "score", "memory"], rows))


if __name__ == "__main__":
    main()
