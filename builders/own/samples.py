"""A mixture's samples as questions: each round with a short answer or the letter of an option is one."""

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
    names = {role: recipe.fields.get(role) for role in ("category", "cluster")}
    for role, name in names.items():
        if isinstance(name, tuple):
            raise VlmixError(f"{where}: `fields` has several columns for {role}; name one")
    category, cluster = names["category"] or "source", names["cluster"] or "image"
    columns = {name: mixture.column(str(name)) for name in ("id", "source", "image", category, cluster)}
    count = mixture.column("num_images").to_numpy()
    llava = mixture.root_manifest.recipe.get("prompts") == "llava"
    stored = bool(mixture.root_manifest.shards)
    of_sample: dict[int, list[Item]] = {}
    left_out = 0
    for (positions, texts), (_, formats) in zip(mixture.texts(), mixture.response_formats()):
        plain = {name: _at(column, positions) for name, column in columns.items()}
        for index, (position, turns, of) in enumerate(zip(positions.tolist(), texts, formats)):
            first, place = split_image(turns[0])
            if not any(format in _PROMPTS for format in of):
                continue
            if count[position] > 1 or place == "inline":
                left_out += 1
                continue
            said = {str(name): values[index] for name, values in plain.items()}
            image = said["image"]
            item_bytes = partial(_stored, mixture, position) if image and stored else None
            found = of_sample.setdefault(position, [])
            for number, format in enumerate(of):
                text = turns[2 * number] if number else first
                if format not in _PROMPTS or IMAGE_TOKEN in text:
                    continue
                if llava and not text.endswith(_PROMPTS[format]):  # which stands in the first round of its format alone
                    text = f"{text}\n{_PROMPTS[format]}"
                id = f"{said['id']}#{number}"
                found.append(
                    Item(
                        Question(id, image, text, item_bytes),
                        (turns[2 * number + 1],),
                        str(said[str(cluster)] or said["id"]),
                        ((str(category), str(said[str(category)])),) if said[str(category)] is not None else (),
                        row={**said, "round": number, "response_format": format},
                    )
                )
    return [item for position in sorted(of_sample) for item in of_sample[position]], left_out


def _at(column: pa.ChunkedArray, positions: NDArray[np.int64]) -> list[Any]:
    return list(column.take(pa.array(positions)).to_pylist())


def _stored(mixture: Mixture, position: int) -> bytes:
    """The image of a sample."""
    return mixture.raw(position).jpegs[0]
