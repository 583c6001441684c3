"""Rendering: a conversation's meaning to the text that a model reads.

The style decides format prompts, box notation and the place of `<image>`; the record knows none of them. `llava`
reproduces the rows of LLaVA-1.5's 665K mixture letter for letter.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from vlmix.mixture.boxes import square_text
from vlmix.mixture.record import IMAGE_TOKEN, Box, Conversation, Exchange

StyleName = Literal["llava", "plain", "instructblip"]
STYLES: tuple[StyleName, ...] = get_args(StyleName)

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
OCR_LINE = "Reference OCR token: "
REGION_CAPTION = "Please provide a short description for this region: "
GROUNDING = "Please provide the bounding box coordinate of the region this sentence describes: "
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Frame(NamedTuple):
    """The image's width and height in pixels, in which boxes are read."""

    width: int
    height: int

    def text(self, boxes: tuple[Box, ...]) -> str:
        if len(boxes) == 1:
            return square_text(boxes[0], self.width, self.height)
        return ", ".join(square_text(box, self.width, self.height) for box in boxes)


class Blank(Frame):
    """Stands in where texts are only counted: as many words, about as many characters, and nothing to round."""

    def text(self, boxes: tuple[Box, ...]) -> str:
        return "[0.00, 0.00, 0.00, 0.00]" if len(boxes) == 1 else ", ".join(["[0.00, 0.00, 0.00, 0.00]"] * len(boxes))


def values(conversation: Conversation, style: StyleName = "llava", *, count_only: bool = False) -> list[str]:
    """The texts of all turns, question and answer by turns: 2 x len(exchanges) strings.

    A format prompt stands where its response format first occurs, which in LLaVA's rows is the first question.
    The image token joins the first question unless the record says that it is there already. With `count_only` the
    numbers of boxes are blanks.
    """
    ask = _ASK[style]
    frame = (Blank if count_only else Frame)(conversation.width, conversation.height)
    prompted: set[str] = set()
    texts: list[str] = []
    for exchange in conversation.exchanges:
        form = exchange.format
        if form == "free":
            texts += exchange.question, exchange.answer
            continue
        texts += ask(exchange, frame, form not in prompted)
        prompted.add(form)
    if conversation.image:
        if conversation.image_at == "front":
            texts[0] = f"{IMAGE_TOKEN}\n{texts[0]}"
        elif conversation.image_at == "back":
            texts[0] = f"{texts[0]}\n{IMAGE_TOKEN}"
    return texts


def count_words(texts: list[str]) -> int:
    """Words of a rendered conversation, split at white space, the image token not counted."""
    text = "\n".join(texts)
    return len(text.split()) - (text.count(IMAGE_TOKEN) if "<" in text else 0)


def _ask_llava(exchange: Exchange, frame: Frame, first: bool, format_prompts: bool = True) -> tuple[str, str]:
    match exchange.format:
        case "region_caption":
            return f"{REGION_CAPTION}{frame.text(exchange.boxes)}.", exchange.answer
        case "grounding":
            return f"{GROUNDING}{exchange.question}.", frame.text(exchange.boxes)
        case "short_answer":
            question = exchange.question
            return f"{question}\n{SHORT_ANSWER}" if first and format_prompts else question, exchange.answer
        case "choice":
            lines = [exchange.question, *(f"{LETTERS[i]}. {option}" for i, option in enumerate(exchange.choices))]
            if first and format_prompts:
                lines.append(OPTION_LETTER)
            return "\n".join(lines), LETTERS[exchange.correct]
        case "caption":
            return _with_ocr(exchange.question or CAPTION, exchange), exchange.answer
        case _:
            return exchange.question, exchange.answer


def _ask_plain(exchange: Exchange, frame: Frame, first: bool) -> tuple[str, str]:
    return _ask_llava(exchange, frame, first, format_prompts=False)


def _ask_instructblip(exchange: Exchange, frame: Frame, first: bool) -> tuple[str, str]:
    match exchange.format:
        case "short_answer":
            return f"Question: {exchange.question} Short answer:", exchange.answer
        case "choice":
            options = ", ".join(f"({LETTERS[i].lower()}) {option}" for i, option in enumerate(exchange.choices))
            question = f"Question: {exchange.question} Options: {options}. Short answer:"
            return question, exchange.choices[exchange.correct]
        case "caption":
            return _with_ocr(exchange.question or "A short image description:", exchange), exchange.answer
        case _:
            return _ask_llava(exchange, frame, first)


def _with_ocr(question: str, exchange: Exchange) -> str:
    if exchange.ocr_tokens is None:
        return question
    return f"{question}\n{OCR_LINE}{', '.join(exchange.ocr_tokens)}"


_ASK: dict[StyleName, Callable[[Exchange, Frame, bool], tuple[str, str]]] = {
    "llava": _ask_llava,
    "plain": _ask_plain,
    "instructblip": _ask_instructblip,
}
