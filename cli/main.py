"""`vlmix`: commands parse, call the libraries, and show."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from vlmix.cli import lookup, recipes, show
from vlmix.cli.boundary import guarded
from vlmix.cli.browse import browse
from vlmix.cli.compare import compare
from vlmix.cli.evaluate import evaluate
from vlmix.cli.options import CORES, EngineOpt, JsonOpt, StoreOutOpt, TasksOpt, WorkersOpt, WorkOpt, local_paths, tasks
from vlmix.cli.overlaps import overlaps
from vlmix.cli.peek import peek
from vlmix.cli.score import score_command
from vlmix.cli.sweep import embed, sweep
from vlmix.cli.sweep import require as require_sweep
from vlmix.cli.train import export_model, train
from vlmix.mixture.errors import VlmixError

app = typer.Typer(
    name="vlmix",
    help="Raw vision-language releases in, one reproducible WebDataset mixture out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA, MODELS, LOOKUP, START = "Data", "Models", "Reference", "Start"


def command(name: str, panel: str, *examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command in a panel of the help; its own help ends with `examples`, without the leading `vlmix`."""
    lines = [f"vlmix {name} {example}".rstrip() for example in examples]
    register = app.command(name, rich_help_panel=panel, epilog="\n\n".join(["[bold]Examples[/]", *map(escape, lines)]))

    def registered(function: Callable[..., None]) -> Callable[..., None]:
        register(local_paths(function))
        return function

    return registered


RecipeArg = Annotated[
    str,
    typer.Argument(
        help="A YAML file, or a name that `vlmix recipes` lists.",
        autocompletion=lambda: lookup.recipe_names(recipes.DATA),
    ),
]
RawOpt = Annotated[
    str,
    typer.Option("--raw", help="Folder with one folder of official files per source, or the URL of one in a store."),
]
ImagesOpt = Annotated[
    list[str] | None,
    typer.Option("--images", help="Image root in LLaVA's layout, looked into before RAW; or a URL. Repeatable."),
]
OverridesArg = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Change keys of the recipe: seed=1 sources.vg.take=1000 …"),
]
MixtureArg = Annotated[str, typer.Argument(help="A mixture or a view: a folder, or a URL such as s3://bucket/mixture.")]
FolderArg = Annotated[Path, typer.Argument(help="A mixture folder or a view.")]
AnnotationsOnlyOpt = Annotated[bool, typer.Option("--annotations-only", help="Leave images alone; write no shards.")]


