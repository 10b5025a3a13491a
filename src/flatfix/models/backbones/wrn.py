"""Wide residual networks in their CIFAR form (arXiv 1605.07146)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from flatfix.models.registration import register_backbone


class Block(nn.Module):
    """Add to the input two 3x3 convolutions of it, each after batch norm and ReLU, with dropout before the second.

    Where the number of channels changes, the input is normalised and activated once for both ways, and a 1x1
    convolution takes the shortcut along.
    """

    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False) if before != after else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[N, before, H, W]` to `[N, after, H / stride, W / stride]`."""
        active = F.relu(self.norm1(inputs), inplace=True)
        residual: Tensor = F.relu(self.norm2(self.conv1(active)), inplace=True)
        residual = self.conv2(self.dropout(residual))
        return residual + (self.shortcut(active) if self.shortcut else inputs)


class WideResNet(nn.Module):
    """Stack a 3x3 convolution and three stages of blocks, the last two of which halve the picture; then average.

    Args:
        depth: number of convolutions, 6 n + 4 with n blocks a stage.
        width: factor on the 16, 32 and 64 channels of the stages.
        dropout: part of the values dropped between the convolutions of a block; the paper uses 0.3 on CIFAR.

    Raises:
        ValueError: for a depth that no number of blocks gives.
    """

    def __init__(self, depth: int = 28, width: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        num_blocks, rest = divmod(depth - 4, 6)
        if num_blocks < 1 or rest:
            raise ValueError(f"depth={depth}: expected 6 n + 4, such as 16, 22, 28 or 40")
        layers: list[nn.Module] = [nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)]
        channels = 16
        for after, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for number in range(num_blocks):
                layers.append(Block(channels, after, stride if number == 0 else 1, dropout))
                channels = after
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` to pooled features `[N, num_features]`."""
        features: Tensor = self.pool(self.layers(images)).flatten(1)
        return features


@register_backbone
def wrn_28_10(**options: Any) -> WideResNet:
    """Build the network of 28 convolutions, ten times as wide as a plain one."""
    return WideResNet(**options)
