"""Releases of true size: the raw files of LLaVA-1.5's ten sources, drawn from a seed, in their official schemas.

Sizes and cardinalities are the official ones (443,757 questions on 82,783 images, 5,408,689 regions, ...), texts are
drawn from pools. The recipe `llava-1.5-665k` makes 665,298 samples of them at scale 1, with the paper's ten
counts. Two of these are properties of the generator and no evidence about the real releases: RefCOCO's 48,447
(expressions move between images until the segments of at most ten are as many) and ShareGPT's 40,688 (the number of
chats that fit).

With `--images small` a valid grey JPEG of 1 to 3 KB lies behind every name, with `--images photos` one of about 100 KB,
each of the size that the annotations state: 900 files, hard-linked. The known damages are there: covers that are
missing, GIF, PNG or cut, empty files of Visual Genome whose good copy is in the other folder.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from true_size.catalogue import Catalogue
from true_size.chats import llava_instruct, sharegpt
from true_size.expressions import refcoco
from true_size.pictures import pictures
from true_size.printed import ocrvqa, textcaps
from true_size.questions import aokvqa, gqa, okvqa, vqav2
from true_size.regions import vg

RELEASES = (vg, gqa, refcoco, sharegpt, vqav2, llava_instruct, textcaps, ocrvqa, aokvqa, okvqa)
TAKES = {"ocrvqa": 80_000, "vg": 86_417}
"""Samples that the recipe draws from a source, which have to shrink and grow with the releases."""
IMAGES = ("none", "small", "photos")


def generate(raw: Path, scale: float, images: str = "none", seed: int = 0, lone_surrogate: bool = False) -> None:
    """Write all releases into the folder `raw`, two at a time, and the pictures that `images` (one of IMAGES) names."""
    catalogue = Catalogue(scale, seed)
    raw.mkdir(parents=True, exist_ok=True)
    makes: list[Callable[[Path, Catalogue], None]] = list(RELEASES)
    if lone_surrogate:
        makes[makes.index(sharegpt)] = partial(sharegpt, lone_surrogate=True)
    with ProcessPoolExecutor(2) as pool:
        for done in [pool.submit(make, raw, catalogue) for make in makes]:
            done.result()
    if images != "none":
        pictures(raw, catalogue, images == "photos")


def takes(scale: float) -> list[str]:
    """The `KEY=VALUE` arguments with which the 665K recipe fits releases of `scale`."""
    return [] if scale == 1 else [f"sources.{name}.take={round(take * scale)}" for name, take in TAKES.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the releases, new or empty")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the true size (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", choices=IMAGES, default="none")
    parser.add_argument("--lone-surrogate", action="store_true", help="half an emoji in some thirty chats of ShareGPT")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty")
    start = time.perf_counter()
    generate(args.out, args.scale, args.images, args.seed, args.lone_surrogate)
    print(f"{args.out}: releases of scale {args.scale:g}, {time.perf_counter() - start:.0f} s")
    print(" ".join(["vlmix build llava-1.5-665k", *takes(args.scale), f"--raw {args.out} --out MIXTURE"]))


if __name__ == "__main__":
    main()
