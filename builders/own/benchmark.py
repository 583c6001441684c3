"""A benchmark of one's own: its YAML file made a `Benchmark`, so that all commands take it like any other."""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from vlmix.builders.own import samples, table
from vlmix.builders.own.item import Asked
from vlmix.builders.own.metrics import Metric, metric_named
from vlmix.builders.own.recipe import OwnRecipe
from vlmix.mixture.benchmark.answers import Answers
from vlmix.mixture.benchmark.benchmark import Benchmark, OwnFiles, Scored, match, percent
from vlmix.mixture.benchmark.values import Tallies
from vlmix.mixture.dataset.manifest import NAME as MANIFEST_NAME
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import strict_yaml as strict
from vlmix.mixture.io.official import OfficialFiles, RawFile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ALL = "all"


def read(path: Path, allow_code: bool = False) -> Benchmark:
    """The benchmark that the YAML file at `path` defines (see `OwnRecipe`).

    `allow_code` lets its metric be a function that it names. Raises VlmixError for what is wrong in the recipe; its
    questions are read when they are asked for.
    """
    where = strict.label(path)
    data = strict.load(path)
    if not isinstance(data, dict):
        raise VlmixError(f"{where}: a benchmark is a mapping with `name`, `questions` and `metric`")
    strict.check_keys(data, OwnRecipe, where)
    recipe: OwnRecipe = strict.convert(data, OwnRecipe, where)
    if not _NAME.fullmatch(recipe.name):
        raise VlmixError(f"{where}: name: {recipe.name!r} is to name a folder: letters, digits, dots, - and _")
    metric = metric_named(recipe.metric, allow_code, where)
    base = path.absolute().parent
    images = base / Path(recipe.images).expanduser()
    mixture = base / Path(recipe.questions).expanduser()
    if (mixture / MANIFEST_NAME).is_file():
        without = None if recipe.without is None else base / Path(recipe.without).expanduser()
        inputs = [folder / MANIFEST_NAME for folder in (mixture, without) if folder is not None]
        ask = cache(partial(samples.read, recipe, mixture, without, where))
    else:
        if recipe.without is not None:
            raise VlmixError(f"{where}: without goes with a mixture; of a table, `where` chooses the rows")
        inputs = table.find(recipe, base)
        ask = cache(partial(table.read, recipe, inputs, images, where))
    return Benchmark(
        name=recipe.name,
        title=recipe.title or recipe.name,
        metric=metric.title,
        homepage="",
        files=tuple(RawFile(file.name, "questions") for file in inputs),
        splits=(),
        read_questions=lambda files, split: [item.question for item in ask().items],
        read_labels=lambda files, split: {item.question.id: item.answers for item in ask().items},
        score_answers=_scorer(recipe, metric, ask),
        max_new_tokens=recipe.max_new_tokens,
        own=OwnFiles(path, images, (path, *inputs)),
    )


def _scorer(
    recipe: OwnRecipe, metric: Metric, ask: Callable[[], Asked]
) -> Callable[[Answers, OfficialFiles, str], Scored]:
    def score(answers: Answers, files: OfficialFiles, split: str) -> Scored:
        items, notes = ask()
        items = [item for item in items if answers.asks(item.question.id)]
        matched = match(answers, dict.fromkeys(item.question.id for item in items), files.path)
        kinds = Counter(column for column, _ in {group for item in items for group in item.groups})
        tallies = Tallies()
        for item in items:
            id = item.question.id
            text = matched.texts.get(id)
            value = 0.0 if text is None else metric.rate(text, item)
            names = ["", *(f"{column}/{group}" for column, group in item.groups if kinds[column] > 1)]
            tallies.add_shares([(name, value) for name in names], id, item.cluster, text is not None)
        metrics = tallies.percents()
        options = [len(item.options) for item in items]
        chance = percent(sum(1 / count for count in options), len(options)) if all(options) else None
        notes = [f"{metric.title}: {metric.rule}; missing answers are wrong", *notes]
        notes += [recipe.note] if recipe.note else []
        return matched.report(recipe.name, _ALL, metrics.pop(""), metrics, notes, tallies, chance)

    return score
