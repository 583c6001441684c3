"""Planted overlaps: pictures under other names, sizes and qualities, texts with other spaces and cases."""

import inspect
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.helpers import planted_benchmark
from tests.helpers import vlmix as command
from vlmix.builders import benchmark_named, known_sources
from vlmix.builders.layout import picture_id
from vlmix.cli.overlaps import overlaps as overlaps_command
from vlmix.mixture.benchmark.answers import Answer, Answers
from vlmix.mixture.benchmark.benchmark import EvaluationSet, Question
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.overlaps import embeddings, table, text
from vlmix.mixture.overlaps.find import Alike, find
from vlmix.mixture.overlaps.fingerprints import NEAR, fingerprints, near
from vlmix.mixture.overlaps.questions import Asked
from vlmix.mixture.render import SHORT_ANSWER
from vlmix.mixture.selection.embeddings import Made, write_embeddings


def picture(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """A field of soft colours, no two of them alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def middle(image: Image.Image, share: float) -> Image.Image:
    x, y = image.width * share / 2, image.height * share / 2
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "double": lambda image: image.resize((image.width * 2, image.height * 2)),
    "middle": lambda image: middle(image, 0.1),
    "corner": lambda image: image.crop((0, 24, 288, 240)),
    "left": lambda image: image.crop((32, 0, 320, 240)),
    "low": lambda image: image.crop((0, 0, 320, 192)),
    "padded": lambda image: ImageOps.expand(image, (0, 40), (122, 116, 104)),
}


@pytest.mark.parametrize("kind", ["q30", *KINDS])
def test_a_changed_picture_is_near_its_own_and_no_other(kind: str) -> None:
    prints = [fingerprints(jpeg(picture(seed)), crops=True) for seed in range(40)]
    known, owners = np.concatenate(prints), np.repeat(np.arange(40), [len(each) for each in prints])
    changed = [KINDS[kind](picture(seed)) if kind in KINDS else picture(seed) for seed in range(40)]
    queries = [fingerprints(jpeg(image, 30)) for image in changed]
    asked = np.repeat(np.arange(40), [len(each) for each in queries])
    found: dict[int, set[int]] = {}
    for query, rows in near(np.concatenate(queries), known):
        found.setdefault(int(asked[query]), set()).update(owners[rows[:, 0]].tolist())
    assert found == {number: {number} for number in range(40)}


def test_a_mirrored_picture_is_near_if_mirrors_are_looked_for() -> None:
    mirrored = fingerprints(jpeg(ImageOps.mirror(picture(0))))
    assert not list(near(mirrored, fingerprints(jpeg(picture(0)))))
    assert list(near(mirrored, fingerprints(jpeg(picture(0)), flipped=True)))


def test_flat_pictures_are_like_nothing() -> None:
    assert not len(fingerprints(jpeg(Image.new("RGB", (100, 100), (200, 10, 10))), crops=True))


@pytest.mark.parametrize("most", [0, 31, 64])
def test_near_finds_what_counting_all_bits_finds(most: int) -> None:
    rng = np.random.default_rng(most)
    known = rng.integers(0, 256, (500, 32), dtype=np.uint8)
    queries = known[rng.integers(0, 500, 300)] ^ np.packbits(rng.random((300, 256)) < rng.random((300, 1)) / 2, axis=1)
    distances = np.bitwise_count(queries[:, None] ^ known[None]).sum(axis=2)
    expected = {(q, k, int(distances[q, k])) for q, k in np.argwhere(distances <= most).tolist()}
    assert expected
    assert {(q, k, d) for q, rows in near(queries, known, most) for k, d in rows.tolist()} == expected


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mixture` of LLaVA rows, and `questions/`, the pictures of an evaluation set."""
    folder = tmp_path_factory.mktemp("overlaps")
    raw = folder / "raw"

    def put(path: str, data: bytes) -> str:
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_bytes(data)
        return path

    train = "coco/train2017/{:012d}.jpg".format
    pictures = {
        "first": put(train(1), jpeg(picture(1))),
        "again": put(train(2), jpeg(picture(1))),
        "near": put(train(3), jpeg(picture(1), 40)),
        "other": put(train(4), jpeg(picture(4))),
        "asked": put(train(5), jpeg(picture(5))),
        "text": None,
        "spaced": None,
    }
    said = dict.fromkeys(pictures, ("What is it?", "A field.")) | {"spaced": ("What  is IT?", "A field.")}
    rows = [
        {
            **({"image": path} if path else {}),
            "id": name,
            "conversations": [
                {"from": "human", "value": f"{'<image>' + chr(10) if path else ''}{said[name][0]}"},
                {"from": "gpt", "value": said[name][1]},
            ],
        }
        for name, path in pictures.items()
    ]
    (raw / "rows.json").write_text(json.dumps(rows))
    recipe = {"name": "mine", "sources": {"own": {"builder": "llava_json", "path": "rows.json"}}}
    build(parse(recipe, known_sources()), known_sources(), raw, folder / "mixture")
    for name, data in {
        "coco/val2014/COCO_val2014_000000000005.jpg": jpeg(picture(50)),
        "bytes.jpg": jpeg(picture(4)),
        "smaller.jpg": jpeg(KINDS["half"](picture(4)), 30),
        "clean.jpg": jpeg(picture(6)),
        "broken.jpg": jpeg(picture(7))[:200],
    }.items():
        path = folder / "questions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def asked(folder: Path, *images: str, answer: str | None = None) -> Asked:
    questions = [Question(id=image, image=image, text=f"What is it?\n{SHORT_ANSWER}") for image in images]
    labels = None if answer is None else dict.fromkeys(images, ("something else", answer))
    own = planted_benchmark("planted", questions, labels)
    return Asked(EvaluationSet(benchmark=own, data=folder / "questions"))


def test_duplicates_are_the_same_picture_and_the_same_text(mine: Path) -> None:
    overlaps = find(mine / "mixture", picture_id=picture_id)
    names = {
        id: id.rpartition("/")[2].partition("#")[0] for id in Reader.open(mine / "mixture").column("id").to_pylist()
    }
    rows = overlaps.rows.to_pylist()
    groups = [{names[row["id"]], names[row["other"]]} for row in rows]
    assert set().union(*groups) == {"first", "again", "near", "text", "spaced"} and len(rows) == 3
    assert all(row["level"] == "text" for row in rows if names[row["id"]] in ("text", "spaced"))
    near_rows = [row for row in rows if row["level"] == "near"]
    ((one, other),) = [[fingerprints(jpeg(picture(1), quality)) for quality in (90, 40)]]
    assert [row["distance"] for row in near_rows] == [
        int(np.bitwise_count(one[:, None] ^ other[None]).sum(axis=2).min())
    ]


def test_pictures_of_questions_are_found_by_id_bytes_and_looks(mine: Path) -> None:
    images = "coco/val2017/000000000005.jpg", "bytes.jpg", "smaller.jpg", "clean.jpg", "broken.jpg"
    overlaps = find(mine / "mixture", [asked(mine, *images)], picture_id=picture_id, workers=2)
    mixture = Reader.open(mine / "mixture")
    names = {id: id.rpartition("/")[2].partition("#")[0] for id in mixture.column("id").to_pylist()}
    rows = [row for row in overlaps.rows.to_pylist() if row["benchmark"]]
    assert {(names[row["id"]], row["level"], row["other"]) for row in rows} == {
        ("asked", "id", images[0]),
        ("other", "bytes", "bytes.jpg"),
        ("other", "near", "bytes.jpg"),
        ("other", "near", "smaller.jpg"),
    }
    checked = overlaps.about.checked[1]
    assert checked.unreadable == ["broken.jpg"] and "text" in checked.unchecked
    assert overlaps.seen("planted", "") == set(images[:3])
    assert overlaps.seen("planted", "", ["bytes"]) == {"bytes.jpg"}


def test_pictures_of_the_mixture_that_do_not_decode_are_named(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name, data in (("whole", jpeg(picture(0))), ("cut", jpeg(picture(1))[:4000])):
        (raw / "coco/train2017").mkdir(parents=True, exist_ok=True)
        (raw / f"coco/train2017/{name}.jpg").write_bytes(data)
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A field."}]
    rows = [{"id": n, "image": f"coco/train2017/{n}.jpg", "conversations": said} for n in ("whole", "cut")]
    (raw / "rows.json").write_text(json.dumps(rows))
    recipe = {"name": "mine", "sources": {"own": {"builder": "llava_json", "path": "rows.json"}}}
    build(parse(recipe, known_sources()), known_sources(), raw, tmp_path / "mixture", check="header")
    overlaps = find(tmp_path / "mixture", picture_id=picture_id)
    assert overlaps.about.checked[0].unreadable == ["coco/train2017/cut.jpg"]


def test_levels_that_were_not_compared_are_named(mine: Path) -> None:
    overlaps = find(mine / "mixture", [asked(mine, "bytes.jpg", "gone.jpg")], picture_id=picture_id)
    assert "1 of its pictures" in overlaps.about.checked[1].unchecked["near"]
    assert overlaps.about.checked[1].levels == [] and "id" in overlaps.about.checked[1].unchecked


def test_of_a_question_that_many_ask_some_are_listed(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_LISTED", 3)
    overlaps = find(mine / "mixture", [asked(mine, "clean.jpg", answer="a field")], picture_id=picture_id)
    assert sum(row["level"] == "text" and row["benchmark"] == "planted" for row in overlaps.rows.to_pylist()) == 3
    assert overlaps.about.checked[1].not_listed == 4


def test_embeddings_are_compared_where_they_were_made(mine: Path, tmp_path: Path) -> None:
    """The picture of `clean.jpg` is embedded as that of the sample `other` is, a little turned."""
    ids = Reader.open(mine / "mixture").column("id").to_pylist()
    shown = [id for id in ids if not id.rpartition("/")[2].startswith(("text", "spaced"))]
    rows = np.eye(len(shown), 8)
    other = next(number for number, id in enumerate(shown) if "other" in id)
    turned = 0.99 * rows[other] + np.sqrt(1 - 0.99**2) * np.eye(8)[7]
    write_embeddings(tmp_path / "mixture", shown, rows, Made(mixture="mine", tower="t", weights="w", how="h"))
    asked_file = Made(benchmark="planted", tower="t", weights="w", how="h")
    write_embeddings(tmp_path / "questions", ["clean.jpg"], turned[None], asked_file)

    def compared(cosine: float, *images: str) -> table.Overlaps:
        files = embeddings.read([tmp_path / "mixture", tmp_path / "questions"])
        sets = [asked(mine, *images)]
        return find(mine / "mixture", sets, picture_id=picture_id, embeddings=Alike(files, cosine))

    found = compared(0.97, "clean.jpg")
    [row] = [row for row in found.rows.to_pylist() if row["level"] == "embedding"]
    assert (row["other"], row["id"], row["cosine"]) == ("clean.jpg", shown[other], pytest.approx(0.99))
    assert "embedding" in found.about.checked[1].levels
    assert found.seen("planted", "", table.PICTURES) == {"clean.jpg"}
    assert not compared(0.995, "clean.jpg").seen("planted", "")
    left = compared(0.97, "clean.jpg", "smaller.jpg").about.checked[1]
    assert left.unchecked["embedding"] == "questions with a picture that have no embedding: 1"
    assert "embedding" not in left.levels


@pytest.mark.parametrize(("answer", "found"), [("a  FIELD", True), ("a field of colours", False)])
def test_questions_are_found_by_their_text_with_a_right_answer(mine: Path, answer: str, found: bool) -> None:
    overlaps = find(mine / "mixture", [asked(mine, "clean.jpg", answer=answer)], picture_id=picture_id)
    rows = [row for row in overlaps.rows.to_pylist() if row["benchmark"]]
    assert {(row["level"], row["other"]) for row in rows} == ({("text", "clean.jpg")} if found else set())
    assert len(rows) == (7 if found else 0)
    assert overlaps.about.checked[1].levels == ["bytes", "near", "text"], "clean.jpg is no picture of a known dataset"


def test_questions_that_begin_alike_are_different_questions() -> None:
    """Of a megabyte, too: half of all texts of a document begin with it."""
    document = "It was a field of soft colours. " * 40_000
    questions = [Question(id=name, image="", text=f"{document}Who is {name}?") for name in ("Anna", "Bert")]
    said = [([0], [[questions[1].text.upper(), "a painter"]])]
    hashes = text.rounds_of((np.array(positions), turns) for positions, turns in said)
    assert text.asked_in(questions, dict.fromkeys(("Anna", "Bert"), ("A painter.",)), *hashes) == ([("Bert", 0)], 0)


@pytest.mark.parametrize(
    ("same", "path"),
    [
        ("coco/9", "coco/train2017/000000000009.jpg"),
        ("coco/9", "coco/val2014/COCO_val2014_000000000009.jpg"),
        ("coco/9", "coco/val2017/000000000009.jpg"),
        ("coco test/9", "coco/test2015/COCO_test2015_000000000009.jpg"),
        ("vg/2315", "vg/VG_100K_2/2315.jpg"),
        ("vg/2315", "gqa/images/2315.jpg"),
        ("gqa/images/n2315", "gqa/images/n2315.jpg"),
        ("textvqa/train_images/0a1", "textvqa/train_images/0a1.jpg"),
        ("coco/9", "train2017/000000000009.jpg"),
        ("coco/9", "COCO_val2014_000000000009.jpg"),
        ("", "1.jpg"),
        ("", "images/1.jpg"),
    ],
)
def test_one_picture_has_one_id_wherever_it_lies(same: str, path: str) -> None:
    assert picture_id(path) == same


@pytest.mark.parametrize("name", ["pope", "gqa", "mme", "aokvqa-choice", "vqav2", "okvqa"])
def test_labels_are_the_answers_that_the_official_rule_rewards(raw: Path, name: str) -> None:
    benchmark = benchmark_named(name)
    folder = EvaluationSet(benchmark=benchmark, data=raw).folder
    labels = benchmark.labels(folder)
    best = {id: max(known, key=list(known).count) for id, known in labels.items()}
    rows = [Answer(question_id=question.id, text=best[question.id]) for question in benchmark.questions(folder)]
    # People differ over VQA's answers; 200 is the most for a task of MME.
    least = {"vqav2": 60, "okvqa": 50, "mme": 200}.get(name, 100)
    assert benchmark.score(Answers(rows), folder).score >= least


def test_an_overlaps_file_is_of_one_mixture(mine: Path, mixture: Path, tmp_path: Path) -> None:
    path = tmp_path / "overlaps.parquet"
    overlaps = find(mine / "mixture", picture_id=picture_id)
    table.write(path, overlaps)
    read = table.read(path, Reader.open(mine / "mixture"))
    assert read.about == overlaps.about and read.rows.equals(overlaps.rows.cast(table.SCHEMA))
    with pytest.raises(VlmixError, match="not of "):
        table.read(path, Reader.open(mixture))
    with pytest.raises(VlmixError, match="not with pope"):
        read.checked("pope", "")
    table.pq.write_table(table.pq.read_table(path).drop_columns(["other"]), tmp_path / "narrow.parquet")
    with pytest.raises(VlmixError, match="no overlaps file"):
        table.read(tmp_path / "narrow.parquet")
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(VlmixError, match="no overlaps file"):
        table.read(tmp_path / "other.parquet")


def test_the_command_compares_by_default_as_the_library_does() -> None:
    defaults = {name: each.default for name, each in inspect.signature(overlaps_command).parameters.items()}
    assert (defaults["near"], defaults["cosine"]) == (NEAR, embeddings.ALIKE)


def test_the_command_writes_beside_a_mixture_and_never_into_it(mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "overlaps.parquet"
    shown = command("overlaps", mine / "mixture", "--out", out)
    assert shown.returncode == 0, shown.stderr
    assert out.is_file() and "near" in shown.stdout
    command("subsample", mine / "mixture", "--ratio", "0.5", "--out", tmp_path / "view")
    for of in (mine / "mixture", tmp_path / "view"):
        inside = command("overlaps", of, "--out", mine / "mixture/overlaps.parquet")
        assert inside.returncode == 1 and "inside of the mixture" in inside.stderr


def test_a_score_tells_seen_questions_from_those_that_were_found_clean(
    raw: Path, mixture: Path, tmp_path: Path
) -> None:
    """The oracle is the same rule over answer files that hold the questions of one part alone."""
    gqa, data = benchmark_named("gqa"), tmp_path / "data"
    shutil.copytree(raw / "gqa", data / "gqa", ignore=shutil.ignore_patterns("images"))  # pictures are not at hand
    path, answers = tmp_path / "overlaps.parquet", tmp_path / "answers.jsonl"
    overlaps = find(mixture, [Asked(EvaluationSet(benchmark=gqa, data=data))], picture_id=picture_id)
    table.write(path, overlaps)
    seen = overlaps.seen("gqa", "")
    questions = gqa.questions(data / "gqa")
    assert 0 < len(seen) < len(questions)
    rows = [{"question_id": q.id, "text": "yes"} for q in questions]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["gqa", "--answers", answers, "--annotations", raw / "gqa", "--overlaps", path]
    said = json.loads(command("score", *options, "--json").stdout)
    for name, ids in (("text_seen", seen), ("clean", {q.id for q in questions} - seen)):
        part = [Answer(question_id=id, text="yes") for id in ids]
        alone = gqa.score(Answers(part, asked=frozenset(ids)), raw / "gqa")
        assert (said[name]["score"], said[name]["answered"]) == (pytest.approx(alone.score), len(ids))
    assert said["picture_seen"] is None and said["unchecked"].keys() == {"bytes", "near"}
    shown = command("score", *options).stdout
    assert "clean by id, text" in shown and "not compared by near" in shown
