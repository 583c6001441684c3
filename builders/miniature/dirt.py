"""The irregularities of the real releases that the sample contains, and where: one of each, in known records.

`record` is the id that the release itself uses (question id, image key, region id, conversation id ...). Ids do not
depend on the seed, so the list holds for every sample. Writers look their places up here; nothing else in the sample
is irregular, but for traits that whole releases have (outer spaces in TextVQA answers, capitals in VG phrases ...).
"""

from dataclasses import dataclass

from vlmix.builders.miniature import ids


@dataclass(frozen=True, slots=True)
class Dirt:
    """One irregular record: what it is called, where it lies, and what a correct pipeline does with it."""

    name: str
    file: str
    """Relative to RAW; an image folder where the file itself is the record."""
    record: str
    rule: str


VQAV2_Q = "vqav2/v2_OpenEnded_mscoco_train2014_questions.json"
VQAV2_A = "vqav2/v2_mscoco_train2014_annotations.json"
OKVQA_A = "okvqa/mscoco_train2014_annotations.json"
AOKVQA = "aokvqa/aokvqa_v1p0_train.json"
GQA = "gqa/train_balanced_questions.json"
BOOKS = "ocrvqa/dataset.json"
OCR = "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json"
GOOGLE = "refcoco/refcocog/refs(google).p"
CAPTIONS = "textcaps/TextCaps_0.1_train.json"
COVERS = "ocr_vqa/images"
REGIONS = "vg/region_descriptions.json"
UNC = "refcoco/refcoco/refs(unc).p"
INSTANCES = "refcoco/refcoco/instances.json"
CHATS = "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json"
INSTRUCT = "llava_instruct/llava_instruct_150k.json"
LCS = "lcs558k/blip_laion_cc_sbu_558k.json"
MIX = "llava_json/llava_v1_5_mix_sample.json"

ONLY_2014 = (20, 40, 60, 70, 80)
"""COCO train images that exist only under their 2014 name."""

MISSING_COCO = 95


def _train(index: int) -> int:
    return ids.coco("train", index)


def _question(index: int, number: int) -> int:
    return ids.vqav2(_train(index), number)


def _file(index: int) -> str:
    return f"{_train(index):012d}"


