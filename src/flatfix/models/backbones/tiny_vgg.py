"""TinyVGG, the network that CNN Explainer shows from the inside (arXiv 2004.15004)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flatfix.models.registration import register_backbone


class TinyVgg(nn.Module):
    """Stack two blocks of two unpadded 3x3 convolutions, each with ReLU, and 2x2 max pooling; keep where things are.

    The original flattens the map that a picture of 64 pixels leaves, 13x13. Here a map of any other size is averaged to
    13x13 first (a smaller one has its values repeated), so that the features do not depend on the size of the picture.

    Args:
        hidden_units: channels of each convolution.

    The picture must be at least 16 pixels a side.
    """

    def __init__(self, hidden_units: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (3, hidden_units):
            layers += [
                nn.Conv2d(channels, hidden_units, kernel_size=3),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden_units, hidden_units, kernel_size=3),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(13)
        self.num_features = hidden_units * 13 * 13

    def forward(self, images: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` to features `[N, num_features]`."""
        features: Tensor = self.pool(self.blocks(images)).flatten(1)
        return features


@register_backbone
def tiny_vgg(**options: Any) -> TinyVgg:
    """Build TinyVGG."""
    return TinyVgg(**options)
