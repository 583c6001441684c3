"""`vlmix browse`: a mixture as pages to look at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from vlmix.cli import show
from vlmix.cli.options import CORES, JsonOpt, WorkersOpt
from vlmix.mixture.errors import VlmixError, nearest

if TYPE_CHECKING:
    from vlmix.mixture.browse.sides import Side
    from vlmix.train.sweep.report.aggregate import Result

_PICTURES = ("auto", "stored", "reduced")


def browse(
    mixtures: Annotated[
        list[str],
        typer.Argument(
            metavar="MIXTURE...",
            help="A mixture; a view, which is shown beside what it left of its root; several, side by side; or the "
            "folder of a sweep: its selections.",
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
        typer.Option(help="stored: the stored bytes; reduced: of at most 384 pixels; auto: stored if they are few."),
    ] = "auto",
    share: Annotated[
        str | None, typer.Option(help="Of a sweep: the subsets of this share, 0.1 or 10% (default: its smallest).")
    ] = None,
    overlaps: Annotated[
        Path | None,
        typer.Option(
            help="What `vlmix overlaps` wrote of a mixture named here (default: overlaps.parquet in its folder, if "
            "there is one)."
        ),
    ] = None,
    workers: WorkersOpt = CORES,
    as_json: JsonOpt = False,
) -> None:
    """Write pages to look at: composition, histograms, galleries with filters and search, every sample with its boxes.
    They open from disk, without a server."""
    from vlmix.mixture.browse.cards import counted
    from vlmix.mixture.browse.pages import Options
    from vlmix.mixture.browse.pages import browse as write
    from vlmix.mixture.browse.sides import sides_of
    from vlmix.mixture.mixture import open as open_mixture
    from vlmix.train.sweep.folder import is_sweep

    require()
    if pictures not in _PICTURES:
        raise VlmixError(f"--pictures {pictures!r}{nearest(pictures, _PICTURES)}")
    options = Options(samples=samples, ids=id or [], where=where, pictures=pictures)  # type: ignore[arg-type]
    if len(mixtures) == 1 and is_sweep(Path(mixtures[0])):
        sides = _of_sweep(Path(mixtures[0]), share)
    elif share is not None:
        raise VlmixError("--share goes with the folder of a sweep")
    else:
        sides = sides_of([open_mixture(one) for one in mixtures])
    with show.progress() as progress:
        report = write(sides, out, options, overlaps=overlaps, workers=workers, progress=progress)
    galleries = counted(report.galleries, "gallery", "galleries")
    said = f"{report.page}: {counted(report.samples, 'sample')}, {galleries}, {report.bytes / 1e6:.1f} MB"
    if report.reduced:
        said += "; pictures are reduced, --pictures stored copies them"
    if report.undecoded:
        said += f"; {counted(report.undecoded, 'picture')} cannot be shown, the pages say why"
    show.done(said, msgspec.to_builtins(report), as_json)


def _of_sweep(folder: Path, wanted: str | None) -> "list[Side]":
    """The subsets of a sweep at one share, one of each selection: that of the first grid and seed in reports."""
    from vlmix.mixture.browse.sides import selected_and_left, whole
    from vlmix.mixture.mixture import open as open_mixture
    from vlmix.mixture.selection.subset import parse_ratio
    from vlmix.train.sweep.folder import read_rows, recorded_mixture, subset_folder
    from vlmix.train.sweep.report.aggregate import ordered

    rows = [row for row in ordered(read_rows(folder)) if subset_folder(folder, row.run).is_dir()]
    if not rows:
        raise VlmixError(f"{folder}: no finished run of this sweep has a subset; name a mixture or a view instead")
    shares = sorted({row.ratio for row in rows})
    ratio = shares[0] if wanted is None else parse_ratio(wanted)
    if ratio not in shares:
        raise VlmixError(f"--share {wanted}: the sweep has {', '.join(f'{share:g}' for share in shares)}")
    firsts: dict[str, Result] = {}
    for row in rows:
        if row.ratio == ratio:
            firsts.setdefault(row.selection, row)
    parts = [
        (f"{name} {100 * ratio:g} %", open_mixture(subset_folder(folder, row.run))) for name, row in firsts.items()
    ]
    found = recorded_mixture(folder)
    return selected_and_left(parts, whole(parts[0][1]) if found is None else open_mixture(found))


def require() -> None:
    """Fail where what pages need is not installed."""
    import jinja2  # noqa: F401
