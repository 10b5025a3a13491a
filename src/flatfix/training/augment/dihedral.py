"""The symmetries of the square."""

from __future__ import annotations

from functools import partial

import torch
from torch import Generator, Tensor

from flatfix.training.augment.base import change_by_group


class Dihedral:
    """Lay each picture one of the eight ways that a square can lie, all equally likely; no pixel is interpolated."""

    changes_pictures = True

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return varied copies of `[N, H, W, 3] uint8` pictures with H = W."""
        assert images.shape[1] == images.shape[2], "pictures are square"
        ways = torch.randint(8, (len(images),), generator=generator)
        return change_by_group(images, ways, [partial(lay, way=way) for way in range(8)])


def lay(images: Tensor, way: int) -> Tensor:
    """Turn square pictures by `way % 4` quarters, and mirror them for a way of 4 and more."""
    turned = images.rot90(way % 4, dims=(1, 2))
    return turned if way < 4 else turned.flip(2)
