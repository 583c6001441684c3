"""LLaVA-Bench-in-the-Wild, whose answers a language model judges: prompts, reading of replies, and means.

The judge's instructions are part of the benchmark and stand here word for word: LLaVA's `rule.json` (Apache-2.0).
"""

from pathlib import Path

from msgspec import Struct

from vlmix.builders.benchmarks.judging import finite_numbers, judge_notes, required_judgements
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Question, Scored, match
from vlmix.mixture.benchmark.judge import Judgements, JudgeRequest
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.official import OfficialFiles, RawFile

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


def _wild_questions(files: OfficialFiles, split: str = "") -> list[Question]:
    return [Question(str(row.question_id), f"images/{row.image}", row.text) for row in _wild_rows(files)[1]]


def _wild_rows(files: OfficialFiles) -> tuple[Path, list[_WildQuestion]]:
    path = files.require("questions.jsonl")
    rows = files.lines(path, _WildQuestion)
    if bad := [row for row in rows if row.category not in _WILD_CATEGORIES]:
        raise files.wrong(path, f"question {bad[0].question_id} is of the category {bad[0].category!r}")
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
    return finite_numbers(words) if len(words) == 2 else None


def _wild_requests(answers: Answers, files: OfficialFiles) -> list[JudgeRequest]:
    path, rows = _wild_rows(files)
    context_path, reference_path = files.require("context.jsonl"), files.require("answers_gpt4.jsonl")
    contexts = {context.image: context.caption for context in files.lines(context_path, _WildContext)}
    references = {str(row.question_id): row.text for row in files.lines(reference_path, _WildAnswer)}
    matched = match(answers, dict.fromkeys(str(row.question_id) for row in rows), path)
    cases = []
    for row in rows:
        id = str(row.question_id)
        if row.image not in contexts:
            raise files.wrong(context_path, f"it has no caption of {row.image}")
        if id not in references:
            raise files.wrong(reference_path, f"it has no answer to question {id}")
        if id not in matched.texts:
            continue
        caption = contexts[row.image]
        context = caption if isinstance(caption, str) else "\n".join(caption)
        prompt = wild_prompt(context, row.text, references[id], matched.texts[id])
        cases.append(
            JudgeRequest(
                id, f"llava_bench_{row.category}", prompt, _WILD_FAILED, system=_WILD_SYSTEM, temperatures=(0.2,)
            )
        )
    return cases


def _wild_score(answers: Answers, files: OfficialFiles, split: str, judgements: Judgements | None) -> Scored:
    path, rows = _wild_rows(files)
    matched = match(answers, dict.fromkeys(str(row.question_id) for row in rows), path)
    found = required_judgements("llava-bench", judgements, matched)
    pairs: dict[str, list[list[float]]] = {"all": []}
    tallies = Tallies()
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
        reference, model = judgement.tuple
        for group in ("all", row.category):
            for name, value, weight in (
                ("" if group == "all" else group, model, reference),
                (f"{group}/reference", reference, 10.0),
                (f"{group}/model", model, 10.0),
            ):
                tallies.add(name, str(row.question_id), row.image, value, weight)
    metrics = {}
    for group, scores in pairs.items():
        # Rounded to three digits before the ratio, as the official summary does.
        reference, model = (round(sum(pair[i] for pair in scores) / len(scores), 3) for i in (0, 1))
        metrics[group] = round(100 * model / reference, 1) if reference else 0.0
        metrics[f"{group}/reference"] = round(10 * reference, 1)
        metrics[f"{group}/model"] = round(10 * model, 1)
    notes = judge_notes(found, len(pairs["all"]), len(rows), "LLaVA-1.5 was judged by gpt-4-0314")
    if failed:
        notes.append(f"{failed} replies without two scores count as -1 and -1 in the means, as officially")
    return matched.report("llava-bench", "all", metrics.pop("all"), metrics, notes, tallies)


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
    read_questions=_wild_questions,
    score_answers=_wild_score,
    judge_requests=_wild_requests,
    parse_scores=wild_scores,
    max_new_tokens=1024,
)

BENCHMARKS = (LLAVA_BENCH,)
