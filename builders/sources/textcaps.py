"""TextCaps: captions of TextVQA's images that read their text (textvqa.org/textcaps)."""

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, Struct

from vlmix.builders import layout
from vlmix.builders.schemas.textvqa import Rosetta
from vlmix.builders.sources.duplicates import unique
from vlmix.builders.text import Split
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.keyed import keyed_order
from vlmix.mixture.record import INVISIBLE, Conversation, ImageRef, Round, is_blank


class TextCapsOptions(Options, frozen=True, kw_only=True):
    split: Annotated[Split, Meta(description="official split; both lie in train_images")] = "train"
    caption: Annotated[
        Literal["first", "random", "longest"],
        Meta(description="which of the five captions; the first fits LLaVA's rows, `random` samples one by seed"),
    ] = "first"
    ocr: Annotated[bool, Meta(description="offer Rosetta's OCR tokens as a reference line")] = True
    max_tokens: Annotated[int, Meta(ge=0, description="at most so many OCR tokens; 0: all")] = 0


class Entry(Struct):
    image_id: str
    image_width: int = 0
    image_height: int = 0
    caption_str: str | None = None


class TextCaps(Struct):
    data: list[Entry]
    dataset_name: str = "textcaps"
    dataset_type: str = ""


def read(raw: RawFolder, options: TextCapsOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per image with one caption, closed with a full stop, its case untouched; OCR tokens in file
    order with their case and duplicates, none of them an empty line."""
    path = raw.require(f"TextCaps_0.1_{options.split}.json")
    captions = raw.json(path, TextCaps)
    if captions.dataset_name != "textcaps":
        raise raw.wrong(path, f"its dataset_name is {captions.dataset_name!r}")
    if captions.dataset_type not in ("", options.split):
        raise raw.wrong(path, f"its dataset_type is {captions.dataset_type!r}, expected {options.split!r}")
    tokens: dict[str, list[str]] = {}
    if options.ocr:
        path = raw.require(f"TextVQA_Rosetta_OCR_v0.2_{options.split}.json")
        read_by_image = unique(
            raw.json(path, Rosetta).data,
            lambda entry: entry.image_id,
            reject,
            lambda entry: f"textcaps/{entry.image_id}",
            "ocr",
        )
        tokens = {image_id: entry.ocr_tokens for image_id, entry in read_by_image.items()}
        if tokens.keys().isdisjoint(entry.image_id for entry in captions.data):
            raise raw.wrong(path, "it has none of the captions' images")
    images: dict[str, list[Entry]] = {}
    for number, entry in enumerate(captions.data):
        if is_blank(entry.caption_str or ""):
            reject(f"textcaps/{entry.image_id}", "empty_caption", f"entry {number} has no caption", round=number)
        else:
            images.setdefault(entry.image_id, []).append(entry)
    for image_id, entries in images.items():
        texts = [(entry.caption_str or "").strip(INVISIBLE) for entry in entries]
        if options.ocr and image_id not in tokens:
            reject(f"textcaps/{image_id}", "no_ocr", "the OCR file does not have the image; `ocr: false` needs none")
            continue
        offered = tokens.get(image_id, [])[: options.max_tokens or None]
        yield Conversation(
            id=f"textcaps/{image_id}",
            source="textcaps",
            rounds=(
                Round(
                    "",
                    _closed(_choose(texts, image_id, options, seed)),
                    "caption",
                    ocr_tokens=tuple(offered) if options.ocr else None,
                ),
            ),
            images=(ImageRef(f"textvqa/train_images/{image_id}.jpg", entries[0].image_width, entries[0].image_height),),
        )


def _choose(texts: list[str], image_id: str, options: TextCapsOptions, seed: int) -> str:
    match options.caption:
        case "first":
            return texts[0]
        case "longest":
            return max(texts, key=len)
        case "random":
            keys = [f"{image_id}/{i}" for i in range(len(texts))]
            return texts[int(keyed_order(keys, seed, "textcaps")[0])]


def _closed(caption: str) -> str:
    return caption if caption.endswith(".") else f"{caption}."


SOURCE = Source(
    name="textcaps",
    title="TextCaps",
    homepage="https://textvqa.org/textcaps/dataset/",
    license="annotations CC BY 4.0; images OpenImages (CC BY 2.0)",
    response_formats=("caption",),
    files=(
        RawFile("TextCaps_0.1_{split}.json", "captions, one entry each"),
        RawFile("TextVQA_Rosetta_OCR_v0.2_{split}.json", "OCR tokens of the same images"),
    ),
    read=read,
    options=TextCapsOptions,
    images=layout.TEXTVQA,
)
