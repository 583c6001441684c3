"""A model on benchmarks: questions answered in batches by one or several processes, resumable, then scored.

`OUT/<benchmark>/` gets `answers.jsonl` in LLaVA's form and, where labels are public, `report.json` and, with what each
question adds to the score, `values.parquet`. Every rank appends to a file of its own as it goes; a question that any of
them has answered is not asked again.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from vlmix.mixture.benchmark.answers import Answer, Answers, read_answers
from vlmix.mixture.benchmark.benchmark import REPORT_NAME, Benchmark, EvaluationSet, Question, Report, image_files
from vlmix.mixture.benchmark.values import NAME as VALUES_NAME
from vlmix.mixture.dataset.manifest import NAME as MANIFEST_NAME
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import disk_errors, write_text
from vlmix.mixture.io.image_index import ImageIndex
from vlmix.mixture.io.locks import exclusive_lock
from vlmix.train.batches import UNREADABLE
from vlmix.train.config import EvalConfig
from vlmix.train.evaluate.generate import Generator
from vlmix.train.images import decode
from vlmix.train.parallel import Ranks, init_distributed

ANSWERS = "answers.jsonl"

Progress = Callable[[str, int, int], None]
"""Called with progress: (benchmark, questions answered on this rank, questions of this rank)."""


@dataclass(frozen=True, kw_only=True)
class Task(EvaluationSet):
    """What is asked, and how."""

    batch_size: int = 16
    max_new_tokens: int = 0
    """0: what LLaVA-1.5 allowed the benchmark."""
    limit: int = 0
    """The first so many questions; 0: all. A score of a part is one of that part."""

    @classmethod
    def of(cls, benchmark: Benchmark, config: EvalConfig, batch_size: int) -> "Task":
        """As a recipe has it."""
        return cls(
            benchmark=benchmark,
            data=Path(config.data) if config.data else None,
            images=tuple(Path(root) for root in config.images),
            split=config.split,
            limit=config.limit,
            max_new_tokens=config.max_new_tokens,
            batch_size=batch_size,
        )

    def asked(self) -> list[Question]:
        """The questions, those of the benchmark up to the limit."""
        return self.benchmark.questions(self.folder, self.split)[: self.limit or None]


class Unscored(Struct, frozen=True):
    """Answers without a score."""

    why: str


def evaluate(
    model: str, tasks: Sequence[Task], out: Path, progress: Progress = lambda *_: None
) -> list[Report | Unscored]:
    """The reports of a model on benchmarks; unscored where a judge is needed or the labels are not there.

    With several ranks (torchrun) all get the same reports. Raises VlmixError for benchmarks that cannot be asked, and
    where `out` holds answers of another model or to other questions.
    """
    with init_distributed() as me:
        return evaluate_on(me, model, tasks, out, progress)


def evaluate_on(
    me: Ranks, model: str, tasks: Sequence[Task], out: Path, progress: Progress = lambda *_: None
) -> list[Report | Unscored]:
    """The same by processes that work together already."""
    if (out / MANIFEST_NAME).exists():
        me.abort(VlmixError(f"{out} is a mixture, to which nothing may be added; choose another --out"))
    generator = me.run_on_all(lambda: Generator(model, me.device))
    return [_one(generator, model, task, out / task.benchmark.name, me, progress) for task in tasks]


def check(task: Task) -> None:
    """Raises VlmixError where a task cannot be asked or scored: no questions, a judge, no labels, no first image."""
    benchmark = task.benchmark
    if benchmark.needs_judge:
        raise VlmixError(f"{benchmark.name}: a judge says what answers are worth; ask the finished model instead")
    questions = benchmark.questions(task.folder, task.split)
    if not questions:
        raise VlmixError(f"{benchmark.name}: no questions in {task.folder}")
    first = questions[0]
    _image(first, ImageIndex(task.image_roots, benchmark.images), benchmark)
    row = Answer(question_id=first.id, text="", prompt=first.text)
    benchmark.scored(Answers([row], asked=frozenset([first.id])), task.folder, task.split)


def _one(
    generator: Generator, model: str, task: Task, folder: Path, me: Ranks, progress: Progress
) -> Report | Unscored:
    questions: list[Question] = me.run_on_all(task.asked)
    me.run_on_main(lambda: _make(folder))
    with exclusive_lock(folder) if me.is_main else nullcontext(True) as mine:
        done: set[str] = me.run_on_main(lambda: _begin(folder, _identity(generator, task, questions), mine))
        return _ask(generator, model, task, questions, done, folder, me, progress)


def _ask(
    generator: Generator,
    model: str,
    task: Task,
    questions: list[Question],
    done: set[str],
    folder: Path,
    me: Ranks,
    progress: Progress,
) -> Report | Unscored:
    benchmark = task.benchmark
    # Long prompts first: a batch holds similar lengths, and what does not fit shows at once.
    pending = sorted((q for q in questions if q.id not in done), key=lambda q: (-len(q.text), q.id))
    mine = pending[me.rank :: me.world]
    index = ImageIndex(task.image_roots, benchmark.images)

    def answer() -> None:
        part = folder / f"part-{me.rank:05d}.jsonl"
        for start in range(0, len(mine), task.batch_size):
            batch = mine[start : start + task.batch_size]
            asked = [(question.text, _image(question, index, benchmark)) for question in batch]
            texts = generator.answers(asked, task.max_new_tokens or benchmark.max_new_tokens)
            rows = [
                {"question_id": question.id, "prompt": question.text, "text": text, "model_id": model}
                for question, text in zip(batch, texts)
            ]
            with disk_errors(part), part.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
            progress(benchmark.name, start + len(batch), len(mine))

    me.run_on_all(answer)
    report: Report | Unscored = me.run_on_main(lambda: _finish(benchmark, questions, task, folder))
    return report


def _finish(benchmark: Benchmark, questions: list[Question], task: Task, folder: Path) -> Report | Unscored:
    """One file of answers in the questions' order, and the score."""
    texts = {row.question_id: row for part in _parts(folder) for row in read_answers(part, strict=False).rows}
    rows = [{"question_id": q.id, "prompt": q.text, "text": texts[q.id].text} for q in questions if q.id in texts]
    write_text(folder / ANSWERS, "".join(json.dumps(row) + "\n" for row in rows))
    if benchmark.needs_judge:
        return Unscored(f"a judge says what answers are worth; vlmix score {benchmark.name} asks one")
    try:
        answers = read_answers(folder / ANSWERS)
        if task.limit:
            answers.asked = frozenset(question.id for question in questions)
        report, values = benchmark.scored(answers, task.folder, task.split)
    except VlmixError as error:
        if benchmark.submit is not None:  # the labels may stay with the test server
            return Unscored(str(error))
        raise
    if task.limit:
        report.notes.append(f"the first {len(questions):,} questions alone")
    if values is not None:
        values.write(folder / VALUES_NAME)
    write_text(folder / REPORT_NAME, msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    return report


def _image(question: Question, index: ImageIndex, benchmark: Benchmark) -> bytes | None:
    if (held := question.image_bytes) is not None:
        data = held if isinstance(held, bytes) else held()
        try:
            decode(data)
        except UNREADABLE as error:
            raise VlmixError(f"{benchmark.name}: question {question.id}: its image cannot be read: {error}") from None
        return data
    if not question.image:
        return None
    for path in image_files(question, index):
        try:
            data = path.read_bytes()
            decode(data)
        except UNREADABLE:
            continue
        return data
    roots = ", ".join(str(root) for root in index.roots)
    raise VlmixError(
        f"{benchmark.name}: question {question.id}: no readable image {question.image} below {roots}; "
        "--images names the folder that holds it"
    )


def _parts(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("part-*.jsonl")) if path.stat().st_size]


