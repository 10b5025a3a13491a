"""What an imaginary model says of imaginary pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatfix.evaluation.answers import Answers
from flatfix.evaluation.predictions import Predictions
from flatfix.inference.decision import Decision

HOSTILE_NAMES = ("<script>alert('1')</script>", '"a" & $x_{2$ </td>', "溝の亀裂 žluťoučký", "_hidden")


def said(num_classes: int, num_pictures: int = 400, seed: int = 0, classes: Sequence[str] | None = None) -> Predictions:
    """Return what a mediocre model says that is too sure of itself: it is right for about three pictures in four."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_pictures)
    logits = 4 * rng.normal(size=(num_pictures, num_classes)) + 6 * np.eye(num_classes)[labels]
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    names = tuple(classes or [f"class {index}" for index in range(num_classes)])
    return Predictions(
        [f"picture {row}" for row in range(num_pictures)], labels, probabilities.astype(np.float32), names
    )


def decision(num_classes: int, **changes: Any) -> Decision:
    """Return a decision that uses all there is: a temperature and, with two classes, a threshold and a review band."""
    of_two = {"positive": 1, "threshold": 0.3, "review": (0.2, 0.5)} if num_classes == 2 else {}
    return Decision(**{"temperature": 2.5, **of_two, **changes})


def answers(num_classes: int, **options: Any) -> Answers:
    """Return what `decision` makes of `said`."""
    return Answers.of(said(num_classes, **options), decision(num_classes))


def answers_of(labels: Sequence[int], scores: Sequence[float], **changes: Any) -> Answers:
    """Return the answers of two classes whose probabilities of the second one are `scores`, uncalibrated."""
    second = np.array(scores)
    table = Predictions(
        [f"picture {row}" for row in range(len(labels))],
        np.array(labels),
        np.column_stack([1 - second, second]),
        ("ok", "defective"),
    )
    return Answers.of(table, decision(2, **{"temperature": 1.0, "review": None, **changes}))
