"""From a model's probabilities to its answer: calibration, the threshold of two classes, and what a person sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

PROBABILITY_FLOOR = float(np.finfo(np.float32).tiny)
"""Probabilities below this count as this: a picture costs at most 87.34 nats, even at probability 0.

It is the smallest normal float32: a larger floor would cut off losses that a float32 softmax still tells apart.
"""


@dataclass(frozen=True, slots=True)
class Decision:
    """Say how a model decides; it travels with the model and is applied wherever the model predicts.

    Attributes:
        temperature: logits are divided by it before the softmax (Guo et al. 2017, arXiv 1706.04599); 1 changes nothing.
        positive: index of the class that is looked for, with two classes; None with more.
        threshold: least calibrated probability of the positive class that is decided as that class.
        review: lowest and highest calibrated probability of the positive class that a person should see, or None.
        rule: how the threshold was chosen, in words.
    """

    temperature: float = 1.0
    positive: int | None = None
    threshold: float = 0.5
    review: tuple[float, float] | None = None
    rule: str = "the most probable class"

    def calibrate(self, probabilities: NDArray[Any]) -> NDArray[np.float64]:
        """Return the softmax of the logits over the temperature, from probabilities `[N, C]`.

        Probabilities below `PROBABILITY_FLOOR` count as that, so that 0 and 1 have logits too.
        """
        if self.temperature == 1:
            return probabilities.astype(np.float64)
        # The logarithm of a softmax is its logits less a constant, which the next softmax does not see.
        return softmax(np.log(np.maximum(probabilities.astype(np.float64), PROBABILITY_FLOOR)) / self.temperature)

    def predict(self, calibrated: NDArray[Any]) -> NDArray[np.int64]:
        """Return the class `[N]` of each row of calibrated probabilities `[N, C]`."""
        if self.positive is None:
            most_probable: NDArray[np.int64] = calibrated.argmax(axis=1)
            return most_probable
        is_positive = calibrated[:, self.positive] >= self.threshold
        return np.where(is_positive, self.positive, 1 - self.positive)

    def needs_review(self, calibrated: NDArray[Any]) -> NDArray[np.bool_]:
        """Return for each row `[N]` whether a person should see the picture."""
        if self.positive is None or self.review is None:
            return np.zeros(len(calibrated), dtype=np.bool_)
        scores = calibrated[:, self.positive]
        return (scores >= self.review[0]) & (scores <= self.review[1])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON and for a checkpoint that loads with `weights_only=True`."""
        values = asdict(self)
        return values | {"review": list(self.review) if self.review else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a decision from `to_dict`."""
        review = values["review"]
        return cls(**{**values, "review": tuple(review) if review else None})


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probabilities `[N, C]` of logits `[N, C]`."""
    precise = logits.astype(np.float64)
    exponentials = np.exp(precise - precise.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
