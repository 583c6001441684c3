"""The image path: from a stored JPEG to the uint8 square that a vision tower's device normalises.

Images stay uint8 until the device, a quarter of the bytes to move. The geometry is that of transformers' processors, to
the pixel, so that an exported model sees what was seen in training. torch's antialiased bicubic on uint8 is within one
grey level of Pillow's, a few at hard edges.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers.image_processing_utils import select_best_resolution

from vlmix.train.config import AspectRatio

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def decode(data: bytes) -> torch.Tensor:
    """[3, H, W] uint8, RGB, laid out channels last: the pixels of an encoded image. Raises what Pillow raises for other
    bytes."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def to_square(
    image: torch.Tensor, side: int, fitting: AspectRatio = "pad", mean: tuple[float, float, float] = CLIP_MEAN
) -> torch.Tensor:
    """[3, side, side] uint8 of an image [3, H, W] uint8.

    `pad`: the whole picture in the middle of a square of the colour int(255 * mean), then resized (LLaVA's
    `expand2square`); `crop`: the short side fills the square, the middle is kept (LLaVA's stage 1); `stretch`: both
    sides fill it.
    """
    height, width = image.shape[1:]
    if fitting == "stretch":
        return _resize(image, side, side)
    if fitting == "crop":
        short = min(height, width)
        resized = _resize(image, int(side * height / short), int(side * width / short))
        top, left = (resized.shape[1] - side) // 2, (resized.shape[2] - side) // 2
        return resized[:, top : top + side, left : left + side]
    return _resize(_squared(image, side, mean), side, side)


def _squared(image: torch.Tensor, side: int, mean: tuple[float, float, float]) -> torch.Tensor:
    """The image [3, H, W] in the middle of a square. Of a banner, whose square would be mostly padding, the long side
    is resized to `side` already."""
    height, width = image.shape[1:]
    long, short = max(height, width), min(height, width)
    if height == width:
        return image
    wide = width > height
    if long > 2 * short:
        image = _resize(image, height, side) if wide else _resize(image, side, width)
    rows, columns = (long, image.shape[2]) if wide else (image.shape[1], long)
    colour = torch.tensor([int(255 * m) for m in mean], dtype=torch.uint8)
    canvas = colour.repeat(columns).expand(rows, -1).contiguous().view(rows, columns, 3)
    canvas.narrow(0 if wide else 1, (long - short) // 2, short).copy_(image.permute(1, 2, 0))
    return canvas.permute(2, 0, 1)


def _resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if image.shape[1:] == (height, width):
        return image
    # Channels last is what makes torch's uint8 kernel three times as fast as Pillow's.
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return interpolate(batch, size=(height, width), mode="bicubic", antialias=True)[0]


@dataclass(frozen=True)
class ImageGeometry:
    """How images become tokens: pixels of `side`, patches of `patch`, and with `grids` the tiles of LLaVA-NeXT."""

    side: int
    patch: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    image_aspect_ratio: AspectRatio = "pad"
    tile_grids: tuple[tuple[int, int], ...] | None = None
    """(rows, columns) of tiles that an image may be cut into, beside its global view."""
    merge: int = 1
    """Patches along each side of a square that become one token."""

    @property
    def pinpoints(self) -> list[list[int]]:
        """The grids in pixels (height, width), as LlavaNextConfig names them."""
        return [[rows * self.side, columns * self.side] for rows, columns in self.tile_grids or ()]

    def tokens(self, width: int, height: int) -> int:
        """Tokens of an image of this size in pixels, row ends included."""
        edge = self.side // self.patch // self.merge
        if self.tile_grids is None:
            return edge * edge
        rows, columns = self._grid(width, height)
        high, wide = rows * edge, columns * edge
        if width / height > wide / high:
            high -= (high - int(round(height * (wide / width), 7))) // 2 * 2
        else:
            wide -= (wide - int(round(width * (high / height), 7))) // 2 * 2
        return edge * edge + high * (wide + 1)

    def tiles(self, image: torch.Tensor) -> torch.Tensor:
        """[V, 3, side, side] uint8 of an image [3, H, W]: the square alone; or with grids the whole image, stretched,
        and its tiles row by row, as transformers' LlavaNextImageProcessor makes them."""
        if self.tile_grids is None:
            return to_square(image, self.side, self.image_aspect_ratio, self.mean)[None]
        height, width = image.shape[1:]
        rows, columns = self._grid(width, height)
        high, wide = rows * self.side, columns * self.side
        if wide / width < high / height:
            size = min(math.ceil(height * (wide / width)), high), wide
        else:
            size = high, min(math.ceil(width * (high / height)), wide)
        canvas = torch.zeros((3, high, wide), dtype=torch.uint8)
        top, left = (high - size[0]) // 2, (wide - size[1]) // 2
        canvas[:, top : top + size[0], left : left + size[1]] = _resize(image, *size)
        tiles = canvas.unflatten(1, (rows, self.side)).unflatten(3, (columns, self.side))
        tiles = tiles.permute(1, 3, 0, 2, 4).reshape(-1, 3, self.side, self.side)
        return torch.cat([to_square(image, self.side, "stretch")[None], tiles])

    def tile_count(self, width: int, height: int) -> int:
        """Squares that the tower sees of an image of this size in pixels."""
        return 1 if self.tile_grids is None else 1 + math.prod(self._grid(width, height))

    def blank(self, width: int, height: int) -> torch.Tensor:
        """The tiles of an image of this size in pixels that shows nothing."""
        return torch.zeros((self.tile_count(width, height), 3, self.side, self.side), dtype=torch.uint8)

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        high, wide = select_best_resolution((height, width), self.pinpoints)
        return high // self.side, wide // self.side


def normalise(
    pixels: torch.Tensor,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """[B, 3, S, S] uint8 to `dtype`, (x / 255 - mean) / std per channel, on the device where the pixels are."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels.device)[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=pixels.device)[:, None, None]
    return torch.addcmul(shift, pixels.float(), scale).to(dtype)
