"""SEED-Bench by LLaVA's `convert_seed_for_submission.py`: the letter alone is right."""

from pathlib import Path

import msgspec
from msgspec import Struct

from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Question, Scored, match
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import LETTERS, OPTION_LETTER

_FILE = "SEED-Bench.json"


class _Row(Struct):
    question_id: int | str
    question: str
    choice_a: str | int | float
    choice_b: str | int | float
    choice_c: str | int | float
    choice_d: str | int | float
    answer: str
    data_id: str
    data_type: str
    question_type_id: int

    @property
    def id(self) -> str:
        return str(self.question_id)

    @property
    def image(self) -> str:
        """LLaVA's names: the image itself, or the middle frame of a video as its script writes it."""
        if self.data_type == "video":
            return f"SEED-Bench-video-image/{self.question_type_id}_{self.question_id}.png"
        return f"SEED-Bench-image/{self.data_id}"


class _File(Struct):
    questions: list[_Row]
    question_type: dict[str, int] = {}


def _opened(files: OfficialFiles, split: str) -> tuple[Path, list[_Row], dict[int, str]]:
    path = files.main(_FILE)
    file = files.json(path, _File)
    rows = [row for row in file.questions if not split or row.data_type == split]
    if not rows:
        raise files.wrong(path, f"it has no {split} questions" if split else "it has no questions")
    return path, rows, {number: name for name, number in file.question_type.items()}


def _questions(files: OfficialFiles, split: str) -> list[Question]:
    questions = []
    for row in _opened(files, split)[1]:
        choices = zip(LETTERS, (row.choice_a, row.choice_b, row.choice_c, row.choice_d))
        lines = [row.question, *(f"{letter}. {choice}" for letter, choice in choices), OPTION_LETTER]
        questions.append(Question(row.id, row.image, "\n".join(lines)))
    return questions


def _labels(files: OfficialFiles, split: str) -> Labels:
    return {row.id: (row.answer,) for row in _opened(files, split)[1]}


def _score_answers(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    path, rows, names = _opened(files, split)
    rows = [row for row in rows if answers.asks(row.id)]
    matched = match(answers, dict.fromkeys(row.id for row in rows), path)
    tallies = Tallies()
    for row in rows:
        hit = matched.texts.get(row.id) == row.answer
        kind = f"type/{names.get(row.question_type_id, str(row.question_type_id))}"
        shares = [(name, hit) for name in ("", f"{row.data_type} only", kind)]
        tallies.add_shares(shares, row.id, row.image, row.id in matched.texts)
    metrics = tallies.percents()
    notes = [
        f"{split or 'images and videos'}; the letter alone is right (LLaVA's script; the official one ranks the "
        "choices by their likelihood); missing answers are wrong"
    ]
    return matched.report("seed", split or "all", metrics.pop(""), metrics, notes, tallies, chance=25.0)


def _submit(answers: Answers, files: OfficialFiles, split: str, out: Path) -> str:
    path, rows, _ = _opened(files, split)
    matched = match(answers, dict.fromkeys(row.id for row in rows), path)
    if matched.missing:
        first = next(row.id for row in rows if row.id not in matched.texts)
        raise VlmixError(
            f"{answers.path}: {matched.missing:,} of {len(rows):,} questions have no answer, the first is {first}; the "
            "leaderboard takes whole files only: answer them first"
        )
    with atomic_write(out) as file:
        for row in rows:
            line = {"question_id": row.question_id, "prediction": matched.texts[row.id]}
            file.write(msgspec.json.encode(line) + b"\n")
    return f"{out}: {len(rows):,} predictions"


SEED = Benchmark(
    name="seed",
    title="SEED-Bench",
    metric="accuracy",
    homepage="https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
    files=(RawFile(_FILE, "questions on images and videos, with answers"),),
    splits=("image", "video"),
    read_questions=_questions,
    read_labels=_labels,
    score_answers=_score_answers,
    submit=_submit,
)

BENCHMARKS = (SEED,)
