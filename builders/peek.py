"""A first look at somebody's own rows: what is there, how it would be read, what would be dropped, and a recipe."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from vlmix.builders.rows.layout import layout_of
from vlmix.builders.rows.options import RowsOptions
from vlmix.builders.sources.rows import SOURCE
from vlmix.mixture.build.extract import conversations
from vlmix.mixture.build.source import RawFolder
from vlmix.mixture.dataset.schema import RESERVED, Reject
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.image_index import ImageIndex
from vlmix.mixture.io.images import ImageInfo, probe, probe_bytes
from vlmix.mixture.io.rows.containers import read_images
from vlmix.mixture.io.rows.table import Table
from vlmix.mixture.record import Conversation
from vlmix.mixture.render import render

SAMPLES = 3


class Sight(Struct, frozen=True, kw_only=True):
    """What `peek` saw. `rows` are all rows of the files, None where counting them means reading them; `looked_at` the
    rows that were read, of which `usable` would be samples."""

    path: str
    files: list[str]
    kind: str
    rows: int | None
    form: str
    fields: dict[str, str]
    columns: dict[str, str]
    """Column -> what it is taken for."""
    image_columns: list[str]
    looked_at: int
    usable: int
    images: dict[int, int]
    """Number of images of a sample -> usable samples that have so many."""
    samples: list[dict[str, Any]]
    """The first samples: id, images with their sizes, texts."""
    rejects: dict[str, tuple[int, str]]
    """Reason -> how often, and the first of them in words."""
    notes: list[str]
    recipe: dict[str, Any]


class _EnoughError(VlmixError):
    """As many rows were dropped as were to be looked at."""


class _Bounded(list[Reject]):
    """Rejects, of which as many as `most` (0: any number) may be whole rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most or -1

    def append(self, reject: Reject) -> None:
        if _is_row(reject):
            if not self.left:
                raise _EnoughError("enough rows")
            self.left -= 1
        super().append(reject)


def _is_row(reject: Reject) -> bool:
    """Whether it stands for a row, and not for a round or a file of which nothing was dropped."""
    return reject.round < 0 and reject.reason not in ("fewer_rows", "lone_surrogate")


def peek(path: str, rows: int = 1000, **options: Any) -> Sight:
    """Look at the first `rows` rows (0: all) of the table that `path` names, as the source `rows` would read it with
    `options`. Raises VlmixError if it is no table or holds no conversations."""
    chosen = RowsOptions(path=path, **options)
    files = chosen.files(RawFolder(Path(), SOURCE))
    tables = [Table(file, chosen.image_columns) for file in files]
    table = tables[0]
    layout = layout_of(tables, chosen, "")
    name = _entry_name(path)
    taken: dict[str, str] = {}
    for new, old in layout.scalars.items():
        if new in RESERVED:
            free = (f"row_{new}{number or ''}" for number in count())
            taken[next(name for name in free if name not in {*table.columns, *taken, *layout.scalars})] = old
    if taken:
        chosen = msgspec.structs.replace(chosen, columns={**chosen.columns, **taken})
        layout = layout_of(tables, chosen, "")
    usable, folder, rejects = conversations(SOURCE, chosen, Path(), name=name)
    found: list[Conversation] = []
    unseen: list[Reject] = []
    judged = _judged(usable, folder, name, unseen)
    seen, rejects.rows = 0, _Bounded(rows)
    try:
        for conversation in judged if not rows else islice(judged, rows):
            seen += 1
            if conversation is not None:
                found.append(conversation)
    except _EnoughError:
        pass
    lost = [*rejects.rows, *unseen]
    dropped = Counter(reject.reason for reject in lost)
    first = {reject.reason: f"{reject.id}: {reject.detail}" for reject in reversed(lost)}
    whole = sum(map(_is_row, rejects.rows))
    options_said = {k: v for k, v in options.items() if v}
    return Sight(
        path=path,
        files=[str(file) for file in files],
        kind=table.kind,
        rows=sum(one.count() for one in tables) if table.kind == "parquet" else None,
        form=layout.reading.form,
        fields=layout.reading.columns,
        columns=_kinds(table, layout.scalars, layout.reading.columns),
        image_columns=[] if table.kind == "tar" else list(table.image_columns),
        looked_at=seen + whole,
        usable=len(found),
        images=dict(sorted(Counter(len(conversation.images) for conversation in found).items())),
        samples=[_shown(conversation) for conversation in found[:SAMPLES]],
        rejects={reason: (times, first[reason]) for reason, times in dropped.most_common()},
        notes=_notes(found, table),
        recipe=_recipe(name, path, chosen, options_said),
    )


