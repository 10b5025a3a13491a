"""A checkpoint of a run as a model that predicts, with torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flatfix.errors import UserError
from flatfix.inference.predictor import Predictions
from flatfix.models.classifier import Classifier, load_checkpoint
from flatfix.prediction.model import Model

BEST = Path("checkpoints", "best.ckpt")


def open_checkpoint(checkpoint: str, accelerator: str) -> Model:
    """Load a checkpoint, or the best one of the folder of a run, onto the device that `accelerator` means.

    Raises:
        UserError: naming the option that does not work.
    """
    device = _device(accelerator)
    path = _file(checkpoint)
    return model_of(load_checkpoint(path), device, f"checkpoint={path}")


def model_of(classifier: Classifier, device: torch.device, source: str) -> Model:
    """Return a classifier, which goes to the device, as a model that predicts.

    It runs in float32, as it did when it was judged and its decision was fitted.
    """
    classifier.eval().to(device)
    spec = classifier.spec

    def predict(images: NDArray[np.uint8]) -> Predictions:
        with torch.inference_mode():
            output = classifier(torch.from_numpy(images).to(device))
        logits, features = (tensor.float().cpu().numpy() for tensor in output)
        return Predictions.of(logits, features, spec.decision)

    return Model(source, spec.name, spec.classes, spec.image_size, spec.resize, spec.decision, predict)


def _device(accelerator: str) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise UserError("accelerator=gpu: torch sees no GPU here. Use accelerator=auto or cpu.")
    return torch.device("cuda" if has_gpu and accelerator != "cpu" else "cpu")


def _file(checkpoint: str) -> Path:
    """Return the file that is meant: of a run's folder, its best checkpoint."""
    path = Path(checkpoint).expanduser()
    if path.is_dir() and (path / BEST).is_file():
        return path / BEST
    if not path.is_file():
        fault = f"a folder without {BEST}" if path.is_dir() else "no such file or folder"
        raise UserError(f"checkpoint={checkpoint}: {fault}. Name a checkpoint, or the folder of a run that has ended.")
    return path
