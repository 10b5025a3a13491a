"""What the tests of augmentation share: pictures, seeded draws, and counts beside expected counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from scipy import stats
from torch import Generator, Tensor

from flatfix.training.augment import Augment


def pictures(count: int = 8, height: int = 24, width: int = 24) -> Tensor:
    blotches = torch.rand(count, 3, 6, 6, generator=Generator().manual_seed(0)) * 255
    grown = torch.nn.functional.interpolate(blotches, size=(height, width), mode="bilinear")
    return grown.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def copies(picture: Tensor, count: int) -> Tensor:
    return picture.expand(count, -1, -1, -1).contiguous()


def drawn(augment: Augment, images: Tensor, seed: int) -> Tensor:
    return augment(images, Generator().manual_seed(seed))


def key(picture: Tensor) -> bytes:
    return picture.contiguous().numpy().tobytes()


def counted(images: Tensor) -> Counter[bytes]:
    return Counter(key(picture) for picture in images)


def chance(seen: Mapping[bytes, int], weights: Mapping[bytes, float]) -> float:
    """Return the p-value of counts of outcomes; 0 when there is one that cannot be."""
    if not seen.keys() <= weights.keys():
        return 0.0
    scale = sum(seen.values()) / sum(weights.values())
    return float(
        stats.chisquare([seen.get(name, 0) for name in weights], [scale * weight for weight in weights.values()]).pvalue
    )