_ROWS: list[tuple[str, str, str | int, str]] = [
    (f"coco-2014-name-{index}", "coco/train2014", f"COCO_train2014_{_file(index)}.jpg", "call it train2017/%012d.jpg")
    for index in ONLY_2014
] + [
    ("vqav2-outer-spaces", VQAV2_Q, _question(1, 0), "keep the question as it is"),
    ("vqav2-double-spaces", VQAV2_Q, _question(2, 0), "keep the double spaces inside the question"),
    ("vqav2-no-majority", VQAV2_A, _question(3, 9), "ten different answers: use multiple_choice_answer"),
    ("vqav2-not-annotated", VQAV2_Q, _question(4, 9), "question without annotation: drop the round, report it"),
    ("vqav2-empty-answer", VQAV2_A, _question(5, 9), "empty multiple_choice_answer: drop the round, report it"),
    ("vqav2-image-missing", "coco/train2017", f"{_file(MISSING_COCO)}.jpg", "no file: reject, report it"),
    ("okvqa-article", OKVQA_A, ids.okvqa(_train(6), 0), "stemming leaves an empty answer: take raw_answer"),
    ("okvqa-tie", OKVQA_A, ids.okvqa(_train(7), 0), "two answers four times each: the first one wins"),
    ("okvqa-two-questions", OKVQA_A, ids.okvqa(_train(8), 1), "second question of an image: one conversation"),
    ("aokvqa-duplicate-choices", AOKVQA, ids.aokvqa("train", 26), "two equal choices: rotate the index"),
    ("aokvqa-two-questions", AOKVQA, ids.aokvqa("train", 27, 1), "merge, then rotate both together"),
    ("gqa-leading-zero", GQA, ids.gqa_question("train", 0, 0), "the key's leading zero belongs to it"),
    ("gqa-leading-zero-twin", GQA, ids.gqa_question("train", 0, 0).lstrip("0"), "equal to the first as a number"),
    ("gqa-global-null", GQA, ids.gqa_question("train", 2, 0), "groups.global is null: accept"),
    ("gqa-argument-space", GQA, ids.gqa_question("train", 3, 0), "an argument ends in a space: accept"),
    ("ocrvqa-gif", COVERS, f"{ids.book(3)}.jpg", "GIF bytes behind a .jpg name: convert to JPEG"),
    ("ocrvqa-png", COVERS, f"{ids.book(4)}.png", "another extension: convert, call it .jpg"),
    ("ocrvqa-image-missing", COVERS, f"{ids.book(6)}.jpg", "no file: reject, report it"),
    ("ocrvqa-image-truncated", COVERS, f"{ids.book(7)}.jpg", "does not decode to the end: reject it"),
    ("ocrvqa-author-empty", BOOKS, ids.book(8), "no author question: the conversation begins with the title"),
    ("ocrvqa-author-star", BOOKS, ids.book(9), 'the author is "*": keep the answer'),
    ("ocrvqa-key-lost-zero", BOOKS, ids.book(1), "nine digits: the key is a string, do not pad it"),
    ("ocrvqa-key-x", BOOKS, ids.book(2), "the key ends in X: a string"),
    ("ocrvqa-key-b0", BOOKS, ids.book(5), "the key is an ASIN: a string"),
    ("textcaps-no-token", OCR, ids.sign(2), "empty token list: the OCR line stays, with its trailing space"),
    ("textcaps-token-comma", OCR, ids.sign(3), 'a token ends in a comma: join with ", " all the same'),
    ("textcaps-token-quotes", OCR, ids.sign(4), "a token holds quotes: keep them"),
    ("textcaps-token-not-ascii", OCR, ids.sign(5), "a token outside ASCII: keep it"),
    ("textcaps-grey", "textvqa/train_images", f"{ids.sign(6)}.jpg", "one-channel JPEG: store as it is"),
    ("textcaps-image-path", CAPTIONS, ids.sign(0), "train/ is no folder: go by image_id"),
    ("vg-empty-file", "vg/VG_100K_2", f"{ids.vg(42)}.jpg", "0 bytes: take the good copy in VG_100K"),
    ("vg-negative-y", REGIONS, ids.vg_region(43, 99), "clip the box to the picture"),
    ("vg-outside", REGIONS, ids.vg_region(44, 99), "wholly outside the picture: drop the region, report it"),
    ("vg-zero-width", REGIONS, ids.vg_region(45, 99), "no area: drop the region, report it"),
    ("vg-over-edge", REGIONS, ids.vg_region(46, 99), "clip the box to the picture"),
    ("vg-phrase-newline", REGIONS, ids.vg_region(47, 0), "strip the trailing newline"),
    ("vg-phrase-double-space", REGIONS, ids.vg_region(48, 0), "keep the double space inside the phrase"),
    ("vg-phrase-full-stop", REGIONS, ids.vg_region(49, 0), "exactly one full stop in the text, never two"),
    ("vg-phrase-duplicate", REGIONS, ids.vg_region(50, 99), "as region 0 of the image: both are candidates"),
    ("vg-phrase-empty", REGIONS, ids.vg_region(51, 99), "empty phrase: drop the region, report it"),
    ("vg-exif-rotated", f"vg/{ids.vg_folder(52)}", f"{ids.vg(52)}.jpg", "boxes fit the turned picture: turn it"),
    ("refcoco-file-name", UNC, ids.reference(9, 0), "file_name ends in _16.jpg: go by instances.json"),
    ("refcoco-over-edge", INSTANCES, ids.annotation(11, 8), "the box ends 0.38 pixels outside: clip"),
    ("refcoco-zero-area", INSTANCES, ids.annotation(12, 9), "no area: drop the expressions, report them"),
    ("refcoco-empty-expression", UNC, ids.reference(13, 0), "one empty sentence: drop it, report it"),
    ("refcoco-capitals", UNC, ids.reference(14, 0), "raw is in capitals: use sent"),
    ("refcoco-equal-sentences", UNC, ids.reference(15, 8), "the sentence of another object too: keep both"),
    ("refcoco-google-overlap", GOOGLE, ids.reference(40, 8), "in val, its image in train too: evaluate on umd"),
    ("sharegpt-gpt-first", CHATS, ids.chat(26), "begins with gpt: drop the leading answer"),
    ("sharegpt-system-first", CHATS, ids.chat(27), "begins with system: drop the system turn"),
    ("sharegpt-single-turn", CHATS, ids.chat(28), "one turn: reject, report it"),
    ("sharegpt-not-alternating", CHATS, ids.chat(29), "two human turns in a row: reject, report it"),
    ("sharegpt-zero-width", CHATS, ids.chat(30), "an answer is only U+200B: empty, never a target"),
    ("sharegpt-unknown-role", CHATS, ids.chat(31), 'role "tool": reject, report it'),
    ("sharegpt-user-chatgpt", CHATS, ids.chat(32), "roles user and chatgpt mean human and gpt"),
    ("sharegpt-extra-keys", CHATS, ids.chat(33), "unknown keys beside from and value: ignore"),
    ("sharegpt-continuation", CHATS, ids.chat(34, 1), "a later chunk: only chunk 0 is used"),
    ("sharegpt-long", CHATS, ids.chat(35), "longer than 2048 tokens: cut after the last pair that fits"),
    ("sharegpt-odd-human", CHATS, ids.chat(36), "ends with a human turn: drop that turn"),
    ("sharegpt-html", CHATS, ids.chat(37), "raw HTML: reject, name the html_cleaned files"),
    ("sharegpt-escaped", CHATS, ids.chat(38), "escaped underscore in an answer: the text is kept as it is"),
    ("instruct-image-back", INSTRUCT, _file(3), "<image> stands behind the question: keep it there"),
    ("instruct-odd-turns", INSTRUCT, _file(2), "ends with a human turn: drop that turn"),
    ("instruct-empty-value", INSTRUCT, _file(27), "empty answer: drop the round, report it"),
    ("lcs-trailing-spaces", LCS, ids.web(5), "the caption is kept as it is"),
    ("lcs-image-first", LCS, ids.web(6), "<image> before the prompt"),
    ("lcs-image-last", LCS, ids.web(7), "<image> behind the prompt"),
    ("lcs-cmyk", f"lcs558k/images/{ids.web(8)[:5]}", f"{ids.web(8)}.jpg", "four-channel JPEG: store as it is"),
    ("lcs-grey", f"lcs558k/images/{ids.web(9)[:5]}", f"{ids.web(9)}.jpg", "one-channel JPEG: store as it is"),
    ("mix-int-id", MIX, ids.vg(1), "GQA rows have int ids: keep the type"),
    ("mix-empty-ocr", MIX, ids.sign(2), "the OCR line ends in a space: keep it"),
    ("mix-text-row", MIX, ids.chat(0), 'no image key, "model": "": keep both facts'),
    ("mix-turn-keys", MIX, ids.chat(1), "a gpt turn has text and markdown beside value: keep for the way back"),
    ("mix-row-key", MIX, ids.book(10), "a row has a key nobody knows: keep for the way back"),
    ("mix-duplicate-id", MIX, _file(24), "one id on several rows: never a key"),
]

DIRT: tuple[Dirt, ...] = tuple(Dirt(name, file, str(record), rule) for name, file, record, rule in _ROWS)

RECORD: dict[str, str] = {item.name: item.record for item in DIRT}
"""Record id by name of the irregularity."""
