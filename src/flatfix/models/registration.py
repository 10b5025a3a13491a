"""Make our backbones known to timm, beside its own, and say what one of them may do beside `forward`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, runtime_checkable

from timm.models import register_model
from torch import Tensor, nn


@runtime_checkable
class Initialised(Protocol):
    """A backbone that chooses some of its first weights by training pictures."""

    def initialise(self, pixels: Tensor) -> None:
        """Choose them by normalised pictures `[N, 3, H, W]`; the same pictures give the same weights."""


def register_backbone(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Let timm build a backbone by the name of the function that makes it; it has no published weights.

    `build` gets the model's options and nothing else: what timm passes on top concerns weights and a head.
    """

    @wraps(build)
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise ValueError(f"{build.__name__} has no pretrained weights")
        for name in ("num_classes", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            options.pop(name, None)
        return build(**options)

    return register_model(create)
