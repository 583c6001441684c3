"""MMBench and MMBench-CN: circular accuracy with VLMEvalKit's exact matching, which asks no other model."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from vlmix.builders.benchmarks.sheet import write_sheet
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, Labels, Question, Scored, match, percent
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.official import OfficialFiles, RawFile
from vlmix.mixture.render import LETTERS, OPTION_LETTER

_OPTIONS = "ABCD"
_OPTION_LETTER_CN = "请直接回答选项字母。"
_ROTATION = 1_000_000  # rotated copies of question n have the ids n + 1,000,000, n + 2,000,000 …
_NOT_SUBMITTED = ("hint", "category", "source", "image", "comment", "l2-category")
_PREDICTION_COLUMN = 6
_REFERENCE = 64  # an image cell no longer than this names the row that has the image
# What pandas reads as no value, by which both LLaVA and VLMEvalKit read the file.
_NO_VALUE = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4
_SENTENCE = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)

Row = dict[str, str]


def chosen(text: str, choices: Mapping[str, str]) -> str | None:
    """The option that an answer means, by exact matching: `choices` maps letters to texts. None if it means none or
    several; "Z", which is never right, if it refuses.

    A letter counts if it is the only one among the answer's words, punctuation aside, and first stands within the last
    four; then "answer is X"; then the one option whose text the answer holds, unless the answer is more than twice as
    long as all options together.
    """
    if "Failed to obtain answer via API" not in text:
        if any(refusal in text for refusal in _REFUSALS):
            return "Z"
        words = text.translate(_MARKS).split()
        letters = [letter for letter in choices if letter in words]
        if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
            return letters[0]
        if not letters and "Z" in words:
            return "Z"
        if (found := _SENTENCE.search(text)) and found[1].upper() in choices:
            return found[1].upper()
    lower = text.lower()
    if len(lower) > 2 * sum(len(choice) for choice in choices.values()):
        return None
    held = [letter for letter, choice in choices.items() if choice.lower() in lower]
    return held[0] if len(held) == 1 else None


def asked_options(row: Mapping[str, str]) -> list[str]:
    """The options of a question in LLaVA's prompt, which end at the first missing one."""
    options = []
    for letter in _OPTIONS:
        text = row.get(letter, "")
        if text in _NO_VALUE or text.lower() in ("nan", "none"):
            break
        options.append(text)
    return options


def _opened(files: OfficialFiles, split: str, pattern: str, images: bool) -> tuple[Path, list[Row]]:
    path = files.main(pattern, split or "dev")
    rows = _table(files, path, images)
    if not rows:
        raise files.wrong(path, "it has no questions")
    if absent := [name for name in ("index", "question", "A", "B") if name not in rows[0]]:
        raise files.wrong(path, f"it has no column {absent[0]!r}")
    if bad := [row["index"] for row in rows if not row["index"].isdecimal()]:
        raise files.wrong(path, f"its index holds {bad[0][:40]!r}, no number")
    return path, rows


def _table(files: OfficialFiles, path: Path, images: bool) -> list[Row]:
    """The rows of a tab-separated file with quoted fields, all text; the column of images only if wanted."""
    data = bytes(files.read(path))
    columns = data.split(b"\n", 1)[0].decode(errors="replace").strip("\r").split("\t")
    try:
        table = pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pacsv.ParseOptions(delimiter="\t", newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.large_string() for name in columns},
                include_columns=[name for name in columns if images or name != "image"],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise VlmixError(f"{path}: {str(error).splitlines()[0]}; get it again from {files.homepage}") from None
    rows: list[Row] = table.to_pylist()
    return rows


def _image(rows: Mapping[str, Row], row: Row, path: Path) -> bytes:
    cell = row.get("image", "")
    if len(cell) <= _REFERENCE and cell in rows:
        cell = rows[cell].get("image", "")
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise VlmixError(
            f"{path}: question {row['index']}: its image is no base64 text ({error}); get the file again"
        ) from None


