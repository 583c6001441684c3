"""POPE: is an object there? By LLaVA's `eval_pope.py`, and by lmms-eval's stricter reading."""

from itertools import compress
from pathlib import Path

from msgspec import Struct

from vlmix.builders import layout
from vlmix.builders.benchmarks.normalise import Memo
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, NoAnswers, Question, Scored, match
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import SHORT_ANSWER

_FILE = "coco_pope_{split}.json"
_STEP = 10_000_000
_BY_ID = "by id, not by place"
_CHANCE = 50.0  # F1 of a coin, as half of the labels are yes; always yes has 66.7
# LLaVA distinguishes the splits by what it adds to POPE's ids.
OFFSETS = {"adversarial": 0, "random": _STEP, "popular": 2 * _STEP}


class _Row(Struct):
    question_id: int
    image: str
    text: str
    label: str


def says_yes(text: str) -> bool:
    """LLaVA's reading: of the text before the first full stop, commas gone, "No", "no" or "not" among the words that
    single spaces part mean no, and all else yes: "NO", "Not", "none", an empty answer, "no" before a line break."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not ("No" in words or "not" in words or "no" in words)


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


def _labels(files: OfficialFiles, split: str) -> Labels:
    opened = _opened(files, split).items()
    return {str(row.question_id + OFFSETS[name]): (row.label,) for name, (_, rows) in opened for row in rows}


def _image(name: str) -> str:
    """`COCO_val2014_000000310196.jpg` in LLaVA's layout."""
    return layout.coco("val", int(name.removesuffix(".jpg").rpartition("_")[2]))


def _score_answers(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    """Answers meet labels by their place within the split, as in LLaVA's script, which looks at no id there."""
    opened = {
        name: (path, rows, counts)
        for name, (path, rows) in _opened(files, split).items()
        if any(counts := [answers.asks(str(row.question_id + OFFSETS[name])) for row in rows])
    }
    offsets = _offsets(answers, list(opened))
    ids = {name: [str(row.question_id + offsets[name]) for row in rows] for name, (_, rows, _) in opened.items()}
    asked = {name: list(compress(ids[name], counts)) for name, (_, _, counts) in opened.items()}
    matched = match(answers, [id for each in asked.values() for id in each], files.path)
    tallies, says = Tallies(), Memo(says_yes)
    notes = ["LLaVA's reading (no `no` or `not` before the first full stop means yes), mean of the splits' F1"]
    for name, (path, rows, counts) in opened.items():
        given = [answer for answer in answers.rows if _split_of(answer.question_id, offsets) == name]
        if not given:
            raise NoAnswers(f"{answers.path}: no answer is for POPE's split {name} ({path}); --split names another")
        paired = list(compress(zip(given, rows, ids[name]), counts))  # places are those of the whole split
        for answer, row, id in paired:
            _tally(tallies, name, id, row, answer.text, says[answer.text])
        for row, id in zip(rows, ids[name]):
            if id in matched.texts:
                said = says[matched.texts[id]]
                tallies.add_binary(_BY_ID, id, row.image, said, row.label == "yes", group=name)
        told = [answer.question_id for answer in given]
        told = told if answers.asked is None else [id for id in told if id in matched.texts]
        notes += _oddities(name, path, told, asked[name])
        if not any(says[answer.text] for answer, _, _ in paired):
            notes.append(
                f"{name}: nothing is answered with yes, where the official script divides by zero; F1 counts as 0"
            )
    metrics = tallies.percents()
    score = metrics.pop("")
    metrics.setdefault(_BY_ID, 0.0)
    if missing := [name for name in OFFSETS if name not in opened]:
        notes.append(f"without {', '.join(missing)}")
    scored = matched.report("pope", "+".join(opened), score, metrics, notes, tallies, chance=_CHANCE)
    # Models are compared question by question, where places that part would make a model wrong by what it leaves out.
    return scored._replace(values=tallies.values().get(_BY_ID))


def _tally(tallies: Tallies, split: str, id: str, row: _Row, text: str, said: bool) -> None:
    """An answer by LLaVA's reading, split by split, and by lmms-eval's: right is "yes" or "no" alone, all splits in one
    table, the yes ratio that of the labels."""
    label = row.label == "yes"
    strict = text.lower().strip()
    tallies.add_binary("", id, row.image, said, label, group=split)
    tallies.add_binary(f"{split}/f1", id, row.image, said, label)
    tallies.add("lmms-eval/f1", id, row.image, 2 * (strict == "yes" and label), _in_f1(strict, label))
    for name, value, weight in (
        (f"{split}/accuracy", said == label, 1),
        (f"{split}/precision", label, said),
        (f"{split}/recall", said, label),
        (f"{split}/yes ratio", said, 1),
        ("lmms-eval/accuracy", strict == ("yes" if label else "no"), 1),
        ("lmms-eval/precision", label, strict == "yes"),
        ("lmms-eval/recall", strict == "yes", label and strict in ("yes", "no")),
        ("lmms-eval/yes ratio", label, 1),
    ):
        tallies.add(name, id, row.image, value * weight, weight)


def _in_f1(strict: str, label: bool) -> int:
    """2 for a true positive, 1 for a false positive or a false negative; an answer that is neither counts as none."""
    return (strict == "yes") + (label and strict in ("yes", "no"))


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


POPE = Benchmark(
    name="pope",
    title="POPE on COCO",
    metric="mean F1 of the splits",
    homepage="https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco",
    files=(RawFile(_FILE, "questions with labels, one JSON object a line: adversarial, random, popular"),),
    splits=("adversarial", "random", "popular"),
    read_questions=_questions,
    read_labels=_labels,
    score_answers=_score_answers,
    images=layout.COCO,
)

BENCHMARKS = (POPE,)
