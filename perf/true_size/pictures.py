"""A valid file behind every name, by hard link, and the known damages."""

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import numpy as np

from true_size.catalogue import (
    COCO_SIZES,
    COVER_SIZES,
    SIGN_SIZES,
    VG_EMPTY,
    VG_SIZES,
    VG_UNLISTED,
    Catalogue,
    Size,
    url_ending,
)
from true_size.questions import GQA_FILES

PICTURES = 900


def pictures(raw: Path, images: Catalogue, photos: bool) -> None:
    """PICTURES files, photographs or flat grey drawings, behind all names below `raw`; each has the size that the
    annotations state. File systems allow some 65,000 names for a file; at true size one has about 700."""
    rng = images.rng("pictures")
    drawn = raw / ".drawn"
    drawn.mkdir()
    sizes = sorted({*COCO_SIZES, *VG_SIZES, *SIGN_SIZES, *COVER_SIZES})
    files: dict[Size, list[str]] = {size: [] for size in sizes}
    grain = np.random.default_rng(images.seed).integers(-16, 17, (2048, 2048, 1), dtype=np.int16)
    for number in range(PICTURES):
        size = sizes[number % len(sizes)]
        files[size].append(str(drawn / f"{number}.jpg"))
        Path(files[size][-1]).write_bytes(_photo(size, grain, rng) if photos else _drawing(size, rng))
    covers = [path for size in COVER_SIZES for path in files[size]]
    odd: dict[str, list[str]] = {".gif": [], ".png": [], ".cut": [], "": []}
    for path in covers[:50]:
        for ending, held in odd.items():
            held.append(f"{path}{ending}")
            _damage(path, ending)

    def link(folder: str, named: Iterable[tuple[str, str]]) -> None:
        (raw / folder).mkdir(parents=True, exist_ok=True)
        for name, source in named:
            os.link(source, f"{raw}/{folder}/{name}")

    def of(names: Iterable[object], many: Iterable[Size]) -> Iterator[tuple[str, str]]:
        return ((f"{name}.jpg", rng.choice(files[size])) for name, size in zip(names, many))

    link("coco/train2017", of((f"{image:012d}" for image in images.coco), images.coco_sizes))
    link("textvqa/train_images", of(images.signs, images.sign_sizes))
    link("gqa/images", of(images.vg, images.vg_sizes))
    others = images.count(GQA_FILES) - len(images.vg)
    link("gqa/images", of((f"n{100_000 + i}" for i in range(others)), rng.choices(VG_SIZES, k=others)))
    link(
        "ocr_vqa/images",
        (
            (f"{key}{url_ending(ending)}", rng.choice(covers if ending is None else odd[ending]))
            for key in images.books
            if (ending := images.odd_covers.get(key)) != ""
        ),
    )
    placed = list(zip(images.vg, images.vg_sizes, images.vg_folders))
    second = [image for image, _, folder in placed if folder == "VG_100K_2"]
    empty = set(rng.sample(second, images.count(VG_EMPTY)))
    for folder in ("VG_100K", "VG_100K_2"):
        held = [each for each in placed if (each[2] == folder) != (each[0] in empty)]
        link(f"vg/{folder}", of([image for image, _, _ in held], [size for _, size, _ in held]))
    unlisted = range(1, 1 + VG_UNLISTED)
    link("vg/VG_100K", of(unlisted, [VG_SIZES[0]] * len(unlisted)))
    for image in empty:
        (raw / f"vg/VG_100K_2/{image}.jpg").touch()
    shutil.rmtree(drawn)


def _drawing(size: Size, rng: Random) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    picture = Image.new("L", size, rng.randrange(256))
    x, y = rng.randrange(size[0] // 2), rng.randrange(size[1] // 2)
    picture.paste(rng.randrange(256), (x, y, x + size[0] // 3, y + size[1] // 3))
    picture.save(out, "JPEG", quality=30, optimize=True)
    return out.getvalue()


def _photo(size: Size, grain: np.ndarray, rng: Random) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    width, height = size
    colors = Image.frombytes("RGB", (width // 20, height // 20), rng.randbytes(3 * (width // 20) * (height // 20)))
    x, y = rng.randrange(1024), rng.randrange(1024)
    noisy = np.asarray(colors.resize(size, Image.Resampling.BICUBIC)) + grain[y : y + height, x : x + width]
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=84)
    return out.getvalue()


def _damage(path: str, ending: str) -> None:
    from PIL import Image

    if ending == ".cut":
        data = Path(path).read_bytes()
        Path(f"{path}.cut").write_bytes(data[: len(data) * 3 // 5])
    elif ending:
        Image.open(path).save(f"{path}{ending}")
