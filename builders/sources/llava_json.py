"""An existing file in LLaVA's JSON form, the official 665K mixture included.

Every row keeps its text, letter for letter, and comes back as it was from `vlmix export --to llava-json`. If its text
can be taken apart and put together again without a change, it is held by its meaning, so other prompt styles work too.
Rows of the official file are given to LLaVA-1.5's sources; rows of any other file belong to the recipe's entry,
whatever their image folders are called.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vlmix.builders import layout
from vlmix.builders.llava_rows import row_images, split_image, token_problem, turn_problem
from vlmix.builders.sources import aokvqa, gqa, llava_instruct, ocrvqa, okvqa, refcoco, sharegpt, textcaps, vg, vqav2
from vlmix.builders.sources.llava_instruct import content_id
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.io import exact_json
from vlmix.mixture.io.digests import sha256
from vlmix.mixture.io.json_pieces import Share, shares
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.record import Conversation, ImageRef, Round
from vlmix.mixture.render import (
    CAPTION,
    GROUNDING,
    LETTERS,
    OCR_LINE,
    OPTION_LETTER,
    REGION_CAPTION,
    SHORT_ANSWER,
    render,
)

_PARTS = {
    module.SOURCE.name: (module.SOURCE.license, module.SOURCE.homepage)
    for module in (llava_instruct, sharegpt, vqav2, gqa, okvqa, ocrvqa, aokvqa, textcaps, refcoco, vg)
}
_BY_FOLDER = {"gqa": "gqa", "ocr_vqa": "ocrvqa", "textvqa": "textcaps", "vg": "vg"}


OFFICIAL = "llava_v1_5_mix665k.json"
_OFFICIAL_BYTES = 1_029_887_963
_OFFICIAL_SHA256 = "ce959ce6e23073ee1cd1a8a2ef1c633768c10d4174327b8b2dc7113b91af6cf8"


class LlavaJsonOptions(Options, frozen=True, kw_only=True):
    path: Annotated[str, Meta(description="the file: below RAW/llava_json or RAW, or any path")] = OFFICIAL
    recognize: Annotated[
        bool | None,
        Meta(description="give rows to LLaVA-1.5's sources; by default in the official file alone"),
    ] = None
    only: Annotated[
        tuple[str, ...] | None,
        Meta(description="keep the rows of these sources alone (vqav2, gqa, …; `other` for unrecognised ones)"),
    ] = None


def read(raw: RawFolder, options: LlavaJsonOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per row, in file order. Rows with other media than images, with an image token but no image, or
    whose turns are not alternating questions and answers, are rejected with their whole record."""
    path = _locate(raw, options.path)
    if options.path != OFFICIAL:
        raw.own = "LLaVA's form: a JSON list, or one object a line, of rows with `conversations`"
    elements = raw.rows(path, raw.share)
    for name in options.only or ():
        if name not in (*_PARTS, "other"):
            raise VlmixError(f"{reject.source}: `only` names {name!r}{nearest(name, [*_PARTS, 'other'])}")
    copies: Counter[str] = Counter()
    recognizes: bool | None = None
    before = cache(lambda: raw.rows_before(path, raw.share))  # which few files need: whose rows are bad, or have no id
    for at, (text, row) in enumerate(elements):
        if recognizes is None:  # the first element opens the file, so its hash is on the way
            recognizes = _recognizes(raw, path, options)
            if options.only and not recognizes:
                raise VlmixError(f"{reject.source}: `only` needs `recognize: true`: {path} is not the official file")
        if row is None:
            number = before() + at
            detail = f"row {number} has NaN or a number too large for a float, which is not JSON"
            reject(f"{reject.source}/row {number}", "bad_number", detail, record=text.decode())
            continue
        turns = row.get("conversations")
        images, problem = row_images(row)
        image = images[0] if images else ""
        name = f"{reject.source}/{row['id'] if 'id' in row else f'row {before() + at}'}"
        if problem:
            reject(name, problem[0], f"row {before() + at}: {problem[1]}", record=row)
            continue
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            detail = f"row {before() + at} has no list of turns in `conversations`"
            reject(name, "bad_turn", detail, image=image, record=row)
            continue
        if problem := turn_problem(turns):
            reject(name, *problem, image=image, record=row)
            continue
        texts = [turn["value"] for turn in turns]
        recognised = recognise(row, image, texts) if recognizes and len(images) < 2 else None
        # The official chats may speak of <image>, as of any tag; they have no image by design.
        if recognised != "sharegpt" and (problem := token_problem(len(images), texts)):
            reject(name, problem[0], f"row {before() + at}: {problem[1]}", image=image, record=row)
            continue
        if options.only and (recognised or "other") not in options.only:
            continue
        source = recognised or reject.source
        identity = content_id(f"{source}/{row['id'] if 'id' in row else before() + at}", turns, copies)
        yield _conversation(identity, source, images, texts, _template(text, row, turns))