def _benchmark(name: str, title: str, pattern: str, instruction: str) -> Benchmark:
    def questions(files: OfficialFiles, split: str) -> list[Question]:
        path, rows = _opened(files, split, pattern, images=True)
        if "image" not in rows[0]:
            raise files.wrong(path, "it has no column 'image'")
        by_index = {row["index"]: row for row in rows}
        return [Question(row["index"], "", _prompt(row, instruction), _image(by_index, row, path)) for row in rows]

    def labels(files: OfficialFiles, split: str) -> Labels:
        path, rows = _opened(files, split, pattern, images=False)
        if "answer" not in rows[0]:
            raise files.wrong(path, "it has no column 'answer', as in a test split")
        return {row["index"]: (row["answer"],) for row in rows}

    def rate(answers: Answers, files: OfficialFiles, split: str) -> Scored:
        path, rows = _opened(files, split, pattern, images=False)
        return _score_answers(name, answers, path, rows, split or rows[0].get("split") or "dev", files)

    def submit(answers: Answers, files: OfficialFiles, split: str, out: Path) -> str:
        path, rows = _opened(files, split, pattern, images=False)
        matched = match(answers, dict.fromkeys(row["index"] for row in rows), path)
        header = [column for column in rows[0] if column not in _NOT_SUBMITTED]
        header.insert(_PREDICTION_COLUMN, "prediction")
        with atomic_write(out) as file:
            write_sheet(file, header, ([_cell(row, column, matched.texts) for column in header] for row in rows))
        return f"{out}: {len(rows):,} rows, {matched.missing:,} without a prediction"

    return Benchmark(
        name=name,
        title=title,
        metric="circular accuracy, exact matching",
        homepage="https://github.com/open-compass/MMBench",
        files=(RawFile(pattern, "questions in all rotations, with their images"),),
        splits=("dev", "test"),
        read_questions=questions,
        read_labels=labels,
        score_answers=rate,
        submit=submit,
        max_new_tokens=1024,
    )


def _prompt(row: Row, instruction: str) -> str:
    hint = row.get("hint", "")
    lines = [] if hint in _NO_VALUE or hint.lower() in ("nan", "none") else [hint]
    lines += [row["question"], *(f"{letter}. {text}" for letter, text in zip(_OPTIONS, asked_options(row)))]
    return "\n".join([*lines, instruction])


def _cell(row: Row, column: str, texts: Mapping[str, str]) -> str | int | None:
    if column == "prediction":
        return texts.get(row["index"])
    text = row[column]
    return int(text) if column == "index" else None if text in _NO_VALUE else text


def _score_answers(
    name: str, answers: Answers, path: Path, rows: list[Row], split: str, files: OfficialFiles
) -> Scored:
    rows = [row for row in rows if answers.asks(row["index"])]
    matched = match(answers, dict.fromkeys(row["index"] for row in rows), path)
    labelled = [row for row in rows if row.get("answer", "") in LETTERS and row.get("answer")]
    if not labelled:
        raise files.wrong(path, "it has no answers: the server keeps the labels of test; write --submission for it")
    groups: dict[int, list[bool]] = {}
    answered: dict[int, bool] = {}
    guessed: dict[int, float] = {}
    mains: dict[int, Row] = {}
    tallies, unmatched = Tallies(), 0
    for row in labelled:
        index = int(row["index"])
        group = index % _ROTATION
        choices = {letter: row[letter] for letter in LETTERS if row.get(letter, "") not in _NO_VALUE}
        text = matched.texts.get(row["index"])
        letter = None if text is None else chosen(text, choices)
        unmatched += text is not None and letter is None
        groups.setdefault(group, []).append(letter == row["answer"])
        answered[group] = answered.get(group, True) and text is not None
        guessed[group] = guessed.get(group, 1.0) / max(1, len(choices))
        tallies.add("single rotations", row["index"], str(group), letter == row["answer"], answered=text is not None)
        if index == group:
            mains[group] = row
    for group, row in mains.items():
        kinds = [f"{column}/{value}" for column in ("l2-category", "category") if (value := row.get(column))]
        hit = all(groups[group])
        tallies.add_shares([(kind, hit) for kind in ("", *kinds)], str(group), str(group), answered[group])
    if not mains:
        raise files.wrong(path, "none of its rows is the unrotated one of its group")
    metrics = tallies.percents()
    single = metrics.pop("single rotations")
    chance = percent(sum(guessed[group] for group in mains), len(mains))
    score = metrics.pop("")
    notes = [
        f"{len(mains):,} questions in {len(labelled):,} rotations; a question is right if every rotation is; exact "
        "matching without a judge, an answer that matches no option is wrong"
    ]
    if unmatched:
        notes.append(f"{unmatched:,} answers match no option")
    if len(groups) > len(mains):
        notes.append(f"{len(groups) - len(mains):,} groups have no unrotated row and do not count")
    return matched.report(name, split, score, {**metrics, "single rotations": single}, notes, tallies, chance)


MMBENCH = _benchmark("mmbench", "MMBench", "mmbench_{split}_20230712.tsv", OPTION_LETTER)
MMBENCH_CN = _benchmark("mmbench-cn", "MMBench-CN", "mmbench_{split}_cn_20231003.tsv", _OPTION_LETTER_CN)

BENCHMARKS = (MMBENCH, MMBENCH_CN)
