"""Make of a run that qualified what is registered and served: the model package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flatfix.console import say
from flatfix.data.cache import Examples
from flatfix.evaluation.predictions import Predictions
from flatfix.evaluation.profile import profile
from flatfix.inference.package import Package
from flatfix.models.classifier import Classifier, load_checkpoint
from flatfix.models.export import Facts, export
from flatfix.registry.packages import as_mlflow_model

# Reduced precision is permitted on the word of 1,000 pictures or more; each costs the time of every runtime.
NUM_PICTURES = 1024
NUM_REFERENCE = 32
NUM_PROFILED = 256  # features; probabilities, which cost nothing, are profiled of the whole validation split


def package(
    checkpoint: Path,
    folder: Path,
    pictures: Mapping[str, Examples],
    validation: Predictions,
    *,
    facts: Facts,
    config: str,
) -> Package:
    """Export a checkpoint into `folder`, as MLflow's ONNX flavour lays it out.

    Args:
        checkpoint: one that knows its decision.
        folder: the package's, which must not exist.
        pictures: the decoded splits `val` and `test`.
        validation: what the model said of `val`.
        facts: what the card tells of the run.
        config: the run's config as YAML, to fine-tune from.
    """
    say("package: exporting to ONNX and checking it against the checkpoint")
    classifier = load_checkpoint(checkpoint)
    seen = _spread(pictures["val"], NUM_PROFILED)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".package-") as temporary:
        exported = export(
            classifier,
            Path(temporary, "package"),
            pictures=_judging(pictures),
            reference=_spread(pictures["val"], NUM_REFERENCE),
            profile=profile(
                seen,
                classifier.spec.decision.calibrate(validation.probabilities),
                _features(classifier, seen),
            ),
            facts=facts,
            config=config,
        )
        return as_mlflow_model(exported, folder)


def _judging(pictures: Mapping[str, Examples]) -> NDArray[np.uint8]:
    """Return pictures to compare runtimes on, first those of test: half of each split, or what there is."""
    num_test, num_val = len(pictures["test"]), len(pictures["val"])
    half = NUM_PICTURES // 2
    chosen_test = min(num_test, max(half, NUM_PICTURES - num_val))
    chosen_val = min(num_val, NUM_PICTURES - chosen_test)
    return np.concatenate([_spread(pictures["test"], chosen_test), _spread(pictures["val"], chosen_val)])


def _spread(examples: Examples, num: int) -> NDArray[np.uint8]:
    """Return at most `num` pictures, evenly spread over a split."""
    rows = np.unique(np.linspace(0, len(examples) - 1, min(num, len(examples))).round().astype(np.int64))
    return np.asarray(examples.inputs[rows])


def _features(classifier: Classifier, pictures: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [
            classifier.features(torch.from_numpy(pictures[start : start + batch_size])).numpy()
            for start in range(0, len(pictures), batch_size)
        ]
    features: NDArray[np.float32] = np.concatenate(parts)
    return features
