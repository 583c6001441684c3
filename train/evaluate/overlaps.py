"""Scores on the questions that a model has seen in training and on the rest: `OUT/<benchmark>/overlaps.json` beside a
report."""

import json
from pathlib import Path

import msgspec

from vlmix.mixture.benchmark.answers import read_answers
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import write_text
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.overlaps import table
from vlmix.mixture.overlaps.scores import NAME, Parts, overlaps_of, scores
from vlmix.mixture.overlaps.table import Overlaps
from vlmix.train.card import DATA_NAME
from vlmix.train.config import load
from vlmix.train.evaluate.evaluate import ANSWERS, Task
from vlmix.train.export import MODEL


def seen_by(path: Path, model: str) -> tuple[Overlaps, str]:
    """The overlaps file at `path` as one of the mixture that a run trained on, and why that is not known, "" where it
    is. A run on a view may have the file of the mixture that it is a view of. Raises VlmixError for the file of another
    mixture, and for a run on several."""
    overlaps, run = table.read(path), Path(model)
    run = run.parent if run.name == MODEL and not (run / DATA_NAME).exists() else run
    unknown = f"whether {path} is of the mixture that {model} was trained on is not known"
    if not (run / DATA_NAME).is_file():
        return overlaps, f"{unknown}, as it is not the folder of a run"
    try:
        data = json.loads((run / DATA_NAME).read_text(encoding="utf-8"))
        manifests = data.get("manifests", [])
    except (OSError, ValueError, AttributeError) as error:
        raise VlmixError(f"{run / DATA_NAME}: {error}; the run's folder is damaged") from None
    if not manifests:
        return overlaps, f"{unknown}, as its {DATA_NAME} does not name its manifest"
    if len(manifests) > 1:
        raise VlmixError(f"{model} was trained on {len(manifests)} mixtures, and {path} is of one of them at most")
    if manifests == [overlaps.about.manifest]:
        return overlaps, ""
    mixture = load(run / "recipe.yaml").mixture
    try:
        trained = open_mixture(mixture) if isinstance(mixture, str) else None
    except VlmixError:
        trained = None
    if trained is None or table.identity(trained) != manifests[0]:  # moved, or built anew since
        raise VlmixError(
            f"{path} is of {overlaps.about.mixture}, with the manifest {overlaps.about.manifest[:12]}…; {model} was "
            f"trained on {data.get('mixture')}, with {manifests[0][:12]}…, which is not at {mixture} now. Run `vlmix "
            "overlaps` with the mixture of the run"
        )
    return overlaps_of(path, trained), ""


def check(overlaps: Overlaps, task: Task) -> None:
    """Raises VlmixError where a task's questions are not those that were compared."""
    known = set(overlaps.checked(task.benchmark.name, task.split).questions)
    for question in task.asked():
        if question.id not in known:
            raise VlmixError(
                f"{task.benchmark.name}: question {question.id} was not compared: the overlaps are with other files of "
                "the benchmark; run `vlmix overlaps` with these"
            )


def score_parts(overlaps: Overlaps, task: Task, folder: Path, file: Path) -> Parts:
    """The scores of the answers in a folder by parts, which are kept beside them; `file` has the overlaps."""
    answers = read_answers(folder / ANSWERS)
    if task.limit:
        answers.asked = frozenset(question.id for question in task.asked())
    parts = scores(task.benchmark, answers, task.folder, task.split, overlaps)
    parts = msgspec.structs.replace(parts, file=sha256(file))
    write_text(folder / NAME, msgspec.json.format(msgspec.json.encode(parts)).decode() + "\n")
    return parts
