"""A mixture's samples as questions: each round with a short answer or the letter of an option is one."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.builders.llava_rows import split_image
from vlmix.builders.own.item import Asked, Item
from vlmix.builders.own.recipe import OwnRecipe
from vlmix.mixture.benchmark.benchmark import Question
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.record import IMAGE_TOKEN
from vlmix.mixture.render import OPTION_LETTER, SHORT_ANSWER

_PROMPTS = {"short_answer": SHORT_ANSWER, "choice": OPTION_LETTER}
"""Response formats that have one right answer, and LLaVA's prompts for them."""
_LEFT_OUT = ("prompt", "ids")


def read(recipe: OwnRecipe, folder: Path, without: Path | None, where: str) -> Asked:
    """The questions of the mixture in `folder`, in its order, but for the samples of `without`.

    Raises VlmixError where there are none, and for what a recipe says that goes with a table.
    """
    for key in _LEFT_OUT:
        if getattr(recipe, key) != getattr(OwnRecipe(name="", questions="", metric=""), key):
            raise VlmixError(f"{where}: {key} goes with a table; a mixture has its own")
    if recipe.metric in ("vqa", "choice"):
        why = "several answers of people" if recipe.metric == "vqa" else "a column of options"
        raise VlmixError(f"{where}: metric {recipe.metric} needs {why}, which a mixture has not; take exact")
    if unknown := sorted(recipe.fields.keys() - {"category", "cluster"}):
        raise VlmixError(f"{where}: `fields` names {unknown[0]!r}; of a mixture it may name category and cluster")
    whole = open_mixture(folder)
    mixture = whole.subset(where=recipe.where) if recipe.where is not None else whole
    notes = []
    if without is not None:
        mixture = _without(mixture, whole, without, where)
    else:
        notes.append("questions of all its samples: a model that was trained on them has seen them; `without` excludes")
    items, several = _items(recipe, mixture, where)
    if not items:
        raise VlmixError(f"{where}: no sample of {folder} has a round with a short answer or a choice and one image")
    if several:
        notes.append(f"{several:,} samples with several images, or with one amid the text, are left out")
    return Asked(items, notes)


def _without(mixture: Mixture, whole: Mixture, other: Path, where: str) -> Mixture:
    """The samples of a mixture that are not in another one, by their ids."""
    known = open_mixture(other).column("id")
    if not pc.any(pc.is_in(whole.column("id"), value_set=pc.unique(known))).as_py():
        raise VlmixError(f"{where}: without: {other} has no sample in common with the mixture; name one of its subsets")
    held_out = np.flatnonzero(~pc.is_in(mixture.column("id"), value_set=pc.unique(known)).to_numpy())
    if not len(held_out):
        raise VlmixError(f"{where}: without: all of its {len(mixture):,} samples are in {other}; nothing is held out")
    return mixture.select(held_out)


def _items(recipe: OwnRecipe, mixture: Mixture, where: str) -> tuple[list[Item], int]:
    """The questions in the mixture's order, and how many samples were left out for their images."""
    category, cluster = recipe.column("category", "source", where), recipe.column("cluster", "image", where)
    columns = {name: mixture.column(name) for name in ("id", "source", "image", category, cluster)}
    count = mixture.column("num_images").to_numpy()
    llava = mixture.root_manifest.recipe.get("prompts") == "llava"
    stored = bool(mixture.root_manifest.shards)
    of_sample: dict[int, list[Item]] = {}
    left_out = 0
    for (positions, texts), (_, formats) in zip(mixture.texts(), mixture.response_formats()):
        plain = {name: _at(column, positions) for name, column in columns.items()}
        for index, (position, turns, of) in enumerate(zip(positions.tolist(), texts, formats)):
            if not any(format in _PROMPTS for format in of):
                continue
            if count[position] > 1 or split_image(turns[0])[1] == "inline":
                left_out += 1
                continue
            said = {name: values[index] for name, values in plain.items()}
            jpeg = partial(_stored, mixture, position) if said["image"] and stored else None
            of_sample[position] = [
                Item(
                    Question(f"{said['id']}#{number}", said["image"], text, jpeg),
                    (turns[2 * number + 1],),
                    str(said[cluster] or said["id"]),
                    ((category, str(said[category])),) if said[category] is not None else (),
                    row={**said, "round": number, "response_format": of[number]},
                )
                for number, text in _rounds(turns, of, llava)
            ]
    return [item for position in sorted(of_sample) for item in of_sample[position]], left_out


def _rounds(turns: Sequence[str], formats: Sequence[str], llava: bool) -> Iterator[tuple[int, str]]:
    """The rounds of a sample that can be asked: number and question, with the prompt of its format where the mixture
    has LLaVA's."""
    for number, format in enumerate(formats):
        text = turns[2 * number] if number else split_image(turns[0])[0]
        if format not in _PROMPTS or IMAGE_TOKEN in text:
            continue
        if llava and not text.endswith(_PROMPTS[format]):  # which stands in the first round of its format alone
            text = f"{text}\n{_PROMPTS[format]}"
        yield number, text


def _at(column: pa.ChunkedArray, positions: NDArray[np.int64]) -> list[Any]:
    return list(column.take(pa.array(positions)).to_pylist())


def _stored(mixture: Mixture, position: int) -> bytes:
    """The image of a sample."""
    return mixture.raw(position).jpegs[0]
