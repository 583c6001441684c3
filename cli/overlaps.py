"""`vlmix overlaps`: what of a mixture is there twice, and what of it evaluation sets show."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from vlmix.cli import show
from vlmix.cli.lookup import benchmark_names, evaluation_set
from vlmix.cli.options import CORES, AllowCodeOpt, EvalDataOpt, EvalImagesOpt, JsonOpt, WorkersOpt
from vlmix.mixture.errors import VlmixError

if TYPE_CHECKING:
    from vlmix.mixture.overlaps.table import Checked, Overlaps


def overlaps(
    mixture: Annotated[
        str, typer.Argument(help="A mixture or a view: a folder, or a URL such as s3://bucket/mixture.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New Parquet file, outside of the mixture.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with the questions of this benchmark, a name or a YAML file, NAME:SPLIT for another split. "
            "Repeatable.",
            autocompletion=benchmark_names,
        ),
    ] = None,
    data: EvalDataOpt = None,
    images: EvalImagesOpt = None,
    near: Annotated[int, typer.Option(help="Bits of 256 in which near pictures may differ.", min=0, max=96)] = 56,
    flipped: Annotated[bool, typer.Option("--flipped", help="Look for pictures in a mirror as well.")] = False,
    embeddings: Annotated[
        list[Path] | None,
        typer.Option(help="File of `vlmix embed`, of the mixture or of an evaluation set: compares them. Repeatable."),
    ] = None,
    cosine: Annotated[float, typer.Option(help="Least cosine of embeddings that are alike.", min=0.5, max=1)] = 0.97,
    workers: WorkersOpt = CORES,
    allow_code: AllowCodeOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """List duplicates in a mixture, and its overlaps with evaluation sets."""
    from vlmix.builders.layout import picture_id
    from vlmix.mixture.overlaps import table
    from vlmix.mixture.overlaps.embeddings import read as read_embeddings
    from vlmix.mixture.overlaps.find import Alike, find
    from vlmix.mixture.overlaps.questions import Asked

    if out.exists():
        raise VlmixError(f"{out} exists already; choose another --out or remove it")
    if inside := next((folder for folder in out.resolve().parents if (folder / "manifest.json").is_file()), None):
        raise VlmixError(f"{out} is inside of the mixture {inside.name}, which is finished; write it beside")
    if again := {text for text in benchmark or () if (benchmark or []).count(text) > 1}:
        raise typer.BadParameter(f"--benchmark {min(again)} is there twice")
    sets = [Asked(evaluation_set(text, data, images, allow_code), near, flipped) for text in benchmark or ()]
    embedded = read_embeddings(embeddings) if embeddings else None
    for one in (
        () if embedded is None else embedded.questions.keys() - {(s.set.benchmark.name, s.set.split) for s in sets}
    ):
        raise typer.BadParameter(f"--embeddings has {':'.join(filter(None, one))}, which no --benchmark names")
    with show.progress() as progress:
        found = find(
            mixture,
            sets,
            picture_id=picture_id,
            most=near,
            flipped=flipped,
            embeddings=None if embedded is None else Alike(embedded, cosine),
            workers=workers,
            progress=progress,
        )
    table.write(out, found)
    _show(found, out, as_json)


def _show(overlaps: "Overlaps", file: Path, as_json: bool) -> None:
    from vlmix.mixture.overlaps.table import touched

    counts = touched(overlaps)
    if as_json:
        checked = [msgspec.structs.replace(one, questions=[], left_out=[]) for one in overlaps.about.checked]
        show.done("", {"file": str(file), "overlaps": counts, "checked": checked}, as_json=True)
        return
    show_overlaps(overlaps)
    show.say(f"{file}: {overlaps.rows.num_rows:,} rows")


def show_overlaps(overlaps: "Overlaps") -> None:
    """By evaluation set, source and level how many samples and questions overlap, and what was not compared."""
    from vlmix.mixture.overlaps.table import touched

    counts = touched(overlaps)
    for one in overlaps.about.checked:
        mine = [each for each in counts if (each.benchmark, each.split) == (one.benchmark, one.split)]
        asked = f" {len(one.questions):,} questions," if one.benchmark else ""
        name = f"{one.benchmark} {one.split}".strip() or "duplicates in the mixture"
        show.out.print(show.plain(name, "bold"), show.plain(f"{asked} {one.pictures:,} pictures".strip()))
        table = show.table_of("source", "by", "samples", *(["questions"] if one.benchmark else []))
        for each in mine:
            questions = [f"{each.questions:,}"] if one.benchmark else []
            show.add(table, each.source, each.level, f"{each.samples:,}", *questions)
        if mine:
            show.out.print(table)
        else:
            show.say(f"  nothing, by {', '.join(one.levels) or 'no level'}")
        if one.not_listed:
            show.say(f"  {one.not_listed:,} more pairs by text are not listed; 16 samples of each question are")
        show_unchecked(one)


def show_unchecked(checked: "Checked") -> None:
    """What was not compared, and why."""
    for level, why in checked.unchecked.items():
        show.say(f"  not compared by {level}: {why}")
    if checked.unreadable:
        many, first = len(checked.unreadable), checked.unreadable[0]
        show.say(f"  {many:,} pictures do not decode, so not compared by near; the first is {first}")
    if checked.flat:
        show.say(f"  {checked.flat:,} pictures are of one colour, so not compared by near")
    if checked.left_out:
        show.say(f"  {len(checked.left_out):,} questions may be seen, and are not called clean")
