"""LLaVA-Bench-in-the-Wild and MM-Vet, whose answers a language model judges: prompts, reading of replies, and means.

The judge's instructions are part of the benchmarks and stand here word for word: LLaVA's `rule.json` (Apache-2.0) and
MM-Vet's `mm-vet_evaluator.py` (Apache-2.0).
"""

import math
from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from mixture.errors import VlmixError
from mixture.files import atomic
from mixture.source import RawFile
from train.benchmarks.common import Answers, Benchmark, Matched, Question, Report, match
from train.benchmarks.files import Release
from train.benchmarks.judge import Case, Judgements

# LLaVA-Bench-in-the-Wild

_WILD_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
_WILD_RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "displayed above. The user asks the question on observing an image. For your reference, the visual content in the "
    "image is represented with a few sentences describing the image. \n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives an "
    "overall score on a scale of 1 to 10, where a higher score indicates better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space.\n"
    "In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential "
    "bias and ensuring that the order in which the responses were presented does not affect your judgment."
)
_WILD_FAILED = (-1.0, -1.0)
_WILD_CATEGORIES = ("conv", "detail", "complex")


class _WildQuestion(Struct):
    question_id: int | str
    image: str
    text: str
    category: str


class _WildContext(Struct):
    image: str
    caption: str | list[str]


class _WildAnswer(Struct):
    question_id: int | str
    text: str


def _wild_questions(release: Release, split: str = "") -> list[Question]:
    return [Question(str(row.question_id), f"images/{row.image}", row.text) for row in _wild_rows(release)[1]]


def _wild_rows(release: Release) -> tuple[Path, list[_WildQuestion]]:
    path = release.require("questions.jsonl")
    rows = release.lines(path, _WildQuestion)
    if bad := [row for row in rows if row.category not in _WILD_CATEGORIES]:
        raise release.wrong(path, f"question {bad[0].question_id} is of the category {bad[0].category!r}")
    return path, rows


def wild_prompt(context: str, question: str, reference: str, answer: str) -> str:
    """What LLaVA's judge reads: the reference answer is assistant 1, the model's assistant 2."""
    return (
        f"[Context]\n{context}\n\n[Question]\n{question}\n\n"
        f"[Assistant 1]\n{reference}\n\n[End of Assistant 1]\n\n[Assistant 2]\n{answer}\n\n[End of Assistant 2]\n\n"
        f"[System]\n{_WILD_RULE}\n\n"
    )


def wild_scores(reply: str) -> list[float] | None:
    """The two numbers of a reply's first line, commas read as spaces; None unless there are exactly two words, both
    numbers."""
    words = reply.split("\n")[0].replace(",", " ").split(" ")
    return _numbers(words) if len(words) == 2 else None


def _numbers(words: list[str]) -> list[float] | None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _wild_cases(answers: Answers, release: Release) -> list[Case]:
    path, rows = _wild_rows(release)
    context_path, reference_path = release.require("context.jsonl"), release.require("answers_gpt4.jsonl")
    contexts = {context.image: context.caption for context in release.lines(context_path, _WildContext)}
    references = {str(row.question_id): row.text for row in release.lines(reference_path, _WildAnswer)}
    matched = match(answers, dict.fromkeys(str(row.question_id) for row in rows), path)
    cases = []
    for row in rows:
        id = str(row.question_id)
        if row.image not in contexts:
            raise release.wrong(context_path, f"it has no caption of {row.image}")
        if id not in references:
            raise release.wrong(reference_path, f"it has no answer to question {id}")
        if id not in matched.texts:
            continue
        caption = contexts[row.image]
        context = caption if isinstance(caption, str) else "\n".join(caption)
        prompt = wild_prompt(context, row.text, references[id], matched.texts[id])
        cases.append(
            Case(id, f"llava_bench_{row.category}", prompt, _WILD_FAILED, system=_WILD_SYSTEM, temperatures=(0.2,))
        )
    return cases


def _wild_rate(answers: Answers, release: Release, split: str, judgements: Judgements | None) -> Report:
    path, rows = _wild_rows(release)
    matched = match(answers, dict.fromkeys(str(row.question_id) for row in rows), path)
    found = _judged("llava-bench", judgements, matched)
    pairs: dict[str, list[list[float]]] = {"all": []}
    failed = 0
    for row in rows:
        judgement = found.get(str(row.question_id))
        if judgement is None:
            continue
        if len(judgement.tuple) != 2:
            raise VlmixError(
                f"the judgement of question {row.question_id} has {len(judgement.tuple)} scores, two are expected: the "
                "judgements are another benchmark's"
            )
        failed += tuple(judgement.tuple) == _WILD_FAILED
        pairs["all"].append(judgement.tuple)
        pairs.setdefault(row.category, []).append(judgement.tuple)
    metrics = {}
    for group, scores in pairs.items():
        # Rounded to three digits before the ratio, as the official summary does.
        reference, model = (round(sum(pair[i] for pair in scores) / len(scores), 3) for i in (0, 1))
        metrics[group] = round(100 * model / reference, 1) if reference else 0.0
        metrics[f"{group}/reference"] = round(10 * reference, 1)
        metrics[f"{group}/model"] = round(10 * model, 1)
    notes = _judge_notes(found, len(pairs["all"]), len(rows), "LLaVA-1.5 was judged by gpt-4-0314")
    if failed:
        notes.append(f"{failed} replies without two scores count as -1 and -1 in the means, as officially")
    return matched.report("llava-bench", "all", metrics.pop("all"), metrics, notes)


