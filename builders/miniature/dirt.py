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
    source: str
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


def _question(index: int, number: int) -> str:
    return str(ids.vqav2(_train(index), number))


def _file(index: int) -> str:
    return f"{_train(index):012d}"


def _rows(source: str, file: str, *rows: tuple[str, str, str]) -> tuple[Dirt, ...]:
    return tuple(Dirt(name, source, file, record, rule) for name, record, rule in rows)


_ONLY_2014_ROWS = tuple(
    (
        f"coco-2014-name-{index}",
        f"COCO_train2014_{_file(index)}.jpg",
        "found under its 2014 name; call it train2017/%012d.jpg",
    )
    for index in ONLY_2014
)

DIRT: tuple[Dirt, ...] = (
    *_rows("coco", "coco/train2014", *_ONLY_2014_ROWS),
    *_rows(
        "vqav2",
        VQAV2_Q,
        ("vqav2-outer-spaces", _question(1, 0), "keep the question as it is"),
        ("vqav2-double-spaces", _question(2, 0), "keep the double spaces inside the question"),
    ),
    *_rows(
        "vqav2",
        VQAV2_A,
        ("vqav2-no-majority", _question(3, 9), "ten different answers: use multiple_choice_answer"),
    ),
    *_rows(
        "vqav2",
        VQAV2_Q,
        ("vqav2-not-annotated", _question(4, 9), "question without annotation: drop the round, report it"),
    ),
    *_rows(
        "vqav2",
        VQAV2_A,
        ("vqav2-empty-answer", _question(5, 9), "empty multiple_choice_answer: drop the round, report it"),
    ),
    *_rows(
        "vqav2",
        "coco/train2017",
        ("vqav2-image-missing", f"{_file(MISSING_COCO)}.jpg", "no file on disk: reject the conversation, report it"),
    ),
    *_rows(
        "okvqa",
        OKVQA_A,
        (
            "okvqa-article",
            str(ids.okvqa(_train(6), 0)),
            "stemming leaves an empty answer: fall back to raw_answer or drop, never write an empty turn",
        ),
        ("okvqa-tie", str(ids.okvqa(_train(7), 0)), "two answers four times each: the first one wins"),
        (
            "okvqa-two-questions",
            str(ids.okvqa(_train(8), 1)),
            "second question of an image (...6): same conversation as the first",
        ),
    ),
    *_rows(
        "aokvqa",
        AOKVQA,
        (
            "aokvqa-duplicate-choices",
            ids.aokvqa("train", 26),
            "two equal choices: rotate the index, do not search the text",
        ),
        (
            "aokvqa-two-questions",
            ids.aokvqa("train", 27, 1),
            "second question of an image: merge, then rotate both together",
        ),
    ),
    *_rows(
        "gqa",
        GQA,
        ("gqa-leading-zero", ids.gqa_question("train", 0, 0), "the key is a string; its leading zero belongs to it"),
        (
            "gqa-leading-zero-twin",
            ids.gqa_question("train", 0, 0).lstrip("0"),
            "another question, equal to the first as a number",
        ),
        ("gqa-global-null", ids.gqa_question("train", 2, 0), "groups.global is null: accept"),
        ("gqa-argument-space", ids.gqa_question("train", 3, 0), "an argument of the program ends in a space: accept"),
    ),
    *_rows(
        "ocrvqa",
        "ocr_vqa/images",
        ("ocrvqa-gif", f"{ids.book(3)}.jpg", "GIF bytes behind a .jpg name: decide by content, convert to RGB JPEG"),
        ("ocrvqa-png", f"{ids.book(4)}.png", "found by its other extension; convert and call it .jpg"),
        ("ocrvqa-image-missing", f"{ids.book(6)}.jpg", "no file on disk: reject the conversation, report it"),
        (
            "ocrvqa-image-truncated",
            f"{ids.book(7)}.jpg",
            "does not decode to the end: reject the conversation, report it",
        ),
    ),
    *_rows(
        "ocrvqa",
        BOOKS,
        ("ocrvqa-author-empty", ids.book(8), "no author question: the conversation begins with the title"),
        ("ocrvqa-author-star", ids.book(9), 'the author is "*": keep the answer'),
        ("ocrvqa-key-lost-zero", ids.book(1), "nine digits: the key is a string, do not pad it"),
        ("ocrvqa-key-x", ids.book(2), "the key ends in X: a string"),
        ("ocrvqa-key-b0", ids.book(5), "the key is an ASIN: a string"),
    ),
    *_rows(
        "textcaps",
        OCR,
        ("textcaps-no-token", ids.sign(2), "empty token list: the OCR line stays, with its trailing space"),
        ("textcaps-token-comma", ids.sign(3), 'a token ends in a comma: join with ", " all the same'),
        ("textcaps-token-quotes", ids.sign(4), "a token holds quotes: keep them"),
        ("textcaps-token-not-ascii", ids.sign(5), "a token outside ASCII: keep it"),
    ),
    *_rows(
        "textcaps",
        "textvqa/train_images",
        ("textcaps-grey", f"{ids.sign(6)}.jpg", "one-channel JPEG: store as it is, decode to RGB"),
    ),
    *_rows(
        "textcaps",
        "textcaps/TextCaps_0.1_train.json",
        (
            "textcaps-image-path",
            ids.sign(0),
            "image_path says train/, the folder is train_images/: build the path from image_id",
        ),
    ),
    *_rows(
        "vg",
        "vg/VG_100K_2",
        ("vg-empty-file", f"{ids.vg(42)}.jpg", "0 bytes in the folder that url names: take the good copy in VG_100K"),
    ),
    *_rows(
        "vg",
        REGIONS,
        ("vg-negative-y", str(ids.vg_region(43, 99)), "clip the box to the picture"),
        ("vg-outside", str(ids.vg_region(44, 99)), "wholly outside the picture: drop the region, report it"),
        ("vg-zero-width", str(ids.vg_region(45, 99)), "no area: drop the region, report it"),
        ("vg-over-edge", str(ids.vg_region(46, 99)), "clip the box to the picture"),
        ("vg-phrase-newline", str(ids.vg_region(47, 0)), "strip the trailing newline"),
        ("vg-phrase-double-space", str(ids.vg_region(48, 0)), "keep the double space inside the phrase"),
        ("vg-phrase-full-stop", str(ids.vg_region(49, 0)), "exactly one full stop in the text, never two"),
        (
            "vg-phrase-duplicate",
            str(ids.vg_region(50, 99)),
            "same phrase and box as region 0 of the image: both are candidates",
        ),
        ("vg-phrase-empty", str(ids.vg_region(51, 99)), "empty phrase: drop the region, report it"),
    ),
    *_rows(
        "vg",
        f"vg/{ids.vg_folder(52)}",
        (
            "vg-exif-rotated",
            f"{ids.vg(52)}.jpg",
            "EXIF orientation 6: image_data and boxes fit the turned picture, so turn it",
        ),
    ),
    *_rows(
        "refcoco",
        UNC,
        (
            "refcoco-file-name",
            str(ids.reference(9, 0)),
            "file_name ends in _<n>.jpg, here _16: take the name from instances.json or strip the suffix",
        ),
    ),
    *_rows(
        "refcoco",
        INSTANCES,
        ("refcoco-rle", str(ids.annotation(10, 0)), "segmentation is a run-length dict: accept, only bbox is used"),
        ("refcoco-over-edge", str(ids.annotation(11, 8)), "the box ends 0.38 pixels outside: clip"),
        ("refcoco-zero-area", str(ids.annotation(12, 9)), "no area: drop the expressions, report them"),
    ),
    *_rows(
        "refcoco",
        UNC,
        ("refcoco-empty-expression", str(ids.reference(13, 0)), "one empty sentence: drop it, report it"),
        ("refcoco-capitals", str(ids.reference(14, 0)), "raw is in capitals: use sent"),
        (
            "refcoco-equal-sentences",
            str(ids.reference(15, 8)),
            "the same sentence as a ref of another object of the image: keep both",
        ),
    ),
    *_rows(
        "refcoco",
        "refcoco/refcocog/refs(google).p",
        (
            "refcoco-google-overlap",
            str(ids.reference(40, 8)),
            "val ref of an image that train refs use too: evaluate on the umd split",
        ),
    ),
    *_rows(
        "sharegpt",
        CHATS,
        ("sharegpt-gpt-first", ids.chat(26), "begins with gpt: drop the leading answer"),
        ("sharegpt-system-first", ids.chat(27), "begins with system: drop the system turn"),
        ("sharegpt-single-turn", ids.chat(28), "one turn: reject, report it"),
        ("sharegpt-not-alternating", ids.chat(29), "two human turns in a row: reject, report it"),
        ("sharegpt-zero-width", ids.chat(30), "an answer is only U+200B: empty, never a target"),
        ("sharegpt-unknown-role", ids.chat(31), 'role "tool": reject, report it'),
        ("sharegpt-user-chatgpt", ids.chat(32), "roles user and chatgpt mean human and gpt"),
        ("sharegpt-extra-keys", ids.chat(33), "unknown keys beside from and value: ignore"),
        ("sharegpt-continuation", ids.chat(34, 1), "a later chunk: only chunk 0 is used"),
        ("sharegpt-long", ids.chat(35), "longer than 2048 tokens: cut after the last pair that fits"),
        ("sharegpt-odd-human", ids.chat(36), "ends with a human turn: drop that turn"),
        ("sharegpt-html", ids.chat(37), "raw HTML of the site: reject, and name the release's html_cleaned files"),
        ("sharegpt-escaped", ids.chat(38), "escaped underscore in an answer: the text is kept as it is"),
    ),
    *_rows(
        "llava_instruct",
        INSTRUCT,
        ("instruct-image-back", _file(3), "<image> stands behind the question: keep it there in LLaVA's form"),
        ("instruct-odd-turns", _file(2), "ends with a human turn: drop that turn"),
        ("instruct-empty-value", _file(27), "empty answer: drop the round, report it"),
    ),
    *_rows(
        "lcs558k",
        LCS,
        ("lcs-trailing-spaces", ids.web(5), "the caption is kept as it is"),
        ("lcs-image-first", ids.web(6), "<image> before the prompt"),
        ("lcs-image-last", ids.web(7), "<image> behind the prompt"),
    ),
    *_rows(
        "lcs558k",
        f"lcs558k/images/{ids.web(8)[:5]}",
        ("lcs-cmyk", f"{ids.web(8)}.jpg", "four-channel JPEG: store as it is, decode to RGB"),
    ),
    *_rows(
        "lcs558k",
        f"lcs558k/images/{ids.web(9)[:5]}",
        ("lcs-grey", f"{ids.web(9)}.jpg", "one-channel JPEG: store as it is, decode to RGB"),
    ),
    *_rows(
        "llava_json",
        MIX,
        ("mix-int-id", str(ids.vg(1)), "GQA rows have int ids: keep the type"),
        ("mix-empty-ocr", ids.sign(2), "the OCR line ends in a space: keep it"),
        ("mix-text-row", ids.chat(0), 'no image key, "model": "": keep both facts'),
        ("mix-turn-keys", ids.chat(1), "a gpt turn has text and markdown beside value: keep for the way back"),
        ("mix-row-key", ids.book(10), "a row has a key nobody knows: keep for the way back"),
        ("mix-duplicate-id", _file(24), "one id on several rows: never a key"),
    ),
)

RECORD: dict[str, str] = {item.name: item.record for item in DIRT}
"""Record id by name of the irregularity."""
