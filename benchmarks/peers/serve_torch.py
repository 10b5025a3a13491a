"""What the servers that run PyTorch share: the classifier, and pictures as people decode them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flatfix.models.classifier import Classifier, ClassifierSpec, create_backbone

WEIGHTS = "weights.pt"


def save(classifier: Classifier, folder: Path) -> None:
    """Write what `Eager` reads."""
    torch.save({"spec": classifier.spec.to_dict(), "state": classifier.state_dict()}, folder / WEIGHTS)


class Eager:
    """Answer pictures with Pillow and the classifier, eagerly, on as many threads as PyTorch takes by itself."""

    def __init__(self, folder: Path) -> None:
        saved = torch.load(folder / WEIGHTS, weights_only=True)
        spec = ClassifierSpec.from_dict(saved["spec"])
        self._model = Classifier(spec, create_backbone(spec.name, spec.options)).eval()
        self._model.load_state_dict(saved["state"])
        self._size = spec.image_size

    def pixels(self, data: bytes) -> Tensor:
        """Return a picture as `[size, size, 3]` uint8: the classifier scales and normalises it."""
        picture = (
            Image.open(io.BytesIO(data)).convert("RGB").resize((self._size, self._size), Image.Resampling.BILINEAR)
        )
        return torch.from_numpy(np.array(picture))

    @torch.inference_mode()
    def answers(self, pictures: list[Tensor]) -> list[list[float]]:
        """Return the probabilities of the classes for each picture."""
        return self._model(torch.stack(pictures)).logits.softmax(dim=1).tolist()
