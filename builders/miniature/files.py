"""Writing the sample's files: compact JSON, JPEG pictures, protocol-2 pickles; and counting them."""

import io
import json
import pickle
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

Record = dict[str, Any]
QUALITY = 85


def jpeg(image: Image.Image, **options: Any) -> bytes:
    """JPEG bytes of a picture; options go to Pillow's encoder."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, **options)
    return buffer.getvalue()


def turns(pairs: Iterable[tuple[str, str]], human: str = "human", gpt: str = "gpt") -> list[Record]:
    """Questions and answers as the alternating turns of LLaVA's and ShareGPT's files."""
    return [{"from": role, "value": value} for pair in pairs for role, value in zip((human, gpt), pair, strict=True)]


class Folder:
    """The RAW folder while it is written; paths are relative to it. Counts the records of every annotation file and the
    files of every image folder (LCS-558K's sub-folders together)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records: dict[str, int] = {}
        self.images: Counter[str] = Counter()
        self.bytes = 0

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        self.bytes += len(data)

    def json(self, path: str, value: Any, records: int) -> None:
        """Write a JSON file of `records` records. Keys keep their order; other scripts are escaped, as upstream."""
        self.write(path, json.dumps(value, separators=(",", ":")).encode("ascii"))
        self.records[path] = records

    def text(self, path: str, text: str, records: int) -> None:
        """Write a text file of `records` records."""
        self.write(path, text.encode("ascii"))
        self.records[path] = records

    def refs(self, path: str, refs: list[Record]) -> None:
        """Write a refs pickle of lists, dicts, strings and ints only.

        The JSON round trip gives every value its own identity: pickle's memo would otherwise depend on which equal
        strings happen to be one object.
        """
        self.write(path, pickle.dumps(json.loads(json.dumps(refs)), protocol=2))
        self.records[path] = len(refs)

    def image(self, path: str, data: bytes) -> None:
        self.write(path, data)
        home, images, _ = path.partition("/images/")
        self.images[f"{home}/images" if images else path.rsplit("/", 1)[0]] += 1

    def picture(self, path: str, picture: Image.Image, **options: Any) -> None:
        self.image(path, jpeg(picture, **options))

    def load(self, path: str) -> Any:
        return json.loads((self.root / path).read_bytes())
