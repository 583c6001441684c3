"""ScienceQA by LLaVA's `eval_science_qa.py`: accuracy of the option letter, on questions with an image."""

import re

from msgspec import Struct

from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Question, Scored, match, percent
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.record import IMAGE_TOKEN
from vlmix.mixture.render import OPTION_LETTER

_OPTIONS = "ABCDE"
_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the last character may be any


class _Problem(Struct):
    question: str
    choices: list[str]
    answer: int
    hint: str = ""
    image: str | None = None
    subject: str = ""


def chosen(text: str) -> str | None:
    """The option letter of an answer: the answer itself if it is one of A to E, the letter before ". ", or the one in
    "The answer is X." if that occurs once; else None."""
    if len(text) == 1 and text in _OPTIONS:
        return text
    if text[:1] and text[0] in _OPTIONS and text[1:3] == ". ":
        return text[0]
    found: list[str] = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


def _opened(files: OfficialFiles, split: str) -> dict[str, _Problem]:
    path = files.require("problems.json")
    problems = files.json(path, dict[str, _Problem])
    splits_path = files.require("pid_splits.json")
    ids = files.json(splits_path, dict[str, list[str]]).get(split or "test")
    if not ids:
        raise files.wrong(splits_path, f"it has no split {split or 'test'!r}")
    if absent := [id for id in ids if id not in problems]:
        raise files.wrong(path, f"it has no problem {absent[0]}, which {splits_path.name} names")
    return {id: problems[id] for id in ids}


def _questions(files: OfficialFiles, split: str) -> list[Question]:
    return [
        Question(
            id,
            f"images/{split or 'test'}/{id}/{problem.image}" if problem.image else "",
            "\n".join(
                [
                    *([f"Context: {problem.hint}"] if problem.hint else []),
                    problem.question,
                    *(f"{letter}. {choice}" for letter, choice in zip(_OPTIONS, problem.choices)),
                    OPTION_LETTER,
                ]
            ),
        )
        for id, problem in _opened(files, split).items()
    ]


def _labels(files: OfficialFiles, split: str) -> Labels:
    return {id: (_OPTIONS[problem.answer],) for id, problem in _opened(files, split).items()}


def _score_answers(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    problems = {id: problem for id, problem in _opened(files, split).items() if answers.asks(id)}
    matched = match(answers, problems, files.folder)
    prompts = {row.question_id: row.prompt for row in answers.rows}
    # LLaVA knows an image question by the image token of its prompt; files without the token are taken by the problem.
    marked = any(IMAGE_TOKEN in prompt for prompt in prompts.values())
    image_count = failed = 0
    guessed = 0.0
    tallies = Tallies()
    for id, problem in problems.items():
        text = matched.texts.get(id)
        letter = chosen("FAILED" if text is None else text)
        failed += letter is None
        # A letter beyond the choices is no choice.
        hit = (
            letter is not None
            and letter in _OPTIONS[: len(problem.choices)]
            and _OPTIONS.index(letter) == problem.answer
        )
        names = ["all questions"]
        if text is not None and (IMAGE_TOKEN in prompts[id] if marked else bool(problem.image)):
            image_count += 1
            guessed += 1 / max(1, len(problem.choices))
            names += ["", *([f"image/{problem.subject}"] if problem.subject else [])]
        tallies.add_shares([(name, hit) for name in names], id, id, text is not None)
    metrics = {**tallies.percents(), "without a letter": float(failed)}
    score = metrics.pop("", 0.0)
    notes = [f"accuracy on {image_count:,} answered questions with an image"]
    if matched.missing:
        notes.append(
            "an image question without an answer is left out here, and wrong in `all questions`, as officially"
        )
    return matched.report("scienceqa", split or "test", score, metrics, notes, tallies, percent(guessed, image_count))


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    metric="accuracy on questions with an image",
    homepage="https://github.com/lupantech/ScienceQA/tree/main/data/scienceqa",
    files=(
        RawFile("problems.json", "all problems"),
        RawFile("pid_splits.json", "which problem is in which split"),
    ),
    splits=("test", "val", "train", "minitest", "minival"),
    read_questions=_questions,
    read_labels=_labels,
    score_answers=_score_answers,
    max_new_tokens=1024,
)

BENCHMARKS = (SCIENCEQA,)
