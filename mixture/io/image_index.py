"""Where images lie: each folder is listed once, names are matched by stem."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import Stamp
from vlmix.mixture.io.storage import Facts, Remote, is_folder, is_url, place

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_MOST_LISTED = 2_000_000  # names kept, about 0.5 GB

Listing = dict[str, list[str]]
"""Stem -> names of the images in a folder that have it."""


class ImageFolder(Struct, frozen=True):
    """A folder whose files are called `prefix` + the stem that LLaVA's layout gives them."""

    path: str
    prefix: str = ""


class Found(NamedTuple):
    """Where the files of a folder of LLaVA's layout may lie: a directory, what its stems begin with, its listing, and
    of a directory in a store what it says of each file."""

    directory: str
    prefix: str
    listing: Listing
    stamps: Mapping[str, Stamp]


class ImageIndex:
    """Where the images of a mixture lie.

    `aliases` maps a folder of LLaVA's layout to other folders in which its files may be. Every folder is listed once,
    when it is first asked for; names are matched by stem, so a wrong extension is no obstacle. A root may be LLaVA's
    `data` folder or one dataset's own folder (`coco/train2017` is found as `train2017` in a root called `coco`),
    or the URL of either. Raises VlmixError for a root that is not there, and for a store that does not list its files.
    """

    def __init__(self, roots: Iterable[Path | str], aliases: Mapping[str, tuple[ImageFolder, ...]]) -> None:
        self.roots = list(dict.fromkeys(map(place, roots)))
        self.aliases = aliases
        self._listings: dict[str, Listing] = {}
        self._stamps: dict[str, dict[str, Stamp]] = {}
        self._absent: set[str] = set()
        self._listed = 0
        for root in self.roots:
            if not is_folder(root):
                there = not is_url(root) and Path(root).exists()
                raise VlmixError(f"image folder {root} {'is not a folder' if there else 'does not exist'}")

    def candidates(self, image: str) -> list[Path]:
        """Files that may be `image` (a safe path in LLaVA's layout), the likeliest first; empty if there is none."""
        return [Path(path) for path in self.files(image)]

    def files(self, image: str) -> dict[str, Stamp | None]:
        """The same as paths or URLs, each with what its store says of it; None of a local file."""
        folder, name = split_name(image)
        return dict(_paths(self.found(folder), name))

    def found(self, folder: str) -> list[Found]:
        """The directories, of those that hold an image at all, in which the files of `folder` may lie."""
        return [
            Found(directory, each.prefix, listing, self._stamps.get(directory, {}))
            for each in self._folders(PurePosixPath(folder))
            for directory in self._directories(each.path)
            if (listing := self._listing(directory))
        ]

    def _folders(self, parent: PurePosixPath) -> list[ImageFolder]:
        """The folder itself and what stands for it; an alias of a folder holds for the folders inside it."""
        folders = [ImageFolder(str(parent))]
        for ancestor in (parent, *parent.parents):
            inside = str(parent.relative_to(ancestor))
            for alias in self.aliases.get(str(ancestor), ()):
                folders.append(ImageFolder(alias.path if inside == "." else f"{alias.path}/{inside}", alias.prefix))
        return folders

    def _directories(self, folder: str) -> list[str]:
        tail = folder.partition("/")[2]
        paths = [_below(root, folder) for root in self.roots]
        head = folder.partition("/")[0]
        return paths + [_below(root, tail) for root in self.roots if tail and PurePosixPath(root).name == head]

    def _listing(self, directory: str) -> Listing:
        listing = self._listings.get(directory)
        if listing is None:
            listing, names = {}, []
            if is_url(directory):
                stamps = {name: _stamp(facts) for name, facts in self._in_store(directory).items()}
                names = list(stamps)
            else:
                stamps = {}
                # Not there, not a folder, a name too long: there is nothing to be found in it.
                with suppress(OSError):
                    names = [entry.name for entry in os.scandir(directory)]
            for name in names:
                stem, extension = os.path.splitext(name)  # noqa: PTH122 (a path object each takes three times as long)
                if extension.lower() in EXTENSIONS:
                    listing.setdefault(stem, []).append(name)
            if self._listed + len(names) > _MOST_LISTED:
                self._listings.clear()
                self._stamps.clear()
                self._listed = 0
            self._listings[directory] = listing
            if stamps:
                self._stamps[directory] = stamps
            self._listed += len(names)
        return listing

    def _in_store(self, directory: str) -> Mapping[str, Facts]:
        """The files of a directory in a store. Below one that is not there nothing is asked for."""
        above = directory
        while (above := above.rpartition("/")[0]) and not above.endswith("/"):
            if above in self._absent:
                return {}
        where = Remote(directory)
        if not where.is_folder():  # asked first: to list one that is not there, clients list the folder around it
            self._absent.add(directory)
            return {}
        return where.listing()


def _below(root: Path | str, folder: str) -> str:
    if is_url(root):
        return root if folder == "." else f"{root}/{folder}"
    return str(root / Path(folder))


def _stamp(facts: Facts) -> Stamp:
    """The sign that a file in a store has not changed; without an ETag there is none."""
    return Stamp(facts.size, 0, 0, xxh3_64_intdigest(facts.etag.encode()) if facts.etag else 0)


def split_name(image: str) -> tuple[str, str]:
    """(folder, name) of an image's path in LLaVA's layout."""
    folder, _, name = image.rpartition("/")
    if name in ("", "."):
        pure = PurePosixPath(image)
        return str(pure.parent), pure.name
    return folder, name


def stem_of(name: str) -> str:
    """A file's name without its extension."""
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def file_path(location: tuple[str, str], name: str, extension: str) -> str:
    """The file of the image `name` (its path in LLaVA's layout) at a location: a directory, and what the names of its
    files begin with."""
    directory, beginning = location
    return f"{directory}/{beginning}{stem_of(split_name(name)[1])}{extension}"


def _paths(found: Iterable[Found], name: str) -> Iterator[tuple[str, Stamp | None]]:
    """The files there that may be the image `name`, the likeliest first."""
    stem = stem_of(name)
    for directory, prefix, listing, stamps in found:
        names = listing.get(prefix + stem)
        if names is not None:
            for each in likeliest(names, name):
                yield f"{directory}/{each}", stamps.get(each)


def likeliest(files: list[str], name: str) -> list[str]:
    """Files of one stem, that which is called `name` first."""
    return sorted(files, key=lambda file: _preference(file, name))


def _preference(name: str, wanted: str) -> tuple[bool, int, str]:
    return name != wanted, EXTENSIONS.index(PurePosixPath(name).suffix.lower()), name
