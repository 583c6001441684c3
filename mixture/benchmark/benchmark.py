"""What the benchmarks share: questions, answers and reports, and how answers are matched with questions.

A benchmark reads official files as they are distributed, words questions as LLaVA-1.5 did, and scores by the official
rule with its oddities. Nothing here needs torch: answers may come from any model and be scored on any machine.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.intervals import available, interval
from vlmix.mixture.benchmark.judge import Endpoint, Judgements, JudgeRequest, ScoreParser, check, judge, read_judgements
from vlmix.mixture.benchmark.values import Tallies, Values
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.io.image_index import ImageFolder, ImageIndex
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.storage import is_url

REPORT_NAME = "report.json"
"""Of the file that holds a `Report`."""


class NoAnswers(VlmixError):
    """Not one answer is for a question that counts."""


class Question(Struct, frozen=True):
    """One question to a model. `id` is unique in a benchmark's split.

    `image` is a path below the image root (`coco/…`, `gqa/images/…`, `textvqa/train_images/…`, in LLaVA's layout) or
    below the benchmark's own folder, "" for text only. Files that hold their images give them as `image_bytes`, or as
    what reads them when they are needed. `text` is LLaVA-1.5's prompt without the image token, which stands before it
    on a line of its own.
    """

    id: str
    image: str
    text: str
    image_bytes: bytes | Callable[[], bytes] | None = None


def image_files(question: Question, index: ImageIndex) -> list[Path]:
    """Files that may be the picture of a question, the likeliest first."""
    local = (Path(root) for root in index.roots if not is_url(root))
    plain = (root / question.image for root in local)  # SEED-Bench's files have no extension
    return [*index.candidates(question.image), *(path for path in plain if path.is_file())]


Labels = Mapping[str, Sequence[str]]
"""Question id -> the answers that its labels know."""


class Report(Struct, kw_only=True):
    """A score with what it is made of.

    `score` is on the published scale (percent; MME up to 2000). `metrics` are sub-scores, on the same scale where
    they are shares. `answered`, `missing`, `duplicates` and `unknown` count questions with and without an answer, rows
    beyond the first of a question, and rows for no question. `notes` say by which convention, and what was odd.

    `interval` holds the score that other questions of the same kind would have given in 95 of 100 cases, `intervals`
    the same for metrics; how it was made is in `interval_method` ("exact", "effective", "bootstrap", "normal"), over
    `clusters`, which are images where questions share one (see `benchmark.intervals`). `chance` is what guessing
    scores, where that is known.
    """

    benchmark: str
    split: str
    score: float
    interval: tuple[float, float] | None = None
    interval_method: str = ""
    clusters: int = 0
    chance: float | None = None
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    answered: int
    missing: int
    duplicates: int
    unknown: int
    notes: list[str]
    scorer_version: int = 0
    """Of the benchmark's rules: scores of one version compare."""

    def halves(self) -> dict[str, float]:
        """Half of each interval's width, by the name of the metric, "" for the score."""
        known = self.intervals if self.interval is None else {"": self.interval, **self.intervals}
        return {name: (high - low) / 2 for name, (low, high) in known.items()}


class Scored(NamedTuple):
    """A report, and what each question adds to its score, None where the benchmark does not say."""

    report: Report
    values: Values | None = None


class Matched(NamedTuple):
    """Answers against the ids of questions. `texts` has the last answer of each question that has one, `meant` the
    question of each row, None where it is for none."""

    texts: dict[str, str]
    meant: list[str | None]
    answered: int
    missing: int
    duplicates: int
    unknown: int

    def report(
        self,
        benchmark: str,
        split: str,
        score: float,
        metrics: Mapping[str, float],
        notes: Iterable[str],
        tallies: Tallies | None = None,
        chance: float | None = None,
    ) -> Scored:
        """The report with the intervals of `tallies`, whose main one ("") is that of the score and whose others have
        the names of metrics."""
        counts = self._asdict()
        del counts["texts"], counts["meant"]
        report = Report(
            benchmark=benchmark,
            split=split,
            score=score,
            chance=chance,
            metrics=dict(metrics),
            notes=list(notes),
            **counts,
        )
        if tallies is None:
            return Scored(report)
        values = tallies.values()
        if not available():  # a machine with what training needs, and no more
            report.notes.append("no interval: scipy is not installed here; `vlmix score` elsewhere tells it")
            return Scored(report, values.get(""))
        found = {name: within for name, each in values.items() if (within := interval(each)) is not None}
        if (main := found.pop("", None)) is not None:
            report.interval = (main.low, main.high)
            report.interval_method, report.clusters = main.method, main.clusters
        report.intervals = {name: (found[name].low, found[name].high) for name in report.metrics if name in found}
        return Scored(report, values.get(""))


def match(
    answers: Answers,
    ids: Collection[str],
    source: Path,
    identify: Callable[[Answer], str | None] | None = None,
) -> Matched:
    """`answers` by the question ids of the file `source`; `identify` says which question a row answers, where its
    `question_id` does not. Raises NoAnswers if not one row is for a question of `source`."""
    known = ids if isinstance(ids, (set, frozenset, dict)) else set(ids)
    texts: dict[str, str] = {}
    meant: list[str | None] = []
    duplicates = unknown = 0
    for row in answers.rows:
        id = row.question_id if identify is None else identify(row)
        if id is None or id not in known:
            meant.append(None)
            unknown += 1
            continue
        meant.append(id)
        duplicates += id in texts
        texts[id] = row.text
    if not texts:
        asked = next(iter(ids), None)
        raise NoAnswers(
            f"{answers.path or 'the answers'}: none of its {len(answers):,} answers is for a question of {source}"
            + (f" (the first is for {answers.rows[0].question_id!r}, the first question is {asked!r})" if asked else "")
            + "; name the answers' own benchmark and split"
        )
    return Matched(texts, meant, len(texts), len(known) - len(texts), duplicates, unknown)


def percent(hits: float, count: float) -> float:
    """100 x hits / count, 0 where nothing was counted."""
    return 100 * hits / count if count else 0.0


class OwnFiles(Struct, frozen=True):
    """What defines a benchmark of one's own, which names its questions itself, so that no official files are read."""

    recipe: Path
    images: Path
    """The root of its images."""
    inputs: tuple[Path, ...]
    """What decides its questions and scores, the recipe among them."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    `files` are the official files it reads, under their official names. `splits` are what `split` may be; "" takes what
    LLaVA-1.5 reports where its labels are public, else the validation split. `max_new_tokens` is what LLaVA-1.5 allowed
    an answer. `images` maps a folder of the image layout to other folders where the same images may lie (as in
    `io.image_index.ImageIndex`).
    """

    name: str
    title: str
    metric: str
    homepage: str
    files: tuple[RawFile, ...]
    splits: tuple[str, ...]
    read_questions: Callable[[OfficialFiles, str], list[Question]]
    score_answers: Callable[..., Scored]
    read_labels: Callable[[OfficialFiles, str], Labels] | None = None
    """Of a benchmark whose answers are words: those that people gave, or the right one."""
    submit: Callable[[Answers, OfficialFiles, str, Path], str] | None = None
    judge_requests: Callable[[Answers, OfficialFiles], list[JudgeRequest]] | None = None
    parse_scores: ScoreParser | None = None
    images: Mapping[str, tuple[ImageFolder, ...]] = field(default_factory=dict)
    max_new_tokens: int = 128
    own: OwnFiles | None = None
    """Of a benchmark that a YAML file defines; `data` and `annotations` are left out then."""
    scorer_version: int = 1
    """Raised when a change gives the same answers another score."""

    @property
    def needs_judge(self) -> bool:
        """True if a language model decides what an answer is worth."""
        return self.judge_requests is not None

    def questions(self, data: Path | None = None, split: str = "") -> list[Question]:
        """The questions of a folder of official files, or of one of them, in file order."""
        return self.read_questions(self._official(data), self._split(split))

    def labels(self, data: Path | None = None, split: str = "") -> Labels:
        """What the official files give as answers, by question. Raises VlmixError if they have none, as in a test
        split, or if answers are no words."""
        if self.read_labels is None:
            raise VlmixError(f"{self.name}: its answers are not words that could be compared")
        return self.read_labels(self._official(data), self._split(split))

    def score(
        self, answers: Answers, annotations: Path | None = None, split: str = "", judgements: Judgements | None = None
    ) -> Report:
        """The report on `answers` by the official files in `annotations` (a folder, or the annotation file).

        `judgements` (`judge.Judgements`) are required where `needs_judge`. Raises VlmixError for files that are
        missing, damaged or another benchmark's, and where not one answer belongs to the split.
        """
        return self.scored(answers, annotations, split, judgements).report

    def scored(
        self, answers: Answers, annotations: Path | None = None, split: str = "", judgements: Judgements | None = None
    ) -> Scored:
        """What `score` reports, with what each question adds to it."""
        files, split = self._official(annotations), self._split(split)
        more = (judgements,) if self.needs_judge else ()
        scored = self.score_answers(answers, files, split, *more)
        scored.report.scorer_version = self.scorer_version
        return scored

    def judge(
        self, answers: Answers, data: Path, endpoint: Endpoint, path: Path, progress: Progress | None = None
    ) -> Judgements:
        """Judgements of all `answers`, for `score`; those that `path` has already are not asked for again."""
        requests, parse_scores = self._requests(answers, data)
        return judge(requests, parse_scores, endpoint, path, progress)

    def saved_judgements(self, answers: Answers, data: Path, path: Path) -> Judgements:
        """The judgements in `path`, for `score`. Raises VlmixError if they are of other answers."""
        requests, _ = self._requests(answers, data)
        saved = read_judgements(path)
        check(saved, requests, path)
        return saved

    def _requests(self, answers: Answers, data: Path) -> tuple[list[JudgeRequest], ScoreParser]:
        if self.judge_requests is None or self.parse_scores is None:
            raise VlmixError(f"{self.name} needs no judge")
        return self.judge_requests(answers, self._official(data)), self.parse_scores

    def submission(self, answers: Answers, questions: Path | None, out: Path, split: str = "") -> str:
        """Writes the file that the test server takes, and says in one sentence what it holds."""
        if self.submit is None:
            raise VlmixError(f"there is no submission to write for {self.name}; score it without --submission")
        return self.submit(answers, self._official(questions), self._split(split), out)

    def _official(self, path: Path | None) -> OfficialFiles:
        if self.own is not None:
            if path is not None:
                raise VlmixError(f"{self.own.recipe} names its questions itself; leave {path} out")
            path = self.own.recipe
        if path is None:
            raise VlmixError(f"{self.name}: name the folder of its official files; they are at {self.homepage}")
        official = tuple(file.name.replace("{split}", "*") for file in self.files)
        return OfficialFiles(self.name, self.title, self.homepage, path, official)

    def _split(self, split: str) -> str:
        if split and not self.splits:
            raise VlmixError(f"{self.name} has no splits; leave {split!r} out")
        if split and split not in self.splits:
            raise VlmixError(f"{self.name} has no split {split!r}{nearest(split, self.splits)}")
        return split


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A benchmark and where its files are."""

    benchmark: Benchmark
    data: Path | None = None
    """The official files: a folder that holds them, or one with a folder of the benchmark's name. A benchmark of one's
    own has none."""
    images: tuple[Path, ...] = ()
    """Roots in LLaVA's layout, looked into before `data`."""
    split: str = ""

    @property
    def folder(self) -> Path | None:
        """The folder of the benchmark's official files."""
        if self.data is None or self.benchmark.own is not None:
            return None
        inner = self.data / self.benchmark.name
        return inner if inner.is_dir() else self.data

    @property
    def image_roots(self) -> list[Path]:
        """Where images are looked for, in this order."""
        own = () if self.benchmark.own is None else (self.benchmark.own.images,)
        near = (folder if folder.is_dir() else folder.parent for folder in (self.data, self.folder) if folder)
        return [*self.images, *own, *near]
