"""Pictures made of two pictures, for labels made of two labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor

from flatfix.errors import UserError
from flatfix.training.augment.base import Augment, Recurring, overlay, per_picture, rectangles, to_device


class Mixing(NamedTuple):
    """Hold mixed pictures and what they are made of.

    Attributes:
        images: `[N, H, W, 3]` uint8.
        partners: `[N]` int64, the row whose picture is mixed in.
        shares: `[N]` float32, the share of the own picture, from 0 to 1.
    """

    images: Tensor
    partners: Tensor
    shares: Tensor


@runtime_checkable
class Mixer(Protocol):
    """Mix the pictures of a batch with one another: an augmentation whose pictures need mixed labels."""

    def mix(self, images: Tensor, generator: Generator) -> Mixing:
        """Return mixed copies of `[N, H, W, 3] uint8` pictures."""


class _Mix(ABC):
    """Draw a partner and a share for each picture; a subclass says how the two become one.

    Args:
        alpha: both parameters of the Beta distribution of the shares: 1 makes all shares equally likely, less makes
            pictures that are almost whole likelier.
        first: varies the pictures before they are mixed.
    """

    changes_pictures = True

    def __init__(self, *, alpha: float, first: Augment) -> None:
        if not alpha > 0:
            raise UserError(f"augment.alpha={alpha}: out of range, expected more than 0")
        if isinstance(first, Mixer):
            raise UserError(f"augment.first={type(first).__name__}: mixes pictures itself. Choose one that does not.")
        if isinstance(first, Recurring):
            raise UserError(f"augment.first={type(first).__name__}: goes by the epoch. Choose one that does not.")
        self.alpha = alpha
        self.first = first

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Return the mixed pictures alone."""
        return self.mix(images, generator).images

    def mix(self, images: Tensor, generator: Generator) -> Mixing:
        """Return mixed copies of `[N, H, W, 3] uint8` pictures."""
        images = self.first(images, generator)
        partners = torch.randperm(len(images), generator=generator)
        # torch.distributions draws from the global generator only.
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        shares = np.random.default_rng(seed).beta(self.alpha, self.alpha, len(images)).astype(np.float32)
        return self._join(images, to_device(partners, images), torch.from_numpy(shares), generator)

    @abstractmethod
    def _join(self, images: Tensor, partners: Tensor, shares: Tensor, generator: Generator) -> Mixing:
        """Mix each picture with its partner by `shares` `[N]` (on the CPU)."""


class Mixup(_Mix):
    """Lay two pictures over one another (arXiv 1710.09412)."""

    def _join(self, images: Tensor, partners: Tensor, shares: Tensor, generator: Generator) -> Mixing:
        own, other = images.float(), images.index_select(0, partners).float()
        mixed = torch.lerp(other, own, per_picture(shares, images)).round_().to(torch.uint8)
        return Mixing(mixed, partners, to_device(shares, images))


class Cutmix(_Mix):
    """Lay a rectangle of one picture in another (arXiv 1905.04899).

    The rectangle takes up the other picture's share, with the picture's own proportions. What sticks out of the picture
    is lost, and the shares are then those of the pixels that remain.
    """

    def _join(self, images: Tensor, partners: Tensor, shares: Tensor, generator: Generator) -> Mixing:
        height, width = images.shape[1:3]
        ratios = (1 - shares).sqrt()
        mask = rectangles(images, (height * ratios).long(), (width * ratios).long(), generator)
        mixed = overlay(images, images.index_select(0, partners), mask)
        return Mixing(mixed, partners, 1 - mask.flatten(1).float().mean(dim=1))
