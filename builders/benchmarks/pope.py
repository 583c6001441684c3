"""POPE: is an object there? By LLaVA's `eval_pope.py`, and by lmms-eval's stricter reading."""

from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from vlmix.builders import layout
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Question, Report, match, percent
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import SHORT_ANSWER

_FILE = "coco_pope_{split}.json"
_STEP = 10_000_000
# LLaVA distinguishes the splits by what it adds to POPE's ids.
OFFSETS = {"adversarial": 0, "random": _STEP, "popular": 2 * _STEP}


class _Row(Struct):
    question_id: int
    image: str
    text: str
    label: str


class Counts(NamedTuple):
    """A confusion table; "yes" is positive."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def accuracy(self) -> float:
        return percent(self.tp + self.tn, sum(self))

    @property
    def precision(self) -> float:
        return percent(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return percent(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def says_yes(text: str) -> bool:
    """LLaVA's reading: of the text before the first full stop, commas gone, "No", "no" or "not" among the words that
    single spaces part mean no, and all else yes: "NO", "Not", "none", an empty answer, "no" before a line break."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not ("No" in words or "not" in words or "no" in words)


def count(pairs: list[tuple[bool, bool]]) -> Counts:
    """The table of (predicted yes, labelled yes)."""
    return Counts(
        tp=pairs.count((True, True)),
        fp=pairs.count((True, False)),
        tn=pairs.count((False, False)),
        fn=pairs.count((False, True)),
    )


def _opened(files: OfficialFiles, split: str) -> dict[str, tuple[Path, list[_Row]]]:
    """Split -> (file, rows), in the order of LLaVA's question file."""
    if files.path.is_file():
        named = [name for name in OFFSETS if name in files.path.name]
        if len(named) != 1:
            raise files.wrong(files.path, f"its name says none of the splits {', '.join(OFFSETS)}")
        splits, paths = named, {named[0]: files.path}
    else:
        splits = [split] if split else list(OFFSETS)
        found = {name: files.find(_FILE.format(split=name)) for name in splits}
        paths = {name: path for name, path in found.items() if path is not None}
        if not paths:
            raise files.missing(*(_FILE.format(split=name) for name in splits))
    opened = {name: (paths[name], files.lines(paths[name], _Row)) for name in splits if name in paths}
    for path, rows in opened.values():
        if any(row.label not in ("yes", "no") for row in rows):
            raise files.wrong(path, "its labels are not yes and no")
    return opened


def _questions(files: OfficialFiles, split: str) -> list[Question]:
    return [
        Question(str(row.question_id + OFFSETS[name]), _image(row.image), f"{row.text}\n{SHORT_ANSWER}")
        for name, (_, rows) in _opened(files, split).items()
        for row in rows
    ]


def _image(name: str) -> str:
    """`COCO_val2014_000000310196.jpg` in LLaVA's layout."""
    return layout.coco("val", int(name.removesuffix(".jpg").rpartition("_")[2]))


