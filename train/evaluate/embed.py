"""Embeddings of pictures by a vision tower: of a mixture's samples, for cluster-balanced subsets
(`mixture.selection.kmeans`), and of an evaluation set's questions, to find them in a mixture (`mixture.overlaps`)."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vlmix.mixture.benchmark.benchmark import EvaluationSet, Question, image_files
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.image_index import ImageIndex
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.selection.embeddings import Made, write_embeddings
from vlmix.train.batches import UNREADABLE
from vlmix.train.export import MODEL
from vlmix.train.images import ImageGeometry, decode, normalise
from vlmix.train.weights.pretrained import Tower, check_size, load_tower, loading

Progress = Callable[[str, int, int], None]
_TOGETHER = 32  # samples that are read at a time


def embed(data: str, where: str, out: Path, batch: int = 32, progress: Progress = lambda *_: None) -> int:
    """Write `id` and `embedding` (float32) of every sample with an image to the Parquet file `out`; how many there are.

    `where` names a tower as a training recipe does, or a run whose tower is taken. An embedding is the mean over a
    sample's images, and over their patches, of the tower's last hidden state. Samples of the same images are looked at
    once. Raises VlmixError if there are no images or one does not decode.
    """
    mixture = open_mixture(data)
    images, (values,) = mixture.image_fields("xxh3")
    each = iter(values.to_pylist())
    hashes = ["".join(islice(each, count)) for count in images.tolist()]
    positions = {name: position for position, name in reversed(list(enumerate(hashes))) if name}
    if not positions:
        raise VlmixError(f"{data} has no images to embed")
    names = sorted(positions, key=lambda name: positions[name])
    counts = images[[positions[name] for name in names]]
    eye = _Eye.of(where)
    pictures = _pictures(mixture, [positions[name] for name in names], eye.vision)
    found = eye.see(pictures, batch, int(counts.sum()), progress)
    rows = np.add.reduceat(found, np.cumsum(counts) - counts) / counts[:, None].astype(np.float32)
    row_of = {name: row for row, name in enumerate(names)}
    shown = [(id, row_of[name]) for id, name in zip(mixture.column("id").to_pylist(), hashes) if name]
    made = eye.made(mixture=mixture.manifest.name)
    write_embeddings(out, [id for id, _ in shown], rows[[row for _, row in shown]], made)
    return len(shown)


@dataclass(frozen=True)
class Embedded:
    """How many questions an embedding file has, and how many have a picture that was not found, or does not decode."""

    rows: int
    not_found: int
    unreadable: int


def embed_questions(
    asked: EvaluationSet, where: str, out: Path, batch: int = 32, progress: Progress = lambda *_: None
) -> Embedded:
    """Write `id` and `embedding` of an evaluation set's questions to the Parquet file `out`, as `embed` does of
    samples. Questions of the same picture are looked at once. Raises VlmixError if not one picture is there.
    """
    shown: dict[object, list[Question]] = {}
    for question in asked.benchmark.questions(asked.folder, asked.split):
        held = question.image_bytes
        if question.image or held is not None:
            shown.setdefault(question.image or (held if isinstance(held, bytes) else question.id), []).append(question)
    eye, index = _Eye.of(where), ImageIndex(asked.image_roots, asked.benchmark.images)
    seen: list[list[Question]] = []
    troubles = {False: 0, True: 0}

    def pictures() -> Iterator[torch.Tensor]:
        for same in shown.values():
            there = False
            for data in _held(same[0], index):
                there = True
                try:
                    pixels = eye.vision.tiles(decode(data))[0]
                except UNREADABLE:
                    continue
                seen.append(same)
                yield pixels
                break
            else:
                troubles[there] += len(same)

    name = f"{asked.benchmark.name} {asked.split}".strip()
    found = eye.see(pictures(), batch, len(shown), progress)
    if not len(found):
        raise VlmixError(f"{name}: {_none(len(shown))}")
    rows = [(question.id, row) for row, same in enumerate(seen) for question in same]
    made = eye.made(benchmark=asked.benchmark.name, split=asked.split)
    write_embeddings(out, [id for id, _ in rows], found[[row for _, row in rows]], made)
    return Embedded(len(rows), troubles[False], troubles[True])


def _none(pictures: int) -> str:
    if not pictures:
        return "its questions have no pictures to embed"
    return f"of its {pictures:,} pictures none was found that decodes; name their folder with --images"


def _held(question: Question, index: ImageIndex) -> Iterator[bytes]:
    """What may be a question's picture, the likeliest first."""
    held = question.image_bytes
    if held is not None:
        yield held() if callable(held) else held
        return
    for path in image_files(question, index):
        yield path.read_bytes()


