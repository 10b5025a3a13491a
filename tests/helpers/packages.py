from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flatfix.inference.card import Permit
from flatfix.inference.decision import Decision
from flatfix.inference.package import CARD, Package, open_package
from flatfix.inference.runtime import PAIRS
from flatfix.models.classifier import Classifier
from flatfix.models.export import Facts, export
from tests.helpers.models import make_classifier

# An untrained model is sure of nothing: these make it say both classes, and doubt some of its answers.
DECISION = Decision(temperature=0.05, positive=1, threshold=0.68, review=(0.67, 0.69))
FACTS = Facts(
    dataset={"name": "tires", "version": "v1", "digest": "0123456789abcdef"},
    validation={"f1": 0.9},
    test={"f1": 0.89},
    qualification="f1 0.90, asked for at least 0.80",
    run_id="5b0f",
    git_commit="c0ffee",
)


def pictures(count: int, size: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    """Draw pictures of one colour each with noise, so that a model tells them apart."""
    draws = np.random.default_rng(seed)
    colours, noise = draws.integers(0, 200, (count, 1, 1, 3)), draws.integers(0, 56, (count, size, size, 3))
    return (colours + noise).astype(np.uint8)


def small_classifier() -> Classifier:
    """Build a classifier of two classes, untrained, the same every time."""
    torch.manual_seed(0)
    classifier = make_classifier(classes=("ok", "defective")).eval()
    classifier.spec = replace(classifier.spec, decision=DECISION)
    return classifier


def make_package(folder: Path) -> Package:
    """Export the small classifier, in some seconds."""
    return export(
        small_classifier(),
        folder,
        pictures=pictures(64, seed=1),
        reference=pictures(32, seed=2),
        profile={"profile_brightness": np.linspace(0, 1, 64, dtype=np.float32)},
        facts=FACTS,
        config="model: {name: cnn}\n",
    )


def with_card(package: Package, folder: Path, **changes: Any) -> Package:
    """Copy a package, with another card."""
    shutil.copytree(package.folder, folder)
    (folder / CARD).write_bytes(replace(package.card, **changes).to_json())
    return open_package(folder)


def permits(*pairs: tuple[str, str], max_difference: float = 0.01) -> tuple[Permit, ...]:
    """Permit pairs, whatever they answer."""
    return tuple(
        Permit(
            runtime=runtime,
            precision=precision,
            num_pictures=1000,
            top1_agreement=1.0,
            decision_agreement=1.0,
            max_difference=max_difference,
        )
        for runtime, precision in pairs or PAIRS
    )
