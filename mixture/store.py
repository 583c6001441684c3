"""An open mixture folder: its manifest, its index, and the bytes in its shards."""

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mixture import manifest as manifests
from mixture.errors import VlmixError
from mixture.files import sha256
from mixture.manifest import SAMPLES_NAME, Manifest


class Store:
    """A mixture, an annotations-only mixture or a view, opened for reading.

    `root` is the folder that holds the shards and the texts: the folder itself, or what a view refers to. Raises
    VlmixError if the folder is no mixture, or if a view's root is gone or was built anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = manifests.read(folder)
        self.root = folder
        self.root_manifest = self.manifest
        parent = self.manifest.parent
        if parent is not None:
            self.root = Path(os.path.normpath(folder.absolute() / parent.path))
            path = self.root / manifests.NAME
            if not path.exists():
                raise VlmixError(
                    f"{folder} is a view of {self.root}, which is gone; move it back or make the view anew"
                )
            if sha256(path) != parent.sha256:
                raise VlmixError(f"{folder} is a view of {self.root}, which was built anew since; make the view anew")
            self.root_manifest = manifests.read(self.root)

    def index(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Rows of samples.parquet in mixture order; all columns of the folder's own index by default."""
        return self._frame(self.folder, columns)

    def root_rows(self) -> pl.DataFrame:
        """One row per sample with `row`, its row in the root's samples.parquet."""
        if self.manifest.parent is not None:
            return self.index(["row"])
        return pl.DataFrame({"row": pl.arange(self.manifest.samples, eager=True, dtype=pl.Int64)})

    @staticmethod
    def _frame(folder: Path, columns: Sequence[str] | None) -> pl.DataFrame:
        path = folder / SAMPLES_NAME
        try:
            return pl.read_parquet(path, columns=list(columns) if columns is not None else None)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise VlmixError(f"{path}: {str(error).splitlines()[0]}; `vlmix verify {folder}` tells more") from None

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Bytes of a member of a shard. Raises VlmixError if the shard is missing or too short."""
        path = self.root / shard
        try:
            with path.open("rb") as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise VlmixError(f"{path}: {error.strerror}; `vlmix verify {self.root}` lists all damage") from None
        if len(data) != size:
            raise VlmixError(f"{path}: truncated, {size} bytes at {offset} are not there")
        return data
