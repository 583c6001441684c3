"""Where images lie: each folder is listed once, names are matched by stem."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from msgspec import Struct

from vlmix.mixture.errors import VlmixError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolder(Struct, frozen=True):
    """A folder whose files are called `prefix` + the stem that LLaVA's layout gives them."""

    path: str
    prefix: str = ""


class ImageIndex:
    """Where the images of a mixture lie.

    `aliases` maps a folder of LLaVA's layout to other folders in which its files may be. Every folder is listed once,
    when it is first asked for; names are matched by stem, so a wrong extension is no obstacle. A root may be LLaVA's
    `data` folder or one dataset's own folder (`coco/train2017` is found as `train2017` in a root called `coco`).
    """

    def __init__(self, roots: Iterable[Path], aliases: Mapping[str, tuple[ImageFolder, ...]]) -> None:
        self.roots = list(dict.fromkeys(roots))
        self.aliases = aliases
        self._listings: dict[Path, dict[str, list[str]]] = {}
        for root in self.roots:
            if not root.is_dir():
                raise VlmixError(f"image folder {root} {'is not a folder' if root.exists() else 'does not exist'}")

    def candidates(self, image: str) -> list[Path]:
        """Files that may be `image` (a safe path in LLaVA's layout), the likeliest first; empty if there is none."""
        pure = PurePosixPath(image)
        found: list[Path] = []
        for folder in self._folders(pure.parent):
            stem = folder.prefix + pure.stem
            for directory in self._directories(folder.path):
                names = self._listing(directory).get(stem, ())
                found += [directory / name for name in sorted(names, key=lambda n: _preference(n, pure.name))]
        return list(dict.fromkeys(found))

    def _folders(self, parent: PurePosixPath) -> list[ImageFolder]:
        """The folder itself and what stands for it; an alias of a folder holds for the folders inside it."""
        folders = [ImageFolder(str(parent))]
        for ancestor in (parent, *parent.parents):
            inside = str(parent.relative_to(ancestor))
            for alias in self.aliases.get(str(ancestor), ()):
                folders.append(ImageFolder(alias.path if inside == "." else f"{alias.path}/{inside}", alias.prefix))
        return folders

    def _directories(self, folder: str) -> list[Path]:
        tail = folder.partition("/")[2]
        paths = [root / folder for root in self.roots]
        return paths + [root / tail for root in self.roots if tail and root.name == folder.partition("/")[0]]

    def _listing(self, directory: Path) -> dict[str, list[str]]:
        listing = self._listings.get(directory)
        if listing is None:
            listing = self._listings[directory] = {}
            try:
                names = [entry.name for entry in os.scandir(directory)]
            except OSError:  # not there, not a folder, a name too long: there is nothing to be found in it
                names = []
            for name in names:
                stem, extension = os.path.splitext(name)  # noqa: PTH122 (a path object each takes three times as long)
                if extension.lower() in EXTENSIONS:
                    listing.setdefault(stem, []).append(name)
        return listing


def _preference(name: str, wanted: str) -> tuple[bool, int, str]:
    return name != wanted, EXTENSIONS.index(PurePosixPath(name).suffix.lower()), name
