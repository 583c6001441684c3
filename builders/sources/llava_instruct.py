"""LLaVA-Instruct-150K: GPT-4's conversations about COCO images (liuhaotian/LLaVA-Instruct-150K on Hugging Face)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from xxhash import xxh3_64_hexdigest

from vlmix.builders import layout
from vlmix.builders.llava_rows import split_image, turn_problem
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.json_pieces import Share
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation, ImageRef, Round, is_blank

_FILES = {
    "150k": "llava_instruct_150k.json",
    "80k": "llava_instruct_80k.json",
    "conversation": "conversation_58k.json",
    "detail": "detail_23k.json",
    "reasoning": "complex_reasoning_77k.json",
}


class LlavaInstructOptions(Options, frozen=True, kw_only=True):
    part: Annotated[
        Literal["150k", "80k", "conversation", "detail", "reasoning"],
        Meta(description="which file; 150k is the three parts together, as in LLaVA-1.5"),
    ] = "150k"


class Row(Struct):
    id: str
    image: str
    conversations: list[dict[str, Any]]


def read(raw: RawFolder, options: LlavaInstructOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """Texts untouched, the image token where the file has it. Ids repeat across the parts, so ours add a hash of the
    texts. A last question without answer and rounds with an empty text are dropped."""
    copies: Counter[str] = Counter()
    for row in raw.elements(raw.require(_FILES[options.part]), Row, raw.share):
        turns = row.conversations
        identity = content_id(f"llava_instruct/{row.id}", turns, copies)
        if len(turns) % 2 and len(turns) > 1 and turn_problem(turns[:-1]) is None:
            reject(identity, "odd_turns", "the last question has no answer", round=len(turns) // 2, record=turns[-1])
            turns = turns[:-1]
        if problem := turn_problem(turns):
            reject(identity, *problem, image=row.image, record=row)
            continue
        texts = [turn["value"] for turn in turns]
        texts[0], place = split_image(texts[0])
        if place is None:
            reject(identity, "image_token", "the first question has no image token", image=row.image, record=row)
            continue
        rounds = []
        for number in range(0, len(texts), 2):
            if is_blank(texts[number]) or is_blank(texts[number + 1]):
                reject(identity, "empty_text", "a question or answer is empty", round=number // 2)
            else:
                rounds.append(Round(texts[number], texts[number + 1]))
        if rounds:
            yield Conversation(
                id=identity,
                source="llava_instruct",
                rounds=tuple(rounds),
                images=(ImageRef(f"coco/train2017/{row.image}"),),
                image_at=place,
            )


def split(raw: RawFolder, options: LlavaInstructOptions, name: str) -> Sequence[Share | None]:
    return raw.shares(_FILES[options.part])


def content_id(identity: str, turns: list[dict[str, Any]], copies: Counter[str]) -> str:
    """`identity` made unique and independent of the place in the file: a hash of the texts is added, and a number
    for rows whose texts are equal too."""
    text = "\0".join(str(turn.get("value")) for turn in turns)
    unique = f"{identity}#{xxh3_64_hexdigest(text.encode())[:10]}"
    copies[unique] += 1
    return unique if copies[unique] == 1 else f"{unique}.{copies[unique]}"


SOURCE = Source(
    name="llava_instruct",
    title="LLaVA-Instruct-150K",
    homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    license="CC BY 4.0, and OpenAI's terms of use; images COCO (Flickr terms)",
    response_formats=("free",),
    files=(
        RawFile("llava_instruct_150k.json", "all conversations"),
        RawFile("conversation_58k.json", "one of its parts (`part: conversation`)", optional=True),
        RawFile("detail_23k.json", "one of its parts (`part: detail`)", optional=True),
        RawFile("complex_reasoning_77k.json", "one of its parts (`part: reasoning`)", optional=True),
    ),
    read=read,
    split=split,
    numbers=True,
    options=LlavaInstructOptions,
    images=layout.COCO,
)
