"""MME: two yes/no questions an image, by the official `calculation.py` on LLaVA's form of the answers."""

from pathlib import Path
from typing import NamedTuple

from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Question, Scored, match
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.io.image_index import EXTENSIONS
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import SHORT_ANSWER

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PARTS = {"perception": PERCEPTION, "cognition": COGNITION}
_YES_NO = "Please answer yes or no."


class _Asked(NamedTuple):
    """A question with its answer; `id` is LLaVA's, which both questions of an image share, with `#1` or `#2` after
    it, so that an id is one question. LLaVA's converter reads such ids as its own."""

    id: str
    image: str
    question: str
    gold: str


def verdict(text: str) -> str:
    """`yes`, `no` or `other`: the answer itself, else yes, else no, within its first four characters."""
    text = text.lower()
    if text in ("yes", "no"):
        return text
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def bare(question: str) -> str:
    """A question without the request for its form, MME's or LLaVA's."""
    return question.replace(SHORT_ANSWER, "").replace(_YES_NO, "").strip()


def _root(files: OfficialFiles) -> Path:
    """The folder of the tasks' folders."""
    names = ("MME_Benchmark_release_version", "MME_Benchmark")
    for candidate in ("", *names, "/".join(names)):
        root = files.folder / candidate
        if any((root / name).is_dir() for name in (*PERCEPTION, *COGNITION)):
            return root
    raise files.missing("MME_Benchmark_release_version/existence")


def _opened(files: OfficialFiles, split: str) -> tuple[Path, dict[str, list[_Asked]]]:
    """Task -> its questions, two of an image next to each other."""
    root = _root(files)
    wanted = _PARTS.get(split, (split,) if split else (*PERCEPTION, *COGNITION))
    tasks = {name: _task(files, root, name) for name in wanted if (root / name).is_dir()}
    if not tasks:
        what = f"none of the tasks {', '.join(wanted)}" if len(wanted) > 1 else f"no task {split}"
        raise files.wrong(root, f"it has {what}")
    return root, tasks


def _task(files: OfficialFiles, root: Path, name: str) -> list[_Asked]:
    folder = root / name
    texts, images = folder / "questions_answers_YN", folder / "images"
    if not texts.is_dir():
        texts = images = folder  # the smaller tasks keep both together
    names = {path.stem: path.name for path in sorted(images.iterdir()) if path.suffix.lower() in EXTENSIONS}
    asked = []
    for path in sorted(texts.glob("*.txt")):
        lines = [line for line in bytes(files.read(path)).decode(errors="replace").splitlines() if line.strip()]
        pairs = [tuple(line.strip().split("\t")) for line in lines]
        if len(pairs) != 2 or any(len(pair) != 2 or pair[1].lower() not in ("yes", "no") for pair in pairs):
            raise files.wrong(path, "it is not two lines of question, tab, Yes or No")
        image = (images / names.get(path.stem, f"{path.stem}.jpg")).relative_to(root).as_posix()
        for number, (question, gold) in enumerate(pairs, 1):
            asked.append(_Asked(f"{image}#{number}", image, bare(question), gold.lower()))
    if not asked:
        raise files.wrong(folder, "it has no question files")
    return asked


def _questions(files: OfficialFiles, split: str) -> list[Question]:
    root, tasks = _opened(files, split)
    # Below the benchmark's own folder, where the files keeps its images.
    inside = "" if root == files.folder else f"{root.relative_to(files.folder).as_posix()}/"
    return [
        Question(asked.id, f"{inside}{asked.image}", f"{asked.question}\n{SHORT_ANSWER}")
        for questions in tasks.values()
        for asked in questions
    ]


def _labels(files: OfficialFiles, split: str) -> Labels:
    _, tasks = _opened(files, split)
    return {asked.id: (asked.gold,) for questions in tasks.values() for asked in questions}


def _score_answers(answers: Answers, files: OfficialFiles, split: str) -> Scored:
    root, tasks = _opened(files, split)
    counted = {name: [asked for asked in questions if answers.asks(asked.id)] for name, questions in tasks.items()}
    tasks = {name: questions for name, questions in counted.items() if questions}
    everything = {asked.id: asked for questions in tasks.values() for asked in questions}
    by_text = {(_stem(asked.image), asked.question): asked.id for asked in everything.values()}

    def identify(answer: Answer) -> str | None:
        if answer.question_id in everything:
            return answer.question_id
        return by_text.get((_stem(answer.question_id), bare(answer.prompt)))

    matched = match(answers, everything, root, identify)
    tallies, others = Tallies(), 0
    parts = {part: names for part, names in _PARTS.items() if any(name in tasks for name in names)}
    alone = split not in ("", *_PARTS)
    main = split if alone else next(iter(parts), "")
    for name, questions in tasks.items():
        sums = [name, *(part for part, names in parts.items() if name in names and not alone)]
        sums += [""] if main in sums else []
        for pair in zip(*[iter([*questions, None])] * 2):
            two = [asked for asked in pair if asked is not None]
            said = [verdict(matched.texts.get(asked.id, "")) for asked in two]
            others += said.count("other")
            right = [verdict == asked.gold for verdict, asked in zip(said, two)]
            image, answered = two[0].image, all(asked.id in matched.texts for asked in two)
            whole = len(two) == 2
            for kind, value, weight in (("acc", sum(right), len(two)), ("acc+", whole and all(right), whole)):
                for tally in (f"{name}/{kind}", *sums):
                    tallies.add(tally, image, image, value, weight, group=f"{name}/{kind}", answered=answered)
    tallies.sum_groups([*tasks, *parts, ""])
    metrics = tallies.percents()
    score = metrics.pop("", 0.0)
    if alone:
        notes = [f"acc and acc+ of the task {split} alone, at most 200: this is not the published sum"]
    else:
        notes = [f"sum of acc and acc+ over the {main} tasks"]
        if absent := [name for name in PERCEPTION if name not in tasks and split != "cognition"]:
            notes.append(f"without {', '.join(absent)}: this is not the published sum")
    if matched.missing or matched.duplicates:
        notes.append(
            "images are paired by name, missing answers are wrong and of double ones the last counts; the "
            "official script pairs lines by place and stops at an odd one"
        )
    if others:
        notes.append(f"{others:,} answers are neither yes nor no")
    metrics = {part: metrics[part] for part in parts if part in metrics} | metrics
    # Of two guesses one is right, and one time in four both are.
    chance = 75.0 * (1 if alone else sum(name in tasks for name in parts[main]))
    return matched.report("mme", split or "all tasks", score, metrics, notes, tallies, chance)


def _stem(image: str) -> tuple[str, str]:
    """(task, image name up to its first full stop), which LLaVA's converter goes by."""
    task, _, rest = image.partition("/")
    return task, rest.rpartition("/")[2].partition(".")[0]


MME = Benchmark(
    name="mme",
    title="MME",
    metric="Σ (acc + acc+) over ten perception tasks, at most 2000",
    homepage="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
    files=(
        RawFile(
            "MME_Benchmark_release_version/*/*.txt", "a folder per task: images, and two questions with answers each"
        ),
    ),
    splits=(*_PARTS, *PERCEPTION, *COGNITION),
    read_questions=_questions,
    read_labels=_labels,
    score_answers=_score_answers,
)

BENCHMARKS = (MME,)
