"""MM-Vet: open questions, graded by a language model from 0 to 1.

The judge's instructions are part of the benchmark and stand here word for word: its `mm-vet_evaluator.py` (Apache-2.0).
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from vlmix.builders.benchmarks.judging import finite_numbers, judge_notes, required_judgements
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Matched, Question, Scored, match
from vlmix.mixture.benchmark.judge import Judgements, JudgeRequest
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.official import OfficialFiles, RawFile

_VET_INSTRUCTION = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in "
    "the ground truth means it is totally right only when all elements in the ground truth are present in the "
    "prediction, and <OR> means it is totally right when any one element in the ground truth is present in the "
    "prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 "
    "(totally right). Just complete the last space of the correctness score."
)


_VET_EQUATION = "What is x in the equation? | -1 <AND> -5"


_VET_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland and "
    "Greenland are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while Greenland "
    "is mostly covered in ice and snow. The meme is saying that the person has trust issues because the names of these "
    "countries do not accurately represent their landscapes."
)


_VET_EXAMPLES = (
    "Question | Ground truth | Prediction | Correctness",
    "--- | --- | --- | ---",
    f"{_VET_EQUATION} | x = 3 | 0.0",
    f"{_VET_EQUATION} | x = -1 | 0.5",
    f"{_VET_EQUATION} | x = -5 | 0.5",
    f"{_VET_EQUATION} | x = -5 or 5 | 0.5",
    f"{_VET_EQUATION} | x = -1 or x = -5 | 1.0",
    f"{_VET_MEME} | The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is "
    "not very icy and Greenland isn't very green. | 0.4",
    f"{_VET_MEME} | The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. "
    "Iceland, despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The text "
    "'This is why I have trust issues' is a playful way to suggest that these contradictions can lead to distrust or "
    "confusion. The humor in this meme is derived from the unexpected contrast between the names of the countries and "
    "their actual physical characteristics. | 1.0",
)


_VET_REMINDER = "\nPredict the correctness of the answer (digit): "


# The official loop asks again at the same temperature, then warmer each time, and gives 0 after five replies.
_VET_TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)


_VET_PREFIX = "v1_"


class _VetQuestion(Struct):
    imagename: str
    question: str
    answer: str
    capability: list[str]


def vet_prompt(question: str, truth: str, answer: str) -> str:
    """What MM-Vet's judge completes."""
    truth = truth.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    table = "\n".join(_VET_EXAMPLES)
    return f"{_VET_INSTRUCTION}\n\n{table}\n\n{' | '.join([question, truth, answer, ''])}"


def vet_score(reply: str) -> list[float] | None:
    """The number before a reply's first space, if it is one from 0 to 1."""
    numbers = finite_numbers([reply.split(" ")[0].strip()])
    return numbers if numbers and 0.0 <= numbers[0] <= 1.0 else None


def _vet_rows(files: OfficialFiles) -> tuple[Path, dict[str, _VetQuestion]]:
    path = files.main("mm-vet.json")
    rows = {id.removeprefix(_VET_PREFIX): row for id, row in files.json(path, dict[str, _VetQuestion]).items()}
    if not rows:
        raise files.wrong(path, "it has no questions")
    return path, rows


def _vet_questions(files: OfficialFiles, split: str = "") -> list[Question]:
    return [Question(id, f"images/{row.imagename}", row.question) for id, row in _vet_rows(files)[1].items()]


def _vet_match(answers: Answers, path: Path, rows: dict[str, _VetQuestion]) -> Matched:
    return match(answers, rows, path, lambda row: row.question_id.removeprefix(_VET_PREFIX))


def _vet_cases(answers: Answers, files: OfficialFiles) -> list[JudgeRequest]:
    path, rows = _vet_rows(files)
    matched = _vet_match(answers, path, rows)
    return [
        JudgeRequest(
            id,
            "+".join(sorted(set(row.capability))),
            vet_prompt(row.question, row.answer, matched.texts[id]),
            (0.0,),
            temperatures=_VET_TEMPERATURES,
            max_tokens=3,
            reminder=_VET_REMINDER,
        )
        for id, row in rows.items()
        if id in matched.texts
    ]


def _vet_score(answers: Answers, files: OfficialFiles, split: str, judgements: Judgements | None) -> Scored:
    path, rows = _vet_rows(files)
    matched = _vet_match(answers, path, rows)
    found = required_judgements("mm-vet", judgements, matched)
    tallies, judged = Tallies(), 0
    for id, row in rows.items():
        judgement = found.get(id)
        judged += judgement is not None
        if judgement is not None and len(judgement.tuple) != 1:
            raise VlmixError(
                f"the judgement of question {id} has {len(judgement.tuple)} scores, one is expected: the judgements "
                "are another benchmark's"
            )
        score = judgement.tuple[0] if judgement else 0.0
        capabilities = sorted(set(row.capability))
        groups = ("", *capabilities, f"together/{'+'.join(capabilities)}")
        tallies.add_shares([(group, score) for group in groups], id, row.imagename, judgement is not None)
    metrics = tallies.percents(digits=1)
    notes = judge_notes(found, judged, len(rows), "the paper's judge is gpt-4-0613")
    if judged < len(rows):
        notes.append("questions that were not judged count as 0; the official script stops at one without an answer")
    return matched.report("mm-vet", "all", metrics.pop(""), metrics, notes, tallies)


def _vet_submit(answers: Answers, files: OfficialFiles, split: str, out: Path) -> str:
    path, rows = _vet_rows(files)
    matched = _vet_match(answers, path, rows)
    texts = {f"{_VET_PREFIX}{id}": matched.texts[id] for id in rows if id in matched.texts}
    with atomic_write(out) as file:
        file.write(msgspec.json.format(msgspec.json.encode(texts), indent=2))
    return f"{out}: {len(texts):,} answers, {matched.missing:,} questions without one"


MM_VET = Benchmark(
    name="mm-vet",
    title="MM-Vet",
    metric="mean of the judge's scores",
    homepage="https://github.com/yuweihao/MM-Vet",
    files=(RawFile("mm-vet.json", "218 questions with their truth and capabilities"),),
    splits=(),
    read_questions=_vet_questions,
    score_answers=_vet_score,
    submit=_vet_submit,
    judge_requests=_vet_cases,
    parse_scores=vet_score,
    max_new_tokens=1024,
)

BENCHMARKS = (MM_VET,)
