"""VQA accuracy step by step as the official evaluator takes it: every question, every answer, every time.

Follows GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py (Simplified BSD license), in Python 3 and
without its progress bar. Ground truth and results are its dictionaries.
"""

import re
from typing import Any

PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
COMMA = re.compile(r"(\d)(\,)(\d)", re.ASCII)
MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
ARTICLES = ["a", "an", "the"]
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip


class OfficialEvaluator:
    """`contractions` is the table of contractions, `truth` question id -> annotation, `results` question id -> answer.
    Like the original it writes normalised answers into `truth`."""

    def __init__(self, contractions: dict[str, str], truth: dict[Any, Any], results: dict[Any, str]) -> None:
        self.contractions = contractions
        self.numbers = dict(NUMBERS)
        self.truth = truth
        self.results = results

    def evaluate(self) -> tuple[float, dict[str, float], dict[str, float]]:
        """Overall, by question type, by answer type: percent, two digits."""
        every: list[float] = []
        by_question: dict[str, list[float]] = {}
        by_answer: dict[str, list[float]] = {}
        for question_id, annotation in self.truth.items():
            accuracy = self.accuracy(annotation["answers"], self.results[question_id])
            every.append(accuracy)
            by_question.setdefault(annotation["question_type"], []).append(accuracy)
            by_answer.setdefault(annotation["answer_type"], []).append(accuracy)
        return (
            self.percent(every),
            {name: self.percent(scores) for name, scores in by_question.items()},
            {name: self.percent(scores) for name, scores in by_answer.items()},
        )

    def accuracy(self, answers: list[dict[str, Any]], result: str) -> float:
        for answer in answers:
            answer["answer"] = answer["answer"].replace("\n", " ").replace("\t", " ").strip()
        result = result.replace("\n", " ").replace("\t", " ").strip()
        if len({answer["answer"] for answer in answers}) > 1:
            for answer in answers:
                answer["answer"] = self.words(self.punctuation(answer["answer"]))
            result = self.words(self.punctuation(result))
        scores = []
        for left_out in answers:
            others = [answer for answer in answers if answer != left_out]
            matching = [answer for answer in others if answer["answer"] == result]
            scores.append(min(1, float(len(matching)) / 3))
        return float(sum(scores)) / len(scores)

    def punctuation(self, text: str) -> str:
        out = text
        for mark in MARKS:
            if (mark + " " in text or " " + mark in text) or COMMA.search(text) is not None:
                out = out.replace(mark, "")
            else:
                out = out.replace(mark, " ")
        return PERIOD.sub("", out, count=int(re.UNICODE))  # a flag where the count belongs: the first 32 go

    def words(self, text: str) -> str:
        kept = []
        for word in text.lower().split():
            number = self.numbers.setdefault(word, word)
            if number not in ARTICLES:
                kept.append(number)
        for place, word in enumerate(kept):
            if word in self.contractions:
                kept[place] = self.contractions[word]
        return " ".join(kept)

    @staticmethod
    def percent(scores: list[float]) -> float:
        return round(100 * float(sum(scores)) / len(scores), 2)
