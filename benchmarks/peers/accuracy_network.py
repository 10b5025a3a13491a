"""The network that every training loop gets: logits of normalised pictures, with its first layer from the pictures.

It answers by a picture and its mirror image, as `model.tta=flip` lets ours do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models import register_model
from torch import Tensor, nn

from flatfix.models.classifier import create_backbone, num_features

MEAN = (0.4914, 0.4822, 0.4465)  # of the training pictures, a channel
STD = (0.2470, 0.2435, 0.2616)
NUM_SEEN = 1024  # pictures that choose the first layer


def picture_files(root: Path) -> list[Path]:
    """List the pictures of `<root>/<class>/`, class by class."""
    return sorted(path for path in root.glob("*/*") if path.is_file())


def normalised(files: list[Path]) -> Tensor:
    """Return `[N, 3, H, W]` float32."""
    pixels = np.stack([np.array(Image.open(file).convert("RGB")) for file in files])
    return ((torch.from_numpy(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


class Mirroring(nn.Sequential):
    """Answer by the mean of the logits of a picture and of its mirror image, once trained."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` to logits."""
        logits: Tensor = super().forward(pixels)
        return logits if self.training else (logits + super().forward(pixels.flip(3))) / 2


def network(train: str, widths: Sequence[int]) -> Mirroring:
    """Build the network of `widths` for the pictures of a folder of class folders."""
    files = picture_files(Path(train))
    backbone: Any = create_backbone("whitened_resnet", {"widths": tuple(widths)})
    backbone.initialise(normalised(files[:: max(1, len(files) // NUM_SEEN)]))
    head = nn.Linear(num_features(backbone), len({file.parent for file in files}))
    return Mirroring(backbone, head).to(memory_format=torch.channels_last)


@register_model
def whitened_classifier(pretrained: bool = False, *, train: str, widths: Sequence[int], **_: Any) -> nn.Module:
    """Build the network by the name that timm's `train.py` asks for."""
    return network(train, widths)
