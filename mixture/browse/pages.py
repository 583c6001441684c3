"""The pages: which samples they show, and the files that they are made of."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.browse.cards import COLORS, Card, card_of, counted, script_json, snippet
from vlmix.mixture.browse.facts import (
    LONGEST_COUNTED,
    Facts,
    Histogram,
    RejectGroup,
    facts_of,
    histograms,
    outstanding,
    rejects_of,
)
from vlmix.mixture.browse.overlaps import EXAMPLES, MOST_GROUPS, Found, Known, known_overlaps, set_name, values_of
from vlmix.mixture.browse.pictures import SIDE, Picture, stored_bytes, write_pictures
from vlmix.mixture.browse.sides import Side, common_whole, shared_ids, short_name, whole
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.dataset.view import ids_like, index_of, read_rows
from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.filters import matching
from vlmix.mixture.io.pool import Engine, Pool, Progress, silent
from vlmix.mixture.io.staging import new_folder
from vlmix.mixture.io.visible import is_link, visible
from vlmix.mixture.keyed import Indices, prefixes, ranked
from vlmix.mixture.overlaps.table import LEVELS
from vlmix.mixture.version import VERSION

if TYPE_CHECKING:
    from jinja2 import Environment

STORED_BUDGET = 16_000_000
"""Bytes of stored pictures that pages copy by themselves; more of them are shown reduced."""
MOST_SAMPLES = 20_000
"""Pages of samples; a browser's gallery and a folder's listing are slow beyond that."""
_PLAIN = re.compile(r"[^a-z0-9]+")
_FEW = 30  # values that a filter lists
_LONGEST_VALUE = 200  # characters of one


class Options(Struct, frozen=True, kw_only=True):
    """Which samples have a page: the first `samples` of each source in hash order, of those that match `where` (see
    `filters.matching`); or those named by `ids`. The first page counts all samples of a mixture, whatever these say.

    `pictures`: `stored` copies the stored bytes, `reduced` makes smaller ones, `auto` copies if they fit
    STORED_BUDGET.
    """

    samples: int = 200
    ids: list[str] = []
    where: str | None = None
    pictures: Literal["auto", "stored", "reduced"] = "auto"


class Report(Struct, frozen=True):
    """What was written: the first page, samples with a page, galleries, files and their bytes, whether pictures were
    reduced, and how many do not decode."""

    page: str
    samples: int
    galleries: int
    files: int
    bytes: int
    reduced: bool
    undecoded: int


@dataclass
class Gallery:
    """The samples of one source of one side, in the order of their positions."""

    side: int
    source: str
    file: str
    cards: list[Card]
    total: int
    answers: list[tuple[str, int]]

    @property
    def strip(self) -> list[Card]:
        """Samples that the first page shows."""
        return [card for card in self.cards if card.pictures and card.pictures[0].thumb][:4]


@dataclass(frozen=True)
class Control:
    """A filter of a gallery: `kind` is `is` (one of `values`), `least` or `most` (a number)."""

    kind: str
    key: str
    label: str
    values: list[str]


def browse(
    sides: Sequence[Side],
    out: Path,
    options: Options | None = None,
    *,
    overlaps: Path | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Report:
    """Write the pages of `sides` (see `sides.sides_of`) to the new folder `out`; `out/index.html` is the first.

    `overlaps` is a file that `vlmix overlaps` wrote of one of them; without it the one inside a mixture is taken.

    Raises VlmixError if `out` is there and not empty, for an id that no side has, for a condition that nothing
    meets or that is none, and for an overlaps file of another mixture.
    """
    options = options or Options()
    if options.samples < 0:
        raise VlmixError(f"{options.samples} samples of each source: at least 0")
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        out.rmdir()
    known = known_overlaps(sides, overlaps)
    with new_folder(out) as partial, Pool(workers) as pool:
        return _write(sides, known, partial, out, options, pool, progress)


def _write(
    sides: Sequence[Side],
    known: dict[str, Known],
    partial: Path,
    out: Path,
    options: Options,
    pool: Engine,
    progress: Progress,
) -> Report:
    environment = _environment()
    all_facts = []
    for number, side in enumerate(sides):
        progress("index", number, len(sides))
        all_facts.append(facts_of(side))
    progress("index", len(sides), len(sides))
    passing = _passing(sides, options)
    leaders = [outstanding(facts, mine) for facts, mine in zip(all_facts, passing)]
    examples = _examples(sides, known, passing, options)
    chosen = []
    for side, mine, found, more in zip(sides, passing, leaders, examples):
        out_standing = np.array([at for each in found.values() for at, _ in each.rows], dtype=np.int64)
        chosen.append(np.unique(np.concatenate([_chosen(side, mine, options), out_standing, more])))
    if sum(map(len, chosen)) > MOST_SAMPLES:
        raise VlmixError(
            f"{sum(map(len, chosen)):,} samples would have a page, at most {MOST_SAMPLES:,} may; lower --samples, or "
            "narrow --where"
        )
    made, reduced = _cards(sides, known, chosen, partial, options, pool, progress)
    cards = [
        {at: made[side.mixture.root.name, int(side.mixture.rows[at])] for at in mine.tolist()}
        for side, mine in zip(sides, chosen)
    ]
    galleries = _galleries(sides, all_facts, chosen, cards)
    common = {"sides": sides, "version": VERSION, "colors": COLORS, "options": options, "reduced": reduced}
    _write_galleries(environment, partial, galleries, common)
    _write_groups(environment, partial, known, made, common)
    shown = _write_samples(environment, partial, galleries, common, progress)
    roots = {side.mixture.root.name: whole(side.mixture) for side in sides}
    composition = _composition(sides, all_facts)
    order = {name: at for at, (name, _, _) in enumerate(composition)}
    index = environment.get_template("index.html.j2").render(
        **common,
        title=_title(sides),
        root="" if (root := common_whole(sides)) is None else short_name(root),
        facts=all_facts,
        composition=composition,
        infos=_infos(sides),
        galleries=sorted(galleries, key=lambda gallery: order[gallery.source]),
        histograms=histograms(all_facts),
        leaders=[
            {
                title: (each.unit, each.equal, [(cards[number][at], value) for at, value in each.rows])
                for title, each in found.items()
            }
            for number, found in enumerate(leaders)
        ],
        rejects=[(short_name(root), _shown(rejects_of(root))) for root in roots.values()],
        shared_ids=shared_ids(sides),
        overlaps=_overlaps(sides, known, galleries),
        known=list(known.values()),
        per_number=min(EXAMPLES, options.samples),
        longest=LONGEST_COUNTED,
        pages=len(shown),
        up="",
    )
    (partial / "index.html").write_text(index, encoding="utf-8")
    for name in ("browse.css", "browse.js"):
        (partial / name).write_bytes(files(__package__).joinpath(name).read_bytes())
    sizes = [path.stat().st_size for path in partial.rglob("*") if path.is_file()]
    undecoded = sum(bool(picture.problem) for card in shown for picture in card.pictures)
    return Report(str(out / "index.html"), len(shown), len(galleries), len(sizes), sum(sizes), reduced, undecoded)


def _passing(sides: Sequence[Side], options: Options) -> list[Indices]:
    """The positions of each side that may have a page."""
    passing = [np.arange(len(side.mixture), dtype=np.int64) for side in sides]
    if options.where is not None:
        passing = [
            mine[matching(index_of(side.mixture, images=False), options.where, "where")]
            for side, mine in zip(sides, passing)
        ]
        if not any(map(len, passing)):
            raise VlmixError(f"no sample matches --where {options.where!r}; loosen it")
    if options.ids:
        found = [_positions_of(side.mixture, options.ids) for side in sides]
        missing = sorted(set(options.ids) - {id for mine in found for id in mine})
        if missing:
            alike = ids_like(sides[0].mixture, missing[0])
            example = sides[0].mixture.column("id")[0].as_py()
            raise VlmixError(
                f"no sample has the id {missing[0]!r}"
                + (nearest(missing[0], alike) if alike else f"; ids are like {example!r}")
            )
        passing = [np.intersect1d(mine, list(ids.values())).astype(np.int64) for mine, ids in zip(passing, found)]
        if not any(map(len, passing)):
            raise VlmixError(f"none of the samples that --id names matches --where {options.where!r}; drop one of them")
    return passing


def _positions_of(mixture: Reader, ids: list[str]) -> dict[str, int]:
    table = pl.DataFrame({"id": pl.Series(mixture.column("id"))}).with_row_index("at")
    return {id: at for at, id in table.filter(pl.col("id").is_in(ids)).rows()}


def _chosen(side: Side, passing: Indices, options: Options) -> Indices:
    """The positions that have a page, ascending."""
    if options.ids:
        return passing
    table = pl.DataFrame({"source": pl.Series(side.mixture.column("source")).gather(passing), "at": passing})
    strata = {part["source"][0]: part["at"].to_numpy() for part in table.partition_by("source", maintain_order=True)}
    ranks = ranked(side.mixture.column("id"), side.mixture.manifest.seed)
    return prefixes(strata, ranks, dict.fromkeys(strata, options.samples))


def _examples(
    sides: Sequence[Side], known: dict[str, Known], passing: list[Indices], options: Options
) -> list[Indices]:
    """The positions of each side that have a page for their overlaps (see `Known.examples`)."""
    wanted: dict[str, Indices] = {}
    for name, each in known.items():
        ours = [side.mixture.rows[mine] for side, mine in zip(sides, passing) if side.mixture.root.name == name]
        wanted[name] = each.examples(np.concatenate(ours), options.samples)
    none = np.empty(0, dtype=np.int64)
    return [
        mine[np.isin(side.mixture.rows[mine], wanted.get(side.mixture.root.name, none))]
        for side, mine in zip(sides, passing)
    ]


def _cards(
    sides: Sequence[Side],
    known: dict[str, Known],
    chosen: list[Indices],
    out: Path,
    options: Options,
    pool: Engine,
    progress: Progress,
) -> tuple[dict[tuple[str, int], Card], bool]:
    """(root, row) -> card, and whether pictures were reduced. Samples that sides share are read once."""
    roots: dict[str, Reader] = {}
    rows: dict[str, NDArray[np.int64]] = {}
    for side, mine in zip(sides, chosen):
        name = side.mixture.root.name
        roots[name] = whole(side.mixture)
        rows[name] = np.union1d(rows.get(name, np.empty(0, dtype=np.int64)), side.mixture.rows[mine])
    stored = options.pictures == "stored" or (
        options.pictures == "auto" and sum(stored_bytes(roots[name], rows[name]) for name in roots) <= STORED_BUDGET
    )
    made: dict[tuple[str, int], Card] = {}
    any_reduced = False
    for number, (name, root) in enumerate(roots.items()):
        pictures: dict[int, list[Picture]] | None = None
        if root.root_manifest.shards:
            pictures = write_pictures(root, rows[name], out, stored, pool, progress)
            any_reduced |= not stored and any(p.full for found in pictures.values() for p in found)
        files = {row: f"samples/{number}-{row:09d}.html" for row in rows[name].tolist()}
        overlaps = known[name].of_samples(files) if name in known else {}
        for (row, file), columns in zip(files.items(), read_rows(root.root_index(), rows[name]).to_pylist()):
            found = overlaps.get(row, Found())
            made[name, row] = card_of(columns, file, None if pictures is None else pictures[row], found)
    return made, any_reduced


def _galleries(
    sides: Sequence[Side], all_facts: Sequence[Facts], chosen: list[Indices], cards: list[dict[int, Card]]
) -> list[Gallery]:
    made = []
    for number, (side, facts, mine) in enumerate(zip(sides, all_facts, chosen)):
        labels = pl.Series(side.mixture.column("source")).gather(mine).to_list()
        for at, row in enumerate(facts.sources):
            name = row["source"]
            shown = [cards[number][position] for position, label in zip(mine.tolist(), labels) if label == name]
            if shown:
                file = f"gallery/{number}-{at}-{_PLAIN.sub('-', name.lower()).strip('-')[:40]}.html"
                made.append(Gallery(number, name, file, shown, row["samples"], facts.answers_of.get(name, [])[:8]))
    return made


def _write_galleries(environment: "Environment", out: Path, galleries: list[Gallery], common: dict[str, Any]) -> None:
    (out / "gallery").mkdir()
    template = environment.get_template("gallery.html.j2")
    for gallery in galleries:
        controls = list(_controls(gallery.cards))
        filtered = {control.key for control in controls}
        page = template.render(
            **common,
            gallery=gallery,
            others=[other for other in galleries if other.source == gallery.source and other is not gallery],
            controls=controls,
            filtered=filtered,
            records=script_json([card.record(filtered) for card in gallery.cards]),
            up="../",
        )
        (out / gallery.file).write_text(page, encoding="utf-8")


def _write_samples(
    environment: "Environment", out: Path, galleries: list[Gallery], common: dict[str, Any], progress: Progress
) -> list[Card]:
    """A page for each sample, whose neighbours are those in the first gallery that holds it; gives them back."""
    (out / "samples").mkdir()
    template = environment.get_template("sample.html.j2")
    places: dict[str, tuple[Gallery, int]] = {}
    for gallery in galleries:
        for at, card in enumerate(gallery.cards):
            places.setdefault(card.file, (gallery, at))
    for done, (file, (gallery, at)) in enumerate(places.items()):
        if done % 100 == 0:
            progress("pages", done, len(places))
        cards = gallery.cards
        page = template.render(
            **common,
            gallery=gallery,
            card=cards[at],
            before=cards[at - 1] if at else None,
            after=cards[at + 1] if at + 1 < len(cards) else None,
            up="../",
        )
        (out / file).write_text(page, encoding="utf-8")
    progress("pages", len(places), len(places))
    return [gallery.cards[at] for gallery, at in places.values()]


def _write_groups(
    environment: "Environment",
    out: Path,
    known: dict[str, Known],
    made: dict[tuple[str, int], Card],
    common: dict[str, Any],
) -> None:
    template = environment.get_template("groups.html.j2")
    for name, each in known.items():
        for number, (file, groups) in enumerate(each.group_pages.items(), start=1):
            (out / "groups").mkdir(exist_ok=True)
            page = template.render(
                **common,
                known=each,
                groups=[(group, [(one, made.get((name, one.row))) for one in group.members]) for group in groups],
                number=number,
                most_groups=MOST_GROUPS,
                files=list(each.group_pages),
                up="../",
            )
            (out / file).write_text(page, encoding="utf-8")


def _overlaps(sides: Sequence[Side], known: dict[str, Known], galleries: list[Gallery]) -> list[dict[str, Any]]:
    """For each side and what it was compared with: how much of each source was found, with links to the samples."""
    values = {
        (gallery.side, gallery.source): (gallery.file, {v for card in gallery.cards for v in card.overlaps.values})
        for gallery in galleries
    }

    def link(side: int, source: str, value: str) -> str:
        file, found = values.get((side, source), ("", set[str]()))
        return f"{file}#{urlencode({'overlap': value})}" if value in found else ""

    tables = []
    for number, side in enumerate(sides):
        if (mine := known.get(side.mixture.root.name)) is None:
            continue
        if not mine.compared[side.mixture.rows].all():
            tables.append({"side": number, "name": "not all compared", "checked": None, "rows": [], "levels": []})
            continue
        for checked, touched in mine.touched(side.mixture.rows):
            name = set_name(checked.benchmark, checked.split)
            named = {*checked.levels, *checked.unchecked, *(level for each in touched for level in each.levels)}
            levels = [level for level in LEVELS if level in named]
            rows = [(each, [link(number, each.source, value) for value in values_of(name, levels)]) for each in touched]
            tables.append({"side": number, "name": name, "checked": checked, "rows": rows, "levels": levels})
    return tables


def _controls(cards: list[Card]) -> Iterator[Control]:
    """Filters that tell these samples apart."""
    formats = sorted({name for card in cards for name in card.formats})
    if len(formats) > 1:
        yield Control("is", "format", "response format", formats)
    pictures = sorted({len(card.pictures) for card in cards})
    if len(pictures) > 1:
        yield Control("is", "pictures", "pictures", [str(number) for number in pictures])
    sizes = {"words": [card.num_words for card in cards], "rounds": [len(card.rounds) for card in cards]}
    for key, numbers in (sizes | {"boxes": [card.boxes for card in cards]}).items():
        if min(numbers) < max(numbers):
            yield from _range(key, key)
    flags = sorted({name for card in cards for name in card.transforms})
    if flags:
        yield Control("is", "flag", "picture was", flags)
    overlaps = dict.fromkeys(value for card in cards for value in card.overlaps.values)
    if overlaps:
        yield Control("is", "overlap", "overlaps with", sorted(overlaps))
    for name in dict.fromkeys(name for card in cards for name in card.columns):
        values = {card.columns.get(name) for card in cards} - {None}
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) and len(values) > 1:
            yield from _range(f"column.{name}", visible(name))
        elif 1 < len(values) <= _FEW and max(len(str(value)) for value in values) <= _LONGEST_VALUE:
            yield Control("is", f"column.{name}", visible(name), sorted(_script_text(value) for value in values))


def _script_text(value: Any) -> str:
    """A value as a browser's `String` writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(key: str, label: str) -> Iterator[Control]:
    yield Control("least", key, f"{label}, at least", [])
    yield Control("most", key, f"{label}, at most", [])