LLAVA_BENCH = Benchmark(
    name="llava-bench",
    title="LLaVA-Bench-in-the-Wild",
    metric="100 x mean score / mean score of GPT-4's reference",
    homepage="https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
    files=(
        RawFile("questions.jsonl", "60 questions"),
        RawFile("context.jsonl", "captions for the judge"),
        RawFile("answers_gpt4.jsonl", "reference answers for the judge"),
    ),
    splits=(),
    ask=_wild_questions,
    rate=_wild_rate,
    cases=_wild_cases,
    verdict=wild_scores,
    max_new_tokens=1024,
)

# MM-Vet

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
    numbers = _numbers([reply.split(" ")[0].strip()])
    return numbers if numbers and 0.0 <= numbers[0] <= 1.0 else None


def _vet_rows(release: Release) -> tuple[Path, dict[str, _VetQuestion]]:
    path = release.main("mm-vet.json")
    rows = {id.removeprefix(_VET_PREFIX): row for id, row in release.json(path, dict[str, _VetQuestion]).items()}
    if not rows:
        raise release.wrong(path, "it has no questions")
    return path, rows


def _vet_questions(release: Release, split: str = "") -> list[Question]:
    return [Question(id, f"images/{row.imagename}", row.question) for id, row in _vet_rows(release)[1].items()]


def _vet_match(answers: Answers, path: Path, rows: dict[str, _VetQuestion]) -> Matched:
    return match(answers, rows, path, lambda row: row.question_id.removeprefix(_VET_PREFIX))


def _vet_cases(answers: Answers, release: Release) -> list[Case]:
    path, rows = _vet_rows(release)
    matched = _vet_match(answers, path, rows)
    return [
        Case(
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


def _vet_rate(answers: Answers, release: Release, split: str, judgements: Judgements | None) -> Report:
    path, rows = _vet_rows(release)
    matched = _vet_match(answers, path, rows)
    found = _judged("mm-vet", judgements, matched)
    counts = Counter[str]()
    scores: dict[str, float] = {}
    judged = 0
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
        for group in ("total", *capabilities, f"together/{'+'.join(capabilities)}"):
            scores[group] = scores.get(group, 0.0) + score
            counts[group] += 1
    metrics = {group: round(100 * total / counts[group], 1) for group, total in scores.items()}
    notes = _judge_notes(found, judged, len(rows), "the paper's judge is gpt-4-0613")
    if judged < len(rows):
        notes.append("questions that were not judged count as 0; the official script stops at one without an answer")
    return matched.report("mm-vet", "all", metrics.pop("total"), metrics, notes)


def _vet_submit(answers: Answers, release: Release, split: str, out: Path) -> str:
    path, rows = _vet_rows(release)
    matched = _vet_match(answers, path, rows)
    texts = {f"{_VET_PREFIX}{id}": matched.texts[id] for id in rows if id in matched.texts}
    with atomic(out) as file:
        file.write(msgspec.json.format(msgspec.json.encode(texts), indent=2))
    return f"{out}: {len(texts):,} answers, {matched.missing:,} questions without one"


MM_VET = Benchmark(
    name="mm-vet",
    title="MM-Vet",
    metric="mean of the judge's scores",
    homepage="https://github.com/yuweihao/MM-Vet",
    files=(RawFile("mm-vet.json", "218 questions with their truth and capabilities"),),
    splits=(),
    ask=_vet_questions,
    rate=_vet_rate,
    submit=_vet_submit,
    cases=_vet_cases,
    verdict=vet_score,
    max_new_tokens=1024,
)


def _judged(name: str, judgements: Judgements | None, matched: Matched) -> Judgements:
    """The judgements of questions that have an answer."""
    if judgements is None:
        raise VlmixError(f"{name} needs a judge: name one with --judge, or a file of judgements with --judgements")
    found = {id: judgement for id, judgement in judgements.items() if id in matched.texts}
    if not found:
        raise VlmixError(f"{name}: none of the {len(judgements):,} judgements is of one of the answered questions")
    return found


def _judge_notes(found: Judgements, judged: int, count: int, usual: str) -> list[str]:
    models = sorted({judgement.model for judgement in found.values() if judgement.model})
    by = f"by {', '.join(models)}" if models else "by a judge that the file does not name"
    return [f"{judged:,} of {count:,} questions judged {by}; {usual}, and scores of different judges do not compare"]
