"""The forms in which tables hold conversations: recognised by the shape of their values, and read into rounds.

| form | a row holds |
|---|---|
| `texts` | `texts`: [{user, assistant}] (The Cauldron, FineVision) |
| `conversations` | `conversations`: [{from, value}] (LLaVA and what followed) |
| `messages` | `messages`: [{role, content}], content being text or blocks of text and images (OpenAI, TRL, Qwen) |
| `qa` | a question with an answer, several answers or choices, or lists of questions and answers |
| `captions` | an image and a caption |
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal, get_args

from msgspec import Struct

from vlmix.builders.sources.llava_rows import split_image
from vlmix.builders.sources.text import majority
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.containers import IMAGE_BLOCKS, block_image
from vlmix.mixture.io.tables import INSIDE, MEDIA, ImageItem, image_items
from vlmix.mixture.io.text_rows import loaded
from vlmix.mixture.record import IMAGE_TOKEN, ResponseFormat, Round, is_blank

Form = Literal["texts", "conversations", "messages", "qa", "captions"]
FORMS: tuple[Form, ...] = get_args(Form)

FIELDS: dict[str, tuple[str, ...]] = {
    "id": ("id", "__key__", "uid", "sample_id", "question_id", "questionId"),
    "texts": ("texts",),
    "conversations": ("conversations", "conversation"),
    "messages": ("messages",),
    "question": ("question", "questions", "query", "prompt", "instruction"),
    "choices": ("choices", "options", "multiple_choices"),
    "correct": ("correct_choice_idx", "answer_index", "correct_index", "answer_idx"),
    "answer": (
        "answer", "multiple_choice_answer", "answers", "label", "response", "output", "direct_answers", "response_text",
    ),
    "caption": ("caption", "captions", "text", "txt", "description"),
    "source": ("source",),
}  # fmt: skip
"""What a row says -> the columns in which it is looked for, the first that is there."""

_USERS = ("human", "user", "User", "USER", "Human")
_ASSISTANTS = ("gpt", "assistant", "Assistant", "ASSISTANT", "model", "bot")
_SYSTEMS = ("system", "System")

_MEDIA_TOKEN = re.compile(r"<(video|audio)>")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


class Reading(Struct, frozen=True):
    """How the rows of a table are read: their form, and the column of each thing that they say (see `FIELDS`)."""

    form: Form
    columns: dict[str, str]
    response_format: ResponseFormat | None = None

    @property
    def needed(self) -> list[str]:
        """The columns, and those that would hold other media."""
        return list(dict.fromkeys([*self.columns.values(), *MEDIA]))


class Problem(Struct, frozen=True):
    """Why a row, or one of its rounds, is dropped: a code, a detail, and the number of the round, -1 for the row."""

    code: str
    detail: str
    round: int = -1


class Parsed(Struct, frozen=True):
    """What a row says. `rounds` are numbered as the row numbers them; `inline`: its text places the images itself."""

    rounds: dict[int, Round]
    image_at: Literal["front", "back", "inline"] = "front"
    problems: list[Problem] = []
    extra: dict[str, Any] = {}
    images: list[ImageItem] | None = None
    """Images that its messages hold in their blocks; None: those of the row."""


def recognise(
    columns: Sequence[str],
    sample: Mapping[str, Sequence[Any]],
    has_images: bool,
    fields: Mapping[str, str],
    form: Form | None,
    where: str,
) -> Reading:
    """The form of a table by the names of its columns and the values of its first rows. `fields` and `form` are what
    the recipe says of them. Raises VlmixError if there is none."""
    for role, column in fields.items():
        if role not in FIELDS:
            raise VlmixError(f"{where}: `fields` names {role!r}; what a row may say is {', '.join(FIELDS)}")
        if column not in columns:
            raise VlmixError(f"{where}: `fields` has {role}: {column}, but there are only {', '.join(columns)}")
    named: dict[str, str | None] = {
        role: next((name for name in names if name in columns), None) for role, names in FIELDS.items()
    }
    named |= fields
    found = {role: name for role, name in named.items() if name}
    common: dict[str, str] = {role: found[role] for role in ("id", "source") if role in found}

    def shaped(kind: Form, role: str, *keys: str) -> bool:
        return form in (None, kind) and role in found and _holds(sample.get(found[role], ()), keys)

    if shaped("texts", "texts", "user", "assistant"):
        return Reading("texts", {"texts": found["texts"], **common})
    for role in ("conversations", "messages"):
        if shaped("messages", role, "role", "content"):
            return Reading("messages", {"messages": found[role], **common})
        if shaped("conversations", role, "from", "value"):
            return Reading("conversations", {"conversations": found[role], **common})
    if form in (None, "qa") and "question" in found and ("answer" in found or "correct" in found):
        asked = ("question", "answer", "choices", "correct")
        return Reading("qa", {**common, **{role: found[role] for role in asked if role in found}})
    if form in (None, "captions") and "caption" in found and has_images:
        return Reading("captions", {"caption": found["caption"], **common})
    raise VlmixError(
        f"{where}: no {form or 'conversations'} are recognised in the columns {', '.join(columns) or '(none)'}; "
        "expected is `texts`, `conversations`, `messages`, a question with an answer, or images with a `caption`. Name "
        "the columns: `fields: {question: COLUMN, answer: COLUMN}`"
    )


def _holds(values: Iterable[Any], keys: Sequence[str]) -> bool:
    """Whether the lists in a column hold objects with `keys`."""
    for value in values:
        for one in loaded(value) or ():
            return isinstance(one, dict) and all(key in one for key in keys)
    return False


def parse(row: Mapping[str, Any], images: int, reading: Reading) -> Parsed:
    """The rounds of a row with `images` images. What cannot be read is among the `problems`."""
    for name in MEDIA:
        if row.get(name):
            return _bad("unread_media", f"the row has {name!r}; videos and sounds are not read, take frames as images")
    column = reading.columns
    match reading.form:
        case "texts":
            pairs = [
                (one.get("user"), one.get("assistant")) if isinstance(one, dict) else (None, None)
                for one in loaded(row[column["texts"]]) or ()
            ]
            return _placed(pairs, images, {"form": "texts"})
        case "conversations" | "messages":
            return _turns(row[column[reading.form]], images, reading.form)
        case "qa":
            return _questions(row, images, reading)
        case "captions":
            return _captions(row[column["caption"]], images)


def _bad(code: str, detail: str, round: int = -1) -> Parsed:
    return Parsed({}, problems=[Problem(code, detail, round)])


def _turns(value: Any, images: int, form: Form) -> Parsed:
    """Alternating turns. A system turn at the beginning joins the first question, a last question without an answer is
    dropped, and any other turn is a reject."""
    turns = loaded(value)
    if not turns:
        return _bad("no_rounds", "the row has no turns")
    role_key, text_key = ("from", "value") if form == "conversations" else ("role", "content")
    texts: list[str] = []
    inside: list[ImageItem] = []
    system, blocks = "", False
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            return _bad("bad_turn", f"turn {number} is {type(turn).__name__}, expected an object")
        role, content = turn.get(role_key), turn.get(text_key)
        text, found, problem = _content(content)
        if problem:
            return _bad(problem[0], f"turn {number} {problem[1]}")
        blocks |= isinstance(content, list)
        inside += found
        if role in _SYSTEMS and number == 0:
            system = text
            continue
        expected = _ASSISTANTS if len(texts) % 2 else _USERS
        if role not in (*_USERS, *_ASSISTANTS):
            return _bad("unknown_role", f"turn {number} is from {role!r}")
        if role not in expected:
            return _bad("role_order", f"turn {number} is from {role!r}, expected {expected[0]!r}")
        if turn.get("tool_calls"):
            return _bad("unknown_role", f"turn {number} calls a tool")
        texts.append(text)
    problems = []
    if len(texts) % 2:
        problems = [Problem("odd_turns", "the last question has no answer", len(texts) // 2)]
        if IMAGE_TOKEN in texts.pop():
            return _bad("odd_turns", "the last question has an image and no answer")
    if not texts:
        return _bad("odd_turns", "the question has no answer")
    extra: dict[str, Any] = {"form": form}
    if system.strip():
        texts[0] = f"{system}\n\n{texts[0]}"
        extra["system"] = system
    # A block of an image with nothing in it stands for one of the row's.
    given = inside if blocks and any(item is not None for item in inside) else None
    pairs = [(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]
    parsed = _placed(pairs, images if given is None else len(given), extra)
    return Parsed(parsed.rounds, parsed.image_at, [*problems, *parsed.problems], parsed.extra, given)


def _content(content: Any) -> tuple[str, list[ImageItem], tuple[str, str] | None]:
    """(text with image tokens, the images of its blocks, why it cannot be read). Blocks of images that lead are
    followed by a line break, as in LLaVA's rows."""
    if isinstance(content, str):
        return content, [], None
    blocks = content if isinstance(content, list) else None
    if blocks is None:
        return "", [], ("bad_turn", "has no text")
    text, images, leading = "", list[ImageItem](), True
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            text, leading = text + block["text"], False
        elif kind in IMAGE_BLOCKS:
            found = image_items(block_image(block)) or [None]
            if len(found) > 1:
                return "", [], ("bad_image", f"has a block of {len(found)} images; give each a block")
            images += found
            text += f"{IMAGE_TOKEN}\n" if leading else IMAGE_TOKEN
        elif kind in ("video", "audio", "video_url", "input_audio"):
            return "", [], ("unread_media", f"has a block of {kind}; take frames as images")
        else:
            return "", [], ("bad_turn", f"has a block of type {kind!r}")
    return text, images, None


