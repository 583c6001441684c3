"""Rows of WebDataset tars: the members of a key, grouped by webdataset, on files that vlmix opened. Neither its
decoders, which unpickle, nor its opener, which runs `pipe:`, is used."""

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vlmix.mixture.extras import missing
from vlmix.mixture.io.image_index import EXTENSIONS
from vlmix.mixture.io.rows.images import INSIDE
from vlmix.mixture.io.rows.text import Broken, Row, decoded

IMAGES = "__images__"
"""The column of a row's images."""
_VIDEOS, _SOUNDS = ("mp4", "webm", "avi", "mov", "mkv"), ("mp3", "wav", "flac", "ogg", "m4a")


def tar_rows(path: Path, digested: Callable[[str], None]) -> Iterator[tuple[int, Row]]:
    """(offset of its first header, row); of the images headers alone are read. At the end `digested` gets the sha256 of
    what says where everything is: names, sizes and places of the members, and the texts."""
    try:
        from webdataset.tariterators import group_by_keys
    except ImportError:
        raise missing("webdataset", "a tar of rows") from None

    digest = hashlib.sha256()
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:

        def members() -> Iterator[dict[str, Any]]:
            for member in tar:
                digest.update(f"{member.name}\0{member.size}\0{member.offset_data}\n".encode(errors="replace"))
                if not member.isdir():
                    yield {"fname": member.name, "data": member, "__url__": ""}

        for sample in group_by_keys(members(), lcase=False):
            yield _row(sample, tar, digest.update)
        file.seek(tar.offset)  # tarfile takes half a header for the end
        if file.read(512) != bytes(512):
            raise tarfile.ReadError(f"the end of the archive is missing at byte {tar.offset}")
    digested(digest.hexdigest())


def tar_images(path: Path, places: Sequence[int]) -> Iterator[list[bytes]]:
    """The images of the rows at `places`."""
    from webdataset.tariterators import base_plus_ext

    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            found: list[tuple[tuple[int, str], bytes]] = []
            first = None
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    key, suffix = base_plus_ext(member.name)
                    if member.isdir() or key is None:  # as webdataset passes over them
                        continue
                    first = key if first is None else first
                    if key != first:
                        break
                    if suffix and member.isfile() and _is_image(suffix):
                        content = tar.extractfile(member)
                        found.append((_order(suffix), content.read() if content else b""))
            yield [data for _, data in sorted(found, key=lambda item: item[0])]


def _row(sample: dict[str, Any], tar: tarfile.TarFile, note: Callable[[bytes], None]) -> tuple[int, Row]:
    key = sample.pop("__key__")
    members: dict[str, tarfile.TarInfo] = {k: m for k, m in sample.items() if not k.startswith("__")}
    at = min(member.offset for member in members.values())
    if ".." in Path(key).parts or key.startswith("/"):
        return at, Broken("unsafe_path", f"member {key!r} leaves its folder")
    row: dict[str, Any] = {"__key__": key, IMAGES: []}
    for name, member in members.items():
        if not member.isreg() or member.issparse():
            what = f"member {member.name!r} is a link, sparse or no file; make the tar of plain files"
            return at, Broken("bad_row", what)
        if _is_image(name):
            row[IMAGES].append(INSIDE)
            continue
        if (suffix := name.rpartition(".")[2].lower()) in (*_VIDEOS, *_SOUNDS):
            row["video" if suffix in _VIDEOS else "audio"] = member.name
            continue
        content = tar.extractfile(member)
        data = content.read() if content else b""
        note(data)
        if suffix == "json":
            found = decoded(data, f"member {key}.{name}")
            if isinstance(found, Broken):
                return at, found
            row |= {k: v for k, v in found.items() if k not in (IMAGES, "__key__")}
        elif suffix in ("txt", "text", "caption"):
            try:
                row[name] = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                return at, Broken("bad_row", f"member {member.name!r} is not UTF-8: {error.reason}")
        else:
            row[name] = data.decode(errors="replace")
    return at, row


def _is_image(name: str) -> bool:
    """Whether a tar member, `name` being what follows its key, is an image: `jpg`, `1.jpg`, `image.png`."""
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def _order(name: str) -> tuple[int, str]:
    """How the images of a sample in a tar are sorted: `jpg`, `1.jpg`, `2.jpg`, …, `10.jpg`, `img1.png` …."""
    digits = re.search(r"\d+", name)
    return (int(digits[0]) if digits else 0), name
