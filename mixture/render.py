"""Rendering: a conversation's meaning to the text that a model reads.

The style decides format prompts, box notation and the place of `<image>`; the record knows none of them. `llava`
reproduces the rows of LLaVA-1.5's 665K mixture letter for letter.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from vlmix.mixture.boxes import square_text
from vlmix.mixture.record import IMAGE_TOKEN, Conversation, Round

StyleName = Literal["llava", "plain", "instructblip"]
STYLES: tuple[StyleName, ...] = get_args(StyleName)

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
CAPTION = "Provide a one-sentence caption for the provided image."
OCR_LINE = "Reference OCR token: "
REGION_CAPTION = "Please provide a short description for this region: "
GROUNDING = "Please provide the bounding box coordinate of the region this sentence describes: "
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


_BLANK = "[0.00, 0.00, 0.00, 0.00]"  # stands for a box where words and characters are only counted
_BoxText = Callable[[Round], str]


def render(conversation: Conversation, style: StyleName = "llava", *, count_only: bool = False) -> list[str]:
    """The texts of all turns, questions and answers alternating: 2 x len(rounds) strings.

    A format prompt stands where its response format first occurs, which in LLaVA's rows is the first question.
    The image tokens join the first question unless the record says that they are there already. With `count_only` the
    numbers of boxes are blanks.
    """
    ask = _ASK[style]

    def box_text(qa: Round) -> str:
        if count_only:
            return ", ".join([_BLANK] * len(qa.boxes))
        of = [conversation.images[number] for number in qa.box_images or (0,) * len(qa.boxes)]
        return ", ".join(square_text(box, image.width, image.height) for box, image in zip(qa.boxes, of))

    prompted: set[str] = set()
    texts: list[str] = []
    for qa in conversation.rounds:
        texts += ask(qa, box_text, qa.format not in prompted)
        prompted.add(qa.format)
    if conversation.image_at == "front":
        texts[0] = f"{IMAGE_TOKEN}\n" * len(conversation.images) + texts[0]
    elif conversation.image_at == "back":
        texts[0] += f"\n{IMAGE_TOKEN}" * len(conversation.images)
    return texts


def tokens_in_place(texts: list[str], images: int) -> list[str]:
    """The texts with one image token for each of `images` >= 2 images, in their order: those that are there stay where
    they are, and the images that have none stand before the first question. Pure text has none to begin with."""
    absent = images - sum(text.count(IMAGE_TOKEN) for text in texts)
    return [f"{IMAGE_TOKEN}\n" * max(absent, 0) + texts[0], *texts[1:]]


def count_words(texts: list[str]) -> int:
    """Words of a rendered conversation, split at white space, the image token not counted."""
    text = "\n".join(texts)
    return len(text.split()) - (text.count(IMAGE_TOKEN) if "<" in text else 0)


def _ask_llava(qa: Round, box_text: _BoxText, first: bool, format_prompts: bool = True) -> tuple[str, str]:
    match qa.format:
        case "region_caption":
            return f"{REGION_CAPTION}{box_text(qa)}.", qa.answer
        case "grounding":
            return f"{GROUNDING}{qa.question}.", box_text(qa)
        case "short_answer":
            return f"{qa.question}\n{SHORT_ANSWER}" if first and format_prompts else qa.question, qa.answer
        case "choice":
            lines = [qa.question, *(f"{LETTERS[i]}. {option}" for i, option in enumerate(qa.choices))]
            if first and format_prompts:
                lines.append(OPTION_LETTER)
            return "\n".join(lines), LETTERS[qa.correct]
        case "caption":
            return _with_ocr(qa.question or CAPTION, qa), qa.answer
        case _:
            return qa.question, qa.answer


def _ask_instructblip(qa: Round, box_text: _BoxText, first: bool) -> tuple[str, str]:
    match qa.format:
        case "short_answer":
            return f"Question: {qa.question} Short answer:", qa.answer
        case "choice":
            options = ", ".join(f"({LETTERS[i].lower()}) {option}" for i, option in enumerate(qa.choices))
            return f"Question: {qa.question} Options: {options}. Short answer:", qa.choices[qa.correct]
        case "caption":
            return _with_ocr(qa.question or "A short image description:", qa), qa.answer
        case _:
            return _ask_llava(qa, box_text, first)


def _with_ocr(question: str, qa: Round) -> str:
    if qa.ocr_tokens is None:
        return question
    return f"{question}\n{OCR_LINE}{', '.join(qa.ocr_tokens)}"


_ASK: dict[StyleName, Callable[[Round, _BoxText, bool], tuple[str, str]]] = {
    "llava": _ask_llava,
    "plain": partial(_ask_llava, format_prompts=False),
    "instructblip": _ask_instructblip,
}
