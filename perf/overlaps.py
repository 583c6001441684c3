"""Near pictures: what fingerprints find, and how long comparing and making them takes.

`recall`: every photograph that scikit-image and scikit-learn ship inside their packages, changed in ways that happen to
pictures, is looked for among all of them: how many are found by their own, and how many by another.

`compare`: 665,298 made-up fingerprints against 100,000, as `overlaps.fingerprints.near` does it, and against a share of
them as a plain loop over imagehash's objects does it.

`hash`: fingerprints of photographs of 640x480, beside decoding them and `imagehash.phash` of the decoded pictures.
"""

import argparse
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Clock, Facts, alternate, machine, megabytes, parser, perform, photographs, run, table, work_folder
from PIL import Image, ImageDraw, ImageOps

from vlmix.mixture.overlaps.fingerprints import NEAR, fingerprints, near

MIXTURE, ASKED, PLAIN, PICTURES = 665_298, 100_000, 2_000_000, 400
LINES = {
    "near": "vlmix, all pairs",
    "plain": "a loop over imagehash objects",
    "hash": "vlmix fingerprints",
    "hash_crops": "vlmix fingerprints with crops",
    "phash": "decode, imagehash.phash",
    "decode": "decode alone",
}


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=quality)
    return out.getvalue()


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(width * left), round(height * top), round(width * right), round(height * bottom)))


def overlaid(image: Image.Image) -> Image.Image:
    changed = image.copy()
    corner = (0, image.height * 9 // 10, image.width * 2 // 5, image.height)
    ImageDraw.Draw(changed).rectangle(corner, fill="white")
    return changed


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality 30": lambda image: image,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "a third": lambda image: image.resize((image.width // 3, image.height // 3)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "padded by an eighth": lambda image: ImageOps.expand(image, (0, image.height // 8), (122, 116, 104)),
    "middle 95 %": lambda image: crop(image, 0.025, 0.025, 0.975, 0.975),
    "middle 90 %": lambda image: crop(image, 0.05, 0.05, 0.95, 0.95),
    "middle 85 %": lambda image: crop(image, 0.075, 0.075, 0.925, 0.925),
    "middle 80 %": lambda image: crop(image, 0.1, 0.1, 0.9, 0.9),
    "5 % off two sides": lambda image: crop(image, 0.05, 0.05, 1, 1),
    "10 % off two sides": lambda image: crop(image, 0.1, 0.1, 1, 1),
    "12.5 % off two sides": lambda image: crop(image, 0.125, 0.125, 1, 1),
    "15 % off two sides": lambda image: crop(image, 0.15, 0.15, 1, 1),
    "20 % off two sides": lambda image: crop(image, 0.2, 0.2, 1, 1),
    "mirrored": ImageOps.mirror,
    "a white label": overlaid,
}


def photos() -> dict[str, Image.Image]:
    import skimage.data
    from sklearn.datasets import load_sample_images

    found = {}
    # Those that lie in the wheel; `cat` is `chelsea`, and a face, a shape and noise are no photographs.
    names = "astronaut brick camera cell chelsea clock coffee coins colorwheel grass gravel horse hubble_deep_field"
    for name in f"{names} immunohistochemistry logo moon page rocket text retina".split():
        try:
            pixels = np.asarray(getattr(skimage.data, name)())
        except Exception:  # not in this version, or only on its server
            continue
        pixels = pixels if pixels.dtype == np.uint8 else (pixels * 255).astype(np.uint8)
        found[name] = Image.fromarray(pixels).convert("RGB")
    for number, pixels in enumerate(load_sample_images().images):
        found[f"sample {number}"] = Image.fromarray(pixels).convert("RGB")
    return found


