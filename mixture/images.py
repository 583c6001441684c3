"""Images: found by one scan of each folder, judged by their bytes, stored so that all readers see the same picture."""

import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec
from msgspec import Struct
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from xxhash import xxh3_128_hexdigest

from mixture.errors import VlmixError
from mixture.files import Stamp, stamp
from mixture.record import Box, Conversation

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs, 300 MB of RGB
MAX_BYTES = 256 * 2**20
MAX_PARTS = 10_000
"""Segments of a JPEG before its first scan, chunks of a PNG beside its pixels. A camera's file has some twenty."""
MAX_EXIF = 256
"""Segments of EXIF in a JPEG, which Pillow puts together one by one, 16 MiB in all. A camera's file has one."""
MAX_STRIPS = 1_000_000
"""Strips or tiles of a TIFF, which Pillow lists before it looks at its size. Most have at most one for each row."""
MAX_SCANNED = 2_000_000_000
"""Pixels over all scans of a JPEG or all strips of a TIFF. A progressive JPEG has ten scans or so; the largest image
may have 22."""
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not stuffed zeros, fill bytes and restarts
_BARE = frozenset((0x01, 0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)))
"""Markers that Pillow or libjpeg reads without a length."""
_EXIF, _SCAN, _END = 0xE1, 0xDA, 0xD9
MIN_SIDE = 8  # shop placeholders are 1x1; a side of 1 or 3 pixels is also mistaken for the channel axis downstream
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_ORIENTATION, _STRIP_OFFSETS, _TILE_OFFSETS = 0x0112, 273, 324
_EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_TRANSPOSING = (5, 6, 7, 8)

Change = Literal["", "converted", "rotated", "unflagged"]


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


class ImageFacts(Struct, frozen=True, kw_only=True):
    """What a file is, by its bytes. `problem` is "" for a usable image, else a reason code with `detail`."""

    path: str
    bytes: int = 0
    stamp: Stamp | None = None
    digest: str = ""
    """xxh3-128 of the file's bytes."""
    format: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    problem: str = ""
    detail: str = ""

    @property
    def transposed_size(self) -> tuple[int, int]:
        """Width and height after the EXIF orientation is applied."""
        return (self.height, self.width) if self.orientation in _TRANSPOSING else (self.width, self.height)


