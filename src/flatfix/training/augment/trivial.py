"""TrivialAugment: one operation a picture, drawn together with its strength.

The operations, their strengths and their results are those of torchvision's `TrivialAugmentWide` on uint8 tensors, but
that either of two pixels may be taken for a place half-way between them. What goes through floats may differ by one
level on another device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from flatfix.training.augment.base import change_by_group, keep, overlay, per_picture, toss
from flatfix.training.augment.cifar import Cifar, crop

NUM_STRENGTHS = 31
MOST_PIXELS = 32  # of a translation


class Trivial:
    """Apply one operation to each picture (TrivialAugment Wide, arXiv 2103.10158), then vary it as `Cifar` does.

    The order is that of the paper's code for CIFAR: operation, crop, flip, cutout. (torchvision's recipe for ImageNet
    crops and flips first.)

    Args:
        padding: see `Cifar`.
        horizontal_flip: see `Cifar`.
        cutout: see `Cifar`; the paper's 32-pixel recipe has 16.
    """

    changes_pictures = True

    def __init__(self, *, padding: int = 0, horizontal_flip: bool = True, cutout: int = 0) -> None:
        self.then = Cifar(padding=padding, horizontal_flip=horizontal_flip, cutout=cutout)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return varied copies of `[N, H, W, 3] uint8` pictures."""
        count = len(images)
        kinds = torch.randint(len(OPERATIONS), (count,), generator=generator)
        steps = torch.randint(NUM_STRENGTHS, (count,), generator=generator)
        is_negated = toss(count, generator)
        operations = OPERATIONS.values()
        strengths = torch.stack([operation.strengths for operation in operations])[kinds, steps]
        is_signed = torch.tensor([operation.is_signed for operation in operations])[kinds]
        strengths = torch.where(is_signed & is_negated, -strengths, strengths)
        images = change_by_group(images, kinds, [operation.function for operation in operations], strengths)
        return self.then(images, generator)


def shear_x(images: Tensor, strengths: Tensor) -> Tensor:
    """Push each row to the left by `strengths` `[N]` times its distance from the top."""
    count, height, width, _ = images.shape
    shifts = strengths[:, None] * (torch.arange(height) + 0.5)
    still = torch.zeros(count, 1, dtype=torch.int64)
    return crop(images, (0, width), still, shifts.round().clamp_(-width, width).long())


def shear_y(images: Tensor, strengths: Tensor) -> Tensor:
    """Push each column up by `strengths` `[N]` times its distance from the left."""
    one, zero = torch.ones_like(strengths), torch.zeros_like(strengths)
    return _resample(images, [one, zero, zero, strengths, one, strengths * images.shape[2] / 2])


def translate_x(images: Tensor, strengths: Tensor) -> Tensor:
    """Push the pictures to the right by `strengths` `[N]` pixels, of which a fraction is dropped."""
    steps = strengths.long()[:, None]
    return crop(images, (0, MOST_PIXELS), torch.zeros_like(steps), -steps)


def translate_y(images: Tensor, strengths: Tensor) -> Tensor:
    """Push the pictures down by `strengths` `[N]` pixels, of which a fraction is dropped."""
    steps = strengths.long()[:, None]
    return crop(images, (MOST_PIXELS, 0), -steps, torch.zeros_like(steps))


def rotate(images: Tensor, strengths: Tensor) -> Tensor:
    """Turn the pictures about their centres by `strengths` `[N]` degrees against the clock."""
    cos, sin, zero = strengths.deg2rad().cos(), strengths.deg2rad().sin(), torch.zeros_like(strengths)
    return _resample(images, [cos, -sin, zero, sin, cos, zero])


def brightness(images: Tensor, strengths: Tensor) -> Tensor:
    """Go away from black, or towards it for strengths `[N]` below 0."""
    return _bytes(images.float().mul_(_floats(1 + strengths, images)))


def color(images: Tensor, strengths: Tensor) -> Tensor:
    """Go away from grey, or towards it for strengths `[N]` below 0."""
    planes = images.permute(0, 3, 1, 2).contiguous().float()
    grey = _grey(planes)
    planes.mul_(_floats(1 + strengths, images)).addcmul_(grey, _floats(-strengths, images))
    return _bytes(planes).permute(0, 2, 3, 1).contiguous()


def contrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Go away from the mean grey, or towards it for strengths `[N]` below 0."""
    mean = _grey(images.permute(0, 3, 1, 2).contiguous().float()).mean(dim=(1, 2, 3)).view(-1, 1, 1, 1)
    pixels = images.float().mul_(_floats(1 + strengths, images))
    return _bytes(pixels.add_(mean * _floats(-strengths, images)))


def sharpness(images: Tensor, strengths: Tensor) -> Tensor:
    """Go away from a blurred copy, or towards it for strengths `[N]` below 0; the outermost pixels stay."""
    values = images.short()
    sums = values[:, :-2] + values[:, 1:-1]
    sums += values[:, 2:]
    sums = sums[:, :, :-2] + sums[:, :, 1:-1] + sums[:, :, 2:]
    # PIL's SMOOTH: of the nine pixels, the one in the middle counts five times.
    blurred = sums.add_(values[:, 1:-1, 1:-1], alpha=4).float().div_(13).round_()
    centres = values[:, 1:-1, 1:-1].float()
    sharpened = images.clone()
    sharpened[:, 1:-1, 1:-1] = _bytes(centres.addcmul_(blurred.sub_(centres), _floats(-strengths, images)))
    return sharpened


def posterize(images: Tensor, strengths: Tensor) -> Tensor:
    """Keep the highest `strengths` `[N]` bits."""
    return images & per_picture((256 - 2 ** (8 - strengths)).to(torch.uint8), images)


def solarize(images: Tensor, strengths: Tensor) -> Tensor:
    """Invert what is at least as bright as `strengths` `[N]`, from 0 to 1."""
    lowest = per_picture((255 * strengths).float().ceil().to(torch.uint8), images)
    return overlay(images, ~images, (images >= lowest).to(torch.uint8))


def auto_contrast(images: Tensor, strengths: Tensor) -> Tensor:
    """Stretch each channel to the whole range."""
    lowest, highest = (extreme(extreme(images, dim=1), dim=1).float() for extreme in (torch.amin, torch.amax))
    scales = (highest - lowest) * (1 / 255)
    lowest, scales = lowest.where(scales > 0, 0), scales.where(scales > 0, 1)
    return _bytes(images.float().sub_(_in_rows(lowest, images)).div_(_in_rows(scales, images)))


def equalize(images: Tensor, strengths: Tensor) -> Tensor:
    """Spread the values of each channel evenly, by PIL's rule."""
    count, _, _, channels = images.shape
    tables = torch.arange(count * channels, dtype=torch.int32, device=images.device).view(count, channels)
    places = images.int().add_(_in_rows(256 * tables, images)).flatten()
    # On a GPU bincount would wait for the largest of them.
    zeros = torch.zeros(count * channels * 256, dtype=torch.int32, device=images.device)
    histograms = zeros.index_add_(0, places, torch.ones_like(places)).view(-1, 256)
    below = histograms.cumsum(1) - histograms
    # At the brightest value that occurs, all pixels but those of that value are below.
    step = (below * (histograms > 0)).amax(1, keepdim=True) // 255
    spread = (below + step // 2) // step.clamp(min=1)
    table = torch.where(step == 0, torch.arange(256, device=images.device), spread.clamp(max=255))
    return table.to(torch.uint8).flatten().index_select(0, places).view(images.shape)


class Operation(NamedTuple):
    """Change pictures by strengths, of which one is drawn for each picture; half are negated where they are signed."""

    function: Callable[[Tensor, Tensor], Tensor]
    strengths: Tensor
    is_signed: bool


def _from_to(first: float, last: float) -> Tensor:
    return torch.linspace(first, last, NUM_STRENGTHS).double()


OPERATIONS = {
    "Identity": Operation(keep, _from_to(0, 0), False),
    "ShearX": Operation(shear_x, _from_to(0, 0.99), True),
    "ShearY": Operation(shear_y, _from_to(0, 0.99), True),
    "TranslateX": Operation(translate_x, _from_to(0, MOST_PIXELS), True),
    "TranslateY": Operation(translate_y, _from_to(0, MOST_PIXELS), True),
    "Rotate": Operation(rotate, _from_to(0, 135), True),
    "Brightness": Operation(brightness, _from_to(0, 0.99), True),
    "Color": Operation(color, _from_to(0, 0.99), True),
    "Contrast": Operation(contrast, _from_to(0, 0.99), True),
    "Sharpness": Operation(sharpness, _from_to(0, 0.99), True),
    "Posterize": Operation(posterize, _from_to(8, 2).round(), False),
    "Solarize": Operation(solarize, _from_to(1, 0), False),
    "AutoContrast": Operation(auto_contrast, _from_to(0, 0), False),
    "Equalize": Operation(equalize, _from_to(0, 0), False),
}


def _resample(images: Tensor, matrix: list[Tensor]) -> Tensor:
    """Take each pixel from where an affine matrix leads: its six entries are `[N]`, in pixels about the centre."""
    count, height, width, channels = images.shape
    a, b, c, d, e, f = (_floats(entry, images).squeeze(3) for entry in matrix)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=images.device) - middle_x
    y = torch.arange(height, device=images.device)[:, None] - middle_y
    columns = (a * x + (c + middle_x)) + b * y
    rows = (d * x + (f + middle_y)) + e * y
    # What lies outside is taken from a black frame, one pixel wide.
    framed = F.pad(images, (0, 0, 1, 1, 1, 1))
    columns, rows = (columns.round_().clamp_(-1, width) + 1).int(), (rows.round_().clamp_(-1, height) + 1).int()
    rows += torch.arange(count, dtype=torch.int32, device=images.device).view(-1, 1, 1) * framed.shape[1]
    places = rows.mul_(framed.shape[2]).add_(columns)
    return framed.view(-1, channels).index_select(0, places.flatten()).view(images.shape)


def _floats(numbers: Tensor, images: Tensor) -> Tensor:
    return per_picture(numbers.float(), images)


def _in_rows(numbers: Tensor, images: Tensor) -> Tensor:
    """Shape `[N, 3]` numbers as `[N, 1, W, 3]`: repeated for a row, they meet the pixels in long runs of memory."""
    return numbers[:, None, None].repeat(1, 1, images.shape[2], 1)


def _grey(planes: Tensor) -> Tensor:
    """Return whole grey values `[N, 1, H, W]` of `[N, 3, H, W]`."""
    red, green, blue = planes.split(1, dim=1)
    grey: Tensor = (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()
    return grey


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp_(0, 255).to(torch.uint8)