def recall() -> str:
    mine = photos()
    prints = [fingerprints(jpeg(image), crops=True, flipped=True) for image in mine.values()]
    owners = np.repeat(np.arange(len(prints)), [len(each) for each in prints])
    known = np.concatenate(prints)
    plain = np.arange(len(known)) % 2 == 0  # not mirrored
    rows = []
    for kind, change in KINDS.items():
        cells = []
        for chosen in (plain, np.ones(len(known), dtype=np.bool_)):
            own, other = set(), 0
            queries = [fingerprints(jpeg(change(image), 30 if kind == "quality 30" else 85)) for image in mine.values()]
            asked = np.repeat(np.arange(len(queries)), [len(each) for each in queries])
            for query, found in near(np.concatenate(queries), known[chosen]):
                hit = set(owners[chosen][found[:, 0]].tolist())
                own |= {int(asked[query])} & hit
                other += len(hit - {int(asked[query])})
            cells += [f"{len(own)} of {len(mine)}", str(other)]
        rows.append([kind, *cells])
    headings = [f"change (at most {NEAR} bits apart)", "found", "by others", "with mirrors", "by others"]
    return f"{', '.join(mine)}\n{table(headings, rows)}"


def _near(args: argparse.Namespace) -> Facts:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 256, (round(MIXTURE * args.scale), 32), dtype=np.uint8)
    queries = rng.integers(0, 256, (round(ASKED * args.scale), 32), dtype=np.uint8)
    queries[::100] = known[: len(queries[::100])]
    clock = Clock()
    pairs = sum(len(found) for _, found in near(queries, known))
    assert pairs >= len(queries[::100])
    return clock.facts(pairs=len(known) * len(queries))


def _plain(args: argparse.Namespace) -> Facts:
    import imagehash

    rng = np.random.default_rng(0)
    known, queries = ([imagehash.ImageHash(rng.random((16, 16)) < 0.5) for _ in range(n)] for n in (2_000, 1_000))
    clock = Clock()
    found = sum(query - other <= NEAR for query in queries for other in known)
    assert not found
    return clock.facts(pairs=PLAIN)


def _hashing(args: argparse.Namespace) -> Facts:
    import imagehash

    from vlmix.mixture.io.images import decoded

    pool = photographs(50, np.random.default_rng(0))
    work: dict[str, Callable[[bytes], Any]] = {
        "hash": fingerprints,
        "hash_crops": lambda data: fingerprints(data, crops=True),
        "phash": lambda data: imagehash.phash(decoded(data), hash_size=16),
        "decode": decoded,
    }
    one = work[args.contender]
    one(pool[0])
    clock = Clock()
    for number in range(PICTURES):
        one(pool[number % len(pool)])
    return clock.facts(pictures=PICTURES)


CONTENDERS = {"near": _near, "plain": _plain, **dict.fromkeys(("hash", "hash_crops", "phash", "decode"), _hashing)}


def main() -> None:
    arguments = parser(__doc__, repeat=2)
    arguments.add_argument("--only", choices=("recall", "compare", "hash"))
    args = arguments.parse_args()
    if perform(args, CONTENDERS):
        return
    print(machine("vlmix", "imagehash", "faiss-cpu", "scikit-image", "scikit-learn", "pillow"))
    if args.only in (None, "recall"):
        start = time.perf_counter()
        print(f"{recall()}\n{time.perf_counter() - start:.0f} s\n")
    for part, names, what in (("compare", ("near", "plain"), "pairs"), ("hash", tuple(LINES)[2:], "pictures")):
        if args.only not in (None, part):
            continue
        with work_folder(args) as work:
            options = ("--scale", str(args.scale))
            measured = alternate(names, args.repeat, lambda name, work=work, options=options: run(name, work, *options))
        rows = [
            [
                LINES[name],
                f"{found.seconds:.2f} .. {found.worst:.2f}",
                f"{found.cpu:.2f}",
                f"{found.facts[what] / found.seconds:,.0f}",
                megabytes(found.peak),
            ]
            for name, found in measured.items()
        ]
        print(table([part, "seconds", "cpu", f"{what}/s", "peak RSS"], rows), "\n")


if __name__ == "__main__":
    main()
