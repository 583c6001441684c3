"""`vlmix overlaps`: what of a mixture is there twice, and what of it evaluation sets show."""

from pathlib import Path
from typing import Annotated

import typer

from vlmix.cli import show
from vlmix.cli.lookup import benchmark_names
from vlmix.cli.options import CORES, AllowCodeOpt, JsonOpt, WorkersOpt
from vlmix.mixture.errors import VlmixError


def overlaps(
    mixture: Annotated[Path, typer.Argument(help="A mixture or a view.")],
    out: Annotated[Path, typer.Option("--out", help="New Parquet file, outside of the mixture.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with the questions of this benchmark, a name or a YAML file, NAME:SPLIT for another split. "
            "Repeatable.",
            autocompletion=benchmark_names,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the official files, or one with a folder per benchmark.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Image root in LLaVA's layout, before --data. Repeatable.")
    ] = None,
    near: Annotated[int, typer.Option(help="Bits of 256 in which near pictures may differ.", min=0, max=96)] = 56,
    flipped: Annotated[
        bool, typer.Option("--flipped", help="Look for questions' pictures in a mirror as well.")
    ] = False,
    workers: WorkersOpt = CORES,
    allow_code: AllowCodeOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """List duplicates in a mixture, and its overlaps with evaluation sets."""
    from vlmix.builders import benchmark_named
    from vlmix.builders.layout import picture_id
    from vlmix.mixture.benchmark.benchmark import EvaluationSet
    from vlmix.mixture.overlaps import table
    from vlmix.mixture.overlaps.find import find

    if out.exists():
        raise VlmixError(f"{out} exists already; choose another --out or remove it")
    if mixture.resolve() in out.resolve().parents:
        raise VlmixError(f"{out} is inside of the mixture, which is finished; write it beside")
    sets = []
    for text in benchmark or []:
        name, _, split = text.partition(":")
        one = benchmark_named(name, allow_code)
        if one.own is None and data is None:
            raise typer.BadParameter(f"--data is needed: {name} is read from its official files")
        sets.append(EvaluationSet(benchmark=one, data=data, images=tuple(images or ()), split=split))
    with show.progress() as progress:
        found = find(
            mixture, sets, picture_id=picture_id, most=near, flipped=flipped, workers=workers, progress=progress
        )
    table.write(out, found)
    show.overlapping(found, out, as_json)
