"""Images: found by one scan of each folder, judged by their bytes, stored so that all readers see the same picture."""

import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
from msgspec import Struct
from PIL import Image, ImageOps

from vlmix.mixture.dataset.schema import Transform
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.digests import stamp
from vlmix.mixture.io.images import (
    _EXIF,
    _FORMATS,
    _ORIENTATION,
    _SCAN,
    ImageInfo,
    _orientation,
    _segments,
    image_xxh3,
)
from vlmix.mixture.io.storage import Range, Remote, is_url, read_ahead
from vlmix.mixture.record import Conversation, ImageRef, Round


class StoredForm(Struct, frozen=True):
    """How a file becomes a stored image: what happens to its bytes (`orientation_cleared`: the orientation tag is set
    to upright), whether its pixels are turned upright first, the stored size, and the factors that bring the
    annotation's pixels to the stored ones."""

    transform: Transform
    turn: bool
    width: int
    height: int
    scale_x: float = 1.0
    scale_y: float = 1.0


def plan_storage(facts: ImageInfo, width: int, height: int, boxed: bool) -> StoredForm | None:
    """How the image serves an annotation made on `width` x `height` pixels (0, 0: unknown); None if it cannot.

    A stored image never carries an EXIF orientation, so that readers that honour the tag and readers that do not
    see the same picture. Which of the two pictures the annotation was made on follows from its size: where the
    upright one fits, the pixels are turned; where only the raw one fits, the tag is dropped. With an unknown size
    the upright picture is what people saw. A copy that was only resized scales the boxes; with boxes (`boxed`), any
    other size is refused, without them it does not matter.
    """
    raw, upright = (facts.width, facts.height), facts.transposed_size
    jpeg = facts.format in ("JPEG", "MPO")
    flagged = facts.orientation != 1

    def serve(size: tuple[int, int], turn: bool) -> StoredForm:
        flag: Transform = "none" if not flagged else "rotated" if turn else "orientation_cleared"
        transform: Transform = flag if jpeg else "reencoded"
        scale = (size[0] / width, size[1] / height) if width and height else (1.0, 1.0)
        return StoredForm(transform, turn and flagged, *size, *scale)

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


def contents(images: Sequence[ImageInfo]) -> Iterator[bytes]:
    """The bytes of examined images, one after the other; those of files in a store are fetched together, some ahead.

    Raises VlmixError if a file is no longer the one that was examined.
    """
    fetched = read_ahead(Range(Remote(each.path), 0, each.bytes, last=True) for each in images if is_url(each.path))
    for each in images:
        try:
            data = next(fetched) if is_url(each.path) else each.read()
            same = not (each.copied or is_url(each.path)) and stamp(each.path) == each.stamp
        except OSError as error:
            where = error.filename if is_url(each.path) else each.path
            raise VlmixError(f"{where}: {error.strerror} (it was readable when the build examined it)") from None
        if not same and image_xxh3(data) != each.digest:
            raise VlmixError(f"{each.path} changed during the build; run it again")
        yield data


def stored_bytes(data: bytes, form: StoredForm) -> bytes:
    """The JPEG bytes that go into a shard: the file's own, `data`, where nothing has to change, deterministic for the
    rest."""
    if form.transform == "none":
        return data
    if form.transform == "orientation_cleared" and (patched := _without_orientation(data)):
        return patched
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            upright = ImageOps.exif_transpose(image) if form.turn else image
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


def scaled(conversation: Conversation, forms: Sequence[StoredForm]) -> Conversation:
    """The conversation in the frames of its stored images: their sizes, and its boxes in their pixels."""

    def moved(qa: Round) -> Round:
        boxes = []
        for number, (x1, y1, x2, y2) in zip(qa.box_images or (0,) * len(qa.boxes), qa.boxes):
            form = forms[number]
            boxes.append((x1 * form.scale_x, y1 * form.scale_y, x2 * form.scale_x, y2 * form.scale_y))
        return msgspec.structs.replace(qa, boxes=tuple(boxes))

    rounds = tuple(moved(qa) if qa.boxes else qa for qa in conversation.rounds)
    images = tuple(ImageRef(ref.path, form.width, form.height) for ref, form in zip(conversation.images, forms))
    return msgspec.structs.replace(conversation, images=images, rounds=rounds)