def _questions(row: Mapping[str, Any], images: int, reading: Reading) -> Parsed:
    column = reading.columns
    question, answer = row[column["question"]], row.get(column.get("answer", ""))
    listed = row.get(column.get("choices", ""))
    labels, options = _options(listed)
    if isinstance(question, list):  # a question each with an answer, as in OCR-VQA
        answers = loaded(answer)
        if answers is None or len(answers) != len(question):
            return _bad("bad_answer", "it has not as many answers as questions")
        if options:
            return _bad("bad_choice", "it has choices for several questions at once")
        return _placed(list(zip(question, answers)), images, {"form": "qa"}, reading.response_format)
    question = _text(question)
    if options or (isinstance(listed, str) and listed and loaded(listed) is None):
        choices = tuple(_text(choice) or "" for choice in options)
        if "" in choices:
            return _bad("bad_choice", f"choice {choices.index('') + 1} of {len(choices)} is empty")
        index = row.get(column.get("correct", ""))
        correct = _correct(index, answer, choices, labels)
        if correct is None or len(choices) > 26:
            if _is_place(answer) and _text(answer) in choices:
                return _bad(
                    "bad_choice",
                    f"the answer {answer} may be a place or the text of a choice; if it is a place, say so: "
                    f"`fields: {{correct: {column['answer']}}}`",
                )
            return _bad(
                "bad_choice", f"the answer {answer if index is None else index!r} is none of its {len(choices)} choices"
            )
        if question is None or is_blank(question):
            return _bad("empty_text", "the question is empty")
        if tokens := question.count(IMAGE_TOKEN):
            return _bad("image_token", f"the question has {tokens} {IMAGE_TOKEN}; images stand in front of choices")
        return Parsed({0: Round(question, choices[correct], "choice", choices, correct)}, extra={"form": "qa"})
    if _is_plural(column.get("answer", "")):
        answer = answer if (several := loaded(answer)) is None else several
    if isinstance(answer, bool):
        return _bad("bad_answer", f"its answer is {str(answer).lower()}; write it as text, such as yes or no")
    if isinstance(answer, list) and any(_is_place(one) or isinstance(one, float) for one in answer):
        return _bad("bad_answer", "its answer is a list of numbers")
    return _placed([(question, _answer(answer))], images, {"form": "qa"}, reading.response_format)


