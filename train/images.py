"""The image path: from a stored JPEG to the uint8 square that a vision tower's device normalises.

Images stay uint8 until the device, a quarter of the bytes to move. The geometry is that of transformers' processors, to
the pixel, so that an exported model sees what was seen in training. torch's antialiased bicubic on uint8 is within one
grey level of Pillow's, a few at hard edges.

Pictures stay as Pillow decodes them, four bytes to a pixel, until a square takes its place in the batch: that copy, the
only one, takes three of them.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import get_worker_info
from torch.utils.dlpack import from_dlpack
from transformers.image_processing_utils import select_best_resolution

from vlmix.train.config import AspectRatio

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def decode(data: bytes) -> torch.Tensor:
    """[4, H, W] uint8, channels last: red, green, blue and a byte that says nothing, of an encoded image. Not to be
    written to, as the memory is Pillow's. Raises what Pillow raises for other bytes."""
    with Image.open(io.BytesIO(data)) as image:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        rgb.load()
        try:
            pixels = from_dlpack(pa.array(rgb).values)
        except ValueError:  # so large that Pillow has it in several blocks
            pixels = torch.from_numpy(np.array(rgb.convert("RGBX")))
        return pixels.view(rgb.height, rgb.width, 4).permute(2, 0, 1)


def room(tiles: int, side: int) -> torch.Tensor:
    """[tiles, 3, side, side] uint8 to be filled. A worker process gets memory that its parent reads too, so that
    handing over a batch copies nothing."""
    shape = (tiles, 3, side, side)
    if not tiles or get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))  # as torch's own default_collate does
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


def to_square(
    image: torch.Tensor, side: int, fitting: AspectRatio = "pad", mean: tuple[float, float, float] = CLIP_MEAN
) -> torch.Tensor:
    """[3, side, side] uint8 of an image [3, H, W] uint8, or [4, H, W] as `decode` gives it.

    `pad`: the whole picture in the middle of a square of the colour int(255 * mean), then resized (LLaVA's
    `expand2square`); `crop`: the short side fills the square, the middle is kept (LLaVA's stage 1); `stretch`: both
    sides fill it.
    """
    height, width = image.shape[1:]
    if fitting == "pad":
        image = _squared(image, side, mean)
    if fitting != "crop":
        return _resize(image, side, side)[:3]
    short = min(height, width)
    resized = _resize(image, int(side * height / short), int(side * width / short))
    top, left = (resized.shape[1] - side) // 2, (resized.shape[2] - side) // 2
    return resized[:3, top : top + side, left : left + side]


def _squared(image: torch.Tensor, side: int, mean: tuple[float, float, float]) -> torch.Tensor:
    """The image in the middle of a square. Of a wide one the rows are resized to `side` already, which gives the same
    pixels, as bicubic begins with them; of a tall banner, whose square would be mostly padding, the columns."""
    channels, height, width = image.shape
    if height == width:
        return image
    long, short, wide, banner = max(height, width), min(height, width), width > height, height > 2 * width
    first = (long - short) // 2
    columns = side if wide else long
    canvas = _pixels(channels, side if banner else long, columns)
    lines = canvas.permute(1, 2, 0)
    colour = torch.tensor([*(int(255 * m) for m in mean), 0][:channels], dtype=torch.uint8)
    line = colour.repeat(columns).view(columns, channels)
    if wide:
        lines[:first], lines[first + short :] = line, line
        _resize(image, short, side, canvas[:, first : first + short])
    else:
        lines[:] = line
        canvas[:, :, first : first + short] = _resize(image, side, short) if banner else image
    return canvas


def _pixels(channels: int, height: int, width: int) -> torch.Tensor:
    """[channels, height, width] uint8, channels last, with anything in it."""
    return torch.empty((height, width, channels), dtype=torch.uint8).permute(2, 0, 1)


def _resize(image: torch.Tensor, height: int, width: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """[C, height, width] of an image [C, H, W], in `out` if that is given."""
    if out is None and image.shape[1:] == (height, width):
        return image
    # Channels last on both sides, which `interpolate` does not give, is what makes torch's uint8 kernel three times as
    # fast as Pillow's.
    out = _pixels(len(image), height, width) if out is None else out
    batch = image[None].contiguous(memory_format=torch.channels_last)
    torch.ops.aten._upsample_bicubic2d_aa.out(batch, (height, width), False, out=out[None])
    return out


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
        canvas = _pixels(len(image), high, wide).zero_()
        top, left = (high - size[0]) // 2, (wide - size[1]) // 2
        canvas[:, top : top + size[0], left : left + size[1]] = _resize(image, *size)
        views = torch.empty((1 + rows * columns, 3, self.side, self.side), dtype=torch.uint8)
        views[0] = to_square(image, self.side, "stretch")
        tiles = canvas[:3].unflatten(1, (rows, self.side)).unflatten(3, (columns, self.side))
        views[1:].unflatten(0, (rows, columns)).copy_(tiles.permute(1, 3, 0, 2, 4))
        return views

    def tile_count(self, width: int, height: int) -> int:
        """Squares that the tower sees of an image of this size in pixels."""
        return 1 if self.tile_grids is None else 1 + math.prod(self._grid(width, height))

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
