import io
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from torch.nn.functional import interpolate  # noqa: E402

from vlmix.mixture.mixture import open as open_mixture  # noqa: E402
from vlmix.torch import ImageCollator, StepDataset, make_loader  # noqa: E402
from vlmix.train.images import CLIP_MEAN, CLIP_STD, decode, normalise, room, to_square  # noqa: E402


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours with edges, like a photograph and unlike noise."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([128 + 100 * np.sin(x / 37), 128 + 100 * np.cos(y / 23), (x + y) % 256], axis=-1)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 10)
    return Image.fromarray(pixels.astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


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
    data = jpeg(photograph(64, 48).convert(mode))
    assert torch.equal(decode(data)[:3], as_tensor(Image.open(io.BytesIO(data)).convert("RGB")))
    with pytest.raises(OSError):
        decode(data[:200])


def test_a_picture_that_pillow_holds_in_several_blocks_is_decoded_too() -> None:
    data = jpeg(photograph(2100, 2050))
    assert torch.equal(decode(data)[:3], as_tensor(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("size", [*SIZES, (640, 639), (7, 5), (336, 100), (100, 336)])
def test_what_lies_beside_a_picture_changes_no_pixel(size: tuple[int, int]) -> None:
    """The rows of a wide one are resized before padding, and a fourth channel goes along."""
    width, height = size
    noise = torch.randint(0, 256, (height, width, 4), dtype=torch.uint8).permute(2, 0, 1)
    if height <= 2 * width:
        padded = torch.tensor([int(255 * m) for m in CLIP_MEAN], dtype=torch.uint8)
        square = padded[:, None, None].repeat(1, max(size), max(size))
        left, top = ((max(size) - edge) // 2 for edge in size)
        square[:, top : top + height, left : left + width] = noise[:3]
        expected = interpolate(square[None], size=(336, 336), mode="bicubic", antialias=True)[0]
        assert torch.equal(to_square(noise, 336), expected)
    for fitting in ("pad", "crop", "stretch"):
        assert torch.equal(to_square(noise, 336, fitting), to_square(noise[:3], 336, fitting))


class Rooms(torch.utils.data.Dataset[bool]):
    def __getitem__(self, tiles: int) -> bool:
        return room(tiles, 4).is_shared()


def test_a_worker_draws_into_memory_that_its_parent_reads() -> None:
    assert list(make_loader(Rooms(), 1, 3, workers=1)) == [True, True]
    assert not Rooms()[1]


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
            assert not any(sample.jpegs for sample in batch.samples)
            assert len(batch.images) == sum(sample.image != "" for sample in batch.samples)
