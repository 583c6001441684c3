"""What the benchmarks share: questions, answers and reports, and how answers are matched with questions.

A benchmark reads official files as they are distributed, words questions as LLaVA-1.5 did, and scores by the official
rule with its oddities. Nothing here needs torch: answers may come from any model and be scored on any machine.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from mixture.errors import VlmixError, nearest
from mixture.images import ImageFolder
from mixture.source import RawFile
from mixture.surrogates import mend
from train.benchmarks.files import Release, glob_of
from train.benchmarks.judge import Case, Endpoint, Judgements, Progress, Verdict, check, judge, read_judgements

_SHOWN = 5  # records that an error names


class Question(Struct, frozen=True):
    """One question to a model. `id` is unique in a benchmark's split.

    `image` is a path below the image root (`coco/…`, `gqa/images/…`, `textvqa/train_images/…`, in LLaVA's layout) or
    below the benchmark's own folder, "" for text only. Files that hold their images give them as `image_bytes`. `text`
    is LLaVA-1.5's prompt without the image token, which stands before it on a line of its own.
    """

    id: str
    image: str
    text: str
    image_bytes: bytes | None = None


class Answer(Struct, kw_only=True):
    """A model's answer to one question; `prompt` is what was asked, where the file tells."""

    question_id: str
    prompt: str = ""
    text: str


class Answers:
    """The rows of an answer file in their order, double ones included.

    `damaged` holds the numbers (from 1) of lines that are no answers, which only `read_answers(strict=False)` lets
    pass. `asked` are the ids of the questions that were asked, where they are a part of the benchmark's: scores are
    then those of the part.
    """

    def __init__(
        self,
        rows: list[Answer],
        path: Path | None = None,
        damaged: tuple[int, ...] = (),
        asked: frozenset[str] | None = None,
    ) -> None:
        self.rows = rows
        self.path = path
        self.damaged = damaged
        self.asked = asked

    def asks(self, id: str) -> bool:
        """Whether a question counts."""
        return self.asked is None or id in self.asked

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def texts(self) -> dict[str, str]:
        """Question id -> text; of a double id the last, as a dictionary filled line by line keeps it."""
        return {row.question_id: row.text for row in self.rows}


class _Row(Struct):
    """The keys under which tools write: LLaVA `question_id`/`text`, VQA's servers `answer`, GQA `questionId` and
    `prediction`, VizWiz `image`, SEED-Bench `prediction`."""

    question_id: int | str | None = None
    questionId: int | str | None = None
    image: str | None = None
    prompt: str = ""
    text: str | None = None
    answer: str | None = None
    prediction: str | None = None

    def answer_row(self) -> Answer | None:
        for id in (self.question_id, self.questionId, self.image):
            if id is not None:
                break
        for text in (self.text, self.answer, self.prediction):
            if text is not None:
                break
        if id is None or text is None:
            return None
        return Answer(question_id=str(id), prompt=self.prompt, text=text)


_row = msgspec.json.Decoder(_Row)
_rows = msgspec.json.Decoder(list[_Row])
_mapping = msgspec.json.Decoder(dict[str, str])


def read_answers(path: Path, *, strict: bool = True) -> Answers:
    """The answers of a file: LLaVA's JSONL (`question_id`, `prompt`, `text`), or a JSON list of such rows with
    `answer` or `prediction` for the text, as servers take it, or one JSON object of id -> text (MM-Vet, A-OKVQA).

    Ids may be numbers or strings. Raises VlmixError for a file that is missing or holds no answer, and, unless
    `strict` is false, for one with damaged lines, which it names by number.
    """
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror}; --answers names a model's answer file") from None
    lines = data.splitlines()
    first = next((line for line in lines if line.strip()), b"")
    rows: list[Answer | None]
    if first.lstrip().startswith(b"["):
        rows = [row.answer_row() for row in _whole(path, data, _rows)]
        unit = "record"
    elif first.lstrip().startswith(b"{") and _parse(first) is None and (found := _try_mapping(data)) is not None:
        rows = [Answer(question_id=id, text=text) for id, text in found.items()]
        unit = "record"
    else:
        rows = [_parse(line) for line in lines if line.strip()]
        unit = "line"
    if None in rows:
        numbers = _numbers(lines) if unit == "line" else [n for n, row in enumerate(rows, 1) if row is None]
        if strict or unit == "record" or len(numbers) == len(rows):
            raise VlmixError(
                f"{path}: {_listed(unit, numbers)} of {len(rows):,}: no answer (a JSON object with question_id and "
                "text is expected); the file was cut or is another's: answer these questions again or remove the lines"
            )
        return Answers([row for row in rows if row is not None], path, tuple(numbers))
    if not rows:
        raise VlmixError(f"{path} holds no answers; expected one JSON object with question_id and text a line")
    return Answers([row for row in rows if row is not None], path)


