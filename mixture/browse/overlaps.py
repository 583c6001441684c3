"""What an overlaps file says, as the pages show it: beside a sample, in groups of duplicates, by evaluation set."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlmix.mixture.browse.sides import Side, short_name, whole
from vlmix.mixture.dataset.manifest import OVERLAPS_NAME
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.storage import Local, Location
from vlmix.mixture.io.visible import visible
from vlmix.mixture.overlaps import table
from vlmix.mixture.overlaps.table import LEVELS, PICTURES, Checked, Overlaps

LINES = 10
"""Overlaps of a sample with one evaluation set, or with other samples, that its page names; the rest is counted."""
MEMBERS = 8
"""Duplicates of a group that are listed."""
MOST_GROUPS, GROUPS_ON_A_PAGE = 20_000, 100
EXAMPLES = 20
"""Samples that have a page of each source, evaluation set and level."""
DUPLICATES, KEPT = "duplicates", "has duplicates"
_SET = ["benchmark", "split"]


@dataclass(frozen=True)
class Line:
    """One thing that a sample overlaps with. `other` is a question of `of`, or a sample, whose page is `file` if it has
    one; `images` are the numbers of the sample's pictures, from 1."""

    said: str
    of: str
    other: str
    file: str
    evidence: str
    images: list[int]


@dataclass
class Found:
    """The overlaps of a sample: `more` counts what `lines` leave out, `sets` are the names of what it overlaps with,
    `values` what a gallery's filter finds it by, `group` the place of its group of duplicates."""

    lines: list[Line] = field(default_factory=list)
    more: list[str] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    group: str = ""


@dataclass(frozen=True)
class Member:
    """A sample of a group of duplicates; `evidence` is "" for the one that stays."""

    row: int
    id: str
    source: str
    evidence: str


@dataclass(frozen=True)
class Group:
    """Duplicates, the one that stays first; `size` of them in all, of which `members` are listed."""

    number: int
    size: int
    members: list[Member]


@dataclass(frozen=True)
class Touched:
    """A source's samples that overlap with a set, and the questions that they do with, in all and by level."""

    source: str
    samples: int
    questions: int
    levels: dict[str, tuple[int, int]]


