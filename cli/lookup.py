"""What comes with vlmix: sources, benchmarks, recipes and pages; as commands, and as completions of a shell."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmix.cli import documents, recipes, show
from vlmix.cli.options import JsonOpt
from vlmix.mixture.errors import VlmixError, nearest

if TYPE_CHECKING:
    from vlmix.mixture.benchmark.benchmark import EvaluationSet


def source_names() -> list[str]:
    from vlmix.builders import known_sources

    return list(known_sources())


def benchmark_names() -> list[str]:
    from vlmix.builders import known_benchmarks

    return list(known_benchmarks())


def recipe_names(kind: str = "") -> list[str]:
    """Names of packaged recipes: of one kind, or of all."""
    return [name for each in ([kind] if kind else recipes.KINDS) for name in recipes.packaged(each)]


def evaluation_set(text: str, data: Path | None, images: Sequence[Path] | None, allow_code: bool) -> "EvaluationSet":
    """The one that `NAME`, `NAME:SPLIT` or the path of a YAML file means, with its files in `data`."""
    from vlmix.builders import benchmark_named
    from vlmix.mixture.benchmark.benchmark import EvaluationSet

    name, _, split = (text, "", "") if Path(text).is_file() else text.partition(":")
    one = benchmark_named(name, allow_code)
    if one.own is None and data is None:
        raise typer.BadParameter(f"--data is needed: {name} is read from its official files")
    return EvaluationSet(benchmark=one, data=data, images=tuple(images or ()), split=split)


def sources(
    name: Annotated[
        str | None,
        typer.Argument(help="Show one source with its files and options.", autocompletion=source_names),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """List the builders: which official files they read, their licenses, home pages and options."""
    from vlmix.builders import known_sources

    if name is None:
        show.sources(list(known_sources().values()), as_json)
    elif name in known_sources():
        show.source(known_sources()[name], as_json)
    else:
        raise VlmixError(f"there is no source {name!r}{nearest(name, known_sources())}")


def benchmarks(as_json: JsonOpt = False) -> None:
    """List the benchmarks: which official files they read, and their splits."""
    from vlmix.builders import known_benchmarks

    show.benchmarks(list(known_benchmarks().values()), as_json)


def recipes_command(
    name: Annotated[
        str | None, typer.Argument(help="Print one recipe, to copy and change.", autocompletion=lambda: recipe_names())
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """List the recipes that come with vlmix, or print one."""
    packaged = {kind: recipes.packaged(kind) for kind in recipes.KINDS}
    if name is None:
        titles = {kind: {n: recipes.title(path) for n, path in found.items()} for kind, found in packaged.items()}
        show.recipes(titles, as_json)
        return
    found = {n: path for kind in packaged.values() for n, path in kind.items()}
    if name not in found:
        raise VlmixError(f"there is no recipe {name!r}{nearest(name, found)}")
    typer.echo(found[name].read_text(encoding="utf-8"), nl=False)


def docs(
    name: Annotated[
        str | None,
        typer.Argument(help="Show one page.", autocompletion=lambda: list(documents.pages())),
    ] = None,
) -> None:
    """List the pages of the documentation, or show one."""
    if name is None:
        show.pages(documents.pages())
    else:
        show.page(documents.page(name))