def _is_plural(column: str) -> bool:
    """Whether a column's text may be a printed list of answers; elsewhere it is an answer that looks like one."""
    return column.endswith("s")


def _options(value: Any) -> tuple[list[str], list[Any]]:
    """(labels, choices) of `{label: [A, B], text: [...]}` or `{A: ..., B: ...}`, or of a list, which has no labels.
    What is null at the end, or under a label, is no choice."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), list):
            labels = value.get("label")
            named = labels if isinstance(labels, list) and len(labels) == len(value["text"]) else []
            return [str(label) for label in named], value["text"]
        value = {label: choice for label, choice in value.items() if choice is not None}
        return list(map(str, value)), list(value.values())
    choices = list(loaded(value) or [])
    while choices and choices[-1] is None:
        choices.pop()
    return [], choices


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _correct(index: Any, answer: Any, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    """Which choice is right: the one at an index, under a label, of this text or letter, tried in this order. A number
    as the answer that is the text of another choice is None."""
    for value, is_index in ((index, True), (answer, False)):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and _is_place(value):
            if not is_index and str(value) in choices and choices.index(str(value)) != value:
                return None
            if 0 <= value < len(choices):
                return value
            if is_index and value > 0:
                return None
        if not isinstance(value, str):
            continue
        digits = int(value) if re.fullmatch(r"\s*\d{1,3}\s*", value) else len(choices)
        if is_index and digits < len(choices):
            return digits
        for listed in (labels, choices):
            if value in listed:
                return listed.index(value)
        if letter := _LETTER.fullmatch(value.strip()):
            letters = labels or list(ascii_uppercase[: len(choices)])
            if (said := letter[1].upper()) in letters:
                return letters.index(said)
        if digits < len(choices):
            return digits
    return None


def _answer(value: Any) -> str | None:
    """An answer; of several the one given most often, the earliest on ties."""
    if not isinstance(value, list):
        return _text(value)
    texts = [_text(one.get("answer") if isinstance(one, dict) else one) for one in value]
    return majority(text for text in texts if text)


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:  # NaN is no text
        return None
    return str(value)


def _captions(value: Any, images: int) -> Parsed:
    several = value if isinstance(value, list) else [value]
    caption = _text(several[0] if several else None)
    if caption is None or is_blank(caption):
        return _bad("empty_text", "the caption is empty")
    if IMAGE_TOKEN in caption:
        return _bad("image_token", f"the caption has {IMAGE_TOKEN}")
    if not images:
        return _bad("no_image", "a caption without an image")
    further = [Problem("further_caption", repr(one), number) for number, one in enumerate(several) if number]
    return Parsed({0: Round("", caption, "caption")}, problems=further, extra={"form": "captions"})


def _placed(
    pairs: Sequence[tuple[Any, Any]],
    images: int,
    extra: dict[str, Any],
    response_format: ResponseFormat | None = None,
) -> Parsed:
    """Questions with answers as rounds, and where their images stand."""
    if not pairs:
        return _bad("no_rounds", "the row has no question with an answer")
    format: ResponseFormat = response_format or "free"
    problems, rounds, dropped = [], {}, 0
    for number, (question, answer) in enumerate(pairs):
        if not (isinstance(question, str) and isinstance(answer, str)):
            question, answer = _text(question), _text(answer)
        if question is None or answer is None or is_blank(question) or is_blank(answer):
            dropped += (question or "").count(IMAGE_TOKEN)
            problems.append(Problem("empty_text", "a question or answer is empty", number))
            continue
        if IMAGE_TOKEN in answer:
            return _bad("image_token", f"round {number} has {IMAGE_TOKEN} in its answer")
        if _MEDIA_TOKEN.search(question) and images == 0:
            return _bad("unread_media", f"round {number} has a token of a video or sound, which are not read")
        rounds[number] = Round(question, answer, format)
    tokens = sum(qa.question.count(IMAGE_TOKEN) for qa in rounds.values()) + dropped
    if tokens > images:
        return _bad("image_token", f"its text has {tokens} {IMAGE_TOKEN} for {images} images")
    if dropped:
        return _bad("empty_text", f"a round with {IMAGE_TOKEN} has an empty question or answer")
    if not rounds:
        return Parsed({}, problems=[*problems, Problem("no_rounds", "no question with an answer is left")])
    if not tokens:
        return Parsed(rounds, "front", problems, extra)
    extra = {**extra, "inline": True}
    first = min(rounds)
    bare, place = split_image(rounds[first].question)
    if images == tokens == 1 and place in ("front", "back") and not is_blank(bare):
        rounds[first] = Round(bare, rounds[first].answer, format)
        return Parsed(rounds, place, problems, extra)
    return Parsed(rounds, "inline", problems, extra)


def is_inside(item: ImageItem) -> bool:
    return item == INSIDE
