from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from flatfix.models.classifier import Classifier, build
from flatfix.training import schedulers
from flatfix.training.augment import Identity
from flatfix.training.checkpoint_io import AtomicCheckpointIO
from flatfix.training.losses import CrossEntropy
from flatfix.training.module import TrainingModule
from tests.helpers.compose import CONF

CONFIGS = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((CONF / "model").glob("[!_]*.yaml"))]
MODELS = [config["name"] for config in CONFIGS if "name" in config]  # model=timm leaves the name to the command line


def make_classifier(name: str = "cnn", **changes: Any) -> Classifier:
    settings: dict[str, Any] = {
        "name": name,
        "options": {},
        "pretrained": False,
        "weights_file": None,
        "normalise": "auto",
        "classes": ("ok", "defective", "unknown"),
        "image_size": 32,
        "resize": "squash",
        "data_mean": (0.4, 0.5, 0.6),
        "data_std": (0.2, 0.2, 0.2),
    }
    return build(**{**settings, **changes})[0]


def make_module(classifier: Classifier | None = None, **changes: Any) -> TrainingModule:
    settings: dict[str, Any] = {
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        "scheduler": schedulers.constant,
        "loss": CrossEntropy((1, 1, 1)),
        "augment": Identity(),
        "positive": None,
        "monitor": "accuracy",
        "seed": 0,
    }
    return TrainingModule(classifier or make_classifier(), **{**settings, **changes})


def save_checkpoint(classifier: Classifier, path: Path) -> Path:
    """Write what training saves of a classifier."""
    module = make_module(classifier)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return path
