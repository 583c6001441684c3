"""The question and annotation files that VQAv2 and OK-VQA share: two lists, joined on `question_id`."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.builders.layout import coco
from vlmix.builders.schemas.vqa import Question, Questions
from vlmix.builders.sources.by_image import by_image
from vlmix.builders.sources.duplicates import unique
from vlmix.builders.text import Split, short, text_problem
from vlmix.mixture.build.source import RawFolder, Rejects
from vlmix.mixture.io.json_pieces import Share, Unsplit
from vlmix.mixture.keyed import Indices, distinct
from vlmix.mixture.record import Conversation, ImageRef, Round


class Answer(Struct, gc=False):
    """One worker's answer; `raw_answer` is OK-VQA's."""

    answer: str
    raw_answer: str = ""


class HasQuestion(Protocol):
    """An annotation of a question."""

    question_id: int


A = TypeVar("A", bound=HasQuestion)
_AT_ONCE = 65_536


def read_questions(raw: RawFolder, name: str, dataset: str, year: str, digits: int) -> pa.Table:
    """The questions of a file that really is `dataset`'s, as columns `image`, `id` and `question`: OK-VQA and VQA v1
    share their file names, so the description is looked at, and the arithmetic of the ids (image id followed by
    `digits` digits)."""
    path = raw.require(name)
    batches = []
    for file, questions in raw.listed(path, Questions, "questions", Question):
        if file is not None and (said := file.info.description) and dataset not in said:
            raise raw.wrong(path, f"its info says {said!r}, expected {dataset!r}")
        if file is not None and file.data_subtype not in ("", year):
            raise raw.wrong(path, f"its data_subtype is {file.data_subtype!r}, expected {year!r}")
        columns = [[q.image_id for q in questions], [q.question_id for q in questions], [q.question for q in questions]]
        batches.append(_batch(["image", "id", "question"], columns))
    table = pa.Table.from_batches(batches)
    if len(table):
        image, question_id = table["image"][0].as_py(), table["id"][0].as_py()
        if question_id // 10**digits != image:
            raise raw.wrong(path, f"question id {question_id} does not belong to image {image}")
    return table


def read_annotations(
    raw: RawFolder, path: Path, whole: type[Any], annotation: type[A], answer: Callable[[A], str]
) -> pa.Table:
    """The annotations of a file as columns `id` and `answer`."""
    return pa.Table.from_batches(_annotations(raw, path, whole, annotation, answer, None))


def read_share(
    raw: RawFolder,
    path: Path,
    whole: type[Any],
    annotation: type[A],
    answer: Callable[[A], str],
    share: Share,
    questions: pa.Table,
) -> tuple[pa.Table, pa.Table]:
    """The questions of the images that begin in a share of the annotations, and their annotations.

    Raises Unsplit unless the share holds a run of the questions in their order, the questions of an image stand
    together, and none has the id of another: then all shares together are what the whole files are.
    """
    own = pa.Table.from_batches(_annotations(raw, path, whole, annotation, answer, share))
    after = pa.table({"id": pa.array([], pa.int64()), "answer": pa.array([], pa.large_string())})
    if share.number + 1 < share.of:  # the last image's questions may go on there
        following, mended = Share(share.number + 1, share.of), dict(raw.mended)
        after = pa.Table.from_batches(islice(_annotations(raw, path, whole, annotation, answer, following), 1))
        raw.mended = mended
    ids, images = questions["id"].to_numpy(), questions["image"].to_numpy()
    both = pa.concat_tables([own, after])
    found = np.flatnonzero(ids == both["id"][0].as_py()) if len(own) else ids[:0]
    start = int(found[0]) if len(found) == 1 else -1
    borders = np.flatnonzero(np.append(True, images[1:] != images[:-1]))  # [images] the first question of each
    if (
        not np.array_equal(ids[start : start + len(both)], both["id"].to_numpy())
        or not len(ids)
        or not distinct(images[borders])
        or not distinct(ids)
        or (share.number == 0 and start != 0)
        or (not len(after) and start + len(own) != len(ids))
    ):
        raise Unsplit(f"{path}: its annotations are in another order than the questions")
    edges = np.append(borders, len(ids))
    first, last = (int(edges[np.searchsorted(edges, at)]) for at in (start, start + len(own)))
    if last > start + len(both):
        raise Unsplit(f"{path}: the questions of an image are far apart")
    return questions.slice(first, last - first), both.slice(first - start, last - first)


def _annotations(
    raw: RawFolder,
    path: Path,
    whole: type[Any],
    annotation: type[A],
    answer: Callable[[A], str],
    share: Share | None,
) -> Iterator[pa.RecordBatch]:
    for _, annotations in raw.listed(path, whole, "annotations", annotation, share):
        columns = [[a.question_id for a in annotations], [answer(a) for a in annotations]]
        yield _batch(["id", "answer"], columns)


def merge(
    source: str, split: Split, questions: pa.Table, annotations: pa.Table, capitalize: bool, reject: Rejects
) -> Iterator[Conversation]:
    """One conversation per image, its questions in file order (LLaVA-1.5, appendix A.2)."""
    kept = _once(annotations, ["answer"], lambda i: f"{source}/question/{annotations['id'][i]}", "annotation", reject)
    asked_once = _once(
        questions,
        questions.column_names,
        lambda i: f"{source}/{questions['image'][i].as_py():012d}",
        "question",
        reject,
    )
    asked, answered = asked_once["id"].to_numpy(), kept["id"].to_numpy()
    images = asked_once["image"].to_numpy()
    at = _places(asked, answered)
    for i in np.flatnonzero(at < 0).tolist():
        reject(f"{source}/{images[i]:012d}", "no_annotation", f"question {asked[i]}: it has no annotation", round=0)
    if len(asked) != len(answered) or (at < 0).any():
        for question_id in answered[np.isin(answered, asked, invert=True)].tolist():
            reject(f"{source}/question/{question_id}", "no_question", f"annotation {question_id} has no question")
    # Few answers are given many times: each is made short once.
    given = kept["answer"].take(at[at >= 0]).combine_chunks().dictionary_encode()
    shortened = [short(answer, capitalize) for answer in given.dictionary.to_pylist()]
    table = asked_once.filter(pa.array(at >= 0))
    usable = np.ones(len(table), dtype=np.bool_)
    for first in range(0, len(table), _AT_ONCE):
        texts = table["question"].slice(first, _AT_ONCE).to_pylist()
        for i, (question, code) in enumerate(
            zip(texts, given.indices[first : first + _AT_ONCE].to_numpy().tolist()), first
        ):
            if problem := text_problem(question, shortened[code]):
                usable[i] = False
                image, detail = table["image"][i].as_py(), f"question {table['id'][i]}: {problem[1]}"
                reject(f"{source}/{image:012d}", problem[0], detail, round=0)
    table = table.append_column("answer", pa.array(shortened, pa.large_string()).take(given.indices))
    for image, texts, answers in by_image(table if usable.all() else table.filter(pa.array(usable))):
        yield Conversation(
            id=f"{source}/{image:012d}",
            source=source,
            rounds=tuple(Round(question, answer, "short_answer") for question, answer in zip(texts, answers)),
            images=(ImageRef(coco(split, image)),),
        )


def _once(table: pa.Table, same: Sequence[str], name: Callable[[int], str], what: str, reject: Rejects) -> pa.Table:
    """The rows without those whose `id` another has: as `unique` keeps them, by the columns that have to agree. `name`
    makes the id of a reject from that of a row."""
    ids = table["id"].to_numpy()
    if distinct(ids):
        return table
    by_id = unique(
        range(len(ids)),
        lambda i: int(ids[i]),
        reject,
        name,
        what,
        lambda i: [table[column][i].as_py() for column in same],
    )
    return table.take(list(by_id.values()))


def _places(wanted: NDArray[np.int64], ids: NDArray[np.int64]) -> Indices:
    """[len(wanted)] int64: where each is in `ids`, -1 for nowhere."""
    if np.array_equal(wanted, ids):  # as in the official files
        return np.arange(len(ids))
    order = np.argsort(ids, kind="stable")
    at = np.searchsorted(ids, wanted, sorter=order)
    found = np.append(order, -1)[np.minimum(at, len(ids))]
    found[(found < 0) | (np.append(ids, -1)[found] != wanted)] = -1
    return found


def _batch(names: Sequence[str], columns: Sequence[Any]) -> pa.RecordBatch:
    """Columns of whole numbers and texts."""
    types = [pa.large_string() if name in ("question", "answer") else pa.int64() for name in names]
    return pa.record_batch([pa.array(column, type) for column, type in zip(columns, types)], list(names))
