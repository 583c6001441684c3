"""Several mixtures that are trained on together, each with a weight. Nothing is written."""

import hashlib
import math
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.mixture.dataset.manifest import SAMPLES_NAME
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.schedule.blend import BlendSchedule, Part, sizes_of
from vlmix.mixture.schedule.schedule import Arrays, Schedule

_MOST = 1e6
_ROWS = 100_000  # whose numbers are written at a time


class Shares(NamedTuple):
    """What each of several mixtures gives: a `weight` relative to the others, or a `repeat`, which is how often an
    epoch of the blend goes through the mixture."""

    kind: str
    values: tuple[float, ...]


class Blend(Sequence[Sample]):
    """Mixtures that are trained on together. Position i counts through the first one, then the second, and so on.

    Ids and sources begin with the name of the mixture, `mine/gqa/2317133` and `mine/gqa`, so they are unique.
    May be pickled, forked and used from several threads.
    """

    def __init__(self, mixtures: Mapping[str, Mixture], shares: Shares) -> None:
        """`mixtures` by name, with what each gives."""
        self.mixtures, self.shares = dict(mixtures), shares
        self._ends = np.cumsum([len(mixture) for mixture in self.mixtures.values()])

    def __repr__(self) -> str:
        parts = (f"{name} ({len(mixture)})" for name, mixture in self.mixtures.items())
        return f"<Blend of {', '.join(parts)}: {len(self)} samples>"

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, position: int | str) -> Sample: ...
    @overload
    def __getitem__(self, position: slice) -> Self: ...
    def __getitem__(self, position: int | str | slice) -> Sample | Self:
        """A sample by its position or its id; a part by a slice. Raises IndexError past the end, KeyError for an id
        that is not there."""
        if isinstance(position, slice):
            return self.select(np.arange(len(self))[position])
        if isinstance(position, str):
            position = self.index_of(position)
        name, within = self.place(position)
        return _named(name, self.mixtures[name][within])

    def read(
        self, positions: Sequence[int] | NDArray[np.integer], without_images: Sequence[bool] | None = None
    ) -> list[Sample]:
        """The samples at `positions`, in that order; from a store in few requests, made at once. Those that are to be
        read `without_images` have no `jpegs`."""
        places = [self.place(int(position)) for position in positions]
        bare = [False] * len(places) if without_images is None else without_images
        asked = dict.fromkeys((*place, alone) for place, alone in zip(places, bare, strict=True))
        found: dict[tuple[str, int, bool], Sample] = {}
        for name, mixture in self.mixtures.items():
            mine = [each for each in asked if each[0] == name]
            read = mixture.read([within for _, within, _ in mine], [alone for _, _, alone in mine])
            found |= zip(mine, map(partial(_named, name), read))
        return [found[(*place, alone)] for place, alone in zip(places, bare)]

    @property
    def in_store(self) -> bool:
        """Whether any of the mixtures is in a store."""
        return any(mixture.in_store for mixture in self.mixtures.values())

    def place(self, position: int) -> tuple[str, int]:
        """The mixture of a sample, by name, and the sample's position in it. Raises IndexError past the end."""
        at = range(len(self))[position]
        number = int(np.searchsorted(self._ends, at, side="right"))
        name = list(self.mixtures)[number]
        return name, at - int(self._ends[number]) + len(self.mixtures[name])

    def index_of(self, id: str) -> int:
        """Position of the sample with this id. Raises KeyError if there is none."""
        start = 0
        for name, mixture in self.mixtures.items():
            if id.startswith(f"{name}/"):
                try:
                    return start + mixture.index_of(id.removeprefix(f"{name}/"))
                except KeyError:  # another name may begin alike
                    pass
            start += len(mixture)
        raise KeyError(id)

    @property
    def sources(self) -> dict[str, int]:
        """Source -> number of its samples."""
        return {
            f"{name}/{source}": count
            for name, mixture in self.mixtures.items()
            for source, count in mixture.sources.items()
        }

    @property
    def rows(self) -> NDArray[np.int64]:
        """[N] int64: the samples' rows in the roots' samples.parquet, the roots counted one after the other."""
        sizes = [mixture.root_manifest.samples for mixture in self.mixtures.values()]
        starts = np.cumsum([0, *sizes])
        return np.concatenate([mixture.rows + start for mixture, start in zip(self.mixtures.values(), starts)])

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the index for all samples, ids and sources beginning with the name of their mixture."""
        columns = []
        for label, mixture in self.mixtures.items():
            column = mixture.column(name)
            if name in ("id", "source"):
                column = pc.binary_join_element_wise(pa.scalar(f"{label}/", column.type), column, "")
            columns += column.chunks
        return pa.chunked_array(columns, column.type)

    def image_fields(self, *names: str) -> tuple[NDArray[np.int64], list[pa.Array]]:
        """[N] how many images each sample has, and `names` of `images` for all of them, as `Mixture.image_fields`."""
        counts, fields = zip(*(mixture.image_fields(*names) for mixture in self.mixtures.values()))
        return np.concatenate(counts), [pa.concat_arrays(field) for field in zip(*fields)]

    def texts(self) -> Iterator[tuple[NDArray[np.int64], list[list[str]]]]:
        """All texts, a row group at a time: [n] positions, and for each the values of its turns."""
        start = 0
        for mixture in self.mixtures.values():
            for positions, texts in mixture.texts():
                yield positions + start, texts
            start += len(mixture)

    def lengths(self, image_tokens: int = 0) -> NDArray[np.int64]:
        """[N] int64: words of each sample, plus `image_tokens` for each image."""
        return np.concatenate([mixture.lengths(image_tokens) for mixture in self.mixtures.values()])

    def select(self, positions: NDArray[np.int64]) -> Self:
        """The samples at `positions`, mixture by mixture, each one's in that order. Weights stay what they are."""
        starts = self._ends - [len(mixture) for mixture in self.mixtures.values()]
        owners = np.searchsorted(self._ends, positions, side="right")
        parts = {
            name: mixture.select(positions[owners == number] - starts[number])
            for number, (name, mixture) in enumerate(self.mixtures.items())
        }
        return type(self)(parts, self.shares)

    def schedule(
        self,
        global_batch: int,
        *,
        seed: int | None = None,
        lengths: NDArray[np.int64] | None = None,
        length_window: int = 1,
        drop_last: bool = False,
        share_images: int = 1,
    ) -> Schedule:
        """The schedule of training (see `mixture.schedule.blend`); of a single mixture, that mixture's.

        The arguments are those of `Mixture.schedule`; `seed` defaults to the first mixture's. An epoch has as many
        samples as all mixtures have together, or as their repeats add up to. As all batches are full, `drop_last`
        changes nothing. Raises VlmixError for a mixture without samples.
        """
        for name, mixture in self.mixtures.items():
            if not len(mixture):
                raise VlmixError(f"{mixture.folder.name}: no sample is left to train on; take {name} out of `mixture`")
        first = next(iter(self.mixtures.values()))
        if len(self.mixtures) == 1:
            return first.schedule(
                global_batch,
                seed=seed,
                lengths=lengths,
                length_window=length_window,
                drop_last=drop_last,
                share_images=share_images,
            )
        if share_images != 1:
            raise VlmixError("share_images is for one mixture; merge them first (`vlmix merge`), or take 1")
        if any(mixture.has_many for mixture in self.mixtures.values()):
            return self._schedule_of_many(
                first.manifest.seed if seed is None else seed, global_batch, lengths, length_window
            )
        repeat = self.column("repeat").to_numpy()
        owners = np.repeat(np.arange(len(self.mixtures)), [len(mixture) for mixture in self.mixtures.values()])
        sizes = np.bincount(owners, repeat)
        by_repeat = self.shares.kind == "repeat"
        weights = np.array(self.shares.values) * (sizes if by_repeat else 1)
        return BlendSchedule(
            owners,
            weights,
            np.concatenate([mixture.rows for mixture in self.mixtures.values()]),
            pc.not_equal(self.column("image"), "").to_numpy(),
            repeat,
            self.lengths() if lengths is None else lengths,
            total=round((weights if by_repeat else sizes).sum()),
            seed=first.manifest.seed if seed is None else seed,
            global_batch=global_batch,
            length_window=length_window,
        )

    def _schedule_of_many(
        self, seed: int, global_batch: int, lengths: NDArray[np.int64] | None, length_window: int
    ) -> BlendSchedule:
        mixtures = list(self.mixtures.values())
        sizes = self._shared(["sizes"], lambda: {"sizes": np.array([sizes_of(m.order_columns()) for m in mixtures])})
        by_repeat, epochs = self.shares.kind == "repeat", sizes["sizes"].sum(axis=1)
        weights = np.array(self.shares.values) * (epochs if by_repeat else 1)
        starts = self._ends - [len(mixture) for mixture in mixtures]
        parts = [
            Part(number, int(start), mixture.order_columns, (int(texts), int(images)))
            for number, (start, mixture, (texts, images)) in enumerate(zip(starts, mixtures, sizes["sizes"]))
        ]
        return BlendSchedule.of_parts(
            parts,
            weights,
            self._words if lengths is None else lengths,
            self._shared,
            total=round((weights if by_repeat else epochs).sum()),
            seed=seed,
            global_batch=global_batch,
            length_window=length_window,
        )

    def _shared(self, key: Sequence[object], make: Callable[[], Arrays]) -> Arrays:
        """What `make` returns for these mixtures, in this order: see `Mixture.shared`."""
        first, *others = self.mixtures.values()
        return first.shared([mixture.shared_key for mixture in others], key, make)

    def _words(self) -> NDArray[np.int32]:
        found = self._shared(["words"], lambda: {"words": np.concatenate([m.words() for m in self.mixtures.values()])})
        return found["words"]

    def overlaps(self) -> Iterator[tuple[str, str, int]]:
        """Pairs of mixtures, by name, that refer to the same root, as a view and its root do, and the number of samples
        that are in both."""
        for (one, first), (other, second) in combinations(self.mixtures.items(), 2):
            if _root(first) == _root(second) and (both := len(np.intersect1d(first.rows, second.rows))):
                yield one, other, both


