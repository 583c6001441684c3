"""Pictures with print on them: OCR-VQA's books and the signs of TextCaps."""

import json
from collections.abc import Iterator
from pathlib import Path

from true_size.catalogue import BOOK_QUESTIONS, SIGNS, TRAIN_BOOKS, VAL_BOOKS, Catalogue, url_ending
from true_size.texts import texts, write

_CAPTIONS = (
    "A {look} sign on the {place} behind a {thing} that says {thing} in {look} letters",
    "the {look} {place} has a sign with the word {thing} on it and a {look} {thing} next to it.",
)
_TITLES = (
    "The {look} {thing} of the {place}: A Novel",
    "A {place} and its {thing}s: Stories of a {look} Year in the Life of a {place}",
    "{thing} & {place}: The {look} Guide to Everything, 2nd ed.",
)
_NAMES = "Anna Bruno Clara David Elena Frank Grace Henry Irene Jonas Kate Liam Maria Noah Olga Paul Rosa Simon"
_GENRES = "Calendars Romance Travel History Law Teen Science Cookbooks Sports Religion Health Comics Humor"
_SIGN_WORDS = 'STOP Open 24 HOTEL "TEA" Harry, BUS $5 50% No EXIT Café 7UP lane SALE coca-cola LTD. A WAY #1'


def ocrvqa(raw: Path, images: Catalogue) -> None:
    """One object keyed by book, 4.8 questions each; 7 % of the authors are empty."""
    rng = images.rng("ocrvqa")
    titles = [json.dumps(title) for title in texts(_TITLES, 20_000, rng)]
    first = _NAMES.split()
    names = [f"{rng.choice(first)} {rng.choice(first)}son" for _ in range(5_000)]
    three = len(images.books) * 5 - images.count(BOOK_QUESTIONS)  # books with a question less
    fewer = set(rng.sample(range(len(images.books)), min(three, len(images.books))))
    train, val = images.count(TRAIN_BOOKS), images.count(VAL_BOOKS)

    def records() -> Iterator[str]:
        for place, key in enumerate(images.books):
            title, author, genre, other = rng.choice(titles), rng.choice(names), *rng.sample(_GENRES.split(), 2)
            if rng.random() < 0.07:
                author = ""
            asked = '"Who wrote this book?", "What is the title of this book?", "What is the genre of this book?"'
            answered = f'"{author}", {title}, "{genre}", "Yes"'
            asked += f', "Is this book related to {genre}?"'
            if place not in fewer:
                asked, answered = f'{asked}, "Is this a {other} book?"', f'{answered}, "No"'
            url = f"http://ecx.images-amazon.com/images/I/61Y5cOdHJbL{url_ending(images.odd_covers.get(key))}"
            split = 1 if place < train else 2 if place < train + val else 3
            yield (
                f'"{key}": {{"imageURL": "{url}", "questions": [{asked}], "answers": [{answered}], "title": {title}, '
                f'"authorName": "{author}", "genre": "{genre}", "split": {split}}}'
            )

    write(raw / "ocrvqa/dataset.json", "{", records(), "}")


def textcaps(raw: Path, images: Catalogue) -> None:
    """One entry per caption, each with all five of its image; Rosetta's tokens with their boxes."""
    rng = images.rng("textcaps")
    said = texts(_CAPTIONS, 9_000, rng)
    signs = list(zip(images.signs, images.sign_sizes))[: images.count(SIGNS)]

    def captions() -> Iterator[str]:
        number = 100_000_000
        for image, (width, height) in signs:
            five = rng.choices(said, k=5)
            tokens = [json.dumps(["<s>", *text.lower().split(), "</s>"]) for text in five]
            url = f"https://farm5.staticflickr.com/4052/{image}_o.jpg"
            head = (
                f'{{"image_id": "{image}", "image_classes": ["Clock", "Wall clock"], "flickr_original_url": "{url}", '
                f'"flickr_300k_url": "{url}", "image_width": {width}, "image_height": {height}, "set_name": "train", '
                f'"image_name": "{image}", "image_path": "train/{image}.jpg"'
            )
            tail = f'"reference_strs": {json.dumps(five)}, "reference_tokens": [{", ".join(tokens)}]}}'
            for text, split in zip(five, tokens):
                number += 1
                yield f'{head}, "caption_id": {number}, "caption_str": "{text}", "caption_tokens": {split}, {tail}'

    words = [json.dumps(word) for word in _SIGN_WORDS.split()]

    def read() -> Iterator[str]:
        for image, _ in signs:
            held = rng.choices(words, k=0 if rng.random() < 0.023 else rng.randint(1, 25))
            info = ", ".join(
                f'{{"word": {word}, "bounding_box": {{"width": {rng.random():.16f}, "height": 0.0305272, '
                f'"rotation": 0, "roll": 0, "pitch": 0, "yaw": 0, "top_left_x": {rng.random():.16f}, '
                f'"top_left_y": 0.3010416}}}}'
                for word in held
            )
            yield f'{{"image_id": "{image}", "ocr_tokens": [{", ".join(held)}], "ocr_info": [{info}]}}'

    head = '{"dataset_type": "train", "dataset_name": "textcaps", "dataset_version": 0.1, "data": ['
    write(raw / "textcaps/TextCaps_0.1_train.json", head, captions(), "]}")
    write(raw / "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json", '{"data": [', read(), "]}")
