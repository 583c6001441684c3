"""Answer files in every form that people have them in."""

from functools import cached_property
from pathlib import Path

import msgspec
from msgspec import Struct

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.surrogates import replace_lone_surrogates

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
        for id in (self.question_id, self.questionId, self.image):
            if id is not None:
                break
        for text in (self.text, self.answer, self.prediction):
            if text is not None:
                break
        if id is None or text is None:
            return None
        return Answer(question_id=str(id), prompt=self.prompt, text=text)


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
    lines = data.splitlines()
    first = next((line for line in lines if line.strip()), b"")
    rows: list[Answer | None]
    if first.lstrip().startswith(b"["):
        rows = [row.answer_row() for row in _whole(path, data, _rows)]
        unit = "record"
    elif first.lstrip().startswith(b"{") and _parse(first) is None and (found := _try_mapping(data)) is not None:
        rows = [Answer(question_id=id, text=text) for id, text in found.items()]
        unit = "record"
    else:
        rows = [_parse(line) for line in lines if line.strip()]
        unit = "line"
    if None in rows:
        numbers = _numbers(lines) if unit == "line" else [n for n, row in enumerate(rows, 1) if row is None]
        if strict or unit == "record" or len(numbers) == len(rows):
            raise VlmixError(
                f"{path}: {_listed(unit, numbers)} of {len(rows):,}: no answer (a JSON object with question_id and "
                "text is expected); the file was cut or is another's: answer these questions again or remove the lines"
            )
        return Answers([row for row in rows if row is not None], path, tuple(numbers))
    if not rows:
        raise VlmixError(f"{path} holds no answers; expected one JSON object with question_id and text a line")
    return Answers([row for row in rows if row is not None], path)


def _parse(line: bytes) -> Answer | None:
    try:
        return _row.decode(line).answer_row()
    except (msgspec.DecodeError, UnicodeDecodeError):
        mended, halves = replace_lone_surrogates(line)
        return _parse(mended) if halves else None


def _numbers(lines: list[bytes]) -> list[int]:
    return [number for number, line in enumerate(lines, 1) if line.strip() and _parse(line) is None]


def _whole(path: Path, data: bytes, decoder: msgspec.json.Decoder[list[_Row]]) -> list[_Row]:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VlmixError(f"{path}: {error}; expected a JSON list of objects with question_id and answer") from None


def _try_mapping(data: bytes) -> dict[str, str] | None:
    try:
        return _mapping.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _listed(unit: str, numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = len(numbers) - _SHOWN
    return f"{unit}{'s' * (len(numbers) > 1)} {shown}" + (f" and {more:,} more" if more > 0 else "")
