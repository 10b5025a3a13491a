"""The augmentation for parts on an inspection line."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from flatfix.errors import UserError
from flatfix.training.augment.base import flip, per_picture, to_device, toss

PIECE = 2**20  # values


class Inspection:
    """Flip, rotate and vary the light, as for parts that lie any way round under a lamp.

    Args:
        horizontal_flip: mirror half of the pictures left to right.
        vertical_flip: mirror half of the pictures top to bottom.
        rotation_degrees: largest angle, either way; what turns in from outside repeats the border by reflection.
        brightness: largest relative change of brightness.
        contrast: largest relative change of contrast, about the picture's mean grey.
        saturation: largest relative change of saturation.

    The colour operations are those of torchvision's `ColorJitter`, in the fixed order brightness, contrast, saturation.
    """

    changes_pictures = True

    def __init__(
        self,
        *,
        horizontal_flip: bool = True,
        vertical_flip: bool = True,
        rotation_degrees: float = 30.0,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
    ) -> None:
        if not 0 <= rotation_degrees <= 180:
            raise UserError(f"augment.rotation_degrees={rotation_degrees}: out of range, expected 0 to 180")
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if not 0 <= value <= 1:
                raise UserError(f"augment.{name}={value}: out of range, expected 0 to 1")
        self.flips = (vertical_flip, horizontal_flip)
        self.radians = math.radians(rotation_degrees)
        self.light = (brightness, contrast, saturation)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return varied copies of `[N, H, W, 3] uint8` pictures."""
        count = len(images)
        angles = self.radians * _uniform(count, generator)
        factors = [1 + size * _uniform(count, generator) for size in self.light]
        for axis, flips in enumerate(self.flips, start=1):
            coins = toss(count, generator)
            if flips:
                images = flip(images, axis, coins)
        # In pieces: on a CPU, the floats of a whole batch of large pictures outgrow the caches and what malloc keeps.
        size = max(1, PIECE // images[0].numel())
        pieces = zip(*(numbers.split(size) for numbers in (images, angles, *factors)), strict=True)
        return torch.cat([self._turn_and_light(*piece) for piece in pieces]).permute(0, 2, 3, 1)

    def _turn_and_light(self, images: Tensor, angles: Tensor, *factors: Tensor) -> Tensor:
        """Return `[N, 3, H, W] uint8`."""
        pixels = images.permute(0, 3, 1, 2).float()
        if self.radians:
            pixels = rotate(pixels, to_device(angles, images))
        pixels = vary_light(pixels, *(per_picture(factor, images) for factor in factors))
        return pixels.round_().to(torch.uint8)


def rotate(pixels: Tensor, radians: Tensor) -> Tensor:
    """Rotate each of `[N, C, H, W]` float pictures by its own angle `[N]`, bilinear, reflecting the border."""
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    height, width = pixels.shape[-2:]
    matrix = torch.stack(
        [cos, -sin * height / width, zero, sin * width / height, cos, zero],
        dim=1,
    ).view(-1, 2, 3)
    # affine_grid multiplies matrices: in the 16 bits of autocast, places would be off by pixels.
    with torch.autocast(pixels.device.type, enabled=False):
        grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    rotated: Tensor = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    return rotated


def vary_light(pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation of `[N, 3, H, W]` float pictures (0..255) by factors `[N, 1, 1, 1]`."""
    pixels = (pixels * brightness).clamp_(0, 255)
    mean_grey = _grey(pixels).mean(dim=(-3, -2, -1), keepdim=True)
    pixels = torch.lerp(mean_grey, pixels, contrast).clamp_(0, 255)
    varied: Tensor = torch.lerp(_grey(pixels), pixels, saturation).clamp_(0, 255)
    return varied


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _uniform(count: int, generator: Generator) -> Tensor:
    """Draw `[count]` numbers from -1 to 1."""
    return 2 * torch.rand(count, generator=generator) - 1
