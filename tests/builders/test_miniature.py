"""The sample: same bytes, official formats, true texts, and every irregularity where `DIRT` says."""

import hashlib
import io
import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile, ImageOps

from vlmix.builders import known_benchmarks
from vlmix.builders.miniature import DIRT, SIZES, SampleReport, ids, write_sample
from vlmix.builders.miniature.dirt import MISSING_COCO, ONLY_2014, RECORD
from vlmix.builders.miniature.scenes import COLORS, KINDS, Scene
from vlmix.builders.miniature.stock import coco_scene, gqa_scene, vg_scene
from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.io.image_index import ImageIndex

PLURAL = {kind.plural: name for name, kind in KINDS.items()}


class NoGlobals(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> SampleReport:
    return write_sample(tmp_path_factory.mktemp("sample") / "raw")


@pytest.fixture(scope="module")
def raw(report: SampleReport) -> Path:
    return report.root


def load(raw: Path, path: str) -> Any:
    return json.loads((raw / path).read_bytes())


def refs(raw: Path, path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = NoGlobals(io.BytesIO((raw / path).read_bytes()), encoding="latin1").load()
    return rows


def hashes(root: Path, pattern: str = "**/*") -> dict[str, str]:
    files = sorted(path for path in root.glob(pattern) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def by_id(rows: list[dict[str, Any]], key: str, name: str) -> dict[str, Any]:
    return next(row for row in rows if str(row[key]) == RECORD[name])


def dominant(image: Image.Image, point: tuple[int, int]) -> str:
    pixel = image.convert("RGB").getpixel(point)
    assert isinstance(pixel, tuple)
    return min(COLORS, key=lambda color: sum((a - b) ** 2 for a, b in zip(pixel, COLORS[color], strict=True)))


def test_two_runs_write_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(raw)


def test_another_seed_keeps_the_names_and_changes_the_pictures(raw: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "other", seed=1)
    first, second = hashes(raw), hashes(tmp_path / "other")
    assert first.keys() == second.keys()
    pictures = [path for path in first if path.startswith("coco/")]
    assert sum(first[path] == second[path] for path in pictures) == 0


def test_a_folder_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_and_a_killed_run_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw.partial").mkdir()
    (tmp_path / "raw.partial" / "left_over").write_text("")
    steps: list[tuple[str, int, int]] = []
    write_sample(tmp_path / "raw", progress=lambda *step: steps.append(step))
    assert not (tmp_path / "raw.partial").exists()
    assert not (tmp_path / "raw" / "left_over").exists()
    assert [done for _, done, _ in steps] == list(range(1, len(steps) + 1))
    assert {total for _, _, total in steps} == {len(steps)}


def test_report_counts_what_lies_on_disk(report: SampleReport) -> None:
    files = [path for path in report.root.rglob("*") if path.is_file()]
    assert report.bytes == sum(path.stat().st_size for path in files) < 6_000_000
    annotations = {str(path.relative_to(report.root)) for path in files if path.suffix in (".json", ".p", ".txt")}
    assert report.records.keys() == annotations
    assert sum(report.images.values()) == len(files) - len(annotations)


ANSWER = {"answer": str, "answer_confidence": str, "answer_id": int}
FORMATS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "vqav2/v2_OpenEnded_mscoco_{}2014_questions.json": (
        ("questions",),
        {"image_id": int, "question": str, "question_id": int},
    ),
    "vqav2/v2_mscoco_{}2014_annotations.json": (
        ("annotations",),
        {
            "question_type": str,
            "multiple_choice_answer": str,
            "answers": [ANSWER],
            "image_id": int,
            "answer_type": str,
            "question_id": int,
        },
    ),
    "okvqa/OpenEnded_mscoco_{}2014_questions.json": (
        ("questions",),
        {"image_id": int, "question": str, "question_id": int},
    ),
    "okvqa/mscoco_{}2014_annotations.json": (
        ("annotations",),
        {
            "image_id": int,
            "answer_type": str,
            "question_type": str,
            "question_id": int,
            "answers": [{**ANSWER, "raw_answer": str}],
        },
    ),
    "aokvqa/aokvqa_v1p0_{}.json": (
        (),
        {
            "split": str,
            "image_id": int,
            "question_id": str,
            "question": str,
            "choices": [str],
            "correct_choice_idx": int,
            "direct_answers": [str],
            "difficult_direct_answer": bool,
        },
    ),
    "textcaps/TextCaps_0.1_{}.json": (
        ("data",),
        {"image_id": str, "image_path": str, "caption_str": str, "image_width": int, "image_height": int},
    ),
    "textcaps/TextVQA_Rosetta_OCR_v0.2_{}.json": (("data",), {"image_id": str, "ocr_tokens": [str]}),
    "textcaps/TextVQA_0.5.1_{}.json": (
        ("data",),
        {"question_id": int, "image_id": str, "question": str, "answers": [str]},
    ),
}
GQA = {
    "semantic": [{"operation": str, "argument": str}],
    "question": str,
    "imageId": str,
    "isBalanced": bool,
    "groups": dict,
    "answer": str,
    "types": {"semantic": str, "structural": str},
}
LLAVA = {"id": str, "image": str, "conversations": [{"from": str, "value": str}]}
REF = {
    "file_name": str,
    "ann_id": int,
    "ref_id": int,
    "image_id": int,
    "split": str,
    "sentences": [{"raw": str, "sent_id": int, "sent": str}],
}


def fits(value: Any, shape: Any) -> bool:
    """Exact keys and exact types, lists item by item."""
    if isinstance(shape, dict):
        return (
            isinstance(value, dict)
            and value.keys() == shape.keys()
            and all(fits(value[key], shape[key]) for key in shape)
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    return type(value) is shape


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("path", FORMATS)
def test_split_files_have_the_fields_that_are_read(raw: Path, path: str, part: str) -> None:
    keys, shape = FORMATS[path]
    rows = load(raw, path.format(part))
    for key in keys:
        rows = rows[key]
    assert len(rows) > 15
    assert all(fits(row, shape) for row in rows)


@pytest.mark.parametrize(
    "path", ["vqav2/v2_mscoco_val2014_annotations.json", "okvqa/OpenEnded_mscoco_val2014_questions.json"]
)
def test_vqa_wrappers(raw: Path, path: str) -> None:
    head = load(raw, path)
    assert head["data_subtype"] == "val2014"
    assert ("OK-VQA" in head["info"]["description"]) == path.startswith("okvqa")


def test_vqa_files_join_by_question_id_with_ten_answers(raw: Path) -> None:
    for part in ("train", "val"):
        questions = load(raw, f"vqav2/v2_OpenEnded_mscoco_{part}2014_questions.json")["questions"]
        annotations = load(raw, f"vqav2/v2_mscoco_{part}2014_annotations.json")["annotations"]
        asked, answered = [q["question_id"] for q in questions], [a["question_id"] for a in annotations]
        missing = {int(RECORD["vqav2-not-annotated"])} if part == "train" else set()
        assert set(asked) - set(answered) == missing
        assert asked[:20] != answered[:20]
        assert all(q["question_id"] // 1000 == q["image_id"] for q in questions)
        assert all([a["answer_id"] for a in row["answers"]] == list(range(1, 11)) for row in annotations)
        assert all(row["multiple_choice_answer"] == row["multiple_choice_answer"].lower() for row in annotations)
        assert min(Counter(q["image_id"] for q in questions).values()) >= 3


def test_okvqa_ids_and_answers(raw: Path) -> None:
    rows = load(raw, "okvqa/mscoco_train2014_annotations.json")["annotations"]
    assert {row["question_id"] % 10 for row in rows} == {5, 6}
    assert all(row["question_id"] // 10 == row["image_id"] and len(row["answers"]) == 10 for row in rows)


def test_aokvqa_test_split_has_no_answers(raw: Path) -> None:
    rows = load(raw, "aokvqa/aokvqa_v1p0_test.json")
    assert {tuple(row) for row in rows} == {("split", "image_id", "question", "question_id", "choices")}
    for row in load(raw, "aokvqa/aokvqa_v1p0_train.json"):
        assert len(row["question_id"]) == 22
        assert (len(row["choices"]), len(row["direct_answers"])) == (4, 10)
        assert row["choices"][row["correct_choice_idx"]] in row["direct_answers"]


def test_gqa_files(raw: Path) -> None:
    balanced = {part: load(raw, f"gqa/{part}_balanced_questions.json") for part in ("train", "val", "testdev")}
    for part, questions in balanced.items():
        assert all(fits(question, GQA) for question in questions.values())
        assert all(question["isBalanced"] for question in questions.values())
        assert {question["imageId"].startswith("n") for question in questions.values()} == {part == "testdev"}
        assert set(Counter(question["imageId"] for question in questions.values()).values()) <= set(range(1, 21))
    shards = [load(raw, f"gqa/train_all_questions/train_all_questions_{shard}.json") for shard in (0, 1)]
    assert not shards[0].keys() & shards[1].keys()
    everything = shards[0] | shards[1]
    assert {key: row for key, row in everything.items() if row["isBalanced"]} == balanced["train"]
    assert len(everything) > len(balanced["train"])
    assert all(question["semantic"] for questions in balanced.values() for question in questions.values())


def test_ocrvqa_books(raw: Path) -> None:
    books = load(raw, "ocrvqa/dataset.json")
    shape = {"questions": [str], "answers": [str], "split": int}
    assert all(fits(book, shape) for book in books.values())
    assert {book["split"] for book in books.values()} == {1, 2, 3}
    for key, book in books.items():
        assert 3 <= len(book["questions"]) == len(book["answers"]) <= 5
        title = book["questions"].index("What is the title of this book?")
        assert title == (0 if key == RECORD["ocrvqa-author-empty"] else 1)
        assert all(book["answers"])


def test_visual_genome_files_agree(raw: Path) -> None:
    images = load(raw, "vg/region_descriptions.json")
    shape = {"region_id": int, "width": int, "height": int, "image_id": int, "phrase": str, "y": int, "x": int}
    for image in images:
        assert image.keys() == {"regions", "id"}
        assert 12 <= len(image["regions"]) <= 21
        assert all(fits(region, shape) for region in image["regions"])
    data = load(raw, "vg/image_data.json")
    assert [image["image_id"] for image in data] == [image["id"] for image in images]
    assert {image["url"].split("/")[-2] for image in data} == {"VG_100K", "VG_100K_2"}
    assert all((raw / "vg" / "/".join(image["url"].split("/")[-2:])).exists() for image in data)


PICKLES = [
    "refcoco/refs(unc).p",
    "refcoco/refs(google).p",
    "refcoco+/refs(unc).p",
    "refcocog/refs(umd).p",
    "refcocog/refs(google).p",
]
SPLITS = {"unc": {"train", "val", "testA", "testB"}, "umd": {"train", "val", "test"}, "google": {"train", "val"}}


@pytest.mark.parametrize("path", PICKLES)
def test_refs_load_without_globals_and_point_at_annotations(raw: Path, path: str) -> None:
    rows = refs(raw, f"refcoco/{path}")
    assert (raw / f"refcoco/{path}").read_bytes()[:2] == b"\x80\x02"
    assert all(fits(row, REF) for row in rows)
    assert {row["split"] for row in rows} == SPLITS[path.split("(")[1].split(")")[0]]
    instances = load(raw, f"refcoco/{path.split('/')[0]}/instances.json")
    assert instances.keys() == {"images", "annotations"}
    annotations = {row["id"]: row for row in instances["annotations"]}
    images = {row["id"]: row for row in instances["images"]}
    for row in rows:
        annotation = annotations[row["ann_id"]]
        assert annotation["image_id"] == row["image_id"]
        assert re.sub(r"_\d+(?=\.jpg$)", "", row["file_name"]) == images[row["image_id"]]["file_name"]
        assert all(type(value) is float for value in annotation["bbox"])


def test_llava_style_files(raw: Path) -> None:
    parts = [
        load(raw, f"llava_instruct/{part}.json") for part in ("conversation_58k", "detail_23k", "complex_reasoning_77k")
    ]
    whole = load(raw, "llava_instruct/llava_instruct_150k.json")
    assert whole == [row for part in parts for row in part]
    captions = load(raw, "lcs558k/blip_laion_cc_sbu_558k.json")
    assert all(fits(row, LLAVA) for row in [*whole, *captions])
    for rows in (whole, captions):
        places = Counter(row["conversations"][0]["value"].startswith("<image>\n") for row in rows)
        assert 0.25 < places[True] / len(rows) < 0.75
        assert all(sum(turn["value"].count("<image>") for turn in row["conversations"]) == 1 for row in rows)
    for row in captions:
        assert row["image"] == f"{row['id'][:5]}/{row['id']}.jpg"
        assert (raw / "lcs558k/images" / row["image"]).exists()


def test_sharegpt_ids(raw: Path) -> None:
    rows = load(raw, "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json")
    assert len({row["id"] for row in rows}) == len(rows) == SIZES["sharegpt"] + 1
    assert all(re.fullmatch(r"\w{7}_\d+", row["id"]) for row in rows)


def test_mix_rows_follow_the_official_file(raw: Path) -> None:
    rows = load(raw, "llava_json/llava_v1_5_mix_sample.json")
    prefixes = Counter(row.get("image", "").split("/")[0] for row in rows)
    assert prefixes.keys() == {"coco", "gqa", "ocr_vqa", "textvqa", "vg", ""}
    for row in rows:
        turns = row["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert sum(turn["value"].count("<image>") for turn in turns) == ("image" in row)
        assert "image" not in row or (raw / row["image"]).exists()
        assert all(turn["value"].strip() for turn in turns)
        assert type(row["id"]) is (int if row.get("image", "").startswith("gqa") else str)
    letters = [row for row in rows if row["conversations"][0]["value"].endswith("choices directly.")]
    assert len({row["conversations"][1]["value"] for row in letters}) == len(letters) == 4


def coco_scenes(part: str) -> dict[int, Scene]:
    return {ids.coco(part, index): coco_scene(0, part, index) for index in range(SIZES[f"coco_{part}"])}


@pytest.mark.parametrize("part", ["train", "val"])
def test_vqav2_counts_colours_and_existence_are_true(raw: Path, part: str) -> None:
    scenes = coco_scenes(part)
    annotations = load(raw, f"vqav2/v2_mscoco_{part}2014_annotations.json")["annotations"]
    answers = {row["question_id"]: row["multiple_choice_answer"] for row in annotations}
    checked: Counter[str] = Counter()
    for row in load(raw, f"vqav2/v2_OpenEnded_mscoco_{part}2014_questions.json")["questions"]:
        things, text = scenes[row["image_id"]].things, " ".join(row["question"].split())
        answer = answers.get(row["question_id"])
        if found := re.fullmatch(r"How many (\w+) are there\?", text):
            assert answer == str(sum(thing.kind == PLURAL[found[1]] for thing in things))
            checked["count"] += 1
        elif text == "How many objects are in the picture?":
            assert answer == str(len(things))
        elif found := re.fullmatch(r"What color is the (\w+)\?", text):
            assert [answer] == [thing.color for thing in things if thing.kind == found[1]]
            checked["color"] += 1
        elif found := re.fullmatch(r"Is there an? (\w+) in the picture\?", text):
            assert (answer == "yes") == any(thing.kind == found[1] for thing in things)
            checked["exist"] += 1
        elif found := re.fullmatch(r"Is there an? (\w+) (\w+)\?", text):
            assert (answer == "yes") == any((thing.color, thing.kind) == found.groups() for thing in things)
        elif found := re.fullmatch(r"Is the (\w+) (to the left of|above) the (\w+)\?", text):
            one, other = (next((t for t in things if t.kind == kind), None) for kind in (found[1], found[3]))
            assert one is not None
            assert other is not None
            left = one.x + one.w <= other.x if "left" in found[2] else one.y + one.h <= other.y
            assert (answer == "yes") == left
    assert all(checked[kind] > 8 for kind in ("count", "color", "exist"))


def test_every_object_has_its_colour_in_the_middle_of_its_box(raw: Path) -> None:
    for image_id, scene in coco_scenes("val").items():
        with Image.open(raw / f"coco/val2017/{image_id:012d}.jpg") as image:
            assert image.size == (scene.width, scene.height)
            for thing in scene.things:
                assert dominant(image, thing.center) == thing.color
                assert 0 <= thing.x < thing.x + thing.w <= scene.width
                assert 0 <= thing.y < thing.y + thing.h <= scene.height
        boxes = [thing.box for thing in scene.things]
        for at, (x, y, w, h) in enumerate(boxes):
            assert all(x + w <= a or a + c <= x or y + h <= b or b + d <= y for a, b, c, d in boxes[at + 1 :])


def test_visual_genome_boxes_show_what_the_phrase_says(raw: Path) -> None:
    dirty = {item.record for item in DIRT if item.name.startswith("vg-")}
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in load(raw, "vg/image_data.json")}
    whole = re.compile(rf"an? (?:small |large )?({'|'.join(COLORS)}) ({'|'.join(KINDS)})(?: (?:on|in) the \w+)?", re.I)
    checked = 0
    for index, image in enumerate(load(raw, "vg/region_descriptions.json")):
        width, height = sizes[image["id"]]
        if f"{image['id']}.jpg" in dirty:
            continue
        with Image.open(raw / f"vg/{ids.vg_folder(index)}/{image['id']}.jpg") as picture:
            assert picture.size == (width, height)
            for region in image["regions"]:
                x, y, w, h = region["x"], region["y"], region["width"], region["height"]
                if str(region["region_id"]) not in dirty:
                    assert x >= 0 <= y
                    assert w >= 3 <= h
                    assert x + w <= width
                    assert y + h <= height
                if found := whole.fullmatch(region["phrase"]):
                    assert dominant(picture, (x + w // 2, y + h // 2)) == found[1].lower()
                    checked += 1
    assert checked > 300


def test_refcoco_expressions_fit_one_object_only(raw: Path) -> None:
    scenes = coco_scenes("train") | coco_scenes("refs")
    for path in PICKLES:
        annotations = {
            row["id"]: row for row in load(raw, f"refcoco/{path.split('/')[0]}/instances.json")["annotations"]
        }
        for ref in refs(raw, f"refcoco/{path}"):
            scene, box = scenes[ref["image_id"]], annotations[ref["ann_id"]]["bbox"]
            for sentence in ref["sentences"]:
                if found := re.search(rf"\b({'|'.join(COLORS)}) ({'|'.join(KINDS)})\b", sentence["sent"]):
                    thing = next(t for t in scene.things if (t.color, t.kind) == found.groups())
                    assert all(abs(a - b) < 0.25 for a, b in zip(box, thing.box, strict=True))


def test_gqa_answers_are_true(raw: Path) -> None:
    scenes = {
        ids.gqa(part, index): gqa_scene(0, part, index)
        for part in ("train", "val", "testdev")
        for index in range(SIZES[f"gqa_{part}"])
    }
    checked = 0
    for part in ("train", "val", "testdev"):
        for question in load(raw, f"gqa/{part}_balanced_questions.json").values():
            things = scenes[question["imageId"]].things
            if found := re.fullmatch(r"What color is the (\w+)\?", question["question"]):
                assert [question["answer"]] == [thing.color for thing in things if thing.kind == found[1]]
                checked += 1
            elif found := re.fullmatch(r"What is to the left of the (?:(\w+) )?(\w+)\?", question["question"]):
                (target,) = [t for t in things if t.kind == found[2] and found[1] in (None, t.color)]
                assert [question["answer"]] == [t.kind for t in things if t.x + t.w <= target.x]
                checked += 1
            elif found := re.fullmatch(r"Are there both an? (\w+) and an? (\w+)\?", question["question"]):
                assert (question["answer"] == "yes") == ({found[1], found[2]} <= {t.kind for t in things})
    assert checked > 40


def test_ocr_tokens_are_what_the_captions_say(raw: Path) -> None:
    for part in ("train", "val"):
        captions: dict[str, dict[str, Any]] = {}
        for caption in load(raw, f"textcaps/TextCaps_0.1_{part}.json")["data"]:
            captions.setdefault(caption["image_id"], caption)
        for row in load(raw, f"textcaps/TextVQA_Rosetta_OCR_v0.2_{part}.json")["data"]:
            caption = captions[row["image_id"]]
            assert " ".join(row["ocr_tokens"]) in caption["caption_str"]
            with Image.open(raw / f"textvqa/train_images/{row['image_id']}.jpg") as picture:
                assert picture.size == (caption["image_width"], caption["image_height"])


def test_train_and_evaluation_pictures_are_disjoint(raw: Path) -> None:
    evaluation: set[str] = set(hashes(raw, "coco/val2017/*").values()) | set(hashes(raw, "coco/test2017/*").values())
    reference = {f"{ids.coco('refs', index):012d}.jpg" for index in range(SIZES["coco_refs"])}
    train: set[str] = set()
    for path, digest in (hashes(raw, "coco/train2017/*") | hashes(raw, "coco/train2014/*")).items():
        (evaluation if Path(path).name in reference else train).add(digest)
    gqa = hashes(raw, "gqa/images/*")
    own = {f"gqa/images/{ids.gqa('train', index)}.jpg" for index in range(SIZES["gqa_train"])}
    train |= {digest for path, digest in gqa.items() if path in own}
    train |= set(hashes(raw, "vg/*/*").values())
    evaluation |= {digest for path, digest in gqa.items() if path not in own}
    assert not train & evaluation
    for rows in (refs(raw, "refcoco/refcoco/refs(unc).p"), refs(raw, "refcoco/refcocog/refs(umd).p")):
        used = {(ref["image_id"], ref["split"] == "train") for ref in rows}
        assert len(used) == len({image_id for image_id, _ in used})


def test_irregularities_are_named_once_and_lie_in_existing_places(raw: Path) -> None:
    assert len({item.name for item in DIRT}) == len(DIRT)
    for item in DIRT:
        place = raw / item.file
        assert place.exists(), item
        if place.is_dir():
            assert (place / item.record).exists() != item.name.endswith("image-missing"), item
        elif place.suffix == ".json":
            assert json.dumps(item.record)[1:-1] in place.read_text(), item
        else:
            assert any(str(ref["ref_id"]) == item.record for ref in refs(raw, item.file)), item


def test_coco_files_under_their_2014_name(raw: Path) -> None:
    for index in ONLY_2014:
        name = f"{ids.coco('train', index):012d}.jpg"
        assert (raw / f"coco/train2014/COCO_train2014_{name}").exists()
        assert not (raw / f"coco/train2017/{name}").exists()
    assert not list(raw.rglob(f"*{ids.coco('train', MISSING_COCO):012d}.jpg"))


def test_vqav2_irregularities(raw: Path) -> None:
    questions = load(raw, "vqav2/v2_OpenEnded_mscoco_train2014_questions.json")["questions"]
    annotations = load(raw, "vqav2/v2_mscoco_train2014_annotations.json")["annotations"]
    outer = by_id(questions, "question_id", "vqav2-outer-spaces")["question"]
    assert outer != outer.strip()
    assert "  " in by_id(questions, "question_id", "vqav2-double-spaces")["question"]
    answers = by_id(annotations, "question_id", "vqav2-no-majority")["answers"]
    assert len({answer["answer"] for answer in answers}) == 10
    assert by_id(questions, "question_id", "vqav2-not-annotated")
    assert by_id(annotations, "question_id", "vqav2-empty-answer")["multiple_choice_answer"] == ""
    assert sum(question["question"] != " ".join(question["question"].split()) for question in questions) == 2


def test_okvqa_and_aokvqa_irregularities(raw: Path) -> None:
    rows = load(raw, "okvqa/mscoco_train2014_annotations.json")["annotations"]
    article = by_id(rows, "question_id", "okvqa-article")["answers"]
    assert {(answer["answer"], answer["raw_answer"].lower()) for answer in article} == {("", "a")}
    tie = Counter(answer["answer"] for answer in by_id(rows, "question_id", "okvqa-tie")["answers"])
    assert [count for _, count in tie.most_common()] == [4, 4, 2]
    second = by_id(rows, "question_id", "okvqa-two-questions")
    assert [row["question_id"] % 10 for row in rows if row["image_id"] == second["image_id"]] == [5, 6]
    rows = load(raw, "aokvqa/aokvqa_v1p0_train.json")
    choices = by_id(rows, "question_id", "aokvqa-duplicate-choices")
    assert len(set(choices["choices"])) == 3
    assert choices["choices"].count(choices["choices"][choices["correct_choice_idx"]]) == 1
    two = by_id(rows, "question_id", "aokvqa-two-questions")
    assert sum(row["image_id"] == two["image_id"] for row in rows) == 2


def test_gqa_irregularities(raw: Path) -> None:
    questions = load(raw, "gqa/train_balanced_questions.json")
    zero, twin = RECORD["gqa-leading-zero"], RECORD["gqa-leading-zero-twin"]
    assert zero.startswith("0")
    assert int(zero) == int(twin)
    assert questions[zero]["imageId"] != questions[twin]["imageId"]
    assert questions[RECORD["gqa-global-null"]]["groups"]["global"] is None
    spaced = questions[RECORD["gqa-argument-space"]]
    assert spaced["semantic"][-1]["argument"].endswith(" ")


def test_ocrvqa_irregularities(raw: Path) -> None:
    books, images = load(raw, "ocrvqa/dataset.json"), raw / "ocr_vqa/images"
    with Image.open(images / RECORD["ocrvqa-gif"]) as gif, Image.open(images / RECORD["ocrvqa-png"]) as png:
        assert (gif.format, png.format) == ("GIF", "PNG")
    assert not (images / RECORD["ocrvqa-png"]).with_suffix(".jpg").exists()
    assert not (images / RECORD["ocrvqa-image-missing"]).exists()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with Image.open(images / RECORD["ocrvqa-image-truncated"]) as cut, pytest.raises(OSError, match="truncated"):
        cut.load()
    nobody, star = books[RECORD["ocrvqa-author-empty"]], books[RECORD["ocrvqa-author-star"]]
    assert nobody["questions"][0] == "What is the title of this book?"
    assert star["answers"][0] == "*"
    assert re.fullmatch(r"\d{9}", RECORD["ocrvqa-key-lost-zero"])
    assert re.fullmatch(r"\d{9}X", RECORD["ocrvqa-key-x"])
    assert re.fullmatch(r"B0[0-9A-Z]{8}", RECORD["ocrvqa-key-b0"])


def test_textcaps_irregularities(raw: Path) -> None:
    rows = load(raw, "textcaps/TextVQA_Rosetta_OCR_v0.2_train.json")["data"]
    assert by_id(rows, "image_id", "textcaps-no-token")["ocr_tokens"] == []
    assert any("," in token for token in by_id(rows, "image_id", "textcaps-token-comma")["ocr_tokens"])
    assert any('"' in token for token in by_id(rows, "image_id", "textcaps-token-quotes")["ocr_tokens"])
    assert not all(token.isascii() for token in by_id(rows, "image_id", "textcaps-token-not-ascii")["ocr_tokens"])
    with Image.open(raw / "textvqa/train_images" / RECORD["textcaps-grey"]) as image:
        assert image.mode == "L"
    captions = load(raw, "textcaps/TextCaps_0.1_train.json")["data"]
    grey = [row for row in captions if f"{row['image_id']}.jpg" == RECORD["textcaps-grey"]]
    assert not any(color in row["caption_str"] for row in grey for color in COLORS)
    path = by_id(captions, "image_id", "textcaps-image-path")["image_path"]
    assert path.startswith("train/")
    assert not (raw / "textvqa" / path).exists()


def test_visual_genome_irregularities(raw: Path) -> None:
    images = load(raw, "vg/region_descriptions.json")
    regions = [region for image in images for region in image["regions"]]
    sizes = {row["image_id"]: (row["width"], row["height"]) for row in load(raw, "vg/image_data.json")}

    def find(name: str) -> dict[str, Any]:
        return by_id(regions, "region_id", name)

    assert (raw / "vg/VG_100K_2" / RECORD["vg-empty-file"]).stat().st_size == 0
    with Image.open(raw / "vg/VG_100K" / RECORD["vg-empty-file"]) as good:
        good.load()
    assert find("vg-negative-y")["y"] < 0 < find("vg-negative-y")["y"] + find("vg-negative-y")["height"]
    outside = find("vg-outside")
    assert outside["y"] >= sizes[outside["image_id"]][1]
    assert find("vg-zero-width")["width"] == 0
    over = find("vg-over-edge")
    assert over["x"] + over["width"] > sizes[over["image_id"]][0]
    assert find("vg-phrase-newline")["phrase"].endswith("\n")
    assert "  " in find("vg-phrase-double-space")["phrase"]
    assert find("vg-phrase-full-stop")["phrase"].endswith(".")
    copy = find("vg-phrase-duplicate")
    same = [
        r
        for r in regions
        if (r["image_id"], r["phrase"], r["x"], r["y"]) == (copy["image_id"], copy["phrase"], copy["x"], copy["y"])
    ]
    assert len(same) == 2
    assert find("vg-phrase-empty")["phrase"] == ""
    path = next((raw / "vg").glob(f"*/{RECORD['vg-exif-rotated']}"))
    with Image.open(path) as image:
        size = sizes[int(path.stem)]
        assert image.getexif()[0x0112] == 6
        assert image.size == size[::-1] != size
        turned = ImageOps.exif_transpose(image)
    index = next(index for index in range(SIZES["vg"]) if str(ids.vg(index)) == path.stem)
    assert turned.size == size
    assert all(dominant(turned, thing.center) == thing.color for thing in vg_scene(0, index).things)


def test_refcoco_irregularities(raw: Path) -> None:
    rows = refs(raw, "refcoco/refcoco/refs(unc).p")
    instances = load(raw, "refcoco/refcoco/instances.json")
    widths = {image["id"]: image["width"] for image in instances["images"]}
    assert by_id(rows, "ref_id", "refcoco-file-name")["file_name"].endswith("_16.jpg")
    over = by_id(instances["annotations"], "id", "refcoco-over-edge")
    assert 0 < over["bbox"][0] + over["bbox"][2] - widths[over["image_id"]] < 1
    zero = by_id(instances["annotations"], "id", "refcoco-zero-area")
    assert zero["bbox"][2] == 0.0
    assert any(ref["ann_id"] == zero["id"] for ref in rows)
    empty = [sentence["sent"] for sentence in by_id(rows, "ref_id", "refcoco-empty-expression")["sentences"]]
    assert empty.count("") == 1 < len(empty)
    assert all(
        s["raw"] == s["raw"].upper() != s["sent"] for s in by_id(rows, "ref_id", "refcoco-capitals")["sentences"]
    )
    equal = by_id(rows, "ref_id", "refcoco-equal-sentences")
    sentence = equal["sentences"][0]["sent"]
    same = [
        ref
        for ref in rows
        if ref["image_id"] == equal["image_id"] and sentence in [s["sent"] for s in ref["sentences"]]
    ]
    assert len({ref["ann_id"] for ref in same}) == 2
    google = refs(raw, "refcoco/refcocog/refs(google).p")
    overlap = by_id(google, "ref_id", "refcoco-google-overlap")
    assert overlap["split"] == "val"
    assert any(ref["image_id"] == overlap["image_id"] and ref["split"] == "train" for ref in google)


def test_sharegpt_irregularities(raw: Path) -> None:
    rows = {row["id"]: row["conversations"] for row in load(raw, "sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json")}
    chats = {
        item.name.removeprefix("sharegpt-"): rows[item.record] for item in DIRT if item.name.startswith("sharegpt-")
    }
    roles = {name: [turn["from"] for turn in chat] for name, chat in chats.items()}
    assert roles["gpt-first"][0] == "gpt"
    assert roles["system-first"][0] == "system"
    assert roles["single-turn"] == ["gpt"]
    assert roles["not-alternating"][:2] == ["human", "human"]
    assert "\u200b" in [turn["value"] for turn in chats["zero-width"]]
    assert set(roles["unknown-role"]) - {"human", "gpt"} == {"tool"}
    assert set(roles["user-chatgpt"]) == {"user", "chatgpt"}
    assert all(turn.keys() > {"from", "value"} for turn in chats["extra-keys"])
    assert RECORD["sharegpt-continuation"].endswith("_1")
    assert RECORD["sharegpt-continuation"].removesuffix("_1") + "_0" in rows
    assert sum(len(turn["value"].split()) for turn in chats["long"]) > 2048
    assert len(chats["long"]) == 80
    assert roles["odd-human"][-1] == "human"
    assert "<div" in chats["html"][1]["value"]
    assert "\\_" in chats["escaped"][1]["value"]
    ordinary = [
        chat
        for key, chat in rows.items()
        if key not in {item.record for item in DIRT if item.name.startswith("sharegpt-")}
    ]
    assert len(ordinary) >= 27
    assert all([turn["from"] for turn in chat] == ["human", "gpt"] * (len(chat) // 2) for chat in ordinary)


def test_instruct_and_caption_irregularities(raw: Path) -> None:
    rows = load(raw, "llava_instruct/llava_instruct_150k.json")
    assert by_id(rows, "id", "instruct-image-back")["conversations"][0]["value"].endswith("\n<image>")
    assert len(by_id(rows, "id", "instruct-odd-turns")["conversations"]) % 2 == 1
    assert by_id(rows, "id", "instruct-empty-value")["conversations"][1]["value"] == ""
    rows = load(raw, "lcs558k/blip_laion_cc_sbu_558k.json")
    assert by_id(rows, "id", "lcs-trailing-spaces")["conversations"][1]["value"].endswith("  ")
    assert by_id(rows, "id", "lcs-image-first")["conversations"][0]["value"].startswith("<image>\n")
    assert by_id(rows, "id", "lcs-image-last")["conversations"][0]["value"].endswith("\n<image>")
    for name, mode in (("lcs-cmyk", "CMYK"), ("lcs-grey", "L")):
        with Image.open(next((raw / "lcs558k/images").glob(f"*/{RECORD[name]}"))) as image:
            assert image.mode == mode


def test_mix_irregularities(raw: Path) -> None:
    rows = load(raw, "llava_json/llava_v1_5_mix_sample.json")
    assert type(by_id(rows, "id", "mix-int-id")["id"]) is int
    assert by_id(rows, "id", "mix-empty-ocr")["conversations"][0]["value"].endswith("Reference OCR token: ")
    text = by_id(rows, "id", "mix-text-row")
    assert list(text) == ["id", "model", "conversations"]
    assert text["model"] == ""
    assert list(by_id(rows, "id", "mix-turn-keys")["conversations"][1]) == ["from", "text", "value", "markdown"]
    assert by_id(rows, "id", "mix-row-key").keys() - {"id", "image", "conversations"}
    assert sum(row["id"] == RECORD["mix-duplicate-id"] for row in rows) >= 3


def existence_in(scene: Scene, question: str) -> str:
    found = re.fullmatch(r"Is there an? (\w+) in (?:the|this) image\?", question.partition("\n")[0])
    assert found is not None and found[1] in KINDS, question
    return "yes" if any(thing.kind == found[1] for thing in scene.things) else "no"


@pytest.mark.parametrize(
    ("name", "part", "splits", "count", "full", "all_yes"),
    [
        ("pope", "val", ("adversarial", "random", "popular"), 128, 100.0, 200 / 3),
        ("mme", "mme", ("existence",), 60, 200.0, 50.0),
    ],
)
def test_pope_and_mme_ask_as_often_for_what_is_there_as_for_what_is_not(
    raw: Path, name: str, part: str, splits: tuple[str, ...], count: int, full: float, all_yes: float
) -> None:
    """What the scenes say is worth all points, and "yes" to everything what it is at an even chance: F1 2/3, or half of
    the answers and no pair. Every picture is there."""
    benchmark, folder = known_benchmarks()[name], raw / name
    pictures = range(SIZES["coco_val" if part == "val" else "mme_existence"])
    scenes = {ids.coco(part, index): coco_scene(0, part, index) for index in pictures}
    index = ImageIndex([folder, raw], benchmark.images)
    for split in splits:
        asked = benchmark.questions(folder, split)
        right = {q.id: existence_in(scenes[int(Path(q.image).stem)], q.text) for q in asked}
        assert len(asked) == len(right) == count
        assert Counter(right.values()) == {"yes": len(asked) // 2, "no": len(asked) // 2}
        assert len({(q.image, q.text) for q in asked}) == len(asked)
        assert {int(path.stem[-12:]) for q in asked for path in index.candidates(q.image)} == scenes.keys()
        for texts, worth in ((right, full), (dict.fromkeys(right, "Yes"), all_yes)):
            answers = Answers([Answer(question_id=id, text=text) for id, text in texts.items()])
            assert benchmark.score(answers, folder, split).score == pytest.approx(worth)


def test_the_splits_of_pope_differ_in_what_is_not_there(raw: Path) -> None:
    """As in POPE's paper (section 4.1): the same objects are there; absent ones are random, frequent, or frequent
    beside those that are there."""
    rows = {
        split: [json.loads(line) for line in (raw / f"pope/coco/coco_pope_{split}.json").read_text().splitlines()]
        for split in ("random", "popular", "adversarial")
    }
    for split in rows.values():
        assert [row["question_id"] for row in split] == list(range(1, len(split) + 1))
        assert [row["label"] for row in split] == ["yes", "no"] * (len(split) // 2)
        assert all(fits(row, {"question_id": int, "image": str, "text": str, "label": str}) for row in split)
    there = [[(row["image"], row["text"]) for row in split if row["label"] == "yes"] for split in rows.values()]
    assert there[0] == there[1] == there[2]
    pictures = [{thing.kind for thing in scene.things} for scene in coco_scenes("val").values()]
    often = Counter(kind for picture in pictures for kind in picture)
    asked = {
        split: [often[row["text"].split()[3]] for row in found if row["label"] == "no"] for split, found in rows.items()
    }
    assert sum(asked["popular"]) > max(sum(asked["random"]), sum(asked["adversarial"]))
    beside = Counter((one, other) for picture in pictures for one in picture for other in picture)
    by_id = dict(zip(coco_scenes("val"), pictures))

    def together(split: str) -> int:
        return sum(
            beside[row["text"].split()[3], kind]
            for row in rows[split]
            if row["label"] == "no"
            for kind in by_id[int(row["image"][-16:-4])]
        )

    assert together("adversarial") > max(together("random"), together("popular"))