def _parse(line: bytes) -> Answer | None:
    try:
        return _row.decode(line).answer_row()
    except (msgspec.DecodeError, UnicodeDecodeError):
        mended, halves = mend(line)
        return _parse(mended) if halves else None


def _numbers(lines: list[bytes]) -> list[int]:
    return [number for number, line in enumerate(lines, 1) if line.strip() and _parse(line) is None]


def _whole(path: Path, data: bytes, decoder: msgspec.json.Decoder[list[_Row]]) -> list[_Row]:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VlmixError(f"{path}: {error}; expected a JSON list of objects with question_id and answer") from None


def _try_mapping(data: bytes) -> dict[str, str] | None:
    try:
        return _mapping.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _listed(unit: str, numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = len(numbers) - _SHOWN
    return f"{unit}{'s' * (len(numbers) > 1)} {shown}" + (f" and {more:,} more" if more > 0 else "")


class Report(Struct, kw_only=True):
    """A score with what it is made of.

    `score` is on the published scale (percent; MME up to 2000). `metrics` are sub-scores, on the same scale where
    they are shares. `answered`, `missing`, `double` and `unknown` count questions with and without an answer, rows
    beyond the first of a question, and rows for no question. `notes` say by which convention, and what was odd.
    """

    benchmark: str
    split: str
    score: float
    metrics: dict[str, float]
    answered: int
    missing: int
    double: int
    unknown: int
    notes: list[str]


class Matched(NamedTuple):
    """Answers against the ids of questions. `texts` has the last answer of each question that has one."""

    texts: dict[str, str]
    answered: int
    missing: int
    double: int
    unknown: int

    def report(
        self, benchmark: str, split: str, score: float, metrics: Mapping[str, float], notes: Iterable[str]
    ) -> Report:
        return Report(
            benchmark=benchmark,
            split=split,
            score=score,
            metrics=dict(metrics),
            answered=self.answered,
            missing=self.missing,
            double=self.double,
            unknown=self.unknown,
            notes=list(notes),
        )


def match(
    answers: Answers,
    ids: Collection[str],
    source: Path,
    identify: Callable[[Answer], str | None] | None = None,
) -> Matched:
    """`answers` by the question ids of the file `source`; `identify` says which question a row answers, where its
    `question_id` does not. Raises VlmixError if not one row is for a question of `source`."""
    known = ids if isinstance(ids, (set, frozenset, dict)) else set(ids)
    texts: dict[str, str] = {}
    double = unknown = 0
    for row in answers.rows:
        id = row.question_id if identify is None else identify(row)
        if id is None or id not in known:
            unknown += 1
            continue
        double += id in texts
        texts[id] = row.text
    if not texts:
        asked = next(iter(ids), None)
        raise VlmixError(
            f"{answers.path or 'the answers'}: none of its {len(answers):,} answers is for a question of {source}"
            + (f" (the first is for {answers.rows[0].question_id!r}, the first question is {asked!r})" if asked else "")
            + "; name the answers' own benchmark and split"
        )
    return Matched(texts, len(texts), len(known) - len(texts), double, unknown)


def percent(hits: float, count: float) -> float:
    """100 x hits / count, 0 where nothing was counted."""
    return 100 * hits / count if count else 0.0


class Shares:
    """Mean scores by group, in percent."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, group: str, score: float) -> None:
        self._sums[group] = self._sums.get(group, 0.0) + score
        self._counts[group] = self._counts.get(group, 0) + 1

    def percents(self, digits: int | None = None) -> dict[str, float]:
        """Group -> percent, rounded to `digits` if given, in the order of the groups' names."""
        shares = {group: percent(self._sums[group], self._counts[group]) for group in sorted(self._sums)}
        return shares if digits is None else {group: round(share, digits) for group, share in shares.items()}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    `files` are the official files it reads, under their official names. `splits` are what `split` may be; "" takes what
    LLaVA-1.5 reports where its labels are public, else the validation split. `max_new_tokens` is what LLaVA-1.5 allowed
    an answer. `images` maps a folder of the image layout to other folders
    where the same images may lie (as in `mixture.images.ImageIndex`).
    """

    name: str
    title: str
    metric: str
    homepage: str
    files: tuple[RawFile, ...]
    splits: tuple[str, ...]
    ask: Callable[[Release, str], list[Question]]
    rate: Callable[..., Report]
    submit: Callable[[Answers, Release, str, Path], str] | None = None
    cases: Callable[[Answers, Release], list[Case]] | None = None
    verdict: Verdict | None = None
    images: Mapping[str, tuple[ImageFolder, ...]] = field(default_factory=dict)
    max_new_tokens: int = 128

    @property
    def needs_judge(self) -> bool:
        """True if a language model decides what an answer is worth."""
        return self.cases is not None

    def questions(self, data: Path, split: str = "") -> list[Question]:
        """The questions of a folder of official files, or of one of them, in file order."""
        return self.ask(self._release(data), self._split(split))

    def score(
        self, answers: Answers, annotations: Path, split: str = "", judgements: Judgements | None = None
    ) -> Report:
        """The report on `answers` by the official files in `annotations` (a folder, or the annotation file).

        `judgements` (`judge.Judgements`) are required where `needs_judge`. Raises VlmixError for files that are
        missing, damaged or another benchmark's, and where not one answer belongs to the split.
        """
        release, split = self._release(annotations), self._split(split)
        return (
            self.rate(answers, release, split, judgements) if self.needs_judge else self.rate(answers, release, split)
        )

    def judge(
        self, answers: Answers, data: Path, endpoint: Endpoint, path: Path, progress: Progress | None = None
    ) -> Judgements:
        """Judgements of all `answers`, for `score`; those that `path` has already are not asked for again."""
        cases, verdict = self._cases(answers, data)
        return judge(cases, verdict, endpoint, path, progress)

    def saved_judgements(self, answers: Answers, data: Path, path: Path) -> Judgements:
        """The judgements in `path`, for `score`. Raises VlmixError if they are of other answers."""
        cases, _ = self._cases(answers, data)
        found = read_judgements(path)
        check(found, cases, path)
        return found

    def _cases(self, answers: Answers, data: Path) -> tuple[list[Case], Verdict]:
        if self.cases is None or self.verdict is None:
            raise VlmixError(f"{self.name} needs no judge")
        return self.cases(answers, self._release(data)), self.verdict

    def submission(self, answers: Answers, questions: Path, out: Path, split: str = "") -> str:
        """Writes the file that the test server takes, and says in one sentence what it holds."""
        if self.submit is None:
            raise VlmixError(f"there is no submission to write for {self.name}; score it with --annotations")
        return self.submit(answers, self._release(questions), self._split(split), out)

    def _release(self, path: Path) -> Release:
        official = tuple(glob_of(file.name) for file in self.files)
        return Release(self.name, self.title, self.homepage, path, official)

    def _split(self, split: str) -> str:
        if split and split not in self.splits:
            raise VlmixError(f"{self.name} has no split {split!r}{nearest(split, self.splits)}")
        return split