def _score_answers(answers: Answers, files: OfficialFiles, split: str) -> Report:
    """Answers meet labels by their place within the split, as in LLaVA's script, which looks at no id there."""
    opened = {
        name: (path, counted)
        for name, (path, rows) in _opened(files, split).items()
        if (counted := [row for row in rows if answers.asks(str(row.question_id + OFFSETS[name]))])
    }
    offsets = _offsets(answers, list(opened))
    labels = {
        name: {str(r.question_id + offsets[name]): r.label == "yes" for r in rows} for name, (_, rows) in opened.items()
    }
    matched = match(answers, [id for ids in labels.values() for id in ids], files.path)
    metrics: dict[str, float] = {}
    notes = ["LLaVA's reading (no `no` or `not` before the first full stop means yes), mean of the splits' F1"]
    strict: list[tuple[str, bool]] = []
    by_id = []
    for name, (path, rows) in opened.items():
        given = [answer for answer in answers.rows if _split_of(answer.question_id, offsets) == name]
        if not given:
            raise VlmixError(f"{answers.path}: no answer is for POPE's split {name} ({path}); --split names another")
        paired = list(zip(given, rows))
        table = count([(says_yes(answer.text), row.label == "yes") for answer, row in paired])
        metrics |= {
            f"{name}/f1": table.f1,
            f"{name}/accuracy": table.accuracy,
            f"{name}/precision": table.precision,
            f"{name}/recall": table.recall,
            f"{name}/yes ratio": percent(sum(says_yes(answer.text) for answer in given), len(given)),
        }
        strict += [(answer.text.lower().strip(), row.label == "yes") for answer, row in paired]
        own = [(says_yes(matched.texts[id]), label) for id, label in labels[name].items() if id in matched.texts]
        by_id.append(count(own).f1)
        notes += _oddities(name, path, [answer.question_id for answer in given], list(labels[name]))
        if not table.tp + table.fp:
            notes.append(
                f"{name}: nothing is answered with yes, where the official script divides by zero; F1 counts as 0"
            )
    score = sum(metrics[f"{name}/f1"] for name in opened) / len(opened)
    metrics["by id, not by place"] = sum(by_id) / len(by_id)
    metrics |= _lmms_eval(strict)
    if missing := [name for name in OFFSETS if name not in opened]:
        notes.append(f"without {', '.join(missing)}")
    return matched.report("pope", "+".join(opened), score, metrics, notes)


def _offsets(answers: Answers, splits: list[str]) -> dict[str, int]:
    """What each split adds to POPE's ids; nothing where one split is asked for and the answers have POPE's own ids."""
    own = all(row.question_id.isdecimal() and int(row.question_id) < _STEP for row in answers.rows)
    return {splits[0]: 0} if own and len(splits) == 1 else OFFSETS


def _split_of(id: str, offsets: dict[str, int]) -> str:
    number = int(id) if id.isdecimal() else -1
    return max((name for name, offset in offsets.items() if number >= offset), key=offsets.__getitem__, default="")


def _oddities(name: str, path: Path, given: list[str], wanted: list[str]) -> list[str]:
    if given == wanted:
        return []
    pairs = enumerate(zip(given, wanted), 1)
    place = next((n for n, (id, own) in pairs if id != own), min(len(given), len(wanted)) + 1)
    return [
        f"{name}: the {len(given):,} answers and the {len(wanted):,} labels of {path.name} part at place {place:,}; "
        "the official script compares them by place all the same, and `by id, not by place` is the score of the "
        "answers with their own labels (the random split had 2,910 questions at LLaVA's time, 3,000 later)"
    ]


def _lmms_eval(strict: list[tuple[str, bool]]) -> dict[str, float]:
    """lmms-eval: right is "yes" or "no" alone, all splits in one table, the yes ratio that of the labels."""
    right = sum(text == ("yes" if label else "no") for text, label in strict)
    tp = sum(text == "yes" and label for text, label in strict)
    fp = sum(text == "yes" and not label for text, label in strict)
    fn = sum(text == "no" and label for text, label in strict)
    table = Counts(tp, fp, 0, fn)
    return {
        "lmms-eval/f1": table.f1,
        "lmms-eval/accuracy": percent(right, len(strict)),
        "lmms-eval/precision": table.precision,
        "lmms-eval/recall": table.recall,
        "lmms-eval/yes ratio": percent(sum(label for _, label in strict), len(strict)),
    }


POPE = Benchmark(
    name="pope",
    title="POPE on COCO",
    metric="mean F1 of the splits",
    homepage="https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco",
    files=(RawFile(_FILE, "questions with labels, one JSON object a line: adversarial, random, popular"),),
    splits=("adversarial", "random", "popular"),
    read_questions=_questions,
    score_answers=_score_answers,
    images=layout.COCO,
)

BENCHMARKS = (POPE,)
