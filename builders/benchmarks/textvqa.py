"""TextVQA by m4c's evaluator, with Rosetta's OCR tokens in the question as LLaVA-1.5 asks it."""

import re
from pathlib import Path

from msgspec import Struct

from vlmix.builders import layout
from vlmix.builders.benchmarks.normalise import Memo, evalai, soft_accuracy
from vlmix.builders.schemas.textvqa import Rosetta
from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Question, Scored, match
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import OCR_LINE, SHORT_ANSWER

_FILE = "TextVQA_0.5.1_{split}.json"
_OCR_FILE = "TextVQA_Rosetta_OCR_v0.2_{split}.json"
_HUMANS = 10
_INSTRUCTBLIP = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


class _Row(Struct):
    question_id: int
    image_id: str
    question: str
    answers: list[str] | None = None


class _File(Struct):
    data: list[_Row]
    dataset_type: str = ""


def _opened(files: OfficialFiles, split: str) -> tuple[Path, _File, str]:
    path = files.main(_FILE, split or "val")
    file = files.json(path, _File)
    if not file.data:
        raise files.wrong(path, "it has no questions")
    return path, file, file.dataset_type or split or "val"


def _questions(files: OfficialFiles, split: str) -> list[Question]:
    path, file, split = _opened(files, split)
    ocr_path = files.require(_OCR_FILE.format(split=split))
    tokens = {entry.image_id: entry.ocr_tokens for entry in files.json(ocr_path, Rosetta).data}
    if tokens.keys().isdisjoint(row.image_id for row in file.data):
        raise files.wrong(ocr_path, f"it has none of the images of {path.name}")
    folder = "test_images" if split == "test" else "train_images"
    return [
        Question(
            str(row.question_id),
            f"textvqa/{folder}/{row.image_id}.jpg",
            # An image without tokens keeps the line, which then ends in a space.
            f"{row.question.capitalize()}\n{OCR_LINE}{', '.join(tokens.get(row.image_id, ()))}\n{SHORT_ANSWER}",
        )
        for row in file.data
    ]


def _labels(files: OfficialFiles, split: str) -> Labels:
    path, file, _ = _opened(files, split)
    labels = {str(row.question_id): tuple(row.answers) for row in file.data if row.answers}
    if not labels:
        raise files.wrong(path, "its questions have no answers, as in the test split")
    return labels


def asked(prompt: str) -> str | None:
    """The question in a prompt, lower-cased: of two lines the first, of three with OCR tokens the first that is not
    the tokens', or between "Question:" and "Short answer:". None where LLaVA's script would stop."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = _INSTRUCTBLIP.search(prompt)
        return found[1].lower() if found else None
    if OCR_LINE in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith(OCR_LINE.rstrip()) else 0].lower()
    return lines[0].lower() if len(lines) == 2 else None


def _score_answers(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    path, file, split = _opened(files, split)
    rows = {str(row.question_id): row for row in file.data if answers.asks(str(row.question_id))}
    # LLaVA's question_id is the image's; of questions that are asked twice of an image, the last is meant.
    by_text = {(row.image_id, row.question.lower()): id for id, row in rows.items()}

    def identify(answer: Answer) -> str | None:
        if answer.question_id in rows:
            return answer.question_id
        question = asked(answer.prompt)
        return None if question is None else by_text.get((answer.question_id, question))

    matched = match(answers, rows, path, identify)
    processed = Memo(evalai)
    tallies, count = Tallies(), 0
    scores: dict[str, float] = {}  # of the last answer to each question, as in `matched`
    for id, answer in zip(matched.meant, answers.rows):
        if id is not None:
            count += 1
            scores[id] = soft_score(answer.text, rows[id].answers, processed, path, id)
            tallies.add("", id, rows[id].image_id, scores[id])
    for id, row in rows.items():
        tallies.add("missing as wrong", id, row.image_id, scores.get(id, 0.0), answered=id in scores)
    metrics = tallies.percents()
    notes = [f"m4c soft accuracy over {count:,} answers; missing ones are left out, double ones count twice"]
    return matched.report("textvqa", split, metrics.pop(""), metrics, notes, tallies)


def soft_score(text: str, answers: list[str] | None, processed: Memo[str], path: Path, id: str) -> float:
    """0..1; prediction and answers are always normalised, also where all ten agree."""
    if answers is None or len(answers) != _HUMANS:
        raise VlmixError(
            f"{path}: question {id} has {len(answers or ())} answers, the evaluator takes {_HUMANS} (the test split "
            "has none, the server keeps its labels); score a split with labels, from the official file"
        )
    wanted = processed[text]
    equal = sum(processed[answer] == wanted for answer in answers)
    return soft_accuracy(equal, _HUMANS)


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    metric="m4c soft accuracy",
    homepage="https://textvqa.org/dataset/",
    files=(
        RawFile(_FILE, "questions with ten answers"),
        RawFile(_OCR_FILE, "OCR tokens, for the questions' text; scoring does without"),
    ),
    splits=("val", "train", "test"),
    read_questions=_questions,
    read_labels=_labels,
    score_answers=_score_answers,
    images=layout.TEXTVQA,
)

BENCHMARKS = (TEXTVQA,)