def _composition(
    sides: Sequence[Side], all_facts: Sequence[Facts]
) -> list[tuple[str, int, list[dict[str, Any] | None]]]:
    """(source, samples of it in the root, or 0, and its sums on each side), in the order of the sources."""
    of = [{row["source"]: row for row in facts.sources} for facts in all_facts]
    names = list(dict.fromkeys(name for side in sides for name in whole(side.mixture).sources))
    names = [name for name in names if any(name in rows for rows in of)]
    totals = {} if (root := common_whole(sides)) is None else root.sources
    return [(name, totals.get(name, 0), [rows.get(name) for rows in of]) for name in names]


def _infos(sides: Sequence[Side]) -> dict[str, tuple[str, str]]:
    """Source -> license and homepage, "" where that is no link."""
    found = {}
    for side in sides:
        for name, info in (side.mixture.root_manifest.sources | side.mixture.manifest.sources).items():
            link = info.homepage if is_link(info.homepage) else ""
            found[name] = (info.license, link)
    return found


def _shown(groups: list[RejectGroup] | None) -> list[dict[str, Any]] | None:
    if groups is None:
        return None
    return [
        {
            "source": group.source,
            "reason": group.reason,
            "count": group.count,
            "examples": [
                {name: snippet(text, 400 if name == "record" else 200) for name, text in example.items()}
                for example in group.examples
            ],
        }
        for group in groups
    ]


def _title(sides: Sequence[Side]) -> str:
    names = [side.name.removeprefix("selected: ") for side in sides if not side.left]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{listed}, and what is left out" if sides[-1].left else listed


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    def shown(item: Any) -> Any:
        return visible(item, lines=True) if type(item) is str else item  # markup stays as it is

    made = Environment(
        loader=PackageLoader("vlmix.mixture.browse", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["n"] = lambda number: f"{number:,}"
    made.filters["count"] = counted
    made.filters["real"] = lambda number: f"{number:,.0f}" if number == int(number) else f"{number:,.1f}"
    made.globals["bars"] = bars
    made.globals["side_pixels"] = SIDE
    return made


def bars(drawn: Histogram) -> list[tuple[str, list[tuple[int, float, float]]]]:
    """(label, of each side: count, share of the side in percent, length of the bar 0..100)."""
    totals = [sum(counts) or 1 for counts in drawn.counts]
    shares = [[100 * count / total for count in counts] for counts, total in zip(drawn.counts, totals)]
    largest = max((share for side in shares for share in side), default=0) or 1
    return [
        (label, [(drawn.counts[s][at], shares[s][at], 100 * shares[s][at] / largest) for s in range(len(shares))])
        for at, label in enumerate(drawn.labels)
    ]