@dataclass(frozen=True)
class _Eye:
    """A tower that looks at pictures."""

    name: str
    tower: Tower
    vision: ImageGeometry

    @classmethod
    def of(cls, where: str) -> "_Eye":
        tower = _tower(where)
        name = Path(where).name if Path(where).is_absolute() else where
        return cls(name, tower, ImageGeometry(tower.side, tower.patch, tower.mean, tower.std))

    def see(self, pictures: Iterator[torch.Tensor], batch: int, count: int, progress: Progress) -> NDArray[np.float32]:
        """[n, D] what the tower says of pictures [3, side, side], about `count` of them."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = self.tower.model.to(device).eval()
        found: list[NDArray[np.float32]] = []
        while pixels := list(islice(pictures, batch)):
            shown = normalise(torch.stack(pixels).to(device), self.vision.mean, self.vision.std)
            with torch.inference_mode():
                seen = model(shown, output_hidden_states=True).hidden_states[-1]
                found.append(seen[:, int(self.tower.has_cls) :].mean(dim=1).float().cpu().numpy())
            progress("images", sum(map(len, found)), count)
        return np.concatenate(found) if found else np.empty((0, 0), dtype=np.float32)

    def made(self, mixture: str = "", benchmark: str = "", split: str = "") -> Made:
        vision, digest = self.vision, hashlib.sha256()
        for value in self.tower.model.state_dict().values():
            digest.update(value.detach().float().cpu().contiguous().numpy())
        how = (
            f"mean of the patches' last hidden states, pictures padded to squares of {vision.side} pixels, "
            f"mean {vision.mean}, std {vision.std}"
        )
        return Made(
            mixture=mixture, benchmark=benchmark, split=split, tower=self.name, weights=digest.hexdigest(), how=how
        )


def _pictures(mixture: Mixture, positions: list[int], vision: ImageGeometry) -> Iterator[torch.Tensor]:
    """[3, side, side] uint8 of every image of these samples."""
    parts = (positions[start : start + _TOGETHER] for start in range(0, len(positions), _TOGETHER))
    for sample in chain.from_iterable(map(mixture.read, parts)):
        for jpeg in sample.jpegs:
            try:
                yield vision.tiles(decode(jpeg))[0]
            except UNREADABLE:
                raise VlmixError(
                    f"{sample.id}: its image does not decode; `vlmix verify {mixture.folder.name}` lists damage"
                ) from None


def _tower(where: str) -> Tower:
    """A tower by its name, or that of a run's export."""
    exported = next(
        (path for path in (Path(where) / MODEL, Path(where)) if (path / "processor_config.json").exists()), None
    )
    if exported is None:
        return load_tower(where, torch.float32)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with loading(where, exported):
        check_size(where, exported)
        model = AutoModelForImageTextToText.from_pretrained(exported, dtype=torch.float32, trust_remote_code=False)
        images = AutoProcessor.from_pretrained(exported, trust_remote_code=False).image_processor
    config = model.config.vision_config
    side = int(images.crop_size["height"])
    mean, std = tuple(images.image_mean), tuple(images.image_std)
    has_cls = model.config.vision_feature_select_strategy == "default"
    return Tower(model.model.vision_tower, mean, std, side, has_cls, int(config.patch_size))
