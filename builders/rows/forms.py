"""The forms in which tables hold conversations: recognised by the shape of their values, and read into rounds.

| form | a row holds |
|---|---|
| `texts` | `texts`: [{user, assistant}] (The Cauldron, FineVision) |
| `conversations` | `conversations`: [{from, value}] (LLaVA and what followed) |
| `messages` | `messages`: [{role, content}], content being text or blocks of text and images (OpenAI, TRL, Qwen) |
| `qa` | a question with an answer, several answers or choices, or lists of questions and answers |
| `captions` | an image and a caption |
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from vlmix.builders.rows.parsed import Parsed, bad, placed
from vlmix.builders.rows.questions import captions, questions
from vlmix.builders.rows.turns import turns
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.rows.images import MEDIA
from vlmix.mixture.io.rows.text import loaded
from vlmix.mixture.record import ResponseFormat

Form = Literal["texts", "conversations", "messages", "qa", "captions"]

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


class Reading(Struct, frozen=True):
    """How the rows of a table are read: their form, and the column of each thing that they say (see `FIELDS`)."""

    form: Form
    columns: dict[str, str]
    response_format: ResponseFormat | None


def recognise(
    sample: Mapping[str, Sequence[Any]],
    has_images: bool,
    fields: Mapping[str, str],
    form: Form | None,
    response_format: ResponseFormat | None,
    ids: str,
    where: str,
) -> Reading:
    """The form of a table by its columns and their values in the first rows. `fields`, `form`, `response_format` and
    `ids` are what the recipe says of them. Raises VlmixError if there is none."""
    columns = list(sample)
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
    if ids != "auto":
        found = {role: name for role, name in found.items() if role != "id"}
        found |= {} if ids in ("row", "content") else {"id": ids}
    common: dict[str, str] = {role: found[role] for role in ("id", "source") if role in found}

    def read(kind: Form, *roles: str) -> Reading:
        return Reading(kind, {**{role: found[role] for role in roles if role in found}, **common}, response_format)

    def shaped(kind: Form, role: str, *keys: str) -> bool:
        return form in (None, kind) and role in found and _holds(sample.get(found[role], ()), keys)

    if shaped("texts", "texts", "user", "assistant"):
        return read("texts", "texts")
    for role in ("conversations", "messages"):
        if shaped("messages", role, "role", "content"):
            return Reading("messages", {"messages": found[role], **common}, response_format)
        if shaped("conversations", role, "from", "value"):
            return Reading("conversations", {"conversations": found[role], **common}, response_format)
    if form in (None, "qa") and "question" in found and ("answer" in found or "correct" in found):
        return read("qa", "question", "answer", "choices", "correct")
    if form in (None, "captions") and "caption" in found and has_images:
        return read("captions", "caption")
    forms = "`texts`, `conversations`, `messages`, a question with an answer, or images with a `caption`"
    what, expected = ("questions", "a question with an answer") if form == "qa" else (form or "conversations", forms)
    raise VlmixError(
        f"{where}: no {what} are recognised in the columns {', '.join(columns) or '(none)'}; expected is {expected}. "
        "Name the columns: `fields: {question: COLUMN, answer: COLUMN}`"
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
            return bad("unread_media", f"the row has {name!r}; videos and sounds are not read, take frames as images")
    column = reading.columns
    match reading.form:
        case "texts":
            pairs = [
                (one.get("user"), one.get("assistant")) if isinstance(one, dict) else (None, None)
                for one in loaded(row[column["texts"]]) or ()
            ]
            return placed(pairs, images, {"form": "texts"})
        case "conversations" | "messages":
            return turns(row[column[reading.form]], images, reading.form)
        case "qa":
            return questions(row, images, column, reading.response_format)
        case "captions":
            return captions(row[column["caption"]], images)
