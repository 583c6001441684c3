"""OCR-VQA: books with template questions; covers with the wrong, broken and missing files that downloads leave."""

import io
from random import Random
from typing import Any

from PIL import Image

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder, jpeg
from vlmix.builders.miniature.printed import GENRES, Book, compose_book, draw_book
from vlmix.builders.miniature.texts import other_than

WHO = ("Who wrote this book?", "Who is the author of this book?")
WHAT = ("What type of book is this?", "What is the genre of this book?")
RELATED = ("Is this book related to {}?", "Is this a {} book?")


def books(seed: int, count: int) -> list[Book]:
    """The books; two of them with the author the real list has for want of one."""
    found = []
    authors = {RECORD["ocrvqa-author-empty"]: "", RECORD["ocrvqa-author-star"]: "*"}
    for index in range(count):
        book = compose_book(Random(f"{seed}/ocrvqa/book/{index}"))
        author = authors.get(ids.book(index), book.author)
        found.append(Book(book.title, author, book.genre, book.year))
    return found


def questions(rng: Random, book: Book) -> list[tuple[str, str]]:
    """Three to five pairs in upstream's order: author, title, genre, a yes question, a no question or the year."""
    asked = [(rng.choice(WHO), book.author)] if book.author else []
    asked += [("What is the title of this book?", book.title), (rng.choice(WHAT), book.genre)]
    asked.append((rng.choice(RELATED).format(book.genre), "Yes"))
    asked.append((rng.choice(RELATED).format(other_than(rng, list(GENRES), book.genre)), "No"))
    if book.genre == "Calendars":
        asked[-1] = ("What is the year printed on this calendar?", str(book.year))
    # Upstream 80 % of the books have five questions, 19 % four.
    return asked[: len(asked) - rng.choice((0, 0, 0, 0, 1))]


def write_ocrvqa(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    records: dict[str, Any] = {}
    train, val = sizes["ocrvqa_train"], sizes["ocrvqa_val"]
    for index, book in enumerate(books(seed, train + val)):
        key = ids.book(index)
        pairs = questions(Random(f"{seed}/ocrvqa/questions/{index}"), book)
        records[key] = {
            "questions": [question for question, _ in pairs],
            "answers": [answer for _, answer in pairs],
            "split": 1 if index < train else 2 + index % 2,
        }
        _write_cover(folder, key, draw_book(book))
    folder.json("ocrvqa/dataset.json", records, len(records))


def _write_cover(folder: Folder, key: str, cover: Image.Image) -> None:
    name, data = f"{key}.jpg", jpeg(cover)
    if name == RECORD["ocrvqa-image-missing"]:
        return
    if name == RECORD["ocrvqa-image-truncated"]:
        data = data[: len(data) * 3 // 5]
    if f"{key}.png" == RECORD["ocrvqa-png"]:
        name = f"{key}.png"
    if name in (RECORD["ocrvqa-png"], RECORD["ocrvqa-gif"]):
        buffer = io.BytesIO()
        cover.save(buffer, "PNG" if name.endswith("png") else "GIF")
        data = buffer.getvalue()
    folder.image(f"ocr_vqa/images/{name}", data)
