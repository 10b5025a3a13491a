"""Make our backbones known to timm, beside its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from timm.models import register_model
from torch import nn


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
