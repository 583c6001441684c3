"""`vlmix browse`: a mixture as pages to look at."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from vlmix.cli import show
from vlmix.mixture.errors import VlmixError, nearest

_PICTURES = ("auto", "stored", "reduced")
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def browse(
    mixtures: Annotated[
        list[str],
        typer.Argument(
            metavar="MIXTURE...",
            help="A mixture folder; a view, which is shown beside what it left of its root; or several, side by side.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder for the pages.")],
    samples: Annotated[int, typer.Option(help="Samples of each source that have a page.", min=0)] = 200,
    id: Annotated[list[str] | None, typer.Option("--id", help="Show these samples alone. Repeatable.")] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition over columns of samples.parquet, for the samples with a page.")
    ] = None,
    pictures: Annotated[
        str,
        typer.Option(help="stored: the stored bytes; reduced: of at most 448 pixels; auto: stored if they are few."),
    ] = "auto",
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = _CORES,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write pages to look at: composition, histograms, galleries with filters and search, every sample with its boxes.
    They open from disk, without a server."""
    from vlmix.mixture.browse.pages import Options
    from vlmix.mixture.browse.pages import browse as write
    from vlmix.mixture.browse.sides import sides_of
    from vlmix.mixture.mixture import open as open_mixture

    require()
    if pictures not in _PICTURES:
        raise VlmixError(f"--pictures {pictures!r}{nearest(pictures, _PICTURES)}")
    options = Options(samples=samples, ids=id or [], where=where, pictures=pictures)  # type: ignore[arg-type]
    with show.progress() as progress:
        report = write(
            sides_of([open_mixture(one) for one in mixtures]), out, options, workers=workers, progress=progress
        )
    said = f"{report.page}: {report.samples:,} samples, {report.galleries} galleries, {report.bytes / 1e6:.1f} MB"
    if report.reduced:
        said += "; pictures are reduced, --pictures stored copies them"
    if report.undecoded:
        said += f"; {report.undecoded:,} pictures cannot be shown, their pages say why"
    show.done(said, msgspec.to_builtins(report), as_json)


def require() -> None:
    """Fail where what pages need is not installed."""
    import jinja2  # noqa: F401
