"""Record and image ids of the miniature releases, each a pure function of an index.

Ids follow the arithmetic of their release and do not depend on the seed: the seed changes what the pictures show, never
what they are called. So a document or a test can name a record, and `dirt` can say where every irregularity lies.
"""

import hashlib
import string

COCO_FIRST = {"train": 0, "refs": 96, "val": 200, "test": 300, "mme": 400}
"""First position of each part in the one sequence of COCO ids. `refs` are train2014 images of RefCOCO's evaluation
splits; keeping them apart from `train` makes evaluation images unseen, which upstream does not guarantee. `mme` are
the pictures that MME has of COCO."""

GQA_OWN = 40
"""GQA train images below this index are Visual Genome's photographs of the same index, as upstream."""

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def token(name: str, length: int, alphabet: str = BASE62) -> str:
    """`length` characters of `alphabet`, fixed by `name`."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest())
    letters = []
    for _ in range(length):
        number, digit = divmod(number, len(alphabet))
        letters.append(alphabet[digit])
    return "".join(letters)


def coco(part: str, index: int) -> int:
    """COCO image id; 2014 and 2017 releases use the same one."""
    return 139 + (COCO_FIRST[part] + index) * 4783 % 581_783


def vqav2(image_id: int, number: int) -> int:
    return image_id * 1000 + number


def okvqa(image_id: int, number: int) -> int:
    """OK-VQA question id: the last digit is 5, or 6 for an image's second question."""
    return image_id * 10 + 5 + number


def aokvqa(part: str, index: int, number: int = 0) -> str:
    return token(f"aokvqa/{part}/{index}/{number}", 22)


def vg(index: int) -> int:
    """Visual Genome image id; every tenth one is small, the others have seven digits."""
    return 61 + 29 * index if index % 10 == 0 else 2_315_400 + index * 1733


def vg_folder(index: int) -> str:
    """The image folder that image_data's url names."""
    return "VG_100K_2" if index % 3 == 0 else "VG_100K"


def vg_region(index: int, number: int) -> int:
    """Region id of region `number` (below 100) of image `index`."""
    return 1_380_000 + 100 * index + number


def gqa(part: str, index: int) -> str:
    """GQA imageId: Visual Genome's number for train and val, "n" and a number for testdev."""
    if part == "testdev":
        return f"n{100_003 + 4409 * index}"
    if part == "train" and index < GQA_OWN:
        return str(vg(index))
    return str(2_330_017 + 1741 * (index + (200 if part == "val" else 0)))


def gqa_question(part: str, index: int, number: int) -> str:
    """GQA question key; about a tenth of the keys start with a zero that must not be lost."""
    if part == "testdev":
        return f"2012{index:02d}{number:03d}"
    position = index + (500 if part == "val" else 0)
    return f"{(7 * position + 2) % 100:02d}{(930 + position) % 1000:03d}{number:03d}"


def book(index: int) -> str:
    """OCR-VQA key: an ISBN-10 that lost its leading zeros when purely numeric, or an ASIN that starts with B0."""
    if index % 12 == 5:
        return "B0" + token(f"ocrvqa/{index}", 8, string.digits + string.ascii_uppercase)
    attempt = 0
    while True:
        digits = ("0" if index % 4 == 1 else "1") + token(f"ocrvqa/{index}/{attempt}", 8, string.digits)
        check = sum((position + 1) * int(digit) for position, digit in enumerate(digits)) % 11
        if check == 10:
            return digits + "X"
        if index % 9 != 2:  # every ninth book gets new digits until its check digit is X
            return str(int(digits + str(check)))
        attempt += 1


def sign(index: int) -> str:
    """TextCaps and TextVQA image id, 16 hexadecimal digits."""
    return hashlib.sha256(f"textcaps/{index}".encode()).hexdigest()[:16]


def reference(index: int, number: int) -> int:
    """RefCOCO ref_id of object `number` (below 10) in image `index`; sentence ids are ten times it."""
    return 10 * index + number


def annotation(index: int, number: int) -> int:
    """RefCOCO annotation id of object `number` (below 10) in image `index`."""
    return 1_700_000 + 10 * index + number


def chat(index: int, chunk: int = 0) -> str:
    """ShareGPT conversation id; chunk above 0 is the continuation of a longer chat."""
    return f"{token(f'sharegpt/{index}', 7)}_{chunk}"


def web(index: int) -> str:
    return f"{2_211_003 + 8_713_331 * index % 600_000_000:09d}"
