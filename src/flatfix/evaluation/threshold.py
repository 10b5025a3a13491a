"""Choose on validation how a model decides: its temperature, the threshold of two classes, and what a person sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatfix.errors import UserError
from flatfix.evaluation.calibration import fit_temperature
from flatfix.inference.decision import Decision


@dataclass(frozen=True, slots=True)
class Rule:
    """Say how the threshold is chosen: by one of these, or by none, which makes it 0.5.

    Attributes:
        threshold: the threshold itself.
        recall_at_least: the highest threshold that finds this part of the positives.
        miss_cost: the cheapest threshold, a miss costing as much as this many false alarms.

    Raises:
        UserError: if two are given.
    """

    threshold: float | None = None
    recall_at_least: float | None = None
    miss_cost: float | None = None

    def __post_init__(self) -> None:
        options = {"threshold": self.threshold, "recall_at_least": self.recall_at_least, "miss_cost": self.miss_cost}
        given = [f"decision.{name}={value:g}" for name, value in options.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: each chooses the threshold. Set the others to null")

    def __str__(self) -> str:
        if self.threshold is not None:
            return "set by decision.threshold"
        if self.recall_at_least is not None:
            return f"recall of at least {self.recall_at_least:g} on validation"
        if self.miss_cost is not None:
            return f"fewest false alarms + {self.miss_cost:g} x misses on validation"
        return "the most probable class"


def check(options: Mapping[str, Any], num_classes: int | None = None, labels: NDArray[np.int64] | None = None) -> None:
    """Refuse options of the group `decision` that cannot work, as far as they can be judged yet.

    Args:
        options: the arguments of `decide` by name.
        num_classes: once the dataset is known.
        labels: [N] those of the validation split, once it is read.

    Raises:
        UserError: if two rules are given, if one is given without two classes, or if a rule must choose by pictures
            and validation lacks those of one class.
    """
    rule = Rule(*(options[name] for name in ("threshold", "recall_at_least", "miss_cost")))
    names = ("threshold", "recall_at_least", "miss_cost", "review_fraction")
    given = [name for name in names if options[name] is not None]
    if num_classes not in (None, 2) and given:
        raise UserError(
            f"decision.{given[0]}: means nothing with {num_classes} classes, of which the most probable is chosen. "
            "Set it to null"
        )
    chooses_by_pictures = rule.recall_at_least is not None or rule.miss_cost is not None
    if chooses_by_pictures and labels is not None and len(np.unique(labels)) < 2:
        raise UserError(
            f"decision.{given[0]}: validation needs pictures of both classes to choose a threshold by. Give it more "
            "with dataset.split.val_fraction, or set decision.threshold"
        )


def decide(
    labels: NDArray[np.int64],
    probabilities: NDArray[Any],
    positive: int | None,
    *,
    calibrate: bool,
    threshold: float | None,
    recall_at_least: float | None,
    miss_cost: float | None,
    review_fraction: float | None,
) -> Decision:
    """Return how a model decides that gives these probabilities of the validation pictures.

    Args:
        labels: [N] integers in 0..C-1.
        probabilities: [N, C] as the model gives them; each row sums to 1.
        positive: index of `dataset.positive_class` for two classes, None for more.
        calibrate: whether to fit a temperature; it is 1 otherwise.
        threshold: see `Rule`, as the next two.
        recall_at_least: part of the positives.
        miss_cost: false alarms.
        review_fraction: part of the pictures that a person should see, None for none of them.

    Raises:
        UserError: as `check`, or if a probability is nan: the model diverged.
    """
    options = {
        "threshold": threshold,
        "recall_at_least": recall_at_least,
        "miss_cost": miss_cost,
        "review_fraction": review_fraction,
    }
    check(options, probabilities.shape[1], labels)
    rule = Rule(threshold, recall_at_least, miss_cost)
    num_nan = int(np.isnan(probabilities).any(axis=1).sum())
    if num_nan:
        raise UserError(
            f"the model predicts nan for {num_nan} of {len(labels)} validation pictures: its training diverged. "
            "Lower optimizer.lr, or set trainer.precision=32"
        )
    temperature = fit_temperature(labels, probabilities) if calibrate else 1.0
    if positive is None:
        return Decision(temperature=temperature, rule=str(rule))
    calibrated = Decision(temperature=temperature).calibrate(probabilities)
    chosen = choose(labels, calibrated, positive, rule)
    review = review_band(calibrated, positive, chosen, review_fraction) if review_fraction else None
    return Decision(temperature=temperature, positive=positive, threshold=chosen, review=review, rule=str(rule))


def choose(labels: NDArray[np.int64], calibrated: NDArray[np.float64], positive: int, rule: Rule) -> float:
    """Return the threshold that a rule chooses on these pictures, of which there are some of both classes.

    A threshold chosen by pictures lies midway between two scores next to each other, 0 and 1 counted as scores too:
    every threshold between them decides these pictures alike, and this one is least moved by the last digits of another
    runtime. Of equally cheap thresholds it is the one nearest 1 / (1 + miss_cost), the cheapest where probabilities can
    be believed (Elkan 2001, The foundations of cost-sensitive learning).

    Args:
        labels: [N] 0 or 1.
        calibrated: [N, 2] probabilities after the temperature.
        positive: index of the class that is looked for.
        rule: what to choose by.
    """
    if rule.threshold is not None:
        return rule.threshold
    thresholds, num_found, num_alarms = _cuts(calibrated[:, positive], labels == positive)
    if rule.recall_at_least is not None:
        return float(thresholds[num_found / num_found[0] >= rule.recall_at_least].max())
    if rule.miss_cost is not None:
        costs = num_alarms + rule.miss_cost * (num_found[0] - num_found)
        cheapest = thresholds[np.isclose(costs, costs.min(), rtol=1e-9, atol=0)]
        return float(cheapest[np.abs(cheapest - 1 / (1 + rule.miss_cost)).argmin()])
    return 0.5


def review_band(
    calibrated: NDArray[np.float64], positive: int, threshold: float, fraction: float
) -> tuple[float, float]:
    """Return the lowest and the highest score that a person should see: the band around the threshold.

    It holds the asked part of these pictures (at least one), in the order of their scores: half of them next below the
    threshold, where misses lie, half next above it, and more of the one where the other has too few. Pictures that
    share the outermost score are in it too. Its ends lie midway to the next score outside.

    Args:
        calibrated: [N, 2] probabilities after the temperature.
        positive: index of the class that is looked for.
        threshold: least score that is decided as that class.
        fraction: part of the pictures.
    """
    scores = np.sort(calibrated[:, positive])
    first = int(np.searchsorted(scores, threshold))  # the lowest score that is decided as positive
    num = max(1, round(fraction * len(scores)))
    num_above = min(num // 2, len(scores) - first)
    num_below = min(num - num_above, first)
    num_above = min(num - num_below, len(scores) - first)
    values = np.unique([0.0, *scores, 1.0])
    low, high = threshold, threshold
    if num_below:
        lowest = int(np.searchsorted(values, scores[first - num_below]))
        low = values[max(lowest - 1, 0) : lowest + 1].mean()
    if num_above:
        highest = int(np.searchsorted(values, scores[first + num_above - 1]))
        high = values[highest : highest + 2].mean()
    return float(low), float(high)


def _cuts(
    scores: NDArray[np.float64], is_positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return every threshold that decides these pictures in another way, and what each one makes of them.

    Returns:
        [K] thresholds, rising: the first is reached by every picture, the last by none; then [K] positives and
        [K] negatives that reach them.
    """
    values, places = np.unique(scores, return_inverse=True)
    num_found, num_alarms = (
        np.bincount(places[kind], minlength=len(values) + 1)[::-1].cumsum()[::-1]
        for kind in (is_positive, ~is_positive)
    )
    below, above = np.append(0.0, values), np.append(values, max(1.0, np.nextafter(values[-1], 2.0)))
    middle = (below + above) / 2
    # Between neighbouring floats there is no middle.
    return np.where(middle > below, middle, above), num_found, num_alarms
