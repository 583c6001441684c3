"""A score by parts: of the questions whose picture is in the mixture, of those whose text is, and of the rest."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, structs

from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, NoAnswers
from vlmix.mixture.benchmark.judge import Judgements
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.overlaps import table
from vlmix.mixture.overlaps.table import PICTURES, Checked, Overlaps

NAME = "overlaps.json"
"""Of the file beside a report."""


class Part(Struct, frozen=True, kw_only=True):
    """The score on some of a benchmark's questions, on the scale of its report; None where none of them is answered."""

    questions: int
    answered: int
    score: float | None
    interval: tuple[float, float] | None = None


class Parts(Struct, frozen=True, kw_only=True):
    """The scores of the parts, None for a part without questions. A question may be seen by its picture and its text;
    `clean` has those that are seen by neither. `checked` says what was compared, without its questions."""

    manifest: str
    """SHA-256 of the manifest.json of the mixture that the overlaps are of."""
    file: str = ""
    """SHA-256 of the overlaps file, where the parts are kept."""
    checked: Checked
    picture_seen: Part | None
    text_seen: Part | None
    clean: Part | None

    def by_name(self) -> dict[str, Part | None]:
        """The parts in the order of tables."""
        return {"picture_seen": self.picture_seen, "text_seen": self.text_seen, "clean": self.clean}


def overlaps_of(path: Path, mixture: Reader) -> Overlaps:
    """The overlaps file at `path` as one of `mixture`: made of it, or of the folder that it is a view of. Raises
    VlmixError for a file of another mixture."""
    parent = mixture.manifest.parent
    if parent is not None:
        whole = table.read(path)
        if whole.about.manifest == parent.sha256:
            return within(whole, mixture)
    return table.read(path, mixture)


def within(overlaps: Overlaps, part: Reader) -> Overlaps:
    """The overlaps with the samples of `part` alone, a part of the mixture that they are of.

    Of the samples that ask one question only some are listed. A question whose list is full, and has no sample of the
    part, may be asked by another one: it is left out, and named in `unchecked`.
    """
    rows = overlaps.rows.filter(pc.is_in(overlaps.rows["id"], part.column("id").cast(pa.string()).combine_chunks()))
    checked = []
    for each in overlaps.about.checked:
        mine = pc.field("benchmark") == each.benchmark, pc.field("split") == each.split, pc.field("level") == "text"
        listed, kept = (of.filter(mine[0] & mine[1] & mine[2])["other"] for of in (overlaps.rows, rows))
        if each.not_listed:
            counts = pc.value_counts(listed).to_pylist()
            most = max(count["counts"] for count in counts)
            unknown = {count["values"] for count in counts if count["counts"] == most} - set(kept.to_pylist())
            if unknown:
                some = f"{len(unknown):,} of {len(each.questions):,} questions"
                why = f"{some} left out: samples that are not listed may ask them"
                each = structs.replace(
                    each,
                    left_out=[*each.left_out, *sorted(unknown)],
                    unchecked={**each.unchecked, "text": why},
                )
        checked.append(each)
    return Overlaps(structs.replace(overlaps.about, checked=checked), rows)


def scores(
    benchmark: Benchmark,
    answers: Answers,
    annotations: Path | None,
    split: str,
    overlaps: Overlaps,
    judgements: Judgements | None = None,
) -> Parts:
    """The scores of `answers` by parts, each by the benchmark's own rule; of the questions that were asked, where
    `answers` says which. Raises VlmixError if the overlaps are with other questions, or if the rule has no score of a
    part."""
    checked = overlaps.checked(benchmark.name, split)

    def score(ids: frozenset[str]) -> Part | None:
        ids = ids if answers.asked is None else ids & answers.asked
        if not ids:
            return None
        try:  # which row answers which question is the benchmark's to say
            of_part = Answers(answers.rows, answers.path, asked=ids)
            report = benchmark.score(of_part, annotations, split, judgements)
        except NoAnswers:
            return Part(questions=len(ids), answered=0, score=None)
        counted = report.answered + report.missing
        if counted > len(ids):
            raise VlmixError(f"{benchmark.name}: its rule scores all questions together; score it without the overlaps")
        return Part(questions=counted, answered=report.answered, score=report.score, interval=report.interval)

    pictures, texts = (overlaps.seen(benchmark.name, split, levels) for levels in (PICTURES, ("text",)))
    return Parts(
        manifest=overlaps.about.manifest,
        checked=structs.replace(checked, questions=[]),
        picture_seen=score(pictures),
        text_seen=score(texts),
        clean=score(frozenset(checked.questions) - frozenset(checked.left_out) - pictures - texts),
    )
