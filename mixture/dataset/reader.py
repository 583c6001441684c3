"""Reading a mixture: random access by position and by id, and views of it. Needs pyarrow, msgspec and NumPy alone."""

import hashlib
import io
import os
import shutil
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple, Self, overload

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from vlmix.mixture.dataset import manifest as manifests
from vlmix.mixture.dataset import notebook
from vlmix.mixture.dataset.manifest import SAMPLES_NAME, Counts, Manifest
from vlmix.mixture.dataset.remote_shards import Member, RemoteShards
from vlmix.mixture.dataset.schema import SAMPLES, VIEW, Index, SampleJson, check_index, columns_problem
from vlmix.mixture.dataset.tar import BLOCK, image_member
from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.io.fetch import fetch_sound
from vlmix.mixture.io.node_cache import LEAST, Arrays, once_per_node
from vlmix.mixture.io.shard_cache import ShardCache, configured
from vlmix.mixture.io.storage import Local, Location, Remote, locate, store_at
from vlmix.mixture.version import ORDER_VERSION

if TYPE_CHECKING:
    import polars as pl
    from PIL.Image import Image

_MOST_OPEN = 256  # descriptors kept per process; further shards are opened for each read


class Sample(SampleJson, frozen=True):
    """One sample: the fields of its `.json` member, `conversations` being turns in LLaVA's form; its key in the shard;
    and `jpegs`, the bytes of its stored images (none: text only)."""

    key: str = ""
    jpegs: tuple[bytes, ...] = ()

    @property
    def jpeg(self) -> bytes | None:
        """The bytes of the first image; None: text only."""
        return self.jpegs[0] if self.jpegs else None

    def images_pil(self) -> "list[Image]":
        """The stored images, decoded."""
        from PIL import Image

        return [Image.open(io.BytesIO(jpeg)) for jpeg in self.jpegs]

    def image_pil(self) -> "Image | None":
        """The first of them, None: text only."""
        return next(iter(self.images_pil()), None)

    def __repr__(self) -> str:
        image = f"{self.image!r} {self.width}x{self.height}, {len(self.jpeg):,} bytes" if self.jpeg else "none"
        image += f", and {len(self.images) - 1} more" if len(self.images) > 1 else ""
        first = " ".join(self.conversations[0].value.split()) if self.conversations else ""
        return f"<Sample {self.id!r}: image {image}; {len(self.conversations)} turns: {abridged(first, 60)!r} …>"

    def _repr_html_(self) -> str:
        return notebook.sample_html(self, self.jpegs)

    def show(self) -> None:
        """Look at it: a notebook displays it; elsewhere its rounds are printed and its first images opened in the
        viewer that Pillow finds, as `PIL.Image.Image.show` does. Long texts are cut, and say so."""
        notebook.show(self, self.jpegs)


class RawSample(Struct, frozen=True):
    """The members of a sample as they lie in the shard."""

    key: str
    jpegs: tuple[bytes, ...]
    json: bytes


class Place(NamedTuple):
    """Where a sample is: the number of its shard, its row in the root, and (offset, size) of its members."""

    shard: int
    row: int
    json: tuple[int, int]
    images: list[tuple[int, int]]


