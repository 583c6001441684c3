"""What a value of a row says of images: bytes, `{bytes, path}`, base64, a path, or a list of these."""

import base64
import binascii
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from vlmix.mixture.io.rows.text import loaded

INSIDE = ""
"""An image whose bytes are in the row itself, instead of a path."""
ImageItem = str | None
"""INSIDE, a path or URL, or None for what is no image."""
IMAGE_BLOCKS = ("image", "image_url")
"""Types of the blocks of a message that are images."""
MEDIA = ("video", "videos", "audio", "audios", "video_path", "audio_path")
"""Columns of what is not read; of those in typed files is only said whether there is something."""

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
_ENCODED_HEADS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")  # how JPEG, PNG, GIF and WebP begin in base64
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{200,}")
_IMAGE_NAME = re.compile(
    r"(images?|imgs?|pictures?|photos?|jpe?g|png|webp|file_?name)([_-]?(\d+|paths?|files?|urls?|bytes|base64))*", re.I
)


def image_items(value: Any) -> list[ImageItem]:
    """Where the images of a value lie."""
    return [None if one is None else INSIDE if one[0] else one[1] for one in _images(value)]


def image_bytes(value: Any) -> list[bytes]:
    """The bytes of the images of a value; none for those that are not inside."""
    return [b"" if one is None or not one[0] else _decoded(one[1]) for one in _images(value)]


def _images(value: Any) -> list[tuple[bool, Any] | None]:
    """Of each image of a value whether it is inside the row, and its bytes, base64 or path; None for what is none."""
    if value is None or value == "":
        return []
    if isinstance(value, list):
        return [image for one in value for image in (_images(one) or [None])]
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return [(True, value["bytes"])]
        return [(False, value["path"])] if isinstance(value.get("path"), str) else [None]
    if isinstance(value, str):
        if value.startswith("[") and (listed := loaded(value)) is not None:  # as pandas and JSON print it
            return _images(listed)
        return [(is_base64(value), value)]
    return [(True, value) if isinstance(value, bytes) else None]


def _decoded(data: Any) -> bytes:
    """Bytes, or those that base64 text or a data URL stands for; none for anything else."""
    if isinstance(data, bytes):
        return data
    try:
        return base64.b64decode(_DATA_URL.sub("", data, count=1), validate=True) if isinstance(data, str) else b""
    except (binascii.Error, ValueError):
        return b""


def is_base64(text: str) -> bool:
    """Whether a text is an image and not its path."""
    if text.startswith(("data:image/", *_ENCODED_HEADS)):
        return True
    return len(text) > 200 and _BASE64.fullmatch(text[:400]) is not None


def block_image(block: Mapping[str, Any]) -> Any:
    """What a block of a message says of its image: bytes, `{bytes, path}`, base64, a path or URL."""
    keys = ("image", "image_url", "url", "path")
    value = next((block[key] for key in keys if block.get(key) is not None), None)
    return value.get("url") or value if isinstance(value, dict) and value.get("bytes") is None else value


def block_images(messages: Any) -> list[bytes]:
    """The bytes of the images in the blocks of messages; none for those that are not inside."""
    contents = [turn.get("content") for turn in loaded(messages) or () if isinstance(turn, dict)]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    images = [block for block in blocks if isinstance(block, dict) and block.get("type") in IMAGE_BLOCKS]
    return [data for block in images for data in (image_bytes(block_image(block)) or [b""])[:1]]


@cache
def names_images(name: str) -> bool:
    """Whether a column is called as columns of images are."""
    return _IMAGE_NAME.fullmatch(name) is not None