def _answered(folder: Path) -> set[str]:
    """Ids that have an answer. A line that a killed process left half written is closed, and its question asked
    again."""
    for part in _parts(folder):
        data = part.read_bytes()
        if not data.endswith(b"\n"):
            part.write_bytes(data[: data.rfind(b"\n") + 1])
    return {row.question_id for part in _parts(folder) for row in read_answers(part, strict=False).rows}


def _identity(generator: Generator, task: Task, questions: list[Question]) -> dict[str, str]:
    """What answers belong to: the model's weights, the questions, and how long answers may be."""
    weights = hashlib.sha256()
    for name, tensor in sorted(generator.model.state_dict().items()):
        # A sample of every weight distinguishes models without reading tens of gigabytes.
        flat = tensor.flatten()
        few = flat[:: max(1, len(flat) // 64)].float().cpu()
        weights.update(name.encode() + str(tuple(tensor.shape)).encode() + few.numpy().tobytes())
    lines = [f"{question.id}\t{question.text}" for question in questions]
    if task.benchmark.own is not None:  # whose images change with it
        lines = [f"{line}\t{question.image}" for line, question in zip(lines, questions)]
    asked = hashlib.sha256("\n".join(lines).encode())
    return {
        "model": weights.hexdigest(),
        "questions": asked.hexdigest(),
        "max_new_tokens": str(task.max_new_tokens or task.benchmark.max_new_tokens),
    }


def _make(folder: Path) -> None:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _begin(folder: Path, identity: dict[str, str], mine: bool) -> set[str]:
    """Ids that have an answer already. Raises VlmixError if another process writes there, or the folder's answers are
    not of this identity."""
    if not mine:
        raise VlmixError(f"{folder} is being written by another evaluation; wait for it or choose another --out")
    path = folder / "asked.json"
    if not path.exists():
        write_text(path, json.dumps(identity, indent=1) + "\n")
    before = json.loads(path.read_text())
    if other := sorted(key for key in identity if before.get(key) != identity[key]):
        raise VlmixError(f"{folder} holds answers with other {' and '.join(other)}; choose another --out")
    return _answered(folder)