Samples = Mixture | Blend
"""What a training goes through."""


def blend(mixtures: Mapping[str, Any]) -> Blend:
    """Open several mixtures to train on together: `blend({"demo/mixture": 0.8, "demo/mine": 0.2})`.

    A key is what `open` takes, a value the mixture's weight, or for all of them `{"repeat": 2}`: how often an epoch
    goes through it. Raises VlmixError for what is neither, for a mixture that does not open, and for the same one
    twice.
    """
    shares, folders = parse_shares(mixtures, "blend"), list(mixtures)
    opened = {name: open_mixture(folder) for name, folder in zip(names_of(folders), folders)}
    digests: dict[str, str] = {}
    for name, mixture in opened.items():
        if (twin := digests.setdefault(digest(mixture), name)) != name:
            raise VlmixError(f"{twin} and {name} hold the same samples; name one of them, with the sum of both")
    return Blend(opened, shares)


def open_samples(mixture: str | Path | Mapping[str, Any]) -> Samples:
    """A mixture by its place, or several with what each gives."""
    return blend(mixture) if isinstance(mixture, Mapping) else open_mixture(mixture)


def _named(name: str, sample: Sample) -> Sample:
    return msgspec.structs.replace(sample, id=f"{name}/{sample.id}", source=f"{name}/{sample.source}")