def split(raw: RawFolder, options: LlavaJsonOptions, name: str) -> Sequence[Share | None]:
    return shares(_locate(raw, options.path).stat().st_size)


def recognise(row: dict[str, Any], image: str, texts: list[str]) -> str | None:
    """The source of a row of the 665K mixture by its image folder and first question; None for anything else."""
    if not image:
        return "sharegpt" if "model" in row else None
    folder = image.partition("/")[0]
    if folder != "coco":
        return _BY_FOLDER.get(folder)
    question = texts[0]
    if question.endswith(OPTION_LETTER):
        return "aokvqa"
    if question.endswith(SHORT_ANSWER):
        return "vqav2" if len(texts) >= 6 else "okvqa"  # VQAv2 has at least three questions per image, OK-VQA 1 or 2
    if REGION_CAPTION in question or GROUNDING in question:
        return "refcoco"
    return "llava_instruct"


def _conversation(identity: str, source: str, images: list[str], texts: list[str], origin: str) -> Conversation:
    first, place = split_image(texts[0])
    verbatim = Conversation(
        id=identity,
        source=source,
        images=tuple(map(ImageRef, images)),
        image_at="inline",
        rounds=tuple(Round(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)),
        extra=origin,
    )
    if len(images) != 1 or place is None or place == "inline":
        return verbatim
    parsed = msgspec.structs.replace(verbatim, image_at=place, rounds=_rounds([first, *texts[1:]]) or verbatim.rounds)
    return parsed if render(parsed) == texts else verbatim


def _rounds(texts: list[str]) -> tuple[Round, ...] | None:
    """The meaning of question-and-answer texts, as far as it shows; the caller checks it by rendering."""
    pairs = [(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]
    question, answer = pairs[0]
    if question.endswith(f"\n{SHORT_ANSWER}"):
        pairs[0] = question[: -len(SHORT_ANSWER) - 1], answer
        return tuple(Round(q, a, "short_answer") for q, a in pairs)
    if question.endswith(f"\n{OPTION_LETTER}"):
        pairs[0] = question[: -len(OPTION_LETTER) - 1], answer
        choices = [_choice(q, a) for q, a in pairs]
        return tuple(c for c in choices if c) if all(choices) else None
    if question.startswith(f"{CAPTION}\n{OCR_LINE}"):
        tokens = question[len(CAPTION) + 1 + len(OCR_LINE) :]
        return (Round("", answer, "caption", ocr_tokens=tuple(tokens.split(", ")) if tokens else ()),)
    return tuple(Round(q, a) for q, a in pairs)


def _choice(question: str, letter: str) -> Round | None:
    lines = question.split("\n")
    starts = [number for number, line in enumerate(lines) if line.startswith("A. ")]
    correct = LETTERS.find(letter) if len(letter) == 1 else -1
    if not starts or not 0 <= correct < len(lines) - starts[-1]:
        return None
    choices = tuple(line[3:] for line in lines[starts[-1] :])
    return Round("\n".join(lines[: starts[-1]]), choices[correct], "choice", choices=choices, correct=correct)


def _template(text: bytes, row: dict[str, Any], turns: list[dict[str, Any]]) -> str:
    """The row without its texts, so that export can fill them in; with them where a turn has more than a text."""
    plain = all(list(turn) == ["from", "value"] for turn in turns)
    if not plain or any(not isinstance(value, str) for name, value in row.items() if name != "conversations"):
        row = exact_json.loads(text)
    return exact_json.dumps({**row, "conversations": None} if plain else row)


def _recognizes(raw: RawFolder, path: Path, options: LlavaJsonOptions) -> bool:
    """Whether rows go to LLaVA-1.5's sources: as asked; else in the file of the default path and in the official one
    wherever it lies, which its bytes show."""
    if options.recognize is not None:
        return options.recognize
    if options.path == OFFICIAL:
        return True
    return path.stat().st_size == _OFFICIAL_BYTES and (raw.hashes[path].result() or sha256(path)) == _OFFICIAL_SHA256


def _locate(raw: RawFolder, name: str) -> Path:
    places = raw.folder / name, raw.raw / name, Path(name)
    for path in places:
        if path.is_file():
            return path
    raise VlmixError(f"{name}: there is no such file; looked at {', '.join(map(str, places))}")


SOURCE = Source(
    name="llava_json",
    title="LLaVA JSON",
    homepage="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    license="that of each source",
    response_formats=("free", "short_answer", "choice", "caption"),
    files=(RawFile(OFFICIAL, "the 665K mixture, or any file of its form (`path`)"),),
    read=read,
    split=split,
    numbers=True,
    options=LlavaJsonOptions,
    images=layout.EVERYTHING,
    parts=_PARTS,
    verbatim=True,
    own=True,
)
