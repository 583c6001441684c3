"""Chats: LLaVA-Instruct's about photographs, ShareGPT's about anything."""

import json
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from true_size.catalogue import Catalogue
from true_size.texts import ASKS, SENTENCES, paragraphs, texts, write

INSTRUCT = {"conversation": 56_681, "detail": 23_240, "reasoning": 77_791}  # 157,712 rows
CHUNKS, CHATS, FITTING_CHATS = 94_145, 52_143, 40_688
_CODE = "```python\ndef scale(value):\n    return 3 * value  # a {look} {thing}\n```"
_RESIDUE = "```pythonCopy code\nprint('{thing}')\n```\nIt prints the {thing}."
_FOREIGN = "Das {thing} steht neben der {place}, und für die Größe gibt es keine Erklärung. 请告诉我颜色。"


def llava_instruct(raw: Path, images: Catalogue) -> None:
    """The three parts in one file; the image token before or after the first question."""
    rng = images.rng("llava_instruct")
    asked = texts(ASKS, 20_000, rng)
    answers = {"conversation": (2, 8), "detail": (7, 13), "reasoning": (9, 17)}
    said = {part: paragraphs(rng, 20_000, *of) for part, of in answers.items()}

    def rows() -> Iterator[str]:
        for part, count in INSTRUCT.items():
            for _ in range(images.count(count)):
                image = rng.choice(images.train2014)
                pairs = rng.randint(3, 5) if part == "conversation" else 1
                turns = []
                for number in range(pairs):
                    question = rng.choice(asked)
                    if not number:
                        question = f"<image>\\n{question}" if rng.random() < 0.46 else f"{question}\\n<image>"
                    turns.append(f'{{"from": "human", "value": "{question}"}}')
                    turns.append(f'{{"from": "gpt", "value": "{rng.choice(said[part])}"}}')
                row = f'"id": "{image:012d}", "image": "{image:012d}.jpg"'
                yield f'{{{row}, "conversations": [{", ".join(turns)}]}}'

    write(raw / "llava_instruct/llava_instruct_150k.json", "[", rows(), "]")


def sharegpt(raw: Path, images: Catalogue, lone_surrogate: bool = False) -> None:
    """Chunks of chats; a third of the later chunks begin with an answer. The first chunks that do not fit are too long,
    have two answers in a row, one turn, an empty text or a role that nobody knows. With `lone_surrogate` some thirty
    chats have a question that was cut inside an emoji, and so an escape that is no character."""
    rng = images.rng("sharegpt")
    asked = [json.dumps(text)[1:-1] for text in texts((*ASKS, *SENTENCES, _FOREIGN), 10_000, rng)]
    if lone_surrogate:
        asked[0] += "\\ud83d"
    said = paragraphs(rng, 10_000, 2, 39)
    said += [json.dumps(text)[1:-1] for text in texts((_CODE, _RESIDUE, _FOREIGN, *SENTENCES), 3_000, rng)]
    endless = said[0] * (8_000 // len(said[0]) + 1)
    chats, fitting = images.count(CHATS), images.count(FITTING_CHATS)
    fits = [True] * fitting + [False] * (chats - fitting)
    rng.shuffle(fits)
    later = np.bincount(
        np.random.default_rng(rng.getrandbits(32)).integers(chats, size=images.count(CHUNKS) - chats), minlength=chats
    ).tolist()

    def turns(pairs: int) -> list[tuple[str, str]]:
        both = zip(rng.choices(asked, k=pairs), rng.choices(said, k=pairs))
        return [turn for question, answer in both for turn in (("human", question), ("gpt", answer))]

    def unfit() -> list[tuple[str, str]]:
        chat = turns(rng.randint(1, 8))
        match rng.randrange(8):
            case 0:
                return chat[1:2]
            case 1:
                return [*chat[:2], chat[1], *chat[2:]]
            case 2:
                return [chat[0], ("gpt", "\\u200b"), *chat[2:]]
            case 3:
                return [chat[0], ("tool", "ready"), *chat[1:]]
            case _:
                return [chat[0], ("gpt", endless), *chat[2:]]

    def chunk(key: str, held: list[tuple[str, str]]) -> str:
        listed = ", ".join(f'{{"from": "{role}", "value": "{text}"}}' for role, text in held)
        return f'{{"id": "{key}", "conversations": [{listed}]}}'

    def chunks() -> Iterator[str]:
        for number, (fit, more) in enumerate(zip(fits, later)):
            name = f"{_base62(number)}_"
            few = rng.random() < 0.3
            yield chunk(f"{name}0", turns(1 if few else rng.randint(2, 8)) if fit else unfit())
            for part in range(1, more + 1):
                yield chunk(f"{name}{part}", turns(rng.randint(2, 9))[rng.random() < 0.75 :])

    write(raw / "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json", "[", chunks(), "]")


def _base62(number: int) -> str:
    letters = string.digits + string.ascii_letters
    number = number * 2_654_435_761 % 62**7  # odd and no multiple of 31, so no two numbers meet
    return "".join(letters[number // 62**place % 62] for place in range(7))