def parts_of(samples: Samples) -> list[Mixture]:
    """The mixtures that samples come from."""
    return [samples] if isinstance(samples, Mixture) else list(samples.mixtures.values())


def parse_shares(mixtures: Mapping[str, Any], where: str) -> Shares:
    """The weights or repeats of mixtures. Raises VlmixError for a value that is neither, or if there are both."""
    kinds, values = [], []
    for name, value in mixtures.items():
        shown = abridged(str(name))
        kind = "repeat" if isinstance(value, Mapping) else "weight"
        number = value.get("repeat") if kind == "repeat" and len(value) == 1 else value
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise VlmixError(f"{where}: {shown}: expected a weight or {{repeat: N}}, got {abridged(repr(value))}")
        if not (math.isfinite(number) and 0 < number <= _MOST):
            raise VlmixError(
                f"{where}: {shown}: a {kind} is above 0 and at most {_MOST:,.0f}, got {number}; to train on none of "
                "it, take it out"
            )
        kinds.append(kind)
        values.append(float(number))
    if len(set(kinds)) > 1:
        one, other = (abridged(str(list(mixtures)[kinds.index(kind)])) for kind in ("weight", "repeat"))
        raise VlmixError(f"{where}: {one} has a weight and {other} a repeat; give all of them the same")
    if kinds == ["repeat"]:
        raise VlmixError(f"{where}: `repeat` is for several mixtures; for one, set epochs: {values[0]:g}")
    if not kinds:
        raise VlmixError(f"{where}: name at least one mixture")
    return Shares(kinds[0], tuple(values))


