"""TextCaps captions, Rosetta OCR tokens and TextVQA questions, all over the same pictures of signs."""

from random import Random

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder, Record
from vlmix.builders.miniature.printed import Sign, compose_sign, draw_sign
from vlmix.builders.miniature.scenes import PLACES

SPECIAL = {
    RECORD["textcaps-no-token"]: (),
    RECORD["textcaps-token-comma"]: ("FISH,", "TEA"),
    RECORD["textcaps-token-quotes"]: ('"OPEN"', "ZOO"),
    RECORD["textcaps-token-not-ascii"]: ("HOTEL™", "TEA"),
}
"""Words on the signs whose token lists are irregular: the picture shows exactly them. Pillow's embedded font has ASCII
and a few marks; the trade mark sign is one of them."""

GREY = RECORD["textcaps-grey"].removesuffix(".jpg")


def sign_of(seed: int, index: int) -> Sign:
    """The sign behind image `index`; about one in twenty is blank beyond the one that is named."""
    rng = Random(f"{seed}/textcaps/{index}")
    image_id = ids.sign(index)
    if image_id not in SPECIAL and image_id != GREY and rng.random() < 0.05:
        return compose_sign(rng, ())
    return compose_sign(rng, SPECIAL.get(image_id))


def captions(sign: Sign, grey: bool) -> list[str]:
    """Five captions, with and without a full stop; a grey picture's captions name no colour."""
    board = "sign" if grey else f"{sign.color} sign"
    place = PLACES[sign.scene.place].phrase
    if not sign.words:
        return [
            f"A blank {board} on a pole {place}.",
            f"An empty {board}",
            f"a {board} without words {place}",
            f"The {board} says nothing.",
            f"There is no text on the {board}.",
        ]
    text = " ".join(sign.words)
    article = "An" if board[0] == "o" else "A"
    return [
        f"{article} {board} that says {text}",
        f"{text} is written on the {board}.",
        f"{article.lower()} {board} {place} with the words {text}",
        f"The {board} on the pole reads {text}.",
        f"{article} {board} {place}, its first word is {sign.words[0]}.",
    ]


def asked(sign: Sign, grey: bool) -> list[tuple[str, str]]:
    """TextVQA questions, lower case, with their answers."""
    pairs = [("what does the sign say?", " ".join(sign.words).lower() or "unanswerable")]
    if not grey:
        pairs.append(("what color is the sign?", sign.color))
    if len(sign.words) > 1:
        pairs.append(("what is the first word on the sign?", sign.words[0].lower()))
    return pairs


def write_textcaps(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    """Captions, tokens and questions of both splits, and the pictures of both in train_images."""
    train, val = sizes["textcaps_train"], sizes["textcaps_val"]
    for part, span in (("train", range(train)), ("val", range(train, train + val))):
        files: dict[tuple[str, str], list[Record]] = {
            ("textcaps", "TextCaps_0.1"): [],
            ("textvqa", "TextVQA_0.5.1"): [],
            ("textvqa_rosetta_ocr", "TextVQA_Rosetta_OCR_v0.2"): [],
        }
        caption_rows, question_rows, token_rows = files.values()
        for index in span:
            image_id, sign, rng = ids.sign(index), sign_of(seed, index), Random(f"{seed}/textvqa/{index}")
            grey = image_id == GREY
            picture = draw_sign(sign)
            folder.picture(f"textvqa/train_images/{image_id}.jpg", picture.convert("L") if grey else picture)
            token_rows.append({"image_id": image_id, "ocr_tokens": list(sign.words)})
            for text in captions(sign, grey):
                # image_path says train/ for pictures that lie in train_images/, for both splits, as upstream.
                row: Record = {"image_id": image_id, "image_path": f"train/{image_id}.jpg", "caption_str": text}
                caption_rows.append({**row, "image_width": picture.width, "image_height": picture.height})
            for number, (question, answer) in enumerate(asked(sign, grey)):
                last = rng.choice((answer, "unanswerable"))
                answers = rng.sample([answer] * 8 + [f"{answer} ", last], 10)
                row = {"question_id": 10 * index + number, "image_id": image_id}
                question_rows.append({**row, "question": question, "answers": answers})
        for (dataset, file), rows in files.items():
            data = {"dataset_type": part, "dataset_name": dataset, "data": rows}
            folder.json(f"textcaps/{file}_{part}.json", data, len(rows))
