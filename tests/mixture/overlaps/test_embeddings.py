"""Embeddings of samples and questions, compared; the oracle is SciPy."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.overlaps.embeddings import pairs, read
from vlmix.mixture.selection.embeddings import Made, write_embeddings

OF_MIXTURE = {"mixture": "mine"}
OF_SET = {"benchmark": "gqa", "split": "val"}


def made(of: dict[str, str], weights: str = "w", how: str = "mean") -> Made:
    return Made(**of, tower="tower", weights=weights, how=how)


def write(path: Path, ids: list[str], rows: NDArray[np.float64], said: Made) -> Path:
    write_embeddings(path, ids, rows.astype(np.float32), said)
    return path


def test_pairs_are_those_that_comparing_all_finds(tmp_path: Path) -> None:
    """Samples over several parts of a file, of pictures that others show too, shuffled, some of them unknown."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(3_000, 6)) * rng.uniform(0.1, 100, (3_000, 1))
    shown, asked = rng.integers(0, 3_000, 9_000), rng.integers(0, 3_000, 200)
    samples = pictures[shown]
    questions = pictures[asked] + rng.normal(size=(200, 6)) * rng.uniform(0, 1, (200, 1))
    questions[1] = questions[0]
    sample_names, question_names = [f"s/{n}" for n in range(9_000)], [f"q/{n}" for n in range(200)]
    one = write(tmp_path / "s.parquet", sample_names, samples, made(OF_MIXTURE))
    two = write(tmp_path / "q.parquet", question_names, questions, made(OF_SET))
    files = read([two, one])
    known = ["text", *(sample_names[n] for n in rng.permutation(9_000)[:5_000])]
    wanted = ["later", *reversed(question_names)]
    found = pairs(files.samples, files.questions["gqa", "val"], known, wanted, at_least=0.9)
    assert (found.samples_left, found.questions_left) == (1, 1)
    cosines = 1 - cdist(samples, questions, "cosine")
    place = {name: n for n, name in enumerate(known)}
    expected = {
        (known[place[sample_names[s]]], question_names[q]): cosines[s, q]
        for s, q in np.argwhere(cosines >= 0.9)
        if sample_names[s] in place
    }
    got = {(known[s], wanted[q]): c for s, q, c in zip(found.samples, found.questions, found.cosines)}
    assert len(expected) > 1_000 and len(got) == len(found.samples)
    assert got.keys() == expected.keys()
    assert np.allclose([got[pair] for pair in expected], list(expected.values()), atol=1e-6)
    assert list(zip(found.questions, found.samples)) == sorted(zip(found.questions, found.samples))


def test_the_same_embedding_has_a_cosine_of_one(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 384))
    names = [str(n) for n in range(50)]
    one = write(tmp_path / "s.parquet", names, rows, made(OF_MIXTURE))
    two = write(tmp_path / "q.parquet", names, rows * 3, made(OF_SET))
    files = read([one, two])
    found = pairs(files.samples, files.questions["gqa", "val"], names, names, at_least=1)
    assert found.samples.tolist() == found.questions.tolist() == list(range(50)) and found.cosines.max() <= 1


def test_nothing_alike_is_no_pair(tmp_path: Path) -> None:
    files = read(
        [
            write(tmp_path / "s.parquet", ["a"], np.array([[1.0, 0]]), made(OF_MIXTURE)),
            write(tmp_path / "q.parquet", ["b"], np.array([[0.0, 1]]), made(OF_SET)),
        ]
    )
    found = pairs(files.samples, files.questions["gqa", "val"], ["a"], ["b"])
    assert not len(found.samples) and not len(found.cosines) and (found.samples_left, found.questions_left) == (0, 0)


@pytest.mark.parametrize(
    ("said", "width", "message"),
    [
        (made(OF_SET, weights="v"), 2, "q.parquet was made by tower .* embed both with the same --vision-tower"),
        (made(OF_SET, how="cls"), 2, "embed both with the same --vision-tower"),
        (made(OF_SET), 3, "q.parquet has embeddings of 3 components"),
        (made({"mixture": "other"}), 2, "s.parquet is of the mixture mine, .*q.parquet of the mixture other; name one"),
    ],
)
def test_files_that_do_not_compare_are_refused(tmp_path: Path, said: Made, width: int, message: str) -> None:
    one = write(tmp_path / "s.parquet", ["a"], np.ones((1, 2)), made(OF_MIXTURE))
    two = write(tmp_path / "q.parquet", ["b"], np.ones((1, width)), said)
    with pytest.raises(VlmixError, match=message):
        read([one, two])


def test_files_of_unknown_towers_and_no_mixture_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "embedding": [[1.0]]}), tmp_path / "own.parquet")
    with pytest.raises(VlmixError, match="does not say which tower made it; make it with `vlmix embed`"):
        read([tmp_path / "own.parquet"])
    two = write(tmp_path / "q.parquet", ["b"], np.ones((1, 2)), made(OF_SET))
    with pytest.raises(VlmixError, match="no embedding file is of a mixture"):
        read([two])
    bad = write(tmp_path / "s.parquet", ["b"], np.array([[np.inf, 1]]), made(OF_MIXTURE))
    with pytest.raises(VlmixError, match="row 1 is zero or not finite"):
        read([bad])


def test_ids_of_others_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "s.parquet", ["a", "b"], np.ones((2, 2)), made(OF_MIXTURE))
    two = write(tmp_path / "q.parquet", ["c", "d"], np.ones((2, 2)), made(OF_SET))
    files = read([one, two])
    questions = files.questions["gqa", "val"]
    with pytest.raises(VlmixError, match=r"q.parquet: 'd' is no question of this set; embed its questions again"):
        pairs(files.samples, questions, ["a"], ["c"])
    with pytest.raises(VlmixError, match=r"s.parquet is of other samples; its first id is 'a'"):
        pairs(files.samples, questions, ["x"], ["c", "d"])
    with pytest.raises(VlmixError, match="from a cosine of 0.5 to 1 on, not of 0.2"):
        pairs(files.samples, questions, ["a"], ["c", "d"], at_least=0.2)
    assert pairs(files.samples, questions, ["a"], ["c", "d"]).questions.tolist() == [0, 1]


@pytest.mark.parametrize("most", [5, 8])
def test_a_tower_that_sees_all_alike_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Nine pairs, of three pictures with three, or of one with one."""
    monkeypatch.setattr("vlmix.mixture.overlaps.embeddings._MOST", most)
    for spread in (0, 1e-3):
        rows = np.ones((3, 2)) + spread * np.arange(6).reshape(3, 2)
        one = write(tmp_path / "s.parquet", ["a", "b", "c"], rows, made(OF_MIXTURE))
        files = read([one, write(tmp_path / "q.parquet", ["a", "b", "c"], rows, made(OF_SET))])
        with pytest.raises(VlmixError, match=f"q.parquet: more than {most} pairs .* raise the cosine"):
            pairs(files.samples, files.questions["gqa", "val"], ["a", "b", "c"], ["a", "b", "c"])
        monkeypatch.setattr("vlmix.mixture.overlaps.embeddings._MOST", 9)
        assert len(pairs(files.samples, files.questions["gqa", "val"], ["a", "b", "c"], ["a", "b", "c"]).samples) == 9
        monkeypatch.setattr("vlmix.mixture.overlaps.embeddings._MOST", most)
