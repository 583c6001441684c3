"""`manifest.json`: what a mixture is made of, and whether it is complete."""

import hashlib
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import write_bytes
from vlmix.mixture.io.storage import Local, Location
from vlmix.mixture.record import unsafe_path
from vlmix.mixture.version import FORMAT_VERSION, OLDEST_FORMAT_VERSION, ORDER_VERSION, VERSION

T = TypeVar("T")
NAME = "manifest.json"
SAMPLES_NAME = "samples.parquet"
CARD_NAME = "README.md"
REJECTS_NAME = "rejects.parquet"
OVERLAPS_NAME = "overlaps.parquet"
_UNSEALED = "0" * 64
_END = b' "sha256": "' + _UNSEALED.encode() + b'"\n}\n'


class Input(Struct, frozen=True):
    """A raw file that was read: path relative to RAW (the bare name if it lies elsewhere), bytes, sha256. `partial`:
    the sha256 is of the part that says where everything is (a Parquet file's footer, a tar's headers and texts), as a
    build reads only those images that it takes."""

    path: str
    bytes: int
    sha256: str
    partial: bool = False


class Counts(Struct, frozen=True):
    """What one source gives to a mixture."""

    samples: int = 0
    samples_per_epoch: int = 0
    """Samples per epoch, repeats counted."""
    rounds: int = 0
    words: int = 0
    images: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f) + getattr(other, f) for f in self.__struct_fields__))


class Shard(Struct, frozen=True, omit_defaults=True):
    """A written shard as the manifest lists it."""

    path: str
    samples: int
    bytes: int
    sha256: str
    first_key: int | None = None
    """The number that its first sample's key is, the others counting on; None: the sample's position in the mixture.
    Shards that were merged keep the keys that they had."""


class SourceInfo(Struct, frozen=True, kw_only=True):
    """One dataset in a mixture: where it comes from and what it gave."""

    license: str
    homepage: str
    counts: Counts


class Parent(Struct, frozen=True):
    """What a view refers to: the folder that holds the shards, relative to the view, and the sha256 of its manifest."""

    path: str
    sha256: str


class Manifest(Struct, frozen=True, kw_only=True):
    """The manifest. `files` maps the other files of the folder to their sha256."""

    format_version: int = FORMAT_VERSION
    order_version: int = ORDER_VERSION
    vlmix_version: str = VERSION
    kind: Literal["mixture", "view", "annotations"]
    name: str
    seed: int
    recipe: dict[str, Any]
    selections: list[dict[str, Any]] = []
    """The selections, outermost last, that made this subset of the recipe's mixture."""
    samples: int
    sources: dict[str, SourceInfo]
    libraries: dict[str, str] = {}
    """Those that encoded the images, or decided which are near each other -> their version."""
    check: Literal["header"] | msgspec.UnsetType = msgspec.UNSET
    """Absent where all images were decoded while they were checked; `header`: of JPEGs their headers were read."""
    rejects: dict[str, dict[str, int]] = {}
    """Source -> reason -> count."""
    inputs: dict[str, list[Input]] = {}
    """Recipe entry -> raw files read."""
    shards: list[Shard] = []
    parent: Parent | None = None
    checksums: dict[str, str]
    sha256: str = _UNSEALED
    """Of the file's own bytes, with zeros for these digits; `write` fills it in."""

    @property
    def index(self) -> list[str]:
        """The files of the index: samples.parquet, or the parts in that folder."""
        return sorted(name for name in self.checksums if name.startswith(f"{SAMPLES_NAME}/")) or [SAMPLES_NAME]

    def shard_numbers(self, first: int, stop: int) -> NDArray[np.int64]:
        """[stop - first] the shards of the samples from `first` to before `stop`, of which there is one at least."""
        ends = np.cumsum([shard.samples for shard in self.shards])
        low, high = np.searchsorted(ends, [first, stop - 1], side="right")
        bounds = np.clip(np.concatenate([[first], ends[low : high + 1]]), first, stop)
        return np.repeat(np.arange(low, high + 1), np.diff(bounds))

    def key_shifts(self) -> list[int]:
        """[S] of each shard, the number that a sample's key is, less the sample's position in the mixture."""
        starts = accumulate((shard.samples for shard in self.shards), initial=0)
        return [0 if shard.first_key is None else shard.first_key - start for shard, start in zip(self.shards, starts)]

    @property
    def total(self) -> Counts:
        return sum((info.counts for info in self.sources.values()), Counts())


