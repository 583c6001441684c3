"""Embeddings of a mixture's images by a vision tower, for cluster-balanced subsets (`mixture.selection.kmeans`)."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import atomic_write
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.batches import UNREADABLE
from vlmix.train.export import MODEL
from vlmix.train.images import ImageGeometry, decode, normalise
from vlmix.train.weights.pretrained import Tower, check_size, load_tower, loading


def embed(
    data: str, where: str, out: Path, batch: int = 32, progress: Callable[[str, int, int], None] = lambda *_: None
) -> int:
    """Write `id` and `embedding` (float32) of every sample with an image to the Parquet file `out`; how many there are.

    `where` names a tower as a training recipe does, or a run whose tower is taken. An embedding is the mean over a
    sample's images, and over their patches, of the tower's last hidden state. Samples of the same images are looked at
    once. Raises VlmixError if there are no images or one does not decode.
    """
    mixture = open_mixture(data)
    tower = _tower(where)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = tower.model.to(device).eval()
    vision = ImageGeometry(tower.side, tower.patch, tower.mean, tower.std)
    images, (values,) = mixture.image_fields("xxh3")
    each = iter(values.to_pylist())
    hashes = ["".join(islice(each, count)) for count in images.tolist()]
    positions = {name: position for position, name in reversed(list(enumerate(hashes))) if name}
    if not positions:
        raise VlmixError(f"{data} has no images to embed")
    names = sorted(positions, key=lambda name: positions[name])
    counts = images[[positions[name] for name in names]]
    found: list[NDArray[np.float32]] = []
    pictures = _pictures(mixture, [positions[name] for name in names], vision)
    while pixels := list(islice(pictures, batch)):
        with torch.inference_mode():
            seen = model(normalise(torch.stack(pixels).to(device), vision.mean, vision.std), output_hidden_states=True)
            found.append(seen.hidden_states[-1][:, int(tower.has_cls) :].mean(dim=1).float().cpu().numpy())
        progress("images", sum(map(len, found)), int(counts.sum()))
    rows = np.add.reduceat(np.concatenate(found), np.cumsum(counts) - counts) / counts[:, None].astype(np.float32)
    row_of = {name: row for row, name in enumerate(names)}
    shown = [(id, row_of[name]) for id, name in zip(mixture.column("id").to_pylist(), hashes) if name]
    vectors = pa.array(rows[[row for _, row in shown]].reshape(-1), pa.float32())
    table = pa.table(
        {
            "id": pa.array([id for id, _ in shown], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(vectors, rows.shape[1]),
        }
    )
    with atomic_write(out) as file:
        pq.write_table(table, file, compression="zstd")
    return len(shown)


def _pictures(mixture: Mixture, positions: list[int], vision: ImageGeometry) -> Iterator[torch.Tensor]:
    """[3, side, side] uint8 of every image of these samples."""
    for position in positions:
        sample = mixture[position]
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
