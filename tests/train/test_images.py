import io
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from mixture import open as open_mixture  # noqa: E402
from train.images import CLIP_MEAN, CLIP_STD, decode, normalise, to_square  # noqa: E402
from train.loader import Steps, load  # noqa: E402


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


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 375), (333, 500), (1024, 683), (100, 90)])
def test_padding_agrees_with_llavas_but_for_the_seam(size: tuple[int, int]) -> None:
    image = photograph(*size)
    ours, theirs = to_square(as_tensor(image), 336).int(), as_tensor(llava(image, 336)).int()
    difference = (ours - theirs).abs().amax(dim=0)
    inner = round(min(size) * 336 / max(size))
    offset = (336 - inner) // 2
    small, large = sorted(size)
    if (
        small * 336 % large == 0 and (large - small) // 2 * 336 % large == 0
    ):  # else the two pixel grids are shifted by a fraction
        along = difference.amax(dim=0 if size[0] < size[1] else 1)  # worst pixel of each line across the seam
        keep = [i for i in range(336) if min(abs(i - offset), abs(i - offset - inner)) > 4]
        assert along[keep].max() <= 2
    assert difference.float().mean() < 3
    assert ours.shape == (3, 336, 336)


def test_a_square_image_is_pillows_resize() -> None:
    image = photograph(512, 512)
    difference = to_square(as_tensor(image), 336).int() - as_tensor(llava(image, 336)).int()
    assert difference.abs().max() <= 2 and difference.abs().float().mean() < 0.1


def test_cropping_is_the_short_side_and_the_middle() -> None:
    image = photograph(640, 480)
    ours = to_square(as_tensor(image), 224, "crop").int()
    resized = image.resize((299, 224), Image.Resampling.BICUBIC).crop((37, 0, 261, 224))
    assert (ours - as_tensor(resized).int()).abs().float().mean() < 1.5
    assert to_square(as_tensor(photograph(50, 3)), 8, "crop").shape == (3, 8, 8)
    assert to_square(as_tensor(photograph(2, 999)), 8).shape == (3, 8, 8)
    assert to_square(as_tensor(image), 32, "stretch").shape == (3, 32, 32)


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


def test_steps_are_the_orders_with_any_number_of_workers(mixture: Path) -> None:
    opened = open_mixture(mixture)
    order = opened.order(16)
    steps = Steps(opened, order, rank=1, world=2, side=32)
    alone = [steps[step] for step in range(3, 9)]
    for workers in (0, 2):
        loaded = list(load(steps, 3, 9, workers))
        assert [batch.step for batch in loaded] == list(range(3, 9))
        for batch, expected in zip(loaded, alone, strict=True):
            assert batch.positions.tolist() == order.share(batch.step, 1, 2).tolist()
            assert [sample.id for sample in batch.samples] == [opened[int(i)].id for i in batch.positions]
            assert torch.equal(batch.images, expected.images)
            assert len(batch.images) == sum(sample.image != "" for sample in batch.samples)