def recipe_text(sight: Sight) -> str:
    """The starter recipe as YAML."""
    head = (
        f"# {sight.path}: rows of the form {sight.form}. `vlmix plan` shows what a build would hold.\n"
        "# `vlmix sources rows` lists what may be said of a source; take, ratio, repeat and where work as everywhere.\n"
    )
    return head + str(yaml.safe_dump(sight.recipe, sort_keys=False, allow_unicode=True))


def _recipe(name: str, path: str, chosen: RowsOptions, said: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"builder": "rows", "path": path, **said}
    if chosen.columns:
        entry["columns"] = dict(chosen.columns)
    return {"name": name, "seed": 0, "sources": {name: entry}}


def _entry_name(path: str) -> str:
    """A source's name from the file or folder that `path` names."""
    parts = [part for part in re.split(r"[/\\]", path) if part and not re.search(r"[*?\[]", part) and part != "**"]
    stem = Path(parts[-1]).stem if parts else "rows"
    stem = re.sub(r"-\d{5}-of-\d{5}$|-\d{6}$", "", stem)
    if stem in ("train", "data") and len(parts) > 1:
        stem = parts[-2]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._") or "rows"


def _judged(
    usable: Iterator[Conversation], folder: RawFolder, name: str, rejects: list[Reject]
) -> Iterator[Conversation | None]:
    """The conversations whose images are there and sound; None for the others, which become rejects."""
    index: ImageIndex | None = None
    for conversation in usable:
        if index is None:
            index = ImageIndex([*folder.image_roots, Path()], {})
        problem = None
        if conversation.place is not None:
            data = next(read_images(folder.containers[conversation.place.container], [conversation.place.at]), [])
            infos = [probe_bytes(one, ImageInfo(path="", bytes=len(one))) for one in data]
            problem = next(((info.problem, info.detail) for info in infos if info.problem), None)
        else:
            for image in conversation.images:
                files = index.candidates(image.path.removeprefix(f"{name}/"))
                info = probe(files[0]) if files else None
                if info is None:
                    problem = problem or ("image_missing", f"there is no file {image.path.removeprefix(f'{name}/')}")
                elif info.problem:
                    problem = problem or (info.problem, f"{info.detail} ({files[0].name})")
        if problem is None:
            yield conversation
        else:
            rejects.append(
                Reject(source=name, id=conversation.id, image=conversation.image, reason=problem[0], detail=problem[1])
            )
            yield None


def _kinds(table: Table, scalars: dict[str, str], fields: dict[str, str]) -> dict[str, str]:
    of = {column: role for role, column in fields.items()}
    travels = {old: new for new, old in scalars.items()}
    sample = table.sample
    kinds = dict.fromkeys(() if table.kind == "tar" else table.image_columns, "images")
    for name in table.columns:
        if name in travels and name in of:
            kinds[name] = f"{of[name]}, kept as the column {travels[name]}"
        elif name in of:
            kinds[name] = of[name]
        elif name in travels:
            kinds[name] = "kept" if travels[name] == name else f"kept as {travels[name]}"
        elif any(isinstance(value, list) for value in sample.columns[name]):
            kinds[name] = "not kept; a list, for `where_rounds` if it has one value per round"
        else:
            kinds[name] = "not kept"
    return kinds


def _shown(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "images": [image.path for image in conversation.images],
        "texts": render(conversation),
        "columns": conversation.columns,
    }


def _notes(found: list[Conversation], table: Table) -> list[str]:
    if found and not any(conversation.images for conversation in found) and not table.image_columns:
        return ["no images are recognised; if a column holds them, name it: --field image=COLUMN"]
    return []
