"""Visual Genome's regions."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from true_size.catalogue import IMAGE_DATA, REGIONS, VG_REGIONS, Catalogue
from true_size.texts import SAYS, texts, write


def vg(raw: Path, images: Catalogue) -> None:
    """Images and regions of version 1.2; one region in a thousand starts above its image, as upstream."""
    rng = images.rng("vg")
    phrases = texts(SAYS, 50_000, rng)
    counts = np.random.default_rng(rng.getrandbits(32)).integers(5, 96, len(images.vg))
    # As many as upstream: what the draw has too many or too few is spread over the first images.
    off = max(images.count(VG_REGIONS), len(images.vg)) - int(counts.sum())
    counts += off // len(counts)
    counts[: off % len(counts)] += 1

    def listed() -> Iterator[str]:
        for image, (width, height), folder in zip(images.vg, images.vg_sizes, images.vg_folders):
            size = f'"width": {width}, "url": "https://cs.stanford.edu/people/rak248/{folder}/{image}.jpg"'
            yield f'{{{size}, "height": {height}, "image_id": {image}, "coco_id": null, "flickr_id": null}}'

    def regions() -> Iterator[str]:
        number = 5_000_000
        for image, size, count in zip(images.vg, images.vg_sizes, counts.tolist()):
            held = ", ".join(_region(number + i, image, *size, phrases, rng.random) for i in range(count))
            number += count
            yield f'{{"regions": [{held}], "id": {image}}}'

    write(raw / IMAGE_DATA, "[", listed(), "]")
    write(raw / REGIONS, "[", regions(), "]")


def _region(number: int, image: int, width: int, height: int, phrases: list[str], draw: Callable[[], float]) -> str:
    x, y = int(draw() * width * 0.8), int(draw() * height * 0.8)
    w, h = 1 + int(draw() * (width - x)), 1 + int(draw() * (height - y))
    if draw() < 0.001:
        y = -y - 1
    return (
        f'{{"region_id": {number}, "width": {w}, "height": {h}, "image_id": {image}, '
        f'"phrase": "{phrases[int(draw() * len(phrases))]}", "y": {y}, "x": {x}}}'
    )