def names_of(folders: Sequence[str | Path]) -> list[str]:
    """What mixtures at these places are called: by their folders, with as many of the folders above as tell them
    apart. Raises VlmixError for the same place twice."""
    paths = [str(folder).partition("://")[2] if "://" in str(folder) else Path(folder).absolute() for folder in folders]
    parts = [_steps(str(path)) for path in paths]
    taken = [1] * len(parts)
    while True:
        names = ["/".join(part[-count:]) for part, count in zip(parts, taken)]
        alike = [number for number, name in enumerate(names) if names.count(name) > 1]
        if not alike:
            return names
        for number in alike:
            if taken[number] > len(parts[number]):
                twins = [str(folders[other]) for other in alike if names[other] == names[number]]
                raise VlmixError(f"{' and '.join(twins)} are the same mixture; name it once, with the sum of both")
            taken[number] += 1


def _steps(path: str) -> list[str]:
    """The folders of a path, without `.` and `..`. Links keep their names, as they are what people type."""
    return [part for part in posixpath.normpath(path).split("/") if part] or ["root"]


def places(mixture: str | Mapping[str, Any]) -> list[str]:
    """The places that a recipe's `mixture` names."""
    return [mixture] if isinstance(mixture, str) else list(mixture)


def origin(mixture: str | Mapping[str, Any], id: str) -> tuple[str, str]:
    """The place, of those that a recipe's `mixture` names, that a sample is from, and its id there."""
    if isinstance(mixture, str):
        return mixture, id
    named = sorted(zip(names_of(list(mixture)), mixture), key=lambda pair: -len(pair[0]))
    return next((place, id.removeprefix(f"{name}/")) for name, place in named if id.startswith(f"{name}/"))


def digest(samples: Samples) -> str:
    """What samples are, whatever they are called and wherever they lie."""
    if isinstance(samples, Blend):
        return hashlib.sha256(msgspec.json.encode([digest(each) for each in samples.mixtures.values()])).hexdigest()
    rows, found = samples.rows, hashlib.sha256(b"[" + msgspec.json.encode(_root(samples)) + b",[")
    for start in range(0, len(rows), _ROWS):
        found.update(b"," * (start > 0) + msgspec.json.encode(rows[start : start + _ROWS].tolist())[1:-1])
    found.update(b"]]")
    return found.hexdigest()


def _root(mixture: Mixture) -> str:
    return mixture.root_manifest.checksums.get(SAMPLES_NAME, "")  # a view's own index has no texts
