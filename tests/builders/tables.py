"""Tables of rows in all forms and containers, written by the libraries that people write them with."""

import base64
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pil

TEXTS = Features(
    {
        "images": [Image()],
        "texts": [{"user": Value("string"), "assistant": Value("string")}],
        "source": Value("string"),
        "relevance_ratings": [Value("int64")],
        "relevance_min": Value("int64"),
    }
)
CONVERSATIONS = Features(
    {
        "id": Value("string"),
        "image": Image(),
        "conversations": [{"from": Value("string"), "value": Value("string")}],
        "data_source": Value("string"),
    }
)
BLOCK = {"type": Value("string"), "text": Value("string")}
MESSAGES = Features({"messages": [{"role": Value("string"), "content": [BLOCK]}], "images": [Image()]})


def picture(number: int, format: str = "JPEG", mode: str = "RGB") -> bytes:
    """The bytes of a small picture, another for each number."""
    rng = random.Random(number)
    out = io.BytesIO()
    image = Pil.frombytes(
        "RGB", (24 + number % 7, 16 + number % 5), rng.randbytes((24 + number % 7) * (16 + number % 5) * 3)
    )
    image.convert(mode).save(out, format)
    return out.getvalue()


def embedded(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def texts_row(number: int) -> dict[str, Any]:
    """Of 0 to 5 images and one to three rounds, with ratings, one of them null."""
    rounds = 1 + number % 3
    return {
        "images": [embedded(picture(10 * number + i)) for i in range(number % 6)] or None,
        "texts": [{"user": f"What is {number}.{i}?", "assistant": f"It is {number}.{i}."} for i in range(rounds)],
        "source": "upstream",
        "relevance_ratings": [None if number == 3 else 1 + (number + i) % 5 for i in range(rounds)],
        "relevance_min": None if number == 3 else 1 + number % 5,
    }


def write_texts(folder: Path, count: int = 24, files: int = 2, group: int = 4) -> list[dict[str, Any]]:
    rows = [texts_row(number) for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        part = rows[number * count // files : (number + 1) * count // files]
        path = folder / f"train-{number:05d}-of-{files:05d}.parquet"
        Dataset.from_list(part, features=TEXTS).to_parquet(path, batch_size=group)
    return rows


def write_conversations(path: Path, count: int = 12) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        has = number % 3 != 0
        turns = [
            {"from": "human", "value": f"{'<image>' * has}{chr(10) * has}What is {number}?"},
            {"from": "gpt", "value": f"It is {number}."},
        ]
        image = embedded(picture(number)) if has else None
        rows.append({"id": f"row {number}", "image": image, "conversations": turns, "data_source": "a"})
    Dataset.from_list(rows, features=CONVERSATIONS).to_parquet(path)
    return rows


def message(role: str, *blocks: str | None) -> dict[str, Any]:
    """A message of texts, None standing for an image."""
    content = [{"type": "image", "text": None} if text is None else {"type": "text", "text": text} for text in blocks]
    return {"role": role, "content": content}


def write_messages(path: Path) -> list[dict[str, Any]]:
    talks: Sequence[list[dict[str, Any]]] = (
        [message("user", None, "What?"), message("assistant", "That.")],
        [message("user", "Hello."), message("assistant", "Hi.")],
        [message("system", "Be short."), message("user", None, None, "Which?"), message("assistant", "Both.")],
        [message("user", "First ", None, " then ", None, "?"), message("assistant", "Yes."),
         message("user", "And ", None, "?"), message("assistant", "No.")],
    )  # fmt: skip
    rows = []
    for number, talk in enumerate(talks):
        images = sum(block["type"] == "image" for turn in talk for block in turn["content"])
        rows.append({"messages": talk, "images": [embedded(picture(100 * number + i)) for i in range(images)]})
    Dataset.from_list(rows, features=MESSAGES).to_parquet(path)
    return rows


def write_saved(folder: Path, count: int = 9) -> None:
    Dataset.from_list([texts_row(number) for number in range(count)], features=TEXTS).save_to_disk(folder)


def write_csv(folder: Path, count: int = 6) -> Path:
    """Questions with answers about PNGs with an alpha channel beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,question,answer,width"]
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number, "PNG", "RGBA"))
        lines.append(f'{number}.png,"What, if any, is {number}?",{number:03d},{number}')
    path = folder / "questions.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, count: int = 6) -> Path:
    """Choices about images in base64."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            image = base64.b64encode(picture(number)).decode()
            row = {
                "image": image,
                "question": f"Which is {number}?",
                "options": ["a", "b", "c"],
                "answer": "ABC"[number % 3],
            }
            file.write(json.dumps(row) + "\n")
    return path


def write_tar(path: Path, count: int = 6) -> Path:
    """Samples of webdataset's own writer, with several images each."""
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for number in range(count):
            turns = [
                {"from": "human", "value": f"<image>\nOr <image>, {number}?"},
                {"from": "gpt", "value": f"Yes, {number}."},
            ]
            images = {"jpg": picture(2 * number), "1.jpg": picture(2 * number + 1)}
            tar.write({"__key__": f"a/{number:04d}", **images, "json": {"conversations": turns, "score": number / 2}})
    return path


def write_captions(path: Path, count: int = 5) -> Path:
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for number in range(count):
            tar.write({"__key__": f"{number:04d}", "png": picture(number, "PNG", "P"), "txt": f"Caption {number}."})
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 1000) -> Path:
    """Rows as pyarrow alone writes them."""
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def write_all(folder: Path) -> Path:
    """A table of every form and container, which `ENTRIES` name, with samples of 0 to 5 images."""
    write_texts(folder / "docs")
    write_saved(folder / "saved")
    write_conversations(folder / "conversations.parquet")
    write_messages(folder / "messages.parquet")
    write_csv(folder / "csv")
    write_jsonl(folder / "choices.jsonl")
    write_tar(folder / "shard-000000.tar")
    write_captions(folder / "captions.tar")
    return folder


COUNTS = {
    "texts": 24,
    "saved": 9,
    "conversations": 12,
    "messages": 4,
    "qa": 6,
    "choices": 6,
    "webdataset": 6,
    "captions": 5,
}
"""Name of each entry -> its rows."""
ENTRIES: dict[str, dict[str, Any]] = {
    "texts": {"builder": "rows", "path": "docs"},
    "saved": {"builder": "rows", "path": "saved", "ids": "content"},
    "conversations": {"builder": "rows", "path": "conversations.parquet"},
    "messages": {"builder": "rows", "path": "messages.parquet"},
    "qa": {"builder": "rows", "path": "csv/questions.csv", "columns": {"row_width": "width"}},
    "choices": {"builder": "rows", "path": "choices.jsonl"},
    "webdataset": {"builder": "rows", "path": "shard-*.tar"},
    "captions": {"builder": "rows", "path": "captions.tar"},
}
"""The sources of a recipe over what `write_all` writes."""
