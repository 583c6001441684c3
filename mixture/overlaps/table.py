"""The file that `vlmix overlaps` writes: which samples overlap with what, by which level, and what was checked."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.io.storage import Local, Location, StoreError

FORMAT = 1
Level = Literal["id", "bytes", "near", "embedding", "text", "near_text"]
LEVELS: tuple[Level, ...] = ("id", "bytes", "near", "embedding", "text", "near_text")
"""By what two things are the same: the image's id in its dataset, its bytes, its looks, its embedding, the text, nearly
the text."""
PICTURES: tuple[Level, ...] = ("id", "bytes", "near", "embedding")
OF_SETS: tuple[Level, ...] = ("id", "bytes", "near", "text")
"""The levels by which evaluation sets are always compared, where that can be."""

SCHEMA = pa.schema(
    {
        "benchmark": pa.string(),  # "" for a duplicate within the mixture
        "split": pa.string(),
        "other": pa.string(),  # the question's id, or the id of the sample that was there first
        "level": pa.string(),
        "id": pa.string(),  # of the sample
        "source": pa.string(),
        "row": pa.int64(),  # of the sample in the mixture
        "image": pa.int32(),  # number of its picture; null where text is compared
        "distance": pa.int32(),  # bits, of 256, for `near`; else null
        "cosine": pa.float32(),  # of embeddings, for `embedding`; else null
        "path": pa.string(),  # of the sample's picture, in LLaVA's layout
        "other_path": pa.string(),
    }
)
_KEY = b"vlmix_overlaps"


class Row(NamedTuple):
    """A row of the file; `sample` is the position of the sample, `image` the number of an image among all."""

    benchmark: str
    split: str
    other: str
    level: Level
    sample: int
    image: int | None = None
    distance: int | None = None
    other_path: str = ""
    cosine: float | None = None


class Checked(Struct, frozen=True, kw_only=True):
    """What was compared with a mixture; a level that could not be is in `unchecked` with the reason.

    `questions` has the ids of all questions, so that those without an overlap are known to be clean.
    """

    benchmark: str
    split: str
    levels: list[str]
    unchecked: dict[str, str] = {}
    questions: list[str] = []
    pictures: int = 0
    unreadable: list[str] = []
    """Pictures that did not decode: compared by id and bytes alone."""
    flat: int = 0
    """Pictures of one colour, which were compared by id and bytes alone."""
    left_out: list[str] = []
    """Questions whose picture could not be compared by its looks, and which are therefore never called clean."""
    not_listed: int = 0
    """Pairs of a question and a sample with the same text beyond those that are listed, the first of each question."""


class About(Struct, frozen=True, kw_only=True):
    """What an overlaps file is of: the mixture's name and the SHA-256 of its manifest.json. On disk it is "" in a file
    that was built with its mixture, as the manifest has the file's hash."""

    format: int
    mixture: str
    manifest: str
    near: int
    checked: list[Checked]


class Overlaps(Struct, frozen=True):
    """An overlaps file. `rows` has the columns of `SCHEMA`."""

    about: About
    rows: pa.Table

    def checked(self, benchmark: str, split: str) -> Checked:
        """What was compared with a benchmark's split. Raises VlmixError if it was not."""
        for one in self.about.checked:
            if (one.benchmark, one.split) == (benchmark, split):
                return one
        names = (f"{one.benchmark} {one.split}".strip() for one in self.about.checked if one.benchmark)
        known = ", ".join(names) or "no benchmark"
        what = f"{benchmark} {split}".strip()
        raise VlmixError(f"the overlaps are with {known}, not with {what}; run `vlmix overlaps` with it")

    def seen(self, benchmark: str, split: str, levels: Sequence[str] = LEVELS) -> frozenset[str]:
        """The ids of the questions that are in the mixture by one of `levels`."""
        of_set = (pc.field("benchmark") == benchmark) & (pc.field("split") == split)
        return frozenset(self.rows.filter(of_set & pc.field("level").isin(levels))["other"].to_pylist())


class Touched(Struct, frozen=True, kw_only=True):
    """How many of an evaluation set's questions, and of a source's samples, overlap by a level; for duplicates
    `questions` is 0 and `samples` those that others of the mixture say already."""

    benchmark: str
    split: str
    source: str
    level: Level
    samples: int
    questions: int


def touched(overlaps: Overlaps) -> list[Touched]:
    """By benchmark, source and level."""
    groups = overlaps.rows.group_by(["benchmark", "split", "source", "level"])
    counted = groups.aggregate([("row", "count_distinct"), ("other", "count_distinct")])
    found = [
        Touched(
            benchmark=row["benchmark"],
            split=row["split"],
            source=row["source"],
            level=row["level"],
            samples=row["row_count_distinct"],
            questions=row["other_count_distinct"] if row["benchmark"] else 0,
        )
        for row in counted.to_pylist()
    ]
    return sorted(found, key=lambda each: (each.benchmark, each.split, each.source, LEVELS.index(each.level)))


def identity(mixture: Reader) -> str:
    """SHA-256 of the mixture's manifest.json."""
    return hashlib.sha256(mixture.folder.join(manifests.NAME).whole()).hexdigest()


def write(path: Path, overlaps: Overlaps) -> None:
    """Write an overlaps file, whole or not at all."""
    about = {_KEY: msgspec.json.encode(overlaps.about)}
    with atomic_write(path) as file:
        pq.write_table(overlaps.rows.cast(SCHEMA).replace_schema_metadata(about), file, compression="zstd")


def read(where: Path | Location, mixture: Reader | None = None) -> Overlaps:
    """The overlaps file at `where`. Raises VlmixError if it is none, or of another mixture than `mixture`."""
    file = Local(where) if isinstance(where, Path) else where
    path = file.name
    try:
        rows = pq.read_table(file.arrow())
        about = msgspec.json.decode((rows.schema.metadata or {})[_KEY], type=About)
        rows = rows.select(SCHEMA.names).cast(SCHEMA)
        if not set(rows["level"].unique().to_pylist()) <= set(LEVELS):
            raise KeyError
    except FileNotFoundError:
        raise VlmixError(f"{path} does not exist; `vlmix overlaps` writes it") from None
    except (OSError, pa.ArrowInvalid, KeyError, msgspec.MsgspecError):
        raise VlmixError(f"{path} is no overlaps file; `vlmix overlaps` writes one") from None
    if about.format > FORMAT:
        raise VlmixError(f"{path} was written by a newer vlmix")
    if not about.manifest:
        about = msgspec.structs.replace(about, manifest=_built_with(file, about))
    if mixture is not None and about.manifest != identity(mixture):
        raise VlmixError(f"{path} is of {about.mixture} as it was built then, not of {mixture.folder.name}")
    return Overlaps(about, rows)


def _built_with(file: Location, about: About) -> str:
    """The identity of the mixture in whose folder a file lies that was built with it."""
    try:
        mixture = Reader.at(file.join(".."))
    except StoreError:
        raise
    except VlmixError:
        mixture = None
    digest = hashlib.sha256(file.whole()).hexdigest()
    if mixture is None or digest != mixture.manifest.checksums.get(manifests.OVERLAPS_NAME):
        raise VlmixError(
            f"{file.name} was built with {about.mixture}; name it in that mixture's folder, where it can be told"
        )
    return identity(mixture)
