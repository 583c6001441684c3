"""Which images there are, and how large."""

from random import Random

Size = tuple[int, int]

QUESTIONS = "vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "vqav2/v2_mscoco_train2014_annotations.json"
IMAGE_DATA = "vg/image_data.json"
REGIONS = "vg/region_descriptions.json"

TRAIN2014, TRAIN2017 = 82_783, 118_287
VG_IMAGES, VG_REGIONS, VG_SECOND, VG_EMPTY, VG_UNLISTED = 108_077, 5_408_689, 43_903, 170, 2
BOOKS, TRAIN_BOOKS, VAL_BOOKS, BOOK_QUESTIONS = 207_572, 166_022, 20_731, 1_002_146
COVERS_MISSING, COVERS_GIF, COVERS_PNG, COVERS_CUT = 737, 861, 40, 2
SIGNS, VAL_SIGNS = 21_953, 3_166
COCO_SIZES: tuple[Size, ...] = ((640, 480), (640, 427), (480, 640), (427, 640), (500, 375))
VG_SIZES: tuple[Size, ...] = ((800, 600), (500, 375), (1024, 768), (500, 333), (375, 500), (640, 480))
SIGN_SIZES: tuple[Size, ...] = ((1024, 768), (1024, 683), (768, 1024), (683, 1024))
COVER_SIZES: tuple[Size, ...] = ((331, 500), (386, 500), (500, 500))


class Catalogue:
    """The images of all sources with their sizes, on which annotations and pictures agree.

    A function of seed and scale. COCO's are in the order of their ids' draw, train2014's before
    those that train2017 has of val2014.
    """

    def __init__(self, scale: float, seed: int = 0) -> None:
        self.scale, self.seed = scale, seed
        rng = self.rng("catalogue")
        count = self.count(TRAIN2017)
        self.coco = rng.sample(range(1, max(581_922, 4 * count)), count)
        self.train2014 = self.coco[: self.count(TRAIN2014)]
        self.coco_sizes = rng.choices(COCO_SIZES, k=count)
        self.vg = list(range(2_300_000, 2_300_000 + self.count(VG_IMAGES)))
        self.vg_sizes = rng.choices(VG_SIZES, k=len(self.vg))
        second = set(rng.sample(self.vg, self.count(VG_SECOND)))
        self.vg_folders = [f"VG_100K{'_2' * (image in second)}" for image in self.vg]
        self.signs = [f"{number:016x}" for number in rng.sample(range(2**62), self.count(SIGNS + VAL_SIGNS))]
        self.sign_sizes = rng.choices(SIGN_SIZES, k=len(self.signs))
        self.books = [isbn(number) for number in rng.sample(range(10**9), self.count(BOOKS))]
        endings = [(".gif", COVERS_GIF), (".png", COVERS_PNG), ("", COVERS_MISSING), (".cut", COVERS_CUT)]
        odd = [ending for ending, many in endings for _ in range(self.count(many))]
        self.odd_covers = dict(zip(rng.sample(self.books, len(odd)), odd))

    def count(self, official: int) -> int:
        """`official` at the catalogue's scale, at least 1."""
        return max(round(official * self.scale), 1)

    def rng(self, name: str) -> Random:
        return Random(f"{self.seed}/{name}")


def isbn(number: int) -> str:
    """A key of OCR-VQA: leading zeros are lost where it is numeric, and kept where it is no number."""
    check = sum((place + 1) * int(digit) for place, digit in enumerate(f"{number:09d}")) % 11
    if number % 12 == 5:
        return f"B{number:09d}"
    return f"{number:09d}X" if check == 10 else str(int(f"{number:09d}{check}"))


def url_ending(odd: str | None) -> str:
    return odd if odd in (".gif", ".png") else ".jpg"
