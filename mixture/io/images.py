"""Image files judged by their bytes, within bounds on memory and time."""

import builtins
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct
from PIL import Image, ImageFile, UnidentifiedImageError, features
from xxhash import xxh3_128_hexdigest

from vlmix.mixture.errors import VlmixError, abridged
from vlmix.mixture.io.digests import Stamp, stamp

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

_HEADER = 2**16
"""Bytes read of a JPEG that is not decoded. If its header is longer, it is decoded."""
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not stuffed zeros, fill bytes and restarts
_BARE = frozenset((0x01, 0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)))
"""Markers that Pillow or libjpeg reads without a length."""
_EXIF, _SCAN, _END = 0xE1, 0xDA, 0xD9

MIN_SIDE = 8  # shop placeholders are 1x1; a side of 1 or 3 pixels is also mistaken for the channel axis downstream
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
FORMATS = ("", *_FORMATS, "MPO")
"""What `ImageInfo.format` may be."""
_ORIENTATION, _STRIP_OFFSETS, _TILE_OFFSETS = 0x0112, 273, 324
_EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
TRANSPOSING = (5, 6, 7, 8)
UNREADABLE = "image_unreadable"
"""The reject of a file that the system does not let be read."""


class ImageInfo(Struct, frozen=True, kw_only=True):
    """What a file is, by its bytes. `problem` is "" for a usable image, else a reason code with `detail`."""

    path: str
    bytes: int = 0
    stamp: Stamp | None = None
    digest: str = ""
    """xxh3-128 of its bytes."""
    copied: str = ""
    """The file that holds a copy of the bytes, from `offset` on, of an image that is no file of its own; `path` then
    says where it came from."""
    offset: int = 0
    format: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    problem: str = ""
    detail: str = ""

    def read(self) -> "builtins.bytes":
        """The image's bytes."""
        with open(self.copied or self.path, "rb") as file:  # noqa: PTH123 (a `Path` takes as long as the reading)
            if not self.copied:
                return file.read()
            file.seek(self.offset)
            return file.read(self.bytes)

    @property
    def transposed_size(self) -> tuple[int, int]:
        """Width and height after the EXIF orientation is applied."""
        return (self.height, self.width) if self.orientation in TRANSPOSING else (self.width, self.height)


def probe(path: str | Path, max_pixels: int = MAX_PIXELS, *, full: bool = True) -> ImageInfo:
    """Decode the file once and say what it is; never raises for a bad image.

    JPEGs are decoded at an eighth of their size: all entropy-coded data is read, so truncation and damage show, in two
    thirds of the time. Of a JPEG that is not to be decoded (not `full`) the header is read, which does not show them,
    and `digest` is empty; other formats, which are decoded to be stored, are decoded all the same.
    """
    facts = ImageInfo(path=str(path))
    try:
        found = stamp(path)
        facts = msgspec.structs.replace(facts, bytes=found.size, stamp=found)
        if not full and 0 < found.size <= MAX_BYTES:
            with open(path, "rb") as file:  # noqa: PTH123
                head = file.read(_HEADER)
            if header := _jpeg_header(head, facts, max_pixels):
                return header
        return probe_bytes(facts.read() if found.size <= MAX_BYTES else b"", facts, max_pixels)
    except OSError as error:
        detail = error.strerror or str(error)
        return msgspec.structs.replace(facts, problem=UNREADABLE, detail=detail)


def _jpeg_header(head: bytes, facts: ImageInfo, max_pixels: int) -> ImageInfo | None:
    """What the first bytes of a sound JPEG say; None for anything that asks for a closer look."""
    if not head.startswith(b"\xff\xd8") or too_complex(head):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(head), formats=("JPEG",)) as image:
                (width, height), orientation = image.size, _orientation(image)
                plain = image.format == "JPEG" and image.mode in _EIGHT_BIT
    except Exception:  # the closer look finds out and says why
        return None
    if not plain or width * height > max_pixels or min(width, height) < MIN_SIDE:
        return None
    return msgspec.structs.replace(facts, format="JPEG", width=width, height=height, orientation=orientation)


def probe_bytes(data: bytes, facts: ImageInfo, max_pixels: int = MAX_PIXELS, *, full: bool = True) -> ImageInfo:
    """The same of the `facts.bytes` bytes `data`, which are empty if they were too many to read."""

    def bad(problem: str, detail: str) -> ImageInfo:
        return msgspec.structs.replace(facts, problem=problem, detail=detail)

    if facts.bytes == 0:
        return bad("image_empty", "there are no bytes")
    if facts.bytes > MAX_BYTES:
        return bad("image_too_large", f"{facts.bytes} bytes, at most {MAX_BYTES} are read")
    facts = msgspec.structs.replace(facts, digest=image_xxh3(data))
    if not full and (header := _jpeg_header(data[:_HEADER], facts, max_pixels)):
        return header
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


def decoded(data: bytes, side: int | None = None) -> Image.Image:
    """The image in stored bytes, as RGB; with `side`, made smaller until neither side is longer than that many pixels.

    Raises VlmixError, which says why and not where, for bytes that do not decode or are past the bounds above.
    """
    if len(data) > MAX_BYTES:
        raise VlmixError(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    if excess := too_complex(data):
        raise VlmixError(excess)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                excess = too_much_decoding(image, data)
                if width * height > MAX_PIXELS:
                    excess = f"{width}x{height} pixels, at most {MAX_PIXELS} are decoded"
                if excess is None:
                    if side is not None:
                        image.thumbnail((side, side))  # a JPEG is decoded at a size near that one
                    plain = image.convert("RGB")
                    plain.info.clear()  # comments and profiles, of any length, which Pillow would save again
                    return plain
    except MemoryError:
        excess = "not enough memory to decode it"
    except Exception as error:  # see `probe_bytes`
        excess = abridged(f"{type(error).__name__}: {error}")
    raise VlmixError(excess)


def thumbnail(data: bytes, side: int) -> bytes:
    """A JPEG of the image in stored bytes that holds its pixels alone, neither side longer than `side` pixels. Raises
    VlmixError as `decoded` does."""
    out = io.BytesIO()
    decoded(data, side).save(out, "JPEG", quality=80)
    return out.getvalue()


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


def libraries() -> dict[str, str]:
    """Name -> version of what decodes and encodes images: other versions may give other bytes."""
    turbo = bool(features.check_feature("libjpeg_turbo"))
    jpeg = features.version_feature("libjpeg_turbo") if turbo else features.version_codec("jpg")
    return {"pillow": str(features.version("pil")), "libjpeg-turbo" if turbo else "libjpeg": str(jpeg)}


def image_xxh3(data: bytes) -> str:
    """xxh3-128 of stored image bytes, 32 hex digits: equal pictures across sources and mixtures."""
    return xxh3_128_hexdigest(data)
