"""Near pictures and texts: what fingerprints find, and how long comparing and making them takes.

`recall`: every photograph that scikit-image and scikit-learn ship inside their packages, changed in ways that happen to
pictures, is looked for among all of them: how many are found by their own, and how many by another. The same for the
drawn pictures of the miniature releases.

`compare`: 665,298 made-up fingerprints against 100,000, as `overlaps.fingerprints.near` does it, and against a share of
them as a plain loop over imagehash's objects does it.

`hash`: fingerprints of photographs of 640x480, beside decoding them and `imagehash.phash` of the decoded pictures.

`text`: paragraphs of Python's documentation, each as an answer with one edit, are looked for among all of them; then
made-up samples, of which one in a hundred is a near copy, as `overlaps.near_text.alike` compares each with all others,
and as datasketch's MinHash with its LSH does; and 665,298 grouped as LLaVA's mixture is.
"""

import argparse
import io
import pydoc_data.topics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import Clock, Facts, alternate, machine, megabytes, parser, perform, photographs, run, table, work_folder
from PIL import Image, ImageDraw, ImageOps

from vlmix.mixture.overlaps.fingerprints import NEAR, fingerprints, near
from vlmix.mixture.overlaps.near_text import SEPARATOR, SHARED, alike
from vlmix.mixture.overlaps.text import normalised

MIXTURE, ASKED, PLAIN, PICTURES, TEXTS = 665_298, 100_000, 2_000_000, 400, 20_000
LINES = {
    "near": "vlmix, all pairs",
    "plain": "a loop over imagehash objects",
    "hash": "vlmix fingerprints",
    "hash_crops": "vlmix fingerprints with crops",
    "phash": "decode, imagehash.phash",
    "decode": "decode alone",
    "text": "vlmix, all in one group",
    "datasketch": "datasketch MinHash, MinHashLSH",
    "text_all": "vlmix, 665,298 in groups",
    "drawing": "making those 665,298 alone",
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
    "5 % off one side": lambda image: crop(image, 0.05, 0, 1, 1),
    "10 % off one side": lambda image: crop(image, 0.1, 0, 1, 1),
    "15 % off the top": lambda image: crop(image, 0, 0.15, 1, 1),
    "20 % off one side": lambda image: crop(image, 0, 0, 0.8, 1),
    "mirrored": ImageOps.mirror,
    "a white label": overlaid,
}


WAYS: dict[str, dict[str, bool]] = {
    "of a question's": {"crops": True},
    "with --flipped": {"crops": True, "flipped": True},
    "duplicates": {},
}
"""How the picture that was changed is fingerprinted: as a question's, or as another of the mixture."""


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


def drawn() -> dict[str, Image.Image]:
    """The COCO pictures of the miniature releases, which are drawn."""
    from vlmix.builders.miniature import write_sample

    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder) / "raw")
        files = sorted((Path(folder) / "raw/coco").rglob("*.jpg"))
        by_bytes = {file.read_bytes(): file.name for file in files}
        return {name: Image.open(io.BytesIO(data)).convert("RGB") for data, name in by_bytes.items()}


def recall(mine: dict[str, Image.Image]) -> str:
    asked = [[fingerprints(jpeg(image), **how) for image in mine.values()] for how in WAYS.values()]
    rows = []
    for kind, change in KINDS.items():
        queries = [fingerprints(jpeg(change(image), 30 if kind == "quality 30" else 85)) for image in mine.values()]
        of = np.repeat(np.arange(len(queries)), [len(each) for each in queries])
        cells = []
        for prints in asked:
            owners = np.repeat(np.arange(len(prints)), [len(each) for each in prints])
            own, other = set(), set()
            for query, found in near(np.concatenate(queries), np.concatenate(prints)):
                hit = set(owners[found[:, 0]].tolist())
                own |= {int(of[query])} & hit
                other |= {(int(of[query]), each) for each in hit - {int(of[query])}}
            cells += [f"{len(own)} of {len(mine)}", str(len(other))]
        rows.append([kind, *cells])
    headings = [f"change (at most {NEAR} bits apart)"]
    for way in WAYS:
        headings += [way, "by others"]
    return table(headings, rows)


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


def _said(question: str, answer: str) -> str:
    return SEPARATOR.join((normalised(question), normalised(answer)))


def _replaced(rng: np.random.Generator, words: Sequence[str], count: int) -> str:
    changed = list(words)
    for place in rng.choice(len(words), count, replace=False):
        changed[place] = "another"
    return " ".join(changed)


def _typo(rng: np.random.Generator, words: Sequence[str]) -> str:
    changed, place = list(words), max(range(len(words)), key=lambda at: (len(words[at]), rng.random()))
    changed[place] = changed[place][:2] + changed[place][3:]
    return " ".join(changed)


