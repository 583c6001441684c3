from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("transformers")

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.helpers import vlmix_here
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.evaluate.embed import embed
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
