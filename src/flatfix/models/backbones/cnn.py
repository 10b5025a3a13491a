"""A small plain network: the quick first model, and the one that tests train."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flatfix.models.registration import register_backbone


class Cnn(nn.Module):
    """Stack convolution, batch norm, ReLU and 2x2 max pooling per width, then average over what is left.

    Args:
        widths: channels of each stage; a stage halves the picture.
        in_chans: channels of the input.

    The picture must be at least `2 ** len(widths)` pixels a side.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), in_chans: int = 3) -> None:
        super().__init__()
        stages = []
        for before, after in zip((in_chans, *widths), widths, strict=False):
            stages += [
                nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.num_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to pooled features `[N, num_features]`."""
        features: Tensor = self.pool(self.stages(images)).flatten(1)
        return features


@register_backbone
def cnn(**options: Any) -> Cnn:
    """Build the small network."""
    return Cnn(**options)
