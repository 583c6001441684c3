"""TextCaps captions, Rosetta OCR tokens and TextVQA questions, all over the same pictures of signs."""

from random import Random
from typing import Any

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder
from vlmix.builders.miniature.printed import Sign, compose_sign, draw_sign
from vlmix.builders.miniature.scenes import PLACES

Record = dict[str, Any]

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


def tokens(text: str) -> list[str]:
    """Lower-case words between the marks that TextCaps puts around them."""
    return ["<s>", *text.lower().replace(".", "").replace(",", "").split(), "</s>"]


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
        caption_rows: list[Record] = []
        token_rows: list[Record] = []
        question_rows: list[Record] = []
        for index in span:
            image_id, sign = ids.sign(index), sign_of(seed, index)
            grey = image_id == GREY
            picture, boxes = draw_sign(sign)
            folder.picture(f"textvqa/train_images/{image_id}.jpg", picture.convert("L") if grey else picture)
            shared = _shared(image_id, sign)
            token_rows.append(_token_row(image_id, sign, boxes))
            caption_rows += _caption_rows(shared, part, index, captions(sign, grey))
            question_rows += _question_rows(Random(f"{seed}/textvqa/{index}"), shared, part, index, asked(sign, grey))
        head = {"dataset_type": part, "dataset_name": "textcaps", "dataset_version": 0.1}
        folder.json(f"textcaps/TextCaps_0.1_{part}.json", {**head, "data": caption_rows}, len(caption_rows))
        head = {"dataset_type": part, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        folder.json(f"textcaps/TextVQA_0.5.1_{part}.json", {**head, "data": question_rows}, len(question_rows))
        head = {"dataset_type": part, "dataset_name": "textvqa_rosetta_ocr", "dataset_version": "0.2"}
        folder.json(f"textcaps/TextVQA_Rosetta_OCR_v0.2_{part}.json", {**head, "data": token_rows}, len(token_rows))


def _shared(image_id: str, sign: Sign) -> Record:
    classes = ["Sign", "Billboard"] if sign.scene.place == "room" else ["Traffic sign", "Street sign"]
    return {
        "image_id": image_id,
        "image_classes": classes,
        "flickr_original_url": f"https://example.org/flickr/{image_id}_o.jpg",
        "flickr_300k_url": f"https://example.org/flickr/{image_id}_z.jpg",
        "image_width": sign.scene.width,
        "image_height": sign.scene.height,
    }


def _token_row(image_id: str, sign: Sign, boxes: list[tuple[float, float, float, float]]) -> Record:
    info = [
        {
            "word": word,
            "bounding_box": {
                "width": round(w, 6),
                "height": round(h, 6),
                "rotation": 0,
                "roll": 0,
                "pitch": 0,
                "yaw": 0,
                "top_left_x": round(x, 6),
                "top_left_y": round(y, 6),
            },
        }
        for word, (x, y, w, h) in zip(sign.words, boxes, strict=True)
    ]
    return {"image_id": image_id, "ocr_tokens": list(sign.words), "ocr_info": info}


def _caption_rows(shared: Record, part: str, index: int, texts: list[str]) -> list[Record]:
    image_id = shared["image_id"]
    # image_path says train/ for pictures that lie in train_images/, for both splits, as upstream.
    names = {"set_name": part, "image_name": image_id, "image_path": f"train/{image_id}.jpg"}
    references = {"reference_strs": texts, "reference_tokens": [tokens(text) for text in texts]}
    return [
        {
            **shared,
            **names,
            "caption_id": 100_000_000 + 5 * index + number,
            "caption_str": text,
            "caption_tokens": tokens(text),
            **references,
        }
        for number, text in enumerate(texts)
    ]


def _question_rows(rng: Random, shared: Record, part: str, index: int, pairs: list[tuple[str, str]]) -> list[Record]:
    return [
        {
            "question": question,
            **shared,
            "answers": rng.sample([answer] * 8 + [f"{answer} ", rng.choice((answer, "unanswerable"))], 10),
            "question_tokens": question.rstrip("?").split(),
            "question_id": 10 * index + number,
            "set_name": part,
        }
        for number, (question, answer) in enumerate(pairs)
    ]
