"""Answer files in every form that people have them in."""

from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.surrogates import replace_lone_surrogates

Decoded = TypeVar("Decoded")
_SHOWN = 5  # records that an error names


class Answer(Struct, kw_only=True):
    """A model's answer to one question; `prompt` is what was asked, where the file says so."""

    question_id: str
    prompt: str = ""
    text: str


class Answers:
    """The rows of an answer file in their order, double ones included.

    `damaged` holds the numbers (from 1) of lines that are no answers, which only `read_answers(strict=False)` lets
    pass. `asked` are the ids of the questions that were asked, where they are a part of the benchmark's: scores are
    then those of the part.
    """

    def __init__(
        self,
        rows: list[Answer],
        path: Path | None = None,
        damaged: tuple[int, ...] = (),
        asked: frozenset[str] | None = None,
    ) -> None:
        self.rows = rows
        self.path = path
        self.damaged = damaged
        self.asked = asked

    def asks(self, id: str) -> bool:
        """Whether a question counts."""
        return self.asked is None or id in self.asked

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def texts(self) -> dict[str, str]:
        """Question id -> text; of a double id the last, as a dictionary filled line by line keeps it."""
        return {row.question_id: row.text for row in self.rows}


class _Row(Struct):
    """The keys under which tools write: LLaVA `question_id`/`text`, VQA's servers `answer`, GQA `questionId` and
    `prediction`, VizWiz `image`, SEED-Bench `prediction`."""

    question_id: int | str | None = None
    questionId: int | str | None = None
    image: str | None = None
    prompt: str = ""
    text: str | None = None
    answer: str | None = None
    prediction: str | None = None

    def answer_row(self) -> Answer | None:
        ids = [id for id in (self.question_id, self.questionId, self.image) if id is not None]
        texts = [text for text in (self.text, self.answer, self.prediction) if text is not None]
        if not ids or not texts:
            return None
        return Answer(question_id=str(ids[0]), prompt=self.prompt, text=texts[0])


_row = msgspec.json.Decoder(_Row)
_rows = msgspec.json.Decoder(list[_Row])
_mapping = msgspec.json.Decoder(dict[str, str])


def read_answers(path: Path, *, strict: bool = True) -> Answers:
    """The answers of a file: LLaVA's JSONL (`question_id`, `prompt`, `text`), or a JSON list of such rows with
    `answer` or `prediction` for the text, as servers take it, or one JSON object of id -> text (MM-Vet, A-OKVQA).

    Ids may be numbers or strings. Raises VlmixError for a file that is missing or holds no answer, and, unless
    `strict` is false, for one with damaged lines, which it names by number.
    """
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror}; --answers names a model's answer file") from None
    lines = [(number, line) for number, line in enumerate(data.splitlines(), 1) if line.strip()]
    first = lines[0][1].lstrip() if lines else b""
    rows: list[Answer | None]
    unit = "record"
    if first.startswith(b"["):
        try:
            rows = [row.answer_row() for row in _rows.decode(data)]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise VlmixError(f"{path}: {error}; expected a JSON list of objects with question_id and answer") from None
    elif first.startswith(b"{") and _parse(first) is None and (texts := decoded(_mapping, data)) is not None:
        rows = [Answer(question_id=id, text=text) for id, text in texts.items()]
    else:
        rows = [_parse(line) for _, line in lines]
        unit = "line"
    answers = [row for row in rows if row is not None]
    numbers = [number for number, _ in lines] if unit == "line" else range(1, len(rows) + 1)
    damaged = tuple(number for number, row in zip(numbers, rows) if row is None)
    if damaged and (strict or unit == "record" or not answers):
        raise VlmixError(
            f"{path}: {_listed(unit, damaged)} of {len(rows):,}: no answer (a JSON object with question_id and "
            "text is expected); the file was cut or is another's: answer these questions again or remove the lines"
        )
    if not rows:
        raise VlmixError(f"{path} holds no answers; expected one JSON object with question_id and text a line")
    return Answers(answers, path, damaged)


def decoded(decoder: msgspec.json.Decoder[Decoded], data: bytes) -> Decoded | None:
    """What `data` holds, None if it is not such JSON."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _parse(line: bytes) -> Answer | None:
    row = decoded(_row, line)
    if row is not None:
        return row.answer_row()
    mended, halves = replace_lone_surrogates(line)
    return _parse(mended) if halves else None


def _listed(unit: str, numbers: tuple[int, ...]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = len(numbers) - _SHOWN
    return f"{unit}{'s' * (len(numbers) > 1)} {shown}" + (f" and {more:,} more" if more > 0 else "")
