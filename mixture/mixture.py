"""What users hold: a mixture that is read, subset, put in an order of training and saved."""

import binascii
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlmix.mixture.dataset.reader import Reader, digest_of
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.schedule.pictures import picture_groups, share_of
from vlmix.mixture.schedule.schedule import Columns, Schedule


class Mixture(Reader):
    """A mixture or a part of it. Position i is the i-th sample in mixture order.

    May be pickled, forked and used from several threads; a worker opens the shards that it reads by itself.
    """

    def subset(
        self,
        *,
        ratio: float | str | None = None,
        total: int | None = None,
        sources: dict[str, int | float] | None = None,
        where: str | None = None,
        stratify: bool = True,
        seed: int | None = None,
        by: str | Path | None = None,
        column: str | None = None,
        ascending: bool = False,
        threshold: float | None = None,
        embeddings: str | Path | None = None,
        clusters: int | None = None,
    ) -> Self:
        """A nested subset, as `vlmix subsample` selects it: a prefix of the hash order, or of the ranking `by`, in
        mixture order (see `selection.subset.Selection`). `ratio` is a share, 0.1 or "10%"."""
        # Imported here: it needs polars, which trainers need not have.
        from vlmix.mixture.selection.subset import Selection, parse_ratio, select

        selection = Selection(
            ratio=parse_ratio(ratio) if isinstance(ratio, str) else ratio,
            total=total,
            sources=sources or {},
            where=where,
            stratify=stratify,
            seed=seed,
            by=None if by is None else str(by),
            column=column,
            ascending=ascending,
            threshold=threshold,
            embeddings=None if embeddings is None else str(embeddings),
            clusters=clusters,
        )
        return select(self, selection).mixture

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
        """The schedule of training over these samples (see `mixture.schedule`).

        `lengths` [N] default to words; give token counts where the shares of a batch should be balanced by tokens or
        packed. Up to `share_images` samples that show the same pictures are kept together.
        """
        share_images = share_of(share_images)
        columns = partial(self.order_columns, share_images)
        seed = self.manifest.seed if seed is None else seed
        if not self.has_many:
            lengths = self.lengths() if lengths is None else lengths
            identity, images, repeat, groups = columns()
            return Schedule(
                identity,
                images,
                repeat,
                lengths,
                seed=seed,
                global_batch=global_batch,
                length_window=length_window,
                drop_last=drop_last,
                groups=groups,
            )
        return Schedule.of(
            columns,
            self.words if lengths is None else lengths,
            partial(self.shared, [None if lengths is None or length_window == 1 else digest_of(lengths)]),
            seed=seed,
            global_batch=global_batch,
            length_window=length_window,
            drop_last=drop_last,
            share_images=share_images,
        )

    def order_columns(self, share_images: int = 1) -> Columns:
        """What the order of training depends on, read from the index."""
        groups = None if share_images == 1 else self.picture_groups(share_images)
        return Columns(self.rows, self._part("num_images").to_numpy() > 0, self._part("repeat").to_numpy(), groups)

    def picture_groups(self, share_images: int) -> NDArray[np.uint64]:
        """[N] the groups of samples that show the same stored pictures, which the root's rows decide, so that a part
        keeps those of the whole (see `schedule.pictures`). Raises VlmixError where the index has no hashes of pictures,
        as without shards."""

        share_images = share_of(share_images)

        def make() -> dict[str, NDArray[np.uint64]]:
            pieces = ((counts, _digests(texts)) for counts, (texts,) in root.image_pieces("xxh3"))
            counts, digests = map(np.concatenate, zip(*pieces))
            return {"groups": picture_groups(counts, digests, np.arange(len(counts)), share_images)}

        root = self.whole_root()
        made = root.shared("pictures", [share_images], make) if root.has_many else make()
        return np.asarray(made["groups"][self.rows])

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write this part as a view: a folder that refers to the shards. `path` is local, or the URL of a store that
        has the root, too. `overwrite` replaces a view that is there; anything else is never replaced."""
        # Imported here: it needs polars, which trainers need not have.
        from vlmix.mixture.dataset.view import replacing_view, save_view

        with replacing_view(path) if overwrite else nullcontext():
            save_view(self, path, [])


open = Mixture.open


def _digests(texts: pa.StringArray) -> NDArray[np.uint64]:
    """[M, 2] digests of 128 bits from their 32 hex digits. Raises VlmixError for other texts."""
    if not pc.all(pc.equal(pc.binary_length(texts), 32), min_count=0).as_py():
        raise VlmixError("the index has no hashes of its pictures, as a mixture without shards")
    if not len(texts):
        return np.empty((0, 2), dtype=np.uint64)
    texts = texts.cast(pa.binary())
    _, ends, data = texts.buffers()
    start = np.frombuffer(ends, np.int32)[texts.offset]
    try:
        found = binascii.unhexlify(memoryview(data)[start : start + 32 * len(texts)])
    except ValueError:
        raise VlmixError("a hash of a picture in the index is none; `vlmix verify` lists all damage") from None
    return np.frombuffer(found, ">u8").astype(np.uint64).reshape(-1, 2)
