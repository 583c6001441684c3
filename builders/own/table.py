"""Questions in a table: one a row, with its accepted answers."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from xxhash import xxh3_128_hexdigest

from vlmix.builders.llava_rows import split_image
from vlmix.builders.own.item import Asked, Item
from vlmix.builders.own.metrics import FEWEST_HUMANS
from vlmix.builders.own.recipe import OwnRecipe
from vlmix.builders.rows.layout import layout_of
from vlmix.builders.rows.options import RowsOptions
from vlmix.builders.rows.parsed import text_of
from vlmix.builders.rows.questions import correct_option, listed_answers, listed_options, place_of_letter
from vlmix.mixture.benchmark.benchmark import Question
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.io.hub import HUB, download
from vlmix.mixture.io.rows.containers import Container, pieces, read_images
from vlmix.mixture.io.rows.files import find_tables
from vlmix.mixture.io.rows.images import INSIDE, ImageItem
from vlmix.mixture.io.rows.table import Table
from vlmix.mixture.io.rows.text import number_columns
from vlmix.mixture.record import IMAGE_TOKEN, Conversation, Round, is_blank, unsafe_path
from vlmix.mixture.render import LETTERS, render

_OF_ROWS = ("id", "question", "answer", "choices", "correct", "image")
ROLES = (*_OF_ROWS, "category", "cluster")
"""What `fields` may name."""
_OPTION_COLUMNS = LETTERS[:10]


class _Row(NamedTuple):
    """A row where it stands, its values without images, and its images with their columns."""

    place: str
    number: int
    container: Container
    at: int
    values: dict[str, Any]
    images: list[tuple[str, ImageItem]]

    def wrong(self, what: str) -> VlmixError:
        return VlmixError(f"{self.place}: row {self.number}: {what}")


def find(recipe: OwnRecipe, base: Path) -> list[Path]:
    """The tables of a benchmark, whose recipe is in the folder `base`."""
    where = str(download(recipe.questions)) if recipe.questions.startswith(HUB) else recipe.questions
    return find_tables(str(base / Path(where).expanduser()), [])


def read(recipe: OwnRecipe, files: Sequence[Path], images: Path, where: str) -> Asked:
    """The questions of `files`, in their order. `images` is the root of images beside the rows; `where` begins errors
    about the recipe. Raises VlmixError for a row that cannot be asked or scored."""
    if unknown := sorted(recipe.fields.keys() - set(ROLES)):
        raise VlmixError(f"{where}: `fields` names {unknown[0]!r}; what a row may say is {', '.join(ROLES)}")
    columns = _Columns(recipe, files, where)
    rows = _chosen(recipe, _rows(columns, files), where)
    ids = _ids(rows, columns, several=len(files) > 1)
    options = _options(rows, columns, where) if recipe.metric == "choice" else {}
    hashes = _hashes(rows)
    items = []
    for index, (row, id) in enumerate(zip(rows, ids)):
        choices, correct = options.get(index, ((), 0))
        answers = (LETTERS[correct],) if choices else _answers(row, columns, recipe.metric)
        path, inside = _image(row, images, recipe.images)
        text = _text(row, columns, recipe, choices, correct)
        image = hashes.get(index, path)
        cluster = _plain(row.values.get(columns.cluster)) or image or id
        groups = [(name, value) for name in columns.category if (value := _plain(row.values.get(name)))]
        question = Question(id, image, text, partial(_bytes, row.container, row.at) if inside else None)
        said = {**row.values, **({row.images[0][0]: path} if path else {})}
        items.append(Item(question, answers, cluster, tuple(groups), choices, said))
    return Asked(items, [])


class _Columns:
    """Which column of the tables holds what."""

    def __init__(self, recipe: OwnRecipe, files: Sequence[Path], where: str) -> None:
        named = {role: column for role, column in recipe.fields.items() if role in _OF_ROWS}
        self.options = named.pop("choices") if isinstance(named.get("choices"), tuple) else ()
        rows = RowsOptions(path=recipe.questions, form="qa", fields=named, ids=recipe.ids)
        self.tables = [Table(path, rows.image_columns) for path in files]
        there = list(dict.fromkeys(name for table in self.tables for name in table.columns))
        if not there:  # a CSV file with nothing but a header
            raise _nothing_in(files)
        self.of = layout_of(self.tables, rows, where).reading.columns
        if not self.options and "choices" not in self.of:
            self.options = tuple(_leading(there))
        category = recipe.fields.get("category", "category")
        self.category = (category,) if isinstance(category, str) else category
        """Sub-scores by each of these."""
        self.cluster = recipe.column("cluster", "cluster", where)
        for role, names in (("category", self.category), ("cluster", (self.cluster,)), ("choices", self.options)):
            for name in names if role in recipe.fields else ():
                if name not in there:
                    near = nearest(name, there)
                    raise VlmixError(f"{where}: `fields` has {role}: {name}, there is no such column{near}")


def _leading(names: Sequence[str]) -> list[str]:
    """Columns A, B, C … of options."""
    letters = [letter for letter in _OPTION_COLUMNS if letter in names]
    return letters if len(letters) > 1 and letters == list(_OPTION_COLUMNS[: len(letters)]) else []


def _rows(columns: _Columns, files: Sequence[Path]) -> list[_Row]:
    rows = []
    for table in columns.tables:
        container = table.container()
        for batch in table.batches(table.columns):
            for number, broken in batch.broken:
                raise VlmixError(f"{table.path}: row {number}: {broken.detail}; correct the file or take it out")
            values = [dict(zip(batch.columns, cells)) for cells in zip(*batch.columns.values())]
            for index, (number, at, cells) in enumerate(zip(batch.numbers, batch.places, values)):
                images = [(name, item) for name, lists in batch.image_columns.items() for item in lists[index]]
                rows.append(_Row(str(table.path), number, container, at, cells, images))
    if not rows:
        raise _nothing_in(files)
    return rows


def _nothing_in(files: Sequence[Path]) -> VlmixError:
    return VlmixError(f"{', '.join(map(str, files))}: there are no questions in it")


def _chosen(recipe: OwnRecipe, rows: list[_Row], where: str) -> list[_Row]:
    """The rows that `where` admits."""
    if recipe.where is None:
        return rows
    # Imported here: it needs polars, which trainers need not have.
    import polars as pl

    from vlmix.mixture.filters import matching

    names = list(dict.fromkeys(name for row in rows for name in row.values))
    plain = {name: [row.values.get(name) for row in rows] for name in names}
    plain = {
        name: cells
        for name, cells in plain.items()
        if all(cell is None or isinstance(cell, str | int | float) for cell in cells)
    }
    csv = dict.fromkeys(Path(row.place) for row in rows if row.container.kind == "csv")
    for name, kind in number_columns(csv, plain if csv else ()).items():
        plain[name] = [None if cell is None else kind(cell) for cell in plain[name]]
    matches = matching(pl.DataFrame(plain, strict=False), recipe.where, f"{where}: where")
    if not matches.any():
        raise VlmixError(f"{where}: where: {recipe.where!r} is true of none of its {len(rows):,} rows; loosen it")
    return [row for row, is_one in zip(rows, matches) if is_one]


def _ids(rows: Sequence[_Row], columns: _Columns, several: bool) -> list[str]:
    """The id of each row, unique."""
    column = columns.of.get("id")
    first: dict[str, _Row] = {}
    for row in rows:
        id = _plain(row.values.get(column)) if column else str(row.number)
        if not id:
            raise row.wrong(f"it has no id in column {column!r}; write one, or take the rows' numbers with `ids: row`")
        if several and not column:
            id = f"{Path(row.place).stem}/{id}"
        if id in first:
            other = first[id]
            place = f"{other.place}: row {other.number}" if other.place != row.place else f"row {other.number}"
            raise row.wrong(
                f"its id {id!r} is that of {place} too; give each its own, name another column with "
                "`fields: {id: COLUMN}`, or take the rows' numbers with `ids: row`"
            )
        first[id] = row
    return list(first)


def _text(row: _Row, columns: _Columns, recipe: OwnRecipe, choices: tuple[str, ...], correct: int) -> str:
    """What the model is asked."""
    name = columns.of["question"]
    value = row.values.get(name)
    if isinstance(value, list):
        raise row.wrong(f"column {name!r} holds several questions; write one a row")
    question = split_image(text_of(value) or "")[0]
    if is_blank(question):
        raise row.wrong(f"its question in column {name!r} is empty")
    if recipe.prompt:
        lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices))
        text = _filled(recipe.prompt, {**row.values, "question": question, "options": lines}, row)
    elif choices:
        asked = Round(question, choices[correct], "choice", choices, correct)
        text = render(Conversation("", "", (asked,)))[0]
    else:
        text = render(Conversation("", "", (Round(question, "", "short_answer"),)))[0]
    if IMAGE_TOKEN in text:
        raise row.wrong(f"its text has {IMAGE_TOKEN} inside; the image stands before a question, so take it out")
    return text


def _filled(prompt: str, values: Mapping[str, Any], row: _Row) -> str:
    """A prompt with what its braces name; `{{` is a brace."""
    parts = []
    try:
        found = list(Formatter().parse(prompt))
    except ValueError as error:
        raise VlmixError(f"prompt: {prompt!r}: {error}; write a brace that is none as {{{{ or }}}}") from None
    for text, name, form, conversion in found:
        parts.append(text)
        if name is None:
            continue
        if form or conversion or name not in values:
            shown = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}}"
            raise VlmixError(f"prompt: there is no column {shown[1:-1]!r}{nearest(name, values)}")
        value = values[name]
        if (cell := "" if value is None else text_of(value)) is None:
            raise row.wrong(f"column {name!r}, which the prompt names, is {type(value).__name__}, expected text")
        parts.append(cell)
    return "".join(parts)


def _answers(row: _Row, columns: _Columns, metric: str) -> tuple[str, ...]:
    """The accepted answers of a row."""
    name = columns.of.get("answer", "")
    value = listed_answers(row.values.get(name), name)
    listed = value if isinstance(value, list) else [value]
    texts = [_answer(one.get("answer") if isinstance(one, dict) else one, row, name) for one in listed]
    if not texts or (metric != "vqa" and any(is_blank(text) for text in texts)):
        raise row.wrong(f"its answer in column {name!r} is empty; leave it out with `where`, or write one")
    if metric == "vqa" and len(texts) < FEWEST_HUMANS:
        raise row.wrong(
            f"it has {len(texts)} answers, and vqa counts how many of at least {FEWEST_HUMANS} people agree; take "
            "`metric: exact`, for which the best of several accepted answers counts"
        )
    return tuple(texts)


def _answer(value: Any, row: _Row, name: str) -> str:
    if isinstance(value, bool):
        raise row.wrong(f"its answer is {str(value).lower()}; write it as text, such as yes or no")
    if (text := "" if value is None else _plain(value)) is not None:
        return text
    raise row.wrong(f"its answer in column {name!r} is {type(value).__name__}, expected text or a list of texts")


def _plain(value: Any) -> str | None:
    """A value as text; whole numbers as such, also where a missing one made pandas write all as 3.0."""
    return text_of(int(value) if isinstance(value, float) and value.is_integer() else value)


def _options(rows: Sequence[_Row], columns: _Columns, where: str) -> dict[int, tuple[tuple[str, ...], int]]:
    """The options of each row and the number of the right one.

    An answer may be the label of an option, if the options have any, else its text, its letter or its number from 0.
    What fits all rows is meant; where that is several, or nothing is, a row that can be read in two ways is an error.
    """
    listed = columns.of.get("choices")
    if not listed and not columns.options:
        raise VlmixError(
            f"{where}: metric choice needs the options: a column `choices`, columns A, B, C …, or `fields: {{choices: "
            "COLUMN}`, a list of columns too"
        )
    found, readings = [], []
    for row in rows:
        values = row.values[listed] if listed else [row.values.get(name) for name in columns.options]
        labels, given = listed_options(values)
        choices = tuple(text_of(choice) or "" for choice in given)
        if len(choices) < 2 or "" in choices or len(choices) > len(LETTERS):
            what = f"option {choices.index('') + 1} is empty" if "" in choices else f"it has {len(choices)} options"
            raise row.wrong(f"{what}; expected are 2 to {len(LETTERS)}")
        index = row.values.get(columns.of.get("correct", ""))
        if index is not None:
            if (correct := correct_option(index, None, choices, labels)) is None:
                raise row.wrong(f"{index!r} is none of its {len(choices)} options")
            readings.append({"correct": correct})
        else:
            readings.append(_readings(row.values.get(columns.of.get("answer", "")), choices, labels))
        found.append(choices)
    kinds = ("label", "text", "letter", "number")
    common = [kind for kind in kinds if all(kind in of or "correct" in of for of in readings)]
    common = ["label"] if "label" in common else common
    chosen = {}
    for index, (row, choices, of) in enumerate(zip(rows, found, readings)):
        meant = {of[kind] for kind in ("correct", "again", *common) if kind in of} if common else set(of.values())
        if len(meant) != 1:
            answer = row.values.get(columns.of.get("answer", ""))
            if not meant:
                raise row.wrong(f"the answer {answer!r} is none of its {len(choices)} options")
            ways = " or ".join(LETTERS[number] for number in sorted(meant))
            raise row.wrong(
                f"the answer {answer!r} may mean option {ways} of {', '.join(choices)}; write letters, or if it is the "
                f"number of an option, from 0, say so: `fields: {{correct: {columns.of.get('answer')}}}`"
            )
        chosen[index] = choices, meant.pop()
    return chosen


def _readings(answer: Any, choices: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """How an answer may be read -> which option it means then."""
    text = (_plain(answer) or "").strip()
    readings = {}
    if text in labels:
        readings["label"] = labels.index(text)
    if same := [number for number, choice in enumerate(choices) if choice == text]:
        readings |= {"text": same[0], "again": same[-1]}
    if (place := place_of_letter(text, labels, len(choices))) is not None:
        readings["letter"] = place
    if re.fullmatch(r"\d{1,2}", text) and int(text) < len(choices):
        readings["number"] = int(text)
    return readings


def _image(row: _Row, root: Path, named: str) -> tuple[str, bool]:
    """The path of a row's image below the root, "" for none, and whether it is inside the row instead."""
    if len(row.images) > 1:
        count = len(row.images)
        raise row.wrong(f"it has {count} images, and a question has one; `fields: {{image: COLUMN}}` names it")
    if not row.images:
        return "", False
    _, item = row.images[0]
    if item is None:
        raise row.wrong("its image is null or not an image")
    if item == INSIDE:
        return "", True
    if "://" in item:
        raise row.wrong(f"its image {item} is a URL; download the images and name their folder in `images`")
    path = item
    for prefix in (f"{root}/", f"{root.resolve()}/"):
        path = path.removeprefix(prefix)
    while path.startswith("./"):
        path = path[2:]
    if problem := unsafe_path(path):
        raise row.wrong(f"{problem}; paths are below `images`, which is {named}")
    return path, False


def _hashes(rows: Sequence[_Row]) -> dict[int, str]:
    """Of the images inside rows, so that questions about the same picture are known."""
    of_container: dict[Container, dict[int, int]] = {}
    for index, row in enumerate(rows):
        if [item for _, item in row.images] == [INSIDE]:
            of_container.setdefault(row.container, {})[row.at] = index
    return {
        places[at]: xxh3_128_hexdigest(b"".join(images))
        for container, places in of_container.items()
        for part in pieces(container, sorted(places))
        for at, images in zip(part, read_images(container, part))
    }


def _bytes(container: Container, at: int) -> bytes:
    """The image of a row."""
    return next(read_images(container, [at]))[0]
