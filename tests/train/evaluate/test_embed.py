import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("transformers")

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.helpers import vlmix_here
from vlmix.builders import benchmark_named
from vlmix.mixture.benchmark.benchmark import EvaluationSet
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.image_index import ImageIndex
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.overlaps.embeddings import pairs, read
from vlmix.mixture.selection.embeddings import read_embeddings
from vlmix.train.evaluate.embed import embed, embed_questions
from vlmix.train.images import decode, normalise, to_square


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    folder = tmp_path_factory.mktemp("tower")
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


def test_embeddings_are_the_towers_and_select_by_clusters(mixture: Path, tower: Path, tmp_path: Path) -> None:
    out = tmp_path / "embeddings.parquet"
    count = embed(str(mixture), str(tower), out, batch=7)
    table = pq.read_table(out)
    opened = open_mixture(mixture)
    shown = [i for i, image in enumerate(opened.column("image").to_pylist()) if image]
    assert count == table.num_rows == len(shown)
    assert table["id"].to_pylist() == [opened.column("id")[i].as_py() for i in shown]
    model = CLIPVisionModel.from_pretrained(tower).eval()
    for row in (0, 31, len(shown) - 1):
        jpeg = opened[shown[row]].jpeg
        assert jpeg is not None
        with torch.inference_mode():
            hidden = model(normalise(to_square(decode(jpeg), 16)[None]), output_hidden_states=True).hidden_states[-1]
        expected = hidden[0, 1:].mean(dim=0).numpy()
        assert np.allclose(table["embedding"][row].as_py(), expected, atol=1e-5)
    done = vlmix_here(
        "subsample", mixture, "--by", "clusters", "--embeddings", out, "--ratio", "0.2", "--out", tmp_path / "view"
    )
    assert done.returncode == 0, done.stderr
    assert len(open_mixture(tmp_path / "view")) == round(0.2 * len(opened))


def test_the_embedding_of_several_images_is_their_mean(several: Path, tower: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "embeddings.parquet", list[tuple[int, int]]()
    opened = open_mixture(several)
    shown = [sample for sample in opened if sample.images]
    count = embed(str(several), str(tower), out, batch=7, progress=lambda what, done, of: seen.append((done, of)))
    assert count == len(shown) == 55 and seen[-1] == (165, 165)
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [sample.id for sample in shown]
    model = CLIPVisionModel.from_pretrained(tower).eval()
    for sample, row in list(zip(shown, table["embedding"].to_pylist()))[:12]:
        squares = torch.stack([to_square(decode(jpeg), 16) for jpeg in sample.jpegs])
        with torch.inference_mode():
            hidden = model(normalise(squares), output_hidden_states=True).hidden_states[-1]
        assert np.allclose(row, hidden[:, 1:].mean(dim=(0, 1)).numpy(), atol=1e-5)


def test_a_mixture_without_images_has_no_embeddings(mixture: Path, tower: Path, tmp_path: Path) -> None:
    open_mixture(mixture).subset(where="image = ''").save(tmp_path / "text")
    with pytest.raises(VlmixError, match="has no images to embed"):
        embed(str(tmp_path / "text"), str(tower), tmp_path / "embeddings.parquet")


def test_questions_are_embedded_as_samples_are(mixture: Path, raw: Path, tower: Path, tmp_path: Path) -> None:
    """VQAv2's training questions, whose pictures the mixture shows, byte for byte."""
    asked = EvaluationSet(benchmark=benchmark_named("vqav2"), data=raw, split="train")
    found = embed_questions(asked, str(tower), tmp_path / "questions.parquet", batch=5)
    embed(str(mixture), str(tower), tmp_path / "samples.parquet", batch=7)
    questions = asked.benchmark.questions(asked.folder, "train")
    index = ImageIndex([raw], asked.benchmark.images)
    lost = sum(not index.candidates(question.image) for question in questions)
    assert (found.rows, found.not_found, found.unreadable) == (len(questions) - lost, lost, 0) and found.rows > lost > 0
    files = read([tmp_path / "questions.parquet", tmp_path / "samples.parquet"])
    of_set = files.questions["vqav2", "train"]
    opened = open_mixture(mixture)
    ids = opened.column("id").to_pylist()
    alike = pairs(files.samples, of_set, ids, [question.id for question in questions], at_least=1)
    images = opened.column("image").to_pylist()
    expected = {
        (s, q) for q, question in enumerate(questions) for s, path in enumerate(images) if path == question.image
    }
    assert expected and expected <= set(zip(alike.samples.tolist(), alike.questions.tolist()))
    assert alike.samples_left == images.count("") and alike.questions_left == lost


def test_a_question_without_a_picture_has_no_embedding(raw: Path, tower: Path, tmp_path: Path) -> None:
    """One picture is missing, another one is damaged."""
    benchmark = benchmark_named("refcoco")
    asked = EvaluationSet(benchmark=benchmark, data=raw, split="testA")
    images = sorted({question.image for question in benchmark.questions(asked.folder, "testA")})
    shutil.copytree(raw / "refcoco", tmp_path / "eval" / "refcoco")
    index = ImageIndex([raw], benchmark.images)
    for number, image in enumerate(images[1:]):
        file = tmp_path / "eval" / image
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(index.candidates(image)[0].read_bytes() if number else b"nothing")
    done = vlmix_here(
        *("embed", "--benchmark", "refcoco:testA", "--data", tmp_path / "eval", "--vision-tower", tower),
        *("--out", tmp_path / "e.parquet", "--json"),
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    shown = [question.image for question in benchmark.questions(asked.folder, "testA")]
    assert counts["not_found"] == shown.count(images[0]) and counts["unreadable"] == shown.count(images[1])
    assert counts["rows"] + counts["not_found"] + counts["unreadable"] == len(shown)
    assert pq.read_table(tmp_path / "e.parquet").num_rows == counts["rows"] > 0
    assert "pictures that were not found" in done.stderr and "pictures that do not decode" in done.stderr
    shutil.rmtree(tmp_path / "eval" / "coco")
    with pytest.raises(VlmixError, match=r"refcoco testA: of its \d+ pictures none was found that decodes"):
        nowhere = EvaluationSet(benchmark=benchmark, data=tmp_path / "eval", split="testA")
        embed_questions(nowhere, str(tower), tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()


def test_other_weights_are_another_tower(mixture: Path, tower: Path, tmp_path: Path) -> None:
    model = CLIPVisionModel.from_pretrained(tower)
    with torch.no_grad():
        next(model.parameters())[3] += 1
    model.save_pretrained(tmp_path / "other")
    said = []
    for where in (tower, tmp_path / "other"):
        embed(str(mixture), str(where), tmp_path / "e.parquet")
        said.append(read_embeddings(tmp_path / "e.parquet").made)
    assert said[0] and said[1] and said[0].weights != said[1].weights and said[0].how == said[1].how
    assert said[0].tower == tower.name and said[1].tower == "other" and said[0].mixture


@pytest.mark.parametrize("more", [[], ["mixture", "--benchmark", "gqa"]])
def test_one_of_mixture_and_benchmark_is_embedded(more: list[str], tmp_path: Path) -> None:
    done = vlmix_here("embed", *more, "--vision-tower", "x", "--out", tmp_path / "e.parquet")
    assert done.returncode == 2 and "name a mixture or a --benchmark, one of them" in " ".join(done.stderr.split())