class Reader(Sequence[Sample]):
    """A mixture or a part of it. Position i is the i-th sample in mixture order.

    May be pickled, forked and used from several threads; a worker opens the shards that it reads by itself.
    """

    def __init__(
        self,
        folder: Location,
        manifest: Manifest,
        root: Location,
        root_manifest: Manifest,
        positions: NDArray[np.int64] | None,
        cache: ShardCache | None = None,
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self.root, self.root_manifest = root, root_manifest
        """What holds the shards and the texts: the folder itself, or that which a view refers to."""
        self.positions = positions
        """Rows of the folder's index that belong to this part; None: all."""
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._places: Arrays | None = None
        """Of all samples of the folder: see `_make_places`."""
        self._rows: NDArray[np.int64] | None = None
        self._key_shifts = root_manifest.key_shifts()
        self._open: dict[int, int | None] = {}
        """Shards that were looked at -> descriptor; None of further ones."""
        self.cache = cache
        self._remote = None if isinstance(root, Local) else RemoteShards(root, root_manifest.shards, cache, self._hint)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, *, cache_dir: str | Path | None = None, cache_bytes: int | None = None) -> Self:
        """Open a mixture, an annotations-only mixture or a view: a local folder or any URL that fsspec opens.

        `cache_dir` is a folder of this machine that keeps shards of a store, at most `cache_bytes` of them; by default
        what the environment says (VLMIX_SHARD_CACHE, VLMIX_SHARD_CACHE_BYTES). Raises VlmixError if `path` is not a
        mixture, if its format is newer than this vlmix, or if a view's root is gone or was built anew.
        """
        return cls.at(locate(path), configured(cache_dir, cache_bytes))

    @classmethod
    def at(cls, folder: Location, cache: ShardCache | None = None) -> Self:
        """As `open`, of a folder that was located."""
        manifest = manifests.read(folder)
        if manifest.parent is None:
            return cls(folder, manifest, folder, manifest, None, cache)
        parent = manifest.parent.path  # the URL of a store only where a local view says so
        root = folder.join(parent) if isinstance(folder, Remote) else store_at(parent) or folder.join(parent)
        try:
            digest = hashlib.sha256(root.join(manifests.NAME).whole()).hexdigest()
        except FileNotFoundError:
            what = f"{folder.name} is a view of {root.name}, which is gone; move it back or make the view anew"
            raise VlmixError(what) from None
        if digest != manifest.parent.sha256:
            raise VlmixError(f"{folder.name} is a view of {root.name}, which was built anew since; make the view anew")
        return cls(folder, manifest, root, manifests.read(root), None, cache)

    def __repr__(self) -> str:
        part = "" if self.positions is None else f", a part of its {self.manifest.samples}"
        return f"<{type(self).__name__} {self.folder.name}: {len(self)} samples{part}>"

    def __len__(self) -> int:
        return self.manifest.samples if self.positions is None else len(self.positions)

    def _repr_html_(self) -> str:
        shards = self.root_manifest.shards
        where = f"{len(shards):,} shards, {sum(shard.bytes for shard in shards) / 1e6:,.1f} MB"
        where = where if shards else "no shards, as it holds annotations only"
        if self.manifest.parent is not None:
            where = f"a view of {self.root.name}, which has {where}"
        whole = {name: info.counts for name, info in self.manifest.sources.items()}
        return notebook.mixture_html(repr(self)[1:-1], where, whole if self.positions is None else self._counts())

    def _counts(self) -> dict[str, Counts]:
        """What each source gives to this part, by the columns of the index."""
        names = {"repeat": "samples_per_epoch", "num_rounds": "rounds", "num_words": "words", "num_images": "images"}
        table = pa.table({name: self._part(name) for name in ("source", *names)}).group_by("source")
        sums = table.aggregate([("repeat", "count"), *((name, "sum") for name in names)]).to_pylist()
        counts = {
            row["source"]: Counts(
                samples=row["repeat_count"], **{said: int(row[f"{name}_sum"]) for name, said in names.items()}
            )
            for row in sums
        }
        return {name: counts[name] for name in [*self.manifest.sources, *counts] if name in counts}

    @property
    def sources(self) -> dict[str, int]:
        """Source -> number of its samples, in the order of the mixture's sources."""
        if self.positions is None:
            return {name: info.counts.samples for name, info in self.manifest.sources.items() if info.counts.samples}
        counts = {row["values"]: row["counts"] for row in self._part("source").value_counts().to_pylist()}
        return {name: counts[name] for name in [*self.manifest.sources, *counts] if name in counts}

    @overload
    def __getitem__(self, position: int | str) -> Sample: ...
    @overload
    def __getitem__(self, position: slice | Sequence[int] | list[str] | NDArray[Any]) -> Self: ...
    def __getitem__(self, position: int | str | slice | Sequence[int] | list[str] | NDArray[Any]) -> Sample | Self:
        """A sample by its position or its id; a part by a slice, by positions or ids, or by a mask [N] of bool.

        Raises IndexError for a position past the end, KeyError for an id that is not there, TypeError for the rest.
        """
        if isinstance(position, str):
            position = self.index_of(position)
        if not isinstance(position, int | np.integer):
            return self.select(self._positions(position))
        return self._decoded(self.raw(position))

    def _decoded(self, raw: RawSample) -> Sample:
        try:
            sample = msgspec.json.decode(raw.json, type=Sample)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise VlmixError(f"{self.root.name}: sample {raw.key}: {error}; {self._hint}") from None
        return msgspec.structs.replace(sample, key=raw.key, jpegs=raw.jpegs)

    def read(
        self, positions: Sequence[int] | NDArray[np.integer], without_images: Sequence[bool] | None = None
    ) -> list[Sample]:
        """The samples at `positions`, in that order; from a store in few requests, made at once. Those that are to be
        read `without_images` have no `jpegs`. Raises as `raw`."""
        places = [self._place(int(position)) for position in positions]
        if without_images is not None:
            places = [
                place._replace(images=[]) if bare else place for place, bare in zip(places, without_images, strict=True)
            ]
        return [self._decoded(raw) for raw in self.members(places)]

    def raws(self, positions: Sequence[int] | NDArray[np.integer]) -> list[RawSample]:
        """The same, undecoded."""
        return self.members([self._place(int(position)) for position in positions])

    @property
    def in_store(self) -> bool:
        """Whether the shards are not on this machine's file systems, so that what is read ahead is there in time."""
        return self._remote is not None

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def raw(self, position: int) -> RawSample:
        """The undecoded members of the sample at `position`. Raises IndexError past the end, VlmixError if the shard
        is missing, truncated or no longer the one that the index was made of."""
        return self.members([self._place(position)])[0]

    def _place(self, position: int) -> Place:
        at = range(len(self))[position]
        at = at if self.positions is None else int(self.positions[at])
        places = self._places if self._places is not None else self._load_places()
        row = int(places["row"][at]) if "row" in places else at
        shard = bisect_right(self._shard_ends, row)
        json_offset, json_size = int(places["json_offset"][at]), int(places["json_size"][at])
        first, last = places["first_image"][at : at + 2].tolist()
        images = list(zip(places["image_offset"][first:last].tolist(), places["image_size"][first:last].tolist()))
        return Place(shard, row, (json_offset, json_size), images)

    def members(self, places: Sequence[Place]) -> list[RawSample]:
        """The undecoded members of samples of the root, from a store in few requests. For who reads the places from
        the index anyway: `raw` keeps those of all samples. Raises as `raw` does."""
        if self._remote is None:
            return [self._local_members(*place) for place in places]
        if any(place.shard < 0 for place in places):
            self._open_shard(-1, 0, 0)
        asked, keys = list[Member](), [self._key(place.shard, place.row) for place in places]
        for key, place in zip(keys, places):
            names = [f"{key}.json", *(image_member(key, number) for number in range(len(place.images)))]
            asked += [Member(place.shard, name, *at) for name, at in zip(names, [place.json, *place.images])]
        data = iter(self._remote.read(asked))
        found = []
        for key, place in zip(keys, places):
            text = next(data)
            found.append(RawSample(key, tuple(next(data) for _ in place.images), text))
        return found

    def _local_members(
        self, shard: int, row: int, json_place: tuple[int, int], images: Sequence[tuple[int, int]]
    ) -> RawSample:
        json_offset, json_size = json_place
        if shard not in self._open:
            self._open_shard(shard, json_offset, row)
        descriptor = self._open[shard]
        if descriptor is not None:
            jpegs = tuple(os.pread(descriptor, size, offset) for offset, size in images)
            text = os.pread(descriptor, json_size, json_offset)
        else:
            where = self.root.join(self.root_manifest.shards[shard].path)
            jpegs = tuple(where.range(offset, size) for offset, size in images)
            text = where.range(json_offset, json_size)
        if len(text) != json_size or any(len(jpeg) != size for jpeg, (_, size) in zip(jpegs, images)):
            path = self.root_manifest.shards[shard].path
            raise VlmixError(f"{self.root.join(path).name}: truncated since it was opened; {self._hint}")
        return RawSample(self._key(shard, row), jpegs, text)

    def _positions(self, chosen: Any) -> NDArray[np.int64]:
        """Positions, from 0, of a part that is chosen by anything that `[]` takes."""
        everything = np.arange(len(self))
        if isinstance(chosen, slice):
            return everything[chosen]
        array = np.asarray(chosen)
        if array.ndim != 1 or (array.dtype.kind not in "iubU" and array.size):
            what = f"{type(chosen).__name__} {abridged(repr(chosen), 60)}"
            raise TypeError(f"{what}: expected a position, an id, a slice, a list of positions or ids, or a mask")
        if array.dtype.kind == "U":
            found = pc.index_in(pa.array(array, pa.string()), value_set=self.column("id"))
            if found.null_count:
                raise KeyError(str(array[found.is_null().to_numpy(zero_copy_only=False)][0]))
            return np.asarray(found.to_numpy(), dtype=np.int64)
        return np.asarray(everything[array if array.size else np.empty(0, dtype=np.int64)], dtype=np.int64)

    def index_of(self, id: str) -> int:
        """Position of the sample with this id. Raises KeyError if there is none."""
        position = pc.index(self.column("id"), pa.scalar(id, pa.string())).as_py()
        if position < 0:
            raise KeyError(id)
        return int(position)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the index (`dataset.schema.SAMPLES`, texts excepted) for the samples of this part, kept."""
        if name not in self._columns:
            self._columns[name] = self._part(name)
        return self._columns[name]

    @property
    def rows(self) -> NDArray[np.int64]:
        """[N] int64: the samples' rows in the root's samples.parquet."""
        if self._rows is None:
            if self.manifest.parent is not None:
                self._rows = self._part("root_row").to_numpy()
            else:
                self._rows = np.arange(self.manifest.samples) if self.positions is None else self.positions
        return self._rows

    @property
    def samples(self) -> "pl.LazyFrame":
        """The index as a lazy polars frame: of a whole mixture with its texts, of a view without."""
        import polars as pl

        frames = (
            pl.scan_parquet(file.path) if isinstance(file, Local) else pl.read_parquet(file.whole()).lazy()
            for file in self._own_files
        )
        frame = pl.concat(frames)
        if self.positions is None:
            return frame
        mine = pl.LazyFrame({"position": self.positions})
        numbered = frame.with_row_index("position").with_columns(pl.col("position").cast(pl.Int64))
        return mine.join(numbered, on="position", how="left", maintain_order="left").drop("position")

    def own_index(self, dictionaries: Sequence[str] = ()) -> Index:
        """The folder's index, opened anew. Raises VlmixError if it is missing or damaged."""
        return Index(self._own_files, dictionaries)

    def root_index(self) -> Index:
        """The index of the root, which has the texts, opened anew. Raises as `own_index`, and for other columns."""
        index = Index(self._root_files)
        check_index(index, self.root.join(SAMPLES_NAME).name)
        return index

    def whole_root(self) -> Self:
        """The root by itself, whatever part of it this is."""
        return type(self)(self.root, self.root_manifest, self.root, self.root_manifest, None, self.cache)

    @cached_property
    def index_here(self) -> list[Location]:
        """The files of the root's index on this machine, for processes that would each read them from a store: copies
        then, which go when this object does. Raises VlmixError if one is missing or was changed."""
        if isinstance(self.root, Local):
            return self._root_files
        folder = Path(mkdtemp(prefix="vlmix-index-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for name in self.root_manifest.index:
            fetch_sound(self.root, name, folder / name, self.root_manifest.checksums.get(name))
        return [Local(folder / name) for name in self.root_manifest.index]

    @cached_property
    def _own_files(self) -> list[Location]:
        """The files of the folder's index. Of a store they stay in memory, once read."""
        return [self.folder.join(name) for name in self.manifest.index]

    @cached_property
    def _root_files(self) -> list[Location]:
        if self.manifest.parent is None:
            return self._own_files
        return [self.root.join(name) for name in self.root_manifest.index]

    def select(self, positions: NDArray[np.int64]) -> Self:
        """The samples at `positions`, in that order."""
        mine = positions if self.positions is None else self.positions[positions]
        mine = np.asarray(mine, dtype=np.int64)
        part = type(self)(self.folder, self.manifest, self.root, self.root_manifest, mine)
        part._places, part._remote = self._places, self._remote
        part._own_files, part._root_files = self._own_files, self._root_files
        return part

    def lengths(self, image_tokens: int = 0) -> NDArray[np.int64]:
        """[N] int64: words of each sample, plus `image_tokens` for each image."""
        images = self._part("num_images").to_numpy().astype(np.int64)
        return np.asarray(self._part("num_words").to_numpy() + image_tokens * images, dtype=np.int64)

    def words(self) -> NDArray[np.int32]:
        """[N] words of each sample; of many samples mapped, not to be written."""
        if not self.has_many:
            return np.asarray(self._part("num_words").to_numpy())
        return self.shared("words", [], lambda: {"words": self._part("num_words").to_numpy()})["words"]

    def turns(self) -> Iterator[tuple[NDArray[np.int64], pa.StringArray, NDArray[np.int64]]]:
        """All texts, a row group at a time in the root's order: [n] positions, the turns of all of them in one array,
        [n] how many each has."""
        for positions, column in self._heavy("conversations"):
            counts = pc.list_value_length(column).to_numpy().astype(np.int64)
            yield positions, column.flatten().field("value"), counts

    def response_formats(self) -> Iterator[tuple[NDArray[np.int64], list[list[str]]]]:
        """The response format of each round, in the same pieces as `turns` and `texts`."""
        for positions, column in self._heavy("response_formats"):
            yield positions, column.to_pylist()

    def _heavy(self, name: str) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
        """A column of the root's index that views have not, a row group at a time: [n] positions and the values."""
        order = np.argsort(self.rows, kind="stable")
        rows = self.rows[order]
        for first, size, read in Index(self._root_files).groups([name]):
            low, high = np.searchsorted(rows, [first, first + size])
            if low < high:
                texts = read()
                if problem := columns_problem(texts):
                    raise VlmixError(f"{self.root.name}: {SAMPLES_NAME}: {problem}; {self._hint}")
                yield order[low:high], texts[name].combine_chunks().take(pa.array(rows[low:high] - first))

    def texts(self) -> Iterator[tuple[NDArray[np.int64], list[list[str]]]]:
        """The same as Python's strings: [n] positions, and for each the values of its turns."""
        for positions, values, counts in self.turns():
            plain, ends = values.to_pylist(), np.cumsum(counts).tolist()
            yield positions, [plain[a:b] for a, b in zip([0, *ends], ends)]

    def _part(self, name: str) -> pa.ChunkedArray:
        """A column of the index for the samples of this part, not kept."""
        column = self._table([name])[name]
        return column if self.positions is None else column.take(pa.array(self.positions))

    def pieces(self, name: str) -> Iterator[pa.ChunkedArray]:
        """The same column, not kept, a file of the index at a time; whole for samples in another order than there."""
        positions, first = self.positions, 0
        if positions is not None and (positions[1:] <= positions[:-1]).any():
            yield self._part(name)
            return
        for table in self._tables([name]):
            if positions is not None:
                low, high = np.searchsorted(positions, [first, first + table.num_rows])
                yield table[name].take(pa.array(positions[low:high] - first))
            else:
                yield table[name]
            first += table.num_rows

    def image_fields(self, *names: str) -> tuple[NDArray[np.int64], list[pa.Array]]:
        """[N] how many images each sample has, and `names` of `images` (`dataset.schema.SAMPLES`) for all of them, [M]
        each, one sample's after the other's. Not kept."""
        lists = self._table([f"images.list.element.{name}" for name in names])["images"]
        lists = (lists if self.positions is None else lists.take(pa.array(self.positions))).combine_chunks()
        return self._fields(lists, *names)

    def image_pieces(self, *names: str) -> Iterator[tuple[NDArray[np.int64], list[pa.Array]]]:
        """`image_fields` of the whole folder, some samples at a time."""
        for table in self._tables([f"images.list.element.{name}" for name in names]):
            yield from (self._fields(lists, *names) for lists in table["images"].iterchunks())

    def _fields(self, lists: pa.ListArray, *names: str) -> tuple[NDArray[np.int64], list[pa.Array]]:
        fields = [lists.flatten().field(name) for name in names]
        if any(field.null_count for field in fields):
            raise VlmixError(f"{self.folder.name}: {SAMPLES_NAME}: an image has no {' or '.join(names)}; {self._hint}")
        return pc.list_value_length(lists).to_numpy().astype(np.int64), fields

    @property
    def local_root(self) -> Path:
        """The root as a path. Raises VlmixError if it is a URL."""
        if not isinstance(self.root, Local):
            raise VlmixError(f"{self.root.name}: this needs a local folder; copy the mixture first")
        return self.root.path

    @property
    def has_many(self) -> bool:
        """Whether there are so many samples that processes of a machine share what is known of them."""
        return len(self) >= LEAST

    def shared(self, about: object, key: Sequence[object], make: Callable[[], Arrays]) -> Arrays:
        """What `make` returns, computed once on a machine for these samples, wherever they lie, and mapped by all of
        its processes. `about` and `key` (anything that JSON writes) say what it is."""
        return once_per_node([ORDER_VERSION, self.shared_key, about, *key], make)

    @cached_property
    def shared_key(self) -> list[str]:
        """What these samples are, and in which order."""
        part = [] if self.positions is None else [digest_of(self.positions)]
        return [self.manifest.sha256, self.root_manifest.sha256, *part]

    def __getstate__(self) -> dict[str, Any]:
        kept = {**self.__dict__, "_open": {}, "_lock": None}
        # What is mapped is not sent along, and large columns are read anew where they are needed.
        return kept if self.manifest.samples < LEAST else {**kept, "_places": None, "_rows": None, "_columns": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            if descriptor is not None:
                os.close(descriptor)

    @property
    def _hint(self) -> str:
        return f"`vlmix verify {self.root.name}` lists all damage"

    def _table(self, columns: list[str]) -> pa.Table:
        return pa.concat_tables(self._tables(columns))

    def _tables(self, columns: list[str], dictionaries: Sequence[str] = ()) -> Iterator[pa.Table]:
        """Columns of the folder's index, checked, a part at a time."""
        name, rows = self.folder.join(SAMPLES_NAME).name, 0
        for table in self.own_index(dictionaries).parts(columns):
            names = [column.partition(".")[0] for column in columns]
            if missing := [column for column in names if column not in table.column_names]:
                known = missing[0] in SAMPLES.names or missing[0] in VIEW.names
                what = "does not match the format version of its manifest" if known else "does not have such a column"
                raise VlmixError(f"{name} has no column {missing[0]!r}: it {what}")
            if problem := columns_problem(table):
                raise VlmixError(f"{name}: {problem}; {self._hint}")
            rows += table.num_rows
            yield table
        if rows != self.manifest.samples:
            raise VlmixError(f"{name} has {rows} rows, the manifest says {self.manifest.samples}; {self._hint}")

    @cached_property
    def _shard_ends(self) -> list[int]:
        """[S] rows of the root up to the end of each shard."""
        return list(accumulate(shard.samples for shard in self.root_manifest.shards))

    def _load_places(self) -> Arrays:
        if not self.root_manifest.shards:
            self._open_shard(-1, 0, 0)
        if self.manifest.samples < LEAST:
            self._places = self._make_places()
        else:
            key = ["places", self.manifest.sha256, self.root_manifest.sha256]
            self._places = once_per_node(key, self._make_places)
            pa.default_memory_pool().release_unused()
        return self._places

    def _make_places(self) -> Arrays:
        """Where the members of the folder's N samples with their M images are: `json_offset`, `json_size` [N],
        `first_image` [N + 1] into `image_offset`, `image_size` [M], and of a view `row` [N], the samples' rows in the
        root, which say what their shards are."""
        shards, view, count = self.root_manifest.shards, self.manifest.parent is not None, self.manifest.samples
        paths = {shard.path: number for number, shard in enumerate(shards)}
        ends, sizes = np.array(self._shard_ends), np.array([shard.bytes for shard in shards], dtype=np.uint64)
        fits = np.uint32 if sizes.max() < 2**32 else np.int64  # no place lies behind the end of its shard
        found: Arrays = {"json_offset": np.empty(count, fits), "json_size": np.empty(count, fits)}
        if view:
            found["row"] = np.empty(count, np.uint32 if self.root_manifest.samples < 2**32 else np.int64)
        counts, images = np.zeros(count + 1, dtype=np.int32), list[tuple[NDArray[Any], ...]]()
        names = ["images.list.element.offset", "images.list.element.size"]
        names, first = ["shard", "json_offset", "json_size", *(["root_row"] if view else []), *names], 0
        for table in self._tables(names, dictionaries=["shard"]):
            if not table.num_rows:
                continue
            stop = first + table.num_rows
            rows = table["root_row"].to_numpy() if view else np.array([first, stop - 1])
            sound = bool(stop <= count and rows.min() >= 0 and rows.max() < ends[-1])
            if sound:
                shard = np.searchsorted(ends, rows, side="right") if view else self.manifest.shard_numbers(first, stop)
                sound = np.array_equal(_numbers(table["shard"], paths), shard)
            if sound:
                within = sizes[shard]
                offset, size = (table[name].to_numpy().view(np.uint64) for name in ("json_offset", "json_size"))
                counts[first + 1 : stop + 1], fields = self._fields(table["images"].combine_chunks(), "offset", "size")
                image_offset, image_size = (field.to_numpy().view(np.uint64) for field in fields)
                within_images = np.repeat(within, counts[first + 1 : stop + 1])
                sound = _inside(offset, size, within) and _inside(image_offset, image_size, within_images)
            if not sound:
                what = f"{SAMPLES_NAME} places samples outside their shards"
                raise VlmixError(f"{self.folder.name}: {what}; {self._hint}")
            found["json_offset"][first:stop], found["json_size"][first:stop] = offset, size
            images.append((image_offset.astype(fits), image_size.astype(fits)))
            if view:
                found["row"][first:stop] = rows
            first = stop
        found["image_offset"], found["image_size"] = map(np.concatenate, zip(*images))
        many = len(found["image_size"]) >= 2**32
        return found | {"first_image": np.cumsum(counts, dtype=np.int64 if many else np.uint32)}

    def _key(self, shard: int, row: int) -> str:
        """What the members of the root's sample in `row` are called in its shard."""
        return f"{row + self._key_shifts[shard]:09d}"

    def _open_shard(self, number: int, offset: int, row: int) -> None:
        """Look at a shard for the first time: it has to be as long as the manifest says, and the member at `offset` to
        be that of `row`. `vlmix verify` compares all bytes."""
        if number < 0:
            raise VlmixError(f"{self.root.name} was built with --annotations-only: it has no shards")
        shard = self.root_manifest.shards[number]
        where = self.root.join(shard.path)
        try:
            size = where.size()
        except FileNotFoundError:
            raise VlmixError(f"{where.name} is missing; {self._hint}") from None
        if size != shard.bytes:
            raise VlmixError(
                f"{where.name} has {size} bytes, the manifest says {shard.bytes}: it was truncated or changed since "
                f"the index was made; {self._hint}"
            )
        key = self._key(number, row)
        if where.range(offset - BLOCK, 100).rstrip(b"\0") != f"{key}.json".encode():
            raise VlmixError(f"{where.name} was changed since the index was made: {key} is elsewhere; {self._hint}")
        with self._lock:
            if number not in self._open:
                few = sum(descriptor is not None for descriptor in self._open.values()) < _MOST_OPEN
                self._open[number] = os.open(where.path, os.O_RDONLY) if few and isinstance(where, Local) else None


def _inside(offset: NDArray[np.uint64], size: NDArray[np.uint64], within: NDArray[np.uint64]) -> bool:
    """Whether all ranges end before these numbers of bytes. As unsigned numbers, negative ones are too large."""
    return bool(((offset <= within) & (size <= within - offset)).all())


def digest_of(numbers: NDArray[np.integer]) -> str:
    """sha256 of integers, whatever their width."""
    return hashlib.sha256(np.ascontiguousarray(numbers, dtype=np.int64).data).hexdigest()


def _numbers(values: pa.ChunkedArray, of: dict[str, int]) -> NDArray[np.int64]:
    """[N] the number of each value, read as a dictionary; -1 for one without."""
    chunks = (
        np.array([of.get(value, -1) for value in chunk.dictionary.to_pylist()], dtype=np.int64)[
            chunk.indices.to_numpy()
        ]
        for chunk in values.chunks
    )
    return np.concatenate([*chunks, np.empty(0, dtype=np.int64)])