def _version(wanted: bool) -> None:
    if wanted:
        from vlmix.mixture.version import VERSION

        typer.echo(f"vlmix {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Raw vision-language releases in, one reproducible WebDataset mixture out."""


@command("sample", DATA, "raw")
def sample(
    raw: Annotated[Path, typer.Argument(help="New folder for the releases.")],
    seed: Annotated[int, typer.Option(help="Seed of the generated pictures and texts.")] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Write miniature releases of all sources, in upstream's formats, with the fields that vlmix reads."""
    from vlmix.builders.miniature import write_sample

    with show.progress() as progress:
        try:
            report = write_sample(raw, seed=seed, progress=progress)
        except FileExistsError:
            raise VlmixError(f"{raw} exists already and is not empty; choose another folder") from None
    show.sample(raw, report, as_json)


command(
    "overlaps",
    DATA,
    "mixture --out overlaps.parquet",
    "mixture --benchmark pope --benchmark gqa --data EVAL --out overlaps.parquet",
)(overlaps)
command("peek", DATA, "rows.parquet", "data.csv --recipe mine.yaml", "FOLDER --field image=photo --rows 0")(peek)


@command("plan", DATA, "sample --raw raw", "llava-1.5-665k --raw RAW --tokenizer llava-hf/llava-1.5-7b-hf")
def plan(
    recipe: RecipeArg,
    raw: RawOpt,
    overrides: OverridesArg = None,
    images: ImagesOpt = None,
    annotations_only: AnnotationsOnlyOpt = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Count tokens, too: a tokenizer.json, a folder with one, or a hub name.")
    ] = None,
    workers: WorkersOpt = CORES,
    as_json: JsonOpt = False,
) -> None:
    """Dry run: what a build would hold, source by source. Writes nothing."""
    import tempfile

    from vlmix.mixture.build.plan import plan as make_plan
    from vlmix.mixture.build.plan import prepare
    from vlmix.mixture.io.pool import Pool
    from vlmix.mixture.io.tokenizer import TokenCounter

    parsed, known = _recipe(recipe, overrides)
    tokens = None if tokenizer is None else TokenCounter(tokenizer)
    roots = None if annotations_only else [*(images or []), raw]
    with show.progress() as progress, tempfile.TemporaryDirectory(prefix="vlmix-plan-") as work, Pool(workers) as pool:
        prepared = prepare(parsed, known, raw, Path(work), pool, roots, progress)
        rows = make_plan(prepared, tokens, progress)
    show.plan(parsed.name, rows, [line for c in prepared.converted.values() for line in c.about], as_json)


@command("build", DATA, "sample --raw raw --out mixture", "my.yaml --raw RAW --out mixture seed=1 prompts=plain")
def build(
    recipe: RecipeArg,
    raw: RawOpt,
    out: StoreOutOpt,
    overrides: OverridesArg = None,
    images: ImagesOpt = None,
    work: WorkOpt = None,
    engine: EngineOpt = "local",
    workers: TasksOpt = None,
    annotations_only: AnnotationsOnlyOpt = False,
    check: Annotated[
        Literal["full", "header"],
        typer.Option(help="How images are checked: `header` decodes no JPEG, and lets cut ones through."),
    ] = "full",
    as_json: JsonOpt = False,
) -> None:
    """Build a mixture folder. If interrupted, run it again to resume."""
    from vlmix.builders import benchmark_named
    from vlmix.builders.layout import picture_id
    from vlmix.mixture.build.build import build as make

    parsed, known = _recipe(recipe, overrides)
    with show.progress() as progress:
        manifest = make(
            parsed,
            known,
            raw,
            out,
            images=images,
            work=work,
            workers=tasks(engine, workers),
            engine=engine,
            annotations_only=annotations_only,
            check=check,
            benchmark=benchmark_named,
            picture_id=picture_id,
            progress=progress,
        )
    show.manifest(out, manifest, as_json)
    if parsed.compares and not as_json:
        from vlmix.cli.overlaps import show_overlaps
        from vlmix.mixture.dataset.manifest import OVERLAPS_NAME
        from vlmix.mixture.io.storage import locate
        from vlmix.mixture.overlaps.table import read

        show_overlaps(read(locate(out).join(OVERLAPS_NAME)))


@command(
    "inspect",
    DATA,
    "mixture",
    "mixture --id gqa/2317133",
    'mixture --source gqa --where "num_rounds > 3" --limit 5',
    "mixture --rejects",
)
def inspect(
    mixture: MixtureArg,
    id: Annotated[str | None, typer.Option("--id", help="Show the sample with this id.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="Show samples of this source. Repeatable.")] = None,
    where: Annotated[
        str | None, typer.Option(help="Show samples that match this SQL condition over columns of samples.parquet.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Show at most so many samples (default: 10).", min=1)] = None,
    offset: Annotated[int | None, typer.Option(help="Begin after so many samples (default: 0).", min=0)] = None,
    rejects: Annotated[bool, typer.Option("--rejects", help="Show what was dropped, by reason.")] = False,
    licenses: Annotated[bool, typer.Option("--licenses", help="Show the licenses of the sources.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Show the composition of a mixture, some of its samples in mixture order, what was dropped, or licenses."""
    from vlmix.mixture.mixture import open as open_mixture

    given = {"--source": source or None, "--where": where, "--limit": limit, "--offset": offset}
    some = [name for name, value in given.items() if value is not None]
    one = [
        name for name, value in (("--id", id is not None), ("--rejects", rejects), ("--licenses", licenses)) if value
    ]
    if len(one) > 1 or (one and some):
        raise typer.BadParameter(f"{' and '.join([*one, *some])} do not go together")
    opened = open_mixture(mixture)
    if id is not None:
        show.one(opened, id, as_json)
    elif rejects:
        show.rejects(opened, as_json)
    elif licenses:
        show.licenses(opened.manifest, as_json)
    elif some:
        show.samples(opened, source or [], where, 10 if limit is None else limit, offset or 0, as_json)
    else:
        show.manifest(mixture, opened.manifest, as_json)


command(
    "browse",
    DATA,
    "mixture --out pages",
    "tenth --out pages",
    'mixture --where "num_images > 1" --samples 500 --out pages',
)(browse)


@command("verify", DATA, "mixture", "mixture --workers 16")
def verify(
    mixture: MixtureArg, engine: EngineOpt = "local", workers: TasksOpt = None, as_json: JsonOpt = False
) -> None:
    """Check checksums, that every member is readable, and that the index agrees with the shards."""
    from vlmix.mixture.dataset.verify import verify as check

    with show.progress() as progress:
        report = check(mixture, workers=tasks(engine, workers), engine=engine, progress=progress)
    show.verified(mixture, report, as_json)
    if report.problems:
        raise typer.Exit(1)


@command("subsample", DATA, "mixture --ratio 10% --out tenth", "mixture --by scores.parquet --total 50000 --out best")
def subsample(
    mixture: MixtureArg,
    out: StoreOutOpt,
    ratio: Annotated[str | None, typer.Option(help="Share of the samples: 0.1 or 10%.")] = None,
    total: Annotated[int | None, typer.Option(help="Number of samples.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=1000, NAME=0.1 or NAME=10% of one source. Repeatable.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over columns of samples.parquet.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the selection (default: the mixture's).")] = None,
    stratify: Annotated[bool, typer.Option(help="Keep the proportions of the sources.")] = True,
    by: Annotated[
        str | None,
        typer.Option(help="Selection strategy: a file of ids, hashes or scores, or `lengths`, or `clusters`."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="With a file: the column of scores (default: `score`).")] = None,
    ascending: Annotated[
        bool, typer.Option("--ascending", help="With a file: keep the lowest scores, not the highest.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="With a file: keep scores of at least this; with --ascending, of at most this.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="With `clusters`: a Parquet file with the columns id and embedding.")
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(help="With `clusters`: their number (default: the square root of the embeddings, at most 1,024)."),
    ] = None,
    materialize: Annotated[bool, typer.Option("--materialize", help="Write shards instead of a view.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a view.")] = False,
    work: WorkOpt = None,
    engine: EngineOpt = "local",
    workers: TasksOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Select a subset. Subsets of one seed are nested: 10 % lies inside 30 %."""
    from vlmix.mixture.mixture import open as open_mixture
    from vlmix.mixture.selection.subset import Selection, parse_amounts, parse_ratio, save, select

    if ratio is None and total is None and not source and where is None and by is None:
        raise VlmixError("say what to keep: --ratio, --total, --source, --where or --by")
    selection = Selection(
        ratio=None if ratio is None else parse_ratio(ratio),
        total=total,
        sources=dict(parse_amounts(source or [])),
        where=where,
        stratify=stratify,
        seed=seed,
        by=by,
        column=column,
        ascending=ascending,
        threshold=threshold,
        embeddings=None if embeddings is None else str(embeddings),
        clusters=clusters,
    )
    with show.progress() as progress:
        selected = select(open_mixture(mixture), selection)
        manifest = save(
            selected,
            out,
            materialize=materialize,
            overwrite=force,
            work=work,
            workers=tasks(engine, workers),
            engine=engine,
            progress=progress,
        )
    show.subset(out, manifest, selected.report, as_json)
    for note in selected.report.notes() if selected.report else []:
        show.note(note)


@command(
    "merge",
    DATA,
    "mixture more --out both",
    "'{mixture: {repeat: 2}, more: {ratio: 0.1}}' --out both",
    "mixture more total=100000 duplicates=drop --out both",
)
def merge(
    mixtures: Annotated[
        list[str],
        typer.Argument(
            metavar="MIXTURE",
            help="Mixtures or views, folders or URLs; or how much of each, '{mix665k: {}, mine: {ratio: 0.1}}'; or a "
            "YAML file. Then changes, KEY=VALUE: name=both seed=1 total=100000 duplicates=drop prompts=mixed.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New mixture folder.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy shards, also where they could be hard-linked.")] = False,
    engine: EngineOpt = "local",
    workers: TasksOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Make mixtures one, without the raw files. If interrupted, run it again to resume."""
    from vlmix.mixture.merge.merge import merge as make
    from vlmix.mixture.merge.recipe import typed

    with show.progress() as progress:
        merged = make(typed(mixtures), out, copy=copy, workers=tasks(engine, workers), engine=engine, progress=progress)
    show.merged(out, merged, as_json)


@command(
    "batches",
    DATA,
    "mixture --global-batch 8",
    "mixture --global-batch 128 --world 8 --rank 0 --pack 4096",
    "'{mix665k: 0.8, mine: 0.2}' --global-batch 128",
)
def batches(
    mixture: Annotated[
        str, typer.Argument(help="A mixture folder, a view, or several with weights: '{mix665k: 0.8, mine: 0.2}'.")
    ],
    global_batch: Annotated[int, typer.Option(help="Samples per step, over all ranks.")],
    world: Annotated[int, typer.Option(help="Number of ranks.", min=1)] = 1,
    rank: Annotated[int | None, typer.Option(help="One rank; all of them by default.")] = None,
    epoch: Annotated[int, typer.Option(help="Epoch, from 0.", min=0)] = 0,
    start: Annotated[int, typer.Option(help="First step of the epoch, from 0.", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="How many steps; 0: to the end of the epoch.", min=0)] = 3,
    seed: Annotated[int | None, typer.Option(help="Seed of the schedule (default: the mixture's).")] = None,
    length_window: Annotated[int, typer.Option(help="Batches that are filled by length together.", min=1)] = 1,
    pack: Annotated[int | None, typer.Option(help="Capacity of the bins to pack each share into.", min=1)] = None,
    image_tokens: Annotated[
        int, typer.Option(help="Length that an image adds to the words of its text.", min=0, max=10**6)
    ] = 576,
    share_images: Annotated[
        int,
        typer.Option(
            help="Samples of the same pictures that are kept together; with --pack, what they show counts once.",
            min=1,
            max=2**31 - 1,
        ),
    ] = 1,
    as_json: JsonOpt = False,
) -> None:
    """List which samples train at which step and on which rank. Lengths are words, plus --image-tokens for an image."""
    from vlmix.mixture.blend import open_samples
    from vlmix.mixture.io import strict_yaml
    from vlmix.mixture.schedule.listing import audit, of_pictures

    opened = open_samples(strict_yaml.value(mixture, mixture) if mixture.startswith("{") else mixture)
    lengths = opened.lengths(image_tokens)
    order = opened.schedule(
        global_batch, seed=seed, lengths=lengths, length_window=length_window, share_images=share_images
    )
    groups = order.groups if share_images > 1 else None
    sharing = None if groups is None else of_pictures(groups, lengths - opened.lengths())
    rows = audit(opened.column("id"), order, world, rank, epoch, start, steps, pack, sharing)
    show.batches(order, rows, as_json)


@command("export", DATA, "mixture --to llava-json --out mixture.json --images images", "mixture --to trl --out for-trl")
def export(
    mixture: MixtureArg,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Format: dali, energon, hf, internvl, llama-factory, llava-json, llava-next, messages, ms-swift, "
            "texts, trl or wids.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder; for llava-json, new file.")],
    images: Annotated[
        Path | None, typer.Option("--images", help="For llava-json: also write the images below this folder.")
    ] = None,
    workers: WorkersOpt = CORES,
    as_json: JsonOpt = False,
) -> None:
    """Write a mixture or a view in another tool's format; `vlmix docs feeding` shows how to train on each."""
    from vlmix.mixture.export import export as write

    with show.progress() as progress:
        rows = write(mixture, to, out, images=images, workers=workers, progress=progress)
    show.done(f"{out}: {rows:,} rows", {"out": str(out), "rows": rows}, as_json)


command(
    "train",
    MODELS,
    "tiny mixture=mixture out=run",
    "llava-1.5-7b mixture=MIX665K --nproc 8",
    "llava-1.5-7b mixture=MIX665K --dry-run --world 16 --gpu H100 --efficiency 0.3",
)(train)
command("export-model", MODELS, "run", "run --step 500 --out model", "run --best")(export_model)
command(
    "evaluate",
    MODELS,
    "vqav2 gqa --model run --data RAW --out answers",
    "pope --model llava-hf/llava-1.5-7b-hf --data POPE --images IMAGES --out answers",
)(evaluate)
command(
    "score",
    MODELS,
    "gqa --answers answers.jsonl --annotations RAW/gqa",
    "vqav2 --answers answers.jsonl --questions QUESTIONS --split test --submission upload.json",
)(score_command)
command("compare", MODELS, "answers-a answers-b", "a.jsonl b.jsonl --benchmark pope --annotations POPE", "sweep")(
    compare
)
command("sweep", MODELS, "demo mixture=mixture --out sweep", "my.yaml --out sweep --nproc 8")(sweep)
command("embed", MODELS, "mixture --vision-tower openai/clip-vit-large-patch14-336 --out embeddings.parquet")(embed)


@command("demo", START, "", "demo --epochs 1")
def demo(
    out: Annotated[Path, typer.Argument(help="New folder for everything that the demo makes.")] = Path("demo"),
    workers: WorkersOpt = CORES,
    epochs: Annotated[int, typer.Option(help="Epochs that each model is trained for.", min=1)] = 12,
) -> None:
    """Sample, build, verify, subsample, train, evaluate, sweep and browse, on the miniature releases."""
    if out.exists():
        raise VlmixError(f"{out} exists already; remove it or name another folder")
    require_sweep()
    show.without_bars()
    raw, full, part, run, at = out / "raw", out / "mixture", out / "questions", out / "run", out / "sweep"
    tenth, pages = out / "tenth", out / "pages"
    # Each step is the command that a user would type.
    show.step(f"vlmix sample {raw}")
    sample(raw)
    show.step(f"vlmix plan sample --raw {raw}")
    plan("sample", str(raw), workers=workers)
    show.step(f"vlmix build sample --raw {raw} --out {full}")
    build("sample", str(raw), full, workers=workers)
    show.step(f"vlmix verify {full}")
    verify(full, workers=workers)
    show.step(f"vlmix inspect {full} --rejects")
    inspect(str(full), rejects=True)
    where = "source IN ('vqav2', 'gqa')"
    show.step(f'vlmix subsample {full} --where "{where}" --out {part}')
    subsample(full, part, where=where, workers=workers)
    show.step(f"vlmix train tiny mixture={part} out={run} epochs={epochs}")
    train("tiny", [f"mixture={part}", f"out={run}", f"epochs={epochs}"])
    show.step(f"vlmix evaluate vqav2 gqa --model {run} --data {raw} --out {out / 'answers'} --max-new-tokens 10")
    evaluate(["vqav2", "gqa"], str(run), out / "answers", data=raw, max_new_tokens=10)
    examined = f"evaluate={{vqav2: {{data: {raw}, max_new_tokens: 10}}, gqa: {{data: {raw}, max_new_tokens: 10}}}}"
    each = f"overrides.epochs={epochs}"
    show.step(f'vlmix sweep demo mixture={part} "{examined}" {each} --out {at} --jobs {min(workers, 6)}')
    sweep("demo", [f"mixture={part}", examined, each], at, jobs=min(workers, 6))
    show.step(f"vlmix subsample {full} --ratio 10% --out {tenth}")
    subsample(full, tenth, ratio="10%", workers=workers)
    show.step(f"vlmix browse {full} {tenth} --out {pages}")
    browse([str(full), str(tenth)], pages, workers=workers)


command("sources", LOOKUP, "", "vqav2")(lookup.sources)
command("benchmarks", LOOKUP, "")(lookup.benchmarks)
command("recipes", LOOKUP, "", "llava-1.5-665k")(lookup.recipes_command)
command("docs", LOOKUP, "", "selection")(lookup.docs)


def _recipe(name: str, overrides: list[str] | None):  # type: ignore[no-untyped-def]
    from vlmix.builders import known_sources
    from vlmix.mixture.build.recipe import load

    recipes.check_overrides(overrides, "--raw")
    return load(recipes.find(recipes.DATA, name), known_sources(), overrides), known_sources()


def _at_home(argument: str) -> str:
    """`--out=~/mixture` with the home folder for `~`, which shells leave as it is there."""
    return re.sub(r"^(--[\w-]+=)(~.*)", lambda found: found[1] + os.path.expanduser(found[2]), argument)  # noqa: PTH111


def main() -> None:
    """Entry point: bad input ends with one line and exit 1, wrong usage with exit 2."""
    sys.argv[1:] = map(_at_home, sys.argv[1:])
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