class Known:
    """An overlaps file of `part`, which is a whole mixture or a view. `rows` are those of the file, with the samples'
    rows in the root: `row`, and of duplicates `other_row`. `number` tells several apart."""

    def __init__(self, part: Reader, number: int, file: str, overlaps: Overlaps) -> None:
        self.root = root = whole(part)
        self.name, self.number, self.file, self.about = short_name(part), number, file, overlaps.about
        self.compared = self._mask(part.rows)
        """[N] which samples of the root were compared."""
        ids = pl.DataFrame({"id": pl.Series(root.column("id"))}).with_row_index("row")
        ids = ids.with_columns(pl.col("row").cast(pl.Int64))
        rows = pl.DataFrame(overlaps.rows.drop_columns("row")).join(ids, on="id", how="left", maintain_order="left")
        others = ids.rename({"id": "other", "row": "other_row"}).with_columns(benchmark=pl.lit(""))
        self.rows = rows.join(others, on=["benchmark", "other"], how="left", maintain_order="left")
        lost = self.rows.filter(pl.col("row").is_null() | ((pl.col("benchmark") == "") & pl.col("other_row").is_null()))
        if len(lost):
            raise VlmixError(
                f"{file} names samples that {part.folder.name} does not have, such as {lost['id'][0]!r}; "
                "write it anew with `vlmix overlaps`"
            )
        pairs = self.rows.filter(pl.col("benchmark") == "").group_by("other_row", "row").agg(*_EVIDENCE)
        sizes = pairs.group_by("other_row").agg(pl.len().alias("size"))
        self._sizes = sizes.sort(["size", "other_row"], descending=[True, False])
        self._pairs = pairs.sort("other_row", "row")

    @property
    def duplicates(self) -> int:
        return len(self._pairs)

    @property
    def all_groups(self) -> int:
        return len(self._sizes)

    def examples(self, rows: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
        """Of `rows`, those that are worth a page: of the first `groups` groups with such a sample, and EXAMPLES of each
        source, set and level."""
        passing = self._mask(rows)
        listed = self._pairs.group_by("other_row", maintain_order=True).head(MEMBERS)
        pairs = pl.concat([listed.select("other_row", row="other_row").unique(), listed.select("other_row", "row")])
        ours = pairs.filter(pl.Series(passing[pairs["row"].to_numpy()]))
        first = self._sizes.join(ours, on="other_row", how="semi", maintain_order="left").head(groups)
        members = ours.join(first, on="other_row", how="semi")["row"].to_numpy()
        mine = self._within(passing).unique([*_SET, "source", "level", "row"]).sort("row")
        some = mine.group_by([*_SET, "source", "level"], maintain_order=True).head(min(EXAMPLES, groups))
        return np.union1d(members, some["row"].to_numpy()).astype(np.int64)

    def touched(self, rows: NDArray[np.int64]) -> list[tuple[Checked, list[Touched]]]:
        """What was compared, and by source what was found among the samples in `rows`."""
        mine, counts = self._within(self._mask(rows)), (pl.col("row").n_unique(), pl.col("other").n_unique())
        by_level: dict[tuple[str, ...], dict[str, tuple[int, int]]] = {}
        for *key, level, samples, questions in mine.group_by([*_SET, "source", "level"]).agg(*counts).iter_rows():
            by_level.setdefault(tuple(key), {})[level] = samples, questions
        sums = mine.group_by([*_SET, "source"]).agg(*counts).sort("source").rows()
        return [
            (
                checked,
                [
                    Touched(source, samples, questions, by_level[*key, source])
                    for *key, source, samples, questions in sums
                    if key == [checked.benchmark, checked.split]
                ],
            )
            for checked in self.about.checked
        ]

    @cached_property
    def group_pages(self) -> dict[str, list[Group]]:
        """File -> the groups that it lists, the largest first; at most MOST_GROUPS."""
        groups, starts = self._groups(), range(0, MOST_GROUPS, GROUPS_ON_A_PAGE)
        pages = enumerate((groups[at : at + GROUPS_ON_A_PAGE] for at in starts), start=1)
        return {f"groups/{self.number}-{page}.html": listed for page, listed in pages if listed}

    def _groups(self) -> list[Group]:
        first = self._sizes.head(MOST_GROUPS)
        listed = self._pairs.join(first, on="other_row", how="semi", maintain_order="left")
        members: dict[int, list[Member]] = {}
        ids, sources = self.root.column("id"), self.root.column("source")

        def member(row: int, evidence: str) -> Member:
            return Member(row, visible(ids[row].as_py()), visible(sources[row].as_py()), evidence)

        for kept, row, levels, bits in listed.group_by("other_row", maintain_order=True).head(MEMBERS).iter_rows():
            members.setdefault(kept, [member(kept, "")]).append(member(row, _evidence(levels, bits)))
        return [Group(number, size + 1, members[kept]) for number, (kept, size) in enumerate(first.iter_rows(), 1)]

    def of_samples(self, files: Mapping[int, str]) -> dict[int, Found]:
        """Row -> its overlaps, for those samples with a page, whose `files` are given by row, that have some."""
        places = {
            group.members[0].row: f"{file}#group-{group.number}"
            for file, groups in self.group_pages.items()
            for group in groups
        }
        held = self._mask(list(files))
        mine = self._within(held).with_columns(kept=pl.lit(False))
        same = self.rows.filter(pl.col("benchmark") == "")
        same = same.filter(pl.Series(held[same["other_row"].to_numpy()]))
        same = same.with_columns(row="other_row", other_row="row", other="id", kept=pl.lit(True))
        pairs = pl.concat([mine, same.select(mine.columns)]).group_by("row", "kept", *_SET, "other", "other_row")
        strength = pl.col("level").list.eval(pl.element().replace_strict(_RANK, return_dtype=pl.Int8)).list.min()
        images = (pl.col("image").drop_nulls().unique().sort() + 1).alias("images")
        ordered = (
            pairs.agg(*_EVIDENCE, images)
            .with_columns(strength=strength)
            .sort("row", *_SET, "kept", "strength", "distance", "other", nulls_last=True)
        )
        blocks = ordered.group_by("row", *_SET, "kept", maintain_order=True).agg(
            pl.len().alias("all"),
            pl.col("level").list.explode().unique().alias("levels"),
            pl.struct("other", "other_row", "level", "distance", "images").head(LINES).alias("first"),
        )
        found: dict[int, Found] = {}
        for block in blocks.iter_rows(named=True):
            one = found.setdefault(block["row"], Found())
            name = KEPT if block["kept"] else set_name(block["benchmark"], block["split"])
            lines = [_line(name, block, each, files.get(each["other_row"], "")) for each in block["first"]]
            one.lines.extend(lines)
            if more := block["all"] - len(lines):
                one.more.append(f"and {more:,} more" + (f" questions of {name}" if block["benchmark"] else ""))
            one.sets.append(name)
            one.values.extend(values_of(name, () if block["kept"] else block["levels"]))
            if not block["benchmark"]:
                one.group = places.get(block["row"] if block["kept"] else block["first"][0]["other_row"], "")
        return found

    def _mask(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        held = np.zeros(len(self.root), dtype=np.bool_)
        held[rows] = True
        return held

    def _within(self, held: NDArray[np.bool_]) -> pl.DataFrame:
        return self.rows.filter(pl.Series(held[self.rows["row"].to_numpy()]))


_EVIDENCE = (pl.col("level").unique(), pl.col("distance").filter(pl.col("level") == "near").min())
_RANK = {level: rank for rank, level in enumerate(LEVELS)}


def known_overlaps(sides: Sequence[Side], file: Path | None) -> dict[str, Known]:
    """Name of a root of `sides` -> its overlaps: those of `file`, else of the file in its folder where there is one.

    Raises VlmixError for a file of another mixture.
    """
    roots = {side.mixture.root.name: whole(side.mixture) for side in sides}
    if file is None:
        found = [
            (root, OVERLAPS_NAME, table.read(root.root.join(OVERLAPS_NAME), root))
            for root in roots.values()
            if _is_there(root.root.join(OVERLAPS_NAME))
        ]
    else:
        overlaps = table.read(file)
        parts = [*roots.values(), *(side.mixture for side in sides), *(side.of for side in sides if side.of)]
        of = {part.root.name: part for part in parts if table.identity(part) == overlaps.about.manifest}
        if not of:
            table.read(file, parts[0])  # says that it is of another
        found = [(part, file.name, overlaps) for part in of.values()]
    return {part.root.name: Known(part, number, name, read) for number, (part, name, read) in enumerate(found)}


def _is_there(where: Location) -> bool:
    if isinstance(where, Local):
        return where.path.is_file()
    try:
        return where.size() >= 0
    except FileNotFoundError:
        return False


def set_name(benchmark: str, split: str) -> str:
    """Of an evaluation set, or of the duplicates; in one line, as a menu holds it."""
    return " ".join(visible(f"{benchmark} {split}").split()) or DUPLICATES


def values_of(name: str, levels: Iterable[str]) -> list[str]:
    """What a gallery's filter calls an overlap with a set, and by these levels."""
    return [name, *(f"{name}, by {level}" for level in LEVELS if level in levels)]


def _line(name: str, block: dict[str, Any], each: dict[str, Any], file: str) -> Line:
    levels = each["level"]
    if not block["benchmark"]:
        said, name = ("stays for its duplicate" if block["kept"] else "duplicate of"), ""
    else:
        shows = "shows the picture of" if {"id", "bytes"} & set(levels) else "shows a picture near that of"
        by_picture = [level in PICTURES for level in levels]
        said = " and ".join(
            (["asks the same as"] if not all(by_picture) else []) + ([shows] if any(by_picture) else [])
        )
    return Line(said, name, visible(each["other"]), file, _evidence(levels, each["distance"]), each["images"])


def _evidence(levels: Sequence[str], bits: int | None) -> str:
    """`id, bytes, near 3 bits`, the strongest first."""
    named = {"near": "near" if bits is None else f"near {bits} bit{'' if bits == 1 else 's'}"}
    return ", ".join(named.get(level, level) for level in LEVELS if level in levels)
