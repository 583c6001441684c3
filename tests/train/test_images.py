import io
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from vlmix.mixture.mixture import open as open_mixture  # noqa: E402
from vlmix.torch import ImageCollator, StepDataset, make_loader  # noqa: E402
from vlmix.train.images import CLIP_MEAN, CLIP_STD, decode, normalise, to_square  # noqa: E402


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours with edges, like a photograph and unlike noise."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([128 + 100 * np.sin(x / 37), 128 + 100 * np.cos(y / 23), (x + y) % 256], axis=-1)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 10)
    return Image.fromarray(pixels.astype(np.uint8))


def llava(image: Image.Image, side: int) -> Image.Image:
    """LLaVA's way: `expand2square`, then Pillow's bicubic."""
    long = max(image.size)
    square = Image.new("RGB", (long, long), tuple(int(255 * m) for m in CLIP_MEAN))
    square.paste(image, ((long - image.width) // 2, (long - image.height) // 2))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


SIZES = [(640, 480), (480, 640), (500, 376), (333, 500), (1024, 683), (100, 90), (512, 512), (1500, 200), (150, 1001)]


def assert_close(ours: torch.Tensor, theirs: Image.Image) -> None:
    difference = (ours.int() - as_tensor(theirs).int()).abs()
    assert difference.max() <= 4 and (difference > 1).float().mean() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_padding_is_llavas(size: tuple[int, int]) -> None:
    image = photograph(*size)
    assert_close(to_square(as_tensor(image), 336), llava(image, 336))


@pytest.mark.parametrize("size", SIZES)
def test_cropping_is_the_short_side_and_the_middle_as_clips_processor_cuts_it(size: tuple[int, int]) -> None:
    image = photograph(*size)
    width, height = (int(224 * edge / min(size)) for edge in size)
    left, top = (width - 224) // 2, (height - 224) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    assert_close(to_square(as_tensor(image), 224, "crop"), resized)


def test_stretching_fills_the_square_and_small_images_have_one_too() -> None:
    image = photograph(640, 480)
    assert_close(to_square(as_tensor(image), 32, "stretch"), image.resize((32, 32), Image.Resampling.BICUBIC))
    for size in [(50, 3), (2, 999), (1, 1)]:
        for fitting in ("pad", "crop", "stretch"):
            assert to_square(as_tensor(photograph(*size)), 8, fitting).shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_colour_space_is_decoded_to_rgb(mode: str) -> None:
    out = io.BytesIO()
    photograph(64, 48).convert(mode).save(out, "JPEG")
    assert decode(out.getvalue()).shape == (3, 48, 64)
    with pytest.raises(OSError):
        decode(out.getvalue()[:200])


def test_normalising_is_clips() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    assert torch.allclose(normalise(pixels), (pixels / 255 - mean) / std, atol=1e-5)
    assert normalise(pixels, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_steps_are_the_schedules_with_any_number_of_workers(mixture: Path) -> None:
    opened = open_mixture(mixture)
    schedule = opened.schedule(16)
    steps = StepDataset(opened, schedule, ImageCollator(side=32), rank=1, world=2)
    alone = [steps[step] for step in range(3, 9)]
    for workers in (0, 2):
        loaded = list(make_loader(steps, 3, 9, workers))
        for step, batch, expected in zip(range(3, 9), loaded, alone, strict=True):
            ids = [opened[i].id for i in schedule.rank_batch(step, 1, 2).tolist()]
            assert [sample.id for sample in batch.samples] == ids
            assert torch.equal(batch.images, expected.images)
            assert len(batch.images) == sum(sample.image != "" for sample in batch.samples)