def write(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a folder, with its checksum; gives it back as it was written."""
    plain_folder = manifest.index == [SAMPLES_NAME] and all(shard.first_key is None for shard in manifest.shards)
    version = OLDEST_FORMAT_VERSION if plain_folder else FORMAT_VERSION
    plain = msgspec.structs.replace(manifest, format_version=version, order_version=ORDER_VERSION, sha256=_UNSEALED)
    sealed = _sealed(msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")
    write_bytes(folder / NAME, sealed)
    return parse(sealed, NAME)


def _sealed(data: bytes) -> bytes:
    """A manifest's bytes with the checksum that they must have."""
    bare = data[: -len(_END)] + _END
    return data[: -len(_END)] + _END.replace(_UNSEALED.encode(), hashlib.sha256(bare).hexdigest().encode())


def read(folder: Location) -> Manifest:
    """The manifest of a mixture folder. Raises VlmixError if `folder` is not one, is of another format, or if a single
    bit of the manifest is not as it was written."""
    where = folder.join(NAME)
    try:
        data = where.whole()
    except FileNotFoundError:
        unfinished = isinstance(folder, Local) and folder.path.with_name(folder.path.name + ".partial").is_dir()
        remedy = "; its build did not finish: run the same `vlmix build` again to resume it, or to see why it failed"
        remedy = remedy if unfinished else ""
        raise VlmixError(f"{folder.name} is not a mixture: it has no {NAME}{remedy}") from None
    return parse(data, where.name)


def parse(data: bytes, name: str, *, sealed: bool = True) -> Manifest:
    """The manifest that `data`, the bytes of the file `name`, holds. With `sealed=False` its checksum is not looked at,
    for a report on what else is damaged."""
    version = _decoded(data, _Version, name).format_version
    if not OLDEST_FORMAT_VERSION <= version <= FORMAT_VERSION:
        age, remedy = ("newer", "update vlmix") if version > FORMAT_VERSION else ("older", "build the mixture again")
        raise VlmixError(
            f"{name}: format version {version} is {age} than the {FORMAT_VERSION} that this vlmix reads; {remedy}"
        )
    if sealed and _sealed(data) != data:
        raise VlmixError(
            f"{name}: its bytes differ from its own checksum: it was damaged or edited; "
            "copy the mixture again, or build it again with the recipe changed"
        )
    manifest = _decoded(data, Manifest, name)
    if problem := _contradiction(manifest):
        raise VlmixError(f"{name}: {problem}; the manifest is damaged, build the mixture again")
    for file in (*manifest.checksums, *(shard.path for shard in manifest.shards)):
        if problem := unsafe_path(file):
            raise VlmixError(f"{name}: file {file[:200]!r} leaves the folder: {problem[:200]}")
    return manifest


def _decoded(data: bytes, type: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VlmixError(f"{name}: {error}; the manifest is damaged, build the mixture again") from None


class _Version(Struct, frozen=True):
    format_version: int = 0


def _contradiction(manifest: Manifest) -> str | None:
    """What in a manifest cannot be true."""
    if (manifest.kind == "view") != (manifest.parent is not None):
        return "a view names its parent, and nothing else does"
    if missing := [key for key in ("name", "order", "prompts", "samples_per_shard") if key not in manifest.recipe]:
        return f"its recipe has no {missing[0]!r}"
    if manifest.samples < 1 or manifest.samples != manifest.total.samples:
        return f"{manifest.samples} samples, its sources add up to {manifest.total.samples}"
    if manifest.kind == "mixture" and manifest.samples != sum(shard.samples for shard in manifest.shards):
        return f"{manifest.samples} samples, its shards hold {sum(shard.samples for shard in manifest.shards)}"
    return None