EDITS: dict[str, Callable[[np.random.Generator, Sequence[str]], str]] = {
    "a comma after a word": lambda rng, words: " ".join(w + "," * (n == len(words) // 2) for n, w in enumerate(words)),
    "a letter left out": _typo,
    "a word replaced": lambda rng, words: _replaced(rng, words, 1),
    "two words replaced": lambda rng, words: _replaced(rng, words, 2),
    "five words replaced": lambda rng, words: _replaced(rng, words, 5),
    "a word left out": lambda rng, words: " ".join(words[: len(words) // 2] + words[len(words) // 2 + 1 :]),
    "a sentence added": lambda rng, words: " ".join([*words, "It is as simple as that."]),
    "the last fifth left out": lambda rng, words: " ".join(words[: len(words) * 4 // 5]),
    "a number added": lambda rng, words: " ".join([*words, "7"]),
    '"not" added': lambda rng, words: " ".join([*words[:9], "not", *words[9:]]),
}


def text_recall() -> str:
    paragraphs = {
        tuple(paragraph.split())
        for topic in pydoc_data.topics.topics.values()
        for paragraph in topic.split("\n\n")
        if len(paragraph.split()) >= 20 and paragraph[:1].isalpha()
    }
    mine = [words for words in sorted(paragraphs) if len(words) <= 400]
    plain = [_said("What does it say?", " ".join(words)) for words in mine]
    known = len(plain) - len(set(alike(enumerate(plain), np.zeros(len(plain), np.int64)).tolist()))
    bounds, rows = (20, 30, 40, 60, 100, 401), []
    for kind, edit in {**EDITS, "the question changed": None}.items():
        rng, asked = np.random.default_rng(0), "What does it say?" if edit else "What does it mean?"
        changed = [_said(asked, edit(rng, words) if edit else " ".join(words)) for words in mine]
        labels = alike(enumerate(plain + changed), np.zeros(2 * len(plain), np.int64)).reshape(2, -1)
        cells = []
        for low, high in pairwise(bounds):
            these = np.array([low <= len(words) < high for words in mine])
            cells.append(f"{(labels[0] == labels[1])[these].sum()} of {these.sum()}")
        rows.append([kind, *cells])
    headings = ["edit (paragraphs by their words)", *(f"{a} to {b - 1}" for a, b in pairwise(bounds))]
    return f"{len(mine)} paragraphs, {known} of them near another as they are\n{table(headings, rows)}"


def _drawn(count: int) -> Iterator[str]:
    """Made-up samples as in LLaVA's mixture: of 20, 8 with ten short rounds, 4 with an answer of 110 words,
    6 captions, 2 chats of 4 long rounds. One in a hundred is a near copy of the one before it."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 10)))) for _ in range(30_000)]
    often = np.cumsum(1 / np.arange(1, len(words) + 1))
    shapes = [[8, 1] * 10] * 8 + [[10, 110]] * 4 + [[9, 9]] * 6 + [[30, 250] * 4] * 2
    turns = list[str]()
    for number in range(count):
        if number % 100 == 11:
            turns[-1] = turns[-1].replace(" ", " another ", 1)
        else:
            lengths = shapes[number % 20]
            drawn = np.searchsorted(often, rng.random(sum(lengths)) * often[-1]).tolist()
            ends = np.cumsum(lengths).tolist()
            turns = [" ".join(words[at] for at in drawn[a:b]) for a, b in zip([0, *ends], ends)]
        yield SEPARATOR.join(turns)


def _text(args: argparse.Namespace) -> Facts:
    texts = list(_drawn(round(TEXTS * args.scale)))
    clock = Clock()
    labels = alike(enumerate(texts), np.zeros(len(texts), np.int64))
    return clock.facts(texts=len(texts), found=len(texts) - len(set(labels.tolist())))


def _datasketch(args: argparse.Namespace) -> Facts:
    from datasketch import MinHash, MinHashLSH

    texts = list(_drawn(round(TEXTS * args.scale)))
    clock = Clock()
    index, found = MinHashLSH(threshold=SHARED / 10, num_perm=128), 0
    for number, text in enumerate(texts):
        words = text.split()
        one = MinHash(num_perm=128)
        one.update_batch([" ".join(run).encode() for run in zip(words, words[1:], words[2:])])
        found += bool(index.query(one))
        index.insert(number, one)
    return clock.facts(texts=len(texts), found=found)


def _text_all(args: argparse.Namespace) -> Facts:
    count = round(MIXTURE * args.scale)
    number = np.arange(count)
    # Two samples to a picture, a near copy with what it is of; chats have none.
    groups = np.where(number % 20 >= 18, -1, (number - (number % 100 == 11)) // 2)
    clock = Clock()
    labels = alike(enumerate(_drawn(count)), groups)
    return clock.facts(texts=count, found=count - len(np.unique(labels)))


def _drawing(args: argparse.Namespace) -> Facts:
    count = round(MIXTURE * args.scale)
    clock = Clock()
    for _ in _drawn(count):
        pass
    return clock.facts(texts=count, found=0)


CONTENDERS = {
    "near": _near,
    "plain": _plain,
    **dict.fromkeys(("hash", "hash_crops", "phash", "decode"), _hashing),
    "text": _text,
    "datasketch": _datasketch,
    "text_all": _text_all,
    "drawing": _drawing,
}


def main() -> None:
    arguments = parser(__doc__, repeat=2)
    arguments.add_argument("--only", choices=("recall", "compare", "hash", "text"))
    args = arguments.parse_args()
    if perform(args, CONTENDERS):
        return
    print(machine("vlmix", "imagehash", "faiss-cpu", "scikit-image", "scikit-learn", "pillow", "rensa", "datasketch"))
    if args.only in (None, "recall"):
        start = time.perf_counter()
        for mine in (photos(), drawn()):
            print(f"{len(mine)} pictures, {', '.join(list(mine)[:24])}\n{recall(mine)}\n")
        print(f"{time.perf_counter() - start:.0f} s\n")
    if args.only in (None, "text"):
        start = time.perf_counter()
        print(f"{text_recall()}\n{time.perf_counter() - start:.0f} s\n")
    known = tuple(LINES)
    for part, names, what in (
        ("compare", known[:2], "pairs"),
        ("hash", known[2:6], "pictures"),
        ("text", known[6:], "texts"),
    ):
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
                *([f"{found.facts['found']:,}"] if part == "text" else []),
            ]
            for name, found in measured.items()
        ]
        more = ["found"] if part == "text" else []
        print(table([part, "seconds", "cpu", f"{what}/s", "peak RSS", *more], rows), "\n")


if __name__ == "__main__":
    main()
