"""What is compared with: the questions of evaluation sets, their pictures and the answers that their labels know."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from msgspec import Struct

from vlmix.mixture.benchmark.benchmark import EvaluationSet, Labels, Question, image_files
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.image_index import ImageIndex
from vlmix.mixture.io.images import image_xxh3
from vlmix.mixture.io.pool import Engine, Progress
from vlmix.mixture.overlaps.fingerprints import NEAR, Fingerprints, fingerprints
from vlmix.mixture.overlaps.samples import CHUNK

Facts = tuple[str, Fingerprints | None]
"""A picture's content hash ("": it is not there) and fingerprints (None: it does not decode)."""


@dataclass(frozen=True)
class Asked:
    """An evaluation set to compare with, and how."""

    set: EvaluationSet
    near: int = NEAR
    """Bits in which fingerprints of near pictures may differ."""
    flipped: bool = False
    """Pictures are looked for in a mirror, too."""


@dataclass(frozen=True)
class Questions:
    """The questions of an evaluation set."""

    name: str
    split: str
    near: int
    every: list[Question]
    shown: list[list[Question]]
    """Questions with a picture, those of one picture together."""
    facts: list[Facts] | None
    """Of each picture of `shown`; None: they were not looked at."""
    labels: Labels
    unlabelled: str
    """Why there are no labels."""

    @property
    def missing(self) -> int:
        """How many pictures were not found."""
        return sum(not hash for hash, _ in self.facts or ())

    @property
    def unreadable(self) -> list[list[Question]]:
        """Those of `shown` whose picture does not decode."""
        return [same for same, (hash, prints) in zip(self.shown, self.facts or ()) if hash and prints is None]

    @property
    def flat(self) -> list[list[Question]]:
        """Those of `shown` whose picture is of one colour."""
        return [
            same for same, (_, prints) in zip(self.shown, self.facts or ()) if prints is not None and not len(prints)
        ]


def prepare(asked: Asked, pool: Engine, progress: Progress, *, pictures: bool = True) -> Questions:
    """Read an evaluation set, with `pictures` its pictures too. Raises VlmixError if it is not there."""
    benchmark, split, folder = asked.set.benchmark, asked.set.split, asked.set.folder
    questions = benchmark.questions(folder, split)
    shown: dict[object, list[Question]] = {}
    for question in questions:
        if question.image or question.image_bytes is not None:
            held = question.image_bytes
            shown.setdefault(question.image or (held if isinstance(held, bytes) else question.id), []).append(question)
    labels, unlabelled = {}, ""
    try:
        labels = dict(benchmark.labels(folder, split))
    except VlmixError as error:
        unlabelled = str(error)
    groups = list(shown.values())
    facts = _facts(asked, [same[0] for same in groups], pool, progress) if pictures else None
    return Questions(benchmark.name, split, asked.near, questions, groups, facts, labels, unlabelled)


class _AskedJob(Struct, frozen=True):
    """Pictures of questions: by the files that may be one, or by its bytes."""

    first: int
    files: list[list[str]]
    held: list[bytes | None]
    flipped: bool


def _facts(each: Asked, questions: Sequence[Question], pool: Engine, progress: Progress) -> list[Facts]:
    """Of the picture of each question."""
    index = ImageIndex(each.set.image_roots, each.set.benchmark.images)

    def jobs() -> Iterator[_AskedJob]:
        rest, first = iter(questions), 0
        while batch := list(islice(rest, CHUNK)):
            held = [q.image_bytes() if callable(q.image_bytes) else q.image_bytes for q in batch]
            files = [[] if q.image_bytes is not None else list(map(str, image_files(q, index))) for q in batch]
            yield _AskedJob(first, files, held, each.flipped)
            first += len(batch)

    found: dict[int, list[Facts]] = {}
    done = 0
    for job, results in pool.map(_asked, jobs()):
        found[job.first] = results
        done += len(results)
        progress(f"fingerprinting {each.set.benchmark.name}", done, len(questions))
    return [result for first in sorted(found) for result in found[first]]


def _asked(job: _AskedJob) -> list[Facts]:
    """Runs in a worker."""
    results: list[Facts] = []
    for files, held in zip(job.files, job.held):
        result: Facts = ("", None)
        for data in [held] if held is not None else map(_bytes, files):
            if not data:
                continue
            result = image_xxh3(data), None
            try:
                result = result[0], fingerprints(data, crops=True, flipped=job.flipped)
            except VlmixError:
                continue
            break
        results.append(result)
    return results


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
