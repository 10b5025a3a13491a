"""What a model answers, once its decision is applied to what it said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatfix.evaluation.predictions import Predictions
from flatfix.inference.decision import PROBABILITY_FLOOR, Decision


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The answers to the pictures of one split, beside the truth.

    Attributes:
        ids: [N] pictures.
        labels: [N] true classes, as indices into `classes`.
        classes: [C] names, in label order.
        probabilities: [N, C] as the model gave them.
        calibrated: [N, C] probabilities that the decision is made on.
        predictions: [N] classes that are decided.
        needs_review: [N] whether a person should see the picture.
        decision: what decided.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    probabilities: NDArray[Any]
    calibrated: NDArray[np.float64]
    predictions: NDArray[np.int64]
    needs_review: NDArray[np.bool_]
    decision: Decision

    @classmethod
    def of(cls, said: Predictions, decision: Decision) -> Self:
        """Apply a decision."""
        calibrated = decision.calibrate(said.probabilities)
        return cls(
            ids=said.ids,
            labels=said.labels,
            classes=said.classes,
            probabilities=said.probabilities,
            calibrated=calibrated,
            predictions=decision.predict(calibrated),
            needs_review=decision.needs_review(calibrated),
            decision=decision,
        )

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """[N] whether the truth was predicted."""
        is_right: NDArray[np.bool_] = self.predictions == self.labels
        return is_right

    @property
    def scores(self) -> NDArray[np.float64]:
        """[N] calibrated probability of the positive class with two classes, of the predicted class with more."""
        column = self.predictions if self.decision.positive is None else self.decision.positive
        scores: NDArray[np.float64] = self.calibrated[np.arange(len(self.labels)), column]
        return scores

    @property
    def scored(self) -> str:
        """What `scores` are the probability of."""
        return "the predicted class" if self.decision.positive is None else self.classes[self.decision.positive]

    def worst_mistakes(self, num: int) -> NDArray[np.int64]:
        """Return the rows of at most `num` mistakes, first the one whose truth got the smallest probability."""
        wrong = np.flatnonzero(~self.is_right)
        of_truth = self.calibrated[wrong, self.labels[wrong]]
        return wrong[np.argsort(of_truth, kind="stable")][:num]

    def least_certain(self, num: int) -> NDArray[np.int64]:
        """Return at most `num` rows, first the one whose logits have to move least for another decision."""
        logits = np.log(np.maximum(self.calibrated, PROBABILITY_FLOOR))
        positive, threshold = self.decision.positive, self.decision.threshold
        if positive is not None:
            ends = (max(threshold, PROBABILITY_FLOOR), max(1 - threshold, PROBABILITY_FLOOR))
            distances = np.abs(logits[:, positive] - logits[:, 1 - positive] - math.log(ends[0] / ends[1]))
        else:
            second, first = np.partition(logits, -2, axis=1)[:, -2:].T
            distances = first - second
        return np.argsort(distances, kind="stable")[:num]