def examine(path: Path, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Decode the file once and say what it is; never raises for a bad image.

    JPEGs are decoded at an eighth of their size: all entropy-coded data is read, so truncation and damage show, in two
    thirds of the time.
    """
    facts = ImageFacts(path=str(path))

    def bad(problem: str, detail: str) -> ImageFacts:
        return msgspec.structs.replace(facts, problem=problem, detail=detail)

    try:
        found = stamp(path)
        facts = msgspec.structs.replace(facts, bytes=found.size, stamp=found)
        if found.size == 0:
            return bad("image_empty", "the file has no bytes")
        if found.size > MAX_BYTES:
            return bad("image_too_large", f"{found.size} bytes, at most {MAX_BYTES} are read")
        data = path.read_bytes()
        facts = msgspec.structs.replace(facts, digest=content_hash(data))
    except OSError as error:
        return bad("image_unreadable", error.strerror or str(error))
    try:
        if excess := too_complex(data):
            return bad("image_too_complex", excess)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels decide here
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                facts = msgspec.structs.replace(facts, format=image.format or "", width=width, height=height)
                if width * height > max_pixels:
                    return bad("image_too_large", f"{width}x{height} pixels, at most {max_pixels} are decoded")
                if min(width, height) < MIN_SIDE:
                    return bad("image_too_small", f"{width}x{height} pixels, a side has at least {MIN_SIDE}")
                if excess := too_much_decoding(image, data):
                    return bad("image_too_complex", excess)
                image.draft(None, (width // 8, height // 8))
                image.load()
                if image.mode not in _EIGHT_BIT:
                    return bad("image_mode", f"{image.mode} pixels are not of 8 bits; convert the file first")
                # After the pixels: a PNG's getexif() loads them, and a second load forgets that the first one failed.
                facts = msgspec.structs.replace(facts, orientation=_orientation(image))
    except UnidentifiedImageError:
        return bad("image_unknown", f"no image format begins with {data[:8]!r}")
    except Image.DecompressionBombError as error:
        return bad("image_too_large", str(error))
    except MemoryError:
        return bad("image_too_large", "not enough memory to decode it")
    except Exception as error:  # Pillow raises whatever the broken bytes lead to: OSError, SyntaxError, struct.error …
        return bad("image_damaged", f"{type(error).__name__}: {error}")
    return facts


def too_complex(data: bytes) -> str | None:
    """More parts than any camera or encoder writes, which decoders take minutes or hours for; None if there are not.
    Counted, not timed: what becomes of an image must not depend on the machine."""
    if data.startswith(b"\xff\xd8"):
        return _too_many_segments(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _too_many_chunks(data)
    if data.startswith((b"II", b"MM")) and (count := _strips(data)) > MAX_STRIPS:
        return f"{count} strips or tiles, at most {MAX_STRIPS} are read"
    return None


def too_much_decoding(image: Image.Image, data: bytes) -> str | None:
    """The same, of what takes long only for its many pixels: scans of a JPEG, strips of a TIFF over one another.
    `image` is `data` as Pillow opened it, before it is loaded."""
    if image.format in ("JPEG", "MPO"):
        work = sum(code == _SCAN for code, _, _ in _segments(data)) * image.width * image.height
        what = "scans"
    elif image.format == "TIFF" and isinstance(image, ImageFile.ImageFile):
        boxes = (tile[1] for tile in image.tile)
        work = sum((box[2] - box[0]) * (box[3] - box[1]) for box in boxes if box)
        what = "strips"
    else:
        return None
    return f"{work} pixels over all {what}, at most {MAX_SCANNED} are decoded" if work > MAX_SCANNED else None


def _too_many_segments(jpeg: bytes) -> str | None:
    exifs = 0
    for parts, (code, at, _) in enumerate(_segments(jpeg)):
        exifs += code == _EXIF and jpeg.startswith(b"Exif\0\0", at + 4)
        if code == _SCAN:
            break
        if parts >= MAX_PARTS:
            return f"more than {MAX_PARTS} segments before its pixels, at byte {at}"
        if exifs > MAX_EXIF:
            return f"more than {MAX_EXIF} segments of EXIF, at byte {at}"
    return None


def _too_many_chunks(png: bytes) -> str | None:
    parts, at = 0, 8
    while at + 8 <= len(png) and (name := png[at + 4 : at + 8]) != b"IEND":  # what follows the end is not read
        parts += name not in (b"IDAT", b"fcTL", b"fdAT")  # pixels, of an animation's other frames too
        if parts > MAX_PARTS:
            return f"more than {MAX_PARTS} chunks beside its pixels, at byte {at}"
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    return None


def _strips(tiff: bytes) -> int:
    """The strips or tiles that the first directory of a TIFF or BigTIFF names."""
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    wide, head, entry = (8, 8, 20) if tiff[2:3] == b"+" else (4, 2, 12)
    directory = number(wide, wide)
    first = directory + head
    last = min(first + entry * number(directory, head), len(tiff))
    offsets = (at for at in range(first, last, entry) if number(at, 2) in (_STRIP_OFFSETS, _TILE_OFFSETS))
    return max((number(at + 4, wide) for at in offsets), default=0)


def _segments(jpeg: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """(code, start, end) of each segment of a JPEG's first picture, from its marker on and without a scan's coded data.
    Junk between segments is skipped, as Pillow and libjpeg do."""
    at, scanned = 2, False
    while found := _MARKER.search(jpeg, at):
        start = found.start()
        code = jpeg[start + 1]
        if code == _END and scanned:
            return
        at = start + 2
        if code not in _BARE:
            at += max(2, int.from_bytes(jpeg[at : at + 2], "big"))
        scanned |= code == _SCAN
        yield code, start, at


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


class Fit(Struct, frozen=True):
    """How a file becomes a stored image: what happens to its bytes (`""`: nothing; `unflagged`: the orientation tag
    is set to upright), whether its pixels are turned upright first, the stored size, and the factors that bring the
    annotation's pixels to the stored ones."""

    change: Change
    turn: bool
    width: int
    height: int
    scale_x: float = 1.0
    scale_y: float = 1.0


def fit(facts: ImageFacts, width: int, height: int, boxed: bool) -> Fit | None:
    """How the image serves an annotation made on `width` x `height` pixels (0, 0: unknown); None if it cannot.

    A stored image never carries an EXIF orientation, so that readers that honour the tag and readers that do not
    see the same picture. Which of the two pictures the annotation was made on is told by its size: where the
    upright one fits, the pixels are turned; where only the raw one fits, the tag is dropped. With an unknown size
    the upright picture is what people saw. A copy that was only resized scales the boxes; with boxes (`boxed`), any
    other size is refused, without them it does not matter.
    """
    raw, upright = (facts.width, facts.height), facts.transposed_size
    jpeg = facts.format in ("JPEG", "MPO")
    flagged = facts.orientation != 1

    def serve(size: tuple[int, int], turn: bool) -> Fit:
        change: Change = "converted" if not jpeg else ("rotated" if turn else "unflagged") if flagged else ""
        scale = (size[0] / width, size[1] / height) if width and height else (1.0, 1.0)
        return Fit(change, turn and flagged, *size, *scale)

    if width and height:
        # Where both have the annotation's size (180 degrees, mirrored, square) the pixels stay as they are.
        for size, turn in ((raw, False), (upright, True)):
            if size == (width, height):
                return serve(size, turn)
        for size, turn in ((raw, False), (upright, True)):
            # A resized copy: the sides differ, the aspect ratio agrees to within a pixel.
            if abs(size[0] * height - size[1] * width) <= max(*size, width, height):
                return serve(size, turn)
        if boxed:
            return None
    return serve(upright, True)


def stored_bytes(facts: ImageFacts, fit: Fit) -> bytes:
    """The JPEG bytes that go into a shard: the file's own where nothing has to change, deterministic for the rest.

    Raises VlmixError if the file is no longer the one that was examined.
    """
    path = Path(facts.path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror} (it was readable when the build examined it)") from None
    if stamp(path) != facts.stamp and content_hash(data) != facts.digest:
        raise VlmixError(f"{path} changed during the build; run it again")
    if not fit.change:
        return data
    if fit.change == "unflagged" and (patched := _without_orientation(data)):
        return patched
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            upright = ImageOps.exif_transpose(image) if fit.turn else image
            out = io.BytesIO()
            # Frame 0 of an animation; an alpha channel is dropped as LLaVA's own loader does (`convert("RGB")`).
            upright.convert("RGB").save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def _without_orientation(jpeg: bytes) -> bytes | None:
    """The JPEG with its EXIF orientation set to 1 (upright) and every other byte kept; None if that did not help."""
    data = bytearray(jpeg)
    for code, at, end in _segments(jpeg):
        if code == _SCAN:
            break
        start = at + 10  # past the marker, the length and "Exif\0\0"
        if code != _EXIF or jpeg[at + 4 : start] != b"Exif\0\0":
            continue
        order: Literal["little", "big"] = "little" if data[start : start + 2] == b"II" else "big"
        directory = start + int.from_bytes(data[start + 4 : start + 8], order)
        entries = int.from_bytes(data[directory : directory + 2], order)
        for entry in range(directory + 2, min(directory + 2 + 12 * entries, end - 11), 12):
            if int.from_bytes(data[entry : entry + 2], order) == _ORIENTATION:
                data[entry + 8 : entry + 10] = (1).to_bytes(2, order)
        break
    with Image.open(io.BytesIO(data)) as image:
        return bytes(data) if _orientation(image) == 1 else None


def content_hash(data: bytes) -> str:
    """xxh3-128 of stored image bytes, 32 hex digits: equal pictures across sources and mixtures."""
    return xxh3_128_hexdigest(data)


def scaled(conversation: Conversation, fit: Fit) -> Conversation:
    """The conversation in the frame of the stored image: its size, and its boxes in that image's pixels."""
    if fit.scale_x == fit.scale_y == 1.0:
        if (conversation.width, conversation.height) == (fit.width, fit.height):
            return conversation
        return msgspec.structs.replace(conversation, width=fit.width, height=fit.height)

    def move(box: Box) -> Box:
        return box[0] * fit.scale_x, box[1] * fit.scale_y, box[2] * fit.scale_x, box[3] * fit.scale_y

    exchanges = tuple(
        msgspec.structs.replace(e, boxes=tuple(move(b) for b in e.boxes)) if e.boxes else e
        for e in conversation.exchanges
    )
    return msgspec.structs.replace(conversation, width=fit.width, height=fit.height, exchanges=exchanges)
