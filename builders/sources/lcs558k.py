"""LCS-558K: the captions of LLaVA's first stage (huggingface.co/datasets/liuhaotian/LLaVA-Pretrain)."""

import json
from collections.abc import Iterator, Sequence

from vlmix.builders import layout
from vlmix.builders.llava_rows import split_image, turn_problem
from vlmix.builders.sources.llava_instruct import Row
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.json_pieces import Share
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation, ImageRef, Round, is_blank

FILE = "blip_laion_cc_sbu_558k.json"


def read(raw: RawFolder, options: Options, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One caption per image under the prompt that the file gives it, both untouched."""
    for row in raw.elements(raw.require(FILE), Row, raw.share):
        identity = f"lcs558k/{row.id}"
        problem = turn_problem(row.conversations)
        if problem is None and len(row.conversations) != 2:
            problem = "turn_count", f"{len(row.conversations)} turns, a caption has 2"
        if problem:
            reject(identity, *problem, image=row.image, record=row)
            continue
        question, answer = (turn["value"] for turn in row.conversations)
        question, place = split_image(question)
        if place is None or is_blank(question) or is_blank(answer):
            reason = "image_token" if place is None else "empty_text"
            reject(identity, reason, "no image token" if place is None else "empty prompt or caption", record=row)
            continue
        yield Conversation(
            id=identity,
            source="lcs558k",
            rounds=(Round(question, answer, "caption"),),
            images=(ImageRef(f"lcs558k/images/{row.image}"),),
            image_at=place,
            extra=json.dumps({"image": row.image}),
        )


def split(raw: RawFolder, options: Options, name: str) -> Sequence[Share | None]:
    return raw.shares(FILE)


SOURCE = Source(
    name="lcs558k",
    title="LCS-558K",
    homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
    license="terms of CC-3M, LAION, SBU and BLIP",
    response_formats=("caption",),
    files=(RawFile(FILE, "captions; images below images/"),),
    read=read,
    split=split,
    images=layout.LCS,
)
