"""GQA: compositional questions about Visual Genome images (cs.stanford.edu/people/dorarad/gqa)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct

from vlmix.builders import layout
from vlmix.builders.sources.duplicates import reject_repeated
from vlmix.builders.text import short, text_problem
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation, ImageRef, Round

_IMAGES_AT_ONCE = 2000


class GqaOptions(Options, frozen=True, kw_only=True):
    split: Annotated[Literal["train", "val", "testdev"], Meta(description="official split")] = "train"
    questions: Annotated[
        Literal["balanced", "all"], Meta(description="LLaVA takes `balanced`; train's `all` is a folder of ten files")
    ] = "balanced"
    capitalize: Annotated[bool, Meta(description="answers through str.capitalize(), as in LLaVA's rows")] = True


class Question(Struct, gc=False):
    imageId: str
    question: str
    answer: str | None = None


def read(raw: RawFolder, options: GqaOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per image with all its questions in file order; images in the order of their first question.

    The questions of an image may be spread over the files of a folder, so all are held, as Arrow columns.
    """
    name = f"{options.split}_{options.questions}_questions"
    single = raw.find(f"{name}.json")
    if single is None and options.questions == "all" and (folder := _folder(raw, name)):
        paths = folder
    else:
        paths = [single or raw.require(f"{name}.json")]
    columns: dict[str, list[pa.Array]] = {"image": [], "question": [], "answer": []}
    for path in paths:
        questions, repeated = raw.keyed(path, Question, "imageId")
        reject_repeated(repeated, "gqa/question", "question", reject)
        if any(q.answer is None for q in questions.values()):
            raise raw.wrong(path, "its questions have no answers, as in a test split")
        columns["image"].append(pa.array([q.imageId for q in questions.values()], pa.large_string()))
        columns["question"].append(pa.array([q.question for q in questions.values()], pa.large_string()))
        columns["answer"].append(pa.array([q.answer for q in questions.values()], pa.large_string()))
        del questions
    table = pa.table({name: pa.chunked_array(chunks, pa.large_string()) for name, chunks in columns.items()})
    yield from _merge(table.combine_chunks(), options, reject)


def _folder(raw: RawFolder, name: str) -> list[Path]:
    for folder in (raw.folder / name, *sorted(raw.folder.glob(f"*/{name}"))):
        if files := sorted(folder.glob(f"{name}_*.json"), key=lambda p: (len(p.name), p.name)):
            for number, file in enumerate(files):
                if file.name != f"{name}_{number}.json":
                    raise raw.wrong(folder, f"{name}_{number}.json is missing, {file.name} is there")
            return files
    return []


def _merge(table: pa.Table, options: GqaOptions, reject: Rejects) -> Iterator[Conversation]:
    encoded = table["image"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    for first in range(0, len(names), _IMAGES_AT_ONCE):
        last = min(first + _IMAGES_AT_ONCE, len(names))
        start = int(ends[first - 1]) if first else 0
        part = table.take(order[start : int(ends[last - 1])])
        questions, answers = part["question"].to_pylist(), part["answer"].to_pylist()
        at = 0
        for code in range(first, last):
            end = int(ends[code]) - start
            yield from _conversation(names[code], questions[at:end], answers[at:end], options, reject)
            at = end


def _conversation(
    image: str, questions: list[str], answers: list[str], options: GqaOptions, reject: Rejects
) -> Iterator[Conversation]:
    rounds = []
    for number, (question, answer) in enumerate(zip(questions, answers)):
        if problem := text_problem(question, answer):
            reject(f"gqa/{image}", *problem, round=number)
        else:
            rounds.append(Round(question, short(answer, options.capitalize), "short_answer"))
    if rounds:
        # LLaVA's rows have integer ids; `n…` images (testdev) cannot.
        origin = json.dumps({"id": int(image)}) if image.isdecimal() and str(int(image)) == image else ""
        yield Conversation(
            id=f"gqa/{image}",
            source="gqa",
            rounds=tuple(rounds),
            images=(ImageRef(f"gqa/images/{image}.jpg"),),
            extra=origin,
        )


SOURCE = Source(
    name="gqa",
    title="GQA",
    homepage="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    license="CC BY 4.0; images Visual Genome (Flickr terms)",
    response_formats=("short_answer",),
    files=(
        RawFile("{split}_balanced_questions.json", "balanced questions"),
        RawFile("train_all_questions/train_all_questions_*.json", "all questions, ten files", optional=True),
    ),
    read=read,
    options=GqaOptions,
    images=layout.GQA,
)
