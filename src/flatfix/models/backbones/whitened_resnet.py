"""A small residual network that learns CIFAR within minutes.

It is made of what the speed runs on CIFAR-10 found (Page 2018, How to Train Your ResNet; arXiv 2404.00498): a first
layer that decorrelates pixels and is not trained, batch norms whose scales stay 1 and whose shifts learn faster than
the rest, convolutions that begin as the identity, and features that are scaled down before the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatfix.models.registration import register_backbone

# A gradient passes the factor once on its way to the stored value, which passes it again on its way to the shift.
SHIFT_FACTOR = 8.0  # the shifts learn 64 times as fast as weights
WINDOW = 2  # pixels a side of what the first layer sees
SMALLEST_VARIANCE = 5e-4  # of normalised pixels; a direction with less is not amplified further
CHUNK = 64  # pictures whose windows are laid out at a time


class Shift(nn.BatchNorm2d):
    """Normalise each channel and add a shift, which learns `SHIFT_FACTOR ** 2` times as fast as other parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False, momentum=0.4)  # weights move fast, and the statistics with them
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to the same shape."""
        return F.batch_norm(
            inputs,
            self.running_mean,
            self.running_var,
            weight=torch.ones_like(self.shift),  # CUDA's backward knows no shift without a scale
            bias=SHIFT_FACTOR * self.shift,
            training=self.training,
            momentum=self.momentum or 0.0,
            eps=self.eps,
        )


class Whitening(nn.Module):
    """Describe each window of pixels by its principal components, scaled to one variance, and by their negatives.

    The components are random until `initialise` has seen pictures. Nothing is trained here: no gradient has to come
    back to the largest maps of the network.
    """

    components: Tensor

    def __init__(self) -> None:
        super().__init__()
        size = 3 * WINDOW**2
        self.register_buffer("components", torch.randn(size, 3, WINDOW, WINDOW) / size**0.5)
        self.num_channels = 2 * size

    def forward(self, pixels: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` to `[N, 24, H - 1, W - 1]`."""
        return F.conv2d(pixels, torch.cat([self.components, -self.components]))

    @torch.no_grad()
    def initialise(self, pixels: Tensor) -> None:
        """Find the components of normalised pictures `[N, 3, H, W]`."""
        size = 3 * WINDOW**2
        products, count = torch.zeros(size, size, dtype=torch.float64), 0
        for chunk in pixels.split(CHUNK):
            windows = F.unfold(chunk.float(), WINDOW).transpose(0, 1).flatten(1)
            products += (windows @ windows.T).double().cpu()
            count += windows.shape[1]
        variances, directions = torch.linalg.eigh(products / count)
        scaled = directions / (variances + SMALLEST_VARIANCE).sqrt()
        self.components.copy_(scaled.T.reshape(self.components.shape))


class Stage(nn.Module):
    """Convolve and halve the picture, then add to it one more convolution of it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
        self.norm1 = Shift(after)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False)
        self.norm2 = Shift(after)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight[: conv.in_channels])  # the other channels stay random

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[N, before, H, W]` to `[N, after, H // 2, W // 2]`."""
        halved = F.silu(self.norm1(F.max_pool2d(self.conv1(inputs), 2)))
        return halved + F.silu(self.norm2(self.conv2(halved)))


class WhitenedResNet(nn.Module):
    """Whiten the pixels, halve the picture in stages, and keep the strongest response of each channel.

    Args:
        widths: channels of each stage.
        scale: factor on the features. The head's own weights begin small, and large features would let it learn faster
            than what it rests on.

    The picture must be at least `2 ** len(widths) + 1` pixels a side.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 256, 256), scale: float = 1 / 9) -> None:
        super().__init__()
        self.whitening = Whitening()
        channels = (self.whitening.num_channels, *widths)
        self.stages = nn.Sequential(*map(Stage, channels, widths))
        self.scale = scale
        self.num_features = widths[-1]

    def initialise(self, pixels: Tensor) -> None:
        """Choose the first layer by normalised training pictures `[N, 3, H, W]`."""
        self.whitening.initialise(pixels)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` to pooled features `[N, num_features]`."""
        features: Tensor = self.stages(F.silu(self.whitening(images))).amax(dim=(2, 3))
        return self.scale * features


@register_backbone
def whitened_resnet(**options: Any) -> WhitenedResNet:
    """Build the network that learns within minutes."""
    return WhitenedResNet(**options)
