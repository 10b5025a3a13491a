"""The augmentation that results on CIFAR are published with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from flatfix.errors import UserError
from flatfix.training.augment.base import flip, overlay, per_picture, rectangles, to_device, toss


class Cifar:
    """Shift each picture, mirror half of them, and blank a square of each.

    Args:
        padding: pixels of black border from which a window of the picture's own size is cut (arXiv 1409.5185).
        horizontal_flip: mirror half of the pictures left to right.
        cutout: side in pixels of the blanked square (arXiv 1708.04552), 0 for none. Its centre may be any pixel, so it
            may stick out of the picture.
    """

    def __init__(self, *, padding: int = 4, horizontal_flip: bool = True, cutout: int = 0) -> None:
        for name, value in (("padding", padding), ("cutout", cutout)):
            if value < 0:
                raise UserError(f"augment.{name}={value}: out of range, expected 0 or more")
        self.padding = padding
        self.horizontal_flip = horizontal_flip
        self.cutout = cutout
        self.changes_pictures = bool(padding or horizontal_flip or cutout)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return varied copies of `[N, H, W, 3] uint8` pictures."""
        count = len(images)
        tops, lefts = torch.randint(-self.padding, self.padding + 1, (2, count, 1), generator=generator)
        coins = toss(count, generator)
        if self.padding:
            images = crop(images, (self.padding, self.padding), tops, lefts)
        if self.horizontal_flip:
            images = flip(images, 2, coins)
        if self.cutout:
            images = cut_out(images, self.cutout, generator)
        return images


class Alternating:
    """Mirror each picture in every other epoch, then shift it and blank a square of it as `Cifar` does.

    Half of the pictures are mirrored in any epoch, as by `Cifar`, but two epochs in a row show both sides of each
    picture, where chance would show every other picture the same way twice (arXiv 2404.00498, section 3.6).

    Args:
        padding: see `Cifar`.
        cutout: see `Cifar`.
    """

    changes_pictures = True

    def __init__(self, *, padding: int = 2, cutout: int = 0) -> None:
        self.then = Cifar(padding=padding, horizontal_flip=False, cutout=cutout)

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return varied copies of `[N, H, W, 3] uint8` pictures whose rows and epoch nobody knows."""
        return self._vary(images, generator, toss(len(images), generator))

    def vary(self, images: Tensor, generator: Generator, rows: Tensor, epoch: int) -> Tensor:
        """Return varied copies of `[N, H, W, 3] uint8` pictures, which are the rows `[N]` of the split."""
        return self._vary(images, generator, (rows + epoch) % 2 == 1)

    def _vary(self, images: Tensor, generator: Generator, is_mirrored: Tensor) -> Tensor:
        # Rows lie on the device of the pictures: the mask stays there, where to group by it would have to wait.
        mask = per_picture(is_mirrored.to(torch.uint8), images)
        return self.then(overlay(images, images.flip(2), mask), generator)


def crop(images: Tensor, margins: tuple[int, int], tops: Tensor, lefts: Tensor) -> Tensor:
    """Cut a window of the picture's own size out of each picture; what it has outside of the picture is black.

    Args:
        images: `[N, H, W, 3] uint8`.
        margins: rows and columns by which a window may lie outside.
        tops: `[N, 1] int64`, the first row of each window, from -margin to margin.
        lefts: `[N, 1] int64`, the first column of each window, or `[N, H]` for each row of it.
    """
    count, height, width, channels = images.shape
    vertical, horizontal = margins
    padded = F.pad(images, (0, 0, horizontal, horizontal, vertical, vertical))
    # A row of a window lies in one piece: copied by rows, a batch takes a tenth of the time that it takes by pixels.
    pieces = padded.flatten().unfold(0, width * channels, channels)
    rows = torch.arange(height, device=images.device) + vertical + to_device(tops, images)
    rows += torch.arange(count, device=images.device)[:, None] * padded.shape[1]
    starts = rows * padded.shape[2] + horizontal + to_device(lefts, images)
    return pieces.index_select(0, starts.flatten()).view(images.shape)


def cut_out(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Blank a square of each picture with the mean colour of the batch.

    The paper blanks normalised pictures with 0, their mean, so that the statistics of a batch stay what they were.
    """
    sides = torch.full((len(images),), side)
    mean = images.mean(dim=(0, 1, 2), dtype=torch.float32).round().to(torch.uint8)
    return overlay(images, mean.repeat(images.shape[2], 1), rectangles(images, sides, sides, generator))
