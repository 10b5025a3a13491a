"""What predicts, whatever runs it: all that `predict` needs to know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.decision import Decision
from flatfix.inference.predictor import Predictions


@dataclass(frozen=True)
class Model:
    """Describe a model that is ready to predict.

    Attributes:
        source: the option that chose it.
        name: what it is.
        classes: names in label order.
        image_size: pixels a side of the square that it takes.
        resize: how a picture becomes that square.
        decision: how its probabilities become an answer.
        predict: answers pictures `[N, H, W, 3]` uint8.
    """

    source: str
    name: str
    classes: tuple[str, ...]
    image_size: int
    resize: str
    decision: Decision
    predict: Callable[[NDArray[np.uint8]], Predictions]

    def describe(self) -> str:
        """Say in one line what the model is, and where it draws the line."""
        decision = self.decision
        parts = [self.name, f"{len(self.classes)} classes", f"{self.image_size} px"]
        if decision.positive is not None:
            parts.append(f"{self.classes[decision.positive]} from probability {decision.threshold:.4g} on")
        if decision.review is not None:
            parts.append("review from {:.4g} to {:.4g}".format(*decision.review))
        return f"{self.source} ({', '.join(parts)})"
