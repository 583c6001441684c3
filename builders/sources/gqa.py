"""GQA: compositional questions about Visual Genome images (cs.stanford.edu/people/dorarad/gqa)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from msgspec import Meta, Struct

from vlmix.builders import layout
from vlmix.builders.sources.by_image import by_image
from vlmix.builders.sources.duplicates import reject_repeated
from vlmix.builders.text import short, text_problem
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation, ImageRef, Round


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
    batches = []
    for path in paths:
        entries = raw.keyed(path, Question, "imageId")
        read = list(map(_columns, entries))
        if repeated := entries.repeated():
            reject_repeated(repeated, "gqa/question", "question", reject)
            read = list(map(_columns, entries))  # without those
        if any(batch["answer"].null_count for batch in read):
            raise raw.wrong(path, "its questions have no answers, as in a test split")
        batches += read
    for image, questions, answers in by_image(pa.Table.from_batches(batches)):
        yield from _conversation(image, questions, answers, options, reject)


def _columns(questions: dict[str, Question]) -> pa.RecordBatch:
    columns = {name: [getattr(q, name) for q in questions.values()] for name in ("imageId", "question", "answer")}
    return pa.record_batch(
        [pa.array(column, pa.large_string()) for column in columns.values()], ["image", "question", "answer"]
    )


def _folder(raw: RawFolder, name: str) -> list[Path]:
    for folder in (raw.folder / name, *sorted(raw.folder.glob(f"*/{name}"))):
        if files := sorted(folder.glob(f"{name}_*.json"), key=lambda p: (len(p.name), p.name)):
            for number, file in enumerate(files):
                if file.name != f"{name}_{number}.json":
                    raise raw.wrong(folder, f"{name}_{number}.json is missing, {file.name} is there")
            return files
    return []


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
