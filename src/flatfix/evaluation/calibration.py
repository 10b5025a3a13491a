"""Whether probabilities can be believed, and the temperature that makes them more so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from flatfix.evaluation.intervals import proportion_interval
from flatfix.inference.decision import PROBABILITY_FLOOR

# Networks need about 0.4 (trained on smoothed or mixed labels, or for a short time) to 4 (overfit). A small validation
# split can hit a bound by chance, which should do little harm.
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.25, 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Say how often what the model claims is true, in bins of the probability that it claims.

    Attributes:
        edges: [B + 1] from 0 to 1; a bin holds its upper edge, the first one 0 as well.
        counts: [B] pictures.
        confidence: [B] mean claimed probability; nan in a bin without pictures, as are all below.
        frequency: [B] part of the pictures of which the claim is true.
        low: [B] lower end of the 95 % interval of `frequency` (Wilson).
        high: [B] upper end of it.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    frequency: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def fit_temperature(labels: NDArray[np.int64], probabilities: NDArray[Any]) -> float:
    """Return the temperature of least cross-entropy (Guo et al. 2017, arXiv 1706.04599), within 0.25 to 10.

    The cross-entropy of these pictures is never above that of temperature 1. Where every picture is right, there is no
    best temperature: the lower the better, because nothing argues against certainty. It is 1 then, which costs less on
    other pictures than the bound does.

    Args:
        labels: [N] integers in 0..C-1, of pictures that did not train the model.
        probabilities: [N, C] as the model gives them; each row sums to 1.
    """
    if (probabilities.argmax(axis=1) == labels).all():
        return 1.0

    logits = np.log(np.maximum(probabilities.astype(np.float64), PROBABILITY_FLOOR))
    logits -= logits.max(axis=1, keepdims=True)
    of_label = logits[np.arange(len(labels)), labels]

    def cross_entropy(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((np.log(np.exp(logits * scale).sum(axis=1)) - of_label * scale).mean())

    # It is convex in 1 / temperature: the minimum that is found is the only one.
    bounds = (math.log(_LOWEST_TEMPERATURE), math.log(_HIGHEST_TEMPERATURE))
    found = float(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x)
    return math.exp(found) if cross_entropy(found) < cross_entropy(0.0) else 1.0


def reliability(
    labels: NDArray[np.int64], probabilities: NDArray[Any], positive: int | None, num_bins: int = 15
) -> Reliability:
    """Sort pictures into bins of equal width by what the model claims, and count how often the claim is true.

    With two classes the claim is the probability of the class `positive` (DeGroot and Fienberg 1983,
    doi:10.2307/2987588), which is what the threshold and the review band are laid on. With more it is the probability
    of the most probable class (Guo et al. 2017, arXiv 1706.04599).

    Args:
        labels: [N] integers in 0..C-1.
        probabilities: [N, C] floating point; each row sums to 1.
        positive: index of `dataset.positive_class` for two classes, None for more.
        num_bins: 15 as in Guo et al.
    """
    if positive is None:
        claims, is_true = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    else:
        claims, is_true = probabilities[:, positive], labels == positive
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.digitize(claims, edges[1:-1], right=True)
    counts, sums, num_true = (
        np.bincount(bins, weights, minlength=num_bins) for weights in (None, claims.astype(np.float64), is_true)
    )
    intervals = [proportion_interval(int(true), int(count)) for true, count in zip(num_true, counts, strict=True)]
    is_empty = counts == 0
    confidence, frequency = sums / np.where(is_empty, np.nan, counts), num_true / np.where(is_empty, np.nan, counts)
    low, high = np.where(is_empty, np.nan, np.transpose(intervals))
    return Reliability(edges, counts, confidence, frequency, low, high)


def expected_calibration_error(
    labels: NDArray[np.int64], probabilities: NDArray[Any], positive: int | None, num_bins: int = 15
) -> float:
    """Return by how much claims and their frequencies differ in the mean over pictures: 0 is best, 1 worst.

    It is the mean gap of the bars of `reliability`, so of the positive class with two classes (Naeini et al. 2015,
    doi:10.1609/aaai.v29i1.9602) and of the most probable class with more (Guo et al. 2017). Chance alone leaves a
    calibrated model with about 0.8 sqrt(B p (1 - p) / N), B bins being in use: 0.05 for 350 pictures.

    Args:
        labels: [N] integers in 0..C-1.
        probabilities: [N, C] floating point; each row sums to 1.
        positive: index of `dataset.positive_class` for two classes, None for more.
        num_bins: as `reliability`.
    """
    bins = reliability(labels, probabilities, positive, num_bins)
    return float(np.nansum(bins.counts * np.abs(bins.frequency - bins.confidence)) / len(labels))
